"""What the kernel says of flows: golden messages, a dumb writer as oracle, garbage."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import AF_INET, AF_INET6, FlowEntry, FlowKey, SeqAdj, TcpState, Tuple
from sync.ctnetlink import (
    EventKind,
    MalformedMessageError,
    parse_dump,
    parse_errors,
    parse_events,
)
from tests.unit.sync.flow_strategies import (
    attribute,
    entries,
    nest,
    tuple_parts,
    write_attributes,
    write_message,
)

NEW, DELETE = 0x100, 0x102
CREATE_EXCL = 0x600

# Written by a 6.18 kernel with nf_conntrack_timestamp=1.
GOLDEN_TCP4_SNAT = (
    "f4000000000100060000000096c44fe102000000340001801400018008000100c000020a08000200c633640a1c00"
    "02800500010006000000060002009c4000000600030000500000340002801400018008000100c633640a08000200"
    "c63364fe1c00028005000100060000000600020000500000060003000400000008000c00ca2e686c080003000000"
    "019e0800070000069780300004802c00018005000100030000000500020007000000050003000800000006000400"
    "0b000000060005000b0000001c001880080001000000000008000200000000000800030000000000080008001141"
    "00070c001b0018ea5ac64f26c6e7"
)
GOLDEN_TCP4_DESTROY = (
    "d4000000020100000000000096c44fe102000000340001801400018008000100c000020a08000200c633640a1c00"
    "02800500010006000000060002009c4000000600030000500000340002801400018008000100c633640a08000200"
    "c63364fe1c00028005000100060000000600020000500000060003000400000008000c00ca2e686c080003000000"
    "039e080007000006977f1c0014800c00010018ea5ac64f26c15e0c00020018ea5ac64f6e6656100004800c000180"
    "050001000300000008000800114100070c001b0018ea5ac64f6e66bf"
)
GOLDEN_TCP6_DNAT_ZONE_HELPER = (
    "38010000000100060000000096c44fe10a0000004c0001802c0001801400030020010db800010000000000000000"
    "00101400040020010db80002000000000000000000fe1c0002800500010006000000060002009c40000006000300"
    "001500004c0002802c0001801400030020010db80002000000000000000000101400040020010db8000100000000"
    "0000000000101c00028005000100060000000600020008490000060003009c400000060012000005000008000c00"
    "ff8d896608000300000021ae080007000000012c300004802c000180050001000300000005000200070000000500"
    "030008000000060004000b000000060005000b0000000c00058008000100667470001c0018800800010000000000"
    "0800020000000000080003000000000008000800000000000c001b0018ea5ac64f29cbfe"
)
GOLDEN_ICMP4_SNAT = (
    "d4000000000100060000000096c44fe1020000003c0001801400018008000100c000020a08000200c633640a2400"
    "0280050001000100000006000400004d0000050005000800000005000600000000003c0002801400018008000100"
    "c633640a08000200c63364fe24000280050001000100000006000400005800000500050000000000050006000000"
    "000008000c00d1dbc233080003000000019a080007000000001e1c00188008000100000000000800020000000000"
    "080003000000000008000800000000000c001b0018ea5ac64f2b1b44"
)
GOLDEN_ICMP6 = (
    "04010000000100060000000096c44fe10a000000540001802c0001801400030020010db800010000000000000000"
    "00101400040020010db800020000000000000000001024000280050001003a00000006000700004d000005000800"
    "800000000500090000000000540002802c0001801400030020010db8000200000000000000000010140004002001"
    "0db800010000000000000000001024000280050001003a00000006000700004d0000050008008100000005000900"
    "0000000008000c00ef6df390080003000000018a080007000000001e1c0018800800010000000000080002000000"
    "0000080003000000000008000800000000000c001b0018ea5ac64f2c1d12"
)
GOLDEN_UDP4_LABELS_SEQADJ = (
    "10010000000100060000000096c44fe102000000340001801400018008000100c000020a08000200c633640a1c00"
    "0280050001001100000006000200000100000600030000020000340002801400018008000100c633640a08000200"
    "c000020a1c00028005000100110000000600020000020000060003000001000008000c0056e1a905080003000000"
    "01ca080007000000001e14001600020202020202020202020202020202021c000f80080001000000000108000200"
    "fffffffe08000300000000031c0010800800010000000004080002000000000508000300fffffffa1c0018800800"
    "0100000000000800020000000000080003000000000008000800000000000c001b0018ea5ac64f2e9025"
)
GOLDEN_ESP4 = (
    "a4000000000100060000000096c44fe102000000240001801400018008000100c000020a08000200c633640a0c00"
    "02800500010032000000240002801400018008000100c633640a08000200c000020a0c0002800500010032000000"
    "08000c001d9a7809080003000000018a080007000000001e1c001880080001000000000008000200000000000800"
    "03000000000008000800000000000c001b0018ea5ac64f2d5954"
)
GOLDEN = (
    GOLDEN_TCP4_SNAT,
    GOLDEN_TCP4_DESTROY,
    GOLDEN_TCP6_DNAT_ZONE_HELPER,
    GOLDEN_ICMP4_SNAT,
    GOLDEN_ICMP6,
    GOLDEN_UDP4_LABELS_SEQADJ,
    GOLDEN_ESP4,
)
PID = 3780101270


def flow(proto: int, src: str, dst: str, sport: int = 0, dport: int = 0) -> Tuple:
    one, two = ip_address(src), ip_address(dst)
    family = AF_INET if one.version == 4 else AF_INET6
    return Tuple(family, proto, one.packed, two.packed, sport, dport)


def test_golden_new_of_a_translated_tcp_flow() -> None:
    (event,) = parse_events(bytes.fromhex(GOLDEN_TCP4_SNAT))
    assert event.kind is EventKind.NEW
    assert event.pid == PID
    assert event.time_ns == 1795347209238529767
    assert event.entry == FlowEntry(
        key=FlowKey(0, flow(6, "192.0.2.10", "198.51.100.10", 40000, 80)),
        reply=flow(6, "198.51.100.10", "198.51.100.254", 80, 1024),
        status=0x19E,
        timeout_s=432000,
        mark=0x11410007,
        tcp=TcpState(3, 0x0B, 0x0B, 7, 8),
        kernel_id=0xCA2E686C,
    )


def test_golden_destroy_has_state_status_timeout_and_mark() -> None:
    (event,) = parse_events(bytes.fromhex(GOLDEN_TCP4_DESTROY))
    assert event.kind is EventKind.DESTROY
    assert event.entry.tcp == TcpState(3, 0, 0, 0, 0)
    assert event.entry.status == 0x39E
    assert event.entry.timeout_s == 431999
    assert event.entry.mark == 0x11410007


def test_golden_ipv6_with_destination_translation_zone_and_helper() -> None:
    (event,) = parse_events(bytes.fromhex(GOLDEN_TCP6_DNAT_ZONE_HELPER))
    entry = event.entry
    assert entry.key == FlowKey(5, flow(6, "2001:db8:1::10", "2001:db8:2::fe", 40000, 21))
    assert entry.reply == flow(6, "2001:db8:2::10", "2001:db8:1::10", 2121, 40000)
    assert entry.helper == "ftp"


@pytest.mark.parametrize(
    ("golden", "orig", "reply"),
    [
        (
            GOLDEN_ICMP4_SNAT,
            flow(1, "192.0.2.10", "198.51.100.10", 77, 8 << 8),
            flow(1, "198.51.100.10", "198.51.100.254", 88, 0),
        ),
        (
            GOLDEN_ICMP6,
            flow(58, "2001:db8:1::10", "2001:db8:2::10", 77, 128 << 8),
            flow(58, "2001:db8:2::10", "2001:db8:1::10", 77, 129 << 8),
        ),
        (
            GOLDEN_ESP4,
            flow(50, "192.0.2.10", "198.51.100.10"),
            flow(50, "198.51.100.10", "192.0.2.10"),
        ),
    ],
)
def test_golden_protocols_without_ports(golden: str, orig: Tuple, reply: Tuple) -> None:
    (event,) = parse_events(bytes.fromhex(golden))
    assert event.entry.key.orig == orig
    assert event.entry.reply == reply
    assert event.entry.tcp is None


def test_golden_labels_and_sequence_adjustment() -> None:
    (event,) = parse_events(bytes.fromhex(GOLDEN_UDP4_LABELS_SEQADJ))
    assert event.entry.labels == b"\x02" * 16
    assert event.entry.seqadj == (SeqAdj(1, -2, 3), SeqAdj(4, 5, -6))


def test_several_messages_come_in_order_and_others_are_skipped() -> None:
    expectation = write_message(0x200, CREATE_EXCL, 0, [attribute(1, b"abcd")])
    buffer = bytes.fromhex(GOLDEN_ICMP4_SNAT) + expectation + bytes.fromhex(GOLDEN_TCP4_DESTROY)
    events = parse_events(memoryview(bytearray(buffer)))
    assert [event.kind for event in events] == [EventKind.NEW, EventKind.DESTROY]


@given(entries(), st.sampled_from([(NEW, CREATE_EXCL), (NEW, 0), (DELETE, 0)]), st.data())
def test_reads_what_the_kernel_would_write_in_any_order(
    entry: FlowEntry, kind: tuple[int, int], data: st.DataObject
) -> None:
    parts = data.draw(st.permutations(write_attributes(entry)))
    (event,) = parse_events(write_message(*kind, 42, parts))
    assert event.entry == entry
    assert event.pid == 42
    assert (
        event.kind
        == {
            (NEW, CREATE_EXCL): EventKind.NEW,
            (NEW, 0): EventKind.UPDATE,
            (DELETE, 0): EventKind.DESTROY,
        }[kind]
    )


@given(entries())
def test_the_general_walk_reads_tuples_like_the_fast_path(entry: FlowEntry) -> None:
    def odd(kind: int, which: Tuple) -> bytes:
        # Protocol before addresses, keys backwards, and an attribute that nobody knows.
        addresses, keys = tuple_parts(which)
        return nest(kind, [nest(2, keys[::-1]), attribute(99, b"\1"), nest(1, addresses[::-1])])

    parts = [odd(1, entry.key.orig), odd(2, entry.reply), *write_attributes(entry)[2:]]
    (event,) = parse_events(write_message(NEW, 0, 0, parts))
    assert event.entry == entry


def test_a_zone_of_the_original_direction_is_the_zone_to_ask_for() -> None:
    orig = flow(17, "192.0.2.10", "198.51.100.10", 1, 2)
    addresses, keys = tuple_parts(orig)
    zoned = nest(1, [nest(1, addresses), nest(2, keys), attribute(3, struct.pack(">H", 9))])
    reply = nest(2, [nest(1, addresses), nest(2, keys)])
    (event,) = parse_events(write_message(NEW, 0, 0, [zoned, reply]))
    assert event.entry.key == FlowKey(9, orig)


@pytest.mark.parametrize("golden", GOLDEN)
def test_truncation_at_every_length_is_refused(golden: str) -> None:
    message = bytes.fromhex(golden)
    for length in range(1, len(message)):
        with pytest.raises(MalformedMessageError):
            parse_events(message[:length])


@pytest.mark.parametrize("golden", GOLDEN)
def test_any_byte_may_be_wrong(golden: str) -> None:
    message = bytearray.fromhex(golden)
    for index in range(len(message)):
        for value in (0x00, 0x01, 0x7F, 0xFF, message[index] ^ 0x04):
            broken = bytearray(message)
            broken[index] = value
            for parse in (parse_events, parse_dump, parse_errors):
                try:
                    parse(broken)
                except MalformedMessageError:
                    continue


@given(st.binary(max_size=300))
def test_garbage_raises_only_the_documented_error(garbage: bytes) -> None:
    for parse in (parse_events, parse_dump, parse_errors):
        try:
            parse(garbage)
        except MalformedMessageError:
            continue


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.binary(max_size=60)), max_size=8))
def test_garbage_in_well_formed_attributes_raises_only_the_documented_error(
    parts: list[tuple[int, bool, bytes]],
) -> None:
    written = [attribute(kind | (0x8000 if nested else 0), body) for kind, nested, body in parts]
    base = write_attributes(FlowEntry(FlowKey(0, flow(50, "1.2.3.4", "5.6.7.8")),
                                      flow(50, "5.6.7.8", "1.2.3.4"), 8))  # fmt: skip
    for message in (write_message(NEW, 0, 0, written), write_message(NEW, 0, 0, base + written)):
        try:
            parse_events(message)
        except MalformedMessageError:
            continue


def test_a_dump_ends_with_done_and_its_errno() -> None:
    entry = bytes.fromhex(GOLDEN_TCP4_SNAT)
    part = parse_dump(entry * 2)
    assert (len(part.entries), part.errno) == (2, None)
    done = struct.pack("=IHHIIi", 20, 3, 2, 1, 7, 0)
    assert parse_dump(entry + done).errno == 0
    assert parse_dump(struct.pack("=IHHIIi", 20, 3, 2, 1, 7, -12)).errno == 12


def test_errors_carry_sequence_and_errno() -> None:
    error = struct.pack("=IHHIIi", 36, 2, 0, 9, 7, -17) + bytes(16)
    acknowledged = struct.pack("=IHHIIi", 36, 2, 0, 10, 7, 0) + bytes(16)
    assert parse_errors(error + acknowledged) == [(9, 17), (10, 0)]
    with pytest.raises(MalformedMessageError):
        parse_errors(struct.pack("=IHHII", 16, 2, 0, 9, 7))
