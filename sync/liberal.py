"""Adopted TCP flows that are still liberal: found out, one by one or by a dump, and made strict.

No event tells when the kernel has learnt a flow's windows (0x20 on both sides), so the owner asks
once a second. Clearing 0x08 is not published: it is true of this node alone (DESIGN section 4).
"""

from __future__ import annotations

from collections.abc import Callable

from hafw.errors import KernelError
from hafw.flow import FlowEntry, FlowKey
from sync.applier import Applier
from sync.ctnetlink import tcp_is_learnt
from sync.dumper import Dumper
from sync.ops import MakeStrict

__all__ = ["LiberalFlows"]

POLL_S = 1.0
BY_GET_MAX = 512
"""Up to this many flows are asked for one by one; more by a dump."""
LOOKUPS_PER_SLICE = 40


class LiberalFlows:
    """Of one held group."""

    def __init__(self) -> None:
        self.keys: set[FlowKey] = set()
        self.poll_at = 0.0
        self._todo: list[FlowKey] = []
        self._dump: Dumper | None = None

    @property
    def busy(self) -> bool:
        dump = self._dump
        return bool(self._todo) or (dump is not None and (dump.ready or dump.done))

    def cancel(self) -> None:
        if self._dump is not None:
            self._dump.cancel()
            self._dump = None
        self._todo.clear()

    def work(
        self, applier: Applier, start_dump: Callable[[int], Dumper], group: int, *, now: float
    ) -> None:
        """One slice."""
        if self._dump is not None:
            chunk = self._dump.take()
            if chunk is not None:
                self._judge(applier, [entry for entry in chunk if entry.key in self.keys])
            elif self._dump.done:
                self._dump = None
        elif self._todo:
            self._judge(applier, self._look_up(applier))
        elif self.keys and now >= self.poll_at:
            self.poll_at = now + POLL_S
            if len(self.keys) > BY_GET_MAX:
                self._dump = start_dump(group)
            else:
                self._todo = list(self.keys)

    def _look_up(self, applier: Applier) -> list[FlowEntry]:
        entries: list[FlowEntry] = []
        for _ in range(min(LOOKUPS_PER_SLICE, len(self._todo))):
            key = self._todo.pop()
            try:
                entry = applier.get(key)
            except KernelError:
                continue
            if entry is None:
                self.keys.discard(key)
            else:
                entries.append(entry)
        return entries

    def _judge(self, applier: Applier, entries: list[FlowEntry]) -> None:
        learnt = [entry.key for entry in entries if tcp_is_learnt(entry)]
        applier.apply([MakeStrict(key) for key in learnt])
        self.keys.difference_update(learnt)
        applier.counters["made_strict"] += len(learnt)
