"""The two flow hashes: vectors, what they cover, how they spread."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import FlowEntry, FlowKey, SeqAdj, inverse
from sync.flowhash import BUCKETS, FlowHash, bucket_of
from tests.unit.sync.flow_strategies import entries
from tests.unit.sync.flowhash_vectors import COUNTING, ENTRIES, VECTORS, ZEROS, Vector
from tests.unit.sync.sync_flows import tcp, udp

P = (1 << 61) - 1


def by_definition(secret: bytes, text: bytes) -> int:
    """A sum of powers, then MurmurHash3's fmix64 as its source has it."""
    k = int.from_bytes(secret[:8], "big") % P or 1
    words = [int.from_bytes(text[at : at + 7], "big") for at in range(0, len(text), 7)]
    words.append(len(text))
    h = sum(word * pow(k, len(words) - 1 - at, P) for at, word in enumerate(words)) % P
    h ^= int.from_bytes(secret[8:16], "big")
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h ^= h >> 33
        h = h * factor % (1 << 64)
    return h ^ h >> 33


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors(vector: Vector) -> None:
    hashes = FlowHash(vector.secret)
    assert hashes.flow(vector.entry.key) == vector.flow
    assert hashes.contribution(vector.entry, vector.incarnation) == vector.contribution
    assert by_definition(vector.secret, bytes.fromhex(vector.flow_text)) == vector.flow
    text = bytes.fromhex(vector.contribution_text)
    assert by_definition(vector.secret, text) == vector.contribution


def _texts(entry: FlowEntry, incarnation: int) -> tuple[bytes, bytes]:
    """Both canonical texts, field by field."""
    orig, reply = entry.key.orig, entry.reply
    flow = b"".join(
        (
            entry.key.zone.to_bytes(2, "big"),
            bytes([4 if len(orig.src) == 4 else 6, orig.proto]),
            orig.src, orig.dst, orig.sport.to_bytes(2, "big"), orig.dport.to_bytes(2, "big"),
        )
    )  # fmt: skip
    rest = b"".join(
        (
            incarnation.to_bytes(4, "big"),
            reply.src, reply.dst, reply.sport.to_bytes(2, "big"), reply.dport.to_bytes(2, "big"),
            (entry.helper or "").encode("ascii"),
        )
    )  # fmt: skip
    return flow, flow + rest


@given(entries(), st.integers(0, 0xFFFFFFFF), st.binary(min_size=32, max_size=32))
def test_any_flow_hashes_as_defined(entry: FlowEntry, incarnation: int, secret: bytes) -> None:
    flow, whole = _texts(entry, incarnation)
    hashes = FlowHash(secret)
    assert hashes.flow(entry.key) == by_definition(secret, flow)
    assert hashes.contribution(entry, incarnation) == by_definition(secret, whole)


BASE, LIFE = ENTRIES[0]


ORIG = BASE.key.orig


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, key=FlowKey(1, ORIG)),
        replace(BASE, key=FlowKey(0, replace(ORIG, sport=1))),
        replace(BASE, key=FlowKey(0, replace(ORIG, dport=1))),
        replace(BASE, key=FlowKey(0, replace(ORIG, src=ORIG.dst))),
        replace(BASE, key=FlowKey(0, replace(ORIG, proto=17))),
        replace(BASE, reply=replace(BASE.reply, dport=1)),
        replace(BASE, reply=replace(BASE.reply, sport=1)),
        replace(BASE, reply=replace(BASE.reply, src=ORIG.src)),
        replace(BASE, reply=replace(BASE.reply, dst=ORIG.src)),
        replace(BASE, reply=inverse(ORIG)),
        replace(BASE, helper="ftp"),
    ],
)
def test_the_contribution_differs_with_each_part_of_the_identity(other: FlowEntry) -> None:
    hashes = FlowHash(COUNTING)
    assert hashes.contribution(other, LIFE) != hashes.contribution(BASE, LIFE)
    assert hashes.contribution(BASE, LIFE + 1) != hashes.contribution(BASE, LIFE)


def test_what_changes_in_a_flows_life_is_left_out() -> None:
    hashes = FlowHash(COUNTING)
    changed = replace(
        tcp(), status=0, timeout_s=1, mark=5, tcp=None, labels=bytes(16), kernel_id=7,
        seqadj=(SeqAdj(1, 2, 3), SeqAdj(4, 5, 6)), master=ORIG,
    )  # fmt: skip
    assert hashes.contribution(changed, 1) == hashes.contribution(tcp(), 1)


def test_another_secret_gives_other_hashes() -> None:
    one, two = FlowHash(COUNTING), FlowHash(ZEROS)
    assert one.flow(BASE.key) != two.flow(BASE.key)


def test_consecutive_flows_spread_over_all_buckets() -> None:
    hashes = FlowHash(COUNTING)
    counts = Counter(bucket_of(hashes.flow(udp(port).key)) for port in range(20_000))
    assert sorted(counts) == list(range(BUCKETS))
    assert max(counts.values()) < 2 * 20_000 / BUCKETS
