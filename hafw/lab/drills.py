"""The drills: which faults, in which order, and what must be true after each. Shell.

=============== =============================================================================
power-cut       silence of the ACTIVE node; after the takeover its processes and kernel state
                are destroyed and it starts afresh (restart), or it just comes back (heal)
freeze          SIGSTOP of every process of the ACTIVE node, SIGCONT 1 s after the takeover
kill            SIGKILL of each single process in turn: ACTIVE node, BACKUP node, witness
there-and-back  the group is moved to the other node and back, twice, with at least 10 MB per
                stream between two moves
=============== =============================================================================

One lab serves all drills of a run; probes and judges are started anew for each drill.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from hafw.errors import HafwError, RefusedError
from hafw.lab.conductor import Conductor, Say
from hafw.lab.files import lab_folder
from hafw.lab.lab import Lab
from hafw.lab.report import DrillReport, DrillResult, judge_failed
from hafw.paths import NodePaths

__all__ = ["DRILLS", "VARIANTS", "lab_for_drills", "plan_drills", "run_drills", "save_logs"]

DRILLS = ("power-cut", "freeze", "kill", "there-and-back")
VARIANTS = ("restart", "heal")
READY_BOUND_S = 30.0
THAW_AFTER_S = 1.0
BACK_AFTER_S = 0.5
MOVES = 4
MEGABYTES_BETWEEN_MOVES = 10
STREAM_OCTETS_S = 2_000_000
STREAM_OCTETS_S_MOVING = 4_000_000
"""There-and-back waits for its megabytes; the others only need streams that are busy."""

Plan = tuple[str, str]
"""(drill, variant)."""


def plan_drills(drill: str, variant: str | None, repeat: int) -> list[Plan]:
    """What `drill run DRILL --variant V --repeat N` means. Raises RefusedError."""
    if drill not in (*DRILLS, "all"):
        raise RefusedError(f"there is no drill {drill}; there are {', '.join(DRILLS)} and all")
    if variant is not None and drill not in ("power-cut", "all"):
        raise RefusedError(f"{drill} has no variants; only power-cut has: {', '.join(VARIANTS)}")
    once: list[Plan] = []
    for name in DRILLS if drill == "all" else (drill,):
        if name != "power-cut":
            once.append((name, ""))
        elif variant is not None:
            once.append((name, variant))
        else:
            once += [(name, each) for each in VARIANTS]
    return once * repeat


@contextmanager
def lab_for_drills(
    lab: Lab,
    say: Say,
    *,
    heartbeat_ms: int | None = None,
    lease_ms: int | None = None,
    without: frozenset[str] = frozenset(),
    keep: bool = False,
) -> Iterator[Lab]:
    """A ready lab. One that was up already must have the same parameters and be whole; it is left
    up. One made here is removed at the end, however the drills end, unless `keep`."""
    existed = lab.exists()
    say("building the lab" if not existed else "using the lab that is up")
    built = lab.up(heartbeat_ms=heartbeat_ms, lease_ms=lease_ms, without=without)
    try:
        if silenced := lab.silenced():
            raise RefusedError(
                f"{', '.join(sorted(silenced))}: frames are dropped by somebody's fault in the "
                "lab that is up; `hafwctl lab down` first"
            )
        say("waiting until the cluster is ready")
        lab.wait_ready(READY_BOUND_S)
        with _only_drill():
            yield lab
    finally:
        if built and not keep:
            say("removing the lab")
            lab.down()
        lab.close()


@contextmanager
def _only_drill() -> Iterator[None]:
    """Two drills in one lab would measure each other. Raises RefusedError."""
    fd = os.open(lab_folder() / "drill.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                "a drill is running in this lab already; wait for its end"
            ) from None
        yield
    finally:
        os.close(fd)


def save_logs(lab: Lab) -> Path:
    """Copy the logs of the lab and its nodes to a new folder, before the lab goes."""
    folder = Path(tempfile.mkdtemp(prefix="hafw-drill-logs-"))
    for source in (lab_folder(), *(NodePaths(node).run for node in lab.config.nodes)):
        for log in sorted(source.glob("*.log")):
            with suppress(OSError):  # A node that is switched off has no folder any more.
                shutil.copyfile(log, folder / f"{source.name}.{log.name}")
    return folder


def run_drills(
    lab: Lab, plan: Sequence[Plan], say: Say, show: Callable[[DrillResult], None]
) -> DrillReport:
    """Run them one after another in a ready lab; `show` gets each result as it comes."""
    began = time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    results: list[DrillResult] = []
    for number, (drill, variant) in enumerate(plan, 1):
        prefix = f"{number}/{len(plan)} {drill} {variant}".strip()
        result = run_drill(lab, drill, variant, _prefixed(say, prefix))
        show(result)
        results.append(result)
    state = lab.state()
    return DrillReport(
        started=started,
        heartbeat_ms=lab.config.lease.heartbeat_ms,
        lease_ms=lab.config.lease.lease_ms,
        without=list(state.without) if state else [],
        kernel=platform.release(),
        cpus=os.cpu_count() or 0,
        seconds=time.monotonic() - began,
        drills=results,
        passed=bool(results) and all(result.passed for result in results),
    )


def _prefixed(say: Say, prefix: str) -> Say:
    return lambda text: say(f"{prefix}: {text}")


def run_drill(lab: Lab, drill: str, variant: str, say: Say) -> DrillResult:
    """One drill. An error that ends it early is its first reason; what was measured so far is
    still reported."""
    began = time.monotonic()
    script = _SCRIPTS[drill]
    octets_s = STREAM_OCTETS_S_MOVING if drill == "there-and-back" else STREAM_OCTETS_S
    try:
        lab.wait_ready(READY_BOUND_S)
        with Conductor(lab, say, octets_s=octets_s, frames=drill != "power-cut") as conductor:
            problem = ""
            try:
                conductor.establish()
                script(conductor, variant)
            except HafwError as error:
                problem = f"the drill could not go on: {error}"
            return conductor.finish(drill, variant, problem)
    except HafwError as error:
        return judge_failed(drill, variant, time.monotonic() - began, str(error))


def _power_cut(conductor: Conductor, variant: str) -> None:
    faults = conductor.faults
    cut: list[str] = []

    def act(active: str) -> int:
        cut.append(active)
        return faults.silence(active)

    active = conductor.sight.holder().node
    conductor.fault(f"power cut of {active}", act, takeover="must")
    if variant == "restart":
        faults.power_off(cut[0])
        faults.heal(cut[0])
        faults.start(cut[0])
    else:
        time.sleep(BACK_AFTER_S)
        faults.heal(cut[0])
    conductor.returned()


def _freeze(conductor: Conductor, _variant: str) -> None:
    active = conductor.sight.holder().node
    conductor.fault(f"SIGSTOP of all of {active}", conductor.faults.freeze, takeover="must")
    time.sleep(THAW_AFTER_S)
    conductor.faults.thaw()
    conductor.returned()


def _kill(conductor: Conductor, _variant: str) -> None:
    lab, sight = conductor.lab, conductor.sight
    witnesses = [n for n, node in lab.config.nodes.items() if node.role == "witness"]
    daemons = ("leased", "syncd", "hafwd") if lab.config.sync.enabled else ("leased", "hafwd")

    def kill_one(role: str, find: Callable[[], str], daemon: str) -> None:
        node = find()
        old = lab.pids(node).get(daemon)
        conductor.fault(
            f"SIGKILL of {daemon} on {node} ({role})",
            lambda _active: conductor.faults.kill(node, daemon),
            takeover="may",
        )
        conductor.returned(lambda: lab.pids(node).get(daemon) not in (None, old))

    for daemon in daemons:
        kill_one("ACTIVE", lambda: sight.holder().node, daemon)
    for daemon in daemons:
        kill_one("BACKUP", lambda: sight.others(sight.holder().node)[0], daemon)
    for witness in witnesses:
        for daemon in ("leased", "hafwd"):
            kill_one("witness", lambda witness=witness: witness, daemon)  # type: ignore[misc]


def _there_and_back(conductor: Conductor, _variant: str) -> None:
    octets = MEGABYTES_BETWEEN_MOVES * 1_000_000
    conductor.wait_streams(octets)
    for _ in range(MOVES):
        active = conductor.sight.holder().node
        target = conductor.sight.others(active)[0]
        conductor.fault(
            f"move to {target}",
            lambda active, target=target: conductor.faults.move(active, target),  # type: ignore[misc]
            takeover="must",
            commanded=True,
        )
        conductor.wait_streams(octets)
        conductor.returned()


_SCRIPTS: dict[str, Callable[[Conductor, str], None]] = {
    "power-cut": _power_cut,
    "freeze": _freeze,
    "kill": _kill,
    "there-and-back": _there_and_back,
}
