"""Delivered deltas -> registry and kernel: natively where nothing is special, else the reference.

Without the native codec each delta goes to `ReplicaTable`, and what it asks for waits for `flush`.
With it a payload is walked by `sync._codec.Receiver`, which fills a batch of requests and stops at
what it leaves to the reference. Then the batch goes to the kernel, the reference handles that one
delta, and what it asks for goes before the next batch: the order is that of the deltas, always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hafw.flow import FlowEntry, mark_group
from sync.applier import Applier
from sync.delta import Delta, DeltaError, ExpectDestroy, ExpectUpsert, decode_deltas
from sync.delta_fields import read_varint
from sync.ops import KernelOp, Remove
from sync.replica import ReplicaTable

if TYPE_CHECKING:
    from sync._codec import Receiver

__all__ = ["BY_REFERENCE", "WATCHED_MAX", "Intake", "Read", "reader"]

WATCHED_MAX = 4096
"""Flows of which something was expected, before those of now are counted afresh."""

Read = Callable[[bytes, int], list[Delta] | None]
"""A payload and its datagram's epoch -> its deltas; None if the native codec found them right and
will read them where they are applied. Raises DeltaError."""
Walk = Callable[[bytes, int], int]
"""The payload from an offset on, natively: where it stopped."""
Slow = Callable[[Delta], None]
"""The reference handles a delta."""


def reader(receiver: Receiver | None) -> Read:
    """By the native codec, if there is one."""

    def by_reference(payload: bytes, epoch: int) -> list[Delta] | None:
        return decode_deltas(payload, header_epoch=epoch)

    def natively(payload: bytes, epoch: int) -> list[Delta] | None:
        assert receiver is not None
        reason = receiver.check(payload, epoch)
        if reason is None:
            return None
        if reason == "reference":
            return decode_deltas(payload, header_epoch=epoch)
        raise DeltaError(reason, "as the native codec found")

    return by_reference if receiver is None else natively


BY_REFERENCE = reader(None)


class Intake:
    """Of all groups that others hold."""

    def __init__(self, table: ReplicaTable, applier: Applier, receiver: Receiver | None) -> None:
        self._table = table
        self._applier = applier
        self._receiver = receiver
        self.read = reader(receiver)
        self._ops: list[KernelOp] = []
        self._sent = False
        self._taken = 0

    def ask(self, op: KernelOp) -> None:
        """The reference wants this done; `flush` does it."""
        self._ops.append(op)

    def live(
        self, payload: bytes, deltas: list[Delta] | None, epoch: int, sender_id: int, slow: Slow
    ) -> int:
        """All deltas of a datagram, `deltas` being what `Read` gave for it: how many."""
        if deltas is not None:
            return self._all_slow(deltas, slow)
        receiver = self._receiver
        assert receiver is not None
        return self._walk(
            payload, epoch, lambda data, at: receiver.take(data, at, epoch, sender_id), slow
        )

    def snapshot(self, payload: bytes, deltas: list[Delta] | None, epoch: int, group: int) -> int:
        """All deltas of a chunk of a snapshot of `group`, as `live`."""

        def slow(delta: Delta) -> None:
            self._ops += self._table.on_snapshot_delta(delta, group)

        if deltas is not None:
            return self._all_slow(deltas, slow)
        receiver = self._receiver
        assert receiver is not None
        return self._walk(
            payload, epoch, lambda data, at: receiver.take_snapshot(data, at, epoch, group), slow
        )

    def settle(self) -> None:
        """What the reference has asked for is done before anything is taken natively."""
        if self._ops:
            self.flush()
            self._sent = True

    def note_taken(self) -> int:
        """How many deltas were taken natively since the last call."""
        receiver = self._receiver
        assert receiver is not None
        counted = receiver.take_counters()
        if counted is not None:
            self._table.counters.update(counted)
        count, self._taken = receiver.taken - self._taken, receiver.taken
        return count

    def sweep(self, chunk: list[FlowEntry] | bytes, group: int) -> int:
        """Delete what a chunk of a dump shows and has no place in the group: how many."""
        if isinstance(chunk, list):
            orphans: list[KernelOp] = [
                Remove(entry.key)
                for entry in chunk
                if mark_group(entry.mark) == group and self._table.is_orphan(entry, group)
            ]
            self._applier.apply(orphans)
            return len(orphans)
        return self._sweep(chunk, group, passing=False)

    def pass_over(self, chunk: bytes, group: int) -> int:
        """What a chunk of a dump shows of the group has passed (`Flag.UNPASSED`); what of it
        nobody knows is deleted: how many."""
        return self._sweep(chunk, group, passing=True)

    def _sweep(self, chunk: bytes, group: int, *, passing: bool) -> int:
        receiver = self._receiver
        assert receiver is not None
        self.send()
        found = at = 0
        while at < len(chunk):
            at, more = receiver.sweep(chunk, at, group, passing)
            found += more
            self.send()
        receiver.batch.clear()
        return found

    def flush(self) -> bool:
        """Everything collected goes to the kernel; whether anything did since the last time."""
        self.send()
        if self._ops:
            ops, self._ops = self._ops, []
            self._applier.apply(ops)
            self._sent = True
        sent, self._sent = self._sent, False
        return sent

    def _all_slow(self, deltas: list[Delta], slow: Slow) -> int:
        self.send()
        for delta in deltas:
            slow(delta)
            self._watch(delta)
        return len(deltas)

    def _walk(self, payload: bytes, epoch: int, walk: Walk, slow: Slow) -> int:
        receiver = self._receiver
        assert receiver is not None
        others = at = 0
        while at < len(payload):
            self.settle()
            at = walk(payload, at)
            if receiver.batch.full:
                self.send()
            elif at < len(payload):
                self.send()
                length, start = read_varint(payload, at, len(payload))
                (delta,) = decode_deltas(payload[at : start + length], header_epoch=epoch)
                slow(delta)
                self._watch(delta)
                others += 1
                at = start + length
        return self.note_taken() + others

    def send(self) -> None:
        """What was collected natively goes to the kernel."""
        if self._receiver is not None and self._receiver.batch.messages:
            self._applier.apply_native(self._receiver.batch)
            self._sent = True

    def _watch(self, delta: Delta) -> None:
        """From now on the reference handles the flow of which something is expected."""
        receiver = self._receiver
        if receiver is None:
            return
        match delta:
            case ExpectUpsert(expectation):
                receiver.watch(expectation.master)
            case ExpectDestroy(master):
                receiver.watch(master)
            case _:
                return
        if receiver.watched_count > WATCHED_MAX:
            receiver.unwatch_all()
            for key in self._table.masters():
                receiver.watch(key)
