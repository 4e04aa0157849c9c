"""Adopted TCP flows that are still liberal: found out, one by one or by a dump, and made strict.

No event tells when the kernel has learnt a flow's windows (0x20 on both sides), so the owner asks
again and again. Clearing 0x08 is not published: it is true of this node alone (DESIGN section 4).

The registry's LIBERAL flag says which flows they are. While they are few their keys are known here
too, and each is asked for once a second. If there are more, the whole group is dumped, and judged
natively where there is a native codec, so that a second is enough for some hundred thousand
entries; the keys of what is left after a dump are known again if it is few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hafw.errors import KernelError
from hafw.flow import FlowEntry, FlowKey
from sync.adopt import is_liberal
from sync.applier import Applier
from sync.ctnetlink import parse_dump, tcp_is_learnt
from sync.dumper import Dumper
from sync.ops import MakeStrict
from sync.registry import Flag, FlowRegistry

if TYPE_CHECKING:
    from sync._codec import StrictMaker

__all__ = ["BY_GET_MAX", "LiberalFlows"]

POLL_S = 1.0
IDLE_POLL_S = 2.5
"""After a dump that showed no flow whose windows are learnt. With the time of the dump itself it
is what a flow with packets both ways stays liberal for at most."""
BY_GET_MAX = 512
"""Up to this many flows are asked for one by one; more by a dump."""
LOOKUPS_PER_SLICE = 40
RAW_CHUNKS_PER_SLICE = 4


class LiberalFlows:
    """Of one held group."""

    def __init__(
        self, registry: FlowRegistry, group: int, strict: StrictMaker | None = None
    ) -> None:
        """With `strict` the dumps that `work` is given are gathered."""
        self._registry = registry
        self._group = group
        self._strict = strict
        self._keys: set[FlowKey] = set()
        self.poll_at = 0.0
        self._todo: list[FlowKey] = []
        self._dump: Dumper | None = None
        self._learnt = 0
        """Flows that the dump under way, or the last one, made strict."""

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
            self._step(applier, self._dump, now)
        elif self._todo:
            self._judge(applier, self._look_up(applier))
        elif now >= self.poll_at and len(self):
            self.poll_at = now + POLL_S
            if len(self) > len(self._keys):
                self._dump, self._learnt = start_dump(self._group), 0
                self._keys.clear()
            else:
                self._todo = list(self._keys)

    def _step(self, applier: Applier, dump: Dumper, now: float) -> None:
        for _ in range(1 if self._strict is None else RAW_CHUNKS_PER_SLICE):
            chunk = dump.take_any()
            if isinstance(chunk, bytes):
                self._judge_raw(applier, chunk)
            elif chunk is not None:
                self._learnt += self._judge(applier, chunk)
            else:
                break
        if dump.done:
            self._dump = None
            self.poll_at = now + (POLL_S if self._learnt else IDLE_POLL_S)

    def _judge_raw(self, applier: Applier, chunk: bytes) -> None:
        strict = self._strict
        assert strict is not None
        at = 0
        while at < len(chunk):
            wanted = BY_GET_MAX - len(self._keys)
            at, made, still = strict.judge(chunk, at, self._group, wanted)
            self._keys.update(parse_dump(message).entries[0].key for message in still)
            applier.apply_native(strict.batch)
            applier.counters["made_strict"] += made
            self._learnt += made
        strict.batch.clear()

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

    def _judge(self, applier: Applier, entries: list[FlowEntry]) -> int:
        """How many were made strict."""
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
        return len(learnt)

    def _forget(self, key: FlowKey) -> None:
        self._keys.discard(key)
        self._registry.clear(key, Flag.LIBERAL)
