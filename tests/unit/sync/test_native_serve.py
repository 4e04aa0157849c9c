"""Snapshots from raw dumps: what is plain natively, beside the join of the reference."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafw.flow import FlowEntry
from sync._codec import serve_dump
from sync.ctnetlink import MalformedMessageError, parse_dump
from sync.delta import Upsert, Version, decode_deltas
from sync.flowhash import FlowHash, bucket_of
from sync.native_registry import NativeRegistry
from tests.unit.sync.flow_strategies import entries, write_attributes, write_message
from tests.unit.sync.sync_flows import HASHES, tcp, udp

NEW, DONE = 0x100, 3
EPOCH = 7
VERSIONS = st.builds(Version, st.integers(6, 8), st.integers(0, 2))
KNOWN = st.sampled_from(["known", "known", "known", "another life", "unknown"])


def written(entry: FlowEntry) -> bytes:
    return write_message(NEW, 0, 0, write_attributes(entry))


def by_reference(
    registry: NativeRegistry, dump: bytes, buckets: frozenset[int]
) -> Counter[Upsert]:
    """`SnapshotServer._join`, entry by entry."""
    found: Counter[Upsert] = Counter()
    for entry in parse_dump(dump).entries:
        record = registry.get(entry.key)
        if buckets and bucket_of(registry.hashes.flow(entry.key)) not in buckets:
            continue
        if record is None:
            continue
        if registry.hashes.contribution(entry, record.incarnation) != record.contribution:
            continue
        found[
            Upsert(replace(entry, kernel_id=None), record.incarnation, record.version, True)
        ] += 1
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(entries(), KNOWN, VERSIONS, st.integers(0, 2**32 - 1)), max_size=8),
    st.just(frozenset()) | st.frozensets(st.integers(0, 255), min_size=60),
    st.booleans(),
)
def test_plain_and_rest_are_what_the_reference_says(
    flows: list[tuple[FlowEntry, str, Version, int]], buckets: frozenset[int], ends: bool
) -> None:
    registry = NativeRegistry(FlowHash(bytes(range(1, 33))))
    dump = b""
    for entry, known, version, incarnation in flows:
        entry = replace(entry, status=entry.status & 0x7F, mark=1 << 28 | entry.mark & 0xFFFF)
        if known != "unknown":
            life = entry
            if known == "another life":
                other = replace(entry.reply, dst=entry.reply.src, src=entry.reply.dst)
                life = replace(entry, reply=other)
            registry.put(life, incarnation, version)
        dump += written(entry)
    if ends:
        dump += write_message(DONE, 0, 0, [])
    payload, count, rest = serve_dump(registry.table, dump, EPOCH, buckets)
    said = decode_deltas(payload, header_epoch=EPOCH)
    assert len(said) == count
    found: Counter[Upsert] = Counter(one for one in said if isinstance(one, Upsert))
    found += by_reference(registry, b"".join(rest), buckets)
    assert found == by_reference(registry, dump, buckets)


def test_plain_flows_do_not_reach_python() -> None:
    registry = NativeRegistry(HASHES)
    flows = [tcp(1), udp(2), replace(tcp(3), helper="ftp")]
    for entry in flows:
        registry.put(entry, 5, Version(EPOCH, 0))
    dump = b"".join(map(written, flows))
    payload, count, rest = serve_dump(registry.table, dump, EPOCH, ())
    assert (count, rest) == (2, [written(flows[2])])
    assert decode_deltas(payload, header_epoch=EPOCH) == [
        Upsert(entry, 5, Version(EPOCH, 0), True) for entry in flows[:2]
    ]


def test_a_cut_dump_is_refused() -> None:
    registry = NativeRegistry(HASHES)
    with pytest.raises(MalformedMessageError):
        serve_dump(registry.table, written(udp(1))[:-4], EPOCH, ())
