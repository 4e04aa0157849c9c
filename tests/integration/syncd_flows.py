"""Flows as a policy would have made them, of every kind that syncd replicates."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    FlowEntry,
    FlowKey,
    TcpState,
    Tuple,
    hafw_mark,
    inverse,
)

__all__ = ["SERVER4", "SERVER6", "VIP4", "VIP6", "flow", "mixed"]

CREATED = 0x0E  # CONFIRMED | ASSURED | SEEN_REPLY
VIP4, VIP6 = ip_address("198.51.100.254").packed, ip_address("2001:db8:2::fe").packed
SERVER4, SERVER6 = ip_address("198.51.100.10").packed, ip_address("2001:db8:2::10").packed
ESTABLISHED = TcpState(3, 0x23, 0x23, 7, 7)


def flow(
    number: int,
    *,
    v6: bool = False,
    proto: int = IPPROTO_TCP,
    owner: int = 1,
    dnat: bool = False,
    group: int = 1,
) -> FlowEntry:
    """Flow `number`: SNAT to the VIP, or DNAT from the VIP to a host inside."""
    host = ip_address(f"2001:db8:1::{number >> 14:x}" if v6 else f"192.0.2.{10 + (number >> 14)}")
    port = 20_000 + (number & 0x3FFF)
    family, vip = (AF_INET6, VIP6) if v6 else (AF_INET, VIP4)
    server = SERVER6 if v6 else SERVER4
    if dnat:
        orig = Tuple(family, proto, server, vip, port, 8080 + (number >> 14))
        reply = replace(inverse(orig), src=host.packed)
    else:
        orig = Tuple(family, proto, host.packed, server, port, 80 + (number >> 14))
        reply = replace(inverse(orig), dst=vip, dport=30_000 + (number & 0x3FFF))
    tcp = ESTABLISHED if proto == IPPROTO_TCP else None
    mark = hafw_mark(group, owner, owner) | (number & 0xFF)
    return FlowEntry(FlowKey(0, orig), reply, CREATED, 600, mark, tcp)


def mixed(count: int, *, owner: int = 1, first: int = 0) -> list[FlowEntry]:
    """Flows of every kind: TCP and UDP, SNAT and DNAT, IPv4 and IPv6."""
    return [
        flow(
            number,
            v6=bool(number & 1),
            proto=IPPROTO_UDP if number & 2 else IPPROTO_TCP,
            dnat=bool(number & 4),
            owner=owner,
        )
        for number in range(first, first + count)
    ]
