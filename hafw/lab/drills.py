"""Running drills: a ready lab, one drill after another, what each found. Shell.

Which drills there are: `hafw.lab.drill_list`. One lab serves all drills of a run; probes and
judges are started anew for each drill.
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
from hafw.lab.drill_list import DRILLS_BY_NAME, Plan
from hafw.lab.files import lab_folder
from hafw.lab.lab import Lab
from hafw.lab.report import DrillReport, DrillResult, judge_failed, unjudged
from hafw.paths import NodePaths

__all__ = ["lab_for_drills", "run_drill", "run_drills", "run_judged", "save_logs"]

READY_BOUND_S = 30.0


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
    """Run them one after another in a ready lab; `show` gets each result as it comes, of a run
    that had no verdict too."""
    began = time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    results: list[DrillResult] = []
    count = 0
    for number, (drill, variant) in enumerate(plan, 1):
        prefix = f"{number}/{len(plan)} {drill} {variant}".strip()
        for result in run_judged(lab, drill, variant, _prefixed(say, prefix)):
            show(result)
            count += 1
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
        unjudged=count - len(results),
    )


def _prefixed(say: Say, prefix: str) -> Say:
    return lambda text: say(f"{prefix}: {text}")


def run_judged(lab: Lab, drill: str, variant: str, say: Say) -> Iterator[DrillResult]:
    """`run_drill`, and once more if that gave no verdict (`unjudged`). The last result counts."""
    result = run_drill(lab, drill, variant, say)
    yield result
    if unjudged(result):
        say("no verdict: this machine stood still; once more")
        yield run_drill(lab, drill, variant, say)


def run_drill(lab: Lab, drill: str, variant: str, say: Say) -> DrillResult:
    """One drill. An error that ends it early is its first reason; what was measured so far is
    still reported."""
    began = time.monotonic()
    wanted = DRILLS_BY_NAME[drill]
    try:
        lab.wait_ready(READY_BOUND_S)
        with Conductor(
            lab,
            say,
            octets_s=wanted.octets_s,
            frames=True,
            lossless=wanted.lossless,
        ) as conductor:
            problem = ""
            try:
                if wanted.flows_first:
                    conductor.establish()
                wanted.script(conductor, variant)
            except HafwError as error:
                problem = f"the drill could not go on: {error}"
            return conductor.finish(drill, variant, problem)
    except HafwError as error:
        return judge_failed(drill, variant, time.monotonic() - began, str(error))
