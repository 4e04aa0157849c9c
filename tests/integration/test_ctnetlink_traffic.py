"""A replica that went event -> delta -> creation carries real packets: strict TCP, IPv4 and IPv6.

Gateway a translates and is heard; gateway b has nat hooks but no rule that translates, and drops
every new or invalid packet. What passes b passes because of the replica.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from hafw.flow import TCP_FLAG_BE_LIBERAL, FlowEntry, FlowKey
from hafw.kernel.netns import entered
from sync.ctnetlink import EventKind, build_create, clear_liberal, tcp_is_learnt
from sync.ctsocket import EventSocket, RequestSocket
from sync.delta import Upsert, Version, decode_deltas, encode_delta
from tests.integration.ct_spaces import World, inside, world

pytestmark = pytest.mark.integration

WAIT_S = 5.0
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as one:
        yield one


@dataclass
class Gateways:
    """Both gateways' conntrack, and the flows heard on a."""

    net: World
    events: EventSocket
    requests_a: RequestSocket
    requests_b: RequestSocket

    def heard(self, proto: int) -> FlowEntry:
        """The one flow of `proto` as a's events told it last."""
        known: dict[FlowKey, FlowEntry] = {}
        for event in self.events.drain(1000):
            if event.entry.key.orig.proto != proto:
                continue
            if event.kind is EventKind.DESTROY:
                known.pop(event.entry.key, None)
            else:
                known[event.entry.key] = event.entry
        (entry,) = known.values()
        return entry

    def replicate(self, entry: FlowEntry) -> None:
        (delta,) = decode_deltas(encode_delta(Upsert(entry, 1, Version(1, 1))))
        assert isinstance(delta, Upsert)
        assert self.requests_b.execute([build_create(delta.entry, hold_s=900)]) == [0]

    def move_to_b(self) -> None:
        self.net.carry(self.net.b)


@pytest.fixture
def gateways(net: World) -> Iterator[Gateways]:
    net.carry(net.a)
    with ExitStack() as stack:
        for name in (net.a, net.b):
            inside(name, "conntrack", "-F")
        with entered(net.a):
            events = stack.enter_context(EventSocket())
            requests_a = stack.enter_context(RequestSocket())
        with entered(net.b):
            requests_b = stack.enter_context(RequestSocket())
        yield Gateways(net, events, requests_a, requests_b)


CLIENTS = {4: ("192.0.2.10", "192.0.2.11"), 6: ("2001:db8:1::10", "2001:db8:1::11")}
SERVERS = {4: "198.51.100.10", 6: "2001:db8:2::10"}
VIPS = {4: ("198.51.100.254", "198.51.100.253"), 6: ("2001:db8:2::fe", "2001:db8:2::fd")}


@dataclass(frozen=True)
class Path:
    """Who opens the flow, towards which address, and who answers."""

    opener: str
    source: str
    target: str
    answerer: str
    listen: str


def path_of(net: World, version: int, nat: str) -> Path:
    translated, plain = CLIENTS[version]
    server, (vip, vip_in) = SERVERS[version], VIPS[version]
    return {
        "plain": Path(net.client, plain, server, net.server, server),
        "snat": Path(net.client, translated, server, net.server, server),
        "dnat": Path(net.server, server, vip, net.client, translated),
        "both": Path(net.client, translated, vip_in, net.server, server),
    }[nat]


def family_of(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def open_socket(
    space: str, version: int, kind: int, address: str, proto: int = 0
) -> socket.socket:
    with entered(space):
        sock = socket.socket(family_of(version), kind, proto)
    sock.settimeout(WAIT_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 0))
    return sock


def both_ways(one: socket.socket, two: socket.socket, size: int) -> None:
    """`size` random bytes in each direction, checked; small enough for the socket buffers."""
    for sender, receiver in ((one, two), (two, one)):
        sent = os.urandom(size)
        got = bytearray()
        view = memoryview(sent)
        while len(got) < size:
            if view:
                view = view[sender.send(view[:16384]) :]
            got += receiver.recv(min(65536, size - len(got)))
        assert bytes(got) == sent


def connect(path: Path, version: int) -> tuple[socket.socket, socket.socket]:
    listener = open_socket(path.answerer, version, socket.SOCK_STREAM, path.listen)
    with listener:
        listener.listen(1)
        port = listener.getsockname()[1]
        opener = open_socket(path.opener, version, socket.SOCK_STREAM, path.source)
        try:
            opener.connect((path.target, port))
        except OSError:
            opener.close()
            raise
        answerer, _ = listener.accept()
        answerer.settimeout(WAIT_S)
    return opener, answerer


NATS = ("plain", "snat", "dnat", "both")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nat", NATS)
def test_a_tcp_stream_goes_on_through_the_replica(
    gateways: Gateways, version: int, nat: str
) -> None:
    opener, answerer = connect(path_of(gateways.net, version, nat), version)
    with opener, answerer:
        both_ways(opener, answerer, 200_000)
        entry = gateways.heard(TCP)
        assert entry.status & 4, "the last event of an established flow says ASSURED"
        gateways.replicate(entry)
        gateways.move_to_b()
        both_ways(opener, answerer, 300_000)

        replica = gateways.requests_b.get(entry.key)
        assert replica is not None
        assert replica.reply == entry.reply
        assert tcp_is_learnt(replica), "an ACK in each direction has passed"
        assert gateways.requests_b.execute([clear_liberal(entry.key)]) == [0]
        both_ways(answerer, opener, 300_000)
        strict = gateways.requests_b.get(entry.key)
        assert strict is not None
        assert strict.tcp is not None
        assert not (strict.tcp.flags_orig | strict.tcp.flags_reply) & TCP_FLAG_BE_LIBERAL
        # It still follows the flow: the end of it is seen.
        opener.close()
        assert answerer.recv(1) == b""
        answerer.close()
        _wait_for_state(gateways, entry.key, 7)


def _wait_for_state(gateways: Gateways, key: FlowKey, state: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        replica = gateways.requests_b.get(key)
        assert replica is not None
        assert replica.tcp is not None
        if replica.tcp.state == state:
            return
        assert time.monotonic() < deadline, f"TCP state {replica.tcp.state}, waited for {state}"
        time.sleep(0.02)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nat", NATS)
def test_udp_goes_on_through_the_replica(gateways: Gateways, version: int, nat: str) -> None:
    path = path_of(gateways.net, version, nat)
    answerer = open_socket(path.answerer, version, socket.SOCK_DGRAM, path.listen)
    opener = open_socket(path.opener, version, socket.SOCK_DGRAM, path.source)
    with opener, answerer:
        target = (path.target, answerer.getsockname()[1])
        peer = _echo(opener, answerer, target, b"before")
        gateways.replicate(gateways.heard(UDP))
        gateways.move_to_b()
        assert _echo(opener, answerer, target, b"after") == peer, "the same translated source"


def _echo(
    opener: socket.socket, answerer: socket.socket, target: tuple[str, int], text: bytes
) -> tuple[str, int]:
    opener.sendto(text, target)
    got, peer = answerer.recvfrom(100)
    assert got == text
    answerer.sendto(got[::-1], peer)
    got, source = opener.recvfrom(100)
    assert got == text[::-1]
    assert source[:2] == target, "the answer comes from the address that was asked"
    return peer[0], peer[1]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nat", ["plain", "snat", "both"])
def test_ping_goes_on_through_the_replica(gateways: Gateways, version: int, nat: str) -> None:
    path = path_of(gateways.net, version, nat)
    proto = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with open_socket(path.opener, version, socket.SOCK_DGRAM, path.source, proto) as opener:
        _ping(opener, version, path.target, 1)
        gateways.replicate(gateways.heard(proto))
        gateways.move_to_b()
        _ping(opener, version, path.target, 2)


def _ping(opener: socket.socket, version: int, target: str, sequence: int) -> None:
    request = struct.pack(">BBHHH", 8 if version == 4 else 128, 0, 0, 0, sequence) + b"payload"
    opener.sendto(request, (target, 0))
    answer, source = opener.recvfrom(100)
    assert answer[0] == (0 if version == 4 else 129)
    assert answer[6:] == request[6:]
    assert source[0] == target


@pytest.mark.parametrize("version", [4, 6])
def test_without_the_replica_nothing_passes(gateways: Gateways, version: int) -> None:
    """The tests above can fail."""
    opener, answerer = connect(path_of(gateways.net, version, "snat"), version)
    with opener, answerer:
        both_ways(opener, answerer, 1000)
        gateways.move_to_b()
        answerer.settimeout(1.0)
        opener.send(b"lost")
        with pytest.raises(TimeoutError):
            answerer.recv(1)


def test_a_replica_whose_reply_is_the_events_would_not_translate(gateways: Gateways) -> None:
    """Why a creation states the plain inverse: the kernel takes the other form, and is silent."""
    opener, answerer = connect(path_of(gateways.net, 4, "snat"), 4)
    with opener, answerer:
        both_ways(opener, answerer, 1000)
        entry = gateways.heard(TCP)
        assert gateways.requests_b.execute([_wrong_form(entry)]) == [0]
        gateways.move_to_b()
        answerer.settimeout(1.0)
        opener.send(b"lost")
        with pytest.raises(TimeoutError):
            answerer.recv(1)


def _wrong_form(entry: FlowEntry) -> bytes:
    """A creation with CTA_TUPLE_REPLY as the event has it."""
    right = build_create(entry)
    reply = entry.reply
    start = 20 + 52
    nest = bytearray(right[start : start + 52])
    assert nest[2] == 2, "the second attribute is the reply tuple"
    nest[12:16], nest[20:24] = reply.src, reply.dst
    nest[40:42], nest[48:50] = struct.pack(">H", reply.sport), struct.pack(">H", reply.dport)
    return right[:start] + bytes(nest) + right[start + 52 :]
