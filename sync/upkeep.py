"""What keeps a follower's kernel equal to its registry, and its registry to the holder's.

* *Digests* (`sync.digests`) are compared as they come; what differs is asked for by
  `sync.follower`.
* *A replica that goes* without our doing (it expired, somebody deleted it) is forgotten: the next
  digest differs by it. If somebody put another flow in its place, that one is deleted.
  Where very many go at once (`conntrack -F`) they are not looked up one by one: all are forgotten,
  and a sweep deletes what others have put in their place.
* *A replica whose mark somebody changed* gets it again: by its mark it is found when the group is
  taken over.
* *A left-over* is an entry of the group that something else made here. It is looked at again after
  `LEFT_OVER_S`, for a node that has just taken over hears of its first flows before it hears of
  its role; then it is deleted.
* *A sweep* compares the kernel with the registry by a dump, after events were lost: what only the
  kernel has is deleted, what only the registry has is forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hafw.errors import KernelError
from hafw.flow import FlowEntry, FlowKey, hafw_mark, mark_group
from hafw.human import epoch_node
from sync.applier import Applier
from sync.ctnetlink import CtEvent, EventKind
from sync.digests import DigestWatch
from sync.dumper import Dumper
from sync.ops import Adopt, KernelOp, Remove
from sync.registry import Flag, FlowRegistry, Record
from sync.roles import RoleState

__all__ = ["LEFT_OVERS_MAX", "LEFT_OVER_S", "Upkeep"]

LEFT_OVER_S = 1.0
LEFT_OVERS_MAX = 1024
"""More are left to a sweep."""
SWEEP_AFTER_S = 0.2
"""After the last loss of events: the kernel goes on dropping until the queue is empty."""
LOOKUPS_PER_SLICE = 40
GONE_LOOKUPS_PER_S = 200
MARKS_ALARM_S = 60.0


class MarksRestored:
    """Of replicas, for the status."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._at: dict[int, float] = {}

    def note(self, group: int, *, now: float) -> None:
        self._counts[group] += 1
        self._at[group] = now

    def lately(self, *, now: float) -> dict[int, int]:
        """Group -> how many ever, if one was within `MARKS_ALARM_S`."""
        return {g: self._counts[g] for g, at in self._at.items() if now - at <= MARKS_ALARM_S}


@dataclass(slots=True)
class _Sweep:
    group: int
    dump: Dumper


class Upkeep:
    """Of the groups that others hold."""

    def __init__(
        self,
        registry: FlowRegistry,
        roles: dict[int, RoleState],
        applier: Applier,
        *,
        start_dump: Callable[[int], Dumper],
        pass_over: Callable[[bytes, int], int],
        is_whole: Callable[[int], bool],
    ) -> None:
        """`pass_over`: `Intake.pass_over`, for what `start_dump` has raw. `is_whole`: a snapshot
        of the group was finished and nothing spoilt it since."""
        self._registry = registry
        self._roles = roles
        self._applier = applier
        self._start_dump = start_dump
        self._pass_over = pass_over
        self._is_whole = is_whole
        self.watches = {group: DigestWatch() for group in roles}
        self._left_overs: dict[FlowKey, float] = {}
        """Key -> when to look again; oldest first."""
        self._sweep_at: dict[int, float] = {}
        self._sweep: _Sweep | None = None
        self._lookups_left, self._lookups_at = GONE_LOOKUPS_PER_S, 0.0
        self.marks = MarksRestored()
        self.counters: Counter[str] = Counter()

    # -- events of groups that are not held

    def on_events(self, events: list[CtEvent], *, now: float) -> None:
        for event in events:
            record = self._registry.get(event.entry.key)
            if record is None:
                self._on_unknown(event, now)
            elif self._roles[record.group].dirty:
                pass  # What was ours until another holds, our own next pass would find.
            elif event.kind is EventKind.DESTROY:
                self._on_gone(event, record, now)
            elif mark_group(event.entry.mark) != record.group:
                self._restore_mark(event.entry.key, record, now)

    def _restore_mark(self, key: FlowKey, record: Record, now: float) -> None:
        owner = epoch_node(record.version.epoch)
        self.counters["replica_marks_restored"] += 1
        self.marks.note(record.group, now=now)
        self._applier.apply([Adopt(key, hafw_mark(record.group, owner, owner), None)])

    def _may_look_up(self, now: float) -> bool:
        if now - self._lookups_at >= 1.0:
            self._lookups_at, self._lookups_left = now, GONE_LOOKUPS_PER_S
        self._lookups_left -= 1
        return self._lookups_left >= 0

    def _on_gone(self, event: CtEvent, record: Record, now: float) -> None:
        key, group = event.entry.key, record.group
        if not self._may_look_up(now):
            self._sweep_at[group] = now + LEFT_OVER_S
            self._forget(event, group)
            return
        self.counters["replicas_looked_up"] += 1
        try:
            entry = self._applier.get(key)
        except KernelError:
            return
        if entry is not None:
            life = self._registry.hashes.contribution(entry, record.incarnation)
            if life == record.contribution:
                return  # It was made again since.
            # By somebody else, as another flow: what its owner says of it would change this one.
            self.counters["replicas_replaced_by_others"] += 1
            self._applier.apply([Remove(key)])
        self._forget(event, group)

    def _forget(self, event: CtEvent, group: int) -> None:
        self._registry.remove(event.entry.key)
        self.counters["replicas_deleted_by_others" if event.pid else "replicas_expired"] += 1
        self.watches[group].note_missing()

    def _on_unknown(self, event: CtEvent, now: float) -> None:
        key, group = event.entry.key, mark_group(event.entry.mark)
        if event.kind is EventKind.DESTROY:
            self._left_overs.pop(key, None)
        elif not self._may_clean(group) or key in self._left_overs:
            return
        elif len(self._left_overs) < LEFT_OVERS_MAX:
            self._left_overs[key] = now + LEFT_OVER_S
        else:
            self._sweep_at[group] = now + LEFT_OVER_S

    def on_overrun(self, *, now: float) -> None:
        """Events were lost, and perhaps those of replicas that went."""
        for group in self._roles:
            self._sweep_at[group] = now + SWEEP_AFTER_S

    def _may_clean(self, group: int) -> bool:
        """What the registry does not know has no place in this kernel."""
        state = self._roles.get(group)
        return (
            state is not None
            and not state.active
            and not state.dirty
            and state.holder_id != 0
            and self._is_whole(group)
        )

    # -- roles

    def stop(self, group: int) -> None:
        """The group is ours now, or stale, or fetched as a whole: nothing here goes on."""
        self._sweep_at.pop(group, None)
        if self._sweep is not None and self._sweep.group == group:
            self._sweep.dump.cancel()
            self._sweep = None
            self._registry.clear_all(group, Flag.UNPASSED)

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.dump.cancel()

    # -- work

    @property
    def busy(self) -> bool:
        return self._sweep is not None and (self._sweep.dump.ready or self._sweep.dump.done)

    def work(self, *, now: float) -> None:
        """One slice."""
        for key, due in list(self._left_overs.items())[:LOOKUPS_PER_SLICE]:
            if due > now:
                break
            del self._left_overs[key]
            self._look_again(key)
        if self._sweep is not None:
            self._step(self._sweep, now)
            return
        for group, due in self._sweep_at.items():
            if due <= now:
                del self._sweep_at[group]
                if self._may_clean(group):
                    self.counters["sweeps_begun"] += 1
                    self._registry.set_all(group, Flag.UNPASSED)
                    self._sweep = _Sweep(group, self._start_dump(group))
                return

    def _look_again(self, key: FlowKey) -> None:
        try:
            entry = self._applier.get(key)
        except KernelError:
            return
        if entry is None or key in self._registry or not self._may_clean(mark_group(entry.mark)):
            return
        self.counters["left_overs_deleted"] += 1
        self._applier.apply([Remove(key)])

    def _step(self, sweep: _Sweep, now: float) -> None:
        chunk = sweep.dump.take_any()
        if chunk is not None:
            self.counters["left_overs_deleted"] += self.look_over(chunk, sweep.group)
        elif sweep.dump.done:
            self._sweep = None
            if sweep.dump.error is not None:
                self._sweep_at[sweep.group] = now + SWEEP_AFTER_S
                return
            gone = self._registry.drop_flagged(sweep.group, Flag.UNPASSED)
            self.counters["sweep_forgotten"] += gone
            if gone:
                self.watches[sweep.group].note_missing(gone)

    def look_over(self, chunk: list[FlowEntry] | bytes, group: int) -> int:
        """What the registry has of a chunk has passed; the rest is deleted: how many."""
        if isinstance(chunk, bytes):
            return self._pass_over(chunk, group)
        unknown: list[KernelOp] = [
            Remove(entry.key)
            for entry in chunk
            if mark_group(entry.mark) == group
            and not self._registry.clear(entry.key, Flag.UNPASSED)
        ]
        self._applier.apply(unknown)
        return len(unknown)
