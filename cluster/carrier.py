"""Which of the node's segments have no carrier: rtnetlink, told at once. Pure parser, thin shell.

`RTM_NEWLINK` (rtnetlink(7)) is a `nlmsghdr` of 16 bytes, an `ifinfomsg` of 16 (family, index and
flags are read), then attributes; `IFLA_IFNAME` is the name. A device carries if it is up, has
carrier and is operational: IFF_UP, IFF_LOWER_UP and IFF_RUNNING. One that is not there does not.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["CarrierWatch", "LinkSeen", "parse_links"]

_HEADER = struct.Struct("=IHHII")
_INFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_IFLA_IFNAME = 3
_CARRIES = 0x1 | 0x40 | 0x10000
_NLM_F_REQUEST_DUMP = 0x1 | 0x300
_RTMGRP_LINK = 1
_RECEIVE_BYTES = 65536
_DRAIN_MAX = 64
"""Messages taken a wake-up; the rest waits for the next."""
_DUMP_MAX = 4096
_DUMP_S_MAX = 0.05


@dataclass(frozen=True, slots=True)
class LinkSeen:
    """A device as one message has it. `gone`: it was removed."""

    index: int
    name: str
    carries: bool
    gone: bool = False


def parse_links(buffer: bytes) -> tuple[list[LinkSeen], bool]:
    """Devices in one datagram of rtnetlink, and whether a dump ends in it. What is cut off or of
    another kind is left out; a bridge's messages about its ports (family AF_BRIDGE) too."""
    seen: list[LinkSeen] = []
    ended = False
    at = 0
    while at + _HEADER.size <= len(buffer):
        length, kind, _, _, _ = _HEADER.unpack_from(buffer, at)
        if length < _HEADER.size or at + length > len(buffer):
            break
        ended = ended or kind in (_NLMSG_DONE, _NLMSG_ERROR)
        body = at + _HEADER.size
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and length >= _HEADER.size + _INFO.size:
            family, _, index, flags, _ = _INFO.unpack_from(buffer, body)
            if family == socket.AF_UNSPEC:
                name = _name(buffer[body + _INFO.size : at + length])
                carries = flags & _CARRIES == _CARRIES
                seen.append(LinkSeen(index, name, carries, kind == _RTM_DELLINK))
        at += (length + 3) & ~3
    return seen, ended


def _name(attributes: bytes) -> str:
    for kind, value in _attributes(attributes):
        if kind == _IFLA_IFNAME:
            return value.rstrip(b"\0").decode(errors="replace")
    return ""


def _attributes(buffer: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(buffer):
        length, kind = _ATTRIBUTE.unpack_from(buffer, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, buffer[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


class CarrierWatch:
    """Of the segments of one node, by name, in the network namespace of who makes it."""

    def __init__(self, devices: Mapping[str, str]) -> None:
        self._devices = dict(devices)
        self._links: dict[int, LinkSeen] = {}
        self._told: frozenset[str] | None = None
        self._dump_due = True
        self.socket = _route_socket(_RTMGRP_LINK)
        self.socket.setblocking(False)

    @property
    def behind(self) -> bool:
        """Something was missed, or could not be asked yet: `take` is due though nothing came."""
        return self._dump_due

    def take(self) -> frozenset[str] | None:
        """The segments without carrier, if they are others than last time; else None."""
        for _ in range(_DRAIN_MAX):
            try:
                buffer = self.socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                self._dump_due = error.errno == errno.ENOBUFS or self._dump_due
                continue
            for link in parse_links(buffer)[0]:
                self._links.pop(link.index, None)
                if not link.gone:
                    self._links[link.index] = link
        if self._dump_due:
            links = _dump()
            if links is None:
                return None  # Tried again at the next wake-up.
            self._links, self._dump_due = links, False
        carrying = {link.name for link in self._links.values() if link.carries}
        down = frozenset(name for name, at in self._devices.items() if at not in carrying)
        if down == self._told:
            return None
        self._told = down
        return down

    def close(self) -> None:
        self.socket.close()


def _route_socket(groups: int) -> socket.socket:
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    made.bind((0, groups))
    return made


def _dump() -> dict[int, LinkSeen] | None:
    """All devices; None if the kernel does not say in time."""
    links: dict[int, LinkSeen] = {}
    request = _HEADER.pack(
        _HEADER.size + _INFO.size, _RTM_GETLINK, _NLM_F_REQUEST_DUMP, 1, 0
    ) + bytes(_INFO.size)
    with _route_socket(0) as asking:
        asking.settimeout(_DUMP_S_MAX)
        try:
            asking.send(request)
            for _ in range(_DUMP_MAX):
                seen, ended = parse_links(asking.recv(_RECEIVE_BYTES))
                links.update((link.index, link) for link in seen)
                if ended:
                    return links
        except OSError:
            return None
    return None
