"""What a drill notes of its faults, and what is made of the notes at its end. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from hafw.lab.faults import Holder
from hafw.lab.judges import Change
from hafw.lab.probe_record import FlowReport, outage_ns
from hafw.lab.probes import Probe
from hafw.lab.report import ProbeResult, StepResult

__all__ = [
    "COMMAND_T",
    "GIVEN_UP_T",
    "HELD_UP_T",
    "NO_NODE",
    "TAKEN_T",
    "UPSTREAM_T",
    "Step",
    "Takeover",
    "all_new",
    "allowed_ms",
    "dark_ns",
    "fault_windows",
    "gave_up",
    "packets_lost",
    "probe_result",
    "step_result",
    "worst_udp_ms",
]

Takeover = Literal["must", "anew", "stays", "never"]
"""Whether another node must be ACTIVE after a fault or must not. Anew: some node, also the former
one, in a new epoch. Never: the epoch stays too. Stays: the ACTIVE node may win the next one
itself, as it must when its votes were those of voters that have restarted since
(`cluster.acceptor`)."""
HELD_UP_T, GIVEN_UP_T, TAKEN_T = 2, 3, 4
"""For how many leases packets may be held up: where nothing moves, where a lease is given up, and
where it runs out. Seen are 0.3, 0.8 and 1.8 (with a slow witness) at most; what must not be takes
longer: an unsynced node waits for five leases before it claims, a restarted voter for M (2 s)."""
UPSTREAM_T, COMMAND_T = 20, 10
"""Until an upstream check has failed, and until a command has been given and obeyed."""
T_MS_MIN = 100
"""A shorter lease counts as this: the machine's own noise does not get shorter with it."""
SHOWN_MAX = 6
NO_NODE = Holder("no node", 0)
"""Who is ACTIVE before a cold start."""


@dataclass(slots=True)
class Step:
    """One fault, until the next one. `notes`: what was found as it should be. `within_ms`: for how
    long packets may be held up. `commanded`: the ACTIVE node must give its lease up."""

    what: str
    fault_ns: int
    before: Holder
    after: Holder
    takeover: Takeover
    ready_s: float | None = None
    within_ms: float | None = None
    commanded: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fault_windows(starts_ns: Sequence[int], end_ns: int) -> list[tuple[int, int]]:
    """From each fault to the next, the last one to the end; none if a drill came to no fault."""
    return list(pairwise([*starts_ns, end_ns]))


def allowed_ms(takeover: Takeover, leases: float | None, lease_ms: int, *, given: bool) -> float:
    """For how long packets may be held up; `leases` if a row says so, `given`: a lease is given
    up."""
    if leases is None:
        moves = GIVEN_UP_T if given else TAKEN_T
        leases = HELD_UP_T if takeover in ("stays", "never") else moves
    return leases * max(lease_ms, T_MS_MIN)


def all_new(old: Mapping[str, int], fresh: Mapping[str, int]) -> bool:
    """Of the daemons by name, with their process ids: all run, and none of them did before."""
    return set(fresh) == set(old) and not set(fresh.values()) & set(old.values())


def gave_up(changes: Sequence[Change], after_ns: int) -> bool:
    """A gateway shut its gate after this moment while its lease was still running."""
    return any(
        new.seen_ns > after_ns and old.announce_ns > new.seen_ns >= new.announce_ns
        for old, new in pairwise(changes)
    )


def step_result(
    step: Step, window: tuple[int, int], *, began_ns: int, taken_ns: int | None, outage_ms: float,
    given: bool = False,
) -> StepResult:  # fmt: skip
    """`taken_ns`: when another gate was first open after the fault, in whichever window. `given`:
    the ACTIVE node gave its lease up."""
    took_ms = None
    if taken_ns is not None and taken_ns < window[1]:
        took_ms = (taken_ns - step.fault_ns) / 1e6
    return StepResult(
        what=step.what,
        at_s=(step.fault_ns - began_ns) / 1e9,
        holder_before=step.before.node,
        holder_after=step.after.node,
        epoch_before=step.before.epoch,
        epoch_after=step.after.epoch,
        takeover_ms=took_ms,
        outage_ms=outage_ms,
        ready_s=step.ready_s,
        problem="; ".join(
            [*step.problems, *_moved(step, taken_over=took_ms is not None, given=given)]
        ),
        note="; ".join(step.notes),
        within_ms=step.within_ms,
        # Of a commanded step it counts from when somebody began to bring it about.
        taken_within_ms=None if step.commanded else step.within_ms,
    )


def _moved(step: Step, *, taken_over: bool, given: bool) -> list[str]:
    """What moved although nothing might, or otherwise than it had to."""
    if step.commanded and not given:
        return [f"{step.before.node} did not give its lease up"]
    if step.takeover == "anew" and step.after.epoch <= step.before.epoch:
        return ["nobody is ACTIVE in a new epoch"]
    if step.takeover not in ("stays", "never"):
        return []
    if taken_over or step.after.node != step.before.node:
        return [f"the group left {step.before.node}, where it should have stayed"]
    if step.takeover == "never" and step.after.epoch != step.before.epoch:
        return [f"{step.before.node} lost its lease and took it again"]
    return []


def dark_ns(steps: Sequence[StepResult]) -> int:
    """How long nobody could be ACTIVE, as in a cold start."""
    dark = [step.takeover_ms or 0.0 for step in steps if step.holder_before == NO_NODE.node]
    return int(sum(dark) * 1e6)


def probe_result(
    probe: Probe, before: FlowReport | None, last: FlowReport,
    windows: Sequence[tuple[int, int]], *,
    established_ns: int | None, replica: bool | None, lost: str,
) -> ProbeResult:  # fmt: skip
    """`before`: the flow just before the first fault; None: it was opened after the last one, and
    no fault can have held it up."""
    worst_ns = max((outage_ns(last, *window) for window in windows), default=0)
    since = before or last
    first_ns = windows[0][0] if windows else None
    established_s = None
    if first_ns is not None and established_ns is not None and established_ns < first_ns:
        established_s = (first_ns - established_ns) / 1e9
    return ProbeResult(
        name=probe.name,
        family=probe.spec.family,
        outage_ms=worst_ns / 1e6 if probe.measures_outage and before else None,
        resolution_ms=last.resolution_ns / 1e6,
        before=since.octets if probe.is_stream else since.exchanges,
        after=last.octets - since.octets if probe.is_stream else last.exchanges - since.exchanges,
        unit="bytes" if probe.is_stream else "packets",
        missing=0 if probe.is_tcp else last.sent - last.exchanges,
        wrong=last.wrong,
        established_s=established_s,
        replica=replica,
        lost=lost or _ended(last),
    )


def packets_lost(
    plan: Sequence[Probe], flows: Mapping[int, FlowReport], steps: Sequence[Step]
) -> list[str]:
    """A line for each datagram flow that lost one, from its first packet to its last: in which
    direction, and when after which step. An echo request's own end is not counted."""
    found = []
    for probe in plan:
        flow = flows.get(probe.spec.flow)
        if probe.is_tcp or flow is None or flow.sent == flow.exchanges:
            continue
        words = f"{flow.sent - flow.exchanges} of {flow.sent} packets lost"
        if probe.spec.kind == "udp":
            requests, answers = flow.sent - flow.arrived, flow.arrived - flow.exchanges
            words += f" ({requests} requests, {answers} answers)"
        times = ", ".join(_when(at_ns, steps) for at_ns in flow.missing_ns[:SHOWN_MAX])
        found.append(f"{probe.name} IPv{probe.spec.family}: {words}; sent {times}")
    return found


def _when(at_ns: int, steps: Sequence[Step]) -> str:
    before = [step for step in steps if step.fault_ns <= at_ns]
    if not before:
        return "before anything was done"
    return f"{(at_ns - before[-1].fault_ns) / 1e6:.1f} ms after {before[-1].what}"


def worst_udp_ms(
    plan: Sequence[Probe], flows: Mapping[int, FlowReport], window: tuple[int, int]
) -> float:
    """The headline: the longest gap of any 1 kHz UDP probe in a window."""
    gaps = [outage_ns(flows[p.spec.flow], *window) for p in plan if p.spec.kind == "udp"]
    return max(gaps, default=0) / 1e6


def _ended(report: FlowReport) -> str:
    """Why a flow that passed every check is not alive at the very end."""
    if report.wrong:
        return f"{report.wrong} wrong: {report.wrong_why}"
    return report.error or "failed" if report.state == "failed" else ""
