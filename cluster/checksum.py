"""The Internet checksum. Pure."""

from __future__ import annotations

import struct

__all__ = ["checksum"]


def checksum(octets: bytes) -> int:
    """RFC 1071: the complement of the one's complement sum of 16-bit words; an odd last byte is
    followed by a zero."""
    if len(octets) % 2:
        octets += b"\0"
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
