"""Flows for the tests of syncd's cores."""

from __future__ import annotations

from dataclasses import replace

from hafw.flow import (
    AF_INET,
    IPPROTO_TCP,
    IPPROTO_UDP,
    FlowEntry,
    FlowKey,
    TcpState,
    Tuple,
    hafw_mark,
    inverse,
)
from hafw.human import make_epoch
from sync.flowhash import FlowHash

GROUP = 1
HASHES = FlowHash(bytes(range(1, 33)))
"""Of every registry in these tests."""
CONFIRMED, REPLIED, ASSURED = 0x08, 0x0A, 0x0E
OPENING = TcpState(1, 0x03, 0, 7, 0)
ESTABLISHED = TcpState(3, 0x23, 0x23, 7, 7)
CLOSING = TcpState(4, 0x23, 0x23, 7, 7)


def epoch(counter: int, node_id: int) -> int:
    return make_epoch(1, counter, node_id)


def udp(port: int = 1, *, owner: int = 1, status: int = ASSURED, group: int = GROUP) -> FlowEntry:
    orig = Tuple(AF_INET, IPPROTO_UDP, bytes([192, 0, 2, 9]), bytes([198, 51, 100, 1]), port, 53)
    reply = replace(inverse(orig), dst=bytes([198, 51, 100, 254]), dport=30_000 + port)
    mark = hafw_mark(group, owner, owner) if group else 0
    return FlowEntry(FlowKey(0, orig), reply, status, 120, mark)


def tcp(
    port: int = 1,
    *,
    owner: int = 1,
    state: TcpState | None = ESTABLISHED,
    status: int = ASSURED,
) -> FlowEntry:
    entry = udp(port, owner=owner, status=status)
    orig = replace(entry.key.orig, proto=IPPROTO_TCP)
    reply = replace(entry.reply, proto=IPPROTO_TCP)
    return replace(entry, key=FlowKey(0, orig), reply=reply, tcp=state)


def reborn(entry: FlowEntry) -> FlowEntry:
    """Another flow over the same original tuple."""
    return replace(entry, reply=replace(entry.reply, dport=entry.reply.dport ^ 0x55))
