"""Expectations over ctnetlink: recorded messages of a 6.18 kernel, and a dumb writer as oracle."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import AF_INET, AF_INET6, Expectation, ExpectNat, FlowKey, Tuple
from sync.ctnetlink import (
    CtEvent,
    ExpectEvent,
    MalformedMessageError,
    build_expect_create,
    build_expect_delete,
    build_expect_dump,
    build_expect_get,
    is_delete_of_one,
    is_expect_delete_of_one,
    parse_events,
    parse_expect_dump,
    parse_mixed_events,
)
from sync.delta import Delta, ExpectDestroy, ExpectUpsert, Version, decode_deltas, encode_deltas
from tests.unit.sync.flow_strategies import (
    U32,
    attribute,
    expectations,
    nest,
    read_tree,
    write_message,
    write_tuple,
)
from tests.unit.sync.test_ctnetlink_parse import GOLDEN as GOLDEN_FLOWS

# FTP active through SNAT: PORT 192.0.2.10 -> 198.51.100.254, and EPRT likewise.
MADE_V4 = (
    "3001000000020006000000000000000002000000340002801400018008000100c633640a08000200c63364fe"
    "1c0002800500010006000000060002000000000006000300af510000340003801400018008000100ffffffff"
    "08000200ffffffff1c0002800500010006000000060002000000000006000300ffff00003400018014000180"
    "08000100c000020a08000200c633640a1c0002800500010006000000060002009d0e00000600030000150000"
    "40000a8008000100000000013400028014000180080001000000000008000200000000001c00028005000100"
    "0600000006000200af5100000600030000000000080004000000012c08000500952a795e0800080000000000"
    "0800090000000000080006006674700016000b006e61742d666f6c6c6f772d6d6173746572000000"
)
MADE_V6 = (
    "900100000002000600000000000000000a0000004c0002802c0001801400030020010db80002000000000000"
    "000000101400040020010db80002000000000000000000fe1c00028005000100060000000600020000000000"
    "06000300a7a700004c0003802c00018014000300ffffffffffffffffffffffffffffffff14000400ffffffff"
    "ffffffffffffffffffffffff1c0002800500010006000000060002000000000006000300ffff00004c000180"
    "2c0001801400030020010db80001000000000000123400101400040020010db8000200000000000000000010"
    "1c000280050001000600000006000200de740000060003000015000058000a8008000100000000014c000280"
    "2c00018014000300000000000000000000000000000000001400040000000000000000000000000000000000"
    "1c000280050001000600000006000200a7a700000600030000000000080004000000012c080005005e62f7c2"
    "08000800000000000800090000000000080006006674700016000b006e61742d666f6c6c6f772d6d61737465"
    "72000000"
)
GONE_V4 = (
    "3001000002020000000000000000000002000000340002801400018008000100c633640a08000200c63364fe"
    "1c0002800500010006000000060002000000000006000300af510000340003801400018008000100ffffffff"
    "08000200ffffffff1c0002800500010006000000060002000000000006000300ffff00003400018014000180"
    "08000100c000020a08000200c633640a1c0002800500010006000000060002009d0e00000600030000150000"
    "40000a8008000100000000013400028014000180080001000000000008000200000000001c00028005000100"
    "0600000006000200af5100000600030000000000080004000000012c08000500952a795e0800080000000000"
    "0800090000000000080006006674700016000b006e61742d666f6c6c6f772d6d6173746572000000"
)


def bytes_of(*parts: int) -> bytes:
    return bytes(parts)


V4 = Expectation(
    FlowKey(0, Tuple(AF_INET, 6, bytes_of(192, 0, 2, 10), bytes_of(198, 51, 100, 10), 40206, 21)),
    Tuple(AF_INET, 6, bytes_of(198, 51, 100, 10), bytes_of(198, 51, 100, 254), 0, 44881),
    b"\xff" * 4,
    0,
    300,
    0,
    0,
    ExpectNat(1, bytes(4), 44881),
    "nat-follow-master",
    "ftp",
)


def test_recorded_events_say_what_was_expected() -> None:
    (made,) = parse_mixed_events(bytes.fromhex(MADE_V4))
    assert made == ExpectEvent(False, V4, 0)
    (gone,) = parse_mixed_events(bytes.fromhex(GONE_V4))
    assert gone == ExpectEvent(True, V4, 0)
    (six,) = parse_mixed_events(bytes.fromhex(MADE_V6))
    assert isinstance(six, ExpectEvent)
    assert six.expectation.expected.family == AF_INET6
    assert six.expectation.mask_src == b"\xff" * 16
    assert six.expectation.helper == "ftp"


def test_events_of_flows_and_expectations_keep_their_order() -> None:
    flow, expected = bytes.fromhex(GOLDEN_FLOWS[0]), bytes.fromhex(MADE_V4)
    kinds = [type(event) for event in parse_mixed_events(flow + expected + flow)]
    assert kinds == [CtEvent, ExpectEvent, CtEvent]
    assert parse_events(flow + expected) == parse_events(flow)
    mixed = [e for e in parse_mixed_events(flow + expected) if isinstance(e, CtEvent)]
    assert mixed == parse_events(flow)


@pytest.mark.parametrize("length", range(4, len(MADE_V4) // 2 - 20, 7))
def test_what_is_cut_short_is_refused_or_lacks_what_it_must_have(length: int) -> None:
    message = bytearray.fromhex(MADE_V4)[: 20 + length]
    struct.pack_into("=I", message, 0, len(message))
    try:
        (event,) = parse_mixed_events(message)
    except MalformedMessageError:
        return
    assert isinstance(event, ExpectEvent)
    assert event.expectation.key == V4.key


def written(one: Expectation) -> list[bytes]:
    """The attributes of the kernel's event, by a writer that knows nothing of the codec."""
    full = b"\xff" * len(one.expected.src)
    mask = replace(one.expected, src=one.mask_src, dst=full, sport=one.mask_sport, dport=0xFFFF)
    parts = [write_tuple(2, one.expected), write_tuple(3, mask), write_tuple(1, one.master.orig)]
    if one.nat is not None:
        none = bytes(len(full))
        source = replace(one.expected, src=one.nat.address, dst=none, sport=one.nat.port, dport=0)
        direction = attribute(1, struct.pack(">I", one.nat.direction))
        parts.append(nest(10, [direction, write_tuple(2, source)]))
    parts.append(attribute(4, struct.pack(">I", one.timeout_s)))
    parts.append(attribute(5, bytes(4)))  # CTA_EXPECT_ID
    parts.append(attribute(8, struct.pack(">I", one.flags)))
    parts.append(attribute(9, struct.pack(">I", one.policy_class)))
    if one.helper is not None:
        parts.append(attribute(6, one.helper.encode() + b"\0"))
    if one.function is not None:
        parts.append(attribute(11, one.function.encode() + b"\0"))
    if one.master.zone:
        parts.append(attribute(7, struct.pack(">H", one.master.zone)))
    return parts


@given(expectations(), U32)
def test_any_event_is_read(one: Expectation, pid: int) -> None:
    message = write_message(0x200, 0x600, pid, written(one))
    assert parse_mixed_events(message) == [ExpectEvent(False, one, pid)]
    assert parse_expect_dump(message).expectations == [one]
    assert parse_mixed_events(write_message(0x202, 0, pid, written(one))) == [
        ExpectEvent(True, one, pid)
    ]


@given(expectations())
def test_a_creation_says_all_of_it(one: Expectation) -> None:
    request = build_expect_create(one, seq=9)
    length, kind, flags, seq, _ = struct.unpack_from("=IHHII", request)
    assert (length, kind, flags, seq) == (len(request), 0x200, 0x401, 9)
    # The kernel would write it in the same shape, so that the parser reads it back.
    assert parse_expect_dump(request).expectations == [one]
    tree = read_tree(request[20:])
    assert set(tree) >= {1, 2, 3, 4, 8, 9}
    assert (7 in tree) == bool(one.master.zone)
    assert (10 in tree) == (one.nat is not None)


@given(expectations())
def test_a_deletion_always_names_one(one: Expectation) -> None:
    """Without a tuple it would delete every expectation there is."""
    request = build_expect_delete(one.key)
    assert is_expect_delete_of_one(request)
    assert not is_delete_of_one(request)
    for other in (build_expect_create(one), build_expect_get(one.key), build_expect_dump()):
        assert not is_expect_delete_of_one(other)
    assert not is_expect_delete_of_one(request[:20])
    header = bytearray(request[:20])
    struct.pack_into("=I", header, 0, 20)
    assert not is_expect_delete_of_one(bytes(header))


@given(expectations(), U32, st.booleans())
def test_deltas_of_expectations_come_back(one: Expectation, number: int, refresh: bool) -> None:
    version = Version(number, number & 0xFFFF)
    deltas: list[Delta] = [
        ExpectUpsert(one, number, version, refresh),
        ExpectDestroy(one.master, one.expected, number, version),
    ]
    for header_epoch in (None, number):
        payload = encode_deltas(deltas, header_epoch=header_epoch)
        assert decode_deltas(payload, header_epoch=header_epoch) == deltas
