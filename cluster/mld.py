"""Multicast listener reports for the solicited-node groups of a virtual MAC device. Pure.

Neighbour solicitations go to such a group, and a switch that snoops sends them to its members
only. The kernel reports the membership when the device gets its addresses: a BACKUP's gate drops
that, and the next report comes when somebody queries, after two minutes perhaps. So whoever takes
over reports by itself, in both versions: a switch that knows only the old one ignores the new.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv6Address

from cluster.checksum import checksum

__all__ = ["report_frames", "solicited_node"]

_ALL_MLDV2_ROUTERS = IPv6Address("ff02::16")
_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))
_ETH_IPV6 = 0x86DD
_HOP_BY_HOP, _ICMPV6 = 0, 58
_REPORT_V1, _REPORT_V2, _TO_EXCLUDE = 131, 143, 4
_ROUTER_ALERT = bytes((_ICMPV6, 0, 5, 2, 0, 0, 1, 0))
"""Hop-by-hop header of 8 bytes: next header, length, router alert for MLD (RFC 2711), PadN."""


def solicited_node(address: IPv6Address) -> IPv6Address:
    """RFC 4291, 2.7.1: ff02::1:ff00:0/104 and the last 24 bits."""
    return IPv6Address(_SOLICITED_NODE | int(address) & 0xFFFFFF)


def report_frames(mac: str, source: IPv6Address, addresses: Iterable[IPv6Address]) -> list[bytes]:
    """Frames that say *listens to the solicited-node groups of these addresses, whoever sends*:
    one MLDv2 report of all (RFC 3810, 5.2: a change to EXCLUDE of nobody, 90 bytes and 20 for each
    group but the first), one MLDv1 report for each (RFC 2710, 3: 86 bytes). `source` must be a
    link-local address: reports from others are ignored."""
    groups = sorted({solicited_node(address) for address in addresses})
    if not groups:
        return []
    records = b"".join(struct.pack("!BBH", _TO_EXCLUDE, 0, 0) + group.packed for group in groups)
    body = struct.pack("!BBHHH", _REPORT_V2, 0, 0, 0, len(groups)) + records
    frames = [_frame(mac, source, _ALL_MLDV2_ROUTERS, body)]
    for group in groups:
        body = struct.pack("!BBHHH", _REPORT_V1, 0, 0, 0, 0) + group.packed
        frames.append(_frame(mac, source, group, body))
    return frames


def _frame(mac: str, source: IPv6Address, target: IPv6Address, body: bytes) -> bytes:
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    payload = _ROUTER_ALERT + body
    header = struct.pack("!IHBB", 6 << 28, len(payload), _HOP_BY_HOP, 1)
    ethernet = b"\x33\x33" + target.packed[12:] + bytes.fromhex(mac.replace(":", ""))
    ethernet += struct.pack("!H", _ETH_IPV6)
    return ethernet + header + source.packed + target.packed + payload
