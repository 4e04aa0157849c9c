"""What a receiver does with a delta: whose word counts, and which kernel operation follows. Pure.

Whose word counts. An epoch names its holder (`hafw.human.epoch_node`), so a delta is its owner's
word iff its sender is the node of its version's epoch, and that epoch is not older than the newest
known of the group, nor the version older than the flow's. While this node itself holds the group,
nobody else's word at or below its own epoch counts; a delta of a newer epoch proves that the lease
is gone (`Superseded`).

What follows. A flow not known is created; the same incarnation is updated in place and its TCP
state never goes backwards within one version (a snapshot can run ahead of the stream); another
incarnation, and any flow that is *stale* here, is replaced: deleted and inserted as a pristine
replica in one write (DESIGN section 4). In a *suspect* group the kernel may hold stale entries
that the registry does not know, so that creations are replacements there too. A DESTROY must match
key, incarnation and contribution. Expectations stand under their master's word: `sync.expected`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import assert_never

from hafw.flow import Expectation, FlowEntry, FlowKey, mark_group
from hafw.human import epoch_node
from sync.delta import (
    Delta,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    GroupDigest,
    Upsert,
    Version,
)
from sync.expected import ExpectedFlows
from sync.flowhash import bucket_of
from sync.ops import Create, KernelOp, Remove, Replace, Update
from sync.registry import Flag, FlowRegistry, Record

__all__ = [
    "TOMBSTONES_MAX",
    "Compared",
    "Hole",
    "ReplicaEffect",
    "ReplicaGroup",
    "ReplicaTable",
    "Superseded",
]


TOMBSTONES_MAX = 1 << 20
"""Deaths during one snapshot that are remembered; a snapshot with more is not whole."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A peer speaks for the group under a newer epoch than any known here. Nothing was done: learn
    the epoch (this node's own entries may be stale by it), then hand the delta in again."""

    group: int
    epoch: int
    holder_id: int


@dataclass(frozen=True, slots=True)
class Hole:
    """The holder's own word of an older epoch of its came after we had learnt the newer one, and
    does not count any more: what we have of the group is not whole, unless a snapshot that began
    later made it so."""

    group: int


@dataclass(frozen=True, slots=True)
class Compared:
    """The holder's digest against ours: of `count` buckets from `first` on, these differ."""

    group: int
    first: int
    count: int
    wrong: frozenset[int]


ReplicaEffect = KernelOp | Superseded | Hole | Compared


@dataclass(slots=True)
class ReplicaGroup:
    """One group as its receiver knows it; what it knows of its flows are flags in the registry."""

    epoch: int = 0
    """The newest epoch known."""
    active: bool = False
    """This node holds the group at `epoch`."""
    suspect: bool = True
    """This kernel may hold stale entries that the registry does not know."""
    snapshot: bool = False
    """One is under way, from the request on."""
    buckets: frozenset[int] | None = None
    """It is of these buckets alone: a repair."""
    repaired: int = 0
    """Flows that it made, replaced or deleted."""
    dead: set[int] = field(default_factory=set)
    """During a snapshot: hashes of what the stream destroyed, `TOMBSTONES_MAX` at most."""
    dead_unknown: bool = False
    """There were more."""


class ReplicaTable:
    """The receiver's side of the registry."""

    def __init__(self, registry: FlowRegistry, groups: dict[int, ReplicaGroup]) -> None:
        self._registry = registry
        self._groups = groups
        self.counters: Counter[str] = Counter()
        self._expected = ExpectedFlows(registry, self.counters)

    def on_delta(self, delta: Delta, sender_id: int) -> list[ReplicaEffect]:
        """A live delta, delivered in order by the stream."""
        match delta:
            case Upsert():
                return self._on_upsert(delta, sender_id)
            case Destroy():
                return self._on_destroy(delta, sender_id)
            case ExpectUpsert() | ExpectDestroy():
                return self._on_expectation(delta, sender_id)
            case GroupDigest():
                return self._on_digest(delta, sender_id)
            case _:
                assert_never(delta)

    def _on_upsert(self, delta: Upsert, sender_id: int) -> list[ReplicaEffect]:
        entry, key = delta.entry, delta.entry.key
        number = mark_group(entry.mark)
        group = self._groups.get(number)
        if group is None:
            return self._refuse("delta_unknown_group")
        record = self._registry.get(key)
        verdict = self._authorize(number, group, record, delta.version, sender_id)
        if verdict is not None:
            return verdict
        return [*self._apply(group, record, delta, Flag.TOUCHED if group.snapshot else 0)]

    def _on_digest(self, delta: GroupDigest, sender_id: int) -> list[ReplicaEffect]:
        group = self._groups.get(delta.group)
        if group is None:
            return self._refuse("delta_unknown_group")
        verdict = self._authorize(delta.group, group, None, delta.version, sender_id)
        if verdict is not None:
            # An older digest that does not count any more is no hole: it changes nothing.
            return [one for one in verdict if not isinstance(one, Hole)]
        ours = self._registry.digest(delta.group)[delta.first : delta.first + len(delta.sums)]
        wrong = frozenset(
            bucket
            for bucket, (said, (total, _)) in enumerate(
                zip(delta.sums, ours, strict=True), delta.first
            )
            if said != total
        )
        return [Compared(delta.group, delta.first, len(delta.sums), wrong)]

    def _on_expectation(
        self, delta: ExpectUpsert | ExpectDestroy, sender_id: int
    ) -> list[ReplicaEffect]:
        master = delta.expectation.master if isinstance(delta, ExpectUpsert) else delta.master
        record = self._registry.get(master)
        if record is None:
            if epoch_node(delta.version.epoch) == sender_id:
                self._expected.park(delta)
            return self._refuse("expectation_without_master")
        group = self._groups[record.group]
        verdict = self._authorize(record.group, group, record, delta.version, sender_id)
        if verdict is not None:
            return verdict
        return [*self._expected.on_delta(record, delta)]

    def _on_destroy(self, delta: Destroy, sender_id: int) -> list[ReplicaEffect]:
        record = self._registry.get(delta.key)
        if record is None:
            self.counters["destroy_unknown"] += 1
            for group in self._groups.values():
                # A tombstone: a snapshot under way may still name the flow.
                if group.snapshot and epoch_node(delta.version.epoch) == sender_id:
                    self._bury(group, delta.key)
            return []
        group = self._groups[record.group]
        verdict = self._authorize(record.group, group, record, delta.version, sender_id)
        if verdict is not None:
            return verdict
        if group.snapshot:
            # Also of another life than the one known here: the snapshot may still name it.
            self._bury(group, delta.key)
        if (record.incarnation, record.contribution) != (delta.incarnation, delta.contribution):
            return self._refuse("destroy_mismatch")
        self.forget(delta.key)
        return [Remove(delta.key)]

    def _bury(self, group: ReplicaGroup, key: FlowKey) -> None:
        if len(group.dead) < TOMBSTONES_MAX:
            group.dead.add(self._registry.hashes.flow(key))
        else:
            group.dead_unknown = True

    def masters(self) -> list[FlowKey]:
        """The flows of which something is expected, here or as soon as they come."""
        return [*self._registry.expectations.masters(), *self._expected.parked_masters()]

    # -- snapshots

    def await_snapshot(self, number: int, buckets: frozenset[int] | None = None) -> None:
        """One is being asked for, of all of the group or of some buckets: from now on, what the
        stream names is not the snapshot's."""
        self._clear_snapshot(number)
        group = self._groups[number]
        group.snapshot, group.buckets, group.repaired = True, buckets, 0
        self._expected.await_snapshot()

    def begin_snapshot(self, number: int) -> None:
        """The holder has begun to send it."""
        buckets = self._groups[number].buckets
        self._registry.set_all(number, Flag.UNSEEN, unless=Flag.TOUCHED, buckets=buckets)
        self._expected.begin_snapshot(self._of_group(number))

    def on_snapshot_delta(self, delta: Delta, number: int) -> list[KernelOp]:
        """What the holder's snapshot says of a flow, or of what it expects."""
        match delta:
            case Upsert():
                return self.on_snapshot_entry(delta, number)
            case ExpectUpsert():
                return self.on_snapshot_expectation(delta, number)
            case _:
                return []

    def on_snapshot_entry(self, delta: Upsert, number: int) -> list[KernelOp]:
        """One flow of the holder's snapshot. The holder has answered for its session; versions
        only tell which is newer."""
        group = self._groups[number]
        assert group.snapshot, "no snapshot is under way"
        key = delta.entry.key
        if mark_group(delta.entry.mark) != number:
            self._refuse("snapshot_other_group")
            return []
        record = self._registry.get(key)
        touched = record is not None and record.flags & Flag.TOUCHED
        if touched or self._registry.hashes.flow(key) in group.dead:
            return []  # The stream knows better.
        if record is not None and record.group != number:
            self._refuse("snapshot_other_group")
            return []
        if record is not None and delta.version < record.version:
            self._refuse("snapshot_stale_version")
            return []
        ops = self._apply(group, record, delta, 0)
        group.repaired += not isinstance(ops[0], Update)
        return ops

    def on_snapshot_expectation(self, delta: ExpectUpsert, number: int) -> list[KernelOp]:
        """An expectation of the holder's snapshot; its master came before."""
        record = self._registry.get(delta.expectation.master)
        if record is None or record.group != number:
            self.counters["expectation_without_master"] += 1
            return []
        return self._expected.on_snapshot(record, delta)

    def end_snapshot(self, number: int) -> list[KernelOp]:
        """It is all here. The caller now sweeps this kernel by a dump: what `is_orphan` goes. Then
        `snapshot_swept`."""
        assert self._groups[number].snapshot, "no snapshot is under way"
        return self._expected.end_snapshot()

    def is_orphan(self, entry: FlowEntry, number: int) -> bool:
        """After `end_snapshot`: does the kernel hold this entry for no reason? Neither the
        snapshot nor a live delta named it."""
        group = self._groups[number]
        assert group.snapshot, "no snapshot is under way"
        if not self._is_meant(group, entry.key):
            return False
        # A tombstone does not save it: what the stream destroyed before we knew it must go too.
        record = self._registry.get(entry.key)
        return record is None or bool(record.flags & Flag.UNSEEN)

    def expected_orphans(self, found: list[Expectation], number: int) -> list[KernelOp]:
        """Of the kernel's expectations, those of the group's flows that its holder has not."""
        mine = [one for one in found if self._is_of(one.master, number)]
        return self._expected.orphans(mine)

    def snapshot_swept(self, number: int) -> None:
        """All that was asked for is in this kernel as its holder has it."""
        group = self._groups[number]
        swept = self._registry.drop_flagged(number, Flag.UNSEEN)
        self.counters["snapshot_swept"] += swept
        group.repaired += swept
        if group.buckets is None:
            group.suspect = False
            self._registry.clear_all(number, Flag.STALE)
        self._clear_snapshot(number)
        self._expected.snapshot_over()

    def abort_snapshot(self, number: int) -> None:
        self._clear_snapshot(number)
        self._expected.snapshot_over()

    def _clear_snapshot(self, number: int) -> None:
        group = self._groups[number]
        group.snapshot = group.dead_unknown = False
        group.buckets = None
        group.dead = set()
        self._registry.clear_all(number, Flag.UNSEEN | Flag.TOUCHED)

    # -- staleness

    def mark_stale(self, number: int) -> int:
        """Another node has held the group since this one forwarded its packets."""
        self._groups[number].suspect = True
        return self._registry.set_all(number, Flag.STALE)

    def forget(self, key: FlowKey) -> None:
        self._registry.remove(key)

    # -- inside

    def _authorize(
        self,
        number: int,
        group: ReplicaGroup,
        record: Record | None,
        version: Version,
        sender_id: int,
    ) -> list[ReplicaEffect] | None:
        """None if the delta counts; else what comes of it instead."""
        if epoch_node(version.epoch) != sender_id:
            return self._refuse("delta_not_owner")
        if version.epoch < group.epoch or (group.active and version.epoch <= group.epoch):
            self._refuse("delta_old_epoch")
            return [Hole(number)] if epoch_node(group.epoch) == sender_id else []
        if record is not None and version < record.version:
            return self._refuse("delta_old_version")
        if version.epoch > group.epoch:
            return [Superseded(number, version.epoch, sender_id)]
        return None

    def _is_of(self, master: FlowKey, number: int) -> bool:
        """Is it a flow of the group, and of the buckets that a repair is about?"""
        record = self._registry.get(master)
        mine = record is not None and record.group == number
        return mine and self._is_meant(self._groups[number], master)

    def _is_meant(self, group: ReplicaGroup, key: FlowKey) -> bool:
        buckets = group.buckets
        return buckets is None or bucket_of(self._registry.hashes.flow(key)) in buckets

    def _of_group(self, number: int) -> list[Expectation]:
        known = self._registry.expectations.all()
        return [one for one in known if self._is_of(one.master, number)]

    def _apply(
        self, group: ReplicaGroup, record: Record | None, delta: Upsert, flags: int
    ) -> list[KernelOp]:
        """The flow, then what is expected of it and came too early."""
        op = self._flow_op(group, record, delta, flags)
        if not self._expected.waiting:
            return [op]
        now = self._registry.get(delta.entry.key)
        assert now is not None
        return [op, *self._expected.unpark(delta.entry.key, now)]

    def _flow_op(
        self, group: ReplicaGroup, record: Record | None, delta: Upsert, flags: int
    ) -> KernelOp:
        entry = delta.entry
        stored = self._registry.hashes.contribution(entry, delta.incarnation)
        stale = record is not None and record.flags & Flag.STALE
        same = (
            record is not None
            and record.incarnation == delta.incarnation
            and record.contribution == stored
        )
        if same and record is not None and not stale:
            entry = self._never_back(entry, record, delta.version)
        named = Flag.UNSEEN | Flag.STALE | Flag.UNPASSED
        version = delta.version
        self._registry.put(entry, delta.incarnation, version, stored, add=flags, clear=named)
        if stale:
            return Replace(entry)
        if same:
            return Update(entry)
        return Create(entry) if record is None and not group.suspect else Replace(entry)

    def _never_back(self, entry: FlowEntry, record: Record, version: Version) -> FlowEntry:
        """Without its TCP state, where that would take the flow back."""
        tcp = entry.tcp
        if tcp is None or version != record.version or tcp.state >= record.tcp_state:
            return entry
        self.counters["tcp_regressions_refused"] += 1
        return replace(entry, tcp=None)

    def _refuse(self, reason: str) -> list[ReplicaEffect]:
        self.counters[reason] += 1
        return []
