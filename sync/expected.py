"""The receiver's side of expectations: deltas in, kernel operations out. Pure.

Whose word counts is decided before, by the master's record (`sync.replica`). Here: an expectation
belongs to one life of its master, so that another incarnation is refused; what comes before its
master (a stream that runs ahead of a snapshot) is parked, `PARKED_MAX` at most, and made after it.
During a snapshot what the stream named is left alone, and what nobody named goes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hafw.flow import Expectation, FlowKey
from sync.delta import ExpectDestroy, ExpectUpsert
from sync.ops import CreateExpectation, KernelOp, RemoveExpectation
from sync.registry import FlowRegistry, Record

__all__ = ["PARKED_MAX", "ExpectedFlows"]

PARKED_MAX = 1024


class ExpectedFlows:
    """Of all groups; at most one snapshot is under way (`sync.follower` fetches one at a time)."""

    def __init__(self, registry: FlowRegistry, counters: Counter[str]) -> None:
        self._registry = registry
        self._counters = counters
        self._parked: dict[FlowKey, ExpectUpsert] = {}
        self._touched: set[FlowKey] | None = None
        self._unseen: dict[FlowKey, FlowKey] = {}

    @property
    def waiting(self) -> bool:
        """Something is parked."""
        return bool(self._parked)

    def parked_masters(self) -> list[FlowKey]:
        return [delta.expectation.master for delta in self._parked.values()]

    def park(self, delta: ExpectUpsert | ExpectDestroy) -> None:
        """Its master is not known here."""
        key = delta.expectation.key if isinstance(delta, ExpectUpsert) else delta.key
        if self._touched is not None:
            self._touched.add(key)
        if isinstance(delta, ExpectDestroy):
            self._parked.pop(key, None)
        elif key in self._parked or len(self._parked) < PARKED_MAX:
            self._parked[key] = delta
        else:
            self._counters["expectations_not_parked"] += 1

    def unpark(self, master: FlowKey, record: Record) -> list[KernelOp]:
        """The master came."""
        ops: list[KernelOp] = []
        for key, delta in list(self._parked.items()):
            if delta.expectation.master == master:
                del self._parked[key]
                ops += self._make(record, delta)
        return ops

    def on_delta(self, record: Record, delta: ExpectUpsert | ExpectDestroy) -> list[KernelOp]:
        key = delta.expectation.key if isinstance(delta, ExpectUpsert) else delta.key
        if self._touched is not None:
            self._touched.add(key)
        if isinstance(delta, ExpectUpsert):
            return self._make(record, delta)
        if delta.incarnation != record.incarnation:
            self._counters["expectation_other_life"] += 1
            return []
        if self._registry.expectations.remove(key) is None:
            return []
        return [RemoveExpectation(delta.master, key)]

    def _make(self, record: Record, delta: ExpectUpsert) -> list[KernelOp]:
        if delta.incarnation != record.incarnation:
            self._counters["expectation_other_life"] += 1
            return []
        new = delta.expectation
        old = self._registry.expectations.get(new.key)
        if not self._registry.expectations.put(new):
            self._counters["expectations_no_room"] += 1
            return []
        if old is not None and replace(old, timeout_s=new.timeout_s) != new:
            # A second creation changes nothing but the timeout (`ctnetlink_change_expect`).
            return [RemoveExpectation(old.master, old.key), CreateExpectation(new)]
        return [CreateExpectation(new)]

    # -- snapshots

    def await_snapshot(self) -> None:
        self._touched = set()

    def begin_snapshot(self, known: list[Expectation]) -> None:
        self._unseen = {one.key: one.master for one in known}

    def on_snapshot(self, record: Record, delta: ExpectUpsert) -> list[KernelOp]:
        key = delta.expectation.key
        if self._touched is not None and key in self._touched:
            return []  # The stream knows better.
        self._unseen.pop(key, None)
        return self._make(record, delta)

    def end_snapshot(self) -> list[KernelOp]:
        """Sweep what neither the snapshot nor a live delta named."""
        ops: list[KernelOp] = []
        for key, master in self._unseen.items():
            live = self._touched is not None and key in self._touched
            if not live and self._registry.expectations.remove(key) is not None:
                ops.append(RemoveExpectation(master, key))
        self._unseen = {}
        return ops

    def orphans(self, found: list[Expectation]) -> list[KernelOp]:
        """What the kernel has and nobody named."""
        known = self._registry.expectations
        return [RemoveExpectation(one.master, one.key) for one in found if one.key not in known]

    def snapshot_over(self) -> None:
        self._touched = None
        self._unseen = {}
