"""The judges' arithmetic against a dumb oracle on a small clock, and what they must catch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.lab.judges import (
    APART_PER_FAULT_MAX,
    LOOK_GAP_NS_MAX,
    Change,
    DualFrame,
    GateVerdict,
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


def judged_gates(
    *gateways: list[Change],
    unguarded: list[list[Span]] | None = None,
    moves: list[MoveWindow] | None = None,
    gaps_ns: tuple[int, ...] = (MS,),
    look_gap_ns: int = 100 * MS,
    dark: bool = False,
) -> GateVerdict:
    """By a judge of a lease of 100 ms."""
    return judge_gates(
        gateways,
        unguarded or [[] for _ in gateways],
        end_ns=1000 * MS,
        moves=moves or [],
        sample_gaps_ns=gaps_ns,
        look_gap_ns=look_gap_ns,
        lease_ns=100 * MS,
        dark=dark,
    )


def verdict(
    *gateways: list[Change],
    unguarded: list[list[Span]] | None = None,
    moves: list[MoveWindow] | None = None,
) -> tuple[float, float, float]:
    found = judged_gates(*gateways, unguarded=unguarded, moves=moves)
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
    blind = judged_gates([], [], gaps_ns=())
    assert blind.problem
    assert not blind.clean


def test_a_gap_in_which_an_overlap_could_hide_does_not_acquit() -> None:
    # The judge saw nothing from 500 to 1000; the other gateway's store came anywhere in it.
    old = [*renewed(0, 500, 20, 100), Change(499 * MS, 999 * MS, 1080 * MS, 1080 * MS)]
    new = [Change(0, MS, 0, 0), Change(499 * MS, 999 * MS, 900 * MS, 900 * MS)]
    found = judged_gates(old, new, gaps_ns=(MS, 500 * MS))
    assert found.dual_ms == 0
    assert not found.clean
    assert "no sample of the gates was taken for 500.0 ms, which is more than 50 ms" in (
        found.problem
    )
    # The same gap with nothing in it is no better: who did not look has not seen it.
    assert not judged_gates([], [], gaps_ns=(MS, 500 * MS)).clean


@pytest.mark.parametrize(("gap_ms", "clean"), [(50, True), (51, False)])
def test_a_sample_gap_may_be_half_a_lease(gap_ms: int, clean: bool) -> None:
    assert judged_gates([], [], gaps_ns=(MS, gap_ms * MS, MS)).clean is clean


@pytest.mark.parametrize(("gap_ms", "clean"), [(1000, True), (1001, False)])
def test_a_cold_start_may_hide_more_because_nobody_may_vote_yet(gap_ms: int, clean: bool) -> None:
    assert judged_gates([], [], gaps_ns=(MS, gap_ms * MS, MS), dark=True).clean is clean


def unproved(doubt: int) -> tuple[list[Change], list[Change]]:
    """A takeover in whose sample gap of 40 ms an overlap of `doubt` ms may have been."""
    old = renewed(0, 500, 20, 100)  # Open until 580.
    new = [Change(0, MS, 0, 0), Change((580 - doubt) * MS, 620 * MS, 720 * MS, 720 * MS)]
    return old, new


@pytest.mark.parametrize(("doubt", "clean"), [(25, True), (26, False)])
def test_a_possible_overlap_may_be_a_quarter_of_a_lease(doubt: int, clean: bool) -> None:
    found = judged_gates(*unproved(doubt), gaps_ns=(MS, 40 * MS))
    assert (found.dual_ms, found.possible_max_ms) == (0, doubt)
    assert found.clean is clean
    assert clean or "an overlap is possible and not proved for 26.0 ms" in found.problem


def test_in_a_commanded_move_doubt_is_no_reason() -> None:
    move = MoveWindow(500 * MS, 700 * MS, 100 * MS)
    found = judged_gates(*unproved(40), gaps_ns=(MS, 40 * MS), moves=[move])
    assert found.clean
    assert found.possible_ms == 40  # Announcing twice: shown even so.


def test_small_doubts_do_not_add_up_to_blindness() -> None:
    old = [Change(t * MS, (t + 10) * MS, (t + 15) * MS, 0) for t in range(0, 900, 30)]
    new = [Change(t * MS, (t + 10) * MS, (t + 15) * MS, 0) for t in range(5, 905, 30)]
    found = judged_gates(old, new)
    assert found.possible_ms > 25 > found.possible_max_ms
    assert not found.problem


@pytest.mark.parametrize("over_ns", [0, 1])
def test_nobody_looking_at_the_devices_for_half_a_second_blinds(over_ns: int) -> None:
    found = judged_gates([], [], look_gap_ns=LOOK_GAP_NS_MAX + over_ns)
    assert found.clean is (over_ns == 0)
    assert ("nobody looked at the devices" in found.problem) is bool(over_ns)


def test_resolution_is_reported() -> None:
    gaps = [MS] * 98 + [5 * MS, 7 * MS]
    found = judged_gates([], [], gaps_ns=tuple(gaps))
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
    dual: list[DualFrame],
    moves: list[MoveWindow] | None = None,
    forwarded: int = 1000,
    faults_ms: tuple[int, ...] = (),
    unnoted: int = 0,
) -> tuple[float, float, int, str]:
    found = judge_frames(
        dual,
        interval_ns=MS,
        injected=1000,
        forwarded={"gw1": forwarded, "gw2": 0},
        moves=moves or [],
        faults_ns=[fault * MS for fault in faults_ms],
        unnoted=unnoted,
    )
    return found.dual_ms, found.allowed_ms, found.apart, found.problem


def test_each_number_forwarded_twice_is_a_millisecond() -> None:
    assert judged([]) == (0, 0, 0, "")
    assert judged(frames(10, 11, 500)) == (3, 0, 0, "")


def test_a_few_numbers_in_a_queue_over_a_takeover_are_excused() -> None:
    queued = frames(*range(480, 480 + APART_PER_FAULT_MAX), apart_ns=30 * MS)
    assert judged(queued, faults_ms=(400,)) == (0, 0, APART_PER_FAULT_MAX, "")
    # Sent before the fault, forwarded by the second after it.
    assert judged(queued, faults_ms=(500,)) == (0, 0, APART_PER_FAULT_MAX, "")


def test_more_than_a_few_are_dual_however_far_apart() -> None:
    # The planted mistake: two gateways that take turns, never within 2 ms of each other.
    apart = frames(*range(480, 481 + APART_PER_FAULT_MAX), apart_ns=3 * MS)
    assert judged(apart, faults_ms=(400,)) == (APART_PER_FAULT_MAX + 1, 0, 0, "")


def test_without_a_fault_nothing_excuses_a_number() -> None:
    assert judged(frames(480, apart_ns=30 * MS)) == (1, 0, 0, "")
    assert judged(frames(480, apart_ns=30 * MS), faults_ms=(600,)) == (1, 0, 0, "")


def test_each_fault_excuses_its_own() -> None:
    few = range(APART_PER_FAULT_MAX)
    first = frames(*(200 + n for n in few), apart_ns=5 * MS)
    second = frames(*(600 + n for n in few), apart_ns=5 * MS)
    assert judged([*first, *second], faults_ms=(100, 500))[::2] == (0, len(first) * 2)
    assert judged([*first, *second], faults_ms=(100,))[::2] == (len(first) * 2, 0)


def test_numbers_together_are_never_excused() -> None:
    assert judged(frames(480, apart_ns=2 * MS), faults_ms=(400,)) == (1, 0, 0, "")


def test_in_a_move_numbers_apart_count_against_its_lease() -> None:
    move = MoveWindow(0, 300 * MS, 100 * MS)
    apart = frames(*range(100, 230), apart_ns=5 * MS)
    assert judged(apart, [move], faults_ms=(50,)) == (30, 100, 0, "")


def test_numbers_that_had_no_room_are_said() -> None:
    dual_ms, _, _, problem = judged(frames(10), unnoted=7)
    assert dual_ms == 1
    assert problem == "7 more numbers were forwarded by two gateways than could be noted"


def test_in_a_move_one_lease_of_frames_is_allowed() -> None:
    move = MoveWindow(0, 300 * MS, 100 * MS)
    assert judged(frames(*range(100, 180)), [move]) == (0, 80, 0, "")
    assert judged(frames(*range(100, 230)), [move]) == (30, 100, 0, "")
    assert judged(frames(*range(400, 410)), [move]) == (10, 0, 0, "")


def test_each_move_has_its_own_lease() -> None:
    moves = [MoveWindow(0, 300 * MS, 100 * MS), MoveWindow(500 * MS, 800 * MS, 100 * MS)]
    dual = frames(*range(100, 180), *range(600, 690))
    assert judged(dual, moves) == (0, 170, 0, "")


@pytest.mark.parametrize(("dark_ms", "clean"), [(599, False), (600, True), (1000, False)])
def test_time_in_which_nobody_could_forward_is_not_held_against_the_judge(
    dark_ms: int, clean: bool
) -> None:
    found = judge_frames(
        [], interval_ns=MS, injected=1000, forwarded={"gw1": 200}, moves=[], faults_ns=[],
        dark_ns=dark_ms * MS,
    )  # fmt: skip
    assert found.clean is clean


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
