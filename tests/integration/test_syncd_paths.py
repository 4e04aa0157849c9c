"""Two real syncds on a network that swallows multicast or large datagrams, and says nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hafw.kernel.netns import entered
from tests.integration.ct_spaces import inside
from tests.integration.syncd_world import Gateway, World, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration

NO_MULTICAST = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 ether type ip"


def alarms(gateway: Gateway) -> str:
    status = gateway.status()
    return "" if status is None else "\n".join(status.alarms)


def wait_alarm(gateway: Gateway, *parts: str) -> None:
    wait_for(
        lambda: f"{gateway.name}: {parts} in {alarms(gateway)}",
        lambda: all(part in alarms(gateway) for part in parts),
        12,
    )


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[World]:
    with syncd_world(tmp_path) as world:
        yield world


def started(world: World) -> World:
    world.start()
    world.lead(1, 1)
    world[1].wait_synced()
    world[2].wait_synced()
    return world


def test_a_switch_without_multicast_is_named_and_all_goes_by_unicast(unstarted: World) -> None:
    for link in (0, 1):
        unstarted.drop(link, NO_MULTICAST)
    pair = started(unstarted)
    gw1, gw2 = pair[1], pair[2]
    wait_alarm(
        gw1, "sync0 (sync0): multicast to 239.192.74.11 does not reach gw2", "sync1 (sync1)"
    )
    wait_alarm(gw2, "does not reach gw1", "querier")
    repaired = gw1.counter("repairs_sent")
    for start in range(0, 400, 4):
        gw1.put(mixed(4, first=start))
    gw1.delete(mixed(100))
    pair.wait_equal(1, 2)
    # A busy machine reads a beacon before what it speaks of; else nothing has to be asked for.
    assert gw1.counter("repairs_sent") - repaired < 50, "of at least 100 datagrams"
    pair.heal(0)
    wait_for("the alarm of sync0 goes", lambda: "sync0 " not in alarms(gw1), 12)
    assert "sync1 (sync1)" in alarms(gw1)


def test_three_without_multicast_and_none_configured(tmp_path: Path) -> None:
    with syncd_world(tmp_path, 3, sync="transport: unicast") as world:
        for link in (0, 1):
            world.drop(link, NO_MULTICAST)
        started(world)
        world[3].wait_synced()
        world[1].put(mixed(40))
        for other in (2, 3):
            world.wait_equal(1, other)
            assert not alarms(world[other])
        groups = inside(world[1].space, "ip", "maddress", "show", "dev", "sync0")
        assert "239.192.74.11" not in groups


def test_a_path_of_a_small_mtu_is_named_and_gets_small_datagrams(unstarted: World) -> None:
    for link in (0, 1):
        for gateway in unstarted.gateways:  # Else a frame is what the device would cut up.
            inside(gateway.space, "ip", "link", "set", f"sync{link}", "gso_max_segs", "1")
        unstarted.drop(link, "meta length > 1000")
    unstarted.start()
    gw1, gw2 = unstarted[1], unstarted[2]
    gw1.put(mixed(3000))  # Their snapshot has full segments, their deltas fill datagrams.
    unstarted.lead(1, 1)
    wait_alarm(gw1, "sync0 (sync0)", "more than 768 bytes do not reach gw2", "less than 1052")
    gw2.wait_synced(25)
    unstarted.wait_equal(1, 2)
    broken = gw2.counter("stream_broken")
    asked = gw2.counter("snapshots_asked")
    gw1.put(mixed(2000, first=3000))
    gw1.delete(mixed(1000))
    unstarted.wait_equal(1, 2)
    gw2.wait_synced()
    assert gw2.counter("stream_broken") == broken
    assert gw2.counter("snapshots_asked") == asked


def test_who_is_no_peer_is_not_even_heard(unstarted: World) -> None:
    pair = started(unstarted)
    gw1 = pair[1]
    inside(pair.switch, "ip", "address", "add", "203.0.113.77/25", "dev", "br0")
    with entered(pair.switch), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(1000):
            sock.sendto(bytes(200), ("203.0.113.1", 7411))
    with entered(pair[2].space), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(bytes(200), ("203.0.113.1", 7411))
    wait_for("a peer is heard", lambda: gw1.counter("refused_bad_magic") == 1)


def test_an_address_that_goes_is_an_alarm_until_it_is_back(unstarted: World) -> None:
    pair = started(unstarted)
    gw1 = pair[1]
    inside(gw1.space, "ip", "address", "del", "203.0.113.1/25", "dev", "sync0")
    wait_alarm(gw1, "sync link sync0 (sync0, 203.0.113.1): ", "no such address")
    inside(gw1.space, "ip", "address", "add", "203.0.113.1/25", "dev", "sync0")
    wait_for("no alarm", lambda: not alarms(gw1), 5)
