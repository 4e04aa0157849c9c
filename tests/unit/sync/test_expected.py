"""Expectations in the cores: what the holder says, what a receiver does, what travels."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from hafw.flow import AF_INET, IPPROTO_TCP, Expectation, ExpectNat, FlowEntry, SeqAdj, Tuple
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import (
    DeltaError,
    ExpectDestroy,
    ExpectUpsert,
    Upsert,
    Version,
    decode_deltas,
    encode_delta,
)
from sync.expect_table import ExpectTable
from sync.expected import PARKED_MAX
from sync.ops import Create, CreateExpectation, Remove, RemoveExpectation
from sync.publish import LookUp, PublishEffect, Publisher
from sync.registry import Registry
from sync.replica import ReplicaGroup, ReplicaTable
from tests.unit.sync.sync_flows import GROUP, HASHES, epoch, reborn, tcp, udp

E1, E2 = epoch(1, 1), epoch(2, 2)
SERVER, VIP, CLIENT = bytes([198, 51, 100, 1]), bytes([198, 51, 100, 254]), bytes([192, 0, 2, 9])
MASTER = replace(tcp(21), helper="ftp")
ADJUSTED = (SeqAdj(1000, 0, 4), SeqAdj(0, 0, 0))


def expectation(port: int = 33_000, master: FlowEntry = MASTER) -> Expectation:
    expected = Tuple(AF_INET, IPPROTO_TCP, SERVER, VIP, 0, port)
    nat = ExpectNat(1, CLIENT, port)
    return Expectation(
        master.key, expected, b"\xff" * 4, 0, 300, 0, 0, nat, "nat-follow-master", "ftp"
    )


# -- the wire


def test_the_bytes_of_an_expectation_are_pinned() -> None:
    said = ExpectUpsert(expectation(), 0xA1B2C3D4, Version(E1, 1), refresh=True)
    encoded = encode_delta(said, header_epoch=E1)
    assert encoded.hex() == (
        "49"  # length
        "2002"  # flags: expect, refresh
        "06c0000209c633640100150035"  # protocol and tuple of the master
        "a1b2c3d401"  # incarnation, count
        "06c6336401c63364fe000080e8"  # protocol and tuple that is expected
        "ffffffff0000"  # mask of source address and key
        "ac02"  # timeout
        "0000"  # flags, class
        "07"  # with NAT, function, helper
        "01c000020980e8"  # direction, address, key
        "116e61742d666f6c6c6f772d6d6173746572"  # nat-follow-master
        "03667470"  # ftp
    )
    assert decode_deltas(encoded, header_epoch=E1) == [said]
    gone = ExpectDestroy(MASTER.key, expectation().expected, 0xA1B2C3D4, Version(E1, 1))
    encoded = encode_delta(gone, header_epoch=E1)
    assert encoded.hex() == (
        "21200106c0000209c633640100150035a1b2c3d40106c6336401c63364fe000080e8"
    )
    assert decode_deltas(encoded, header_epoch=E1) == [gone]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ac020000", "ac020800"),
        ("0701c0", "0f01c0"),
        ("0701c0", "0702c0"),
        ("03667470", "03660070"),
    ],
    ids=["flags", "have", "direction", "helper"],
)
def test_what_no_sender_says_of_an_expectation_is_refused(old: str, new: str) -> None:
    good = encode_delta(ExpectUpsert(expectation(), 7, Version(E1, 1)), header_epoch=E1).hex()
    assert good.count(old) == 1
    with pytest.raises(DeltaError) as refused:
        decode_deltas(bytes.fromhex(good.replace(old, new)), header_epoch=E1)
    assert refused.value.reason == "bad_value"


# -- the table


def test_the_table_loses_a_masters_expectations_with_it() -> None:
    table = ExpectTable()
    one, two, other = expectation(1), expectation(2), expectation(3, tcp(99))
    for each in (one, two, other):
        assert table.put(each)
    assert table.of(MASTER.key) == (one, two)
    assert table.remove(one.key) == one
    assert table.remove(one.key) is None
    table.remove_master(MASTER.key)
    assert table.all() == (other,)
    moved = replace(other, master=MASTER.key)
    table.put(moved)
    assert table.of(MASTER.key) == (moved,)
    assert table.of(other.master) == ()


# -- the holder


@pytest.fixture
def publisher() -> Publisher:
    publisher = Publisher(Registry(HASHES), Random(7))
    publisher.publish(MASTER, E1)
    return publisher


def upserts(effects: list[PublishEffect]) -> list[Upsert]:
    assert all(isinstance(effect, Upsert) for effect in effects)
    return [effect for effect in effects if isinstance(effect, Upsert)]


def test_an_expectation_is_said_under_its_masters_identity(publisher: Publisher) -> None:
    (said,) = publisher.expected(expectation(), E1)
    record = publisher._registry.get(MASTER.key)
    assert record is not None
    assert said == ExpectUpsert(expectation(), record.incarnation, Version(E1, 0))
    again = replace(expectation(), timeout_s=20)
    assert publisher.expected(again, E1) == []
    assert publisher.expected(again, E1, refresh=True) == [
        ExpectUpsert(again, record.incarnation, Version(E1, 0), refresh=True)
    ]
    assert publisher.unexpected(expectation().key, E1) == [
        ExpectDestroy(MASTER.key, expectation().expected, record.incarnation, Version(E1, 0))
    ]
    assert publisher.unexpected(expectation().key, E1) == []


def test_nothing_is_said_of_a_master_that_was_not(publisher: Publisher) -> None:
    assert publisher.expected(expectation(master=tcp(99)), E1) == []
    assert publisher.counters["expectations_unsayable"] == 1
    publisher.expected(expectation(), E1)
    publisher.destroyed(MASTER.key, E1)
    assert publisher.unexpected(expectation().key, E1) == []


def test_a_new_life_of_the_master_expects_nothing(publisher: Publisher) -> None:
    publisher.expected(expectation(), E1)
    publisher.publish(reborn(MASTER), E1)
    assert publisher._registry.expectations.of(MASTER.key) == ()


def test_sequence_adjustment_is_news_and_is_kept(publisher: Publisher) -> None:
    adjusted = replace(MASTER, status=MASTER.status | 0x40, seqadj=ADJUSTED)
    (said,) = upserts(publisher.publish(adjusted, E1, looked_up=True))
    assert said.entry.seqadj == ADJUSTED
    assert publisher.publish(adjusted, E1, looked_up=True) == []
    # No event carries it: the next delta says it all the same.
    (said,) = upserts(publisher.publish(replace(adjusted, seqadj=None, mark=MASTER.mark | 9), E1))
    assert said.entry.seqadj == ADJUSTED
    farther = (SeqAdj(2000, 4, 8), ADJUSTED[1])
    (said,) = upserts(publisher.publish(replace(adjusted, seqadj=farther), E1))
    assert said.entry.seqadj == farther


def test_an_event_of_an_adjusted_flow_makes_it_be_looked_up(publisher: Publisher) -> None:
    adjusted = replace(MASTER, status=MASTER.status | 0x40)
    assert publisher.publish(adjusted, E1) == [LookUp(MASTER.key, E1)]
    assert upserts(publisher.publish(adjusted, E1, looked_up=True))


def test_the_master_of_a_child_is_looked_up_once_and_kept(publisher: Publisher) -> None:
    child = replace(tcp(50), status=tcp().status | 1)
    update = CtEvent(EventKind.UPDATE, child, 0)
    assert publisher.on_event(update, {GROUP: E1}) == [LookUp(child.key, E1)]
    whole = replace(child, master=MASTER.key.orig)
    (said,) = upserts(publisher.publish(whole, E1, looked_up=True))
    assert said.entry.master == MASTER.key.orig
    (said,) = upserts(publisher.publish(replace(child, mark=child.mark | 9), E1))
    assert said.entry.master == MASTER.key.orig
    # A kernel that does not say the master either does not make us ask for ever.
    assert upserts(publisher.publish(replace(child, key=tcp(51).key), E1, looked_up=True))


# -- the receiver


class Bench:
    """A follower of node 1 at epoch 1."""

    def __init__(self) -> None:
        self.registry = Registry(HASHES)
        self.group = ReplicaGroup(epoch=E1, suspect=False)
        self.table = ReplicaTable(self.registry, {GROUP: self.group})

    def master(self, entry: FlowEntry = MASTER, incarnation: int = 5) -> list[object]:
        return list(self.table.on_delta(Upsert(entry, incarnation, Version(E1, 0)), 1))

    def expect(self, port: int = 33_000, incarnation: int = 5, sender: int = 1) -> list[object]:
        delta = ExpectUpsert(expectation(port), incarnation, Version(E1, 0))
        return list(self.table.on_delta(delta, sender))

    def drop(self, port: int = 33_000, incarnation: int = 5) -> list[object]:
        tuple_ = expectation(port).expected
        delta = ExpectDestroy(MASTER.key, tuple_, incarnation, Version(E1, 0))
        return list(self.table.on_delta(delta, 1))

    def snapshot(self, port: int) -> list[object]:
        delta = ExpectUpsert(expectation(port), 5, Version(E1, 0), refresh=True)
        return list(self.table.on_snapshot_expectation(delta, GROUP))


@pytest.fixture
def bench() -> Bench:
    return Bench()


GONE = RemoveExpectation(MASTER.key, expectation().key)


def test_made_and_removed_under_its_master(bench: Bench) -> None:
    bench.master()
    assert bench.expect() == [CreateExpectation(expectation())]
    assert bench.registry.expectations.of(MASTER.key) == (expectation(),)
    assert bench.drop() == [GONE]
    assert bench.drop() == []


def test_what_changed_is_made_anew_and_what_only_lives_longer_is_not(bench: Bench) -> None:
    bench.master()
    waiting = replace(expectation(), flags=3)
    for one, ops in (
        (waiting, [CreateExpectation(waiting)]),
        (expectation(), [GONE, CreateExpectation(expectation())]),
        (replace(expectation(), timeout_s=900),
         [CreateExpectation(replace(expectation(), timeout_s=900))]),
    ):  # fmt: skip
        assert bench.table.on_delta(ExpectUpsert(one, 5, Version(E1, 0)), 1) == ops


def test_only_the_masters_owner_is_believed(bench: Bench) -> None:
    bench.master()
    assert bench.expect(sender=2) == []
    assert bench.expect(incarnation=6) == []
    assert bench.table.counters["expectation_other_life"] == 1
    bench.expect()
    assert bench.drop(incarnation=6) == []
    bench.group.epoch = E2
    assert bench.drop() == []
    bench.group.active = True
    assert bench.expect(1) == []


def test_what_comes_before_its_master_is_made_after_it(bench: Bench) -> None:
    assert bench.expect() == []
    assert bench.expect(2) == []
    assert bench.drop(2) == []
    assert bench.expect(3, incarnation=6) == []
    assert bench.table.counters["expectation_without_master"] == 4
    assert bench.master() == [Create(MASTER), CreateExpectation(expectation())]
    for port in range(PARKED_MAX + 1):
        delta = ExpectUpsert(expectation(port, tcp(9)), 5, Version(E1, 0))
        bench.table.on_delta(delta, 1)
    assert bench.table.counters["expectations_not_parked"] == 1


def test_a_master_that_goes_takes_them_along(bench: Bench) -> None:
    bench.master()
    bench.expect()
    bench.master(reborn(MASTER), incarnation=6)
    assert bench.registry.expectations.all() == ()
    bench.table.forget(MASTER.key)
    bench.master()
    bench.expect()
    bench.table.forget(MASTER.key)
    assert bench.registry.expectations.all() == ()


def test_a_snapshot_against_live_deltas(bench: Bench) -> None:
    bench.master()
    for port in (1, 2, 3):
        bench.expect(port)
    bench.table.await_snapshot(GROUP)
    bench.table.begin_snapshot(GROUP)
    bench.drop(1)
    bench.expect(4)
    delta = Upsert(MASTER, 5, Version(E1, 0), True)
    bench.table.on_snapshot_entry(delta, GROUP)
    assert bench.snapshot(1) == [], "the stream knows that it is gone"
    assert bench.snapshot(2) == [CreateExpectation(expectation(2))]
    assert (
        bench.table.on_snapshot_expectation(
            ExpectUpsert(expectation(5, udp()), 5, Version(E1, 0)), GROUP
        )
        == []
    )
    # 3 was named by nobody; 4 came while the snapshot was under way.
    swept = bench.table.end_snapshot(GROUP)
    assert swept == [RemoveExpectation(MASTER.key, expectation(3).key)]
    assert Remove(MASTER.key) not in swept
    found = [expectation(2), expectation(9), expectation(9, udp())]
    assert bench.table.expected_orphans(found, GROUP) == [
        RemoveExpectation(MASTER.key, expectation(9).key)
    ]
