"""The holder's side of expectations: events, look-ups that no event asks for, checks of a pass.

*An expectation is made*: its master is looked up and published (with its sequence adjustment: the
kernel sends the event before the payload is changed, and none when it is), then the expectation.
`AGAIN_S` later the master is looked up once more. A first packet that makes a helper expect (TFTP,
SIP) speaks before its own flow is in the table; then the expectation waits for the flow's NEW.
SIP over TCP is rewritten with every message, also where nothing is expected: looked up once a
second.
One that is not active yet (SIP, between REGISTER and its answer) is looked up until it is: no
event tells.

*One is gone*: passed on if it was said, its master is held here, and the kernel really has it no
more. The last matters: deleting a master raises this event with pid 0, also when we replace the
master by a pristine one and make its expectations again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hafw.errors import KernelError
from hafw.flow import (
    EXPECT_INACTIVE,
    IPPROTO_TCP,
    Expectation,
    FlowEntry,
    FlowKey,
    mark_group,
)
from sync.applier import Applier
from sync.ctnetlink import ExpectEvent
from sync.delta import Delta, Upsert
from sync.publish import PublishEffect, Publisher
from sync.registry import FlowRegistry

__all__ = ["AGAIN_S", "Expecting"]

AGAIN_S = (0.002, 0.02)
"""When the master is looked up again: usually the first finds the new adjustment."""
WAIT_S = (0.002, 0.005, 0.01, 0.03, 0.1)
"""When to look whether the master of an early expectation has come."""
INACTIVE_S = 0.005
INACTIVE_SHARE = 0.3
INACTIVE_S_MAX = 32.0
"""An inactive one is looked up again after this share of its age, and at least that long; until
it is as old as a SIP client waits for the answer (RFC 3261, timer F)."""
WATCH_S = 1.0
WATCHED_MAX = 1024
"""Flows of SIP over TCP beyond this are looked up only when they expect something."""
WAITING_MAX = 4096
CHECKS_PER_SLICE = 40


@dataclass(frozen=True, slots=True)
class _Again:
    due: float
    master: FlowKey


@dataclass(frozen=True, slots=True)
class _Early:
    due: float
    expectation: Expectation
    attempt: int


@dataclass(frozen=True, slots=True)
class _Inactive:
    due: float
    key: FlowKey
    made_at: float


@dataclass(frozen=True, slots=True)
class _Check:
    """Of a pass: an expectation that the dump showed, or one that it did not show."""

    group: int
    key: FlowKey
    shown: Expectation | None


class Expecting:
    """Of all held groups."""

    def __init__(
        self,
        registry: FlowRegistry,
        applier: Applier,
        publisher: Publisher,
        say: Callable[[list[PublishEffect]], None],
    ) -> None:
        self._registry = registry
        self._applier = applier
        self._publisher = publisher
        self._say = say
        self._again: deque[_Again] = deque()
        self._early: list[_Early] = []
        self._inactive: list[_Inactive] = []
        self._checks: deque[_Check] = deque()
        self._watched: dict[FlowKey, None] = {}
        self._watch_at = 0.0
        self._looks: deque[FlowKey] = deque()
        self.counters: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        return bool(self._checks or self._looks)

    def times(self) -> list[float]:
        """When there is work to do."""
        due = [item.due for item in self._again] + [item.due for item in self._early]
        due += [item.due for item in self._inactive]
        return [*due, self._watch_at] if self._watched else due

    def on_event(self, event: ExpectEvent, held: Mapping[int, int], *, now: float) -> None:
        if event.pid == self._applier.port_id:
            return
        expectation = event.expectation
        if event.destroyed:
            self._early = [e for e in self._early if e.expectation.key != expectation.key]
            self._gone(expectation.key, held)
        elif expectation.master in self._registry:
            self._made(expectation, held, now)
        else:
            self._wait(_Early(now + WAIT_S[0], expectation, 0))

    def watch(self, said: Delta) -> None:
        """This is about to be said."""
        if not isinstance(said, Upsert) or said.entry.helper != "sip":
            return
        key = said.entry.key
        if key.orig.proto == IPPROTO_TCP and len(self._watched) < WATCHED_MAX:
            self._watched[key] = None

    def on_pass(self, group: int, found: list[Expectation]) -> None:
        """A pass over the group is through, and its dump showed these of all groups."""
        shown = {one.key: one for one in found if self._group_of(one.master) == group}
        known = self._registry.expectations.all()
        keys = {one.key: None for one in known if self._group_of(one.master) == group}
        self._checks.extend(_Check(group, key, one) for key, one in shown.items())
        self._checks.extend(_Check(group, key, None) for key in keys if key not in shown)

    def work(self, held: Mapping[int, int], *, now: float) -> None:
        """One slice."""
        while self._again and self._again[0].due <= now:
            self._look(self._again.popleft().master, held)
        early, self._early = self._early, []
        for item in early:
            if item.expectation.master in self._registry:
                if self._there(item.expectation.key):
                    self._made(item.expectation, held, now)
            elif item.due > now:
                self._early.append(item)
            else:
                attempt = item.attempt + 1
                if attempt < len(WAIT_S):
                    self._wait(_Early(now + WAIT_S[attempt], item.expectation, attempt))
                else:
                    # Not ours, not worth a replica, or gone. A pass would find it.
                    self.counters["expectations_without_master"] += 1
        inactive, self._inactive = self._inactive, []
        for late in inactive:
            if late.due > now:
                self._inactive.append(late)
            else:
                self._look_active(late, held, now)
        if self._watched and now >= self._watch_at:
            self._watch_at = now + WATCH_S
            self._looks = deque(self._watched)
        for _ in range(min(CHECKS_PER_SLICE, len(self._looks))):
            if self._look(key := self._looks.popleft(), held) is None:
                self._watched.pop(key, None)
        for _ in range(min(CHECKS_PER_SLICE, len(self._checks))):
            self._check(self._checks.popleft(), held)

    def _wait(self, item: _Early) -> None:
        if len(self._early) < WAITING_MAX:
            self._early.append(item)
        else:
            self.counters["expectations_not_awaited"] += 1

    def _made(self, expectation: Expectation, held: Mapping[int, int], now: float) -> None:
        epoch = self._look(expectation.master, held)
        if epoch is None:
            return
        self._say(self._publisher.expected(expectation, epoch))
        for delay in AGAIN_S:
            if len(self._again) < WAITING_MAX:
                self._again.append(_Again(now + delay, expectation.master))
        self._again = deque(sorted(self._again, key=lambda item: item.due))
        if expectation.flags & EXPECT_INACTIVE:
            self._await_active(expectation.key, now, now)

    def _await_active(self, key: FlowKey, made_at: float, now: float) -> None:
        age_s = now - made_at
        if age_s < INACTIVE_S_MAX and len(self._inactive) < WAITING_MAX:
            due = now + max(INACTIVE_S, INACTIVE_SHARE * age_s)
            self._inactive.append(_Inactive(due, key, made_at))
        else:
            self.counters["expectations_never_active"] += 1  # The next pass finds it.

    def _look_active(self, item: _Inactive, held: Mapping[int, int], now: float) -> None:
        try:
            expectation = self._applier.get_expectation(item.key)
        except KernelError:
            self.counters["expectation_lookups_failed"] += 1
            return
        if expectation is None:
            return  # An event tells that it is gone.
        if expectation.flags & EXPECT_INACTIVE:
            self._await_active(item.key, item.made_at, now)
            return
        epoch = held.get(self._group_of(expectation.master))
        if epoch is not None:
            self._say(self._publisher.expected(expectation, epoch))

    def _look(self, master: FlowKey, held: Mapping[int, int]) -> int | None:
        """Publish the master as it is now; the epoch of its group if that is held."""
        entry: FlowEntry | None = None
        try:
            entry = self._applier.get(master)
        except KernelError:
            self.counters["master_lookups_failed"] += 1
        epoch = None if entry is None else held.get(mark_group(entry.mark))
        if entry is None or epoch is None:
            return None
        self._say(self._publisher.publish(entry, epoch, looked_up=True))
        return epoch

    def _gone(self, key: FlowKey, held: Mapping[int, int]) -> None:
        known = self._registry.expectations.get(key)
        epoch = None if known is None else held.get(self._group_of(known.master))
        if epoch is None:
            return
        if self._there(key):
            self.counters["expectations_made_again"] += 1
        else:
            self._say(self._publisher.unexpected(key, epoch))

    def _check(self, check: _Check, held: Mapping[int, int]) -> None:
        epoch = held.get(check.group)
        if epoch is None:
            return
        if check.shown is None:
            if not self._there(check.key):
                self._say(self._publisher.unexpected(check.key, epoch))
        elif check.key in self._registry.expectations or self._there(check.key):
            # Known ones are watched by events; another may have gone since the dump.
            self._say(self._publisher.expected(check.shown, epoch, refresh=True))

    def _there(self, key: FlowKey) -> bool:
        try:
            return self._applier.get_expectation(key) is not None
        except KernelError:
            self.counters["expectation_lookups_failed"] += 1
            return True

    def _group_of(self, master: FlowKey) -> int:
        record = self._registry.get(master)
        return 0 if record is None else record.group
