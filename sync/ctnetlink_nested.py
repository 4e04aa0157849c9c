"""The nested attributes of a ctnetlink message that are not tuples -> values. Pure.

`sync.ctnetlink_parse` walks the message itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hafw.flow import SctpState, SeqAdj, SynProxy, TcpState
from sync import ctnetlink_layout as nl

__all__ = ["Buffer", "MalformedMessageError"]

Buffer = bytes | bytearray | memoryview


class MalformedMessageError(ValueError):
    """A message is not what the kernel writes: truncated, or without a tuple. Never expected."""


_nla = nl.NLA.unpack_from
_tcp_info = nl.TCP_INFO.unpack_from
_TCP_CONST = (nl.TCP_A, nl.TCP_B, nl.TCP_C, nl.TCP_D, nl.TCP_E)


def attributes(buffer: Buffer, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start of the payload, end of the payload) of each attribute."""
    while offset + 4 <= end:
        length, kind = _nla(buffer, offset)
        if length < 4 or offset + length > end:
            raise MalformedMessageError(
                f"attribute length {length} with {end - offset} bytes left"
            )
        yield kind & nl.NLA_TYPE_MASK, offset + 4, offset + length
        offset += (length + 3) & ~3


def value(fmt: struct.Struct, buffer: Buffer, start: int, end: int) -> int:
    if end - start < fmt.size:
        raise MalformedMessageError(f"attribute of {end - start} bytes; expected {fmt.size}")
    return int(fmt.unpack_from(buffer, start)[0])


def tcp_state(buffer: Buffer, start: int, end: int) -> TcpState | None:
    if end - start == 44:
        a, state, b, scale, c, scale_reply, d, flags, _, e, flags_reply, _ = _tcp_info(
            buffer, start
        )
        if (a, b, c, d, e) == _TCP_CONST:
            return TcpState(state, flags, flags_reply, scale, scale_reply)
    values: dict[int, int] = {}
    for kind, at, stop in attributes(buffer, start, end):
        if kind != nl.CTA_PROTOINFO_TCP:
            return None
        for field, field_at, field_stop in attributes(buffer, at, stop):
            if field_stop > field_at:
                values[field] = buffer[field_at]
    if nl.CTA_PROTOINFO_TCP_STATE not in values:
        return None
    return TcpState(
        values[nl.CTA_PROTOINFO_TCP_STATE],
        values.get(nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, 0),
        values.get(nl.CTA_PROTOINFO_TCP_FLAGS_REPLY, 0),
        values.get(nl.CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, 0),
        values.get(nl.CTA_PROTOINFO_TCP_WSCALE_REPLY, 0),
    )


def sctp_state(buffer: Buffer, start: int, end: int) -> SctpState | None:
    state: int | None = None
    tags: dict[int, int] = {}
    for kind, at, stop in attributes(buffer, start, end):
        if kind != nl.CTA_PROTOINFO_SCTP:
            return None
        for field, field_at, field_stop in attributes(buffer, at, stop):
            if field == nl.CTA_PROTOINFO_SCTP_STATE and field_stop > field_at:
                state = buffer[field_at]
            elif field != nl.CTA_PROTOINFO_SCTP_STATE:
                tags[field] = value(nl.VALUE_U32, buffer, field_at, field_stop)
    if state is None:
        return None
    get = tags.get
    return SctpState(
        state,
        get(nl.CTA_PROTOINFO_SCTP_VTAG_ORIGINAL, 0),
        get(nl.CTA_PROTOINFO_SCTP_VTAG_REPLY, 0),
    )


def synproxy(buffer: Buffer, start: int, end: int) -> SynProxy | None:
    words = {
        kind: value(nl.VALUE_U32, buffer, at, stop)
        for kind, at, stop in attributes(buffer, start, end)
    }
    get = words.get
    found = SynProxy(
        get(nl.CTA_SYNPROXY_ISN, 0), get(nl.CTA_SYNPROXY_ITS, 0), get(nl.CTA_SYNPROXY_TSOFF, 0)
    )
    return found if any(words.values()) else None


def helper_name(buffer: Buffer, start: int, end: int) -> str | None:
    for kind, at, stop in attributes(buffer, start, end):
        if kind == nl.CTA_HELP_NAME:
            # An empty name means that the helper is gone.
            return bytes(buffer[at:stop]).rstrip(b"\0").decode("ascii", "replace") or None
    return None


def seqadj(buffer: Buffer, start: int, end: int) -> SeqAdj:
    position = before = after = 0
    for kind, at, stop in attributes(buffer, start, end):
        if kind == nl.CTA_SEQADJ_CORRECTION_POS:
            position = value(nl.VALUE_U32, buffer, at, stop)
        elif kind == nl.CTA_SEQADJ_OFFSET_BEFORE:
            before = value(nl.VALUE_S32, buffer, at, stop)
        elif kind == nl.CTA_SEQADJ_OFFSET_AFTER:
            after = value(nl.VALUE_S32, buffer, at, stop)
    return SeqAdj(position, before, after)
