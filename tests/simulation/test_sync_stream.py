"""Replication under loss, duplication, reordering, restarts and hand-overs; and its checkers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sync.delta import Destroy, Version
from sync.registry import Record, Registry
from sync.replica import ReplicaEffect, ReplicaGroup, ReplicaTable
from sync.stream import Deliver, StreamEffect, StreamReceiver
from tests.simulation.sync_world import CheckFailed, Cores, SimWorld

SEEDS = 40
SEEDS_LONG = 1500
SEEDS_TO_CATCH = 60


@pytest.mark.parametrize("seed", range(SEEDS))
def test_tables_converge_and_no_stale_word_counts(seed: int) -> None:
    SimWorld(seed).run()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_tables_converge_for_many_seeds() -> None:
    for seed in range(SEEDS, SEEDS_LONG):
        SimWorld(seed).run()


# -- planted mistakes: every checker must catch one


class NoDedupe(StreamReceiver):
    """A datagram that came before is delivered again."""

    def on_datagram(
        self, sender_id: int, session: int, seq: int, body: bytes, *, now: float
    ) -> list[StreamEffect]:
        view = self.view(sender_id)
        if view is not None and view.session == session and seq <= view.applied_seq:
            return [Deliver(sender_id, session, seq, body)]
        return super().on_datagram(sender_id, session, seq, body, now=now)


class GapsIgnored(StreamReceiver):
    """What is missing is taken as never sent."""

    def on_datagram(
        self, sender_id: int, session: int, seq: int, body: bytes, *, now: float
    ) -> list[StreamEffect]:
        effects = super().on_datagram(sender_id, session, seq, body, now=now)
        known = self._accepted.get(sender_id)
        if known is not None and known.session == session and known.delivered < seq:
            known.delivered = seq - 1
            known.buffered.pop(seq, None)
            known.delivered = seq
            effects.append(Deliver(sender_id, session, seq, body))
        return effects

    def tick(self, *, now: float) -> list[StreamEffect]:
        for known in self._accepted.values():
            known.delivered = max(known.delivered, known.high_water)
            known.nack_at = None
        return []


class DestroyByKeyOnly(ReplicaTable):
    """A DESTROY acts whatever life of the tuple it was meant for."""

    def _on_destroy(self, delta: Destroy, sender_id: int) -> list[ReplicaEffect]:
        record = self._registry.get(delta.key)
        if record is not None:
            delta = Destroy(delta.key, record.incarnation, delta.version, record.contribution)
        return super()._on_destroy(delta, sender_id)


class OldEpochCounts(ReplicaTable):
    """The word of a former holder counts."""

    def _authorize(
        self,
        number: int,
        group: ReplicaGroup,
        record: Record | None,
        version: Version,
        sender_id: int,
    ) -> list[ReplicaEffect] | None:
        if version.epoch < group.epoch:
            return None
        return super()._authorize(number, group, record, version, sender_id)


class NeverStale(ReplicaTable):
    """Entries with old windows are kept when another node has held the group."""

    def mark_stale(self, number: int) -> int:
        return 0


class NotTakenOut(Registry):
    """What a flow added to its digest stays there when the flow goes."""

    def _take_out(self, flow: int, record: Record) -> None:
        super()._take_out(flow, record)
        self._sums[record.group][flow >> 56] += record.contribution


def caught(cores: Cores, seeds: Sequence[int] = range(SEEDS_TO_CATCH)) -> str:
    for seed in seeds:
        try:
            SimWorld(seed, cores=cores).run()
        except CheckFailed as error:
            return str(error)
    pytest.fail("the planted mistake was not caught")


def test_no_dedupe_is_caught() -> None:
    assert "seq" in caught(Cores(stream=NoDedupe))


def test_ignored_gaps_are_caught() -> None:
    assert "against holder" in caught(Cores(stream=GapsIgnored))


def test_an_old_epoch_that_counts_is_caught() -> None:
    assert "applied a delta of epoch" in caught(Cores(table=OldEpochCounts))


def test_kept_stale_entries_are_caught() -> None:
    assert "with windows of epoch" in caught(Cores(table=NeverStale))


def test_destroy_by_key_only_is_caught() -> None:
    assert "ended another life" in caught(Cores(table=DestroyByKeyOnly))


def test_a_contribution_that_stays_after_the_destroy_is_caught() -> None:
    assert "repairs what is equal" in caught(Cores(registry=NotTakenOut))


def test_without_digests_holes_stay() -> None:
    assert "against holder" in caught(Cores(digests=False))
