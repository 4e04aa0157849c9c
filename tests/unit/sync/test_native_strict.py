"""Liberal flows of a raw dump, natively, beside what the reference makes of the same entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafw.flow import FlowEntry, TcpState, mark_group
from sync._codec import StrictMaker
from sync.adopt import is_liberal
from sync.ctnetlink import MalformedMessageError, clear_liberal, parse_dump, tcp_is_learnt
from sync.delta import Version
from sync.flowhash import FlowHash
from sync.native_registry import NativeRegistry
from sync.registry import Flag
from tests.unit.sync.flow_strategies import entries, write_attributes, write_message
from tests.unit.sync.sync_flows import HASHES, tcp, udp

NEW, DONE = 0x100, 3
GROUP = 1
FLAGS = st.sampled_from((0x03, 0x0B, 0x23, 0x2B))


def written(entry: FlowEntry) -> bytes:
    return write_message(NEW, 0, 0, write_attributes(entry))


@st.composite
def flows(draw: st.DrawFn) -> FlowEntry:
    entry = draw(entries())
    if entry.key.orig.proto == 6 and draw(st.integers(0, 9)):
        entry = replace(entry, tcp=TcpState(3, draw(FLAGS), draw(FLAGS), 7, 7))
    group = draw(st.sampled_from((GROUP, GROUP, GROUP, 2)))
    return replace(entry, mark=group << 28 | entry.mark & 0xFFFFFFF)


def judged(
    maker: StrictMaker, dump: bytes, wanted: int
) -> tuple[list[bytes], list[FlowEntry], int]:
    """All of a dump: requests, flows that are still liberal, how many were made strict."""
    requests: list[bytes] = []
    still: list[bytes] = []
    total = at = 0
    while at < len(dump):
        at, made, more = maker.judge(dump, at, GROUP, wanted - len(still))
        requests += maker.batch.as_messages()
        maker.batch.clear()
        still += more
        total += made
    return requests, [parse_dump(message).entries[0] for message in still], total


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(flows(), st.booleans(), st.booleans()), max_size=8))
def test_it_asks_for_what_the_reference_asks_for(
    made: list[tuple[FlowEntry, bool, bool]],
) -> None:
    registry = NativeRegistry(FlowHash(bytes(range(1, 33))))
    unique = {entry.key: (entry, known, flagged) for entry, known, flagged in made}
    for entry, known, flagged in unique.values():
        if known:
            registry.put(entry, 1, Version(7, 0))
            if flagged:
                registry.set(entry.key, Flag.LIBERAL)
    dump = b"".join(written(entry) for entry, _, _ in unique.values())
    dump += write_message(DONE, 0, 0, [])
    requests, still, count = judged(StrictMaker(registry.table, Flag.LIBERAL), dump, 100)
    ours = [
        entry
        for entry, _, _ in unique.values()
        if mark_group(entry.mark) == GROUP and entry.tcp is not None
    ]
    learnt = [entry for entry in ours if is_liberal(entry) and tcp_is_learnt(entry)]
    assert requests == [clear_liberal(entry.key) for entry in learnt]
    assert count == len(learnt)
    left = [entry.key for entry in ours if is_liberal(entry) and not tcp_is_learnt(entry)]
    assert [entry.key for entry in still] == [key for key in left if unique[key][1]]
    for key, (entry, known, flagged) in unique.items():
        seen = entry in ours
        wanted = known and (key in left if seen else flagged)
        assert bool(registry.get(key) and registry.get(key).flags & Flag.LIBERAL) == wanted  # type: ignore[union-attr]


def test_it_stops_when_its_batch_is_full_and_goes_on_there() -> None:
    registry = NativeRegistry(HASHES)
    learnt = TcpState(3, 0x2B, 0x2B, 7, 7)
    many = [replace(tcp(number), tcp=learnt, mark=GROUP << 28) for number in range(150)]
    dump = b"".join(map(written, many))
    maker = StrictMaker(registry.table, Flag.LIBERAL)
    at, made, _ = maker.judge(dump, 0, GROUP, 0)
    assert 0 < at < len(dump)
    assert maker.batch.full
    maker.batch.clear()
    requests, still, count = judged(maker, dump[at:], 100)
    assert made + count == len(many)
    assert len(requests) == count
    assert still == []


def test_only_so_many_flows_as_are_wanted_are_shown() -> None:
    registry = NativeRegistry(HASHES)
    maker = StrictMaker(registry.table, Flag.LIBERAL)
    many = [
        replace(tcp(number), tcp=TcpState(3, 0x0B, 0x0B, 7, 7), mark=GROUP << 28)
        for number in range(5)
    ]
    for entry in many:
        registry.put(entry, 1, Version(7, 0))
    dump = b"".join(map(written, [*many, replace(udp(9), mark=GROUP << 28)]))
    assert [e.key for e in judged(maker, dump, 3)[1]] == [e.key for e in many[:3]]
    assert registry.count_flag(GROUP, Flag.LIBERAL) == 5


def test_what_is_cut_is_refused() -> None:
    maker = StrictMaker(NativeRegistry(HASHES).table, Flag.LIBERAL)
    with pytest.raises(MalformedMessageError):
        maker.judge(written(tcp(1))[:-4], 0, GROUP, 1)
