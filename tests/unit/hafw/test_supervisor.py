"""The supervisor's core: events in, effects out, on a clock of its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hafw.node.supervisor import (
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    NEXT_STOP_S,
    SILENT_ALARM_S,
    STOP_S,
    WELL_S,
    ChildAnswered,
    ChildExited,
    ChildStarted,
    ChildState,
    Effect,
    SetWanted,
    SignalChild,
    StartChild,
    StartFailed,
    StopAll,
    Supervisor,
)


def running(now: float = 0.0) -> Supervisor:
    """Both children up since `now`, pids 10 and 20."""
    core = Supervisor(("leased", "syncd"))
    for name, pid in (("leased", 10), ("syncd", 20)):
        assert core.handle(SetWanted(name, wanted=True), now=now) == [StartChild(name)]
        core.handle(ChildStarted(name, pid, adopted=False), now=now)
    return core


def restart_delay(core: Supervisor, now: float) -> float:
    """Let leased exit now, and start it again as soon as the core asks for it."""
    effects = core.handle(ChildExited("leased", "exit code 1"), now=now)
    at = now
    if not effects:
        deadline = core.deadline()
        assert deadline is not None
        at = deadline
        effects = core.tick(now=at)
    assert effects == [StartChild("leased")]
    core.handle(ChildStarted("leased", 10, adopted=False), now=at)
    return at - now


def test_nothing_is_started_before_it_is_wanted() -> None:
    core = Supervisor(("leased", "syncd"))
    assert core.tick(now=0) == []
    assert core.deadline() is None
    assert core.alarms(now=0) == [
        "hafw-leased is not started: not started yet",
        "hafw-syncd is not started: not started yet",
    ]


def test_a_start_is_asked_for_once() -> None:
    core = Supervisor(("leased",))
    assert core.handle(SetWanted("leased", wanted=True), now=0) == [StartChild("leased")]
    assert core.tick(now=1) == []
    assert core.handle(SetWanted("leased", wanted=True), now=2) == []


def test_first_restart_is_immediate_then_doubles_to_the_bound() -> None:
    core = running()
    now = 1.0
    delays = []
    for _ in range(10):
        delays.append(restart_delay(core, now))
        now += delays[-1] + 0.01
    assert delays[0] == 0.0
    expected = [min(BACKOFF_S_MIN * 2**n, BACKOFF_S_MAX) for n in range(9)]
    assert [round(delay, 6) for delay in delays[1:]] == expected
    assert delays[-1] == BACKOFF_S_MAX


def test_ten_good_seconds_reset_the_backoff() -> None:
    core = running()
    now = 1.0
    for _ in range(5):
        now += restart_delay(core, now) + 0.01
    assert restart_delay(core, now) > 1
    deadline_up = now + 10 + WELL_S
    assert restart_delay(core, deadline_up) == 0.0


def test_almost_ten_seconds_do_not() -> None:
    core = running()
    assert restart_delay(core, WELL_S - 1) == 0.0
    assert round(restart_delay(core, 2 * WELL_S - 2.5), 6) == BACKOFF_S_MIN


def test_a_start_that_fails_backs_off_too() -> None:
    core = Supervisor(("leased",))
    core.handle(SetWanted("leased", wanted=True), now=0)
    assert core.handle(StartFailed("leased", "no such file"), now=0) == [StartChild("leased")]
    assert core.handle(StartFailed("leased", "no such file"), now=0) == []
    assert core.deadline() == BACKOFF_S_MIN
    assert core.alarms(now=0.05) == ["hafw-leased is down: no such file"]


def test_a_child_that_hangs_is_not_signalled_but_raises_an_alarm() -> None:
    core = running()
    core.handle(ChildAnswered("syncd"), now=SILENT_ALARM_S)
    assert core.tick(now=SILENT_ALARM_S) == []
    alarms = core.alarms(now=SILENT_ALARM_S)
    assert len(alarms) == 1
    assert "hafw-leased (pid 10) has not answered for 5 s" in alarms[0]
    core.handle(ChildAnswered("leased"), now=SILENT_ALARM_S + 1)
    assert core.alarms(now=SILENT_ALARM_S + 1) == []


def test_a_child_no_longer_wanted_is_stopped_and_killed_at_the_bound() -> None:
    core = running()
    effects = core.handle(SetWanted("leased", wanted=False, reason="no policy"), now=1)
    assert effects == [SignalChild("leased", 10, kill=False)]
    assert core.deadline() == 1 + STOP_S
    assert core.tick(now=1 + STOP_S) == [SignalChild("leased", 10, kill=True)]
    assert core.tick(now=2 + STOP_S) == []
    assert core.handle(ChildExited("leased", "ended by SIGKILL"), now=7) == []
    assert core.deadline() is None
    assert "hafw-leased is not started: no policy" in core.alarms(now=8)


def test_wanted_again_while_stopping_starts_after_the_exit() -> None:
    core = running()
    core.handle(SetWanted("leased", wanted=False, reason="no policy"), now=1)
    assert core.handle(SetWanted("leased", wanted=True), now=1.5) == []
    assert core.handle(ChildExited("leased", "exit code 0"), now=2) == [StartChild("leased")]


def test_stop_asks_leased_first_and_syncd_after_it_is_gone() -> None:
    core = running()
    assert core.handle(StopAll(), now=1) == [SignalChild("leased", 10, kill=False)]
    assert not core.finished
    effects = core.handle(ChildExited("leased", "exit code 0"), now=1.2)
    assert effects == [SignalChild("syncd", 20, kill=False)]
    assert core.handle(ChildExited("syncd", "exit code 0"), now=1.3) == []
    assert core.finished


def test_stop_does_not_wait_for_a_leased_that_hangs() -> None:
    core = running()
    core.handle(StopAll(), now=1)
    assert core.deadline() == 1 + NEXT_STOP_S
    assert core.tick(now=1 + NEXT_STOP_S) == [SignalChild("syncd", 20, kill=False)]
    assert core.deadline() == 1 + STOP_S
    assert core.tick(now=1 + STOP_S) == [
        SignalChild("leased", 10, kill=True),
        SignalChild("syncd", 20, kill=True),
    ]


def test_stop_waits_for_a_start_that_is_under_way() -> None:
    core = Supervisor(("leased",))
    core.handle(SetWanted("leased", wanted=True), now=0)
    assert core.handle(StopAll(), now=0) == []
    assert not core.finished
    effects = core.handle(ChildStarted("leased", 10, adopted=False), now=0.1)
    assert effects == [SignalChild("leased", 10, kill=False)]


def test_restarts_count_what_came_after_the_first_start() -> None:
    core = running()
    restart_delay(core, 1)
    report = core.reports(now=2)[0]
    assert (report.name, report.restarts, report.state) == ("leased", 1, ChildState.UP)
    assert report.up_s == 1
    assert report.last_exit == "exit code 1"


class World:
    """A dumb world for the core: at most one process of a name, made and ended at random."""

    def __init__(self) -> None:
        self.core = Supervisor(("leased", "syncd"))
        self.alive: dict[str, int] = {}
        self.starting: set[str] = set()
        self.next_pid = 1

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartChild(name):
                    assert name not in self.alive, "started a second process of a name"
                    assert name not in self.starting, "started twice"
                    self.starting.add(name)
                case SignalChild(name, pid, _):
                    assert self.alive[name] == pid, "signalled a process that is not there"


steps = st.lists(
    st.tuples(
        st.sampled_from(["want", "unwant", "started", "failed", "exit", "tick", "answer"]),
        st.sampled_from(["leased", "syncd"]),
        st.floats(min_value=0.0, max_value=12.0),
    ),
    max_size=60,
)


@given(steps)
def test_at_most_one_process_of_a_name_and_a_wanted_child_comes_back(
    script: list[tuple[str, str, float]],
) -> None:
    world, now = World(), 0.0
    for what, name, pause in script:
        now += pause
        core = world.core
        match what:
            case "want" | "unwant":
                world.take(core.handle(SetWanted(name, what == "want", "reason"), now=now))
            case "started" if name in world.starting:
                world.starting.remove(name)
                world.alive[name] = world.next_pid
                world.next_pid += 1
                event = ChildStarted(name, world.alive[name], adopted=False)
                world.take(core.handle(event, now=now))
            case "failed" if name in world.starting:
                world.starting.remove(name)
                world.take(core.handle(StartFailed(name, "no"), now=now))
            case "exit" if name in world.alive:
                del world.alive[name]
                world.take(core.handle(ChildExited(name, "exit code 1"), now=now))
            case "answer":
                world.take(core.handle(ChildAnswered(name), now=now))
            case _:
                world.take(core.tick(now=now))
    # Then heal: whatever happened, a wanted child is started within the longest back-off.
    for name in ("leased", "syncd"):
        world.take(world.core.handle(SetWanted(name, wanted=True), now=now))
        if name in world.alive:
            del world.alive[name]
            world.take(world.core.handle(ChildExited(name, "exit code 1"), now=now))
    world.take(world.core.tick(now=now + BACKOFF_S_MAX))
    assert world.starting == {"leased", "syncd"}
