"""hafw behind switches that look into multicast: what arrives, and what a takeover needs.

The switch is Linux' bridge with IGMP and MLD snooping (net/bridge/br_multicast.c). Every wait is
bounded and named.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from cluster.announce import Announcer, announced_ports
from cluster.leased_io import LinkSockets, PathPlan
from cluster.mld import report_frames, solicited_node
from hafw.node.setup import prepare_node, teardown_node
from tests.integration.gate_env import (
    LINK_LOCAL,
    MAC,
    VIP4,
    VIP6,
    GateNet,
    Renewal,
    Sniffer,
    built_net,
    wait_for,
)

pytestmark = pytest.mark.integration
LEASE = "224.0.0.141"
SYNC = "239.192.74.11"
PORT = 7499
NOBODY6 = "2001:db8:1::dead"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    yield from built_net(tmp_path_factory)


def snoop(net: GateNet, *, querier: bool, flood: bool = True) -> None:
    """`flood`: unregistered multicast goes to every port."""
    words = f"mcast_snooping 1 mcast_querier {int(querier)} mcast_query_response_interval 10"
    net.ip("sw", f"link set lan type bridge {words} mcast_startup_query_interval 20")
    for port in ("gw1", "gw2", "client"):
        state = "on" if flood else "off"
        net.ip("sw", f"link set {port} type bridge_slave mcast_flood {state}")


class Node:
    """The lease's sockets of one gateway, on the segment alone."""

    def __init__(self, net: GateNet, name: str, multicast: str) -> None:
        number = int(name[-1])
        peers = {3 - number: f"192.0.2.{3 - number}"}
        self.counters: Counter[str] = Counter()
        with net.inside(name):
            plan = PathPlan("lan", "lan0", peers)
            self.sockets = LinkSockets(
                [plan], multicast=multicast, port=PORT, counters=self.counters
            )
            self.sockets.check(1)

    def copies(self, datagram: bytes, seconds: float = 0.5) -> int:
        """How many of it come within that time."""
        end, found = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            found += sum(
                got == datagram for got, _ in self.sockets.receive(self.sockets.descriptors())
            )
            time.sleep(0.01)
        return found


@pytest.fixture(params=[LEASE, SYNC], ids=["lease", "sync"])
def pair(net: GateNet, request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node, str]]:
    nodes = [Node(net, name, request.param) for name in ("gw1", "gw2")]
    yield nodes[0], nodes[1], request.param
    for node in nodes:
        node.sockets.close()


@pytest.mark.parametrize("querier", [False, True])
def test_snooping_lets_both_copies_through(
    net: GateNet, pair: tuple[Node, Node, str], querier: bool
) -> None:
    one, other, _ = pair
    snoop(net, querier=querier)
    one.sockets.send(b"beat", 0)
    assert other.copies(b"beat") == 2, "by multicast and by unicast"


def test_a_switch_that_drops_unregistered_multicast_leaves_the_unicast(
    net: GateNet, pair: tuple[Node, Node, str]
) -> None:
    one, other, group = pair
    snoop(net, querier=True, flood=False)
    if group == SYNC:
        # As if the membership had aged out for want of a querier.
        net.run("sw", "bridge", "mdb", "del", "dev", "lan", "port", "gw2", "grp", group)
    one.sockets.send(b"beat", 0)
    assert other.copies(b"beat") == 1, "by unicast alone"


@pytest.fixture
def both(net: GateNet) -> Iterator[GateNet]:
    """Both gateways prepared, shut."""
    for node in ("gw1", "gw2"):
        with net.inside(node):
            prepare_node(net.config, node)
    net.forget_neighbours()
    yield net
    for node in ("gw1", "gw2"):
        with net.inside(node):
            teardown_node(net.config, node)


def drops_unregistered(net: GateNet) -> bool:
    """Its querier is at work: a solicitation for nobody's address does not reach gw1."""
    sniffer = Sniffer(net, "gw1", "lan0")
    try:
        net.ping(NOBODY6, wait_s=0.05)
        group = solicited_node(IPv6Address(NOBODY6)).packed
        return not any(frame[38:54] == group for frame in sniffer.frames())
    finally:
        sniffer.close()


@pytest.mark.parametrize("querier", [False, True])
def test_a_takeover_is_believed_behind_a_snooping_switch(both: GateNet, querier: bool) -> None:
    """Hosts that know nothing yet find both VIPs, and the switch finds the virtual MAC."""
    snoop(both, querier=querier)
    wait_for("snooping", lambda: drops_unregistered(both) is querier)
    for node in ("gw1", "gw2"):
        with Renewal(both.paths(node)):
            with both.inside(node):
                announcer = Announcer(announced_ports(both.config, "main", node))
                announcer.announce()
                announcer.close()
            both.forget_neighbours()
            wait_for(f"{VIP4} answers from {node}", lambda: both.ping(VIP4))
            wait_for(f"{VIP6} answers from {node}", lambda: both.ping(VIP6))
            assert both.port_of(MAC) == node


def members(net: GateNet, group: IPv6Address) -> set[str]:
    """Ports to which the switch sends a group."""
    lines = net.run("sw", "bridge", "mdb", "show", "dev", "lan").stdout.splitlines()
    found = [line.split() for line in lines]
    return {words[3] for words in found if words[5] == str(group)}


@pytest.mark.parametrize("version", [1, 2])
def test_either_version_of_a_listener_report_makes_its_port_a_member(
    net: GateNet, version: int
) -> None:
    snoop(net, querier=True)
    address = IPv6Address(f"2001:db8:1::c0:{version}")
    reports = report_frames(MAC, IPv6Address(LINK_LOCAL), [address])
    frame = next(f for f in reports if f[62] == {1: 131, 2: 143}[version])
    assert members(net, solicited_node(address)) == set()
    with net.inside("gw2"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("lan0", 0))
        raw.send(frame)
    wait_for("a member", lambda: members(net, solicited_node(address)) == {"gw2"})
