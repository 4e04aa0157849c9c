"""The upstream check: its judgement, and what the lease makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hafw.lab
from cluster.claims import rank
from cluster.lease_types import AskPosition, Effect, LeaseParams, SegmentsDown
from cluster.upstream import UpstreamPlan, UpstreamWatch, plan_checks
from hafw.config.load import load_cluster
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, WORSE, Bench, done
from tests.unit.cluster.test_carrier import beats, holder, lose
from tests.unit.cluster.test_leased_status import status

LAB = Path(hafw.lab.__file__).parent / "cluster.yaml"
EACH = 200 * MS
PLAN = UpstreamPlan(1, "lan", "lan0", "192.0.2.10", EACH, 3)
SILENT = frozenset({(1, "lan")})


def judged(answers: list[bool]) -> list[bool]:
    """Whether it fails, after each ask was judged."""
    watch, said = UpstreamWatch([PLAN], 0), []
    for turn, answer in enumerate(answers):
        [(place, seq)] = watch.due(turn * EACH)
        assert watch.due(turn * EACH + EACH - 1) == [], "one ask an interval"
        if answer:
            watch.answered(place, seq)
        watch.answered(place, seq - 1)  # Of the ask before: too late.
        said.append(bool(watch.failing()))
    watch.due(len(answers) * EACH)
    return [*said, bool(watch.failing())][1:]


def test_it_fails_after_count_and_comes_back_after_count() -> None:
    no, yes = [False], [True]
    assert judged(no * 3) == [False, False, True]
    assert judged(no * 2 + yes + no * 2 + yes) == [False] * 6
    assert judged(no * 3 + yes * 3) == [False, False, True, True, True, False]
    assert judged(no * 3 + yes * 2 + no + yes * 2) == [False, False] + [True] * 6


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_it_changes_only_with_count_in_a_row(answers: list[bool]) -> None:
    failing, run, expected = False, 0, []
    for answer in answers:
        run = run + 1 if answer is failing else 0
        if run == PLAN.count:
            failing, run = not failing, 0
        expected.append(failing)
    assert judged(answers) == expected


def test_checks_are_planned_for_candidates_alone(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    extra = "    upstream: {wan: {address: 198.51.100.10, interval_ms: 500, count: 2}}\n"
    file.write_text(LAB.read_text().rstrip() + "\n" + extra)
    config = load_cluster(file)
    assert plan_checks(config, "gw2") == [
        UpstreamPlan(1, "wan", "wan0", "198.51.100.10", 500 * MS, 2)
    ]
    assert plan_checks(config, "wit") == []
    (group,) = LeaseParams.from_config(config, "gw2").groups
    assert group.upstream_ns == (500 + 3 * 20) * MS


def silent(bench: Bench, unanswered: frozenset[tuple[int, str]] = SILENT) -> list[Effect]:
    return bench.core.handle(SegmentsDown(frozenset(), unanswered), now_ns=bench.now)


def live(bench: Bench, duration_ns: int, *, upstream: bool) -> list[Effect]:
    """Everybody beats and answers; the peer's own check is good, or not."""
    effects: list[Effect] = []
    for _ in range(duration_ns // HEARTBEAT):
        effects += bench.beacon() + bench.beat(2, upstream=upstream) + bench.beat(9)
        passed = bench.pass_time(HEARTBEAT)
        effects += passed + bench.answer(passed)
    return effects


def test_a_holder_that_is_not_answered_hands_over_to_one_that_is() -> None:
    bench, epoch = holder()
    effects = silent(bench) + live(bench, WORSE - HEARTBEAT, upstream=True)
    assert done(effects, AskPosition) == [], "theirs may be about to fail, too"
    assert done(live(bench, 2 * HEARTBEAT, upstream=True), AskPosition) == [AskPosition(1, epoch)]
    assert bench.core.view.counters["moves_no_upstream"] == 1


def test_a_far_side_that_comes_and_goes_for_both_moves_nothing() -> None:
    """The checks of two nodes see it up to an interval apart, whoever is first."""
    bench, epoch = holder()
    effects = silent(bench) + live(bench, WORSE - HEARTBEAT, upstream=True)
    effects += live(bench, 2 * WORSE, upstream=False)
    effects += live(bench, WORSE - HEARTBEAT, upstream=True) + silent(bench, frozenset())
    effects += live(bench, WORSE, upstream=True)
    assert done(effects, AskPosition) == []
    assert bench.core.groups[1].active
    effects = silent(bench) + live(bench, WORSE + HEARTBEAT, upstream=True)
    assert done(effects, AskPosition) == [AskPosition(1, epoch)], "it counts anew"


def test_nothing_moves_while_nobody_is_answered() -> None:
    bench, _ = holder()
    effects = silent(bench) + live(bench, 2 * WORSE, upstream=False)
    assert done(effects, AskPosition) == []
    assert bench.core.groups[1].active
    told = status(bench).alarms
    assert told == ["group 1: the upstream check of segment lan fails"]
    # Neither when our own is good again and theirs is not.
    effects = silent(bench, frozenset()) + live(bench, 2 * WORSE, upstream=False)
    assert done(effects, AskPosition) == []


def test_a_check_of_another_group_moves_nothing() -> None:
    bench, _ = holder()
    effects = silent(bench, frozenset({(2, "lan")})) + live(bench, 2 * WORSE, upstream=True)
    assert done(effects, AskPosition) == []


def test_a_dead_segment_is_left_for_a_peer_whose_upstream_fails_too() -> None:
    bench, epoch = holder()
    bench.beat(2, upstream=False)
    assert done(lose(bench, "lan"), AskPosition) == [AskPosition(1, epoch)]
    assert bench.core.view.counters["moves_no_carrier"] == 1


def test_heartbeats_say_it_and_it_is_no_lack_of_sync() -> None:
    bench = Bench(2)
    bench.beacon()
    effects = silent(bench) + bench.pass_time(HEARTBEAT)
    assert [(beat.upstream, beat.synced) for beat in beats(effects)][-1] == (False, True)
    effects = silent(bench, frozenset()) + bench.pass_time(HEARTBEAT)
    assert beats(effects)[-1].upstream


@pytest.mark.parametrize(
    ("synced", "sound", "places"),
    [
        ((1, 2, 3), (1, 2, 3), (0, 1, 2)),
        ((1, 2, 3), (2, 3), (2, 0, 1)),
        ((1, 2, 3), (), (0, 1, 2)),
        ((1, 3), (2, 3), (1, 2, 0)),  # Sync counts before upstream.
    ],
)
def test_a_node_that_is_not_answered_ranks_lower(
    synced: tuple[int, ...], sound: tuple[int, ...], places: tuple[int, ...]
) -> None:
    ranks = [
        rank(node, (1, 2, 3), alive=(1, 2, 3), synced=synced, sound=sound) for node in (1, 2, 3)
    ]
    assert tuple(ranks) == places
