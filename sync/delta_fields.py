"""Fields of varying length in deltas: LEB128 numbers and counted bytes. Pure."""

from __future__ import annotations

from sync.delta_model import DeltaError

__all__ = ["counted", "read_counted", "read_varint", "varint"]


def counted(text: bytes, limit: int) -> bytes:
    assert 1 <= len(text) <= limit, text
    return bytes((len(text),)) + text


def varint(value: int) -> bytes:
    assert value >= 0, value
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(payload: bytes, offset: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if offset >= end:
            raise DeltaError("truncated", "a varint runs past the end")
        byte = payload[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 28:
            raise DeltaError("bad_value", "a varint of more than 5 bytes")
    if value > 0xFFFFFFFF or (byte == 0 and shift):
        raise DeltaError("bad_value", "a varint over 32 bits or not in its shortest form")
    return value, offset


def read_counted(payload: bytes, offset: int, end: int, limit: int) -> tuple[bytes, int]:
    if offset >= end:
        raise DeltaError("truncated", "a length is missing")
    length = payload[offset]
    if not 1 <= length <= limit:
        raise DeltaError("bad_value", f"a field of {length} bytes; 1 to {limit} would be right")
    if offset + 1 + length > end:
        raise DeltaError("truncated", f"a field of {length} bytes runs past the end")
    return payload[offset + 1 : offset + 1 + length], offset + 1 + length
