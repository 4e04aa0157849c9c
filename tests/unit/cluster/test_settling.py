"""For whom the next voter set waits to come into force, on one node among played peers."""

from __future__ import annotations

from cluster.heartbeat import Beat, GroupBeat
from cluster.settling import PATIENCE_WAITS
from hafw.config.model import VoterSet
from hafw.human import make_epoch
from tests.unit.cluster.lease_bench import HEARTBEAT, VOTED, VOTERS, Bench
from tests.unit.cluster.test_voters import FOUR, WAIT, disk, stored, told

HELD = make_epoch(3, 1, 2)
REACHED = 8
"""An era above all that is promised, and not below the one of the node that is tested."""


def hear(bench: Bench, node: int, era: int, *, promised: int = HELD, active: bool = True) -> None:
    """A heartbeat of a node that has stored the next set; node 2 is ACTIVE."""
    opened = HELD if node == 2 and active else 0
    group = GroupBeat(1, promised, opened, 2, node != 9, True, "")
    beat = Beat(era, True, node != 9, [group], [], VOTED, told(FOUR))
    disk(bench, bench.hear(node, beat))


def live(bench: Bench, duration_ns: int, eras: dict[int, int], *, active: bool = True) -> VoterSet:
    """Nodes go on telling their eras. The set in force at the end."""
    until = bench.now + duration_ns
    while bench.now < until:
        for node, era in eras.items():
            hear(bench, node, era, active=active)
        disk(bench, bench.pass_time(HEARTBEAT))
    return bench.core.view.voters


def bench_of_a_change() -> Bench:
    bench = Bench()
    stored(bench, FOUR)
    live(bench, HEARTBEAT, {2: 3, 9: 3})
    return bench


def test_a_holder_whose_era_is_not_durable_yet_is_waited_for() -> None:
    bench = bench_of_a_change()
    assert live(bench, 3 * WAIT, {2: 3, 9: REACHED}) == VOTERS
    assert live(bench, 2 * HEARTBEAT, {2: REACHED, 9: REACHED}) == FOUR


def test_a_majority_of_the_next_set_is_waited_for_while_there_is_a_holder() -> None:
    bench = bench_of_a_change()
    assert live(bench, 3 * WAIT, {2: REACHED, 9: 3}) == VOTERS
    assert live(bench, 2 * HEARTBEAT, {2: REACHED, 9: REACHED}) == FOUR


def test_who_promised_an_epoch_of_its_own_era_cannot_follow_yet() -> None:
    bench = bench_of_a_change()
    eras = {2: REACHED, 9: REACHED}
    live(bench, WAIT - 5 * HEARTBEAT, eras)
    for _ in range(10):
        live(bench, HEARTBEAT, {9: REACHED})
        hear(bench, 2, REACHED, promised=make_epoch(REACHED, 1, 2))
        disk(bench, bench.pass_time(HEARTBEAT // 2))
    assert bench.core.view.voters == VOTERS
    assert live(bench, 2 * HEARTBEAT, eras) == FOUR


def test_a_disk_that_never_answers_is_waited_for_within_bounds() -> None:
    bench, eras = bench_of_a_change(), {2: 3, 9: REACHED}
    assert live(bench, (1 + PATIENCE_WAITS) * WAIT - HEARTBEAT, eras) == VOTERS
    assert live(bench, 3 * HEARTBEAT, eras) == FOUR


def test_a_holder_that_is_not_heard_is_not_waited_for() -> None:
    bench, others = bench_of_a_change(), {9: REACHED}
    assert live(bench, 2 * WAIT, {2: 3, **others}) == VOTERS
    assert live(bench, 5 * HEARTBEAT, others) == FOUR


def test_nobody_is_waited_for_while_nobody_holds_the_group() -> None:
    bench = bench_of_a_change()
    eras = {2: 3, 9: REACHED}
    assert live(bench, WAIT + 2 * HEARTBEAT, eras, active=False) == FOUR
