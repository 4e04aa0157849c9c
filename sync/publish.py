"""What the owner says of its flows: conntrack events and dumps in, deltas out. Pure.

An event is published if its entry belongs to a group that this node holds, whatever the owner bits
of its mark say (after a takeover they still name the node before, until adoption rewrites them),
and was not made by ourselves. TCP is published from ASSURED on: a replica in SYN_SENT would drop
the client's packets for ever, and a SYN flood replicates nothing. Other protocols are published at
once. A DESTROY goes out only for what was published.

Identity: the first publication draws the flow's incarnation. Its version is (epoch, 0), `epoch`
being the group's when the event was read; a flow that was published under an older epoch moves up
with its next delta, which is what adoption is to the peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from hafw.flow import (
    IPPROTO_TCP,
    IPS_ASSURED,
    FlowEntry,
    FlowKey,
    mark_group,
)
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import Delta, Destroy, Upsert, Version, contribution
from sync.registry import Record, Registry, mutable_of

__all__ = ["LookUp", "PublishEffect", "Publisher", "RandomBits", "publishable"]


class RandomBits(Protocol):
    """Where incarnations come from; `random.SystemRandom` in the daemon."""

    def getrandbits(self, bits: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class LookUp:
    """The event lacks what its first delta needs: GET the entry and `publish` it."""

    key: FlowKey
    epoch: int


PublishEffect = Delta | LookUp


def publishable(entry: FlowEntry) -> bool:
    """Is this flow worth a replica yet?"""
    return entry.key.orig.proto != IPPROTO_TCP or bool(entry.status & IPS_ASSURED)


class Publisher:
    """The owner's side of the registry."""

    def __init__(self, registry: Registry, rng: RandomBits) -> None:
        self._registry = registry
        self._rng = rng
        self.counters: Counter[str] = Counter()

    def on_event(self, event: CtEvent, held: Mapping[int, int]) -> list[PublishEffect]:
        """`held` is group -> epoch of the groups this node holds *now*, when it reads the event.
        Events of our own making must have been taken out by their port id."""
        entry = event.entry
        epoch = held.get(mark_group(entry.mark))
        if epoch is None:
            return []
        match event.kind:
            case EventKind.DESTROY:
                return self.destroyed(entry.key, epoch)
            case EventKind.NEW:
                # The kernel makes an entry anew: whatever had this tuple before is gone, even
                # if its DESTROY was lost.
                return [*self.destroyed(entry.key, epoch), *self.publish(entry, epoch)]
            case EventKind.UPDATE:
                return self.publish(entry, epoch)

    def publish(
        self, entry: FlowEntry, epoch: int, *, refresh: bool = False
    ) -> list[PublishEffect]:
        """The delta, if any, that brings the peers' view of `entry` up to date. `refresh`: say it
        even if nothing changed."""
        record = self._registry.get(entry.key)
        if record is None:
            return self._first(entry, epoch)
        # An event carries TCP state and helper only when they changed.
        entry = replace(
            entry,
            tcp=entry.tcp if entry.tcp is not None else record.tcp,
            helper=entry.helper if entry.helper is not None else record.helper,
        )
        if contribution(entry, record.incarnation) != record.contribution:
            # The tuple was re-used while we were not listening (overrun): a new life.
            self.counters["reused_unheard"] += 1
            return [*self.destroyed(entry.key, epoch), *self._first(entry, epoch)]
        current = record.version.epoch == epoch
        if current and not refresh and mutable_of(entry) == record.mutable:
            return []
        version = record.version if current else Version(epoch, 0)
        self._registry.put(entry, record.incarnation, version, record.contribution)
        self.counters["updates"] += 1
        return [Upsert(entry, record.incarnation, version, refresh and current)]

    def destroyed(self, key: FlowKey, epoch: int) -> list[PublishEffect]:
        """The flow is gone from this kernel."""
        record = self._registry.remove(key)
        if record is None:
            return []
        self.counters["destroys"] += 1
        return [Destroy(key, record.incarnation, self._at(record, epoch), record.contribution)]

    def _first(self, entry: FlowEntry, epoch: int) -> list[PublishEffect]:
        if not publishable(entry):
            return []
        if entry.key.orig.proto == IPPROTO_TCP and entry.tcp is None:
            self.counters["lookups"] += 1
            return [LookUp(entry.key, epoch)]
        incarnation = self._rng.getrandbits(32)
        version = Version(epoch, 0)
        self._registry.put(entry, incarnation, version)
        self.counters["first"] += 1
        return [Upsert(entry, incarnation, version, False)]

    @staticmethod
    def _at(record: Record, epoch: int) -> Version:
        return record.version if record.version.epoch == epoch else Version(epoch, 0)
