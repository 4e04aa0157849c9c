"""Real packets of every protocol through a replica: tuples, translation and state are whole.

As in `test_ctnetlink_traffic`: a is heard, b has only what an event and a delta brought it, and
drops what is new or invalid. Both ends speak through raw sockets where the kernel has no protocol.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from hafw.flow import SctpState
from hafw.kernel.netns import entered
from tests.integration.ct_spaces import World, inside, kernel_tree, world
from tests.integration.test_ctnetlink_traffic import (
    CLIENTS,
    SERVERS,
    VIPS,
    WAIT_S,
    Gateways,
    both_ways,
    connect,
    family_of,
    gateways,
    open_socket,
    path_of,
)

pytestmark = pytest.mark.integration
__all__ = ["gateways"]
SCTP, UDPLITE, GRE, ESP, DCCP, OTHER = 132, 136, 47, 50, 33, 253
SILENCE_S = 0.4
versions = pytest.mark.parametrize("version", [4, 6])
nats = pytest.mark.parametrize("nat", ["plain", "snat"])


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as one:
        yield one


class Raw:
    """Two raw sockets of one protocol, and where each side sends."""

    def __init__(self, net: World, version: int, nat: str, proto: int) -> None:
        translated, plain = CLIENTS[version]
        source = translated if nat == "snat" else plain
        seen = VIPS[version][0] if nat == "snat" else plain
        self._version = version
        self._client = open_socket(net.client, version, socket.SOCK_RAW, source, proto)
        self._server = open_socket(net.server, version, socket.SOCK_RAW, SERVERS[version], proto)
        self._to = {id(self._client): SERVERS[version], id(self._server): seen}

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    def ask(self, packet: bytes, *, passes: bool = True) -> bytes:
        return self._send(self._client, self._server, packet, passes)

    def answer(self, packet: bytes, *, passes: bool = True) -> bytes:
        return self._send(self._server, self._client, packet, passes)

    def _send(self, one: socket.socket, two: socket.socket, packet: bytes, passes: bool) -> bytes:
        one.sendto(packet, (self._to[id(one)], 0))
        two.settimeout(WAIT_S if passes else SILENCE_S)
        if not passes:
            with pytest.raises(TimeoutError):
                two.recv(4096)
            return b""
        got, source = two.recvfrom(4096)
        assert source[0] == self._to[id(two)]
        return got[20:] if self._version == 4 else got


# -- SCTP by hand (RFC 9260)

TAG_CLIENT, TAG_SERVER = 0x11111111, 0x22222222
INIT, INIT_ACK, SACK, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = (
    1, 2, 3, 7, 8, 10, 11, 14,
)  # fmt: skip


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def sctp(ports: tuple[int, int], tag: int, kind: int, payload: bytes = b"") -> bytes:
    chunk = struct.pack(">BBH", kind, 3 if kind == 0 else 0, 4 + len(payload)) + payload
    head, body = struct.pack(">HHI", *ports, tag), chunk + bytes(-len(chunk) % 4)
    return head + struct.pack("<I", crc32c(head + bytes(4) + body)) + body


class Association:
    """Of a client's port 1000 with a server's port 2000."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw

    def client(
        self, kind: int, payload: bytes = b"", *, tag: int = TAG_SERVER, passes: bool = True
    ) -> None:
        self._raw.ask(sctp((1000, 2000), tag, kind, payload), passes=passes)

    def server(self, kind: int, payload: bytes = b"", *, passes: bool = True) -> None:
        self._raw.answer(sctp((2000, 1000), TAG_CLIENT, kind, payload), passes=passes)

    def establish(self) -> None:
        self.client(INIT, struct.pack(">IIHHI", TAG_CLIENT, 65535, 1, 1, 1), tag=0)
        self.server(INIT_ACK, struct.pack(">IIHHI", TAG_SERVER, 65535, 1, 1, 1))
        self.client(COOKIE_ECHO, b"cookie")
        self.server(COOKIE_ACK)

    def talk(self, *, passes: bool = True) -> None:
        self.client(0, struct.pack(">IHHI", 1, 0, 0, 0) + b"data", passes=passes)
        self.server(SACK, bytes(12), passes=passes)


@versions
@nats
def test_sctp_goes_on_with_its_tags(gateways: Gateways, version: int, nat: str) -> None:
    with Raw(gateways.net, version, nat, SCTP) as raw:
        association = Association(raw)
        association.establish()
        entry = gateways.heard(SCTP)
        # What packets carry in a direction is the tag that the other side has chosen.
        assert entry.sctp == SctpState(4, TAG_SERVER, TAG_CLIENT)
        gateways.replicate(entry)
        gateways.move_to_b()
        association.talk()
        association.client(0, struct.pack(">IHHI", 2, 0, 0, 0), tag=5, passes=False)
        association.client(SHUTDOWN, bytes(4))
        association.server(SHUTDOWN_ACK)
        association.client(SHUTDOWN_COMPLETE)
        replica = gateways.requests_b.get(entry.key)
        assert replica is not None
        assert replica.sctp is not None
        assert replica.sctp.state == 1, "CLOSED"


def test_without_its_tags_an_sctp_replica_lets_nothing_pass(gateways: Gateways) -> None:
    with Raw(gateways.net, 4, "snat", SCTP) as raw:
        association = Association(raw)
        association.establish()
        gateways.replicate(dataclasses.replace(gateways.heard(SCTP), sctp=None))
        gateways.move_to_b()
        association.talk(passes=False)


# -- protocols that are carried as they are

GRE_PACKET = struct.pack(">HH", 0, 0x0800)
PACKETS = {
    GRE: (GRE_PACKET + b"question", GRE_PACKET + b"answer"),
    ESP: (struct.pack(">II", 7, 1) + bytes(32), struct.pack(">II", 8, 1) + bytes(32)),
    # nf_conntrack_proto_dccp.c is gone from this kernel: a protocol without ports.
    DCCP: (struct.pack(">HH", 5000, 5001) + bytes(12), struct.pack(">HH", 5001, 5000) + bytes(12)),
    OTHER: (b"question", b"answer"),
}


@versions
@nats
@pytest.mark.parametrize("proto", [GRE, ESP, DCCP, OTHER], ids=["gre", "esp", "dccp", "other"])
def test_other_protocols_go_on(gateways: Gateways, version: int, nat: str, proto: int) -> None:
    question, answer = PACKETS[proto]
    with Raw(gateways.net, version, nat, proto) as raw:
        assert raw.ask(question) == question
        assert raw.answer(answer) == answer
        entry = gateways.heard(proto)
        gateways.replicate(entry)
        gateways.move_to_b()
        assert raw.answer(answer) == answer, "the server speaks first after the move"
        assert raw.ask(question) == question
        replica = gateways.requests_b.get(entry.key)
        assert replica is not None
        assert replica.reply == entry.reply


@pytest.mark.parametrize("proto", [GRE, OTHER], ids=["gre", "other"])
def test_without_the_replica_they_do_not(gateways: Gateways, proto: int) -> None:
    question, answer = PACKETS[proto]
    with Raw(gateways.net, 4, "snat", proto) as raw:
        raw.ask(question)
        raw.answer(answer)
        gateways.move_to_b()
        raw.ask(question, passes=False)
        raw.answer(answer, passes=False)


@pytest.fixture
def _unchecked(net: World) -> Iterator[None]:
    """nf_conntrack_proto_udp.c, udplite_error, computes the checksum as if it were UDP's: where
    the device has not done it, each packet of UDP-Lite is INVALID."""
    name = "net.netfilter.nf_conntrack_checksum"
    for value in (0, 1):
        for space in (net.a, net.b):
            inside(space, "sysctl", "-qw", f"{name}={value}")
        if not value:
            yield


@versions
@nats
@pytest.mark.usefixtures("_unchecked")
def test_udp_lite_goes_on(gateways: Gateways, version: int, nat: str) -> None:
    path = path_of(gateways.net, version, nat)
    with ExitStack() as stack:
        answerer, opener = (
            stack.enter_context(open_socket(space, version, socket.SOCK_DGRAM, at, UDPLITE))
            for space, at in ((path.answerer, path.listen), (path.opener, path.source))
        )
        target = (path.target, answerer.getsockname()[1])

        def echo(text: bytes) -> object:
            opener.sendto(text, target)
            got, peer = answerer.recvfrom(100)
            assert got == text
            answerer.sendto(got, peer)
            assert opener.recv(100) == text
            return peer

        peer = echo(b"before")
        gateways.replicate(gateways.heard(UDPLITE))
        gateways.move_to_b()
        assert echo(b"after") == peer, "the same translated source"


# -- ICMP queries other than echo


def icmp(kind: int, number: int, payload: bytes) -> bytes:
    head = struct.pack(">BBHHH", kind, 0, 0, number, 1) + payload
    total = sum(struct.unpack(f">{len(head) // 2}H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]


@nats
@pytest.mark.parametrize(
    ("version", "query", "reply"),
    [(4, 13, 14), (4, 15, 16), (4, 17, 18), (6, 139, 140)],
    ids=["timestamp", "information", "mask", "node-information"],
)
def test_icmp_queries_go_on(
    gateways: Gateways, version: int, nat: str, query: int, reply: int
) -> None:
    proto = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with Raw(gateways.net, version, nat, proto) as raw:
        # Neighbours and errors come by raw sockets too: ask for what is ours.
        asked = icmp(query, 0x0A0B, b"%12d" % query)
        got = _icmp_of(raw.ask, asked, query)
        raw.answer(icmp(reply, struct.unpack_from(">H", got, 4)[0], b"%12d" % query))
        entry = next(
            event.entry
            for event in reversed(gateways.events.drain(1000))
            if event.entry.key.orig.dport == query << 8
        )
        gateways.replicate(entry)
        gateways.move_to_b()
        assert _icmp_of(raw.ask, asked, query)[4:6] == got[4:6], "the same id"


def _icmp_of(send: Callable[[bytes], bytes], packet: bytes, kind: int) -> bytes:
    got = send(packet)
    assert got[0] == kind
    return got


# -- zones and labels


@contextmanager
def rules(spaces: tuple[str, ...], text: str) -> Iterator[None]:
    for space in spaces:
        inside(space, "nft", "-f", "-", stdin=f"table inet more {{\n{text}\n}}\n")
    try:
        yield
    finally:
        for space in spaces:
            inside(space, "nft", "delete", "table", "inet", "more")


ZONE = """
  chain zone {
    type filter hook prerouting priority raw;
    ip saddr { 192.0.2.0/24, 198.51.100.0/24 } ct zone set 7
  }
"""
LABEL = """
  chain label {
    type filter hook forward priority filter;
    ct state new ct label set 3
  }
"""


@nats
def test_flows_of_a_zone_go_on_in_it(gateways: Gateways, nat: str) -> None:
    net = gateways.net
    with rules((net.a, net.b), ZONE):
        opener, answerer = connect(path_of(net, 4, nat), 4)
        with opener, answerer:
            both_ways(opener, answerer, 1000)
            entry = gateways.heard(socket.IPPROTO_TCP)
            assert entry.key.zone == 7
            gateways.replicate(entry)
            gateways.move_to_b()
            both_ways(opener, answerer, 100_000)
            assert gateways.requests_b.get(dataclasses.replace(entry.key, zone=0)) is None


def test_labels_come_with_a_look_up_and_go_on(gateways: Gateways) -> None:
    net = gateways.net
    with rules((net.a, net.b), LABEL):
        opener, answerer = connect(path_of(net, 4, "snat"), 4)
        with opener, answerer:
            both_ways(opener, answerer, 1000)
            entry = gateways.heard(socket.IPPROTO_TCP)
            assert entry.labels is None, "the event of ASSURED does not have them"
            whole = gateways.requests_a.get(entry.key)
            assert whole is not None
            gateways.replicate(whole)
            assert kernel_tree(net.b, entry.key)[22] == bytes([8]) + bytes(15)
            gateways.move_to_b()
            both_ways(opener, answerer, 1000)


# -- SYNPROXY

SYNPROXY = """
  chain untracked {
    type filter hook prerouting priority raw;
    tcp dport 5010 tcp flags & (fin | syn | rst | ack) == syn notrack
  }
  chain answer {
    type filter hook forward priority -5;
    tcp dport 5010 ct state { invalid, untracked } synproxy mss 1460 wscale 7 timestamp sack-perm
  }
"""


def proxied(net: World) -> tuple[socket.socket, socket.socket]:
    """A stream whose client shook hands with gateway a."""
    with entered(net.server):
        listener = socket.socket(family_of(4), socket.SOCK_STREAM)
    with listener:
        listener.settimeout(WAIT_S)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVERS[4], 5010))
        listener.listen(1)
        client = open_socket(net.client, 4, socket.SOCK_STREAM, CLIENTS[4][1])
        client.connect((SERVERS[4], 5010))
        server, _ = listener.accept()
    server.settimeout(WAIT_S)
    return client, server


@pytest.mark.parametrize("right", [True, False])
def test_a_stream_through_synproxy_goes_on_with_its_state(gateways: Gateways, right: bool) -> None:
    net = gateways.net
    with rules((net.a, net.b), SYNPROXY):
        client, server = proxied(net)
        with client, server:
            both_ways(client, server, 10_000)
            entry = gateways.requests_a.get(gateways.heard(socket.IPPROTO_TCP).key)
            assert entry is not None
            assert entry.synproxy is not None
            assert entry.synproxy.tsoff
            assert entry.seqadj is not None
            if not right:
                # Timestamps of the server jump back: the client drops what it says (PAWS).
                tsoff = (entry.synproxy.tsoff + (1 << 30)) & 0xFFFFFFFF
                state = dataclasses.replace(entry.synproxy, tsoff=tsoff)
                entry = dataclasses.replace(entry, synproxy=state)
            gateways.replicate(entry)
            gateways.move_to_b()
            if right:
                both_ways(client, server, 300_000)
            else:
                client.settimeout(1.0)
                server.send(b"late")
                with pytest.raises(TimeoutError):
                    client.recv(10)
