"""The owner's pass over its own entries."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from hafw.flow import FlowEntry, FlowKey, TcpState, hafw_mark, mark_owner
from sync.adopt import OwnPass, normal_timeout_s
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import Upsert, Version
from sync.ops import Adopt, Pristine, op_key
from sync.publish import Publisher
from sync.registry import Flag, Registry
from sync.replica import ReplicaGroup
from tests.unit.sync.sync_flows import (
    CLOSING,
    CONFIRMED,
    GROUP,
    HASHES,
    OPENING,
    REPLIED,
    epoch,
    reborn,
    tcp,
    udp,
)

ME = 1
OURS = hafw_mark(GROUP, ME, ME)
E1, E2 = epoch(1, 2), epoch(2, ME)
TIMEOUTS = {
    "tcp_established": 432_000, "tcp_fin_wait": 120, "udp": 30, "udp_stream": 120,
    "icmp": 31, "icmpv6": 32, "generic": 600,
    "sip": 3600,
}  # fmt: skip


class Bench:
    """Node 1 has just taken over from node 2."""

    def __init__(self) -> None:
        self.registry = Registry(HASHES)
        self.group = ReplicaGroup(epoch=E2, active=True, suspect=False)
        self.liberal: set[FlowKey] = set()

    def replica(self, entry: FlowEntry) -> FlowEntry:
        self.registry.put(entry, 77, Version(E1, 0))
        return entry

    def unpassed(self) -> int:
        return self.registry.count_flag(GROUP, Flag.UNPASSED)

    def stale(self, entry: FlowEntry) -> FlowEntry:
        self.registry.set(self.replica(entry).key, Flag.STALE)
        return entry

    def begin(self, *, refresh: bool = False) -> OwnPass:
        return OwnPass(
            GROUP, E2, node_id=ME, registry=self.registry, group=self.group,
            publisher=Publisher(self.registry, Random(1)), timeouts_s=TIMEOUTS,
            liberal=self.liberal.add, refresh=refresh,
        )  # fmt: skip


def heard(entry: FlowEntry, kind: EventKind = EventKind.UPDATE) -> CtEvent:
    return CtEvent(kind, entry, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_replica_becomes_ours_and_is_said_under_the_new_epoch(bench: Bench) -> None:
    entry = bench.replica(replace(tcp(owner=2), mark=tcp(owner=2).mark | 0x42))
    output = bench.begin().on_entries([entry])
    assert output.ops == [Adopt(entry.key, OURS, 432_000)]
    (said,) = output.publications
    assert isinstance(said, Upsert)
    assert (said.incarnation, said.version) == (77, Version(E2, 0))
    assert said.entry.mark == OURS | 0x42, "with the owner it has from now on"


def test_what_is_ours_already_is_left_alone(bench: Bench) -> None:
    entry = udp()
    bench.registry.put(entry, 5, Version(E2, 0))
    output = bench.begin().on_entries([entry])
    assert (output.ops, output.publications) == ([], [])


def test_a_flow_that_an_event_named_keeps_its_timeout_and_its_events(bench: Bench) -> None:
    entry = bench.replica(udp(owner=2))
    one = bench.begin()
    one.touch(heard(entry))
    output = one.on_entries([entry])
    assert output.ops == [Adopt(entry.key, OURS, None)]
    assert output.publications == []


def test_stale_tcp_is_replaced_and_nothing_else_is(bench: Bench) -> None:
    stale = bench.stale(tcp(1, owner=2))
    clean = bench.replica(tcp(2, owner=2))
    bench.group.suspect = True
    unknown, opening = tcp(3, owner=2), tcp(4, owner=2, state=OPENING, status=CONFIRMED)
    one = bench.begin()
    output = one.on_entries([stale, clean, unknown, opening, udp(5, owner=2)])
    pristine = [op for op in output.ops if isinstance(op, Pristine)]
    assert [op.entry.key for op in pristine] == [stale.key, unknown.key]
    assert all(op.entry.timeout_s == 432_000 for op in pristine)
    assert all(mark_owner(op.entry.mark) == ME for op in pristine)
    assert bench.liberal == {stale.key, unknown.key}
    assert one.replacing
    one.finish()
    assert bench.unpassed() == 0
    assert (bench.registry.count_flag(GROUP, Flag.STALE), bench.group.suspect) == (0, False)


def test_stale_tcp_that_an_event_named_is_replaced_by_its_state_of_now(bench: Bench) -> None:
    """Its FIN may have passed after the dump read it: the dump must not take that back."""
    dumped = bench.stale(tcp(owner=2))
    one = bench.begin()
    one.touch(heard(dumped))
    output = one.on_entries([dumped])
    assert (output.ops, output.publications, output.again) == ([], [], [dumped.key])
    closing = replace(dumped, tcp=CLOSING)
    output = one.on_entries([closing], current=True)
    (op,) = output.ops
    assert isinstance(op, Pristine)
    assert (op.entry.tcp, op.entry.timeout_s) == (CLOSING, 120)
    assert output.again == []


def test_what_neither_the_dump_nor_an_event_shows_has_vanished(bench: Bench) -> None:
    for port in (1, 2, 3):
        bench.replica(udp(port, owner=2))
    one = bench.begin()
    one.on_entries([udp(1, owner=2)])
    one.touch(heard(udp(2)))
    one.finish()
    assert bench.unpassed() == 1
    assert bench.registry.drop_flagged(GROUP, Flag.UNPASSED) == 1
    assert udp(3).key not in bench.registry


def test_what_died_since_the_pass_began_is_not_said_again(bench: Bench) -> None:
    """The dump read it before its DESTROY came."""
    for entry in (udp(1, owner=2), udp(2, owner=2)):
        bench.replica(entry)
    one = bench.begin()
    for entry in (udp(1, owner=2), udp(3, owner=2)):
        bench.registry.remove(entry.key)
        assert one.touch(heard(entry, EventKind.DESTROY))
    output = one.on_entries([udp(port, owner=2) for port in (1, 2, 3)])
    assert [op_key(op) for op in output.ops] == [udp(2).key]
    assert len(output.publications) == 1
    bench.registry.put(reborn(udp(1)), 9, Version(E2, 0))
    one.touch(heard(reborn(udp(1)), EventKind.NEW))
    assert one.on_entries([udp(1, owner=2)]).publications == [], "its next life speaks for itself"


def test_deaths_beyond_the_bound_void_the_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync.adopt.DEAD_MAX", 1)
    one = bench.begin()
    opening = tcp(1, state=OPENING, status=CONFIRMED)
    assert one.touch(heard(opening, EventKind.DESTROY)), "never said: need not be remembered"
    assert one.touch(heard(udp(1), EventKind.DESTROY))
    assert not one.touch(heard(udp(2), EventKind.DESTROY))


def test_flows_given_a_timeout_by_the_dump_are_remembered(bench: Bench) -> None:
    adopted, touched, ours = udp(1, owner=2), udp(2, owner=2), udp(3)
    for entry in (adopted, touched):
        bench.replica(entry)
    bench.registry.put(ours, 5, Version(E2, 0))
    one = bench.begin()
    one.touch(heard(touched))
    one.on_entries([adopted, touched, ours])
    assert bench.registry.count_flag(GROUP, Flag.ADOPTED) == 1
    record = bench.registry.get(adopted.key)
    assert record is not None
    assert record.flags & Flag.ADOPTED


def test_liberal_entries_are_remembered(bench: Bench) -> None:
    entry = bench.replica(tcp(owner=2, state=TcpState(3, 0x0B, 0x0B, 7, 7)))
    bench.begin().on_entries([entry])
    assert bench.liberal == {entry.key}


def test_refresh_says_everything(bench: Bench) -> None:
    entry = udp()
    bench.registry.put(entry, 5, Version(E2, 0))
    (said,) = bench.begin(refresh=True).on_entries([entry]).publications
    assert isinstance(said, Upsert)
    assert said.refresh


@pytest.mark.parametrize(
    ("entry", "timeout_s"),
    [
        (tcp(), 432_000),
        (tcp(state=CLOSING), 120),
        (udp(status=REPLIED), 30),
        (udp(), 120),
        (replace(udp(), helper="sip"), 3600),
        (replace(udp(), helper="tftp"), 120),
        (replace(tcp(), helper="sip"), 432_000),
        (tcp(state=None), 600),
    ],
)
def test_normal_timeouts(entry: FlowEntry, timeout_s: int) -> None:
    assert normal_timeout_s(entry, TIMEOUTS) == timeout_s


def test_the_timeout_of_an_entry_that_does_not_say_its_state() -> None:
    assert normal_timeout_s(tcp(state=None), TIMEOUTS, tcp_state=CLOSING.state) == 120
