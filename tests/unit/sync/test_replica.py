"""What a receiver does with a delta."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hafw.flow import FlowEntry
from sync.delta import Destroy, Upsert, Version
from sync.ops import Create, Remove, Replace, Update
from sync.registry import Flag, Registry
from sync.replica import Hole, ReplicaGroup, ReplicaTable, Superseded
from tests.unit.sync.sync_flows import (
    CLOSING,
    ESTABLISHED,
    GROUP,
    HASHES,
    epoch,
    reborn,
    tcp,
    udp,
)

E1, E2 = epoch(1, 1), epoch(2, 2)


class Bench:
    """A follower of node 1 at epoch 1, in step."""

    def __init__(self, *, suspect: bool = False) -> None:
        self.registry = Registry(HASHES)
        self.group = ReplicaGroup(epoch=E1, suspect=suspect)
        self.table = ReplicaTable(self.registry, {GROUP: self.group})

    def upsert(
        self, entry: FlowEntry, incarnation: int = 5, at: int = E1, sender: int = 1
    ) -> list[object]:
        return list(self.table.on_delta(Upsert(entry, incarnation, Version(at, 0)), sender))

    def destroy(
        self,
        entry: FlowEntry,
        incarnation: int = 5,
        at: int = E1,
        sender: int = 1,
        stored: int | None = None,
    ) -> list[object]:
        stored = HASHES.contribution(entry, incarnation) if stored is None else stored
        delta = Destroy(entry.key, incarnation, Version(at, 0), stored)
        return list(self.table.on_delta(delta, sender))


def flags(bench: Bench) -> dict[str, int]:
    """How many flows have which flag."""
    counts = {flag.name: bench.registry.count_flag(GROUP, flag) for flag in Flag}
    return {name: count for name, count in counts.items() if count}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_life_create_update_remove(bench: Bench) -> None:
    assert bench.upsert(tcp()) == [Create(tcp())]
    assert bench.upsert(tcp(state=CLOSING)) == [Update(tcp(state=CLOSING))]
    assert bench.destroy(tcp()) == [Remove(tcp().key)]
    assert len(bench.registry) == 0


def test_only_the_epochs_own_node_is_believed(bench: Bench) -> None:
    assert bench.upsert(udp(), sender=2) == []
    assert bench.table.counters["delta_not_owner"] == 1
    bench.upsert(udp())
    assert bench.destroy(udp(), sender=2) == []


def test_a_newer_epoch_must_be_learnt_first_then_it_counts(bench: Bench) -> None:
    bench.upsert(udp())
    assert bench.upsert(udp(owner=2), at=E2, sender=2) == [Superseded(GROUP, E2, 2)]
    bench.group.epoch = E2
    assert bench.upsert(udp(owner=2), at=E2, sender=2) == [Update(udp(owner=2))]


def test_the_former_holder_is_not_believed_any_more(bench: Bench) -> None:
    bench.upsert(udp())
    bench.group.epoch = E2
    assert bench.upsert(udp(2)) == []
    assert bench.destroy(udp()) == []
    assert bench.table.counters["delta_old_epoch"] == 2


def test_the_holders_own_older_word_leaves_a_hole(bench: Bench) -> None:
    bench.upsert(udp())
    bench.group.epoch = epoch(2, 1)
    assert bench.destroy(udp()) == [Hole(GROUP)]
    assert udp().key in bench.registry


def test_a_holder_believes_nobody_at_or_below_its_epoch(bench: Bench) -> None:
    bench.group.epoch, bench.group.active = E2, True
    assert bench.upsert(udp(), at=E1, sender=1) == []
    assert bench.upsert(udp(), at=epoch(3, 1), sender=1) == [Superseded(GROUP, epoch(3, 1), 1)]


def test_an_older_version_of_a_flow_does_not_count(bench: Bench) -> None:
    bench.group.epoch = epoch(3, 1)
    bench.upsert(udp(), at=epoch(3, 1))
    bench.group.epoch = E1  # Even if the group's epoch were forgotten.
    assert bench.upsert(udp(), at=E1) == []
    assert bench.table.counters["delta_old_version"] == 1


def test_another_life_replaces(bench: Bench) -> None:
    bench.upsert(udp(), incarnation=5)
    assert bench.upsert(reborn(udp()), incarnation=6) == [Replace(reborn(udp()))]
    assert bench.destroy(udp(), incarnation=5) == [], "the death of the life before"
    assert bench.table.counters["destroy_mismatch"] == 1
    assert bench.destroy(reborn(udp()), incarnation=6) == [Remove(udp().key)]


def test_a_life_that_ended_unknown_is_not_revived_by_a_snapshot(bench: Bench) -> None:
    """The snapshot's word of it was on its way when the stream ended it; what was known of the
    tuple was a life before."""
    bench.upsert(udp(), incarnation=5)
    bench.table.await_snapshot(GROUP)
    bench.table.begin_snapshot(GROUP)
    assert bench.destroy(reborn(udp()), incarnation=6) == []
    late = Upsert(reborn(udp()), 6, Version(E1, 0), True)
    assert bench.table.on_snapshot_entry(late, GROUP) == []
    assert bench.table.end_snapshot(GROUP) == []
    assert bench.table.is_orphan(udp(), GROUP), "and the life before is swept"


def test_a_destroy_must_match_the_contribution_too(bench: Bench) -> None:
    bench.upsert(udp())
    assert bench.destroy(udp(), stored=1) == []
    assert udp().key in bench.registry


def test_the_same_incarnation_with_another_translation_replaces(bench: Bench) -> None:
    bench.upsert(udp())
    assert bench.upsert(reborn(udp())) == [Replace(reborn(udp()))]


def test_tcp_never_goes_back_within_a_version(bench: Bench) -> None:
    bench.upsert(tcp(state=CLOSING))
    (update,) = bench.upsert(tcp(state=ESTABLISHED))
    assert update == Update(tcp(state=None)), "the kernel keeps the state it has"
    record = bench.registry.get(tcp().key)
    assert record is not None
    assert record.tcp_state == CLOSING.state
    assert bench.table.counters["tcp_regressions_refused"] == 1
    # A new holder may have seen less; its word is newer.
    bench.group.epoch = E2
    (adopted,) = bench.upsert(tcp(owner=2, state=ESTABLISHED), at=E2, sender=2)
    assert isinstance(adopted, Update)
    assert adopted.entry.tcp == ESTABLISHED


def test_stale_entries_are_replaced_and_fresh_ones_updated(bench: Bench) -> None:
    bench.upsert(tcp(1))
    assert bench.table.mark_stale(GROUP) == 1
    bench.group.epoch = E2
    assert bench.upsert(tcp(1, owner=2), at=E2, sender=2) == [Replace(tcp(1, owner=2))]
    assert bench.registry.count_flag(GROUP, Flag.STALE) == 0
    assert bench.upsert(tcp(1, owner=2), at=E2, sender=2) == [Update(tcp(1, owner=2))]
    # The kernel may hold what the registry never knew: nothing is merely created.
    assert bench.upsert(tcp(2, owner=2), at=E2, sender=2) == [Replace(tcp(2, owner=2))]


def test_a_group_that_is_not_in_the_file_is_refused(bench: Bench) -> None:
    assert bench.upsert(udp(group=3)) == []
    assert bench.upsert(replace(udp(), mark=0)) == []
    assert bench.table.counters["delta_unknown_group"] == 2


class TestSnapshot:
    def entry(self, bench: Bench, flow: FlowEntry, incarnation: int = 5) -> list[object]:
        delta = Upsert(flow, incarnation, Version(E1, 0), True)
        return list(bench.table.on_snapshot_entry(delta, GROUP))

    def begin(self, bench: Bench) -> None:
        bench.table.await_snapshot(GROUP)
        bench.table.begin_snapshot(GROUP)

    def test_it_replaces_adds_and_sweeps(self) -> None:
        bench = Bench()
        for port in (1, 2):
            bench.upsert(tcp(port))
        bench.table.mark_stale(GROUP)
        self.begin(bench)
        assert self.entry(bench, tcp(1)) == [Replace(tcp(1))]
        assert self.entry(bench, tcp(3)) == [Replace(tcp(3))]
        assert bench.table.end_snapshot(GROUP) == []
        assert bench.table.is_orphan(tcp(2), GROUP), "known before, and not named"
        assert bench.table.is_orphan(tcp(9), GROUP)
        assert not bench.table.is_orphan(tcp(3), GROUP)
        bench.table.snapshot_swept(GROUP)
        assert (tcp(1).key in bench.registry, tcp(2).key in bench.registry) == (True, False)
        assert bench.table.counters["snapshot_swept"] == 1
        assert (bench.group.suspect, bench.group.snapshot) == (False, False)
        assert flags(bench) == {}

    def test_the_stream_knows_better(self, bench: Bench) -> None:
        bench.upsert(udp(1))
        self.begin(bench)
        bench.upsert(udp(2))
        bench.destroy(udp(1))
        bench.upsert(udp(4), incarnation=8)
        bench.destroy(udp(4), incarnation=8)
        assert self.entry(bench, udp(1)) == [], "a tombstone"
        assert self.entry(bench, reborn(udp(2)), 4) == []
        assert self.entry(bench, udp(4), 8) == []
        bench.table.end_snapshot(GROUP)
        assert not bench.table.is_orphan(udp(2), GROUP)
        bench.table.snapshot_swept(GROUP)
        assert udp(2).key in bench.registry, "and nothing live is swept"

    def test_what_was_born_again_after_its_death_is_the_streams_too(self, bench: Bench) -> None:
        bench.upsert(udp(1))
        self.begin(bench)
        bench.destroy(udp(1))
        bench.upsert(reborn(udp(1)), incarnation=9)
        assert self.entry(bench, udp(1)) == []
        bench.table.end_snapshot(GROUP)
        assert not bench.table.is_orphan(reborn(udp(1)), GROUP)

    def test_a_live_delta_while_the_kernel_is_swept_saves_the_flow(self, bench: Bench) -> None:
        bench.upsert(udp(1))
        self.begin(bench)
        bench.table.end_snapshot(GROUP)
        assert bench.table.is_orphan(udp(1), GROUP)
        bench.upsert(udp(1))
        assert not bench.table.is_orphan(udp(1), GROUP)
        bench.table.snapshot_swept(GROUP)
        assert udp(1).key in bench.registry

    def test_deaths_beyond_the_bound_are_owned_up_to(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sync.replica.TOMBSTONES_MAX", 2)
        self.begin(bench)
        for port in (1, 2):
            bench.destroy(udp(port))
        assert not bench.group.dead_unknown
        bench.destroy(udp(3))
        assert bench.group.dead_unknown

    def test_a_death_before_the_birth_was_known_is_a_tombstone_too(self) -> None:
        bench = Bench(suspect=True)
        self.begin(bench)
        assert bench.destroy(udp(1)) == []
        assert self.entry(bench, udp(1)) == []
        assert bench.table.is_orphan(udp(1), GROUP), "what the kernel has of it goes"

    def test_a_live_delta_before_the_head_counts(self, bench: Bench) -> None:
        bench.table.await_snapshot(GROUP)
        bench.upsert(udp(1))
        bench.table.begin_snapshot(GROUP)
        assert self.entry(bench, udp(1)) == []
        bench.table.end_snapshot(GROUP)
        assert not bench.table.is_orphan(udp(1), GROUP)

    def test_an_unchanged_replica_is_updated_in_place(self, bench: Bench) -> None:
        bench.upsert(udp(1))
        self.begin(bench)
        assert self.entry(bench, udp(1)) == [Update(udp(1))]

    def test_entries_of_another_group_are_refused(self, bench: Bench) -> None:
        self.begin(bench)
        assert self.entry(bench, udp(1, group=2)) == []
        assert bench.table.counters["snapshot_other_group"] == 1

    def test_abort_forgets_it(self, bench: Bench) -> None:
        bench.upsert(udp(1))
        self.begin(bench)
        bench.table.abort_snapshot(GROUP)
        assert not bench.group.snapshot
        assert flags(bench) == {}
