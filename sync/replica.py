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
from dataclasses import dataclass, field
from typing import assert_never

from hafw.flow import Expectation, FlowEntry, FlowKey, mark_group
from hafw.human import epoch_node
from sync.delta import (
    Delta,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    Upsert,
    Version,
    contribution,
)
from sync.expected import ExpectedFlows
from sync.ops import Create, KernelOp, Remove, Replace, Update
from sync.registry import Record, Registry

__all__ = [
    "Hole",
    "ReplicaEffect",
    "ReplicaGroup",
    "ReplicaTable",
    "Superseded",
]


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


ReplicaEffect = KernelOp | Superseded | Hole


@dataclass(slots=True)
class ReplicaGroup:
    """One group as its receiver knows it."""

    epoch: int = 0
    """The newest epoch known."""
    active: bool = False
    """This node holds the group at `epoch`."""
    stale: set[FlowKey] = field(default_factory=set)
    """Flows whose windows in this kernel may be out of date."""
    suspect: bool = True
    """This kernel may hold stale entries that the registry does not know."""
    touched: set[FlowKey] | None = None
    """Keys that live deltas named since a snapshot was asked for; None if none is under way."""
    unseen: set[FlowKey] = field(default_factory=set)
    """During a snapshot: flows known before it that it has not named yet."""


class ReplicaTable:
    """The receiver's side of the registry."""

    def __init__(self, registry: Registry, groups: dict[int, ReplicaGroup]) -> None:
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
        if group.touched is not None:
            group.touched.add(key)
        return [*self._apply(group, record, delta)]

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
                if group.touched is not None and epoch_node(delta.version.epoch) == sender_id:
                    group.touched.add(delta.key)
            return []
        group = self._groups[record.group]
        verdict = self._authorize(record.group, group, record, delta.version, sender_id)
        if verdict is not None:
            return verdict
        if (record.incarnation, record.contribution) != (delta.incarnation, delta.contribution):
            return self._refuse("destroy_mismatch")
        if group.touched is not None:
            group.touched.add(delta.key)
        self.forget(delta.key)
        return [Remove(delta.key)]

    # -- snapshots

    def await_snapshot(self, number: int) -> None:
        """One is being asked for: from now on, what the stream names is not the snapshot's."""
        self._groups[number].touched = set()
        self._expected.await_snapshot()

    def begin_snapshot(self, number: int) -> None:
        """The holder has begun to send it."""
        self._groups[number].unseen = self._registry.keys(number)
        self._expected.begin_snapshot(self._of_group(number))

    def on_snapshot_entry(self, delta: Upsert, number: int) -> list[KernelOp]:
        """One flow of the holder's snapshot. The holder has answered for its session; versions
        only tell which is newer."""
        group = self._groups[number]
        assert group.touched is not None, "no snapshot is under way"
        key = delta.entry.key
        if mark_group(delta.entry.mark) != number:
            self._refuse("snapshot_other_group")
            return []
        if key in group.touched:
            return []  # The stream knows better.
        record = self._registry.get(key)
        if record is not None and record.group != number:
            self._refuse("snapshot_other_group")
            return []
        if record is not None and delta.version < record.version:
            self._refuse("snapshot_stale_version")
            return []
        group.unseen.discard(key)
        return self._apply(group, record, delta)

    def on_snapshot_expectation(self, delta: ExpectUpsert, number: int) -> list[KernelOp]:
        """An expectation of the holder's snapshot; its master came before."""
        record = self._registry.get(delta.expectation.master)
        if record is None or record.group != number:
            self.counters["expectation_without_master"] += 1
            return []
        return self._expected.on_snapshot(record, delta)

    def end_snapshot(self, number: int) -> list[KernelOp]:
        """Sweep what neither the snapshot nor a live delta named. Entries of this kernel that the
        registry does not know are swept by the caller, from a dump, before it calls
        `snapshot_swept`."""
        group = self._groups[number]
        assert group.touched is not None, "no snapshot is under way"
        gone = [key for key in group.unseen if key not in group.touched and key in self._registry]
        for key in gone:
            self.forget(key)
        self.counters["snapshot_swept"] += len(gone)
        group.unseen = set()
        return [*map(Remove, gone), *self._expected.end_snapshot()]

    def is_orphan(self, entry: FlowEntry, number: int) -> bool:
        """After `end_snapshot`: does the kernel hold this entry for no reason?"""
        group = self._groups[number]
        assert group.touched is not None, "no snapshot is under way"
        # A tombstone does not save it: what the stream destroyed before we knew it must go too.
        return entry.key not in self._registry

    def expected_orphans(self, found: list[Expectation], number: int) -> list[KernelOp]:
        """Of the kernel's expectations, those of the group's flows that its holder has not."""
        mine = [one for one in found if self._is_of(one.master, number)]
        return self._expected.orphans(mine)

    def snapshot_swept(self, number: int) -> None:
        """All of the group in this kernel is as its holder has it."""
        group = self._groups[number]
        group.touched = None
        self._expected.snapshot_over()
        group.suspect = False
        group.stale.clear()

    def abort_snapshot(self, number: int) -> None:
        group = self._groups[number]
        group.touched = None
        group.unseen = set()
        self._expected.snapshot_over()

    # -- staleness

    def mark_stale(self, number: int) -> int:
        """Another node has held the group since this one forwarded its packets."""
        group = self._groups[number]
        group.stale = self._registry.keys(number)
        group.suspect = True
        return len(group.stale)

    def forget(self, key: FlowKey) -> None:
        record = self._registry.remove(key)
        if record is not None:
            self._groups[record.group].stale.discard(key)

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
        record = self._registry.get(master)
        return record is not None and record.group == number

    def _of_group(self, number: int) -> list[Expectation]:
        known = self._registry.expectations.all()
        return [one for one in known if self._is_of(one.master, number)]

    def _apply(self, group: ReplicaGroup, record: Record | None, delta: Upsert) -> list[KernelOp]:
        """The flow, then what is expected of it and came too early."""
        op = self._flow_op(group, record, delta)
        now = self._registry.get(delta.entry.key)
        assert now is not None
        return [op, *self._expected.unpark(delta.entry.key, now)]

    def _flow_op(self, group: ReplicaGroup, record: Record | None, delta: Upsert) -> KernelOp:
        entry, key = delta.entry, delta.entry.key
        stored = contribution(entry, delta.incarnation)
        same = (
            record is not None
            and record.incarnation == delta.incarnation
            and record.contribution == stored
        )
        if same and record is not None:
            entry = self._never_back(entry, record, delta.version)
        self._registry.put(entry, delta.incarnation, delta.version, stored)
        if key in group.stale:
            group.stale.discard(key)
            return Replace(entry)
        if same:
            return Update(entry)
        return Create(entry) if record is None and not group.suspect else Replace(entry)

    def _never_back(self, entry: FlowEntry, record: Record, version: Version) -> FlowEntry:
        tcp, known = entry.tcp, record.tcp
        if tcp is None or known is None or version != record.version or tcp.state >= known.state:
            return entry
        self.counters["tcp_regressions_refused"] += 1
        return FlowEntry(
            entry.key, entry.reply, entry.status, entry.timeout_s, entry.mark, known,
            entry.helper, entry.labels, entry.kernel_id, entry.seqadj, entry.master, entry.sctp,
            entry.synproxy,
        )  # fmt: skip

    def _refuse(self, reason: str) -> list[ReplicaEffect]:
        self.counters[reason] += 1
        return []
