"""Deltas: one change of one flow, as it goes over the wire. Pure.

A payload is a run of deltas. Each is a varint length, then exactly that many bytes; integers are
big-endian; `varint` is LEB128 in its shortest form.

====== ============== ==========================================================================
bytes  field          there if
====== ============== ==========================================================================
2      flags          always; an unknown bit is refused
1      protocol       always
4, 16  orig src, dst  always; 16 each with V6
2 + 2  orig keys      always (ports; ICMP: id, type and code)
2      zone           ZONE
4      incarnation    always
varint count          always
8      epoch          EPOCH; else it is that of the datagram's header
8      contribution   DESTROY, which ends here
1      status         upsert: bits 0 to 6 of enum ip_conntrack_status, the only ones that travel
4      mark           upsert
varint timeout        TIMEOUT, seconds
4 + 2  reply dst      SNAT: address (16 with V6) and key where they differ from the inverse of orig
4 + 2  reply src      DNAT: likewise
4      TCP            TCP: state; window scales orig << 4 | reply; flags orig; flags reply
1 + n  helper         HELPER: length 1 to 15, ASCII
1 + n  labels         LABELS: length 1 to 16
24     seqadj         SEQADJ: position, before, after of orig, then of reply (offsets signed)
varies master         MASTER: protocol, src, dst, keys, as orig
1      more           MORE: bit 0 SYNPROXY, bit 1 SCTP; another, or none, is refused
12     synproxy       SYNPROXY: isn, its, timestamp offset
9      SCTP           SCTP: state, verification tags of orig and of reply
====== ============== ==========================================================================

With EXPECT the key is that of the master, DESTROY ends after the version, and what follows is
described in `sync.delta_expect`. With DIGEST all is as `sync.delta_digest` has it.

IPv4 TCP with SNAT and a timeout of days: 39 bytes, and 43 with the greatest count; 8 more where
the epoch must be said.
"""

from __future__ import annotations

import struct
from typing import assert_never

from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    SCTP_STATES,
    TCP_STATES,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
    inverse,
)
from sync.delta_digest import decode_digest, encode_digest
from sync.delta_expect import decode_expectation, encode_expectation
from sync.delta_fields import counted, read_counted, read_varint, varint
from sync.delta_model import (
    Delta,
    DeltaError,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    GroupDigest,
    Upsert,
    Version,
)

__all__ = ["STATUS_WIRE_MASK", "decode_deltas", "encode_delta", "encode_deltas"]

DESTROY = 1 << 0
REFRESH = 1 << 1
V6 = 1 << 2
SNAT = 1 << 3
DNAT = 1 << 4
TCP = 1 << 5
TIMEOUT = 1 << 6
ZONE = 1 << 7
HELPER = 1 << 8
LABELS = 1 << 9
SEQADJ = 1 << 10
MASTER = 1 << 11
EPOCH = 1 << 12
EXPECT = 1 << 13
DIGEST = 1 << 14
MORE = 1 << 15
_KNOWN = (1 << 13) - 1 | MORE
_KNOWN_DESTROY = DESTROY | V6 | ZONE | EPOCH
_KNOWN_DIGEST = DIGEST | EPOCH
_KNOWN_EXPECT = EXPECT | DESTROY | REFRESH | V6 | ZONE | EPOCH

STATUS_WIRE_MASK = 0x7F
"""EXPECTED to SEQ_ADJUST; the higher bits are one kernel's own business."""
COUNT_MAX = 0xFFFFFFFF
TIMEOUT_S_MAX = 0x7FFFFFFF
HELPER_BYTES_MAX = 15
LABELS_BYTES_MAX = 16

_HEAD4 = struct.Struct(">HB4s4sHH")
_HEAD6 = struct.Struct(">HB16s16sHH")
_NAT4 = struct.Struct(">4sH")
_NAT6 = struct.Struct(">16sH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_STATUS_MARK = struct.Struct(">BI")
_TCP = struct.Struct(">BBBB")
_SEQADJ = struct.Struct(">IiiIii")
_SYNPROXY = struct.Struct(">III")
_SCTP = struct.Struct(">BII")
_MORE_SYNPROXY = 1
_MORE_SCTP = 2
_MASTER4 = struct.Struct(">B4s4sHH")
_MASTER6 = struct.Struct(">B16s16sHH")


def encode_deltas(deltas: list[Delta], *, header_epoch: int | None = None) -> bytes:
    """Many deltas, one payload. The caller minds the size of the datagram."""
    return b"".join([encode_delta(delta, header_epoch=header_epoch) for delta in deltas])


def encode_delta(delta: Delta, *, header_epoch: int | None = None) -> bytes:
    """One delta with its length. The epoch is left out if it equals `header_epoch`."""
    match delta:
        case Upsert():
            flags, tail = _upsert(delta)
            key = delta.entry.key
        case Destroy(key=key):
            flags, tail = DESTROY, [_U64.pack(delta.contribution)]
        case ExpectUpsert(expectation):
            flags = EXPECT | REFRESH if delta.refresh else EXPECT
            key = expectation.master
            tail = [encode_expectation(expectation, expectation.expected)]
        case ExpectDestroy(master=key, expected=expected):
            flags, tail = EXPECT | DESTROY, [encode_expectation(None, expected)]
        case GroupDigest(version=Version(epoch)):
            said = epoch == header_epoch
            flags = DIGEST if said else DIGEST | EPOCH
            body = encode_digest(delta, flags, None if said else epoch)
            return varint(len(body)) + body
        case _:
            assert_never(delta)
    version = delta.version
    assert 0 <= version.count <= COUNT_MAX, version
    orig = key.orig
    head = _HEAD4
    if orig.family == AF_INET6:
        flags |= V6
        head = _HEAD6
    _assert_lengths(orig)
    middle = [_U32.pack(delta.incarnation), varint(version.count)]
    if key.zone:
        flags |= ZONE
        middle.insert(0, _U16.pack(key.zone))
    if version.epoch != header_epoch:
        flags |= EPOCH
        middle.append(_U64.pack(version.epoch))
    body = b"".join(
        (head.pack(flags, orig.proto, orig.src, orig.dst, orig.sport, orig.dport), *middle, *tail)
    )
    return varint(len(body)) + body


def decode_deltas(payload: bytes, *, header_epoch: int | None = None) -> list[Delta]:
    """All deltas of a payload, or DeltaError with none of them acted upon.

    Reasons: ``truncated`` ``bad_length`` ``unknown_flags`` ``bad_value`` ``no_epoch``.
    """
    deltas: list[Delta] = []
    offset, total = 0, len(payload)
    while offset < total:
        length, offset = read_varint(payload, offset, total)
        end = offset + length
        if end > total:
            raise DeltaError("truncated", f"length {length} with {total - offset} bytes left")
        try:
            delta, offset = _decode(payload, offset, end, header_epoch)
        except struct.error as error:
            # unpack_from is bounded by the payload, not by `end`; that is checked below.
            raise DeltaError("truncated", str(error)) from None
        if offset != end:
            raise DeltaError("bad_length", f"{offset - end:+d} bytes against the length {length}")
        deltas.append(delta)
    return deltas


def _assert_lengths(flow: Tuple) -> None:
    # struct would pad or cut an address silently.
    size = 4 if flow.family == AF_INET else 16
    assert len(flow.src) == size, flow
    assert len(flow.dst) == size, flow


def _upsert(delta: Upsert) -> tuple[int, list[bytes]]:
    """Flags and the fields after the version."""
    entry = delta.entry
    orig, reply = entry.key.orig, entry.reply
    flags = REFRESH if delta.refresh else 0
    parts = [_STATUS_MARK.pack(entry.status & STATUS_WIRE_MASK, entry.mark)]
    if entry.timeout_s is not None:
        flags |= TIMEOUT
        parts.append(varint(min(entry.timeout_s, TIMEOUT_S_MAX)))
    _assert_lengths(reply)
    plain = inverse(orig)
    assert (reply.family, reply.proto) == (plain.family, plain.proto), (orig, reply)
    nat = _NAT4 if orig.family == AF_INET else _NAT6
    if reply.dst != plain.dst or reply.dport != plain.dport:
        flags |= SNAT
        parts.append(nat.pack(reply.dst, reply.dport))
    if reply.src != plain.src or reply.sport != plain.sport:
        flags |= DNAT
        parts.append(nat.pack(reply.src, reply.sport))
    if (tcp := entry.tcp) is not None:
        flags |= TCP
        scales = (tcp.wscale_orig & 0xF) << 4 | (tcp.wscale_reply & 0xF)
        parts.append(_TCP.pack(tcp.state, scales, tcp.flags_orig, tcp.flags_reply))
    if entry.helper is not None:
        flags |= HELPER
        parts.append(counted(entry.helper.encode("ascii", "replace"), HELPER_BYTES_MAX))
    if entry.labels is not None:
        flags |= LABELS
        parts.append(counted(entry.labels, LABELS_BYTES_MAX))
    if entry.seqadj is not None:
        flags |= SEQADJ
        one, two = entry.seqadj
        parts.append(
            _SEQADJ.pack(one.position, one.before, one.after, two.position, two.before, two.after)
        )
    if (master := entry.master) is not None:
        flags |= MASTER
        assert master.family == orig.family, (master, orig)
        fmt = _MASTER4 if orig.family == AF_INET else _MASTER6
        parts.append(fmt.pack(master.proto, master.src, master.dst, master.sport, master.dport))
    if entry.synproxy is not None or entry.sctp is not None:
        flags |= MORE
        parts.append(_encode_more(entry.synproxy, entry.sctp))
    return flags, parts


def _encode_more(synproxy: SynProxy | None, sctp: SctpState | None) -> bytes:
    more, parts = 0, [b""]
    if synproxy is not None:
        more |= _MORE_SYNPROXY
        parts.append(_SYNPROXY.pack(synproxy.isn, synproxy.its, synproxy.tsoff))
    if sctp is not None:
        more |= _MORE_SCTP
        parts.append(_SCTP.pack(sctp.state, sctp.vtag_orig, sctp.vtag_reply))
    parts[0] = bytes((more,))
    return b"".join(parts)


def _decode(payload: bytes, offset: int, end: int, header_epoch: int | None) -> tuple[Delta, int]:
    (flags,) = _U16.unpack_from(payload, offset)
    known = _KNOWN_DESTROY if flags & DESTROY else _KNOWN
    if flags & EXPECT:
        known = _KNOWN_EXPECT
    if flags & DIGEST:
        known = _KNOWN_DIGEST
    if flags & ~known:
        raise DeltaError("unknown_flags", f"{flags & ~known:#x}")
    if flags & DIGEST:
        if header_epoch is None and not flags & EPOCH:
            raise DeltaError("no_epoch", "neither the digest nor its datagram has an epoch")
        return decode_digest(payload, offset, None if flags & EPOCH else header_epoch)
    head = _HEAD6 if flags & V6 else _HEAD4
    _, proto, src, dst, sport, dport = head.unpack_from(payload, offset)
    offset += head.size
    zone = 0
    if flags & ZONE:
        (zone,) = _U16.unpack_from(payload, offset)
        offset += 2
        if zone == 0:
            raise DeltaError("bad_value", "zone 0 is the default and is left out")
    (incarnation,) = _U32.unpack_from(payload, offset)
    count, offset = read_varint(payload, offset + 4, end)
    if flags & EPOCH:
        (epoch,) = _U64.unpack_from(payload, offset)
        offset += 8
    elif header_epoch is None:
        raise DeltaError("no_epoch", "neither the delta nor its datagram has an epoch")
    else:
        epoch = header_epoch
    key = FlowKey(zone, Tuple(AF_INET6 if flags & V6 else AF_INET, proto, src, dst, sport, dport))
    version = Version(epoch, count)
    if flags & EXPECT:
        found, offset = decode_expectation(payload, offset, end, key, bare=bool(flags & DESTROY))
        if isinstance(found, Tuple):
            return ExpectDestroy(key, found, incarnation, version), offset
        return ExpectUpsert(found, incarnation, version, bool(flags & REFRESH)), offset
    if flags & DESTROY:
        (stored,) = _U64.unpack_from(payload, offset)
        return Destroy(key, incarnation, version, stored), offset + 8
    entry, offset = _decode_entry(payload, offset, end, flags, key)
    return Upsert(entry, incarnation, version, bool(flags & REFRESH)), offset


def _decode_entry(
    payload: bytes, offset: int, end: int, flags: int, key: FlowKey
) -> tuple[FlowEntry, int]:
    status, mark = _STATUS_MARK.unpack_from(payload, offset)
    if status & ~STATUS_WIRE_MASK:
        raise DeltaError("bad_value", f"status {status:#x}")
    offset += _STATUS_MARK.size
    timeout_s: int | None = None
    if flags & TIMEOUT:
        timeout_s, offset = read_varint(payload, offset, end)
        if timeout_s > TIMEOUT_S_MAX:
            raise DeltaError("bad_value", f"timeout {timeout_s}")
    reply = inverse(key.orig)
    if flags & (SNAT | DNAT):
        reply, offset = _decode_nat(payload, offset, flags, reply)
    tcp: TcpState | None = None
    if flags & TCP:
        state, scales, one, two = _TCP.unpack_from(payload, offset)
        offset += _TCP.size
        tcp = TcpState(state, one, two, scales >> 4, scales & 0xF)
        if state >= len(TCP_STATES) or key.orig.proto != IPPROTO_TCP:
            raise DeltaError("bad_value", f"TCP state {state} of protocol {key.orig.proto}")
    if not flags & (HELPER | LABELS | SEQADJ | MASTER | MORE):
        return FlowEntry(key, reply, status, timeout_s, mark, tcp), offset
    helper: str | None = None
    labels: bytes | None = None
    seqadj: tuple[SeqAdj, SeqAdj] | None = None
    master: Tuple | None = None
    if flags & HELPER:
        text, offset = read_counted(payload, offset, end, HELPER_BYTES_MAX)
        # The kernel takes it as a string; a NUL or a control character never names a helper.
        if not all(0x21 <= byte <= 0x7E for byte in text):
            raise DeltaError("bad_value", "helper name is not printable ASCII")
        helper = text.decode("ascii")
    if flags & LABELS:
        labels, offset = read_counted(payload, offset, end, LABELS_BYTES_MAX)
    if flags & SEQADJ:
        values = _SEQADJ.unpack_from(payload, offset)
        offset += _SEQADJ.size
        seqadj = (SeqAdj(*values[:3]), SeqAdj(*values[3:]))
    if flags & MASTER:
        fmt = _MASTER6 if flags & V6 else _MASTER4
        master = Tuple(key.orig.family, *fmt.unpack_from(payload, offset))
        offset += fmt.size
    synproxy: SynProxy | None = None
    sctp: SctpState | None = None
    if flags & MORE:
        synproxy, sctp, offset = _decode_more(payload, offset, key.orig.proto)
    entry = FlowEntry(
        key, reply, status, timeout_s, mark, tcp, helper, labels, None, seqadj, master, sctp,
        synproxy,
    )  # fmt: skip
    return entry, offset


def _decode_more(
    payload: bytes, offset: int, proto: int
) -> tuple[SynProxy | None, SctpState | None, int]:
    if offset >= len(payload):
        raise DeltaError("truncated", "no second byte of flags")
    more = payload[offset]
    offset += 1
    if more & ~(_MORE_SYNPROXY | _MORE_SCTP):
        raise DeltaError("unknown_flags", f"second byte {more:#x}")
    if not more:
        raise DeltaError("bad_value", "a second byte of flags that says nothing")
    synproxy: SynProxy | None = None
    sctp: SctpState | None = None
    if more & _MORE_SYNPROXY:
        synproxy = SynProxy(*_SYNPROXY.unpack_from(payload, offset))
        offset += _SYNPROXY.size
    if more & _MORE_SCTP:
        sctp = SctpState(*_SCTP.unpack_from(payload, offset))
        offset += _SCTP.size
        if sctp.state >= len(SCTP_STATES) or proto != IPPROTO_SCTP:
            raise DeltaError("bad_value", f"SCTP state {sctp.state} of protocol {proto}")
    return synproxy, sctp, offset


def _decode_nat(payload: bytes, offset: int, flags: int, plain: Tuple) -> tuple[Tuple, int]:
    nat = _NAT6 if flags & V6 else _NAT4
    dst, dport, src, sport = plain.dst, plain.dport, plain.src, plain.sport
    if flags & SNAT:
        dst, dport = nat.unpack_from(payload, offset)
        offset += nat.size
    if flags & DNAT:
        src, sport = nat.unpack_from(payload, offset)
        offset += nat.size
    icmp = plain.proto in (IPPROTO_ICMP, IPPROTO_ICMPV6)
    if icmp and dport != plain.dport:
        raise DeltaError("bad_value", "translation changes an ICMP type")
    return Tuple(plain.family, plain.proto, src, dst, sport, dport), offset
