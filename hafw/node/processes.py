"""hafwd's children as processes: spawn, adopt, watch by pidfd, signal. Shell: no policy.

A child has a session of its own and logs to a file, so it outlives hafwd. A child found running
(its lock says so) is adopted: from then on it differs from a spawned one only in that its exit
status is not ours to know.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hafw.cpus import CpuPlan
from hafw.errors import HafwError
from hafw.instance import running_pid
from hafw.node.supervisor import ChildStarted, StartFailed
from hafw.node.worker import children_on
from hafw.paths import NodePaths

__all__ = ["Processes"]

LOG_BYTES_MAX = 8 << 20
"""A larger log is put aside (``.1``, one kept) before the child is started again."""
LEASED_NICE = -10
"""Of leased until it runs in real time: a restarted voter is silent for M from then on, so on a
machine that boots it goes before the other children."""


@dataclass(slots=True)
class _Process:
    pid: int
    pidfd: int
    popen: subprocess.Popen[bytes] | None
    log_offset: int


class Processes:
    """Belongs to a running asyncio loop; `on_exit(name, how)` is called from it."""

    def __init__(
        self,
        paths: NodePaths,
        commands: Mapping[str, Sequence[str]],
        cpus: CpuPlan,
        on_exit: Callable[[str, str], None],
    ) -> None:
        self._paths = paths
        self._commands = commands
        self._cpus = cpus
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, _Process] = {}

    def start(self, name: str) -> ChildStarted | StartFailed:
        """Adopt the process that holds the lock of `name`, or spawn one."""
        assert name not in self._running, name
        try:
            return self._adopt(name) or self._spawn(name)
        except (OSError, HafwError) as error:
            return StartFailed(name, f"cannot be started: {error}")

    def signal(self, name: str, *, kill: bool) -> None:
        process = self._running.get(name)
        if process is None:
            return
        with suppress(ProcessLookupError):  # Gone already; its pidfd tells.
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        """Forget the children; they go on."""
        for name in list(self._running):
            process = self._running.pop(name)
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            if process.popen is not None and process.popen.poll() is None:
                process.popen.returncode = 0  # Else its destructor warns: it is left on purpose.

    def _adopt(self, name: str) -> ChildStarted | None:
        pid = running_pid(self._paths, name)
        if pid is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if running_pid(self._paths, name) != pid:
            os.close(pidfd)  # It died in between, and the pid may be somebody else's by now.
            return None
        self._watch(name, _Process(pid, pidfd, None, self._log_size(name)))
        return ChildStarted(name, pid, adopted=True)

    def _spawn(self, name: str) -> ChildStarted:
        log = self._log_file(name)
        if self._log_size(name) > LOG_BYTES_MAX:
            os.replace(log, log.with_suffix(".log.1"))
        offset = self._log_size(name)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # leased pins itself to its CPU later; raftd keeps off it.
            own = {"syncd": self._cpus.syncd, "raftd": self._cpus.hafwd}
            with children_on(own.get(name, self._cpus.all)):
                popen = subprocess.Popen(
                    list(self._commands[name]),
                    stdin=subprocess.DEVNULL,
                    stdout=fd,
                    stderr=fd,
                    cwd="/",
                    start_new_session=True,
                )
        finally:
            os.close(fd)
        if name == "leased":
            with suppress(PermissionError, ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, popen.pid, LEASED_NICE)
        self._watch(name, _Process(popen.pid, os.pidfd_open(popen.pid), popen, offset))
        return ChildStarted(name, popen.pid, adopted=False)

    def _watch(self, name: str, process: _Process) -> None:
        self._running[name] = process
        self._loop.add_reader(process.pidfd, self._exited, name)

    def _exited(self, name: str) -> None:
        process = self._running.pop(name)
        self._loop.remove_reader(process.pidfd)
        os.close(process.pidfd)
        how = "ended (it was adopted: its exit status is unknown)"
        if process.popen is not None:
            code = process.popen.wait()  # Does not wait: the pidfd says that it has ended.
            how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        said = self._last_error(name, process.log_offset)
        self._on_exit(name, f"{how}: {said}" if said else how)

    def _log_file(self, name: str) -> Path:
        return self._paths.run / f"{name}.log"

    def _log_size(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return self._log_file(name).stat().st_size
        return 0

    def _last_error(self, name: str, offset: int) -> str:
        """The last ``hafw-NAME: error: …`` line that the child wrote."""
        with suppress(OSError), self._log_file(name).open("rb") as file:
            file.seek(max(offset, self._log_size(name) - 4096))
            for line in reversed(file.read().decode(errors="replace").splitlines()):
                if ": error: " in line[:40]:
                    return line.split(": error: ", 1)[1]
        return ""
