"""The flows of a churn: every kind that is replicated, drawn from a seed. Pure.

A flow is made of two *slots*: one gives its original tuple, one its reply tuple. No two live
flows share a slot of either kind, so nothing clashes that should not; a flow that takes over the
original slot of one just deleted re-uses its tuple, one that takes the reply slot has its
translation.

=============== =====================================================================
share of all    kind
=============== =====================================================================
60 %            TCP: SNAT, DNAT or none; 1 in 8 not ASSURED yet; 3 % through SYNPROXY
3 %             TCP with the helper ftp, half of them with sequence adjustment
25 %            UDP: SNAT or DNAT; of it 4 % with the helpers tftp and sip
12 %            ICMP echo, GRE, SCTP, UDP-Lite, ESP
40 % of these   IPv6
10 %            in zones 1 to 5
20 %            with labels
=============== =====================================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_SEEN_REPLY,
    USER_MARK_MASK,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
    inverse,
)
from sync.ctnetlink import build_create, build_update

__all__ = [
    "LONG_S",
    "SLOTS_MAX",
    "Change",
    "change_of",
    "create_message",
    "flow_of",
    "has_port_of_vip",
    "heir",
    "reborn",
    "squatter_of",
]

LONG_S = 7200
"""The timeout of a flow that is to outlive the run."""
SLOTS_MAX = 0x1F << 16
"""Hosts of one kind in 10.0.0.0/8: the second byte says which kind."""
SHORT_S = 8
"""One in 64 expires by itself on the owner."""
SEEN = IPS_CONFIRMED | IPS_SEEN_REPLY
ASSURED = SEEN | IPS_ASSURED
_GRE, _ESP, _SCTP, _UDPLITE = 47, 50, 132, 136
_V4_VIP, _V6_VIP = ip_address("198.51.100.254").packed, ip_address("2001:db8:2::fe").packed
_PORTS = 60_000
_ESTABLISHED, _CLOSING = 3, (4, 5, 6, 7)
_SCTP_ESTABLISHED, _SCTP_SHUTDOWN = 4, (5, 6, 7)


@dataclass(frozen=True, slots=True)
class Change:
    """One request on a live flow, and what the flow is afterwards."""

    message: bytes
    entry: FlowEntry


def flow_of(seed: int, number: int, orig_slot: int, reply_slot: int, *, mark: int) -> FlowEntry:
    """Flow `number`; `mark` are the top 16 bits."""
    rng = Random(seed << 40 ^ number)
    kind = rng.random()
    v6 = _is_v6(orig_slot)
    proto, dport, helper = _protocol(kind, rng, v6=v6)
    key = FlowKey(rng.randrange(1, 6) if rng.random() < 0.1 else 0, _orig(orig_slot, proto, dport))
    dnat = proto in (IPPROTO_TCP, IPPROTO_UDP) and helper is None and rng.random() < 0.25
    if dnat:
        key = FlowKey(key.zone, _dnat_orig(orig_slot, proto))
    reply = _reply(key.orig, reply_slot, dnat=dnat, nat=rng.random() < 0.9)
    tcp, sctp, synproxy = None, None, None
    status = ASSURED if rng.random() < 0.6 else SEEN
    if proto == _SCTP and status == ASSURED:
        sctp = SctpState(_SCTP_ESTABLISHED, rng.getrandbits(32), rng.getrandbits(32))
    if proto == IPPROTO_TCP:
        scales = rng.randrange(15), rng.randrange(15)
        tcp, status = TcpState(_ESTABLISHED, 0x23, 0x23, *scales), ASSURED
        if rng.random() < 0.03:
            synproxy = SynProxy(rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(32))
        if rng.random() < 1 / 8 and helper is None:
            tcp, status = TcpState(1, 0x03, 0, scales[0], 0), IPS_CONFIRMED
    seqadj = None
    if helper == "ftp" and rng.random() < 0.5:
        seqadj = SeqAdj(rng.getrandbits(32), 0, rng.randrange(-40, 40) or 1), SeqAdj(0, 0, 0)
    return FlowEntry(
        key,
        reply,
        status,
        SHORT_S if rng.random() < 1 / 64 else LONG_S + rng.randrange(600),
        mark | rng.getrandbits(16),
        tcp,
        helper,
        _labels(rng) if rng.random() < 0.2 else None,
        None,
        seqadj,
        sctp=sctp,
        synproxy=synproxy,
    )


def squatter_of(entry: FlowEntry) -> FlowEntry:
    """A flow of the *other* node's own (no group in its mark) with the same reply tuple, which is
    in the way of the replica. Only for flows with ports."""
    orig = replace(entry.key.orig, src=_other_host(entry.key.orig.src))
    return FlowEntry(FlowKey(entry.key.zone, orig), entry.reply, SEEN, LONG_S, 0, entry.tcp)


def create_message(entry: FlowEntry) -> bytes:
    """As packets would have made it: strict, its own timeout."""
    return build_create(entry, pristine=False)


def change_of(entry: FlowEntry, rng: Random) -> Change:
    """One change of what may change in a flow's life."""
    match rng.randrange(4):
        case 0:
            mark = entry.mark & ~USER_MARK_MASK | rng.getrandbits(16)
            after = replace(entry, mark=mark)
            value = mark & USER_MARK_MASK
            return Change(build_update(entry.key, mark=(value, USER_MARK_MASK)), after)
        case 1:
            labels = _labels(rng)
            after = replace(entry, labels=labels)
            return Change(build_update(entry.key, labels=labels), after)
        case 2 if entry.seqadj is not None:
            first = entry.seqadj[0]
            moved = replace(first, position=(first.position + 1000) & 0xFFFFFFFF,
                            before=first.after, after=first.after + 3)  # fmt: skip
            after = replace(entry, seqadj=(moved, entry.seqadj[1]))
            return Change(build_update(entry.key, seqadj=after.seqadj), after)
        case _:
            return _forward(entry, rng)


def _forward(entry: FlowEntry, rng: Random) -> Change:
    """The state goes on: a TCP flow is established, then closes; another is ASSURED."""
    tcp, status = entry.tcp, ASSURED
    if tcp is not None and not entry.status & IPS_ASSURED:
        tcp = TcpState(_ESTABLISHED, 0x23, 0x23, tcp.wscale_orig, rng.randrange(15))
    elif tcp is not None:
        state = min((s for s in _CLOSING if s > tcp.state), default=tcp.state)
        tcp = replace(tcp, state=state)
    sctp = entry.sctp
    if sctp is not None:
        state = min((s for s in _SCTP_SHUTDOWN if s > sctp.state), default=sctp.state)
        sctp = replace(sctp, state=state)
    elif entry.key.orig.proto == _SCTP:
        sctp = SctpState(_SCTP_ESTABLISHED, rng.getrandbits(32), rng.getrandbits(32))
    # `build_create` fixes the timeout of GRE: the kernel refuses another one (EPERM).
    timeout_s = None if entry.key.orig.proto == _GRE else LONG_S
    after = replace(
        entry, tcp=tcp, sctp=sctp, status=status, timeout_s=timeout_s or entry.timeout_s
    )
    message = build_update(
        entry.key, status=status, timeout_s=timeout_s, tcp=tcp, tcp_flags_mask=0xFF, sctp=sctp
    )
    return Change(message, after)


def _protocol(kind: float, rng: Random, *, v6: bool) -> tuple[int, int, str | None]:
    """(protocol, destination port, helper)."""
    if kind < 0.60:
        return IPPROTO_TCP, rng.choice((80, 443, 8443)), None
    if kind < 0.63:
        return IPPROTO_TCP, 21, "ftp"
    if kind < 0.87:
        return IPPROTO_UDP, rng.choice((53, 123, 4500)), None
    if kind < 0.88:
        port, helper = rng.choice(((69, "tftp"), (5060, "sip")))
        return IPPROTO_UDP, port, helper
    return (
        rng.choice((IPPROTO_ICMPV6 if v6 else IPPROTO_ICMP, _GRE, _ESP, _SCTP, _UDPLITE)),
        7,
        None,
    )


def _is_v6(slot: int) -> bool:
    return slot % 5 < 2


def _address(slot: int, net: int, *, v6: bool) -> bytes:
    """One host for each slot: protocols without ports need it."""
    if v6:
        return ip_address(f"2001:db8:{net:x}::").packed[:8] + struct.pack(">Q", slot + 16)
    return bytes((10, net + (slot >> 16), slot >> 8 & 0xFF, slot & 0xFF))


def _other_host(address: bytes) -> bytes:
    return address[:1] + bytes([address[1] ^ 0x80]) + address[2:]


def _server(slot: int, *, v6: bool) -> bytes:
    if v6:
        return ip_address("2001:db8:2::").packed[:12] + struct.pack(">I", 0x10000 + slot // _PORTS)
    return bytes((198, 51, 100, 10 + slot // _PORTS % 200))


def _orig(slot: int, proto: int, dport: int) -> Tuple:
    v6 = _is_v6(slot)
    family = AF_INET6 if v6 else AF_INET
    src, dst = _address(slot, 0, v6=v6), _server(0, v6=v6)
    port = 1024 + slot % _PORTS
    if proto in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        return Tuple(family, proto, src, dst, port, (128 if v6 else 8) << 8)
    if proto == _ESP:
        return Tuple(family, proto, src, dst, 0, 0)
    return Tuple(family, proto, src, dst, port, dport)


def _dnat_orig(slot: int, proto: int) -> Tuple:
    v6 = _is_v6(slot)
    vip = _V6_VIP if v6 else _V4_VIP
    family = AF_INET6 if v6 else AF_INET
    return Tuple(family, proto, _address(slot, 0x40, v6=v6), vip, 1024 + slot % _PORTS, 8080)


def _reply(orig: Tuple, slot: int, *, dnat: bool, nat: bool) -> Tuple:
    """Translated by the reply slot: its inner host, or a port of the VIP towards its server."""
    plain, v6 = inverse(orig), orig.family == AF_INET6
    if dnat:
        return replace(plain, src=_address(slot, 0x20, v6=v6), sport=8000 + slot % 1000)
    if not nat or orig.proto == _ESP:
        return plain
    vip, port = (_V6_VIP if v6 else _V4_VIP), 1024 + slot % _PORTS
    # Both addresses and the port change: the server is what tells slots of one port apart.
    moved = replace(plain, src=_server(slot, v6=v6), dst=vip)
    if orig.proto in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        return replace(moved, sport=port)
    if orig.proto == _GRE:
        # nf_nat_core.c leaves the keys of GRE alone, so that the address must tell slots apart.
        return replace(moved, src=_address(slot, 0x20, v6=v6))
    return replace(moved, dport=port)


def _labels(rng: Random) -> bytes:
    return (rng.getrandbits(126) | 1).to_bytes(16, "little")


def reborn(entry: FlowEntry, reply_slot: int) -> FlowEntry:
    """A new life of a tuple that was just deleted: the same key, another translation."""
    dnat = entry.key.orig.dst in (_V4_VIP, _V6_VIP)
    return replace(entry, reply=_reply(entry.key.orig, reply_slot, dnat=dnat, nat=True))


def heir(entry: FlowEntry, orig_slot: int) -> FlowEntry | None:
    """Another host's flow with exactly the translation of one that was just deleted; None for
    kinds without a translated port."""
    if not has_port_of_vip(entry):
        return None
    v6 = entry.key.orig.family == AF_INET6
    orig = replace(entry.key.orig, src=_address(orig_slot, 0, v6=v6))
    return replace(entry, key=FlowKey(entry.key.zone, orig))


def has_port_of_vip(entry: FlowEntry) -> bool:
    """SNAT of TCP or UDP to the VIP."""
    snat = entry.reply.dst in (_V4_VIP, _V6_VIP)
    return snat and entry.key.orig.proto in (IPPROTO_TCP, IPPROTO_UDP)
