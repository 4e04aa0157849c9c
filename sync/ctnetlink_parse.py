"""ctnetlink messages -> flow entries. Pure: bytes in, values out.

The kernel writes a tuple in one of four shapes; those are read with one precompiled struct and a
comparison of the constant pieces. Anything else (another protocol, another order, a zone inside a
tuple) takes the general walk. Both give the same answer; a test holds them equal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from hafw.flow import (
    AF_INET,
    AF_INET6,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
)
from sync import ctnetlink_layout as nl
from sync.ctnetlink_nested import (
    Buffer,
    MalformedMessageError,
    helper_name,
    sctp_state,
    seqadj,
    synproxy,
    tcp_state,
)
from sync.ctnetlink_nested import attributes as _attributes
from sync.ctnetlink_nested import value as _value

__all__ = [
    "Buffer",
    "CtEvent",
    "DumpPart",
    "EventKind",
    "MalformedMessageError",
    "dump_errno",
    "parse_dump",
    "parse_errors",
    "parse_events",
]


class EventKind(IntEnum):
    """What happened to the entry."""

    NEW = 1
    UPDATE = 2
    DESTROY = 3


@dataclass(frozen=True, slots=True)
class CtEvent:
    """One event. `pid` is the port id of the socket that asked, 0 for packets and timers."""

    kind: EventKind
    entry: FlowEntry
    pid: int
    time_ns: int | None = None
    """CLOCK_REALTIME of the event, with nf_conntrack_timestamp=1."""


@dataclass(frozen=True, slots=True)
class DumpPart:
    """What one receive of a dump held. `errno` is None until the dump is over, then 0 if whole."""

    entries: list[FlowEntry]
    errno: int | None


_NEW, _UPDATE, _DESTROY = EventKind.NEW, EventKind.UPDATE, EventKind.DESTROY
_nla = nl.NLA.unpack_from
_nlmsg = nl.NLMSG.unpack_from
_u32 = nl.VALUE_U32.unpack_from
_v4_ports = nl.V4_PORTS.unpack_from
_v6_ports = nl.V6_PORTS.unpack_from
_v4_icmp = nl.V4_ICMP.unpack_from
_v6_icmp = nl.V6_ICMP.unpack_from
_V4_PORTS_CONST = (nl.V4_A, nl.V4_B, nl.PORTS_C, nl.PORTS_D, nl.PORTS_E)
_V6_PORTS_CONST = (nl.V6_A, nl.V6_B, nl.PORTS_C, nl.PORTS_D, nl.PORTS_E)
_V4_ICMP_CONST = (nl.V4_A, nl.V4_B, nl.ICMP_C, nl.ICMP_D, nl.ICMP_E, nl.ICMP_F)
_V6_ICMP_CONST = (nl.V6_A, nl.V6_B, nl.ICMP_C, nl.ICMPV6_D, nl.ICMPV6_E, nl.ICMPV6_F)
_WORDS = frozenset({nl.CTA_STATUS, nl.CTA_TIMEOUT, nl.CTA_MARK, nl.CTA_ID})


def parse_events(buffer: Buffer) -> list[CtEvent]:
    """The conntrack events in what was received, in order; messages of other kinds are skipped.

    Raises MalformedMessageError.
    """
    events: list[CtEvent] = []
    for kind, flags, pid, start, end in _messages(buffer):
        if kind == nl.CT_NEW:
            # ctnetlink_conntrack_event: IPCT_NEW alone sets CREATE|EXCL.
            what = _NEW if flags & nl.NLM_F_CREATE else _UPDATE
        elif kind == nl.CT_DELETE:
            what = _DESTROY
        else:
            continue
        entry, time_ns = _entry(buffer, start, end)
        events.append(CtEvent(what, entry, pid, time_ns))
    return events


def parse_dump(buffer: Buffer) -> DumpPart:
    """The entries of one receive of a dump or a GET. Raises MalformedMessageError."""
    entries: list[FlowEntry] = []
    errno: int | None = None
    for kind, _flags, _pid, start, end in _messages(buffer):
        if kind == nl.CT_NEW:
            entries.append(_entry(buffer, start, end)[0])
        elif kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
            errno = _errno(buffer, start - 4, end)
    return DumpPart(entries, errno)


def dump_errno(buffer: Buffer) -> int | None:
    """`DumpPart.errno` alone. Raises MalformedMessageError."""
    errno: int | None = None
    for kind, _flags, _pid, start, end in _messages(buffer):
        if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
            errno = _errno(buffer, start - 4, end)
    return errno


def parse_errors(buffer: Buffer) -> list[tuple[int, int]]:
    """(sequence, errno) of each NLMSG_ERROR in what was received; errno 0 is an acknowledgement.

    Raises MalformedMessageError.
    """
    errors: list[tuple[int, int]] = []
    for kind, _flags, _pid, start, end in _messages(buffer):
        if kind == nl.NLMSG_ERROR:
            sequence = _nlmsg(buffer, start - nl.HEADER_BYTES)[3]
            errors.append((sequence, _errno(buffer, start - 4, end)))
    return errors


def _errno(buffer: Buffer, offset: int, end: int) -> int:
    # struct nlmsgerr begins with the negative errno; NLMSG_DONE of a dump carries one too.
    if end - offset < 4:
        raise MalformedMessageError(f"netlink error of {end - offset} bytes; expected at least 4")
    return -int(struct.unpack_from("=i", buffer, offset)[0])


def _messages(buffer: Buffer) -> Iterator[tuple[int, int, int, int, int]]:
    """(type, flags, port id, start of the attributes, end) of each message."""
    offset, total = 0, len(buffer)
    while offset < total:
        if total - offset < nl.NLMSG_BYTES:
            raise MalformedMessageError(f"{total - offset} bytes left; a netlink header has 16")
        length, kind, flags, _sequence, pid = _nlmsg(buffer, offset)
        if length < nl.NLMSG_BYTES or length > total - offset:
            raise MalformedMessageError(
                f"netlink length {length} with {total - offset} bytes left"
            )
        yield kind, flags, pid, offset + nl.HEADER_BYTES, offset + length
        offset += (length + 3) & ~3


class _Extra:
    """The attributes that few messages have."""

    __slots__ = (
        "adj_orig", "adj_reply", "helper", "labels", "master", "sctp", "synproxy", "zone",
    )  # fmt: skip

    def __init__(self) -> None:
        self.zone = 0
        self.helper: str | None = None
        self.labels: bytes | None = None
        self.master: Tuple | None = None
        self.adj_orig: SeqAdj | None = None
        self.adj_reply: SeqAdj | None = None
        self.sctp: SctpState | None = None
        self.synproxy: SynProxy | None = None

    @property
    def seqadj(self) -> tuple[SeqAdj, SeqAdj] | None:
        if self.adj_orig is None or self.adj_reply is None:
            return None
        return self.adj_orig, self.adj_reply


def _entry(buffer: Buffer, offset: int, end: int) -> tuple[FlowEntry, int | None]:
    """The entry and, if there is one, the event's time. The hot path: one loop, few calls."""
    orig: Tuple | None = None
    reply: Tuple | None = None
    tcp: TcpState | None = None
    time_ns: int | None = None
    extra: _Extra | None = None
    words: dict[int, int] = {}
    zone = 0
    while offset + 4 <= end:
        length, kind = _nla(buffer, offset)
        start, stop = offset + 4, offset + length
        if length < 4 or stop > end:
            raise MalformedMessageError(f"attribute length {length}, {end - offset} bytes left")
        kind &= nl.NLA_TYPE_MASK
        if length == 8:
            words[kind] = _u32(buffer, start)[0]
        elif kind == nl.CTA_TUPLE_ORIG:
            orig, zone = _tuple(buffer, start, stop)
        elif kind == nl.CTA_TUPLE_REPLY:
            reply, _ = _tuple(buffer, start, stop)
        elif kind == nl.CTA_PROTOINFO:
            tcp = tcp_state(buffer, start, stop)
            if tcp is None:
                extra = extra or _Extra()
                extra.sctp = sctp_state(buffer, start, stop)
        elif kind == nl.CTA_TIMESTAMP_EVENT:
            time_ns = _value(nl.VALUE_U64, buffer, start, stop)
        else:
            extra = extra or _Extra()
            _other(extra, kind, buffer, start, stop)
        offset += (length + 3) & ~3
    if orig is None or reply is None:
        raise MalformedMessageError("conntrack message without both tuples")
    get = words.get
    if extra is None:
        entry = FlowEntry(
            FlowKey(zone, orig),
            reply,
            get(nl.CTA_STATUS, 0),
            get(nl.CTA_TIMEOUT),
            get(nl.CTA_MARK, 0),
            tcp,
            None,
            None,
            get(nl.CTA_ID),
        )
    else:
        entry = FlowEntry(
            FlowKey(extra.zone or zone, orig),
            reply,
            get(nl.CTA_STATUS, 0),
            get(nl.CTA_TIMEOUT),
            get(nl.CTA_MARK, 0),
            tcp,
            extra.helper,
            extra.labels,
            get(nl.CTA_ID),
            extra.seqadj,
            extra.master,
            extra.sctp,
            extra.synproxy,
        )
    return entry, time_ns


def _other(extra: _Extra, kind: int, buffer: Buffer, start: int, stop: int) -> None:
    if kind == nl.CTA_ZONE:
        extra.zone = _value(nl.VALUE_U16, buffer, start, stop)
    elif kind == nl.CTA_HELP:
        extra.helper = helper_name(buffer, start, stop)
    elif kind == nl.CTA_LABELS:
        extra.labels = bytes(buffer[start:stop])
    elif kind == nl.CTA_TUPLE_MASTER:
        extra.master, _ = _tuple(buffer, start, stop)
    elif kind == nl.CTA_SEQ_ADJ_ORIG:
        extra.adj_orig = seqadj(buffer, start, stop)
    elif kind == nl.CTA_SEQ_ADJ_REPLY:
        extra.adj_reply = seqadj(buffer, start, stop)
    elif kind == nl.CTA_SYNPROXY:
        extra.synproxy = synproxy(buffer, start, stop)
    elif kind in _WORDS:
        raise MalformedMessageError(f"attribute {kind} of {stop - start} bytes; expected 4")


def _tuple(buffer: Buffer, start: int, end: int) -> tuple[Tuple, int]:
    """A tuple and the zone inside it (0 but for zones of one direction)."""
    length = end - start
    if length == 48:
        a, src, b, dst, c, proto, d, sport, e, dport = _v4_ports(buffer, start)
        if (a, b, c, d, e) == _V4_PORTS_CONST:
            return Tuple(AF_INET, proto, src, dst, sport, dport), 0
    elif length == 72:
        a, src, b, dst, c, proto, d, sport, e, dport = _v6_ports(buffer, start)
        if (a, b, c, d, e) == _V6_PORTS_CONST:
            return Tuple(AF_INET6, proto, src, dst, sport, dport), 0
    elif length == 56:
        a, src, b, dst, c, proto, d, icmp_id, e, kind, f, code = _v4_icmp(buffer, start)
        if (a, b, c, d, e, f) == _V4_ICMP_CONST:
            return Tuple(AF_INET, proto, src, dst, icmp_id, kind << 8 | code), 0
    elif length == 80:
        a, src, b, dst, c, proto, d, icmp_id, e, kind, f, code = _v6_icmp(buffer, start)
        if (a, b, c, d, e, f) == _V6_ICMP_CONST:
            return Tuple(AF_INET6, proto, src, dst, icmp_id, kind << 8 | code), 0
    return _tuple_general(buffer, start, end)


def _tuple_general(buffer: Buffer, start: int, end: int) -> tuple[Tuple, int]:
    src = dst = b""
    keys: dict[int, int] = {}
    zone = 0
    for kind, at, stop in _attributes(buffer, start, end):
        if kind == nl.CTA_TUPLE_IP:
            for ip, ip_at, ip_stop in _attributes(buffer, at, stop):
                if ip in (nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC):
                    src = bytes(buffer[ip_at:ip_stop])
                elif ip in (nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST):
                    dst = bytes(buffer[ip_at:ip_stop])
        elif kind == nl.CTA_TUPLE_PROTO:
            for key, key_at, key_stop in _attributes(buffer, at, stop):
                keys[key] = int.from_bytes(buffer[key_at:key_stop], "big")
        elif kind == nl.CTA_TUPLE_ZONE:
            zone = _value(nl.VALUE_U16, buffer, at, stop)
    family = {4: AF_INET, 16: AF_INET6}.get(len(src))
    if family is None or len(dst) != len(src) or nl.CTA_PROTO_NUM not in keys:
        raise MalformedMessageError("tuple without addresses of one family and a protocol")
    sport = keys.get(nl.CTA_PROTO_SRC_PORT, 0)
    dport = keys.get(nl.CTA_PROTO_DST_PORT, 0)
    for key_id, key_type, key_code in (
        (nl.CTA_PROTO_ICMP_ID, nl.CTA_PROTO_ICMP_TYPE, nl.CTA_PROTO_ICMP_CODE),
        (nl.CTA_PROTO_ICMPV6_ID, nl.CTA_PROTO_ICMPV6_TYPE, nl.CTA_PROTO_ICMPV6_CODE),
    ):
        if key_type in keys:
            sport = keys.get(key_id, 0)
            dport = keys[key_type] << 8 | keys.get(key_code, 0)
    proto = keys[nl.CTA_PROTO_NUM]
    if proto > 255 or sport > 0xFFFF or dport > 0xFFFF:
        raise MalformedMessageError("tuple with a key wider than 16 bits")
    return Tuple(family, proto, src, dst, sport, dport), zone
