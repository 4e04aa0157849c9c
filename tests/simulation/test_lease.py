"""The lease under faults: many schedules, and every checker shown to catch a planted mistake."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from tests.simulation.lease_mistakes import FOCUS, MISTAKES
from tests.simulation.lease_node import GROUP, HEARTBEAT_NS, LEASE_NS, RESTART_WAIT_NS
from tests.simulation.lease_schedule import LEASE
from tests.simulation.lease_world import World

BLOCK = 250
SEEDS = 10_000
BLOCK_LONG = 10_000
SEEDS_LONG = 1_000_000
CATCH_MAX = 1_000
"""Schedules within which a planted mistake must be caught."""


def run_block(seeds: Iterable[int]) -> tuple[int, int]:
    """Takeovers and planned moves that succeeded in all schedules together."""
    takeovers = moved = 0
    for world in LEASE.run_many(seeds):
        takeovers += len(world.takeovers)
        moved += sum(reply.moved for reply in world.replies)
    return takeovers, moved


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_exclusive_and_live_under_mixed_faults(first: int) -> None:
    takeovers, moved = run_block(range(first, first + BLOCK))
    # The schedules do what they are for: leases change hands, planned moves succeed.
    assert takeovers > BLOCK
    assert moved > 0


@pytest.mark.parametrize("focus", sorted(FOCUS))
def test_exclusive_and_live_under_focused_faults(focus: str) -> None:
    for _ in LEASE.run_many(range(10_000, 10_020), focus):
        pass


@pytest.mark.parametrize("hangs", [False, True])
def test_synced_candidate_that_cannot_claim_is_not_waited_for_for_ever(hangs: bool) -> None:
    for seed in range(5):
        world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
        for node in world.nodes.values():
            world.start(node)
        world.run(2 * RESTART_WAIT_NS + 10 * LEASE_NS)
        one, two = world.nodes[1], world.nodes[2]
        one.synced = False
        if hangs:
            two.disk_hangs = True  # It cannot follow the era of the next start.
        else:
            world.network.cut = {(1, 2), (9, 2)}  # It is heard, and deaf.
        world.power_cut(one)
        world.start(one)
        if world.announces(two):
            world.kill(two)
            world.start(two)
        world.run(world.now + RESTART_WAIT_NS + 40 * LEASE_NS)
        assert world.announces(one) or (hangs and world.announces(two)), seed


@pytest.mark.parametrize("seed", range(5))
def test_a_voter_that_restarted_carries_the_lease_when_the_other_one_is_lost(seed: int) -> None:
    world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
    for node in world.nodes.values():
        world.start(node)
    world.run(RESTART_WAIT_NS + 4 * LEASE_NS)
    holder = next(node for node in world.nodes.values() if world.announces(node))
    other = world.nodes[3 - holder.id]
    world.kill(other)
    world.start(other)
    world.run(world.now + RESTART_WAIT_NS + 2 * LEASE_NS)
    assert len(world.takeovers) == 1  # The lease rests on the witness.
    world.power_cut(world.nodes[9])
    for _ in range(1000):
        world.run(world.now + LEASE_NS // 100)
        assert world.announces(holder)
    assert [node for _, node, _ in world.takeovers] == [holder.id, holder.id]
    held = holder.core.groups[GROUP].proposer.held if holder.core is not None else None
    assert held is not None
    assert held.contiguous  # It never shut: nobody's windows are stale.


@pytest.mark.parametrize("seed", range(8))
def test_a_deaf_holder_is_succeeded_after_one_lease(seed: int) -> None:
    world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
    for node in world.nodes.values():
        world.start(node)
    world.run(RESTART_WAIT_NS + 6 * LEASE_NS + Random(seed).randrange(HEARTBEAT_NS))
    holder = next(node for node in world.nodes.values() if world.announces(node))
    heir = world.nodes[3 - holder.id]
    world.network.cut = {(node, holder.id) for node in (heir.id, 9)}
    # It is heard all the time: the voters grant what it asks for until its own lease has ended.
    world.run(world.now + LEASE_NS + 3 * HEARTBEAT_NS // 2)
    assert world.announces(heir)
    assert [node for _, node, _ in world.takeovers] == [holder.id, heir.id]


@pytest.mark.parametrize("seed", range(4))
def test_a_move_that_waits_for_its_target_costs_no_lease(seed: int) -> None:
    world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
    for node in world.nodes.values():
        world.start(node)
    world.run(RESTART_WAIT_NS + 4 * LEASE_NS)
    holder = next(node for node in world.nodes.values() if world.announces(node))
    target = world.nodes[3 - holder.id]
    world.power_cut(target)
    target.synced = False
    world.start(target)
    world.run(world.now + 10 * RESTART_WAIT_NS)
    world.move(holder, target.id, 600)
    world.run(world.now + 50 * LEASE_NS)
    world.kill(world.nodes[9])  # The lease rested on it: a new epoch is needed.
    world.start(world.nodes[9])
    for _ in range(1000):
        world.run(world.now + LEASE_NS // 100)
        assert world.announces(holder)
    assert world.replies == []
    target.synced = True
    world.run(world.now + 8 * LEASE_NS)
    [reply] = world.replies
    assert reply.moved, reply.reason
    assert world.announces(target)


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_planted_mistake_is_caught(mistake: str) -> None:
    focus = LEASE.focus_of(mistake)
    took, said = LEASE.first_caught(mistake, CATCH_MAX)
    assert took, f"not caught in {CATCH_MAX} schedules: {MISTAKES[mistake]}"
    assert LEASE.replay_line(took - 1, mistake, focus) in said
    LEASE.run_seed(took - 1, focus=focus)  # The right code stands the very schedule.


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_LONG, BLOCK_LONG))
def test_many_more_schedules(first: int) -> None:
    run_block(range(first, first + BLOCK_LONG))
    for place, focus in enumerate(sorted(FOCUS)):
        for _ in LEASE.run_many(range(first + place, first + BLOCK_LONG, 20 * len(FOCUS)), focus):
            pass
