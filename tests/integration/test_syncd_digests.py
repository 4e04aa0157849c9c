"""What replication lost is found by digests, and repaired: no restart, no full snapshot."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from hafw.messages import SyncDigestStatus
from tests.integration.syncd_world import (
    Gateway,
    World,
    flow,
    mixed,
    wait_for,
)

pytestmark = pytest.mark.integration

DEAF = "tests.integration.deaf_syncd"
SMALL_BUFFER = {"HAFW_TEST_RCVBUF": "4096"}
"""The kernel doubles it; a few dozen events fill it."""


def lead(world: World, count: int = 60) -> None:
    """gw1 holds the group with so many flows, gw2 has them and has seen that they are equal."""
    world.start()
    world.lead(1, 1)
    world[2].wait_synced()
    world[1].put(mixed(count))
    world.wait_equal(1, 2)
    wait_clean(world[2])


def watch(gateway: Gateway) -> SyncDigestStatus | None:
    status = gateway.status()
    return None if status is None else status.groups[0].digest


def wait_clean(gateway: Gateway) -> None:
    """A digest said from now on is equal."""
    since = time.monotonic()

    def clean() -> bool:
        digest = watch(gateway)
        age_s = None if digest is None else digest.clean_age_s
        return age_s is not None and age_s < time.monotonic() - since

    wait_for(lambda: f"{gateway.name} clean: {watch(gateway)}", clean)


@contextmanager
def paused(gateway: Gateway) -> Iterator[None]:
    """It hears of all that is done at once, and mends nothing in between."""
    gateway.signal(signal.SIGSTOP)
    yield
    gateway.signal(signal.SIGCONT)


def snapshots(gateway: Gateway) -> int:
    return gateway.counter("snapshots_asked") - gateway.counter("repairs_asked")


def test_a_replica_deleted_by_hand_comes_back(world: World) -> None:
    lead(world)
    gw2 = world[2]
    before = snapshots(gw2)
    with paused(gw2):
        gw2.delete(mixed(3))
    world.wait_equal(1, 2, 5)
    gw2.wait_synced(5)
    wait_clean(gw2)
    digest = watch(gw2)
    assert digest is not None
    assert (digest.repairs, digest.repaired, digest.differing, digest.in_vain) == (1, 3, 0, 0)
    assert gw2.counter("replicas_deleted_by_others") == 3
    assert world[1].counter("repairs_served") == 1
    assert snapshots(gw2) == before


def test_without_digests_it_does_not(world: World) -> None:
    world[1].program = DEAF
    world[1].environment["HAFW_TEST_MISSES"] = "digests"
    world.start()
    world.lead(1, 1)
    world[2].wait_synced()
    world[1].put(mixed(20))
    world.wait_equal(1, 2)
    world[2].delete(mixed(3))
    world[2].wait_reason("3 replicas went from this kernel")
    time.sleep(2.5)
    assert len(world[2].table()) == 17


def test_an_entry_put_into_a_replicas_kernel_goes(world: World) -> None:
    lead(world)
    gw2 = world[2]
    before = snapshots(gw2)
    gw2.put(mixed(4, first=500))
    assert len(gw2.table()) == 64
    world.wait_equal(1, 2, 5)
    assert gw2.counter("left_overs_deleted") == 4
    assert snapshots(gw2) == before


def test_a_replica_that_somebody_replaced_by_another_flow_comes_back(world: World) -> None:
    lead(world)
    gw2 = world[2]
    before = snapshots(gw2)
    ours = flow(0)
    with paused(gw2):
        gw2.delete([ours])
        gw2.put([replace(ours, reply=replace(ours.reply, dport=ours.reply.dport + 9000))])
    world.wait_equal(1, 2, 5)
    wait_clean(gw2)
    assert gw2.counter("replicas_replaced_by_others") == 1
    assert snapshots(gw2) == before


def test_a_destroy_that_a_replica_missed_is_made_up_for(world: World) -> None:
    world[2].program = DEAF
    world[2].environment.update(HAFW_TEST_MISSES="destroy", HAFW_CODEC="reference")
    lead(world)
    gw1, gw2 = world.gateways
    before = snapshots(gw2)
    gw1.delete(mixed(5))
    world.wait_equal(1, 2, 5)
    wait_clean(gw2)
    digest = watch(gw2)
    assert digest is not None
    assert (digest.repairs, digest.repaired) == (1, 1)
    assert snapshots(gw2) == before


def test_destroys_that_the_holder_never_heard_are_told_by_its_digest(world: World) -> None:
    world[1].program = DEAF
    world[1].environment.update(SMALL_BUFFER)
    lead(world)
    gw1, gw2 = world.gateways
    before = snapshots(gw2)
    with paused(gw1):
        gw1.delete(mixed(40))
    world.wait_equal(1, 2, 8)
    assert len(gw2.table()) == 20
    assert gw1.counter("event_overruns") > 0
    assert gw1.counter("vanished") > 0
    gw1.wait_synced(5)
    wait_clean(gw2)
    assert snapshots(gw2) == before


def test_a_follower_that_missed_events_compares_its_own_kernel(world: World) -> None:
    world[2].program = DEAF
    world[2].environment.update(SMALL_BUFFER)
    lead(world)
    gw2 = world[2]
    before = snapshots(gw2)
    with paused(gw2):
        gw2.delete(mixed(40))
        gw2.put(mixed(8, first=500))
    world.wait_equal(1, 2, 8)
    assert gw2.counter("sweeps_begun") > 0
    assert gw2.counter("sweep_forgotten") > 0
    assert gw2.counter("left_overs_deleted") == 8
    wait_clean(gw2)
    assert snapshots(gw2) == before
