"""Who was ACTIVE when, and did two overlap? The arithmetic of the judges. Pure.

Judge (a) samples the deadlines that the gates' kernel maps hold, and whether every virtual MAC
device that is up has our program on both hooks. It trusts neither hafw's daemons nor its logs.

Between two samples a value may have been stored at any moment, so every change gives two answers:
*proved* open (open whenever the store was) and *possible* (open for some moment of the store)::

      sample            sample                 old deadline D0, new deadline D1
    ----|-----------------|------> time        proved   until min(D0, D1)
     before              seen                  possible until max(D0, D1)

A deadline that simply passes has no such doubt: the kernel compares it on every frame. Overlap of
what is proved is dual-ACTIVE; overlap of what is only possible is shown as within resolution.

A judge who did not look has not seen that nothing happened: a gap between two samples, a gap
between two looks at the devices and an overlap that only such a gap leaves possible each have a
bound, and beyond it there is no verdict.

Judge (b) counts frames that two gateways forwarded, at the same moment or at two. There is one
innocent cause of the latter: a frame that waited in a softirq backlog, before the gate of the
second gateway, until that had taken over. It needs a takeover and gives a handful of numbers, so
each fault excuses `APART_PER_FAULT_MAX` of them; more than that is all dual-ACTIVE.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = [
    "FORWARDED_SHARE_MIN",
    "NO_SAMPLE",
    "Change",
    "DualFrame",
    "FrameVerdict",
    "GateVerdict",
    "MoveWindow",
    "Span",
    "judge_frames",
    "judge_gates",
    "open_spans",
    "overlaps",
    "percentile",
    "taken_over_ns",
]

SPANS_SHOWN_MAX = 20
FRAME_TOGETHER_NS = 2_000_000
"""Two gateways forwarded one sequence number *together* if the kernel's stamps are this close: no
queue excuses that."""
APART_PER_FAULT_MAX = 3
"""Numbers forwarded by two gateways at different moments that one fault may explain."""
DARK_GAP_NS_MAX = 1_000_000_000
"""Between two samples where all nodes start at once: two that load their rules at the same moment
hold both CPUs, and nobody can be ACTIVE within M (2 s) of the start of a majority."""
LOOK_GAP_NS_MAX = 500_000_000
"""The devices are looked at every 100 ms; nobody saw what came and went in five times that."""
FORWARDED_SHARE_MIN = 0.5
"""Below this share of forwarded sequence numbers the frame judge saw too little to judge."""
NO_SAMPLE = "no sample of the gates was taken"
_MS = 1e6

Field = Literal["announce", "accept"]


class Change(msgspec.Struct, frozen=True, array_like=True):
    """From `seen_ns` on the deadlines are these; at `before_ns` they were still the former."""

    before_ns: int
    seen_ns: int
    announce_ns: int
    accept_ns: int


class Span(msgspec.Struct, frozen=True, array_like=True, order=True):
    """[start, end), CLOCK_BOOTTIME ns."""

    start_ns: int
    end_ns: int


class MoveWindow(msgspec.Struct, frozen=True):
    """A commanded move: in it two gateways may accept for one lease at most."""

    start_ns: int
    end_ns: int
    lease_ns: int


class GateVerdict(msgspec.Struct, frozen=True):
    """What judge (a) found. `dual_ms` is proved; `possible_ms` is beyond it and within the
    judge's resolution, `possible_max_ms` the longest piece of that outside commanded moves;
    `allowed_ms` is accept overlap in commanded moves; `unguarded_ms` counts
    virtual MAC devices up without our gate, whoever held the lease. `problem`: why the judge
    could not judge, which fails the drill."""

    dual_ms: float
    possible_ms: float
    allowed_ms: float
    unguarded_ms: float
    samples: int
    sample_gap_p99_ms: float
    sample_gap_max_ms: float
    possible_max_ms: float
    look_gap_max_ms: float
    spans: list[Span]
    problem: str = ""

    @property
    def clean(self) -> bool:
        return self.dual_ms == 0 and not self.problem


def sample_gap_ns_max(lease_ns: int) -> int:
    """Beyond half a lease without a sample, a lease could be taken, used and given up unseen."""
    return lease_ns // 2


def doubt_ns_max(lease_ns: int) -> int:
    """The longest single overlap outside moves that may stay unproved. One store in one sample
    gap of the usual 1 to 5 ms explains no more than that gap; a quarter of the lease leaves room
    for a busy machine, and is less than any mistake about a lease would make."""
    return lease_ns // 4


class DualFrame(msgspec.Struct, frozen=True, array_like=True):
    """A sequence number that two gateways forwarded, and how far apart."""

    seq: int
    sent_ns: int
    apart_ns: int


class FrameVerdict(msgspec.Struct, frozen=True):
    """What judge (b) found. `apart` counts the excused numbers that two gateways forwarded at
    different moments. `problem`: why the judge could not judge, which fails the drill."""

    dual_ms: float
    allowed_ms: float
    apart: int
    injected: int
    forwarded: dict[str, int]
    problem: str = ""

    @property
    def clean(self) -> bool:
        return self.dual_ms == 0 and not self.problem


def open_spans(
    changes: Sequence[Change], end_ns: int, field: Field
) -> tuple[list[Span], list[Span]]:
    """(proved, possible) spans in which one gate was open, up to `end_ns` (the last sample)."""
    proved: list[Span] = []
    possible: list[Span] = []
    for number, change in enumerate(changes):
        deadline = _deadline(change, field)
        following = changes[number + 1] if number + 1 < len(changes) else None
        known_until = following.before_ns if following else end_ns
        known = Span(change.seen_ns, min(known_until, deadline))
        proved.append(known)
        possible.append(known)
        if following:
            both = (deadline, _deadline(following, field))
            proved.append(Span(following.before_ns, min(following.seen_ns, *both)))
            possible.append(Span(following.before_ns, min(following.seen_ns, max(both))))
    return _merge(proved), _merge(possible)


def overlaps(spans_by_gateway: Sequence[Sequence[Span]]) -> list[Span]:
    """Where at least two gateways are open."""
    edges = sorted(
        (moment, step)
        for spans in spans_by_gateway
        for span in _merge(spans)
        for moment, step in ((span.start_ns, 1), (span.end_ns, -1))
    )
    found: list[Span] = []
    open_count = 0
    since_ns = 0
    for moment, step in edges:
        if open_count >= 2:
            found.append(Span(since_ns, moment))
        open_count += step
        since_ns = moment
    return _merge(found)


def judge_gates(
    gateways: Sequence[Sequence[Change]],
    unguarded: Sequence[Sequence[Span]],
    *,
    end_ns: int,
    moves: Sequence[MoveWindow],
    sample_gaps_ns: Sequence[int],
    look_gap_ns: int,
    lease_ns: int,
    dark: bool = False,
    problem: str = "",
) -> GateVerdict:
    """The verdict of judge (a) over deadlines and unguarded spans, one sequence a gateway.
    `look_gap_ns`: the longest time that nobody looked at a gateway's devices; `dark`: all nodes
    have started at once."""
    dual: list[Span] = []
    possible_ns = possible_ns_max = 0
    allowed_ns = 0
    fields: tuple[Field, ...] = ("announce", "accept")
    for field in fields:
        pairs = [open_spans(changes, end_ns, field) for changes in gateways]
        proved = overlaps(
            [[*pair[0], *open_] for pair, open_ in zip(pairs, unguarded, strict=True)]
        )
        possible = overlaps(
            [[*pair[1], *open_] for pair, open_ in zip(pairs, unguarded, strict=True)]
        )
        doubt = _outside(possible, proved)
        outside = _outside(doubt, moves)
        if field == "accept":
            doubt = outside
            proved, pardoned_ns = _pardon(proved, moves)
            allowed_ns += pardoned_ns
        dual += proved
        possible_ns = max(possible_ns, _length(doubt))
        possible_ns_max = max(possible_ns_max, *(_length([span]) for span in outside), 0)
    merged = _merge(dual)
    gaps = sorted(sample_gaps_ns)
    return GateVerdict(
        dual_ms=_length(merged) / _MS,
        possible_ms=possible_ns / _MS,
        allowed_ms=allowed_ns / _MS,
        unguarded_ms=sum(_length(_merge(spans)) for spans in unguarded) / _MS,
        samples=len(gaps) + 1 if gaps else 0,
        sample_gap_p99_ms=percentile(gaps, 99) / _MS,
        sample_gap_max_ms=(gaps[-1] if gaps else 0) / _MS,
        possible_max_ms=possible_ns_max / _MS,
        look_gap_max_ms=look_gap_ns / _MS,
        spans=merged[:SPANS_SHOWN_MAX],
        problem=problem or _blindness(gaps, look_gap_ns, possible_ns_max, lease_ns, dark=dark),
    )


def _blindness(
    gaps: Sequence[int], look_gap_ns: int, possible_ns: int, lease_ns: int, *, dark: bool
) -> str:
    """Why judge (a) saw too little to judge; empty if it saw enough. `gaps` ascend."""
    if not gaps:
        return NO_SAMPLE
    gap_ns_max = DARK_GAP_NS_MAX if dark else sample_gap_ns_max(lease_ns)
    bounds = (
        (NO_SAMPLE, gaps[-1], gap_ns_max),
        ("nobody looked at the devices", look_gap_ns, LOOK_GAP_NS_MAX),
        ("an overlap is possible and not proved", possible_ns, doubt_ns_max(lease_ns)),
    )
    return "; ".join(
        f"{words} for {found_ns / _MS:.1f} ms, which is more than {most_ns / _MS:g} ms"
        for words, found_ns, most_ns in bounds
        if found_ns > most_ns
    )


def taken_over_ns(changes: Sequence[Change], after_ns: int) -> int | None:
    """When a gate was first seen open for announcing after a moment at which it was shut."""
    for change in changes:
        if change.seen_ns > after_ns and change.announce_ns > change.seen_ns:
            return change.seen_ns
    return None


def judge_frames(
    frames: Sequence[DualFrame],
    *,
    interval_ns: int,
    injected: int,
    forwarded: dict[str, int],
    moves: Sequence[MoveWindow],
    faults_ns: Sequence[int],
    unnoted: int = 0,
    share_min: float = FORWARDED_SHARE_MIN,
    dark_ns: int = 0,
    problem: str = "",
) -> FrameVerdict:
    """The verdict of judge (b): each number forwarded by two gateways is one interval, unless a
    fault (`faults_ns`, ascending) explains it. `unnoted`: numbers that were forwarded twice and
    are not among `frames`. With less than `share_min` of all forwarded it saw too little;
    `dark_ns`: how long nobody could forward, by the drill's plan."""
    excused = _excused(frames, moves, faults_ns)
    # As spans of one interval each, so that the pardon is counted exactly as for gates.
    spans = [
        Span(frame.sent_ns, frame.sent_ns + interval_ns)
        for frame in frames
        if frame.seq not in excused
    ]
    dual, allowed_ns = _pardon(_merge(spans), moves)
    wanted = injected - dark_ns // interval_ns
    share = sum(forwarded.values()) / wanted if wanted > 0 else 0.0
    if not problem and share < share_min:
        problem = f"only {share:.0%} of the injected frames were forwarded by anybody"
    if not problem and unnoted:
        problem = f"{unnoted} more numbers were forwarded by two gateways than could be noted"
    return FrameVerdict(
        dual_ms=_length(dual) / _MS,
        allowed_ms=allowed_ns / _MS,
        apart=len(excused),
        injected=injected,
        forwarded=forwarded,
        problem=problem,
    )


def _excused(
    frames: Sequence[DualFrame], moves: Sequence[MoveWindow], faults_ns: Sequence[int]
) -> set[int]:
    """Numbers whose second forwarding a fault explains: apart, outside moves, and few."""
    by_fault: dict[int, int] = {}
    for frame in frames:
        in_move = any(move.start_ns <= frame.sent_ns < move.end_ns for move in moves)
        # Whose queue it waited in is unknown; when it left, the takeover had happened.
        fault = bisect_right(faults_ns, frame.sent_ns + frame.apart_ns)
        if frame.apart_ns > FRAME_TOGETHER_NS and not in_move and fault:
            by_fault[frame.seq] = fault
    counts = Counter(by_fault.values())
    return {seq for seq, fault in by_fault.items() if counts[fault] <= APART_PER_FAULT_MAX}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank of an ascending sequence; 0 for an empty one."""
    if not ordered:
        return 0.0
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def _deadline(change: Change, field: Field) -> int:
    return change.announce_ns if field == "announce" else change.accept_ns


def _pardon(spans: list[Span], moves: Sequence[MoveWindow]) -> tuple[list[Span], int]:
    """Take from each move window up to one lease of overlap; what is left, and how much went."""
    pardoned_ns = 0
    left = spans
    for move in moves:
        budget_ns = move.lease_ns
        rest: list[Span] = []
        for span in left:
            start, end = max(span.start_ns, move.start_ns), min(span.end_ns, move.end_ns)
            taken = min(max(end - start, 0), budget_ns)
            if taken == 0:
                rest.append(span)
                continue
            budget_ns -= taken
            pardoned_ns += taken
            rest += [
                piece
                for piece in (Span(span.start_ns, start), Span(start + taken, span.end_ns))
                if piece.end_ns > piece.start_ns
            ]
        left = rest
    return left, pardoned_ns


def _outside(spans: list[Span], moves: Sequence[MoveWindow | Span]) -> list[Span]:
    """What of the spans lies in no move window (or other span)."""
    left = spans
    for move in moves:
        left = [
            piece
            for span in left
            for piece in (
                Span(span.start_ns, min(span.end_ns, move.start_ns)),
                Span(max(span.start_ns, move.end_ns), span.end_ns),
            )
            if piece.end_ns > piece.start_ns
        ]
    return left


def _merge(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if span.end_ns <= span.start_ns:
            continue
        if merged and span.start_ns <= merged[-1].end_ns:
            merged[-1] = Span(merged[-1].start_ns, max(merged[-1].end_ns, span.end_ns))
        else:
            merged.append(span)
    return merged


def _length(spans: Sequence[Span]) -> int:
    return sum(span.end_ns - span.start_ns for span in spans)
