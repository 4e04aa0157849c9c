"""What a probe flow saw, and the verdict on it: outage, alive, lost. Pure.

A `Record` lives in the agent and notes every right exchange; it keeps the gaps between them that
are longer than its resolution. A `FlowReport` is its state at one moment, as it crosses to the
conductor. `outage_ns`, `progressed` and `why_lost` judge reports; they see nothing else.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "GAPS_MAX",
    "FlowReport",
    "Record",
    "lost_reason",
    "merge_sides",
    "outage_ns",
    "progressed",
]

GAPS_MAX = 4096
"""Gaps kept per flow. At the bound the resolution doubles and shorter gaps are forgotten."""


class FlowReport(msgspec.Struct, frozen=True):
    """One flow as its agent knows it. Times are CLOCK_BOOTTIME ns; 0 = never.

    `exchanges` counts right answers (streams: pieces read), `octets` right bytes received,
    `written` stream bytes given to the kernel, `sent` requests sent. `wrong` counts what must
    never happen: wrong bytes, duplicates, answers nobody asked for, a peer address that is not
    the expected one. `state`: connecting, open, failed. Of datagrams: `arrived` requests at the
    other end, and when the first unanswered ones were sent (`missing_ns`), once it is quiet.
    """

    flow: int
    state: str
    error: str
    local: tuple[str, int]
    remote: tuple[str, int]
    opened_ns: int
    exchanges: int
    octets: int
    written: int
    sent: int
    wrong: int
    wrong_why: str
    last_ns: int
    resolution_ns: int
    gaps: list[tuple[int, int]]
    arrived: int = 0
    missing_ns: list[int] = []


class Record:
    """Counts right exchanges and remembers the gaps between them."""

    def __init__(self, resolution_ns: int) -> None:
        self.resolution_ns = resolution_ns
        self.gaps: list[tuple[int, int]] = []
        self.exchanges = 0
        self.octets = 0
        self.last_ns = 0
        self.wrong = 0
        self.wrong_why = ""

    def right(self, now_ns: int, octets: int = 0) -> None:
        """A right exchange at `now_ns`."""
        if self.last_ns and now_ns - self.last_ns > self.resolution_ns:
            self._note_gap(self.last_ns, now_ns)
        self.last_ns = now_ns
        self.exchanges += 1
        self.octets += octets

    def mark_wrong(self, why: str) -> None:
        """Something that must never happen; the first reason is kept."""
        self.wrong += 1
        if not self.wrong_why:
            self.wrong_why = why

    def _note_gap(self, start_ns: int, end_ns: int) -> None:
        self.gaps.append((start_ns, end_ns))
        while len(self.gaps) > GAPS_MAX:
            self.resolution_ns *= 2
            self.gaps = [gap for gap in self.gaps if gap[1] - gap[0] > self.resolution_ns]


def outage_ns(report: FlowReport, start_ns: int, end_ns: int) -> int:
    """The longest gap in answers that touches [start_ns, end_ns]; 0 = none above the resolution.

    A gap still open at `end_ns` counts as far as `end_ns`: what comes of a fault began at the last
    answer before it, and is not the doing of the fault before.
    """
    longest = 0
    for gap_start, gap_end in report.gaps:
        if gap_end > start_ns and gap_start < end_ns:
            longest = max(longest, min(gap_end, end_ns) - gap_start)
    open_ns = end_ns - report.last_ns
    if report.last_ns and open_ns > report.resolution_ns:
        longest = max(longest, open_ns)
    return longest


def progressed(before: FlowReport, after: FlowReport, *, exchanges: int) -> bool:
    """True if at least `exchanges` right exchanges lie between two reports, none wrong, and for a
    stream everything that had been written at `before` has arrived."""
    if after.state != "open" or after.wrong > before.wrong:
        return False
    return after.exchanges - before.exchanges >= exchanges and after.octets >= before.written


def lost_reason(before: FlowReport, after: FlowReport, *, exchanges: int, bound_s: float) -> str:
    """Why a flow counts as lost between two reports; empty if it is alive."""
    if after.wrong:
        return f"{after.wrong} wrong: {after.wrong_why}"
    if after.state != "open":
        return f"{after.state}: {after.error}" if after.error else after.state
    if not progressed(before, after, exchanges=exchanges):
        if after.exchanges == before.exchanges:
            return f"no answer within {bound_s:g} s of the fault"
        return (
            f"stalled: {after.exchanges - before.exchanges} answers and "
            f"{after.octets - before.octets} bytes within {bound_s:g} s of the fault"
        )
    return ""


def merge_sides(
    opener: FlowReport, accepter: FlowReport | None, *, accepter_receives: bool
) -> FlowReport:
    """One report of a flow from both ends: progress is the receiver's, `written` the sender's,
    addresses and requests the opener's; an error or a wrong byte on either side counts.
    """
    if accepter is None:
        return opener
    receiver, sender = (accepter, opener) if accepter_receives else (opener, accepter)
    failed = next((side for side in (opener, accepter) if side.state == "failed"), None)
    return msgspec.structs.replace(
        receiver,
        state=failed.state if failed else opener.state,
        error=failed.error if failed else "",
        local=opener.local,
        remote=opener.remote,
        opened_ns=opener.opened_ns,
        written=sender.written,
        sent=opener.sent,
        wrong=opener.wrong + accepter.wrong,
        wrong_why=opener.wrong_why or accepter.wrong_why,
        arrived=accepter.exchanges,
    )
