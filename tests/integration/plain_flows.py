"""Flows without a helper, as a fault meets them: each is opened and used, then used again.

Every one goes through SNAT (a client inside) or DNAT (a client outside), in IPv4 or IPv6. `after`
raises if the flow is broken; the gateways take no new flow by then, so that only replicas help.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import subprocess
import termios
import threading
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from ipaddress import ip_address

from hafw.kernel.netns import entered
from tests.integration.ct_spaces import inside
from tests.integration.helper_world import (
    FAMILY,
    INSIDE,
    OUTSIDE,
    VIP,
    WAIT_S,
    HelperWorld,
    dial,
    listener,
)
from tests.integration.syncd_world import wait_for

__all__ = ["AcksDie", "Flow", "IdleTcp", "OneWayUdp", "Ping", "TooBig", "TwoWayUdp", "Unreachable"]

IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
BURST = bytes(12_000)
"""Several segments, and within the first congestion window (RFC 6928)."""
_turn = threading.Lock()


class Flow(ABC):
    """`translation`: snat or dnat."""

    def __init__(
        self, world: HelperWorld, stack: ExitStack, translation: str, version: int
    ) -> None:
        self.name = f"{type(self).__name__} v{version} {translation}"
        self.world, self.stack, self.version = world, stack, version
        snat = translation == "snat"
        self.near = world.inside if snat else world.outside
        self.far = world.outside if snat else world.inside
        self.own = (INSIDE if snat else OUTSIDE)[version]
        self.there = (OUTSIDE if snat else INSIDE)[version]
        self.target = OUTSIDE[version] if snat else VIP[version]
        self.seen_as = VIP[version] if snat else OUTSIDE[version]
        self.open()

    @abstractmethod
    def open(self) -> None: ...

    def before_cut(self) -> None:  # noqa: B027
        """While gw1 still carries."""

    def after_cut(self) -> None:  # noqa: B027
        """What held packets up is over."""

    @abstractmethod
    def after(self) -> None:
        """Raises AssertionError or OSError."""


class _Udp(Flow):
    def open(self) -> None:
        with _turn:  # One port, many flows: each server is bound while its own is opened.
            self._open()

    def _open(self) -> None:
        kind = socket.SOCK_DGRAM
        door = self.stack.enter_context(listener(self.far, self.version, self.there, 9000, kind))
        self.client = self.stack.enter_context(
            listener(self.near, self.version, self.own, 0, kind)
        )
        self.client.connect((self.target, 9000))
        self.client.send(b"first")
        text, peer = door.recvfrom(100)
        assert (text, peer[0]) == (b"first", self.seen_as)
        self.peer = (str(peer[0]), int(peer[1]))
        # Connected, it has datagrams of this flow only, and leaves the door to others.
        door.connect(self.peer)
        self.server = door

    def asked(self, text: bytes) -> None:
        self.client.send(text)
        assert self.server.recv(100) == text

    def answered(self, text: bytes) -> None:
        self.server.send(text)
        assert self.client.recv(100) == text


class OneWayUdp(_Udp):
    """Nobody ever answers; the port that the translation chose must stay."""

    def after(self) -> None:
        self.asked(b"again")


class TwoWayUdp(_Udp):
    """The server speaks first afterwards."""

    def open(self) -> None:
        super().open()
        self.answered(b"yes")

    def after(self) -> None:
        self.answered(b"still there")
        self.asked(b"yes")


class Unreachable(TwoWayUdp):
    """The server goes; its host says so to the VIP, and that must reach the client."""

    def after(self) -> None:
        self.server.close()
        self.client.send(b"anyone?")
        try:
            self.client.recv(100)
        except ConnectionRefusedError:
            return
        raise AssertionError("an answer from nobody")


class TooBig(TwoWayUdp):
    """A router behind the server's side says that a packet of the flow was too big for it: the
    first packet of the flow that a new gateway sees."""

    mtu = 1400

    def open(self) -> None:
        super().open()
        v6 = self.version == 6
        level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        name = IPV6_MTU_DISCOVER if v6 else IP_MTU_DISCOVER
        self.client.setsockopt(level, name, IP_PMTUDISC_DO)

    def after(self) -> None:
        self.mtu -= 10
        kind = socket.IPPROTO_ICMPV6 if self.version == 6 else socket.IPPROTO_ICMP
        with entered(self.far), socket.socket(FAMILY[self.version], socket.SOCK_RAW, kind) as raw:
            raw.sendto(self._error(), (self.peer[0], 0))
        wait_for(lambda: f"MTU {self.mtu}, not {self._mtu()}", lambda: self._mtu() == self.mtu, 2)

    def _mtu(self) -> int:
        v6 = self.version == 6
        level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        return self.client.getsockopt(level, IPV6_MTU if v6 else IP_MTU)

    def _error(self) -> bytes:
        source, target = ip_address(self.peer[0]).packed, ip_address(self.there).packed
        udp = struct.pack(">HHHH", self.peer[1], 9000, 1408, 0)
        if self.version == 6:
            inner = struct.pack(">IHBB", 6 << 28, 1408, 17, 60) + source + target + udp
            return struct.pack(">BBHI", 2, 0, 0, self.mtu) + inner
        header = struct.pack(">BBHHHBBH", 0x45, 0, 1428, 1, 0x4000, 60, 17, 0) + source + target
        header = header[:10] + _checksum(header) + header[12:]
        body = struct.pack(">BBHHH", 3, 4, 0, 0, self.mtu) + header + udp
        return body[:2] + _checksum(body) + body[4:]


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


class Ping(Flow):
    """ping(8): the same identifier before and after."""

    def open(self) -> None:
        argv = ["nsenter", f"--net=/run/netns/{self.near}", "ping", "-n", "-i", "0.1"]
        self.process = subprocess.Popen([*argv, self.target], stdout=subprocess.PIPE, text=True)
        self.stack.callback(self._end)
        self._read = 0
        self._reader = threading.Thread(target=self._count, daemon=True)
        self._reader.start()
        self.after()

    def _count(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._read += bool(re.search(r"icmp_seq=\d+ ttl=", line))

    def _end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def after(self) -> None:
        before = self._read
        wait_for("three replies", lambda: self._read >= before + 3, WAIT_S)


class _Tcp(Flow):
    def open(self) -> None:
        with (
            _turn,
            listener(self.far, self.version, self.there, 8080, socket.SOCK_STREAM) as door,
        ):
            self.client = self.stack.enter_context(
                dial(self.near, self.version, self.target, 8080)
            )
            self.server = self.stack.enter_context(door.accept()[0])
        self.server.settimeout(WAIT_S)
        self.exchange(self.client, self.server)

    def exchange(self, one: socket.socket, other: socket.socket) -> None:
        for sender, receiver, text in ((one, other, b"question"), (other, one, b"answer")):
            sender.sendall(text)
            assert _read(receiver, len(text)) == text


class IdleTcp(_Tcp):
    """Silent for `idle_s` before it is used again, by either side first."""

    idle_s = 1.0

    def open(self) -> None:
        super().open()
        self.used_at = time.monotonic()

    def after(self) -> None:
        time.sleep(max(0.0, self.used_at + self.idle_s - time.monotonic()))
        ends = (self.client, self.server) if self.version == 4 else (self.server, self.client)
        self.exchange(*ends)
        self.used_at = time.monotonic()


class AcksDie(_Tcp):
    """The server's burst arrives, its ACKs die with gw1, and it retransmits what is old. A strict
    replica would learn its windows from that one old segment, and refuse every ACK for ever."""

    def before_cut(self) -> None:
        port = self.client.getsockname()[1]
        rules = f"""
            table inet dark {{
              chain in {{
                type filter hook prerouting priority -400;
                tcp sport {port} tcp dport 8080 drop
              }}
            }}
        """
        inside(self.world.cluster[1].space, "nft", "-f", "-", stdin=rules)
        self.server.sendall(BURST)
        assert len(_read(self.client, len(BURST))) == len(BURST)
        assert _unacknowledged(self.server) > 0

    def after_cut(self) -> None:
        gone = "add table inet dark\ndelete table inet dark\n"  # It may be gone already.
        inside(self.world.cluster[1].space, "nft", "-f", "-", stdin=gone)

    def after(self) -> None:
        wait_for(
            lambda: f"all acknowledged but {_unacknowledged(self.server)} bytes",
            lambda: _unacknowledged(self.server) == 0,
            WAIT_S,
        )
        self.exchange(self.client, self.server)


def _read(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = sock.recv(count - len(got))
        assert part, "the stream ended"
        got += part
    return got


def _unacknowledged(sock: socket.socket) -> int:
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("=i", answer)[0])
