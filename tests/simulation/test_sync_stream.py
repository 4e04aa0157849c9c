"""Replication under loss, duplication, reordering, restarts and hand-overs; and its checkers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from hafw.flow import FlowKey
from hafw.messages import RoleChange
from sync.delta import Destroy, Upsert, Version
from sync.ops import Remove
from sync.publish import Publisher, RandomBits
from sync.registry import FlowRegistry, Record, Registry
from sync.replica import ReplicaEffect, ReplicaGroup, ReplicaTable
from sync.roles import RoleEffect, Roles
from sync.stream import Deliver, StreamEffect, StreamReceiver
from tests.simulation.sync_world import Cores, SimWorld
from tests.simulation.timeline import CheckFailed

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


class NoTombstones(ReplicaTable):
    """A snapshot's word of a flow counts although the stream has ended it meanwhile."""

    def _bury(self, group: ReplicaGroup, key: FlowKey) -> None:
        pass


class ReusedIsTheSame(ReplicaTable):
    """A tuple that is used again, with another translation perhaps, is the flow it was."""

    def _on_upsert(self, delta: Upsert, sender_id: int) -> list[ReplicaEffect]:
        record = self._registry.get(delta.entry.key)
        if record is not None:
            delta = replace(delta, incarnation=record.incarnation)
        return super()._on_upsert(delta, sender_id)


class AlwaysSeven:
    """Where every life gets the same incarnation."""

    def getrandbits(self, bits: int, /) -> int:
        return 7


class OneLifeATuple(Publisher):
    """A tuple that comes again with another translation is said to be the flow it was."""

    def __init__(self, registry: FlowRegistry, rng: RandomBits) -> None:
        super().__init__(registry, AlwaysSeven())


class FormerOwnerEnds(ReplicaTable):
    """A DESTROY of a former owner, late, still ends the flow."""

    def _on_destroy(self, delta: Destroy, sender_id: int) -> list[ReplicaEffect]:
        record = self._registry.get(delta.key)
        if record is not None and record.contribution == delta.contribution:
            self.forget(delta.key)
            return [Remove(delta.key)]
        return super()._on_destroy(delta, sender_id)


class AwayForgotten(Roles):
    """Who holds again does not ask whether others held meanwhile."""

    def on_role_change(self, message: RoleChange, *, now: float) -> list[RoleEffect]:
        return super().on_role_change(msgspec.structs.replace(message, contiguous=True), now=now)


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


def caught_by(checker: str, cores: Cores) -> None:
    """That checker catches it in some schedule; in others another one may be first."""
    for seed in range(SEEDS_TO_CATCH):
        try:
            SimWorld(seed, cores=cores).run()
        except CheckFailed as error:
            if checker in str(error):
                return
    pytest.fail(f"the planted mistake was not caught by: {checker}")


def test_no_dedupe_is_caught() -> None:
    assert "seq" in caught(Cores(stream=NoDedupe))


def test_ignored_gaps_are_caught() -> None:
    assert "against holder" in caught(Cores(stream=GapsIgnored))


def test_an_old_epoch_that_counts_is_caught() -> None:
    assert "applied a delta of epoch" in caught(Cores(table=OldEpochCounts))


def test_kept_stale_entries_are_caught() -> None:
    assert " windows of " in caught(Cores(table=NeverStale))


def test_destroy_by_key_only_is_caught() -> None:
    assert "ended another life" in caught(Cores(table=DestroyByKeyOnly))


@pytest.mark.parametrize(
    ("cores", "checker"),
    [
        (Cores(table=NoTombstones), " revives "),
        (Cores(table=ReusedIsTheSame), " keeps another life of "),
        (Cores(publisher=OneLifeATuple), " two translations in one life"),
        (Cores(table=FormerOwnerEnds), " applied a delta of epoch "),
        (Cores(roles=AwayForgotten), " again with its windows of before"),
    ],
    ids=["stale-word-after-destroy", "tuple-reused", "nat-changed", "former-owner", "away-twice"],
)
def test_a_mistaken_identity_is_caught(cores: Cores, checker: str) -> None:
    caught_by(checker, cores)


def test_a_contribution_that_stays_after_the_destroy_is_caught() -> None:
    assert "repairs what is equal" in caught(Cores(registry=NotTakenOut))


def test_without_digests_holes_stay() -> None:
    assert "against holder" in caught(Cores(digests=False))
