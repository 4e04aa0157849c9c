"""Echo requests for `cluster.upstream`, from the node's own address on the segment. Shell.

A raw socket for each check, bound to the device and connected to the address: it receives only
echo replies (ICMP_FILTER, ICMP6_FILTER) from there, over that device. RFC 792 (echo), RFC 4443
section 4 (ICMPv6 echo, whose checksum the kernel fills in). A socket that fails, or whose ask was
not answered, is made anew: its device may be another one by now.
"""

from __future__ import annotations

import os
import socket
import struct

from cluster.checksum import checksum
from cluster.upstream import UpstreamPlan, UpstreamWatch

__all__ = ["UpstreamSockets"]

_ECHO = struct.Struct("!BBHHH")
_ECHO4, _REPLY4, _ECHO6, _REPLY6 = 8, 0, 128, 129
_ICMP_FILTER = 1  # linux/icmp.h, and the option's name at SOL_RAW.
_SOL_RAW = 255
_ICMP6_FILTER = 1
_SO_BINDTODEVICE = 25
_RECEIVE_BYTES = 2048
_DRAIN_MAX = 16


class UpstreamSockets:
    """The asking and hearing of one node's checks."""

    def __init__(self, plans: list[UpstreamPlan], now_ns: int) -> None:
        self._plans = plans
        self._watch = UpstreamWatch(plans, now_ns)
        self._sockets: list[socket.socket | None] = [None] * len(plans)
        self._seqs = [0] * len(plans)
        self._heard = [0] * len(plans)
        self._id = os.getpid() & 0xFFFF

    def descriptors(self) -> list[int]:
        return [at.fileno() for at in self._sockets if at is not None]

    def turn(self, now_ns: int) -> frozenset[tuple[int, str]]:
        """Take answers, ask what is due; the (group, segment) that do not answer."""
        if not self._plans:
            return frozenset()
        for place, opened in enumerate(self._sockets):
            if opened is not None:
                self._take(place, opened)
        for place, seq in self._watch.due(now_ns):
            if self._heard[place] != self._seqs[place]:
                self._drop(place)
            self._seqs[place] = seq
            self._ask(place, seq)
        return self._watch.failing()

    def close(self) -> None:
        for place in range(len(self._plans)):
            self._drop(place)

    def _ask(self, place: int, seq: int) -> None:
        try:
            opened = self._sockets[place]
            if opened is None:
                opened = self._sockets[place] = _open(self._plans[place])
            opened.send(_request(opened.family, self._id, place, seq))
        except OSError:
            self._drop(place)

    def _take(self, place: int, opened: socket.socket) -> None:
        for _ in range(_DRAIN_MAX):
            try:
                packet = opened.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # E.g. EHOSTUNREACH of an ask before.
                return
            seq = _answer(packet, opened.family, self._id, place, self._seqs[place])
            if seq is not None:
                self._heard[place] = seq
                self._watch.answered(place, seq)

    def _drop(self, place: int) -> None:
        opened, self._sockets[place] = self._sockets[place], None
        if opened is not None:
            opened.close()


def _open(plan: UpstreamPlan) -> socket.socket:
    six = ":" in plan.address
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    if six:
        opened = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
    else:
        opened = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, plan.device.encode() + b"\0")
        if six:
            # A set bit blocks the type.
            words = [0xFFFFFFFF] * 8
            words[_REPLY6 >> 5] &= ~(1 << (_REPLY6 & 31))
            opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
            scope = socket.if_nametoindex(plan.device)
            opened.connect((plan.address, 0, 0, scope))
        else:
            blocked = 0xFFFFFFFF & ~(1 << _REPLY4)
            opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", blocked))
            opened.connect((plan.address, 0))
    except OSError:
        opened.close()
        raise
    return opened


def _request(family: int, ident: int, place: int, seq: int) -> bytes:
    kind = _ECHO6 if family == socket.AF_INET6 else _ECHO4
    body = struct.pack("!IQ", place, seq)
    head = _ECHO.pack(kind, 0, 0, ident, seq & 0xFFFF)
    summed = 0 if family == socket.AF_INET6 else checksum(head + body)
    return _ECHO.pack(kind, 0, summed, ident, seq & 0xFFFF) + body


def _answer(packet: bytes, family: int, ident: int, place: int, seq: int) -> int | None:
    """`seq` if the packet is the reply to our ask of that number; an IPv4 one has its header."""
    if family == socket.AF_INET:
        packet = packet[(packet[0] & 0xF) * 4 :] if packet else b""
    wanted = _request(family, ident, place, seq)
    kind = _REPLY6 if family == socket.AF_INET6 else _REPLY4
    # All but type and checksum must come back as it went.
    good = (
        len(packet) >= len(wanted) and packet[0] == kind and packet[4 : len(wanted)] == wanted[4:]
    )
    return seq if good else None
