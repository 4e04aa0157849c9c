"""Every kind of state through real syncds: there, adopted and back; and what never leaves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_GRE,
    IPPROTO_ICMP,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    NEVER_MARK,
    FlowEntry,
    FlowKey,
    SctpState,
    SynProxy,
    Tuple,
    delayed_mark,
    inverse,
    mark_owner,
)
from sync.ctnetlink import build_update
from tests.integration.ct_spaces import inside, kernel_tree
from tests.integration.helper_world import OUTSIDE, dial, helper_world, listener
from tests.integration.syncd_world import (
    SERVER4,
    SERVER6,
    VIP4,
    VIP6,
    Gateway,
    World,
    flow,
    mixed,
    syncd_world,
    wait_for,
)

pytestmark = pytest.mark.integration
ESP, DCCP, OTHER = 50, 33, 253
NATIVE, REFERENCE = "native", "reference"
UP, ENDING = SctpState(4, 11, 22), SctpState(5, 11, 22)


@pytest.fixture
def codecs() -> tuple[str, str]:
    return NATIVE, NATIVE


@pytest.fixture
def pair(tmp_path: Path, codecs: tuple[str, str]) -> Iterator[World]:
    """gw1 holds the group, gw2 is synced."""
    with syncd_world(tmp_path) as world:
        for gateway, codec in zip(world.gateways, codecs, strict=True):
            gateway.environment["HAFW_CODEC"] = codec
        world.start()
        world.lead(1, 1)
        for gateway in world.gateways:
            gateway.wait_synced()
        yield world


def of_proto(proto: int, number: int, *, v6: bool = False, zone: int = 0) -> FlowEntry:
    """A flow of any protocol, its source translated to the VIP."""
    family, vip, server = (AF_INET6, VIP6, SERVER6) if v6 else (AF_INET, VIP4, SERVER4)
    host = bytes(15) + bytes([number]) if v6 else bytes([192, 0, 2, number])
    sport, dport = 0, 0
    if proto == IPPROTO_ICMP:
        sport, dport = number, 13 << 8
    elif proto in (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP, IPPROTO_UDPLITE):
        sport, dport = 4000 + number, 5000
    orig = Tuple(family, proto, host, server, sport, dport)
    made = replace(flow(number, proto=IPPROTO_UDP), key=FlowKey(zone, orig), tcp=None)
    made = replace(made, reply=replace(inverse(orig), dst=vip))
    if proto == IPPROTO_SCTP:
        made = replace(made, sctp=UP)
    elif proto == IPPROTO_TCP:
        made = replace(made, tcp=flow(0).tcp)
    return made


def all_kinds() -> list[FlowEntry]:
    protos = (IPPROTO_GRE, ESP, DCCP, OTHER, IPPROTO_SCTP, IPPROTO_UDPLITE)
    flows = [of_proto(proto, 10 + n) for n, proto in enumerate(protos)]
    flows += [of_proto(proto, 20 + n, v6=True) for n, proto in enumerate(protos)]
    flows += [of_proto(IPPROTO_ICMP, 30)]
    flows += [of_proto(p, 40 + n, zone=7) for n, p in enumerate((IPPROTO_TCP, IPPROTO_UDP))]
    proxied = replace(of_proto(IPPROTO_TCP, 50), synproxy=SynProxy(1, 2, 3))
    return [*flows, proxied]


def view(gateway: Gateway) -> dict[FlowKey, object]:
    return {
        key: (e.reply, e.status & 0x3F, e.tcp and e.tcp.state, e.sctp, e.synproxy)
        for key, e in gateway.table().items()
    }


def wait_same(world: World, count: int) -> None:
    one, two = world[1], world[2]
    wait_for(
        lambda: f"{count} equal flows: {view(one)} {view(two)} {two.status()}",
        lambda: view(one) == view(two) and len(view(two)) == count,
    )


@pytest.mark.parametrize(
    "codecs", [(NATIVE, NATIVE), (REFERENCE, REFERENCE), (NATIVE, REFERENCE), (REFERENCE, NATIVE)]
)
def test_every_kind_of_state_goes_there_and_back(pair: World, codecs: tuple[str, str]) -> None:
    gw1, gw2 = pair[1], pair[2]
    for gateway, codec in zip(pair.gateways, codecs, strict=True):
        status = gateway.status()
        assert status is not None
        assert status.codec.split()[0] == codec
    flows = [*all_kinds(), *mixed(8)]
    gw1.put(flows)
    wait_same(pair, len(flows))
    held = [entry for entry in flows if entry.sctp is not None]
    changes = [build_update(entry.key, sctp=ENDING) for entry in held]
    assert gw1.kernel.execute(changes) == [0] * len(held)
    wait_same(pair, len(flows))
    assert {e.sctp for e in gw2.table().values() if e.sctp is not None} == {ENDING}
    gre = flows[0]
    marked = gre.mark | 0xFF00
    assert gw1.kernel.execute([build_update(gre.key, mark=(marked, 0xFFFFFFFF))]) == [0]
    wait_for("the mark of GRE, whose timeout is fixed", lambda: _mark(gw2, gre.key) == marked)
    pair.lead(2, 2)
    for gateway in pair.gateways:
        gateway.wait_synced()
    wait_same(pair, len(flows))
    assert gw2.counter("adopt_EPERM") == 0
    assert {mark_owner(entry.mark) for entry in gw1.table().values()} == {2}, "said by gw2"
    gw2.delete(flows)
    wait_same(pair, 0)


def _mark(gateway: Gateway, key: FlowKey) -> int:
    entry = gateway.table().get(key)
    return 0 if entry is None else entry.mark


def test_flows_of_the_node_and_of_other_classes_never_leave_it(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    marks = (0, 0x5, NEVER_MARK, NEVER_MARK | 0x5, delayed_mark(1))
    own = [replace(flow(n), mark=mark) for n, mark in enumerate(marks)]
    own += [replace(flow(n, proto=IPPROTO_UDP), mark=m) for n, m in enumerate(marks, 10)]
    keys = {entry.key for entry in own}
    gw1.put(own)
    for entry in own:
        gw1.change(replace(entry, timeout_s=500))
    ours = flow(100)
    gw1.put([ours])

    def only_ours(gateway: Gateway) -> bool:
        return set(gateway.table()) == {ours.key}

    wait_for("the replica", lambda: only_ours(gw2))
    gw2.stop()
    gw2.flush()
    gw2.start()
    gw2.wait_synced()
    assert only_ours(gw2), "by a snapshot"
    for counter, number in ((2, 2), (3, 1)):
        pair.lead(number, counter)
        for gateway in pair.gateways:
            gateway.wait_synced()
        assert only_ours(gw2), "by a pass"
        assert set(gw1.table()) == keys | {ours.key}, "no sweep takes them away"
    status = gw1.status()
    assert status is not None
    assert status.groups[0].owned == 1
    gw1.delete(own)
    gw1.delete([ours])
    wait_for("no replica", lambda: not gw2.table())
    assert gw2.counter("destroy_unknown") == 0, "nor was the end of any said"


def test_labels_are_looked_up_first_and_said_when_they_change() -> None:
    with helper_world() as world:
        spaces = [gateway.space for gateway in world.cluster.gateways]
        first = "ct state new ct label set 3"
        for space, rule in zip(spaces, (first, f"ct mark 0xffffffff {first}"), strict=True):
            chain = f"chain c {{\ntype filter hook forward priority -5\n{rule}\n}}"
            inside(space, "nft", "-f", "-", stdin=f"table inet labels {{\n{chain}\n}}\n")
        holder = world.cluster[1]
        holder.stop()  # Another asks its kernel at once, this one within seconds.
        holder.start()
        world.cluster.lead(1, 2)
        for gateway in world.cluster.gateways:
            gateway.wait_synced()
        with (
            listener(world.outside, 4, OUTSIDE[4], 21, socket.SOCK_STREAM) as waiting,
            dial(world.inside, 4, OUTSIDE[4], 21) as client,
        ):
            server, _ = waiting.accept()
            with server:
                (key,) = world.cluster[1].table()
                replica = world.cluster[2]
                wait_for("the replica", lambda: key in replica.table())
                assert _labels(replica, key) == 1 << 3
                inside(spaces[0], "nft", "add", "rule", "inet", "labels", "c", "ct label set 4")
                client.sendall(b"x\r\n")
                wait_for("the second label", lambda: _labels(replica, key) == 1 << 3 | 1 << 4)


def _labels(gateway: Gateway, key: FlowKey) -> int:
    return int.from_bytes(kernel_tree(gateway.space, key)[22], "little")
