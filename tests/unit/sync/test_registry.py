"""The registry against a dumb dictionary, by everything that can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hafw.flow import (
    AF_INET,
    IPPROTO_TCP,
    Expectation,
    FlowEntry,
    FlowKey,
    SeqAdj,
    Tuple,
    mark_group,
)
from sync.delta import Version
from sync.flowhash import BUCKETS, bucket_of
from sync.registry import PUBLISHED_STATUS, Flag, FlowRegistry, Registry
from tests.unit.sync.sync_flows import ASSURED, CLOSING, GROUP, HASHES, REPLIED, reborn, tcp, udp

GROUPS = (1, 2, 3)
PORTS = range(1, 13)
ADJUSTED = (SeqAdj(1000, 0, 4), SeqAdj(0, 0, 0))


@dataclass
class Known:
    """What the dumb dictionary keeps: everything."""

    entry: FlowEntry
    incarnation: int
    version: Version
    flags: int = 0
    tcp_state: int = -1

    @property
    def group(self) -> int:
        return mark_group(self.entry.mark)


def flow(port: int) -> FlowEntry:
    return tcp(port) if port & 1 else udp(port)


def expectation(master: FlowKey) -> Expectation:
    expected = Tuple(AF_INET, IPPROTO_TCP, bytes(4), bytes(4), 0, master.orig.sport)
    return Expectation(master, expected, b"\xff" * 4, 0, 300)


@st.composite
def flows(draw: st.DrawFn) -> FlowEntry:
    entry = flow(draw(st.sampled_from(PORTS)))
    if entry.tcp is not None:
        entry = replace(entry, tcp=draw(st.sampled_from([tcp().tcp, CLOSING, None])))
    if draw(st.booleans()):
        entry = reborn(entry)
    group = draw(st.sampled_from(GROUPS))
    return replace(
        entry,
        status=draw(st.sampled_from([REPLIED, ASSURED])),
        mark=udp(group=group).mark | draw(st.sampled_from([0, 0x42])),
        helper=draw(st.sampled_from([None, "ftp"])),
        seqadj=draw(st.sampled_from([None, ADJUSTED])),
    )


one_flow = flows()
bits = st.integers(1, sum(Flag))


class RegistryMachine(RuleBasedStateMachine):
    """`make` is replaced where another implementation is put to the same test."""

    make: Callable[[], FlowRegistry] = staticmethod(lambda: Registry(HASHES))

    def __init__(self) -> None:
        super().__init__()
        self.registry = type(self).make()
        self.known: dict[FlowKey, Known] = {}
        self.expecting: set[FlowKey] = set()

    def of(self, group: int) -> dict[FlowKey, Known]:
        return {key: known for key, known in self.known.items() if known.group == group}

    @rule(
        entry=one_flow,
        incarnation=st.integers(1, 2),
        version=st.builds(Version, st.integers(1, 3), st.integers(0, 1)),
        stored=st.booleans(),
        add=st.sampled_from([0, Flag.TOUCHED]),
        clear=st.sampled_from([0, Flag.TOUCHED, Flag.UNSEEN | Flag.STALE]),
    )
    def put(
        self,
        entry: FlowEntry,
        incarnation: int,
        version: Version,
        stored: bool,
        add: int,
        clear: int,
    ) -> None:
        old = self.known.get(entry.key)
        new = Known(entry, incarnation, version, add)
        if old is not None and old.group == new.group:
            new.flags |= old.flags & ~clear
        if entry.tcp is not None:
            new.tcp_state = entry.tcp.state
        elif old is not None and old.incarnation == incarnation:
            new.tcp_state = old.tcp_state
        if old is not None and old.incarnation != incarnation:
            self.expecting.discard(entry.key)
        self.known[entry.key] = new
        contribution = HASHES.contribution(entry, incarnation) if stored else None
        self.registry.put(entry, incarnation, version, contribution, add=add, clear=clear)

    @rule(entry=one_flow)
    def remove(self, entry: FlowEntry) -> None:
        old = self.known.pop(entry.key, None)
        self.expecting.discard(entry.key)
        record = self.registry.remove(entry.key)
        assert (record is None) == (old is None)
        if record is not None and old is not None:
            assert record.contribution == HASHES.contribution(old.entry, old.incarnation)

    @rule(entry=one_flow)
    def expect(self, entry: FlowEntry) -> None:
        if entry.key in self.known:
            self.expecting.add(entry.key)
            self.registry.expectations.put(expectation(entry.key))

    @rule(entry=one_flow, flags=bits)
    def set(self, entry: FlowEntry, flags: int) -> None:
        known = self.known.get(entry.key)
        assert self.registry.set(entry.key, flags) == (known is not None)
        if known is not None:
            known.flags |= flags

    @rule(entry=one_flow, flags=bits)
    def clear(self, entry: FlowEntry, flags: int) -> None:
        known = self.known.get(entry.key)
        assert self.registry.clear(entry.key, flags) == (known is not None)
        if known is not None:
            known.flags &= ~flags

    @rule(
        group=st.sampled_from(GROUPS),
        flags=bits,
        unless=st.sampled_from([0, *Flag, Flag.TOUCHED | Flag.STALE]),
        buckets=st.sampled_from([None, range(128), (1,)]),
    )
    def set_all(
        self, group: int, flags: int, unless: int, buckets: range | tuple[int, ...] | None
    ) -> None:
        meant = [
            known
            for key, known in self.of(group).items()
            if not known.flags & unless
            and (buckets is None or bucket_of(HASHES.flow(key)) in buckets)
        ]
        assert self.registry.set_all(group, flags, unless=unless, buckets=buckets) == len(meant)
        for known in meant:
            known.flags |= flags

    @rule(group=st.sampled_from(GROUPS), flags=bits)
    def clear_all(self, group: int, flags: int) -> None:
        self.registry.clear_all(group, flags)
        for known in self.of(group).values():
            known.flags &= ~flags

    @rule(group=st.sampled_from(GROUPS), flag=st.sampled_from(Flag))
    def drop_flagged(self, group: int, flag: Flag) -> None:
        gone = [key for key, known in self.of(group).items() if known.flags & flag]
        assert self.registry.drop_flagged(group, flag) == len(gone)
        for key in gone:
            del self.known[key]
            self.expecting.discard(key)

    @invariant()
    def every_record_is_as_put(self) -> None:
        registry = self.registry
        assert len(registry) == len(self.known)
        for port in PORTS:
            key = flow(port).key
            record, known = registry.get(key), self.known.get(key)
            assert (key in registry) == (record is not None) == (known is not None)
            if record is None or known is None:
                continue
            entry = known.entry
            assert (record.group, record.user_mark) == (known.group, entry.mark & 0xFFFF)
            assert (record.incarnation, record.version) == (known.incarnation, known.version)
            assert record.status == entry.status & PUBLISHED_STATUS
            assert (record.tcp_state, record.flags) == (known.tcp_state, known.flags)
            assert (record.helper, record.seqadj) == (entry.helper, entry.seqadj)
            assert record.is_rich == (entry.helper is not None or entry.seqadj is not None)
            assert bool(registry.expectations.of(key)) == (key in self.expecting)

    @invariant()
    def every_count_and_digest_is_right(self) -> None:
        for group in GROUPS:
            mine = self.of(group)
            assert self.registry.count(group) == len(mine)
            for flag in Flag:
                wanted = sum(bool(known.flags & flag) for known in mine.values())
                assert self.registry.count_flag(group, flag) == wanted
            digest = [(0, 0)] * BUCKETS
            for key, known in mine.items():
                bucket = bucket_of(HASHES.flow(key))
                total, count = digest[bucket]
                one = HASHES.contribution(known.entry, known.incarnation)
                digest[bucket] = (total + one) % (1 << 64), count + 1
            assert self.registry.digest(group) == tuple(digest)


TestReference = RegistryMachine.TestCase
TestReference.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_digest_is_as_before_when_what_came_has_gone() -> None:
    registry = Registry(HASHES)
    for port in range(50):
        registry.put(udp(port), port, Version(1, 0))
    before = registry.digest(GROUP)
    registry.put(tcp(9), 1, Version(1, 0))
    assert registry.digest(GROUP) != before
    registry.remove(tcp(9).key)
    assert registry.digest(GROUP) == before
    assert registry.digest(7) == ((0, 0),) * BUCKETS
