"""Which child to start, stop or give up waiting for, and when. Pure core.

Theory of operation. Each child is in one of three states::

            start, adopt            exit
    DOWN ───────────────▶ UP ───────────────▶ DOWN (wait `backoff`, then start again)
                           │ no longer wanted, or the supervisor stops
                           ▼
                        STOPPING ── exit ──▶ DOWN

Restart: the first at once, then after 0.1 s doubling to 5 s; a child that was up for 10 s counts
as well again. A child that hangs is not killed: its lease ends in the kernel, and a process that
someone stopped in a debugger must still be there afterwards. It raises an alarm once it has not
answered for 5 s.

Stopping asks one child after the other in the given order (leased first: it hands its leases
over, for which syncd must still run) and kills what is left after `STOP_S`. Invariant: at most
one process of a name is believed running, and `StartChild` is only emitted for a child in DOWN.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

__all__ = [
    "BACKOFF_S_MAX",
    "BACKOFF_S_MIN",
    "SILENT_ALARM_S",
    "STOP_S",
    "WELL_S",
    "ChildAnswered",
    "ChildExited",
    "ChildReport",
    "ChildStarted",
    "ChildState",
    "Effect",
    "Event",
    "SetWanted",
    "SignalChild",
    "StartChild",
    "StartFailed",
    "StopAll",
    "Supervisor",
]

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 5.0
WELL_S = 10.0
SILENT_ALARM_S = 5.0
STOP_S = 5.0
"""From the request to stop to SIGKILL, for all children together."""
NEXT_STOP_S = 2.5
"""A child that does not stop is waited for this long before the next one is asked too."""


class ChildState(Enum):
    DOWN = "down"
    UP = "up"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """A process runs: spawned just now, or found running and adopted."""

    name: str
    pid: int
    adopted: bool


@dataclass(frozen=True, slots=True)
class StartFailed:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChildExited:
    """`how` in words: "exit code 1", "signal 9"."""

    name: str
    how: str


@dataclass(frozen=True, slots=True)
class ChildAnswered:
    """The child answered a status request."""

    name: str


@dataclass(frozen=True, slots=True)
class SetWanted:
    """Whether the child should run, and if not, why not."""

    name: str
    wanted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StopAll:
    """Stop all children in order. Final."""


Event = ChildStarted | StartFailed | ChildExited | ChildAnswered | SetWanted | StopAll


@dataclass(frozen=True, slots=True)
class StartChild:
    """Adopt the running process of that name, or spawn one."""

    name: str


@dataclass(frozen=True, slots=True)
class SignalChild:
    """SIGTERM, or SIGKILL if `kill`."""

    name: str
    pid: int
    kill: bool


Effect = StartChild | SignalChild


@dataclass(frozen=True, slots=True)
class ChildReport:
    """What `status` says of a child."""

    name: str
    state: ChildState
    pid: int | None
    adopted: bool
    wanted: bool
    restarts: int
    up_s: float | None
    silent_s: float | None
    last_exit: str


@dataclass(slots=True)
class _Child:
    name: str
    state: ChildState = ChildState.DOWN
    pid: int | None = None
    adopted: bool = False
    wanted: bool = False
    unwanted_reason: str = "not started yet"
    starting: bool = False
    """StartChild was emitted and neither ChildStarted nor StartFailed has come back."""
    failures: int = 0
    starts: int = 0
    up_since: float = 0.0
    start_at: float = 0.0
    answered_at: float = 0.0
    kill_at: float | None = None
    last_exit: str = ""


class Supervisor:
    """The core. `names` in the order in which they are stopped."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._children = {name: _Child(name) for name in names}
        self._stopping_since: float | None = None

    @property
    def finished(self) -> bool:
        """Stopping was asked for and no child is left."""
        return self._stopping_since is not None and all(
            child.state is ChildState.DOWN and not child.starting
            for child in self._children.values()
        )

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        match event:
            case ChildStarted(name, pid, adopted):
                child = self._children[name]
                assert child.state is ChildState.DOWN, (name, child.state)
                child.starting = False
                child.state, child.pid, child.adopted = ChildState.UP, pid, adopted
                child.up_since = child.answered_at = now
                child.starts += 1
            case StartFailed(name, reason):
                child = self._children[name]
                child.starting = False
                self._fail(child, reason, now)
            case ChildExited(name, how):
                child = self._children[name]
                if child.state is ChildState.DOWN:
                    return []
                if now - child.up_since >= WELL_S:
                    child.failures = 0
                child.state, child.pid, child.kill_at = ChildState.DOWN, None, None
                self._fail(child, how, now)
            case ChildAnswered(name):
                self._children[name].answered_at = now
            case SetWanted(name, wanted, reason):
                child = self._children[name]
                if wanted and not child.wanted:
                    child.failures, child.start_at = 0, now
                child.wanted, child.unwanted_reason = wanted, reason
            case StopAll():
                if self._stopping_since is None:
                    self._stopping_since = now
            case _:
                assert_never(event)
        return self.tick(now=now)

    def tick(self, *, now: float) -> list[Effect]:
        """What is due by now."""
        effects: list[Effect] = []
        for child in self._children.values():
            if child.state is ChildState.UP and self._should_stop(child, now):
                assert child.pid is not None
                child.state = ChildState.STOPPING
                since = now if self._stopping_since is None else self._stopping_since
                child.kill_at = since + STOP_S
                effects.append(SignalChild(child.name, child.pid, kill=False))
            elif (
                child.state is ChildState.STOPPING
                and child.kill_at is not None
                and now >= child.kill_at
            ):
                assert child.pid is not None
                child.kill_at = None  # Once is enough: SIGKILL is not refused.
                effects.append(SignalChild(child.name, child.pid, kill=True))
            elif self._should_start(child) and now >= child.start_at:
                child.starting = True
                effects.append(StartChild(child.name))
        return effects

    def deadline(self) -> float | None:
        """When `tick` has something to do at the latest; None: only after an event."""
        times = [child.start_at for child in self._children.values() if self._should_start(child)]
        times += [child.kill_at for child in self._children.values() if child.kill_at is not None]
        if self._stopping_since is not None and any(
            child.state is ChildState.UP for child in self._children.values()
        ):
            times.append(self._stopping_since + NEXT_STOP_S)
        return min(times, default=None)

    def alarms(self, *, now: float) -> list[str]:
        """What a person must look at, in words."""
        alarms = []
        for child in self._children.values():
            title = f"hafw-{child.name}"
            if child.state is ChildState.UP and now - child.answered_at >= SILENT_ALARM_S:
                alarms.append(
                    f"{title} (pid {child.pid}) has not answered for "
                    f"{now - child.answered_at:.0f} s; it is not killed: find out why it hangs"
                )
            if child.state is ChildState.DOWN and self._stopping_since is None:
                if child.wanted and child.last_exit:
                    alarms.append(f"{title} is down: {child.last_exit}")
                elif not child.wanted:
                    alarms.append(f"{title} is not started: {child.unwanted_reason}")
        return alarms

    def reports(self, *, now: float) -> list[ChildReport]:
        return [
            ChildReport(
                name=child.name,
                state=child.state,
                pid=child.pid,
                adopted=child.adopted,
                wanted=child.wanted,
                restarts=max(0, child.starts - 1),
                up_s=None if child.pid is None else now - child.up_since,
                silent_s=None if child.pid is None else now - child.answered_at,
                last_exit=child.last_exit or ("" if child.wanted else child.unwanted_reason),
            )
            for child in self._children.values()
        ]

    def _fail(self, child: _Child, how: str, now: float) -> None:
        child.last_exit = how
        child.start_at = now + _backoff_s(child.failures)
        child.failures += 1

    def _should_start(self, child: _Child) -> bool:
        return (
            child.state is ChildState.DOWN
            and child.wanted
            and not child.starting
            and self._stopping_since is None
        )

    def _should_stop(self, child: _Child, now: float) -> bool:
        if self._stopping_since is None:
            return not child.wanted
        if now >= self._stopping_since + NEXT_STOP_S:
            return True
        # In order: everything before this one in the table is gone.
        for other in self._children.values():
            if other is child:
                return True
            if other.state is not ChildState.DOWN:
                return False
        raise AssertionError(child.name)


def _backoff_s(failures: int) -> float:
    """0, then 0.1 s doubling to 5 s."""
    if failures == 0:
        return 0.0
    # 2**6 * 0.1 s is past the maximum already: the shift stays small for ever.
    return min(BACKOFF_S_MIN * (1 << min(failures - 1, 6)), BACKOFF_S_MAX)
