"""The judges' arithmetic against a dumb oracle on a small clock, and what they must catch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.lab.judges import (
    Change,
    DualFrame,
    MoveWindow,
    Span,
    judge_frames,
    judge_gates,
    open_spans,
    overlaps,
    percentile,
    taken_over_ns,
)

MS = 1_000_000
END = 60
"""The oracle's clock runs from 0 to this, in ticks of 1 ns."""


@dataclass(frozen=True)
class History:
    """One gate's life: its deadline at each tick, and when it was sampled."""

    deadlines: tuple[int, ...]
    samples: tuple[int, ...]

    def is_open(self, tick: int) -> bool:
        return tick < self.deadlines[tick]

    def changes(self) -> list[Change]:
        """As the sampler records them, word for word."""
        found: list[Change] = []
        before = 0
        for sample in self.samples:
            deadline = self.deadlines[sample]
            if not found or found[-1].announce_ns != deadline:
                found.append(Change(before, sample, deadline, deadline))
            before = sample
        return found


@st.composite
def histories(draw: st.DrawFn) -> History:
    samples = sorted(draw(st.sets(st.integers(0, END - 1), min_size=2, max_size=20)))
    deadline = draw(st.integers(0, END))
    deadlines = []
    # At most one store between two samples: what changes twice in between is beyond any sampler.
    stores: dict[int, int] = {}
    for start, end in pairwise(samples):
        if draw(st.booleans()):
            stores[draw(st.integers(start + 1, end))] = draw(st.integers(0, END + 5))
    for tick in range(END):
        deadline = stores.get(tick, deadline)
        deadlines.append(deadline)
    return History(tuple(deadlines), tuple(samples))


def ticks(spans: list[Span]) -> set[int]:
    return {tick for span in spans for tick in range(span.start_ns, span.end_ns)}


@given(histories())
def test_proved_was_open_and_open_was_possible(history: History) -> None:
    end = history.samples[-1]
    proved, possible = open_spans(history.changes(), end, "announce")
    # The judge knows nothing of the time before its first sample.
    truth = {tick for tick in range(history.samples[0], end) if history.is_open(tick)}
    assert ticks(proved) <= truth
    assert truth <= ticks(possible)


@given(histories(), histories())
def test_overlap_is_proved_only_if_it_was_and_never_missed(a: History, b: History) -> None:
    end = min(a.samples[-1], b.samples[-1])
    start = max(a.samples[0], b.samples[0])
    spans = [open_spans(history.changes(), end, "announce") for history in (a, b)]
    truth = {tick for tick in range(start, end) if a.is_open(tick) and b.is_open(tick)}
    assert ticks(overlaps([s[0] for s in spans])) <= truth
    assert truth <= ticks(overlaps([s[1] for s in spans]))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, END), st.integers(0, END)), max_size=8),
        min_size=2,
        max_size=4,
    )
)
def test_overlaps_count_gateways_not_spans(pairs: list[list[tuple[int, int]]]) -> None:
    spans = [[Span(*pair) for pair in gateway] for gateway in pairs]
    expected = {
        tick for tick in range(END) if sum(tick in ticks(gateway) for gateway in spans) >= 2
    }
    assert ticks(overlaps(spans)) == expected


def renewed(start: int, end: int, every: int, lease: int) -> list[Change]:
    """A holder's page: a new deadline every so often, sampled at once, in ms."""
    return [
        Change((t - 1) * MS, t * MS, (t + lease) * MS, (t + lease) * MS)
        for t in range(start, end, every)
    ]


def verdict(
    *gateways: list[Change],
    unguarded: list[list[Span]] | None = None,
    moves: list[MoveWindow] | None = None,
    end: int = 1000,
) -> tuple[float, float, float]:
    found = judge_gates(
        gateways,
        unguarded or [[] for _ in gateways],
        end_ns=end * MS,
        moves=moves or [],
        sample_gaps_ns=[MS],
    )
    return found.dual_ms, found.possible_ms, found.allowed_ms


def test_a_clean_takeover_has_no_overlap() -> None:
    # The last renewal of the first holder is at 480, so its gate shuts at 580.
    old, new = renewed(0, 500, 20, 100), renewed(582, 1000, 20, 100)
    assert verdict(old, new) == (0, 0, 0)


def test_a_holder_that_takes_over_too_early_is_caught_to_the_millisecond() -> None:
    old, new = renewed(0, 500, 20, 100), [Change(0, 1, 0, 0), *renewed(570, 1000, 20, 100)]
    dual_ms, possible_ms, _ = verdict(old, new)
    assert dual_ms == 10
    assert possible_ms == 1  # The store that opened the second lay in the millisecond before 570.


def test_a_gate_reopened_late_with_a_fresh_deadline_is_caught() -> None:
    # The planted mistake: after SIGCONT the old holder stores now + lease.
    old = [*renewed(0, 500, 20, 100), Change(799 * MS, 800 * MS, 900 * MS, 900 * MS)]
    assert verdict(old, renewed(582, 1000, 20, 100))[0] == 100


def test_a_store_of_an_old_deadline_does_no_harm() -> None:
    old = [*renewed(0, 500, 20, 100), Change(799 * MS, 800 * MS, 600 * MS, 600 * MS)]
    assert verdict(old, renewed(582, 1000, 20, 100))[0] == 0


def handover(overlap: int) -> tuple[list[Change], list[Change]]:
    """At 500 announce is shut; accept runs on to its deadline at 580; the other opens."""
    old = [*renewed(0, 500, 20, 100), Change(499 * MS, 500 * MS, 0, 580 * MS)]
    return old, renewed(580 - overlap, 1000, 20, 100)


def test_accept_may_overlap_in_a_commanded_move_for_one_lease() -> None:
    move = MoveWindow(495 * MS, 650 * MS, 100 * MS)
    assert verdict(*handover(75), moves=[move]) == (0, 0, 75)


def test_the_same_overlap_without_a_command_is_dual() -> None:
    assert verdict(*handover(75))[0] == 75


def test_beyond_one_lease_a_move_is_dual_too() -> None:
    move = MoveWindow(495 * MS, 650 * MS, 50 * MS)
    dual_ms, _, allowed_ms = verdict(*handover(75), moves=[move])
    assert (dual_ms, allowed_ms) == (25, 50)


def test_announce_may_never_overlap_not_even_in_a_move() -> None:
    move = MoveWindow(0, 1000 * MS, 100 * MS)
    old, new = renewed(0, 500, 20, 100), renewed(570, 1000, 20, 100)
    assert verdict(old, new, moves=[move])[0] == 10


def test_a_device_without_the_gate_counts_as_open() -> None:
    holder, other = renewed(0, 1000, 20, 100), [Change(0, MS, 0, 0)]
    spans = [[], [Span(300 * MS, 400 * MS)]]
    assert verdict(holder, other, unguarded=spans)[0] == 100
    assert verdict(other, other, unguarded=spans)[0] == 0  # Alone it is no second one.


def test_a_judge_without_samples_does_not_acquit() -> None:
    blind = judge_gates([[], []], [[], []], end_ns=0, moves=[], sample_gaps_ns=[])
    assert blind.problem
    assert not blind.clean


def test_resolution_is_reported() -> None:
    gaps = [MS] * 98 + [5 * MS, 7 * MS]
    found = judge_gates([[], []], [[], []], end_ns=0, moves=[], sample_gaps_ns=gaps)
    assert (found.samples, found.sample_gap_p99_ms, found.sample_gap_max_ms) == (101, 5, 7)


def test_the_takeover_is_the_first_open_deadline_after_the_fault() -> None:
    changes = [Change(0, MS, 0, 0), *renewed(582, 700, 20, 100)]
    assert taken_over_ns(changes, 500 * MS) == 582 * MS
    assert taken_over_ns(changes, 590 * MS) == 602 * MS
    assert taken_over_ns(changes, 800 * MS) is None
    # A deadline that had passed when it was seen opens nothing.
    assert taken_over_ns([Change(0, 600 * MS, 550 * MS, 550 * MS)], 500 * MS) is None


def frames(*numbers: int, apart_ns: int = 1000) -> list[DualFrame]:
    return [DualFrame(number, number * MS, apart_ns) for number in numbers]


def judged(
    dual: list[DualFrame], moves: list[MoveWindow] | None = None, forwarded: int = 1000
) -> tuple[float, float, int, str]:
    found = judge_frames(
        dual,
        interval_ns=MS,
        injected=1000,
        forwarded={"gw1": forwarded, "gw2": 0},
        moves=moves or [],
    )
    return found.dual_ms, found.allowed_ms, found.apart, found.problem


def test_each_number_forwarded_twice_is_a_millisecond() -> None:
    assert judged([]) == (0, 0, 0, "")
    assert judged(frames(10, 11, 500)) == (3, 0, 0, "")


def test_frames_forwarded_at_different_moments_prove_nothing() -> None:
    assert judged(frames(10, apart_ns=30 * MS)) == (0, 0, 1, "")


def test_in_a_move_one_lease_of_frames_is_allowed() -> None:
    move = MoveWindow(0, 300 * MS, 100 * MS)
    assert judged(frames(*range(100, 180)), [move]) == (0, 80, 0, "")
    assert judged(frames(*range(100, 230)), [move]) == (30, 100, 0, "")
    assert judged(frames(*range(400, 410)), [move]) == (10, 0, 0, "")


def test_each_move_has_its_own_lease() -> None:
    moves = [MoveWindow(0, 300 * MS, 100 * MS), MoveWindow(500 * MS, 800 * MS, 100 * MS)]
    dual = frames(*range(100, 180), *range(600, 690))
    assert judged(dual, moves) == (0, 170, 0, "")


@pytest.mark.parametrize("forwarded", [0, 499])
def test_a_judge_that_saw_next_to_nothing_does_not_acquit(forwarded: int) -> None:
    assert "forwarded by anybody" in judged([], forwarded=forwarded)[3]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=50), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_with_enough_below_it(
    values: list[int], percent: int
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert sum(v <= found for v in ordered) * 100 >= percent * len(ordered)
    assert sum(v < found for v in ordered) * 100 < percent * len(ordered)
