"""Three syncds; snapshots from strangers; big tables beside the beacon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from hafw.flow import IPPROTO_UDP
from hafw.kernel.netns import entered
from sync.ctnetlink import build_create
from sync.ctsocket import EventSocket
from sync.curve import curve_keys
from sync.snapshot_wire import SnapshotRequest, decode_reply, encode_snapshot
from tests.integration.syncd_world import Gateway, World, flow, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration
FLOWS = 10_000
WORK_MAX = 2048
"""Entries between two looks at the beacon: twice what is taken of the event socket in a turn."""


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[World]:
    with syncd_world(tmp_path, 3) as world:
        world.start()
        world.lead(1, 1)
        for gateway in world.gateways:
            gateway.wait_synced()
        yield world


def test_three_nodes_hand_the_group_round(trio: World) -> None:
    trio[1].put(mixed(40))
    trio.wait_equal(1, 2)
    trio.wait_equal(1, 3)
    for counter, holder in enumerate((2, 3, 1, 3), 2):
        others = [gateway for gateway in trio.gateways if gateway.number != holder]
        trio.lead(holder, counter)
        for gateway in others:
            gateway.wait_synced()
        added = mixed(6, owner=holder, first=100 * counter)
        trio[holder].put(added)
        trio[holder].delete(added[:2])
        for gateway in others:
            trio.wait_equal(holder, gateway.number)
    assert len(trio[2].table()) == 40 + 4 * 4


def test_after_a_cut_a_node_is_unsynced_until_it_has_heard_the_holder(trio: World) -> None:
    """Its own leased is behind and the holder is silent; a third node's beacon names the epoch."""
    gw1, gw2, gw3 = trio.gateways
    gw1.put(mixed(10))
    trio.wait_equal(1, 2)
    trio.cut(0)
    trio.cut(1)
    gw1.follow(1, 1, lives=False)
    gw2.hold(2)
    gw3.follow(2, 2)
    gw2.wait_synced()
    gw1.wait_synced()
    gw2.signal(signal.SIGSTOP)
    trio.heal(0)
    trio.heal(1)
    gw1.wait_reason("gw2")
    gw2.signal(signal.SIGCONT)
    gw1.follow(2, 2)
    gw1.wait_synced()
    trio.wait_equal(2, 1)


def test_a_restarted_holder_keeps_its_live_entries(trio: World) -> None:
    """Its predecessor noted that they are clean: nothing is deleted under live flows."""
    gw1 = trio[1]
    flows = mixed(20)
    gw1.put(flows)
    trio.wait_equal(1, 2)
    gw1.stop(signal.SIGKILL)
    with entered(gw1.space):
        listener = EventSocket()
    with listener:
        gw1.start()
        wait_for("a new epoch is asked for", lambda: gw1.new_epochs)
        trio.lead(1, 2, contiguous=True)
        gw1.wait_synced()
        # (Zone 65535 is that of syncd's question whether the node sets labels.)
        assert [e for e in listener.drain(1000) if e.entry.key.zone != 0xFFFF] == []
    for gateway in trio.gateways[1:]:
        gateway.wait_synced()
        trio.wait_equal(1, gateway.number)


def test_without_that_note_stale_tcp_is_replaced(trio: World) -> None:
    gw1 = trio[1]
    gw1.put(mixed(20))
    trio.wait_equal(1, 2)
    gw1.stop(signal.SIGKILL)
    (gw1.paths.run / "syncd.clean").unlink()
    gw1.start()
    wait_for("a new epoch is asked for", lambda: gw1.new_epochs)
    trio.lead(1, 2, contiguous=True)
    gw1.wait_synced()
    wait_for("replaced", lambda: gw1.counter("kernel_writes") >= 20)
    assert len(gw1.table()) == 20


def test_a_snapshot_is_for_members_only(trio: World) -> None:
    trio[1].put(mixed(5))
    master = trio[1].paths.sync_key.read_bytes()
    server = curve_keys(master, "server").public
    strangers = [
        (server, curve_keys(os.urandom(32), "client")),  # Has the public key, is no member.
        (server, curve_keys(master, "server")),  # The wrong end's key.
    ]
    with entered(trio[2].space):
        for server_key, own in strangers:
            with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.curve_serverkey = server_key
                dealer.curve_publickey, dealer.curve_secretkey = own.public, own.secret
                dealer.connect("tcp://203.0.113.1:7412")
                dealer.send(encode_snapshot(SnapshotRequest(1, 2, 1)))
                assert not dealer.poll(500), "an answer to a stranger"
        member = curve_keys(master, "client")
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.curve_serverkey = server
            dealer.curve_publickey, dealer.curve_secretkey = member.public, member.secret
            dealer.connect("tcp://203.0.113.1:7412")
            dealer.send(b"\xc1 not msgpack")
            dealer.send(encode_snapshot(SnapshotRequest(1, 2, 1)))
            assert dealer.poll(3000)
            decode_reply(dealer.recv())
    assert trio[1].counter("snapshot_clients_refused") >= 2
    assert trio[1].counter("snapshot_malformed") == 1


def put_at_once(gateway: Gateway, count: int) -> None:
    """All its events wait when syncd looks."""
    messages = [
        build_create(flow(number, v6=bool(number & 1), proto=IPPROTO_UDP), pristine=False)
        for number in range(count)
    ]
    gateway.signal(signal.SIGSTOP)
    for start in range(0, count, 500):
        assert not any(gateway.kernel.execute(messages[start : start + 500]))
    gateway.signal(signal.SIGCONT)


def test_the_beacon_is_looked_at_between_bounded_slices_of_a_large_table(tmp_path: Path) -> None:
    """Flows come all at once, are fetched, and move: each turn does little of it."""
    with syncd_world(tmp_path, 3) as world:
        gw1, gw2, gw3 = world.gateways
        for gateway in world.gateways:
            gateway.program = "tests.integration.counting_syncd"
        gw1.start()
        gw2.start()
        world.lead(1, 1)
        gw2.wait_synced()
        put_at_once(gw1, FLOWS)
        wait_for("all replicated", lambda: len(gw2.table()) == FLOWS, 60)
        gw3.start()
        gw3.wait_synced(60)
        world.lead(2, 2)
        gw1.wait_synced(60)
        gw3.wait_synced(60)
        assert len(gw1.table()) == len(gw3.table()) == FLOWS
        for gateway in world.gateways:
            assert 0 < gateway.counter("work_max") <= WORK_MAX, gateway.status()


def test_an_unbounded_slice_is_found(tmp_path: Path) -> None:
    with syncd_world(tmp_path) as world:
        gw1 = world[1]
        gw1.program = "tests.integration.counting_syncd"
        gw1.environment["HAFW_TEST_EVENTS_PER_TURN"] = "1000000"
        gw1.start()
        world.lead(1, 1)
        gw1.wait_synced()
        put_at_once(gw1, FLOWS)
        wait_for("all said", lambda: gw1.counter("first") == FLOWS, 60)
        assert gw1.counter("work_max") > WORK_MAX


def test_a_holder_that_dies_while_it_serves_a_snapshot(trio: World) -> None:
    gw1, gw2 = trio[1], trio[2]
    gw1.put(mixed(300))
    trio.wait_equal(1, 2)
    gw2.stop(signal.SIGKILL)
    gw1.signal(signal.SIGSTOP)
    gw2.start()
    gw2.wait_reason("gw1", 5)
    gw1.stop(signal.SIGKILL)
    trio[3].hold(2)
    gw2.follow(2, 3)
    gw2.wait_synced()
    trio.wait_equal(3, 2)
    assert len(gw2.table()) == 300


def test_it_becomes_holder_in_the_middle_of_its_snapshot(trio: World) -> None:
    gw1, gw2 = trio[1], trio[2]
    gw1.put(mixed(400))
    trio.wait_equal(1, 2)
    gw2.stop(signal.SIGKILL)
    gw2.start()
    gw1.stop(signal.SIGKILL)
    for gateway in (gw2, trio[3]):
        gateway.follow(1, 1, lives=False)
    time.sleep(0.05)
    trio.lead(2, 2)
    gw2.wait_synced()
    trio[3].wait_synced()
    trio.wait_equal(2, 3)
    assert len(gw2.table()) == 400, "what it had, it kept"


@pytest.mark.long
def test_refresh_extends_the_hold_of_replicas(tmp_path: Path) -> None:
    with syncd_world(tmp_path, sync="refresh_s: 10, hold_s: 60") as world:
        world.start()
        world.lead(1, 1)
        world[2].wait_synced()
        idle = replace(flow(1, proto=IPPROTO_UDP), timeout_s=40)
        world[1].put([idle])
        world.wait_equal(1, 2)
        wait_for("a refresh", lambda: world[1].counter("passes_refresh") > 0, 20)

        def extended() -> bool:
            timeout_s = world[2].table()[idle.key].timeout_s
            return timeout_s is not None and timeout_s > 55

        wait_for("a longer hold", extended, 3)
        own = world[1].table()[idle.key].timeout_s
        assert own is not None
        assert own < 32, "the owner's own timer is not touched"
