"""A verification by hand finds what differs and repairs nothing; a resync fetches all again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hafw.messages import SyncVerdict
from hafw.node.client import LocalClient, Unavailable
from tests.integration.syncd_world import Gateway, World, flow, mixed, wait_for

pytestmark = pytest.mark.integration


def lead(world: World) -> None:
    world.start()
    world.lead(1, 1)
    world[2].wait_synced()
    world[1].put(mixed(60))
    world.wait_equal(1, 2)


def verify(gateway: Gateway) -> SyncVerdict:
    answer = LocalClient(gateway.paths).verify()
    assert not isinstance(answer, Unavailable), answer.reason
    assert answer.node_id == gateway.number
    (verdict,) = answer.groups
    return verdict


def faults(verdict: SyncVerdict) -> tuple[int, int, int]:
    return verdict.missing, verdict.stale, verdict.left_over


def test_equal_tables_are_found_equal(world: World) -> None:
    lead(world)
    for gateway in world.gateways:
        verdict = verify(gateway)
        assert (verdict.flows, verdict.entries, faults(verdict)) == (60, 60, (0, 0, 0))
        assert (verdict.active, verdict.error) == (gateway.number == 1, "")
        assert verdict.differing == (None if verdict.active else 0)
    assert verdict.seq > 0


def test_each_fault_is_counted_and_nothing_is_repaired(world: World) -> None:
    world[2].program = "tests.integration.deaf_syncd"
    world[2].environment["HAFW_TEST_MISSES"] = "events"
    lead(world)
    gw2 = world[2]
    gw2.delete(mixed(3))
    gw2.put(mixed(2, first=500))
    changed = flow(8)
    gw2.delete([changed])
    gw2.put([replace(changed, reply=replace(changed.reply, dport=55_555))])
    for _ in range(2):
        verdict = verify(gw2)
        assert faults(verdict) == (3, 1, 2)
        assert (verdict.flows, verdict.entries, verdict.differing) == (60, 59, 0)
    assert faults(verify(world[1])) == (0, 0, 0)


def test_without_a_holder_there_is_nothing_to_compare_with(world: World) -> None:
    lead(world)
    gw1, gw2 = world.gateways
    gw1.stop()
    gw2.follow(1, 1, lives=False)
    verdict = verify(gw2)
    assert (faults(verdict), verdict.differing) == ((0, 0, 0), None)
    assert verdict.error == "no digest of the holder could be compared"


def test_a_resync_fetches_all_again(world: World) -> None:
    lead(world)
    gw1, gw2 = world.gateways
    done = gw2.counter("snapshots_done")
    answer = LocalClient(gw2.paths).resync()
    assert not isinstance(answer, Unavailable)
    assert (answer.groups, answer.refused) == ([1], {})
    wait_for("fetched", lambda: gw2.counter("snapshots_done") == done + 1)
    gw2.wait_synced()
    world.wait_equal(1, 2)
    answer = LocalClient(gw1.paths).resync()
    assert not isinstance(answer, Unavailable)
    assert (answer.groups, answer.refused) == ([], {1: "this node holds it"})
