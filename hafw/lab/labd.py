"""labd: restarts a dead hafwd of the lab's nodes, as systemd would (Restart=always).

Like systemd with KillMode=process it looks at hafwd only: the daemons that hafwd started live on
when hafwd dies, and the next hafwd adopts them. While ``/run/hafw/lab/NODE.hold`` exists a dead
hafwd stays dead; so a drill decides when a node comes back. SIGTERM ends everything::

    start -> running --dies--> waiting (0.2 s doubling to 2 s; 0.2 s again after 5 s alive)
                ^                 |
                +---- no hold ----+

Started by `Lab.up`, detached, one per machine (flock on labd.pid). If labd itself dies the nodes
run on; `lab up` then finds the lab broken and builds it anew.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hafw.errors import HafwError, StateError
from hafw.instance import running_pid
from hafw.lab.files import hold_file, lab_folder
from hafw.lab.inside import namespace_path
from hafw.lab.lab_clock import clock_environment
from hafw.lab.topology import namespace_of
from hafw.logs import configure_logs
from hafw.paths import NodePaths

__all__ = ["GATE_ALWAYS_PASS", "Backoff", "hafwd_script", "main", "running_labd"]

GATE_ALWAYS_PASS = "HAFW_UNSAFE_GATE_ALWAYS_PASS"
"""Environment of hafwd in a lab whose drills must fail: the gate's program passes everything."""
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 2.0
STEADY_S = 5.0
"""A hafwd that lived this long starts again after the shortest back-off."""
HOLD_POLL_S = 0.05
STOP_WAIT_S = 5.0
DAEMONS = ("leased", "syncd", "raftd")


@dataclass(slots=True)
class Backoff:
    """How long a dead hafwd waits for its next start."""

    wait_s: float = BACKOFF_S_MIN

    def after(self, lived_s: float) -> float:
        """The wait after a life of `lived_s` seconds; the next one is twice as long."""
        if lived_s >= STEADY_S:
            self.wait_s = BACKOFF_S_MIN
        wait_s = self.wait_s
        self.wait_s = min(self.wait_s * 2, BACKOFF_S_MAX)
        return wait_s


def hafwd_script() -> Path:
    """The console script beside this interpreter. Raises StateError if it is missing."""
    script = Path(sys.executable).with_name("hafwd")
    if not script.exists():
        raise StateError(
            f"{script} is missing: hafw is not installed in the environment of {sys.executable} "
            "(pip install -e . in the checkout, or `make install`)"
        )
    return script


class _Node:
    def __init__(self, name: str, config: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.next_start = 0.0
        self._config = config
        self._environment = environment
        self._started = 0.0
        self._backoff = Backoff()

    def start(self, now: float) -> None:
        log_file = lab_folder() / f"{self.name}.hafwd.log"
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "nsenter", f"--net={namespace_path(namespace_of(self.name))}", "--",
                    str(hafwd_script()), "--node", self.name, "--config", str(self._config),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._environment | {"HAFW_NODE": self.name} | clock_environment(self.name),
                start_new_session=True,
            )  # fmt: skip
        self._started = now

    def ended(self, now: float) -> int | None:
        """The exit status, once; sets the time of the next start."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self.next_start = now + self._backoff.after(now - self._started)
        return code

    def forgive(self, now: float) -> None:
        """While held: the next start is a power-up, not a restart after a failure."""
        self._backoff = Backoff()
        self.next_start = now

    @property
    def held(self) -> bool:
        return hold_file(self.name).exists()


class Labd:
    """The loop. Wakes for SIGCHLD and SIGTERM, and while a dead node waits or is held."""

    def __init__(self, nodes: list[str], config: Path, environment: dict[str, str]) -> None:
        self._nodes = [_Node(name, config, environment) for name in nodes]
        self._log = configure_logs("labd", "lab")
        self._stopping = False

    def run(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        self._log.info("labd_started", nodes=[node.name for node in self._nodes])
        while not self._stopping:
            wait_s = self._step(time.monotonic())
            select.select([reader], [], [], wait_s)
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
        self._end()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _step(self, now: float) -> float | None:
        """Start what is due; seconds until something may be due again, None for no such time."""
        wait_s: float | None = None
        for node in self._nodes:
            code = node.ended(now)
            if code is not None:
                self._log.warning(
                    "hafwd_ended", node=node.name, code=code, held=node.held,
                    wait_s=round(node.next_start - now, 2),
                )  # fmt: skip
            if node.process is not None:
                continue
            if node.held:
                node.forgive(now)
                wait_s = HOLD_POLL_S if wait_s is None else min(wait_s, HOLD_POLL_S)
                continue
            if now >= node.next_start:
                try:
                    node.start(now)
                    self._log.info("hafwd_started", node=node.name)
                    continue
                except (OSError, StateError) as error:
                    # An odd state (disk full, script gone): say so, try again, never die of it.
                    self._log.error("hafwd_start_failed", node=node.name, reason=str(error))
                    node.next_start = now + BACKOFF_S_MAX
            left_s = max(node.next_start - now, 0.0)
            wait_s = left_s if wait_s is None else min(wait_s, left_s)
        return wait_s

    def _end(self) -> None:
        """SIGTERM to every hafwd, then to daemons that outlived theirs, then SIGKILL."""
        alive = [node.process for node in self._nodes if node.process is not None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a stopped process would not see the other
        deadline = time.monotonic() + STOP_WAIT_S
        for process in alive:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                self._log.warning("hafwd_killed", pid=process.pid)
                process.kill()
                process.wait()
        for node in self._nodes:
            for daemon in DAEMONS:
                pid = running_pid(NodePaths(node.name), daemon)
                if pid is not None:
                    self._log.warning("left_over_killed", node=node.name, daemon=daemon, pid=pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self._log.info("labd_ended")


def _claim(pid_file: Path) -> int:
    """Lock labd.pid for the life of this process. Raises StateError if a labd runs."""
    fd = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StateError(f"a labd is running already: {pid_file} is locked") from None
    return fd


def running_labd() -> int | None:
    """Pid of the labd that holds the lock; None if there is none."""
    try:
        fd = os.open(lab_folder() / "labd.pid", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0)
        return int(text) if text.strip().isdigit() else None
    finally:
        os.close(fd)
    return None


def _detach() -> None:
    """Become a session of its own with init as parent. The first process ends at once."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()


def main() -> None:
    """``python -m hafw.lab.labd --config FILE NODE...``; returns at once, labd goes on."""
    parser = argparse.ArgumentParser(prog="hafw-labd", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("nodes", nargs="+")
    arguments = parser.parse_args()
    try:
        hafwd_script()
        fd = _claim(lab_folder() / "labd.pid")
        _detach()
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        environment = dict(os.environ) | {"HAFW_CONFIG": str(arguments.config)}
        Labd(arguments.nodes, arguments.config, environment).run()
    except (HafwError, OSError) as error:
        sys.stderr.write(f"hafw-labd: error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
