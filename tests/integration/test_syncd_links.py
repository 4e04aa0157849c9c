"""Two real syncds: lossy, cut and vanished links, lost events, bad peers."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from hafw.flow import (
    IPPROTO_TCP,
    IPPROTO_UDP,
)
from hafw.kernel.netns import entered
from sync.ctnetlink import build_create, build_delete
from tests.integration.ct_spaces import inside
from tests.integration.syncd_world import (
    World,
    flow,
    mixed,
    wait_for,
    write_key,
)

pytestmark = pytest.mark.integration


def test_thirty_percent_loss_on_both_links_loses_nothing(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    pair.lose(0, 30)
    pair.lose(1, 30)
    for start in range(0, 600, 4):  # A datagram each, so that some are lost on both for certain.
        gw1.put(mixed(4, first=start))
        time.sleep(0.002)
    gw1.delete(mixed(100))
    pair.wait_equal(1, 2, 20)
    assert len(gw2.table()) == 500
    assert gw2.counter("nacks_sent") > 0
    assert gw1.counter("repairs_sent") > 0
    gw2.wait_synced()


def test_one_link_cut_changes_nothing(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    pair.cut(0)
    gw1.put(mixed(100))
    pair.wait_equal(1, 2, 3)
    pair.heal(0)
    pair.cut(1)
    gw1.delete(mixed(50))
    pair.wait_equal(1, 2, 3)
    gw2.stop(signal.SIGKILL)
    gw2.flush()
    gw2.start()  # A snapshot over the link that is left.
    gw2.wait_synced(20)
    pair.wait_equal(1, 2)


def test_a_link_whose_device_vanishes_is_shown_and_comes_back(pair: World) -> None:
    gw1 = pair[1]
    inside(gw1.space, "ip", "link", "set", "sync0", "down")
    inside(gw1.space, "ip", "link", "set", "sync0", "name", "gone0")

    def alarmed() -> bool:
        status = gw1.status()
        return status is not None and any("device does not exist" in a for a in status.alarms)

    wait_for("an alarm", alarmed, 5)
    gw1.put(mixed(10))
    pair.wait_equal(1, 2)
    inside(gw1.space, "ip", "link", "set", "gone0", "name", "sync0")
    inside(gw1.space, "ip", "link", "set", "sync0", "up")
    wait_for("no alarm", lambda: not alarmed(), 5)


def test_overrun_is_repaired_by_a_dump(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(200))
    pair.wait_equal(1, 2)
    gw1.signal(signal.SIGSTOP)
    gw1.delete(mixed(50))
    # The receive buffer holds well over 100,000 events.
    churn = [flow(number, proto=IPPROTO_UDP) for number in range(8000, 9000)]
    making = [build_create(entry, pristine=False) for entry in churn]
    ending = [build_delete(entry.key) for entry in churn]
    for _ in range(200):
        gw1.kernel.execute(making)
        gw1.kernel.execute(ending)
    gw1.put(mixed(10, first=300))
    gw1.signal(signal.SIGCONT)
    wait_for("an overrun was met", lambda: gw1.counter("event_overruns") > 0, 20)
    gw1.wait_synced(20)
    pair.wait_equal(1, 2, 20)
    assert len(gw2.table()) == 160


def test_a_peer_with_another_key_is_refused_and_counted(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(5))
    pair.wait_equal(1, 2)
    gw1.stop()
    write_key(gw1.paths, os.urandom(32))
    gw1.start()
    gw1.hold(2, contiguous=True)
    gw2.follow(2, 1)
    gw1.put(mixed(5, first=10))
    wait_for("refusals", lambda: gw2.counter("refused_bad_tag") > 10)
    gw2.wait_reason("silent")
    assert len(gw2.table()) == 5
    assert not gw2.beacons[-1].synced[1]


def test_a_recorded_earlier_session_is_never_accepted(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    with entered(gw2.space):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    with tap:
        tap.bind(("sync0", 0x0800))
        tap.settimeout(0.3)
        gw1.put(mixed(30))
        pair.wait_equal(1, 2)
        recorded: list[bytes] = []
        try:
            while len(recorded) < 500:
                packet = tap.recv(4096)
                start = (packet[0] & 15) * 4 + 8
                if packet[9] == 17 and packet[start : start + 4] == b"hCTS":
                    recorded.append(packet[start:])
        except TimeoutError:
            pass
    assert any(datagram[5] == 1 for datagram in recorded), "deltas were recorded"
    gw1.stop(signal.SIGKILL)
    gw1.delete(mixed(30))
    gw1.start()
    gw1.hold(2, contiguous=True)
    gw2.follow(2, 1)
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    assert gw2.table() == {}
    with entered(gw1.space):
        attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with attacker:
        for _ in range(5):
            for datagram in recorded:
                attacker.sendto(datagram, ("203.0.113.2", 7411))
                attacker.sendto(datagram[: len(datagram) // 2], ("203.0.113.2", 7411))
            time.sleep(0.05)
    refused = wait_for("refusals", lambda: gw2.counter("datagrams_retired_session"))
    assert refused > 0
    assert gw2.counter("refused_truncated") + gw2.counter("refused_lying_length") > 0
    assert gw2.table() == {}
    status = gw2.status()
    assert status is not None
    assert gw2.counter("sessions_accepted") == 2
    gw1.put(mixed(3))
    pair.wait_equal(1, 2)


def test_garbage_is_counted(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    with entered(gw1.space):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for size in (0, 1, 40, 56, 1400):
            sender.sendto(os.urandom(size), ("203.0.113.2", 7411))
    bus = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with bus:
        bus.sendto(b"not msgpack", str(gw2.paths.syncd_socket))
    wait_for("counted", lambda: gw2.counter("local_malformed") == 1)
    assert gw2.counter("refused_truncated") + gw2.counter("refused_bad_magic") >= 5
    gw1.put(mixed(3))
    pair.wait_equal(1, 2)
    assert IPPROTO_TCP in {entry.key.orig.proto for entry in gw2.table().values()}
