"""Gratuitous ARP, unsolicited neighbour advertisements and listener reports for VIPs. Shell.

They teach switches which port has the virtual MAC now, and which one wants neighbour solicitations
for it (`cluster.mld`), and hosts the pair of VIP and MAC. Frames are built once; sending one costs
some 10 us. The gate drops them while announce is shut, so a late announcement of a node that lost
its lease goes nowhere.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from cluster.checksum import checksum
from cluster.mld import report_frames
from cluster.vmac import virtual_link_local
from hafw.config.model import ClusterConfig

__all__ = [
    "AnnouncedPort",
    "Announcer",
    "announced_ports",
    "arp_frames",
    "na_frame",
    "port_frames",
]

_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ICMPV6, _NA_TYPE, _TARGET_LINK_LAYER = 58, 136, 2
_NA_ROUTER, _NA_OVERRIDE = 0x8000_0000, 0x2000_0000


@dataclass(frozen=True, slots=True)
class AnnouncedPort:
    """A virtual MAC device and what is announced on it."""

    ifname: str
    mac: str
    vips: tuple[IPv4Address | IPv6Address, ...]


def announced_ports(
    config: ClusterConfig, group_name: str, node_name: str | None = None
) -> list[AnnouncedPort]:
    """The ports of a group; with a node, none unless it is a candidate for the group."""
    group = config.groups[group_name]
    if node_name is not None and node_name not in group.order:
        return []
    return [
        AnnouncedPort(group.device(segment), group.virtual_mac, tuple(vips))
        for segment, vips in sorted(group.vips.items())
    ]


def arp_frames(mac: str, vip: IPv4Address) -> list[bytes]:
    """A gratuitous ARP request and a gratuitous ARP reply (RFC 5944, 4.6): some hosts heed only
    one. 42 bytes each: Ethernet to all, then hardware 1, protocol IPv4, both addresses twice."""
    own = _mac_bytes(mac)
    frames = []
    for operation, target in ((1, bytes(6)), (2, own)):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        arp += own + vip.packed + target + vip.packed
        frames.append(_BROADCAST + own + struct.pack("!H", _ETH_ARP) + arp)
    return frames


def na_frame(mac: str, target: IPv6Address) -> bytes:
    """An unsolicited neighbour advertisement (RFC 4861, 4.4 and 7.2.6) from and for `target`.

    To all nodes, hop limit 255, flags router and override, option target link-layer address.
    86 bytes.
    """
    own = _mac_bytes(mac)
    body = struct.pack("!BBHI", _NA_TYPE, 0, 0, _NA_ROUTER | _NA_OVERRIDE) + target.packed
    body += struct.pack("!BB", _TARGET_LINK_LAYER, 1) + own
    pseudo = target.packed + _ALL_NODES.packed + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255)
    header += target.packed + _ALL_NODES.packed
    return _ALL_NODES_MAC + own + struct.pack("!H", _ETH_IPV6) + header + body


def port_frames(port: AnnouncedPort) -> list[bytes]:
    """All that is announced on one device."""
    frames: list[bytes] = []
    for vip in port.vips:
        match vip:
            case IPv4Address():
                frames += arp_frames(port.mac, vip)
            case IPv6Address():
                frames.append(na_frame(port.mac, vip))
    own = [vip for vip in port.vips if isinstance(vip, IPv6Address)]
    if own:
        link_local = virtual_link_local(port.mac)
        frames.append(na_frame(port.mac, link_local))
        frames += report_frames(port.mac, link_local, [*own, link_local])
    return frames


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Announcer:
    """Sends a group's announcements on its virtual MAC devices."""

    def __init__(self, ports: list[AnnouncedPort]) -> None:
        self._frames = {port.ifname: port_frames(port) for port in ports}
        self._sockets: dict[str, socket.socket] = {}
        self.refused = 0
        """Frames the kernel did not take, since the start: a shut gate, or no device."""

    def announce(self) -> int:
        """Send every frame once; returns how many the kernel took. Never blocks, never raises."""
        sent = 0
        for ifname, frames in self._frames.items():
            for frame in frames:
                try:
                    self._socket(ifname).send(frame)
                    sent += 1
                except OSError as error:
                    self.refused += 1
                    if error.errno not in (errno.ENOBUFS, errno.EAGAIN, errno.ENETDOWN):
                        # The device was made anew: a socket bound to the old one is dead.
                        self._drop(ifname)
        return sent

    def close(self) -> None:
        for ifname in sorted(self._sockets):
            self._drop(ifname)

    def _socket(self, ifname: str) -> socket.socket:
        if ifname not in self._sockets:
            # Protocol 0: it never receives.
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            try:
                raw.bind((ifname, 0))
            except OSError:
                raw.close()
                raise
            self._sockets[ifname] = raw
        return self._sockets[ifname]

    def _drop(self, ifname: str) -> None:
        raw = self._sockets.pop(ifname, None)
        if raw is not None:
            raw.close()
