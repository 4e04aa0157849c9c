"""The native reader of conntrack messages and writer of deltas, held equal to the reference.

Generated, recorded and damaged messages: the same values, or both refuse.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hafw.flow import IPS_EXPECTED, FlowEntry
from sync._codec import destroy_bytes, read_events, upsert_bytes
from sync.ctnetlink import EventKind, MalformedMessageError, parse_events
from sync.delta import Destroy, Upsert, Version, encode_delta
from tests.fuzz.corpus import MESSAGES
from tests.fuzz.mutation import mutated
from tests.unit.sync.flow_strategies import (
    INCARNATIONS,
    attribute,
    entries,
    nest,
    tuple_parts,
    write_attributes,
    write_message,
)
from tests.unit.sync.test_ctnetlink_parse import GOLDEN

NEW, DELETE, CREATE = 0x100, 0x102, 0x400
MASTER, SEQADJ, EXPECTED, SYNPROXY, HELPER, ODD, SCTP = (1 << bit for bit in range(7))
TO_READ_AGAIN = MASTER | SEQADJ | SYNPROXY | ODD | SCTP
"""With any of these the reference reads the message, and refuses it if it is damaged."""


def assert_equal(buffer: bytes, *, doubled: bool = False) -> int:
    """How many events both read; -1 if both refuse."""
    try:
        expected = parse_events(buffer)
    except MalformedMessageError:
        with contextlib.suppress(MalformedMessageError):
            assert any(rich & TO_READ_AGAIN for *_, rich in read_events(buffer))
        return -1
    found = read_events(buffer)
    assert len(found) == len(expected)
    for (kind, entry, pid, time_ns, rich), event in zip(found, expected, strict=True):
        assert (EventKind(kind), pid, time_ns) == (event.kind, event.pid, event.time_ns)
        mine = event.entry
        assert bool(rich & EXPECTED) == bool(mine.status & IPS_EXPECTED)
        assert bool(rich & MASTER) == (mine.master is not None)
        assert rich & SEQADJ or mine.seqadj is None
        assert rich & SYNPROXY or mine.synproxy is None
        assert rich & SCTP or mine.sctp is None
        if rich & ODD:  # An attribute that comes twice may be odd the first time only.
            assert entry is None
            assert doubled or is_odd(mine)
            continue
        assert not is_odd(mine)
        assert bool(rich & HELPER) == (mine.helper is not None)
        assert entry == replace(mine, seqadj=None, master=None, sctp=None, synproxy=None)
    return len(found)


def is_odd(entry: FlowEntry) -> bool:
    """What the native structure has no room for."""
    orig, reply, helper = entry.key.orig, entry.reply, entry.helper
    return (
        (orig.family, orig.proto) != (reply.family, reply.proto)
        or (entry.labels is not None and not 1 <= len(entry.labels) <= 16)
        or (helper is not None and not (helper.isascii() and len(helper) <= 16))
        or (entry.tcp is not None and entry.tcp.state >= 15)
    )


@given(st.data(), st.lists(entries(), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_what_the_kernel_would_write_in_any_order(
    data: st.DataObject, some: list[FlowEntry], pid: int
) -> None:
    buffer = b""
    for entry in some:
        parts = data.draw(st.permutations(write_attributes(entry)))
        if data.draw(st.booleans()):
            parts.append(attribute(27, bytes(range(8))))
        kind, flags = data.draw(st.sampled_from([(NEW, CREATE), (NEW, 0), (DELETE, 0), (2, 0)]))
        buffer += write_message(kind, flags, pid, parts)
    assert assert_equal(buffer) >= 0


@given(entries())
def test_the_general_walk_of_tuples(entry: FlowEntry) -> None:
    parts = write_attributes(entry)[2:]
    for kind, one in ((2, entry.reply), (1, entry.key.orig)):
        addresses, keys = tuple_parts(one)
        zone = attribute(3, b"\x01\x02")
        parts.insert(0, nest(kind, [nest(2, keys[::-1]), zone, nest(1, addresses[::-1])]))
    assert assert_equal(write_message(NEW, 0, 0, parts)) == 1


LEAVES = st.tuples(st.integers(0, 11), st.booleans(), st.binary(max_size=20))
NESTS = st.lists(LEAVES, max_size=6).map(
    lambda leaves: b"".join(attribute(kind | nested << 15, body) for kind, nested, body in leaves)
)
BODIES = st.binary(max_size=40) | NESTS
TREES = st.lists(st.tuples(st.integers(0, 4), st.booleans(), BODIES), max_size=4).map(
    lambda nests: b"".join(attribute(kind | nested << 15, body) for kind, nested, body in nests)
)
PARTS = st.lists(st.tuples(st.integers(0, 30), st.booleans(), BODIES | TREES), max_size=5)


@settings(max_examples=400)
@given(entries(), PARTS, st.randoms(use_true_random=False), st.booleans())
def test_strange_attributes_among_the_usual_ones(
    entry: FlowEntry, strange: list[tuple[int, bool, bytes]], rng: random.Random, usual: bool
) -> None:
    parts = write_attributes(entry) if usual else write_attributes(entry)[:2]
    for kind, nested, body in strange:
        parts.insert(rng.randint(0, len(parts)), attribute(kind | nested << 15, body))
    assert_equal(write_message(NEW, 0, 0, parts), doubled=True)


@pytest.mark.parametrize("golden", GOLDEN)
def test_recorded_messages_whole_and_cut(golden: str) -> None:
    message = bytes.fromhex(golden)
    assert assert_equal(message) == 1
    assert assert_equal(message * 3) == 3
    for length in range(1, len(message)):
        assert assert_equal(message[:length]) == -1
    assert assert_equal(b"") == 0


@pytest.mark.parametrize("golden", GOLDEN)
def test_recorded_messages_with_any_byte_wrong(golden: str) -> None:
    message = bytearray.fromhex(golden)
    for index in range(len(message)):
        for value in (0x00, 0x01, 0x7F, 0xFF, message[index] ^ 0x04):
            broken = bytearray(message)
            broken[index] = value
            assert_equal(bytes(broken), doubled=True)


@given(st.binary(max_size=120))
def test_garbage(garbage: bytes) -> None:
    assert_equal(garbage)


def test_mutations() -> None:
    rng = random.Random(7)
    read = [assert_equal(mutated(rng, rng.choice(MESSAGES)), doubled=True) for _ in range(4000)]
    assert {-1, 0, 1} <= set(read)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_many_mutations(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200_000):
        assert_equal(mutated(rng, rng.choice(MESSAGES)), doubled=True)


EPOCHS = st.integers(0, 2**64 - 1)
COUNTS = st.integers(0, 2**32 - 1)


@settings(max_examples=400)
@given(entries(), INCARNATIONS, EPOCHS, COUNTS, st.booleans(), st.booleans())
def test_deltas_are_those_of_the_reference(
    entry: FlowEntry, incarnation: int, epoch: int, count: int, refresh: bool, said: bool
) -> None:
    header = epoch if said else epoch ^ 1
    version = Version(epoch, count)
    expected = encode_delta(Upsert(entry, incarnation, version, refresh), header_epoch=header)
    found = upsert_bytes(entry, incarnation, epoch, count, refresh, header)
    plain = replace(entry, seqadj=None, master=None, sctp=None, synproxy=None)
    assert found == (expected if entry == plain else None)
    expected = encode_delta(Upsert(plain, incarnation, version, refresh), header_epoch=header)
    assert upsert_bytes(plain, incarnation, epoch, count, refresh, header) == expected


@given(entries(), INCARNATIONS, EPOCHS, COUNTS, st.integers(0, 2**64 - 1), st.booleans())
@example(parse_events(bytes.fromhex(GOLDEN[0]))[0].entry, 1, 2, 3, 4, True)
def test_destroys_are_those_of_the_reference(
    entry: FlowEntry, incarnation: int, epoch: int, count: int, contribution: int, said: bool
) -> None:
    header = epoch if said else epoch ^ 1
    expected = encode_delta(
        Destroy(entry.key, incarnation, Version(epoch, count), contribution), header_epoch=header
    )
    found = destroy_bytes(entry.key, incarnation, epoch, count, contribution, header)
    assert found == expected


def test_a_helper_name_that_no_delta_carries_is_left_to_the_reference() -> None:
    entry = replace(parse_events(bytes.fromhex(GOLDEN[0]))[0].entry, helper="sixteen-letters-")
    assert upsert_bytes(entry, 1, 2, 3, False, 2) is None
