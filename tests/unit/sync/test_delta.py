"""Deltas: round trips, the pinned bytes, sizes, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import (
    AF_INET,
    FlowEntry,
    FlowKey,
    SctpState,
    SynProxy,
    TcpState,
    Tuple,
)
from sync.ctnetlink import build_create, build_expect_create, build_expect_delete
from sync.delta import (
    STATUS_WIRE_MASK,
    Delta,
    DeltaError,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    Upsert,
    Version,
    decode_deltas,
    encode_delta,
    encode_deltas,
)
from tests.unit.sync.flow_strategies import INCARNATIONS, entries, expectations, tuples
from tests.unit.sync.sync_flows import HASHES

EPOCHS = st.integers(0, (1 << 64) - 1)
VERSIONS = st.builds(Version, epoch=EPOCHS, count=st.integers(0, 0xFFFFFFFF))
KEYS = st.builds(FlowKey, zone=st.sampled_from((0, 7, 0xFFFF)), orig=tuples())
HEADER_EPOCH = 7 << 32 | 1


def as_sent(entry: FlowEntry) -> FlowEntry:
    """What of an entry travels: not the kernel's id, and of the status the lowest seven bits."""
    return dataclasses.replace(entry, status=entry.status & STATUS_WIRE_MASK, kernel_id=None)


UPSERTS = st.builds(
    Upsert, entries().map(as_sent), incarnation=INCARNATIONS, version=VERSIONS,
    refresh=st.booleans(),
)  # fmt: skip
DESTROYS = st.builds(
    Destroy, KEYS, incarnation=INCARNATIONS, version=VERSIONS,
    contribution=st.integers(0, (1 << 64) - 1),
)  # fmt: skip
EXPECTED = st.builds(
    ExpectUpsert, expectations(), incarnation=INCARNATIONS, version=VERSIONS,
    refresh=st.booleans(),
)  # fmt: skip
UNEXPECTED = EXPECTED.map(
    lambda one: ExpectDestroy(
        one.expectation.master, one.expectation.expected, one.incarnation, one.version
    )
)
DELTAS = UPSERTS | DESTROYS | EXPECTED | UNEXPECTED


def packed(address: str) -> bytes:
    return IPv4Address(address).packed


CLIENT, SERVER, VIP = packed("192.0.2.10"), packed("198.51.100.10"), packed("198.51.100.254")
KEY = FlowKey(0, Tuple(AF_INET, 6, CLIENT, SERVER, 40000, 80))
ENTRY = FlowEntry(
    KEY,
    Tuple(AF_INET, 6, SERVER, VIP, 80, 1024),
    0x1E,
    432000,
    0x11410007,
    TcpState(3, 0x23, 0x23, 7, 8),
)
INCARNATION = 0xA1B2C3D4
UPSERT = Upsert(ENTRY, INCARNATION, Version(HEADER_EPOCH, 300), refresh=True)
DESTROY = Destroy(KEY, INCARNATION, Version(HEADER_EPOCH, 301), 0xDB8EFAB9A750482C)


@given(st.lists(DELTAS, max_size=6), st.none() | EPOCHS)
def test_round_trip(deltas: list[Delta], header_epoch: int | None) -> None:
    payload = encode_deltas(deltas, header_epoch=header_epoch)
    assert decode_deltas(payload, header_epoch=header_epoch) == deltas


@given(DELTAS)
def test_the_epoch_is_left_out_where_the_header_has_it(delta: Delta) -> None:
    short = encode_delta(delta, header_epoch=delta.version.epoch)
    assert len(encode_delta(delta)) - len(short) in (8, 9)
    assert decode_deltas(short, header_epoch=delta.version.epoch) == [delta]
    with pytest.raises(DeltaError) as refused:
        decode_deltas(short)
    assert refused.value.reason == "no_epoch"


def test_the_bytes_on_the_wire_are_pinned() -> None:
    """A change here breaks clusters in the middle of an upgrade: raise `wire.VERSION` with it."""
    assert encode_delta(UPSERT, header_epoch=HEADER_EPOCH).hex() == (
        "27"  # length
        "006a"  # flags: refresh, snat, tcp, timeout
        "06c000020ac633640a9c400050"  # protocol, orig
        "a1b2c3d4ac02"  # incarnation, count
        "1e11410007"  # status, mark
        "80af1a"  # timeout
        "c63364fe0400"  # snat
        "03782323"  # TCP
    )
    assert encode_delta(UPSERT).hex().startswith("2f106a")
    assert encode_delta(DESTROY, header_epoch=HEADER_EPOCH).hex() == (
        "1d000106c000020ac633640a9c400050a1b2c3d4ad02db8efab9a750482c"
    )


SCTP_KEY = FlowKey(0, Tuple(AF_INET, 132, CLIENT, SERVER, 40000, 80))
SCTP_ENTRY = FlowEntry(
    SCTP_KEY, Tuple(AF_INET, 132, SERVER, CLIENT, 80, 40000), 0xE, sctp=SctpState(4, 7, 0x80000008)
)
SCTP_UPSERT = Upsert(SCTP_ENTRY, INCARNATION, Version(HEADER_EPOCH, 1))
PROXIED = dataclasses.replace(UPSERT, entry=dataclasses.replace(ENTRY, synproxy=SynProxy(1, 2, 3)))


def test_the_rare_fields_of_the_second_flag_byte_are_pinned() -> None:
    assert encode_delta(SCTP_UPSERT, header_epoch=HEADER_EPOCH).hex() == (
        "23"  # length
        "8000"  # flags: more
        "84c000020ac633640a9c400050"  # protocol, orig
        "a1b2c3d401"  # incarnation, count
        "0e00000000"  # status, mark
        "02040000000780000008"  # more: SCTP; state, tags
    )
    assert (
        encode_delta(PROXIED, header_epoch=HEADER_EPOCH)
        .hex()
        .endswith("0378232301000000010000000200000003")
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("0204", "0404", "unknown_flags"),
        ("0204", "0209", "bad_value"),
        ("02040000000780000008", "00", "bad_value"),
        ("02040000000780000008", "", "truncated"),
        ("02040000000780000008", "020400000007800000", "truncated"),
        ("800084c0", "800011c0", "bad_value"),
    ],
)
def test_a_second_flag_byte_that_no_sender_writes_is_refused(
    old: str, new: str, reason: str
) -> None:
    body = bytes(body_of(SCTP_UPSERT)).hex()
    assert body.count(old) == 1
    assert refusal(bytes.fromhex(body.replace(old, new))) == reason


def test_an_ipv4_tcp_flow_with_snat_fits_48_bytes() -> None:
    for count in (0, 300, 0xFFFFFFFF):
        delta = dataclasses.replace(UPSERT, version=Version(HEADER_EPOCH, count))
        assert len(encode_delta(delta, header_epoch=HEADER_EPOCH)) <= 48
    assert len(encode_delta(UPSERT)) <= 48


def test_versions_are_ordered_by_epoch_first() -> None:
    assert Version(1, 9) < Version(2, 0) < Version(2, 1)


@given(DELTAS)
def test_truncation_at_every_length_is_refused(delta: Delta) -> None:
    payload = encode_delta(delta)
    for length in range(1, len(payload)):
        with pytest.raises(DeltaError):
            decode_deltas(payload[:length])
        if length < len(payload) - 1 < 0x80:
            # The bytes are there, but the length says that they belong to the next delta.
            with pytest.raises(DeltaError):
                decode_deltas(bytes([length]) + payload[1:])


@given(st.binary(max_size=120), st.booleans())
def test_garbage_raises_only_the_documented_error(garbage: bytes, framed: bool) -> None:
    payload = bytes([len(garbage)]) + garbage if framed else garbage
    try:
        deltas = decode_deltas(payload, header_epoch=1)
    except DeltaError:
        return
    # What was taken is a delta that a sender could have written.
    assert decode_deltas(encode_deltas(deltas, header_epoch=1), header_epoch=1) == deltas


@given(DELTAS, st.data())
def test_what_a_damaged_delta_still_says_can_be_asked_of_the_kernel(
    delta: Delta, data: st.DataObject
) -> None:
    """No byte of a peer may make the builder fail: it would take syncd down with it."""
    payload = bytearray(encode_delta(delta))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_deltas(bytes(payload), header_epoch=1)
    except DeltaError:
        return
    for one in decoded:
        if isinstance(one, Upsert):
            build_create(one.entry, with_master=True)
            HASHES.contribution(one.entry, one.incarnation)
        elif isinstance(one, ExpectUpsert):
            build_expect_create(one.expectation)
        elif isinstance(one, ExpectDestroy):
            build_expect_delete(one.key)


def body_of(delta: Delta) -> bytearray:
    return bytearray(encode_delta(delta, header_epoch=HEADER_EPOCH)[1:])


def refusal(body: bytes, length: int | None = None) -> str:
    with pytest.raises(DeltaError) as refused:
        decode_deltas(
            bytes([len(body) if length is None else length]) + body, header_epoch=HEADER_EPOCH
        )
    return refused.value.reason


@pytest.mark.parametrize(("bit", "deltas"), [(14, (UPSERT, DESTROY)), (15, (DESTROY,))])
def test_an_unknown_flag_is_refused(bit: int, deltas: tuple[Delta, ...]) -> None:
    for delta in deltas:
        body = body_of(delta)
        struct.pack_into(">H", body, 0, struct.unpack_from(">H", body)[0] | 1 << bit)
        assert refusal(bytes(body)) == "unknown_flags"


@pytest.mark.parametrize("bit", [1, 3, 4, 5, 6, 8, 9, 10, 11])
def test_a_destroy_has_no_fields_of_an_upsert(bit: int) -> None:
    body = body_of(DESTROY)
    struct.pack_into(">H", body, 0, 1 | 1 << bit)
    assert refusal(bytes(body)) == "unknown_flags"


def test_a_length_that_is_not_the_bodys_is_refused() -> None:
    body = bytes(body_of(UPSERT))
    assert refusal(body + b"\0") == "bad_length"
    assert refusal(body, len(body) + 1) == "truncated"
    # One byte short, while the byte is there: the next delta must not be eaten.
    assert refusal(body, len(body) - 1) == "bad_length"
    assert refusal(b"") == "truncated"


@pytest.mark.parametrize(
    ("offset", "value", "name"),
    [
        (21, b"\x9e", "a status bit that does not travel"),
        (35, b"\x0a", "a TCP state that does not exist"),
        (19, b"\xac\x82\x80\x80\x80\x00", "a count of more than 5 bytes"),
        (19, b"\x80\x00", "a count not in its shortest form"),
        (2, b"\x11", "TCP state of a UDP flow"),
    ],
)
def test_a_value_that_no_sender_writes_is_refused(offset: int, value: bytes, name: str) -> None:
    body = body_of(UPSERT)
    assert body[19:21] == b"\xac\x02"
    assert body[21] == 0x1E
    assert body[35] == 3
    width = 2 if offset == 19 else 1
    body[offset : offset + width] = value
    assert refusal(bytes(body)) == "bad_value", name


@pytest.mark.parametrize(
    ("entry", "old", "new"),
    [
        (dataclasses.replace(ENTRY, helper="ftp"), b"\x03ftp", b"\x03f\0p"),
        (dataclasses.replace(ENTRY, helper="ftp"), b"\x03ftp", b"\x00"),
        (dataclasses.replace(ENTRY, helper="ftp"), b"\x03ftp", b"\x10" + b"f" * 16),
        (dataclasses.replace(ENTRY, labels=b"l" * 16), b"\x10" + b"l" * 16, b"\x11" + b"l" * 17),
    ],
)
def test_names_and_labels_are_bounded(entry: FlowEntry, old: bytes, new: bytes) -> None:
    body = bytes(body_of(dataclasses.replace(UPSERT, entry=entry)))
    assert body.count(old) == 1
    assert refusal(body.replace(old, new)) == "bad_value"


def test_the_default_zone_is_never_said() -> None:
    body = body_of(dataclasses.replace(DESTROY, key=FlowKey(7, KEY.orig)))
    assert body[15:17] == b"\x00\x07"
    body[15:17] = b"\0\0"
    assert refusal(bytes(body)) == "bad_value"


def test_a_translation_keeps_the_type_of_icmp() -> None:
    key = FlowKey(0, Tuple(AF_INET, 1, CLIENT, SERVER, 77, 8 << 8))
    entry = FlowEntry(key, Tuple(AF_INET, 1, SERVER, VIP, 77, 0), 0xA, 30)
    body = body_of(Upsert(entry, 1, Version(HEADER_EPOCH, 1)))
    assert body[-6:] == VIP + b"\0\0"
    body[-2:] = b"\x03\x00"
    assert refusal(bytes(body)) == "bad_value"


def test_one_bad_delta_refuses_the_whole_payload() -> None:
    good = encode_delta(UPSERT, header_epoch=HEADER_EPOCH)
    with pytest.raises(DeltaError):
        decode_deltas(good + b"\x01", header_epoch=HEADER_EPOCH)
