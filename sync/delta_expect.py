"""The tail of a delta about an expectation, after the master's key, incarnation and version. Pure.

====== ================ ========================================================================
bytes  field            there if
====== ================ ========================================================================
1      protocol         always
4, 16  src, dst         always; 16 each with V6
2 + 2  keys             always; EXPECT and DESTROY ends here
4 + 2  mask             of source address (16 with V6) and source key
varint timeout          seconds
1      flags            NF_CT_EXPECT_PERMANENT, INACTIVE, USERSPACE
1      class            of the helper's policy
1      have             bit 0 NAT, 1 FN, 2 HELPER; another is refused
1+4+2  NAT              direction (0, 1), address (16 with V6), key
1 + n  function         length 1 to 31, ASCII
1 + n  helper           length 1 to 15, ASCII
====== ================ ========================================================================

IPv4 FTP: 74 bytes with everything before it (the kernel's event has 304).
"""

from __future__ import annotations

import struct

from hafw.flow import AF_INET6, Expectation, ExpectNat, FlowKey, Tuple
from sync.delta_fields import counted, read_counted, read_varint, varint
from sync.delta_model import DeltaError

__all__ = ["decode_expectation", "encode_expectation"]

NAT, FN, HELPER = 1, 2, 4
FN_BYTES_MAX = 31
HELPER_BYTES_MAX = 15
FLAGS_MASK = 0x07
TIMEOUT_S_MAX = 0x7FFFFFFF

_TUPLE4 = struct.Struct(">B4s4sHH")
_TUPLE6 = struct.Struct(">B16s16sHH")
_MASK4 = struct.Struct(">4sH")
_MASK6 = struct.Struct(">16sH")
_WORDS = struct.Struct(">BBB")
_NAT4 = struct.Struct(">B4sH")
_NAT6 = struct.Struct(">B16sH")


def encode_expectation(expectation: Expectation | None, expected: Tuple) -> bytes:
    """The tuple and, of a living expectation, the rest."""
    v6 = expected.family == AF_INET6
    size = 16 if v6 else 4
    assert len(expected.src) == len(expected.dst) == size, expected
    fmt = _TUPLE6 if v6 else _TUPLE4
    head = fmt.pack(expected.proto, expected.src, expected.dst, expected.sport, expected.dport)
    if expectation is None:
        return head
    assert expectation.master.orig.family == expected.family, expectation
    assert len(expectation.mask_src) == size, expectation
    have, tail = 0, b""
    if (nat := expectation.nat) is not None:
        assert len(nat.address) == size, nat
        have |= NAT
        tail += (_NAT6 if v6 else _NAT4).pack(nat.direction, nat.address, nat.port)
    for bit, text, limit in (
        (FN, expectation.function, FN_BYTES_MAX),
        (HELPER, expectation.helper, HELPER_BYTES_MAX),
    ):
        if text is not None:
            have |= bit
            tail += counted(text.encode("ascii", "replace"), limit)
    mask = (_MASK6 if v6 else _MASK4).pack(expectation.mask_src, expectation.mask_sport)
    timeout = varint(min(expectation.timeout_s, TIMEOUT_S_MAX))
    words = _WORDS.pack(expectation.flags & FLAGS_MASK, expectation.policy_class, have)
    return head + mask + timeout + words + tail


def decode_expectation(
    payload: bytes, offset: int, end: int, master: FlowKey, *, bare: bool
) -> tuple[Expectation | Tuple, int]:
    """The expectation, or if `bare` its tuple alone; and where it ends. Raises DeltaError, and
    struct.error past the end of the payload."""
    family = master.orig.family
    v6 = family == AF_INET6
    fmt = _TUPLE6 if v6 else _TUPLE4
    expected = Tuple(family, *fmt.unpack_from(payload, offset))
    offset += fmt.size
    if bare:
        return expected, offset
    mask = _MASK6 if v6 else _MASK4
    mask_src, mask_sport = mask.unpack_from(payload, offset)
    timeout_s, offset = read_varint(payload, offset + mask.size, end)
    flags, policy_class, have = _WORDS.unpack_from(payload, offset)
    offset += _WORDS.size
    if timeout_s > TIMEOUT_S_MAX or flags & ~FLAGS_MASK or have & ~(NAT | FN | HELPER):
        raise DeltaError("bad_value", f"timeout {timeout_s}, flags {flags:#x}, have {have:#x}")
    nat: ExpectNat | None = None
    if have & NAT:
        layout = _NAT6 if v6 else _NAT4
        nat = ExpectNat(*layout.unpack_from(payload, offset))
        offset += layout.size
        if nat.direction > 1:
            raise DeltaError("bad_value", f"direction {nat.direction}")
    function = helper = None
    if have & FN:
        function, offset = _name(payload, offset, end, FN_BYTES_MAX)
    if have & HELPER:
        helper, offset = _name(payload, offset, end, HELPER_BYTES_MAX)
    expectation = Expectation(
        master,
        expected,
        mask_src,
        mask_sport,
        timeout_s,
        flags,
        policy_class,
        nat,
        function,
        helper,
    )
    return expectation, offset


def _name(payload: bytes, offset: int, end: int, limit: int) -> tuple[str, int]:
    text, offset = read_counted(payload, offset, end, limit)
    # The kernel takes it as a string; a NUL or a control character never names anything.
    if not all(0x21 <= byte <= 0x7E for byte in text):
        raise DeltaError("bad_value", "name is not printable ASCII")
    return text.decode("ascii"), offset
