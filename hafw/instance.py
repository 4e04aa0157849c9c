"""One instance of a daemon per node, by an exclusive flock.

The lock is the truth: the kernel drops it when the process dies, however it dies. The pid file
beside it only names the holder, and is believed only if the kernel says that this process holds
the lock. So a stale pid file, a recycled pid or a half-written file never passes for a daemon.

A foundation: `cluster` and `sync` use it too. Shell: touches files, /proc and locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hafw.errors import StateError
from hafw.paths import NodePaths

__all__ = [
    "Instance",
    "claim_instance",
    "daemon_kept_out",
    "ensure_run_folder",
    "process_state",
    "running_pid",
    "write_atomically",
]

_CLAIM_S_MAX = 0.2
"""A probe (`running_pid`) may hold the lock for microseconds: a claim tries again this long."""


class Instance:
    """The right to be `daemon` of this node; held until `release` or the end of the process."""

    def __init__(self, paths: NodePaths, daemon: str, lock_fd: int) -> None:
        self.daemon = daemon
        self._pid_file = paths.pid(daemon)
        self._lock_fd: int | None = lock_fd

    def release(self) -> None:
        """Remove the pid file, then drop the lock. Idempotent."""
        if self._lock_fd is None:
            return
        self._pid_file.unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def claim_instance(paths: NodePaths, daemon: str) -> Instance:
    """Lock `paths.lock(daemon)` for the life of this process and write its pid file.

    Raises StateError if another process holds the lock, or the folder cannot be used.
    """
    ensure_run_folder(paths)
    try:
        fd = os.open(paths.lock(daemon), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"cannot open {paths.lock(daemon)}: {error.strerror}") from None
    deadline = time.monotonic() + _CLAIM_S_MAX
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            os.close(fd)
            pid = running_pid(paths, daemon)
            holder = f" (pid {pid})" if pid is not None else ""
            raise StateError(f"{_full_name(daemon)} is already running for {paths.node}{holder}")
        time.sleep(0.005)
    try:
        write_atomically(paths.pid(daemon), f"{os.getpid()}\n".encode(), mode=0o644)
    except BaseException:
        os.close(fd)
        raise
    return Instance(paths, daemon, fd)


@contextmanager
def daemon_kept_out(paths: NodePaths, daemon: str) -> Iterator[bool]:
    """Whether the daemon does not run; if so, it cannot start while the block runs. For blocks of
    microseconds: who looks meanwhile (`running_pid`) would take this process for the daemon."""
    ensure_run_folder(paths)
    fd = os.open(paths.lock(daemon), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _CLAIM_S_MAX
        while not (free := _try_lock(fd)) and time.monotonic() < deadline:
            time.sleep(0.005)
        yield free
    finally:
        os.close(fd)


def running_pid(paths: NodePaths, daemon: str) -> int | None:
    """Pid of the process that holds the daemon's lock; None if nobody does."""
    try:
        fd = os.open(paths.lock(daemon), os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateError(f"cannot open {paths.lock(daemon)}: {error.strerror}") from None
    try:
        lock_stat = os.fstat(fd)
        for _ in range(3):
            pid = _read_pid(paths.pid(daemon))
            if pid is not None and _holds(pid, lock_stat):
                return pid
            if _try_lock(fd):
                return None  # Nobody held it; closing the descriptor gives it back.
            time.sleep(0.005)  # Held, but the pid file is not there yet: it is starting.
        return next((pid for pid in _all_pids() if _holds(pid, lock_stat)), None)
    finally:
        os.close(fd)


def process_state(pid: int) -> tuple[str, float] | None:
    """(state letter, seconds since its start) of a process, by /proc; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        boot_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return None
    fields = text.rpartition(")")[2].split()  # proc(5): the name may hold spaces and brackets.
    ticks = os.sysconf("SC_CLK_TCK")
    return fields[0], max(0.0, boot_s - int(fields[19]) / ticks)


def ensure_run_folder(paths: NodePaths) -> None:
    """Create /run/hafw/NODE, open to its owner only: its sockets take commands. The folder
    above it may be listed by anybody. Raises StateError."""
    try:
        paths.run.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        paths.run.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"cannot create {paths.run}: {error.strerror}; hafw's daemons run as root"
        ) from None


def write_atomically(path: Path, content: bytes, *, mode: int) -> None:
    """Replace `path` so that a reader sees the old content or the new, never a part.
    Raises StateError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateError(f"cannot write {path}: {error.strerror}") from None


def _full_name(daemon: str) -> str:
    return daemon if daemon == "hafwd" else f"hafw-{daemon}"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(path: Path) -> int | None:
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    return pid if pid > 0 else None


def _holds(pid: int, target: os.stat_result) -> bool:
    """The process has the lock file open by a descriptor that holds a flock: proc_pid_fdinfo(5),
    a line ``lock: 1: FLOCK ...``. Having it open is not enough: a probe has it open too."""
    folder = f"/proc/{pid}"
    try:
        names = os.listdir(f"{folder}/fd")
    except OSError:
        return False
    for name in names:
        # A descriptor may be closed between the listing and the look.
        with suppress(OSError):
            if os.path.samestat(os.stat(f"{folder}/fd/{name}"), target):
                text = Path(f"{folder}/fdinfo/{name}").read_text()
                if any(line.startswith("lock:") and "FLOCK" in line for line in text.splitlines()):
                    return True
    return False


def _all_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
