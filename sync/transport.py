"""syncd's UDP sockets: multicast and unicast over every link of the node, unicast over segments.

Two sockets a link, both tied to its device: one bound to the link's own address, which sends
everything and hears unicast; one bound to the multicast group (none where `sync.transport` is
unicast). Both hear the addresses of the link's peers alone. A link whose device or address is
missing, or comes back with another interface index, is opened again once a second; the others go
on. What is for all goes to the multicast group of each link, and to those peers one by one that
`sync.paths` has found deaf to it. A segment has one socket, for unicast; but for probes nothing
goes over it, until `sync.detour` says that no link reaches a peer: then all that is for that peer
goes over its segment as well. Nothing here is parsed.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from hafw.config.model import ClusterConfig
from hafw.config.segments import segment_ways
from sync.detour import segment_name
from sync.peer_filter import peer_filter
from sync.sockets import attach_filter

__all__ = ["DATAGRAM_BYTES_MAX", "REOPEN_S", "Transport", "Way"]

Way = tuple[str, bool]
"""How a datagram came: the link or segment, and whether by multicast."""

DATAGRAM_BYTES_MAX = 2048
RCVBUF_BYTES = 16 << 20
SNDBUF_BYTES = 4 << 20
REOPEN_S = 1.0
PRIORITY = 6
"""TC_PRIO_INTERACTIVE: before bulk on the same link (sch_prio, pfifo_fast)."""
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_SO_BINDTODEVICE = 25
_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("=16si20x")


@dataclass(slots=True)
class _Link:
    name: str
    device: str
    address: str
    index: int = 0
    own: socket.socket | None = None
    group: socket.socket | None = None
    problem: str = ""
    peers: tuple[str, ...] = ()
    """Their addresses on this link."""
    segment: bool = False

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def close(self) -> None:
        for sock in (self.own, self.group):
            if sock is not None:
                sock.close()
        self.own = self.group = None


class Transport:
    """All links of one node."""

    def __init__(self, config: ClusterConfig, node_name: str) -> None:
        node = config.nodes[node_name]
        self._port = config.sync.port
        self._multicast = str(config.sync.multicast)
        self._peers: dict[int, dict[str, str]] = {
            peer.id: {name: str(link.address.ip) for name, link in peer.links.items()}
            for name, peer in config.nodes.items()
            if name != node_name and peer.role == "gateway"
        }
        self._links = [
            _Link(
                name, link.device, str(link.address.ip),
                peers=tuple(k[name] for k in self._peers.values() if name in k),
            )
            for name, link in sorted(node.links.items())
        ]  # fmt: skip
        for way in segment_ways(config, node_name):
            name = segment_name(way.segment)
            of = {peer: str(at) for peer, at in way.peers.items() if peer in self._peers}
            for peer, address in of.items():
                self._peers[peer][name] = address
            self._links.append(
                _Link(name, way.device, str(way.own), peers=tuple(of.values()), segment=True)
            )
        self._away: dict[int, str] = {}
        self.unicast_only = config.sync.transport == "unicast"
        self._by_unicast: frozenset[tuple[int, str]] = frozenset()
        self._ways: dict[socket.socket, Way] = {}
        self._next_reopen = 0.0
        self.counters: Counter[str] = Counter()
        self.generation = 0
        """Changes whenever the set of sockets does."""
        self._aim: Callable[[list[tuple[int, bytes, int]]], None] | None = None
        self._aimed: list[_Link] = []

    @property
    def peer_ids(self) -> list[int]:
        return sorted(self._peers)

    @property
    def shared(self) -> dict[int, list[str]]:
        """The links shared with each peer."""
        names = {link.name for link in self._links if not link.segment}
        return {peer: sorted(names & of.keys()) for peer, of in sorted(self._peers.items())}

    @property
    def segments(self) -> dict[int, list[str]]:
        """The segments shared with each peer, as ways, the best first."""
        names = [link.name for link in self._links if link.segment]
        return {peer: [n for n in names if n in of] for peer, of in sorted(self._peers.items())}

    def detour(self, away: Mapping[int, str]) -> None:
        """These peers no link reaches; all that is for them goes over this segment as well, and
        questions over all segments."""
        if away != self._away:
            self._away = dict(away)
            self._tell_aim()

    def addresses_to(self, peer_id: int) -> list[tuple[str, str, str]]:
        """Name, own and peer's address of each way that may bring an answer: the links, or the
        segment that stands in for them."""
        over = self._away.get(peer_id)
        of = self._peers[peer_id]
        return [
            (link.name, link.address, of[link.name])
            for link in self._links
            if link.name in of and (link.name == over if over else not link.segment)
        ]

    def addresses_on(self, segments: Collection[str]) -> set[str]:
        """The node's own, on these ways."""
        return {link.address for link in self._links if link.name in segments}

    def device(self, link_name: str) -> str:
        return next(link.device for link in self._links if link.name == link_name)

    def way(self, sock: socket.socket) -> Way | None:
        """How what this socket hears has come."""
        return self._ways.get(sock)

    def direct(self, by_unicast: frozenset[tuple[int, str]]) -> None:
        """What is for all goes by unicast too, or alone, to these peers over these links."""
        if by_unicast != self._by_unicast:
            self._by_unicast = by_unicast
            self._tell_aim()

    @property
    def link_count(self) -> int:
        return sum(not link.segment for link in self._links)

    def aim(self, aim: Callable[[list[tuple[int, bytes, int]]], None]) -> None:
        """Tell this one now and whenever it changes where `to_all` sends: descriptor,
        address and port of each."""
        self._aim = aim
        self._tell_aim()

    def _tell_aim(self) -> None:
        if self._aim is None:
            return
        targets = self._targets()
        self._aimed = [link for link, _ in targets]
        self._aim([
            (link.own.fileno(), ip_address(address).packed, self._port)
            for link, address in targets if link.own is not None
        ])  # fmt: skip

    def _targets(self) -> list[tuple[_Link, str]]:
        """Where what is for all goes, over links that are open."""
        return [
            (link, address)
            for link in self._links
            if link.own is not None
            for address in (
                *(() if self.unicast_only or link.segment else (self._multicast,)),
                *(
                    of[link.name]
                    for peer, of in self._peers.items()
                    if (peer, link.name) in self._by_unicast or self._away.get(peer) == link.name
                ),
            )
        ]

    def on_failed(self, failures: Sequence[tuple[int, int, int]]) -> None:
        """Of what somebody else sent there: its place, errno, datagrams."""
        for place, code, count in failures:
            name = errno.errorcode.get(code, "E?")
            self.counters[f"send_{self._aimed[place].name.replace(' ', '_')}_{name}"] += count

    def sockets(self) -> list[socket.socket]:
        return [s for link in self._links for s in (link.own, link.group) if s is not None]

    def problems(self) -> list[str]:
        """What keeps links from working, for the status."""
        return [
            f"sync link {link.name} ({link.device}, {link.address}): {link.problem}"
            for link in self._links
            if link.problem and not link.segment  # Of segments leased and hafwd tell.
        ]

    def refresh(self, *, now: float) -> None:
        """Open what is not open, once a second."""
        if now < self._next_reopen:
            return
        self._next_reopen = now + REOPEN_S
        before = self.generation
        self._reopen()
        if self.generation != before:
            self._tell_aim()

    def _reopen(self) -> None:
        for link in self._links:
            try:
                index = _device_index(link)
            except OSError as error:
                # Not known (no descriptor to ask with): what is open goes on.
                self._count("device_index", error)
                if link.own is None:
                    link.problem = f"{error.strerror or error}"
                continue
            if link.own is not None and link.index == index:
                link.problem = "" if _is_there(link) else "the device has no such address"
                continue
            if link.own is not None:
                self._shut(link)
                self.generation += 1
            link.index = index
            if index == 0:
                link.problem = "device does not exist"
                continue
            try:
                self._open(link)
            except OSError as error:
                self._shut(link)
                link.problem = f"{error.strerror or error}"
            else:
                link.problem = ""
                self.generation += 1

    def _shut(self, link: _Link) -> None:
        link.close()
        self._ways = {sock: way for sock, way in self._ways.items() if way[0] != link.name}

    def close(self) -> None:
        for link in self._links:
            self._shut(link)
        self._tell_aim()

    def receive(self, sock: socket.socket, limit: int) -> list[bytes]:
        """Up to `limit` waiting datagrams."""
        datagrams: list[bytes] = []
        for _ in range(limit):
            try:
                datagrams.append(sock.recv(DATAGRAM_BYTES_MAX))
            except BlockingIOError:
                break
            except OSError as error:
                self.receive_failed(error)
                break
        return datagrams

    def receive_failed(self, error: OSError) -> None:
        """A socket that waits again, or for ever: its link is opened anew if it is gone."""
        self._count("receive", error)

    def to_all(self, datagram: bytes) -> None:
        """Over every link, and to whom they do not reach: a receiver drops the copies by seq."""
        for link, address in self._targets():
            self._send(link, datagram, address)

    def over(self, peer_id: int, link_name: str, datagram: bytes) -> None:
        """By unicast over this link or segment."""
        for link in self._links:
            if link.name == link_name:
                self._send(link, datagram, self._peers[peer_id][link_name])

    def unicast(self, peer_id: int, datagram: bytes, *, attempt: int) -> None:
        """Over one link; another `attempt` takes the next one. Where links do not reach, over the
        segment too."""
        addresses, over = self._peers[peer_id], self._away.get(peer_id)
        ways = [k for k in self._links if k.own is not None and k.name in addresses]
        usable = [link for link in ways if not link.segment]
        chosen = [usable[attempt % len(usable)]] if usable else []
        chosen += [link for link in ways if link.name == over]
        if not chosen:
            self.counters["send_no_link"] += 1
        for link in chosen:
            self._send(link, datagram, addresses[link.name])

    def unicast_everywhere(self, peer_id: int, datagram: bytes) -> None:
        """Over every link: for the few questions and answers that all else waits for. Where links
        do not reach, over every segment too: none is heard before it has brought an answer."""
        for link in self._links:
            address = self._peers[peer_id].get(link.name)
            if address is not None and (not link.segment or peer_id in self._away):
                self._send(link, datagram, address)

    def _send(self, link: _Link, datagram: bytes, address: str) -> None:
        if link.own is None:
            return
        try:
            link.own.sendto(datagram, (address, self._port))
        except OSError as error:
            # A full buffer, a link without carrier: loss, repaired like loss.
            self._count(f"send_{link.name.replace(' ', '_')}", error)

    def _count(self, what: str, error: OSError) -> None:
        self.counters[f"{what}_{errno.errorcode.get(error.errno or 0, 'E?')}"] += 1

    def _open(self, link: _Link) -> None:
        link.own = self._socket(link, link.address)
        self._ways[link.own] = link.name, False
        if link.segment:
            _keep_on_segment(link.own)
            return
        for option, value in (
            (socket.IP_MULTICAST_TTL, struct.pack("=I", 1)),
            (socket.IP_MULTICAST_LOOP, struct.pack("=I", 0)),
            # struct ip_mreqn: group, local address, interface index.
            (socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), link.index)),
        ):
            link.own.setsockopt(socket.IPPROTO_IP, option, value)
        if self.unicast_only:
            return
        link.group = self._socket(link, self._multicast)
        self._ways[link.group] = link.name, True
        membership = struct.pack("=4s4si", socket.inet_aton(self._multicast), bytes(4), link.index)
        link.group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def _socket(self, link: _Link, address: str) -> socket.socket:
        sock = socket.socket(link.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, link.device.encode() + b"\0")
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RCVBUF_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SNDBUF_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
            attach_filter(sock, peer_filter(link.peers))
            sock.bind((address, self._port))
        except OSError:
            sock.close()
            raise
        return sock


def _keep_on_segment(sock: socket.socket) -> None:
    """A router that is given one of these drops it."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)


def _is_there(link: _Link) -> bool:
    """Does this node have the address? A socket bound to one that was taken away stays bound."""
    try:
        with socket.socket(link.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.bind((link.address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _device_index(link: _Link) -> int:
    """0 if there is no such device. Raises OSError if that cannot be told. `if_nametoindex`
    makes a socket each time and does not say whether it was that which failed."""
    request = _IFREQ.pack(link.device.encode(), 0)
    try:
        if link.own is not None:
            answer = fcntl.ioctl(link.own, _SIOCGIFINDEX, request)
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                answer = fcntl.ioctl(sock, _SIOCGIFINDEX, request)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return 0
        raise
    index: int = _IFREQ.unpack(answer)[1]
    return index
