"""Long fuzzing of everything that reads bytes from a peer or the kernel, by mutation of good ones.

The seed is the parameter: a failure is replayed by running that case alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from sync.control import Challenge, ChallengeReply, Nack, control_type, decode_control
from sync.control import encode_control as encode
from sync.ctnetlink import (
    MalformedMessageError,
    build_create,
    build_expect_create,
    parse_mixed_events,
)
from sync.delta import DeltaError, ExpectUpsert, Upsert, decode_deltas, encode_delta, encode_deltas
from sync.wire import MessageType, WireError
from tests.unit.sync.test_ctnetlink_expect import MADE_V4, MADE_V6, V4
from tests.unit.sync.test_ctnetlink_parse import GOLDEN
from tests.unit.sync.test_delta import DESTROY, UPSERT

ROUNDS = 200_000
DELTAS = [
    encode_delta(UPSERT),
    encode_delta(DESTROY),
    encode_delta(UPSERT) + encode_delta(DESTROY),
    encode_delta(ExpectUpsert(V4, 7, UPSERT.version)) + encode_delta(UPSERT),
]
MESSAGES = [bytes.fromhex(golden) for golden in (*GOLDEN, MADE_V4, MADE_V6)]
CONTROLS: list[tuple[MessageType, bytes]] = [
    (control_type(one), encode(one))
    for one in (
        Nack(7, [(1, 5), (9, 9)]),
        Challenge(bytes(16)),
        ChallengeReply(bytes(16), 7, 9),
    )
]


def mutated(rng: random.Random, good: bytes) -> bytes:
    """Bytes changed, cut out, doubled or cut off: up to four of these."""
    broken = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        if not broken:
            break
        at = rng.randrange(len(broken))
        match rng.randrange(5):
            case 0:
                broken[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 1:
                broken[at] ^= 1 << rng.randrange(8)
            case 2:
                del broken[at : at + rng.randint(1, 8)]
            case 3:
                broken[at:at] = broken[at : at + rng.randint(1, 8)]
            case _:
                del broken[at:]
    return bytes(broken)


def fuzz_delta(rng: random.Random) -> None:
    payload = mutated(rng, rng.choice(DELTAS))
    try:
        deltas = decode_deltas(payload, header_epoch=1)
    except DeltaError:
        return
    assert decode_deltas(encode_deltas(deltas, header_epoch=1), header_epoch=1) == deltas
    for delta in deltas:
        if isinstance(delta, Upsert):
            build_create(delta.entry, with_master=True)
        elif isinstance(delta, ExpectUpsert):
            build_expect_create(delta.expectation)


def fuzz_event(rng: random.Random) -> None:
    try:
        parse_mixed_events(mutated(rng, rng.choice(MESSAGES)))
    except MalformedMessageError:
        return


def fuzz_control(rng: random.Random) -> None:
    kind, good = rng.choice(CONTROLS)
    try:
        decode_control(kind, mutated(rng, good))
    except WireError:
        return


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fuzz", [fuzz_delta, fuzz_event, fuzz_control])
def test_mutations_raise_only_documented_errors(
    fuzz: Callable[[random.Random], None], seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        fuzz(rng)


@pytest.mark.parametrize("fuzz", [fuzz_delta, fuzz_event, fuzz_control])
def test_a_few_mutations_raise_only_documented_errors(
    fuzz: Callable[[random.Random], None],
) -> None:
    rng = random.Random(99)
    for _ in range(3000):
        fuzz(rng)
