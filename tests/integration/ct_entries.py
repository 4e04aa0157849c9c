"""Conntrack entries for tests of the codec and its sockets."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

from hafw.flow import AF_INET, AF_INET6, FlowEntry, FlowKey, TcpState, Tuple, inverse

TCP, UDP, SCTP, DCCP, GRE, ESP = 6, 17, 132, 33, 47, 50
HOSTS = {
    4: ("192.0.2.10", "198.51.100.10", "198.51.100.254", "192.0.2.20"),
    6: ("2001:db8:1::10", "2001:db8:2::10", "2001:db8:2::fe", "2001:db8:1::20"),
}


def flow(proto: int, src: str, dst: str, sport: int = 0, dport: int = 0) -> Tuple:
    one, two = ip_address(src), ip_address(dst)
    family = AF_INET if one.version == 4 else AF_INET6
    return Tuple(family, proto, one.packed, two.packed, sport, dport)


def entry_of(version: int, proto: int, nat: str, *, zone: int = 0, mark: int = 0) -> FlowEntry:
    """A flow of the client: plain, or translated at its source, its destination, or both."""
    client, server, vip, inner = HOSTS[version]
    if proto in (1, 58):
        orig = flow(proto, client, server, 777, (8 if proto == 1 else 128) << 8)
    elif proto == ESP:
        orig = flow(proto, client, server)
    else:
        orig = flow(proto, client, server, 40000, 80)
    reply = inverse(orig)
    if nat in ("snat", "both"):
        reply = dataclasses.replace(reply, dst=ip_address(vip).packed)
        if proto in (1, 58):
            reply = dataclasses.replace(reply, sport=999)
        elif proto != ESP:
            reply = dataclasses.replace(reply, dport=1024)
    if nat in ("dnat", "both"):
        reply = dataclasses.replace(reply, src=ip_address(inner).packed)
        if proto not in (1, 58, ESP):
            reply = dataclasses.replace(reply, sport=8080)
    tcp = TcpState(3, 0x23, 0x03, 7, 9) if proto == TCP else None
    return FlowEntry(FlowKey(zone, orig), reply, 0x0E, 300, mark, tcp)


def many(count: int, mark: int = 0) -> list[FlowEntry]:
    """Untranslated UDP flows of one host."""
    base = entry_of(4, UDP, "plain", mark=mark)
    found = []
    for index in range(count):
        orig = dataclasses.replace(base.key.orig, sport=1024 + index)
        found.append(dataclasses.replace(base, key=FlowKey(0, orig), reply=inverse(orig)))
    return found
