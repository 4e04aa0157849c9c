"""The registry over the native table, step by step beside the reference."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hafw.flow import FlowEntry, FlowKey
from sync.delta import Version
from sync.flowhash import FlowHash
from sync.native_registry import NativeRegistry
from sync.registry import Flag, Registry
from tests.unit.sync.flow_strategies import SEQADJS, TCP_STATES, tuples
from tests.unit.sync.flow_strategies import expectations as any_expectations
from tests.unit.sync.sync_flows import tcp, udp

SECRET = bytes(range(1, 33))
FLOWS = [tcp(port) for port in range(4)] + [udp(port) for port in range(3)]
KEYS = [entry.key for entry in FLOWS]
GROUPS = (1, 2)
FLAGS = st.sampled_from([*Flag, Flag.STALE | Flag.UNSEEN, Flag.TOUCHED | Flag.ADOPTED, 0])
ONE_FLAG = st.sampled_from(list(Flag))
INCARNATIONS = st.integers(1, 2)
# Some do not fit 16 bits.
VERSIONS = st.builds(Version, st.integers(0, 3), st.sampled_from([0, 1, 0xFFFF, 0x10000]))


@st.composite
def variants(draw: st.DrawFn) -> FlowEntry:
    entry = draw(st.sampled_from(FLOWS))
    is_tcp = entry.key.orig.proto == 6
    return replace(
        entry,
        mark=draw(st.sampled_from(GROUPS)) << 28 | draw(st.integers(0, 3)),
        status=draw(st.sampled_from([0, 2, 0xE, 0x4E, 0x1E])),
        tcp=draw(st.none() | TCP_STATES) if is_tcp else None,
        helper=draw(st.sampled_from([None, None, "ftp"])),
        seqadj=draw(st.none() | st.none() | st.tuples(SEQADJS, SEQADJS)),
        master=draw(st.none() | st.none() | tuples(family=2)),
    )


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slow = Registry(FlowHash(SECRET))
        self.fast = NativeRegistry(FlowHash(SECRET))

    @rule(
        entry=variants(),
        incarnation=INCARNATIONS,
        version=VERSIONS,
        stored=st.none() | st.integers(0, 2**64 - 1),
        add=st.just(0) | FLAGS,
        clear=st.just(0) | FLAGS,
    )
    def put(
        self,
        entry: FlowEntry,
        incarnation: int,
        version: Version,
        stored: int | None,
        add: int,
        clear: int,
    ) -> None:
        for registry in (self.slow, self.fast):
            registry.put(entry, incarnation, version, stored, add=add, clear=clear)

    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: FlowKey) -> None:
        assert self.slow.remove(key) == self.fast.remove(key)

    @rule(key=st.sampled_from(KEYS), flags=FLAGS)
    def set_flags(self, key: FlowKey, flags: int) -> None:
        assert self.slow.set(key, flags) == self.fast.set(key, flags)

    @rule(key=st.sampled_from(KEYS), flags=FLAGS)
    def clear_flags(self, key: FlowKey, flags: int) -> None:
        assert self.slow.clear(key, flags) == self.fast.clear(key, flags)

    @rule(
        group=st.sampled_from(GROUPS),
        flags=FLAGS,
        unless=st.just(0) | FLAGS,
        buckets=st.none() | st.sets(st.integers(0, 255), min_size=100),
    )
    def set_all(self, group: int, flags: int, unless: int, buckets: set[int] | None) -> None:
        expected = self.slow.set_all(group, flags, unless=unless, buckets=buckets)
        assert self.fast.set_all(group, flags, unless=unless, buckets=buckets) == expected

    @rule(group=st.sampled_from(GROUPS), flags=FLAGS)
    def clear_all(self, group: int, flags: int) -> None:
        self.slow.clear_all(group, flags)
        self.fast.clear_all(group, flags)

    @rule(group=st.sampled_from(GROUPS), flag=ONE_FLAG)
    def drop_flagged(self, group: int, flag: int) -> None:
        assert self.slow.drop_flagged(group, flag) == self.fast.drop_flagged(group, flag)

    @rule(data=st.data(), master=st.sampled_from(KEYS))
    def expect(self, data: st.DataObject, master: FlowKey) -> None:
        if master in self.slow:
            expectation = replace(data.draw(any_expectations()), master=master)
            assert self.slow.expectations.put(expectation)
            assert self.fast.expectations.put(expectation)

    @invariant()
    def same(self) -> None:
        assert len(self.slow) == len(self.fast)
        for key in KEYS:
            assert (key in self.slow) == (key in self.fast)
            assert self.slow.get(key) == self.fast.get(key)
        for group in (0, *GROUPS, 3):
            assert self.slow.count(group) == self.fast.count(group)
            assert self.slow.digest(group) == self.fast.digest(group)
            for flag in Flag:
                assert self.slow.count_flag(group, flag) == self.fast.count_flag(group, flag)
        assert set(self.slow.expectations.all()) == set(self.fast.expectations.all())


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_more_epochs_than_have_a_number_are_kept_all_the_same() -> None:
    registry = NativeRegistry(FlowHash(SECRET))
    flow = replace(udp(7), mark=1 << 28)
    for number in range(0x10000):
        registry.table.put(number << 40 | 1, 1, 1, number, 0, 0, 0, 0, 0, False)
    registry.put(flow, 3, Version(1 << 50, 9))
    record = registry.get(flow.key)
    assert record is not None
    assert (record.version, record.incarnation, record.is_rich) == (Version(1 << 50, 9), 3, False)
    registry.put(flow, 3, Version(5, 1))
    record = registry.get(flow.key)
    assert record is not None
    assert record.version == Version(5, 1)
