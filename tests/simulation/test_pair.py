"""Two gateways without a witness under faults: the promise, and the mistakes that break it."""

from __future__ import annotations

from random import Random

import pytest

from tests.simulation.lease_node import LEASE_NS, MS, RESTART_WAIT_NS, Node
from tests.simulation.pair_schedule import FOCUS, MISTAKES, PAIR_ALONE
from tests.simulation.pair_world import APART_NS, HEARTBEAT_NS, PAIR, PairWorld

BLOCK = 100
SEEDS = 200
BLOCK_LONG = 2_500
SEEDS_LONG = 100_000
CATCH_MAX = 400
"""Schedules within which a planted mistake must be caught."""


def run_block(first: int, many: int) -> tuple[int, int]:
    """Takeovers, and nanoseconds for which both were ACTIVE, in all schedules together."""
    takeovers = both_ns = 0
    for world in PAIR_ALONE.run_many(range(first, first + many)):
        takeovers += len(world.takeovers)
        both_ns += world.both_ns
    return takeovers, both_ns


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_promise_is_kept_under_mixed_faults(first: int) -> None:
    takeovers, both_ns = run_block(first, BLOCK)
    # The schedules do what they are for: leases change hands, and both are ACTIVE when cut off.
    assert takeovers > BLOCK
    assert both_ns > 0


@pytest.mark.parametrize("focus", sorted(FOCUS))
def test_promise_is_kept_under_focused_faults(focus: str) -> None:
    for _ in PAIR_ALONE.run_many(range(10_000, 10_010), focus):
        pass


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_planted_mistake_is_caught(mistake: str) -> None:
    took, said = PAIR_ALONE.first_caught(mistake, CATCH_MAX)
    assert took, f"not caught in {CATCH_MAX} schedules: {MISTAKES[mistake]}"
    assert PAIR_ALONE.replay_line(took - 1, mistake, mistake) in said
    PAIR_ALONE.run_seed(took - 1, focus=mistake)  # The right code stands the very schedule.


def settled(seed: int) -> tuple[PairWorld, Node, Node]:
    """The world with a holder, long at rest; the holder, the other node."""
    world = PairWorld(Random(seed))
    for node in world.nodes.values():
        world.start(node)
    world.run(2 * RESTART_WAIT_NS + 10 * LEASE_NS)
    holder = next(node for node in world.nodes.values() if world.announces(node))
    return world, holder, world.nodes[3 - holder.id]


def until(world: PairWorld, claim: str, node: Node, most_ns: int) -> int:
    """Nanoseconds until `node` announces or (`silent`) does not."""
    begun = world.now
    while world.announces(node) is (claim == "silent"):
        assert world.now < begun + most_ns, f"node {node.id} not {claim} in time"
        world.run(world.now + MS // 2)
    return world.now - begun


@pytest.mark.parametrize("seed", range(20))
def test_power_cut_of_the_holder_is_a_takeover_within_a_lease(seed: int) -> None:
    world, holder, other = settled(seed)
    world.power_cut(holder)
    # As with a witness: the voter's T(1+ε) on a slow clock, and a turn of the loop.
    assert until(world, "active", other, 2 * LEASE_NS) <= LEASE_NS * 103 // 100 + 5 * MS


@pytest.mark.parametrize("seed", range(10))
def test_holder_forwards_without_a_break_while_the_other_node_dies_and_returns(seed: int) -> None:
    world, holder, other = settled(seed)
    world.power_cut(other)
    for step in range(3000):
        if step in (1000, 1900):
            world.start(other)
        if step == 1800:
            world.kill(other)  # While it may not vote yet, or has only begun to.
        world.run(world.now + MS // 4)
        assert world.announces(holder), step
    assert {node for _, node, _ in world.takeovers} == {holder.id}


@pytest.mark.parametrize("seed", range(10))
def test_both_forward_while_all_is_cut_and_one_stays_without_a_break(seed: int) -> None:
    world, holder, other = settled(seed)
    world.cut(set(PAIR))
    until(world, "active", other, 2 * LEASE_NS)
    world.run(world.now + 5 * LEASE_NS)
    assert world.announces(holder)
    assert world.announces(other)
    higher = world.nodes[max((epoch, node) for _, node, epoch in world.takeovers)[1]]
    world.heal(set(PAIR))
    lower = world.nodes[3 - higher.id]
    assert until(world, "silent", lower, APART_NS) <= 2 * HEARTBEAT_NS
    for _ in range(400):
        world.run(world.now + MS)
        assert world.announces(higher)
        assert not world.announces(lower)
    assert lower.core is not None
    assert lower.core.view.counters["leases_yielded"] == 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("deaf", ["holder", "other"])
def test_cut_in_one_direction_never_makes_two(seed: int, deaf: str) -> None:
    world, holder, other = settled(seed)
    to = holder if deaf == "holder" else other
    world.cut({(3 - to.id, to.id)})
    for _ in range(600):
        world.run(world.now + MS)
        assert not (world.announces(holder) and world.announces(other))
    # Who is not heard by the voter that it needs gives way; who hears nothing goes on alone.
    assert world.announces(to)


@pytest.mark.parametrize("seed", range(10))
def test_frozen_holder_comes_back_as_backup(seed: int) -> None:
    world, holder, other = settled(seed)
    world.pause(holder, 6 * LEASE_NS)
    until(world, "active", other, 2 * LEASE_NS)
    assert not world.announces(holder)
    for _ in range(1000):
        world.run(world.now + MS)
        assert not world.announces(holder)
        assert world.announces(other)


@pytest.mark.parametrize("seed", range(5))
def test_single_node_that_starts_while_the_other_is_gone_takes_the_group(seed: int) -> None:
    world = PairWorld(Random(seed))
    node = world.nodes[1 + seed % 2]
    world.start(node)
    wait_ns = RESTART_WAIT_NS + 2 * (LEASE_NS + HEARTBEAT_NS)
    took_ns = until(world, "active", node, 2 * wait_ns)
    assert RESTART_WAIT_NS + LEASE_NS < took_ns < wait_ns * 103 // 100 + HEARTBEAT_NS


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_LONG, BLOCK_LONG))
def test_many_more_schedules(first: int) -> None:
    run_block(first, BLOCK_LONG)
