"""The lease under faults: many schedules, and every checker shown to catch a planted mistake."""

from __future__ import annotations

from random import Random

import pytest

from tests.simulation.lease_schedule import FOCUS, MISTAKES, replay_line, run_seed
from tests.simulation.lease_world import LEASE_NS, RESTART_WAIT_NS, ViolationError, World

BLOCK = 25
SEEDS = 300
SEEDS_LONG = 10_000
CATCH_MAX = 400
"""Schedules within which a planted mistake must be caught. All are caught within half of it."""


def focus_of(mistake: str) -> str | None:
    return mistake if mistake in FOCUS else None


def violation(seed: int, mistake: str, focus: str | None) -> str:
    try:
        run_seed(seed, mistake, focus)
    except ViolationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_exclusive_and_live_under_mixed_faults(first: int) -> None:
    takeovers = moved = 0
    for seed in range(first, first + BLOCK):
        world = run_seed(seed)
        takeovers += len(world.takeovers)
        moved += sum(reply.moved for reply in world.replies)
    # The schedules do what they are for: leases change hands, planned moves succeed.
    assert takeovers > 2 * BLOCK
    assert moved > 0


@pytest.mark.parametrize("focus", sorted(FOCUS))
def test_exclusive_and_live_under_focused_faults(focus: str) -> None:
    for seed in range(10_000, 10_012):
        run_seed(seed, focus=focus)


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


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_planted_mistake_is_caught(mistake: str) -> None:
    focus = focus_of(mistake)
    for seed in range(CATCH_MAX):
        said = violation(seed, mistake, focus)
        if said:
            break
    assert said, f"not caught in {CATCH_MAX} schedules: {MISTAKES[mistake]}"
    assert replay_line(seed, mistake, focus) in said
    run_seed(seed, focus=focus)  # The right code stands the very schedule.


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_LONG, 500))
def test_many_more_schedules(first: int) -> None:
    for seed in range(first, first + 500):
        run_seed(seed)
        if seed % 5 == 0:
            run_seed(seed, focus=sorted(FOCUS)[seed // 5 % len(FOCUS)])
