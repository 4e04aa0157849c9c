"""Real syncds with both sync links cut and a segment left: replication goes on over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.integration.ct_spaces import inside
from tests.integration.syncd_world import (
    LAN,
    LAN4,
    LAN6,
    Gateway,
    World,
    mixed,
    syncd_world,
    wait_for,
)

pytestmark = pytest.mark.integration

LINKS = (0, 1)
UNICAST = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"


def over(gateway: Gateway, peer: int) -> str:
    status = gateway.status()
    return next(p.over for p in status.peers if p.node_id == peer) if status else "?"


def wait_over(gateway: Gateway, peer: int, wanted: str) -> None:
    wait_for(
        lambda: f"{gateway.name} reaches gw{peer} over {wanted!r}: {over(gateway, peer)!r}",
        lambda: over(gateway, peer) == wanted,
    )


def alarms(gateway: Gateway) -> str:
    status = gateway.status()
    return "" if status is None else "\n".join(status.alarms)


def cut_links(world: World) -> None:
    for link in LINKS:
        world.cut(link)


def heal_links(world: World) -> None:
    for link in LINKS:
        world.heal(link)


def lan_packets(gateway: Gateway) -> int:
    return _lan_sent(gateway, "tx_packets")


def lan_bytes(gateway: Gateway) -> int:
    return _lan_sent(gateway, "tx_bytes")


def _lan_sent(gateway: Gateway, name: str) -> int:
    return int(inside(gateway.space, "cat", f"/sys/class/net/lan0/statistics/{name}"))


@pytest.fixture
def lan() -> str:
    return LAN4


@pytest.fixture
def pair(lan: str, tmp_path: Path) -> Iterator[World]:
    with syncd_world(tmp_path, lan=lan) as world:
        world.start()
        world.lead(1, 1)
        world[2].wait_synced()
        yield world


@pytest.mark.parametrize("lan", [LAN4, LAN6], ids=["ipv4", "ipv6"])
def test_with_both_links_cut_all_goes_on_over_a_segment_and_back(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(200))
    pair.wait_equal(1, 2)
    wait_for("the segment is probed", lambda: lan_packets(gw1) > 4)
    for gateway, peer in ((gw1, 2), (gw2, 1)):  # While the other starts it is not heard.
        wait_over(gateway, peer, "links")
    before = gw2.status()
    assert before is not None
    gw2.beacons = []
    cut_links(pair)
    gw1.put(mixed(400, first=200))  # Said while nobody knows yet.
    wait_over(gw1, 2, "segment lan")
    wait_over(gw2, 1, "segment lan")
    wait_for("gw1 says that gw2 lives", lambda: "all sync links to gw2 are cut" in alarms(gw1))
    assert "segment lan (lan0)" in alarms(gw1)
    pair.wait_equal(1, 2)
    gw1.delete(mixed(100))
    gw1.put(mixed(300, first=600))
    pair.wait_equal(1, 2)
    reasons = {beacon.reasons.get(1, "") for beacon in gw2.beacons}
    assert reasons <= {"", "hole in the stream of gw1"}, "the hole of the cut is mended at once"
    # A repair by digest, and a whole snapshot, over the segment too.
    gw2.delete(mixed(5, first=300))
    pair.wait_equal(1, 2)
    gw2.wait_synced()
    heal_links(pair)
    wait_over(gw1, 2, "links")
    wait_over(gw2, 1, "links")
    gw1.put(mixed(300, first=900))
    pair.wait_equal(1, 2)
    assert not alarms(gw1)
    after = gw2.status()
    assert after is not None
    new = Counter(after.counters)
    new.subtract(before.counters)
    assert new["streams_broken"] == 0
    assert new["snapshots_asked"] == new["repairs_asked"] > 0
    assert new["detours_begun"] == new["detours_ended"] == 1


def test_a_node_that_starts_with_both_links_cut_becomes_synced(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(3000))
    pair.wait_equal(1, 2)
    gw2.stop()
    cut_links(pair)
    gw2.flush()
    wait_over(gw1, 2, "")  # Nobody is there: nothing is sent to it.
    assert "sync links" not in alarms(gw1)
    gw2.start()
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    gw1.put(mixed(200, first=3000))
    pair.wait_equal(1, 2)


def test_links_that_are_dead_in_one_direction_count_as_cut(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    for link in LINKS:
        pair.drop(link, f'oifname "l{link}p2"')  # Nothing reaches gw2; gw1 hears all.
    wait_over(gw1, 2, "segment lan")
    gw1.put(mixed(200))
    pair.wait_equal(1, 2)
    heal_links(pair)
    wait_over(gw1, 2, "links")
    assert gw2.reason == ""


def test_to_a_gateway_that_died_no_delta_is_sent_over_the_segment(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(8000))
    pair.wait_equal(1, 2, 30)
    wait_over(gw2, 1, "links")
    sent, said = lan_bytes(gw2), gw2.counter("deltas_sent")
    gw1.say(None)
    gw1.stop(SIGKILL)
    gw2.hold(2)
    wait_for("gw2 has said all", lambda: gw2.counter("deltas_sent") >= said + 8000, 20)
    wait_over(gw2, 1, "")
    assert lan_bytes(gw2) - sent < 100_000, "probes alone; the deltas are 400 kB"


def test_links_that_pass_multicast_alone_count_as_cut(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(300))
    pair.wait_equal(1, 2)
    for gateway, peer in ((gw1, 2), (gw2, 1)):
        wait_over(gateway, peer, "links")
    for link in LINKS:
        pair.drop(link, UNICAST)
    for gateway, peer in ((gw1, 2), (gw2, 1)):
        wait_over(gateway, peer, "segment lan")
    wait_for("gw1 names it", lambda: "from gw2 pass multicast and no unicast" in alarms(gw1))
    gw2.stop(SIGKILL)
    gw2.flush()
    gw2.start()
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    heal_links(pair)
    for gateway, peer in ((gw1, 2), (gw2, 1)):
        wait_over(gateway, peer, "links")
    assert not alarms(gw1)


def test_ends_that_chose_different_segments_serve_each_other_on_both(tmp_path: Path) -> None:
    with syncd_world(tmp_path, lan=LAN4, wan=True) as world:
        world.start()
        world.lead(1, 1)
        gw1, gw2 = world[1], world[2]
        gw2.wait_synced()
        gw1.put(mixed(200))
        world.wait_equal(1, 2)
        for gateway, peer in ((gw1, 2), (gw2, 1)):
            wait_over(gateway, peer, "links")
        wait_for("both segments are probed", lambda: min(map(lan_packets, (gw1, gw2))) > 8)
        cut_links(world)
        wait_over(gw1, 2, "segment lan")
        wait_over(gw2, 1, "segment lan")
        world.drop(LAN, f'oifname "l{LAN}p2"')  # Nothing of gw1 reaches gw2 over it, for a while.
        wait_over(gw2, 1, "segment wan")
        world.heal(LAN)
        assert over(gw1, 2) == "segment lan", "each end keeps what works"
        gw2.delete(mixed(5, first=100))  # The digests find it, a repair is asked for.
        world.wait_equal(1, 2)
        gw2.wait_synced()


def test_a_segment_that_is_forbidden_carries_nothing(tmp_path: Path) -> None:
    with syncd_world(tmp_path, lan=LAN4, sync="segments: []") as world:
        world.start()
        world.lead(1, 1)
        gw1, gw2 = world[1], world[2]
        gw2.wait_synced()
        before = lan_packets(gw1)
        cut_links(world)
        gw2.wait_reason("replication from gw1 silent")
        gw1.put(mixed(50))
        assert over(gw1, 2) == ""
        assert lan_packets(gw1) - before < 5, "what IPv6 says by itself"
        assert not gw2.table()


def test_of_three_only_the_one_without_links_is_reached_over_the_segment(tmp_path: Path) -> None:
    with syncd_world(tmp_path, 3, lan=LAN4) as world:
        world.start()
        world.lead(1, 1)
        for number in (2, 3):
            world[number].wait_synced()
        gw1 = world[1]
        for number in (2, 3):
            wait_over(gw1, number, "links")
        for link in LINKS:
            world.drop(link, f'oifname "l{link}p3"')
        wait_over(gw1, 3, "segment lan")
        wait_over(gw1, 2, "links")
        gw1.put(mixed(300))
        world.wait_equal(1, 2)
        world.wait_equal(1, 3)
        world.cut(LAN)
        wait_over(gw1, 3, "")
        world[3].wait_reason("replication from gw1 silent")
