"""hafw's own packets under the lab's policy: untracked, for peers alone, and no way around it."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.policy_spaces import (
    OWN_LAN,
    SERVER,
    SILENCE_S,
    VIP_WAN,
    WAIT_S,
    Site,
    silent,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("afresh")]
both = pytest.mark.parametrize("family", [4, 6])


@both
def test_hafws_own_packets_are_not_tracked_and_only_peers_are_heard(
    site: Site, family: int
) -> None:
    """gw2's address is a peer's; the server's is not."""
    peer = {4: "198.51.100.2/24", 6: "2001:db8:2::2/64"}[family]
    site.ip(site.server, f"addr add {peer} dev eth0" + (" nodad" if family == 6 else ""))
    try:
        own = {4: "198.51.100.1", 6: "2001:db8:2::1"}[family]
        daemon = site.socket(site.gateway, family, socket.SOCK_DGRAM, own, 7410)
        friend = site.socket(site.server, family, socket.SOCK_DGRAM, peer.split("/")[0], 7410)
        friend.sendto(b"hb", (own, 7410))
        text, source = daemon.recvfrom(10)
        assert text == b"hb"
        daemon.sendto(b"hb", source[:2])
        assert friend.recv(10) == b"hb"
        assert site.flows("-p", "udp", "--dport", "7410") == []
        daemon.close()
        friend.connect((own, 7410))
        friend.send(b"hb")
        with pytest.raises(ConnectionRefusedError):
            friend.recv(10)
        # The other way round: an error about a packet that was not tracked comes in.
        listener = site.socket(site.gateway, family, socket.SOCK_DGRAM, own, 7410)
        friend.close()
        listener.connect((peer.split("/")[0], 7410))
        listener.send(b"hb")
        with pytest.raises(ConnectionRefusedError):
            listener.recv(10)
        listener.close()
        daemon = site.socket(site.gateway, family, socket.SOCK_DGRAM, own, 7410)
        stranger = site.socket(site.server, family, socket.SOCK_DGRAM, SERVER[family])
        stranger.sendto(b"no", (own, 7410))
        assert silent(daemon)
    finally:
        site.ip(site.server, f"addr del {peer} dev eth0")


@contextmanager
def _taken(site: Site, family: int, side: str) -> Iterator[str]:
    """A stranger on a segment takes gw2's address there."""
    space = site.client if side == "lan" else site.server
    net = {
        "lan": ("192.0.2.2/24", "2001:db8:1::2/64"),
        "wan": ("198.51.100.2/24", "2001:db8:2::2/64"),
    }
    text = net[side][family == 6]
    site.ip(space, f"addr add {text} dev eth0" + (" nodad" if family == 6 else ""))
    try:
        yield text.split("/")[0]
    finally:
        site.close_sockets()
        site.ip(space, f"addr del {text} dev eth0")


@both
@pytest.mark.parametrize("side", ["lan", "wan"])
@pytest.mark.parametrize("sport", [7410, 7411, 7412])
def test_a_peers_address_and_port_reach_no_service_of_the_node(
    site: Site, family: int, side: str, sport: int
) -> None:
    own = OWN_LAN if side == "lan" else {4: "198.51.100.1", 6: "2001:db8:2::1"}
    space = site.client if side == "lan" else site.server
    # Where all gateways have an IPv4 address, replication stands in by IPv4 alone.
    services = (22, 5009) if family == 4 else (22, 5009, 7412)
    for dport in services:
        site.listen(site.gateway, family, dport)
    with _taken(site, family, side) as peer:
        for dport in services:
            stranger = site.socket(space, family, socket.SOCK_STREAM, peer, sport)
            stranger.settimeout(0.3)
            with pytest.raises(TimeoutError):
                stranger.connect((own[family], dport))
            stranger.close()
        daemon = site.socket(site.gateway, family, socket.SOCK_DGRAM, own[family], 7411)
        delta = site.socket(space, family, socket.SOCK_DGRAM, peer, sport)
        delta.sendto(b"no", (own[family], 7411))
        assert silent(daemon) == (family == 6)


@pytest.mark.parametrize("side", ["lan", "wan"])
def test_a_segment_carries_replication_of_gateways_alone_untracked(site: Site, side: str) -> None:
    own = OWN_LAN[4] if side == "lan" else "198.51.100.1"
    space = site.client if side == "lan" else site.server
    daemon = site.socket(site.gateway, 4, socket.SOCK_DGRAM, own, 7411)
    listener = site.listen(site.gateway, 4, 7412)
    stranger = site.socket(space, 4, socket.SOCK_STREAM)
    stranger.settimeout(0.3)
    with pytest.raises(TimeoutError):
        stranger.connect((own, 7412))
    site.socket(space, 4, socket.SOCK_DGRAM).sendto(b"no", (own, 7411))
    assert silent(daemon)
    with _taken(site, 4, side) as peer:
        site.socket(space, 4, socket.SOCK_DGRAM, peer).sendto(b"delta", (own, 7411))
        stream = site.socket(space, 4, socket.SOCK_STREAM, peer)
        stream.settimeout(WAIT_S)
        stream.connect((own, 7412))
        accepted, _ = site.accept(listener)
        accepted.sendall(b"snapshot")
        assert stream.recv(20) == b"snapshot"
        daemon.settimeout(WAIT_S)
        assert daemon.recv(10) == b"delta"
        assert [flow for flow in site.flows() if f"src={peer} dst={own}" in flow] == []


@both
def test_ports_of_hafw_are_tracked_where_they_are_not_hafws(site: Site, family: int) -> None:
    """A user's own traffic through the node to such a port, from a peer's address too, is
    forwarded as any other; by the node's own MAC it is not."""
    server = site.socket(site.server, family, socket.SOCK_DGRAM, port=7411)
    heartbeats = site.socket(site.server, family, socket.SOCK_DGRAM, port=7410)
    own = {4: "192.0.2.1", 6: "2001:db8:1::1"}[family]
    with _taken(site, family, "lan") as peer:
        for listener, port in ((server, 7411), (heartbeats, 7410)):
            client = site.socket(site.client, family, socket.SOCK_DGRAM, peer)
            client.sendto(b"virtual", (SERVER[family], port))
            listener.settimeout(WAIT_S)
            assert listener.recvfrom(10)[1][0] == VIP_WAN[family]
            assert len(site.flows("-p", "udp", "--dport", str(port))) == 1
        site.ip(site.client, f"-{family} route add {SERVER[family]} via {own}")
        try:
            for listener, port in ((server, 7411), (heartbeats, 7410)):
                client = site.socket(site.client, family, socket.SOCK_DGRAM, peer)
                client.sendto(b"own", (SERVER[family], port))
                assert silent(listener)
        finally:
            site.ip(site.client, f"-{family} route del {SERVER[family]} via {own}")
    assert (site.counter("other_way"), site.counter("untracked")) == (2, 0)


@contextmanager
def _link(site: Site) -> Iterator[None]:
    """Link sync0 between the gateway and a namespace that plays gw2."""
    site.ip(site.gateway, f"link add sync0 type veth peer name sync0 netns {site.server}")
    try:
        for space, host in ((site.gateway, 1), (site.server, 2)):
            site.ip(space, f"addr add 203.0.113.{host}/25 dev sync0")
            site.ip(space, "link set sync0 up")
        yield
    finally:
        site.close_sockets()
        site.ip(site.gateway, "link del sync0")


def test_a_link_carries_replication_and_snapshots_untracked(site: Site) -> None:
    with _link(site):
        daemon = site.socket(site.gateway, 4, socket.SOCK_DGRAM, port=7411)
        delta = site.socket(site.server, 4, socket.SOCK_DGRAM, "203.0.113.2", 7411)
        delta.sendto(b"delta", ("203.0.113.1", 7411))
        assert daemon.recv(10) == b"delta"
        for asked, asks, to in (
            (site.gateway, site.server, "203.0.113.1"),
            (site.server, site.gateway, "203.0.113.2"),
        ):
            listener = site.listen(asked, 4, 7412)
            stream = site.connect(asks, 4, to, 7412)
            accepted, _ = site.accept(listener)
            accepted.sendall(b"snapshot")
            assert stream.recv(20) == b"snapshot"
            listener.close()
        assert [flow for flow in site.flows() if "203.0.113." in flow] == []


def test_on_a_link_a_snapshot_port_as_source_opens_nothing(site: Site) -> None:
    with _link(site):
        site.listen(site.gateway, 4, 22)
        stranger = site.socket(site.server, 4, socket.SOCK_STREAM, "203.0.113.2", 7412)
        stranger.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            stranger.connect(("203.0.113.1", 22))


def test_a_peer_opens_so_many_snapshot_connections_and_no_more(site: Site) -> None:
    with _link(site):
        site.listen(site.gateway, 4, 7412).listen(64)
        opened = 0
        for _ in range(40):
            stream = site.socket(site.server, 4, socket.SOCK_STREAM)
            stream.setblocking(False)
            stream.connect_ex(("203.0.113.1", 7412))
            opened += bool(select.select([], [stream], [], 0.02)[1])
        assert 12 <= opened <= 24  # A burst of 16, then 4 in a second.
