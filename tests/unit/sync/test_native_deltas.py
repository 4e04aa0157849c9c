"""The native reader of deltas and the native builders against the reference: equal, both ways."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import MARK_MASK, FlowEntry, FlowKey, Tuple
from sync import _codec as native
from sync.ctnetlink import build_create, build_delete, build_update, clear_liberal
from sync.delta import (
    Delta,
    DeltaError,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    Upsert,
    decode_deltas,
    encode_delta,
    encode_deltas,
)
from tests.fuzz.corpus import DELTAS as CORPUS
from tests.fuzz.corpus import RICH, SYNPROXIED
from tests.fuzz.mutation import mutated
from tests.unit.sync.flow_strategies import entries, tuples
from tests.unit.sync.test_delta import (
    DELTAS,
    DESTROY,
    DESTROYS,
    EPOCHS,
    KEYS,
    UPSERTS,
)

RICH_MASTER, RICH_SEQADJ, RICH_HELPER = 1, 2, 16
HEADER_EPOCHS = st.none() | EPOCHS


def simple(delta: Upsert) -> Upsert:
    """Without what only the reference says (flag MORE)."""
    return replace(delta, entry=replace(delta.entry, sctp=None, synproxy=None))


def is_foreign(delta: Delta) -> bool:
    """Only the reference reads it."""
    match delta:
        case ExpectUpsert() | ExpectDestroy():
            return True
        case Upsert(entry=entry):
            return entry.sctp is not None or entry.synproxy is not None
        case _:
            return False


SOME_DELTAS = st.lists(UPSERTS.map(simple) | DESTROYS, min_size=1, max_size=4)


def rich_of(entry: FlowEntry) -> int:
    return (
        (RICH_MASTER if entry.master is not None else 0)
        | (RICH_SEQADJ if entry.seqadj is not None else 0)
        | (RICH_HELPER if entry.helper is not None else 0)
    )


def as_native(delta: Delta) -> tuple[object, ...]:
    """What the native reader gives for a delta that it knows."""
    version = delta.version
    if isinstance(delta, Destroy):
        told = (delta.contribution, False, 0)
        return (True, delta.key, delta.incarnation, version.epoch, version.count, *told)
    assert isinstance(delta, Upsert)
    entry = replace(delta.entry, master=None, seqadj=None)
    told = (0, delta.refresh, rich_of(delta.entry))
    return (False, entry, delta.incarnation, version.epoch, version.count, *told)


def of_reference(payload: bytes, header_epoch: int | None) -> list[tuple[object, ...]] | str:
    try:
        deltas = decode_deltas(payload, header_epoch=header_epoch)
    except DeltaError as error:
        return error.reason
    return [as_native(delta) for delta in deltas]


def assert_equal(payload: bytes, header_epoch: int | None) -> bool:
    """Whether the native reader judged this payload by itself."""
    found = native.decode_deltas(payload, header_epoch)
    assert native.check_deltas(payload, header_epoch) == (
        found if isinstance(found, str) else None
    )
    if found == "reference":
        return False
    assert found == of_reference(payload, header_epoch), payload.hex()
    return True


@given(SOME_DELTAS, HEADER_EPOCHS, HEADER_EPOCHS)
def test_what_the_reference_writes_is_read_alike(
    deltas: list[Delta], written: int | None, read: int | None
) -> None:
    assert assert_equal(encode_deltas(deltas, header_epoch=written), read)


@given(st.lists(DELTAS, min_size=1, max_size=3))
def test_what_it_does_not_know_is_left_to_the_reference(deltas: list[Delta]) -> None:
    payload = encode_deltas(deltas, header_epoch=1)
    unknown = any(map(is_foreign, deltas))
    assert (native.check_deltas(payload, 1) == "reference") == unknown


@given(st.lists(DELTAS, min_size=1, max_size=3), st.integers(0, 1 << 32), HEADER_EPOCHS)
def test_broken_payloads_are_refused_alike(
    deltas: list[Delta], seed: int, header_epoch: int | None
) -> None:
    assert_equal(mutated(random.Random(seed), encode_deltas(deltas)), header_epoch)


@given(st.binary(max_size=200), HEADER_EPOCHS)
def test_random_bytes_are_refused_alike(payload: bytes, header_epoch: int | None) -> None:
    assert_equal(payload, header_epoch)


HEAD = bytes.fromhex("06 c000020a c6336401 9c40 0050 a1b2c3d4".replace(" ", ""))
PING = bytes.fromhex("01 c000020a c6336401 0007 0800 a1b2c3d4".replace(" ", ""))
COUNTS = ["00", "7f", "8000", "ffffffff0f", "8080808010", "808080808000", "80808080", "80" * 5]
WORDS = "0e 11410007"
FLAGGED: list[tuple[int, bytes, str]] = [
    *((0, HEAD, f"{count} {WORDS}") for count in COUNTS),
    *((1, HEAD, f"{count} 0102030405060708") for count in COUNTS),
    *((0, HEAD, "80" * size) for size in (4, 5, 6)),
    (0, HEAD, "00 8e 11410007"),
    (0x80, HEAD[:13] + b"\0\0" + HEAD[13:], f"00 {WORDS}"),
    (0x80, HEAD[:13] + b"\0\1" + HEAD[13:], f"00 {WORDS}"),
    *((0x40, HEAD, f"00 {WORDS} {time}") for time in ("ffffffff07", "8080808008", "05", "")),
    *((0x20, HEAD, f"00 {WORDS} {state:02x}778899") for state in (0, 9, 10, 255)),
    (0x20, PING, f"00 {WORDS} 03778899"),
    *((0x08, PING, f"00 {WORDS} 01020304 {key}") for key in ("0000", "0800", "0001")),
    *((0x10, PING, f"00 {WORDS} 01020304 {key}") for key in ("0007", "0008")),
    *((0x100, HEAD, f"00 {WORDS} {name}") for name in ("00", "0121", "0120", "017e", "017f", "")),
    *((0x100, HEAD, f"00 {WORDS} {size:02x}" + "41" * size) for size in (14, 15, 16)),
    *((0x200, HEAD, f"00 {WORDS} {size:02x}" + "00" * size) for size in (0, 1, 16, 17)),
    *((0x400, HEAD, f"00 {WORDS}" + "00" * size) for size in (23, 24, 25)),
    *((0x800, HEAD, f"00 {WORDS}" + "00" * size) for size in (12, 13, 14)),
    (0x4000, HEAD, f"00 {WORDS}"),
    (0x03, HEAD, "00 0102030405060708"),
]


@pytest.mark.parametrize("behind", [b"", encode_delta(DESTROY)], ids=["last", "not last"])
@pytest.mark.parametrize("header_epoch", [None, 7])
def test_every_border_is_where_the_reference_has_it(
    behind: bytes, header_epoch: int | None
) -> None:
    judged = 0
    for flags, head, tail in FLAGGED:
        stated = bytes(7) + b"\x09" if header_epoch is None else b""
        flags |= 0 if header_epoch is not None else 0x1000
        count, _, rest = tail.partition(" ")
        body = flags.to_bytes(2, "big") + head + bytes.fromhex(count) + stated
        body += bytes.fromhex(rest)
        for cut in range(3):  # Also with a length that is too short, and with one too long.
            length = len(body) + cut - 1
            judged += assert_equal(bytes((length,)) + body + behind, header_epoch)
    assert judged > 2 * len(FLAGGED)


def compare_mutations(seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    judged = 0
    for _ in range(rounds):
        judged += assert_equal(mutated(rng, rng.choice(CORPUS)), rng.choice((None, 7)))
    # Most mutations are judged natively, or this test would compare nothing.
    assert judged > rounds // 3


def test_a_few_mutations_are_judged_alike() -> None:
    compare_mutations(5, 5000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_many_mutations_are_judged_alike(seed: int) -> None:
    compare_mutations(seed, 300_000)


def plain(entry: FlowEntry) -> FlowEntry:
    return replace(entry, master=None, seqadj=None, sctp=None, synproxy=None)


ENTRIES = entries().map(plain)
HOLDS = st.integers(0, 0x7FFFFFFF)


@given(ENTRIES, st.none() | HOLDS, st.booleans())
def test_creations_are_equal(entry: FlowEntry, hold_s: int | None, pristine: bool) -> None:
    assert native.build_create(entry, hold_s=hold_s, pristine=pristine) == build_create(
        entry, hold_s=hold_s, pristine=pristine
    )


@given(ENTRIES, HOLDS, st.booleans())
def test_updates_are_equal(entry: FlowEntry, hold_s: int, with_tcp: bool) -> None:
    assert native.build_update(entry, hold_s=hold_s, with_tcp=with_tcp) == build_update(
        entry.key,
        status=entry.status,
        timeout_s=max(hold_s, entry.timeout_s or 0),
        mark=(entry.mark, 0xFFFFFFFF),
        tcp=entry.tcp if with_tcp else None,
        expected=bool(entry.status & 1),
    )


@given(KEYS, st.none() | st.integers(0, 0xFFFFFFFF), st.none() | HOLDS)
def test_messages_for_a_key_are_equal(key: FlowKey, mark: int | None, timeout: int | None) -> None:
    ours = None if mark is None else (mark & MARK_MASK, MARK_MASK)
    assert native.build_adopt(key, mark=mark, timeout_s=timeout) == build_update(
        key, timeout_s=timeout, mark=ours
    )
    assert native.build_delete(key) == build_delete(key)
    assert native.clear_liberal(key) == clear_liberal(key)


@given(tuples())
def test_a_deletion_cannot_be_built_without_a_tuple(flow: Tuple) -> None:
    odd = FlowKey(0, replace(flow, family=28))
    for wrong in (None, flow, FlowKey(0, cast(Tuple, None)), odd):
        with pytest.raises((AttributeError, AssertionError)):
            native.build_delete(cast(FlowKey, wrong))


def test_what_the_native_builder_cannot_say_it_refuses() -> None:
    for entry in (RICH, SYNPROXIED):
        with pytest.raises(ValueError, match="reference"):
            native.build_create(entry)
