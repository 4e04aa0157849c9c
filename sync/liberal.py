"""Adopted TCP flows that are still liberal: found out, one by one or by a dump, and made strict.

No event tells when the kernel has learnt a flow's windows (0x20 on both sides), so the owner asks
once a second. Clearing 0x08 is not published: it is true of this node alone (DESIGN section 4).

The registry's LIBERAL flag says which flows they are. While they are few their keys are known here
too, and each is asked for; if there are more, the whole group is dumped, and the keys of what is
left after a dump are known again if it is few.
"""

from __future__ import annotations

from collections.abc import Callable

from hafw.errors import KernelError
from hafw.flow import FlowEntry, FlowKey
from sync.adopt import is_liberal
from sync.applier import Applier
from sync.ctnetlink import tcp_is_learnt
from sync.dumper import Dumper
from sync.ops import MakeStrict
from sync.registry import Flag, FlowRegistry

__all__ = ["BY_GET_MAX", "LiberalFlows"]

POLL_S = 1.0
DUMP_SHARE = 3
"""A dump that took t is not repeated before this many times t."""
BY_GET_MAX = 512
"""Up to this many flows are asked for one by one; more by a dump."""
LOOKUPS_PER_SLICE = 40


class LiberalFlows:
    """Of one held group."""

    def __init__(self, registry: FlowRegistry, group: int) -> None:
        self._registry = registry
        self._group = group
        self._keys: set[FlowKey] = set()
        self.poll_at = 0.0
        self._todo: list[FlowKey] = []
        self._dump: Dumper | None = None
        self._dump_began = 0.0

    def __len__(self) -> int:
        return self._registry.count_flag(self._group, Flag.LIBERAL)

    @property
    def busy(self) -> bool:
        dump = self._dump
        return bool(self._todo) or (dump is not None and (dump.ready or dump.done))

    def add(self, key: FlowKey) -> None:
        """A flow in the registry is liberal."""
        if self._registry.set(key, Flag.LIBERAL) and len(self._keys) < BY_GET_MAX:
            self._keys.add(key)

    def gone(self, key: FlowKey) -> None:
        """The flow is not in the registry any more."""
        self._keys.discard(key)

    def cancel(self) -> None:
        if self._dump is not None:
            self._dump.cancel()
            self._dump = None
        self._todo.clear()

    def work(self, applier: Applier, start_dump: Callable[[int], Dumper], *, now: float) -> None:
        """One slice."""
        if self._dump is not None:
            chunk = self._dump.take()
            if chunk is not None:
                self._judge(applier, chunk)
            elif self._dump.done:
                self._dump = None
                self.poll_at = max(self.poll_at, now + DUMP_SHARE * (now - self._dump_began))
        elif self._todo:
            self._judge(applier, self._look_up(applier))
        elif now >= self.poll_at and len(self):
            self.poll_at = now + POLL_S
            if len(self) > len(self._keys):
                self._dump, self._dump_began = start_dump(self._group), now
                self._keys.clear()
            else:
                self._todo = list(self._keys)

    def _look_up(self, applier: Applier) -> list[FlowEntry]:
        entries: list[FlowEntry] = []
        for _ in range(min(LOOKUPS_PER_SLICE, len(self._todo))):
            key = self._todo.pop()
            try:
                entry = applier.get(key)
            except KernelError:
                continue
            if entry is None:
                self._forget(key)
            else:
                entries.append(entry)
        return entries

    def _judge(self, applier: Applier, entries: list[FlowEntry]) -> None:
        learnt: list[FlowKey] = []
        for entry in entries:
            if entry.tcp is None:
                continue
            if not is_liberal(entry):
                self._forget(entry.key)
            elif tcp_is_learnt(entry):
                learnt.append(entry.key)
            else:
                self.add(entry.key)
        applier.apply([MakeStrict(key) for key in learnt])
        for key in learnt:
            self._forget(key)
        applier.counters["made_strict"] += len(learnt)

    def _forget(self, key: FlowKey) -> None:
        self._keys.discard(key)
        self._registry.clear(key, Flag.LIBERAL)
