"""A verification: this kernel against this registry, and the registry against the holder's digest.

For somebody who asks (`hafwctl sync verify`); it repairs nothing. Two dumps at most for each
group: what the first did not show may have been replaced just then. Whatever looks wrong is looked
up once more at the end, one by one, so that what merely changed meanwhile is not counted::

    dump --(something not shown)--> dump again --> look up --> wait for a digest --> verdict
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hafw.errors import KernelError
from hafw.flow import FlowEntry, FlowKey, mark_group
from hafw.messages import SyncVerdict, VerifyReply
from sync.applier import Applier
from sync.digests import DigestWatch
from sync.dumper import Dumper
from sync.publish import publishable
from sync.registry import Flag, FlowRegistry
from sync.roles import RoleState

__all__ = ["ASKERS_MAX", "SUSPECTS_MAX", "Verifier"]

ASKERS_MAX = 8
SUSPECTS_MAX = 10_000
"""Entries to look up again; of more, the first so many."""
DUMPS_MAX = 2
LOOKUPS_PER_SLICE = 40
DIGEST_WAIT_S = 3.0
"""A digest is said once a second."""


@dataclass(slots=True)
class _Group:
    """The group under verification."""

    number: int
    active: bool
    epoch: int
    began: float
    dump: Dumper | None
    dumps: int = 1
    entries: int = 0
    suspects: dict[FlowKey, None] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    digest_by: float | None = None
    """All else is done; how long a digest is waited for."""


class Verifier:
    """One verification at a time, group after group."""

    def __init__(
        self,
        node_id: int,
        registry: FlowRegistry,
        roles: Mapping[int, RoleState],
        watches: Mapping[int, DigestWatch],
        applier: Applier,
        *,
        start_dump: Callable[[int], Dumper],
        answer: Callable[[VerifyReply, str], None],
    ) -> None:
        self._node_id = node_id
        self._registry = registry
        self._roles = roles
        self._watches = watches
        self._applier = applier
        self._start_dump = start_dump
        self._answer = answer
        self._waiting: list[str] = []
        self._askers: list[str] = []
        self._todo: list[int] = []
        self._now: _Group | None = None
        self._verdicts: list[SyncVerdict] = []
        self.counters: Counter[str] = Counter()

    def ask(self, address: str) -> None:
        """Whoever asks while one is under way gets the next."""
        if len(self._waiting) < ASKERS_MAX:
            self._waiting.append(address)
        else:
            self.counters["verifications_refused"] += 1

    @property
    def busy(self) -> bool:
        group = self._now
        if group is None:
            return bool(self._waiting)
        dump = group.dump
        if dump is not None:
            return dump.ready or dump.done
        return bool(group.suspects)

    def close(self) -> None:
        if self._now is not None and self._now.dump is not None:
            self._now.dump.cancel()

    def work(self, *, now: float) -> None:
        """One slice."""
        if self._now is not None:
            self._step(self._now, now)
        elif self._todo:
            self._begin(self._todo.pop(0), now)
        elif self._askers:
            reply = VerifyReply(self._node_id, self._verdicts)
            for address in self._askers:
                self._answer(reply, address)
            self._askers, self._verdicts = [], []
        elif self._waiting:
            self.counters["verifications"] += 1
            self._askers, self._waiting = self._waiting, []
            self._todo = sorted(self._roles)

    def _begin(self, number: int, now: float) -> None:
        state = self._roles[number]
        self._registry.set_all(number, Flag.UNVERIFIED)
        dump = self._start_dump(number)
        self._now = _Group(number, state.active, state.epoch, now, dump)

    def _step(self, group: _Group, now: float) -> None:
        state = self._roles[group.number]
        if (state.active, state.epoch) != (group.active, group.epoch):
            self._end(group, now, "another node came to hold the group meanwhile")
        elif group.dump is not None:
            self._read(group, group.dump, now)
        elif group.suspects:
            self._look_up(group)
        elif group.digest_by is None:
            group.digest_by = now + (0.0 if group.active else DIGEST_WAIT_S)
        else:
            self._await_digest(group, group.digest_by, now)

    def _read(self, group: _Group, dump: Dumper, now: float) -> None:
        chunk = dump.take()
        if chunk is not None:
            for entry in chunk:
                if mark_group(entry.mark) == group.number:
                    group.entries += group.dumps == 1
                    self._compare(group, entry)
        elif dump.done:
            group.dump = None
            if dump.error is not None:
                self._end(group, now, str(dump.error))
            elif group.dumps < DUMPS_MAX and self._unverified(group):
                group.dumps += 1
                group.dump = self._start_dump(group.number)

    def _compare(self, group: _Group, entry: FlowEntry) -> None:
        known = self._registry.clear(entry.key, Flag.UNVERIFIED)
        if self._fault(group, entry) and len(group.suspects) < SUSPECTS_MAX:
            group.suspects[entry.key] = None
        elif not known and not publishable(entry):
            group.entries -= group.dumps == 1  # Not worth a replica yet: nobody counts it.

    def _fault(self, group: _Group, entry: FlowEntry) -> str:
        record = self._registry.get(entry.key)
        if record is None:
            # The holder has flows that it does not publish yet.
            return "" if group.active and not publishable(entry) else "left_over"
        other_life = (
            self._registry.hashes.contribution(entry, record.incarnation) != record.contribution
        )
        return "stale" if other_life or record.flags & Flag.STALE else ""

    def _look_up(self, group: _Group) -> None:
        for _ in range(min(LOOKUPS_PER_SLICE, len(group.suspects))):
            key, _ = group.suspects.popitem()
            try:
                entry = self._applier.get(key)
            except KernelError:
                continue
            if entry is not None and mark_group(entry.mark) == group.number:
                group.counts[self._fault(group, entry)] += 1

    def _unverified(self, group: _Group) -> int:
        return self._registry.count_flag(group.number, Flag.UNVERIFIED)

    def _await_digest(self, group: _Group, until: float, now: float) -> None:
        watch = self._watches[group.number]
        compared = watch.compared_at is not None and watch.compared_at > group.began
        if group.active:
            self._end(group, now)
        elif compared:
            self._end(group, now, differing=watch.open_buckets, seq=watch.compared_seq)
        elif now >= until:
            self._end(group, now, "no digest of the holder could be compared")

    def _end(
        self,
        group: _Group,
        now: float,
        error: str = "",
        *,
        differing: int | None = None,
        seq: int = 0,
    ) -> None:
        if group.dump is not None:
            group.dump.cancel()
        verdict = SyncVerdict(
            group=group.number,
            active=group.active,
            flows=self._registry.count(group.number),
            entries=group.entries,
            missing=self._unverified(group),
            stale=group.counts["stale"],
            left_over=group.counts["left_over"],
            differing=differing,
            seq=seq,
            took_s=now - group.began,
            error=error,
        )
        self._registry.clear_all(group.number, Flag.UNVERIFIED)
        self._verdicts.append(verdict)
        self._now = None
