"""The sockets of the lease loop. Shell.

One UDP socket for each link and each segment, bound to its device, so that a path is a path: the
routing table cannot move a heartbeat to another link. Everything for all goes out on every path by
multicast (224.0.0.0/24 is always flooded by switches) and by unicast to every peer (networks that
drop multicast); everything for one peer by unicast on every path.

An error of one path is counted and never ends the loop: cables are pulled, devices vanish and come
back with another index. The latter are bound again within `_REBIND_NS`.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.heartbeat import DATAGRAM_BYTES_MAX
from cluster.meters import FirstCopy
from hafw.config.model import ClusterConfig
from hafw.messages import DATAGRAM_BYTES_MAX as LOCAL_BYTES_MAX

__all__ = ["LinkSockets", "LocalSocket", "PathPlan", "Recent", "plan_paths"]

_REBIND_NS = 200_000_000
_DRAIN_MAX = 64
"""Datagrams taken from one socket a wake-up: a flood on one path must not hold the loop."""
_SO_BINDTODEVICE = 25
_TAKEN_BYTES = DATAGRAM_BYTES_MAX + 1
"""One more than allowed, so that an oversized datagram shows."""
RECENT_MAX = 256
"""Datagrams remembered, so that copies over other paths are dropped by comparing bytes."""
_PRIORITY = 6
_TOS_CS6 = 0xC0


@dataclass(frozen=True, slots=True)
class PathPlan:
    """One path: its name (of the link or segment), the device, and the peers' addresses on it."""

    name: str
    device: str
    peers: dict[int, str] = field(default_factory=dict)
    link: bool = False


def plan_paths(config: ClusterConfig, node_name: str) -> list[PathPlan]:
    """Every link and every IPv4 segment of the node, with the peers that have the same one."""
    own = config.nodes[node_name]
    plans: list[PathPlan] = []
    others = [node for name, node in config.nodes.items() if name != node_name]
    for name, link in own.links.items():
        peers = {
            node.id: str(node.links[name].address.ip) for node in others if name in node.links
        }
        plans.append(PathPlan(name, link.device, peers, link=True))
    for name, port in own.segments.items():
        if port.ipv4 is None:
            continue
        on_segment = {
            node.id: node.segments[name].ipv4 for node in others if name in node.segments
        }
        peers = {node: str(at.ip) for node, at in on_segment.items() if at is not None}
        plans.append(PathPlan(name, port.device, peers))
    return plans


class _Path:
    """The socket of one path, made anew when its device is."""

    def __init__(self, plan: PathPlan, multicast: str, port: int) -> None:
        self.plan = plan
        self._multicast = multicast
        self._port = port
        self.socket: socket.socket | None = None
        self._ifindex = 0
        self._everybody = [(multicast, port), *((at, port) for at in plan.peers.values())]
        self._one = {node: [(at, port)] for node, at in plan.peers.items()}

    def check(self, counters: Counter[str]) -> None:
        """Open, or open again if the device is another one by now."""
        try:
            ifindex = socket.if_nametoindex(self.plan.device)
        except OSError:
            ifindex = 0
        if ifindex == self._ifindex and (self.socket is not None or not ifindex):
            return
        self.close()
        self._ifindex = ifindex
        if not ifindex:
            counters["paths_lost"] += 1
            return
        try:
            self.socket = self._open(ifindex)
        except OSError:
            counters["path_open_failed"] += 1

    def _open(self, ifindex: int) -> socket.socket:
        opened = socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            # The device first: sockets of other devices then do not stand in the port's way.
            opened.setsockopt(
                socket.SOL_SOCKET, _SO_BINDTODEVICE, self.plan.device.encode() + b"\0"
            )
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _TOS_CS6)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            # struct ip_mreqn: group, address, ifindex.
            group = ipaddress.IPv4Address(self._multicast).packed
            request = struct.pack("=4s4si", group, b"\0" * 4, ifindex)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
            opened.bind(("", self._port))
        except OSError:
            opened.close()
            raise
        return opened

    def send(self, datagram: bytes, to: int, counters: Counter[str]) -> None:
        if self.socket is None:
            return
        give = self.socket.sendto
        for target in self._one.get(to, ()) if to else self._everybody:
            try:
                give(datagram, target)
            except OSError:
                counters["send_errors"] += 1

    def receive(self, into: list[tuple[bytes, str]], counters: Counter[str]) -> None:
        if self.socket is None:
            return
        take, name = self.socket.recv, self.plan.name
        for _ in range(_DRAIN_MAX):
            try:
                datagram = take(_TAKEN_BYTES)
            except BlockingIOError:
                return
            except OSError:
                counters["receive_errors"] += 1  # E.g. ENETDOWN: told once per socket.
                return
            into.append((datagram, name))

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class LinkSockets:
    """All paths of the node."""

    def __init__(
        self, plans: list[PathPlan], *, multicast: str, port: int, counters: Counter[str]
    ) -> None:
        self._counters = counters
        self._paths = [_Path(plan, multicast, port) for plan in plans]
        self._check_ns = 0
        self._by_fd: dict[int, _Path] = {}

    def check(self, now_ns: int) -> bool:
        """Look after vanished and returned devices; True if it was time to."""
        if now_ns < self._check_ns:
            return False
        self._check_ns = now_ns + _REBIND_NS
        for path in self._paths:
            path.check(self._counters)
        self._by_fd = {
            path.socket.fileno(): path for path in self._paths if path.socket is not None
        }
        return True

    def from_a_node(self, path: str, fault: str) -> bool:
        """Whether a datagram that cannot be read must be a node's all the same: it has our key, or
        our cluster's header and came over a link, where nobody else is."""
        links = [at.plan.name for at in self._paths if at.plan.link]
        return fault == "malformed" or (fault in ("bad_tag", "wrong_version") and path in links)

    def descriptors(self) -> Iterable[int]:
        """Of the sockets that were open at the last `check`."""
        return self._by_fd

    def peers_of(self) -> list[PathPlan]:
        return [path.plan for path in self._paths]

    def send(self, datagram: bytes, to: int) -> None:
        for path in self._paths:
            path.send(datagram, to, self._counters)

    def receive(self, ready: Iterable[int]) -> list[tuple[bytes, str]]:
        """All that is there on the descriptors of `ready` that are ours, as (datagram, path
        name)."""
        datagrams: list[tuple[bytes, str]] = []
        for descriptor in ready:
            path = self._by_fd.get(descriptor)
            if path is not None:
                path.receive(datagrams, self._counters)
        return datagrams

    def close(self) -> None:
        for path in self._paths:
            path.close()


class Recent:
    """The datagrams authenticated last."""

    def __init__(self) -> None:
        self._known: dict[bytes, FirstCopy] = {}
        self._order: deque[bytes] = deque()
        self.find: Callable[[bytes], FirstCopy | None] = self._known.get
        """The first copy of the same bytes. Asked of everything that comes in: no call more."""

    def add(self, datagram: bytes, first: FirstCopy) -> None:
        self._known[datagram] = first
        self._order.append(datagram)
        if len(self._order) > RECENT_MAX:
            self._known.pop(self._order.popleft(), None)


class LocalSocket:
    """The Unix datagram socket: syncd, hafwd and hafwctl."""

    def __init__(self, path: Path, counters: Counter[str]) -> None:
        """The caller holds leased's lock, so a file that is there is a dead process'."""
        self._path = path
        self._counters = counters
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        with suppress(FileNotFoundError):
            path.unlink()
        self.socket.bind(str(path))
        path.chmod(0o600)

    def receive(self) -> list[tuple[bytes, str]]:
        """(datagram, address of the sender or "") of all that is there."""
        datagrams: list[tuple[bytes, str]] = []
        for _ in range(_DRAIN_MAX):
            try:
                datagram, sender = self.socket.recvfrom(LOCAL_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                self._counters["local_receive_errors"] += 1
                break
            datagrams.append((datagram, sender if isinstance(sender, str) else ""))
        return datagrams

    def send(self, datagram: bytes, to: str) -> bool:
        """False if nobody is there or its queue is full; a state is sent again anyway."""
        if not to:
            return False
        try:
            self.socket.sendto(datagram, to)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()
        with suppress(FileNotFoundError):
            self._path.unlink()
