"""What drills do to what is below a node, CPU, disk, wall clock, and to its configuration. Shell.

Each is undone by `mend`.

Full disk: a tmpfs of 1 MiB is laid over the node's state folder, with what was in it, and filled.
raftd works in its folder and would stay in the old one, so it is killed and comes back by itself;
the others open by name. It stays until the lab goes: an era must not go back.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hafw.errors import StateError
from hafw.instance import write_atomically
from hafw.lab import lab_clock
from hafw.lab.faults import DRILL_GROUP, Faults, wait_until
from hafw.lab.lab import Lab
from hafw.lab.machine import mount_tmpfs
from hafw.lab.probe_loop import now_ns
from hafw.lab.recipe import with_upstream
from hafw.paths import NodePaths

__all__ = ["MachineFaults"]

LOOPS_A_CPU = 2
DISK_BYTES = 1 << 20
RESTART_BOUND_S = 10.0
_FILLER = "filled-by-a-drill"


class MachineFaults:
    """What a drill does to the machine under the lab's nodes."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._loops: list[subprocess.Popen[bytes]] = []
        self._filled: set[str] = set()
        self._stepped: set[str] = set()
        self._config_text = ""
        """What the lab's cluster.yaml was, if a drill has changed it."""

    # ---- CPU --------------------------------------------------------------------------------

    def starve(self) -> int:
        """Two busy loops a core, of ordinary priority. CLOCK_BOOTTIME ns just before."""
        before_ns = now_ns()
        for _ in range(LOOPS_A_CPU * len(os.sched_getaffinity(0))):
            self._loops.append(
                subprocess.Popen(
                    [sys.executable, "-S", "-c", "while True: pass"], start_new_session=True
                )
            )
        return before_ns

    def is_starving(self) -> bool:
        """All of the loops run."""
        running = sum(loop.poll() is None for loop in self._loops)
        return running == LOOPS_A_CPU * len(os.sched_getaffinity(0))

    def feed(self) -> None:
        for loop in self._loops:
            loop.kill()
            loop.wait()
        self._loops = []

    # ---- disk -------------------------------------------------------------------------------

    def shrink_disk(self, node: str) -> None:
        """Put the node's state on a small disk of its own, for the rest of the lab's life; raftd
        restarts. No daemon of the node may be starting. Raises KernelError, StateError."""
        folder = NodePaths(node).lib
        if os.path.ismount(folder):
            return
        pid = self._lab.pids(node).get("raftd")
        if pid is None:
            raise StateError(f"hafw-raftd is not running on {node}, so its disk is left alone")
        os.kill(pid, signal.SIGSTOP)  # It must not promise what would stay on the old disk.
        below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mount_tmpfs(folder, DISK_BYTES)
            _copy(Path(f"/proc/self/fd/{below}"), folder)
        finally:
            os.close(below)
            os.kill(pid, signal.SIGKILL)

    def fill_disk(self, node: str) -> int:
        """Leave no block free. CLOCK_BOOTTIME ns, just after. Raises StateError."""
        folder = NodePaths(node).lib
        if not os.path.ismount(folder):
            raise StateError(f"{node} has no small disk that could be filled")
        self._filled.add(node)
        with (folder / _FILLER).open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        if left := os.statvfs(folder).f_bfree:
            raise StateError(f"the disk of {node} is not full: {left} blocks are left")
        return now_ns()

    def free_disks(self) -> None:
        """There is room again."""
        for node in self._filled:
            (NodePaths(node).lib / _FILLER).unlink(missing_ok=True)
        self._filled.clear()

    # ---- clock ------------------------------------------------------------------------------

    def step_clock(self, node: str, step_s: int) -> None:
        """The node's wall clock is this far off from now on. Raises StateError."""
        self._stepped.add(node)
        lab_clock.step_clock(node, step_s)

    def clock_off_s(self, node: str) -> int:
        """How far off the node's wall clock is. Raises StateError."""
        return lab_clock.clock_off_s(node)

    def clock_reads(self, node: str) -> int:
        """How often the node has looked at its wall clock. Raises StateError."""
        return lab_clock.clock_reads(node)

    # ---- configuration ----------------------------------------------------------------------

    def check_upstream(self, segment: str, address: str) -> None:
        """The drills' group gets an upstream check of a segment, on each node that starts anew
        from now on."""
        text = self._lab.config_file.read_text()
        self._config_text = self._config_text or text
        self._configure(with_upstream(text, DRILL_GROUP, segment, address))

    def _configure(self, text: str) -> None:
        write_atomically(self._lab.config_file, text.encode(), mode=0o644)

    def _unconfigure(self) -> None:
        """As it was; all gateways start anew. Raises StateError if they do not."""
        text, self._config_text = self._config_text, ""
        self._configure(text)
        faults = Faults(self._lab)
        old = {node: self._lab.pids(node).get("hafwd") for node in self._lab.gateways}
        for node, pid in old.items():
            if pid is not None:  # One that is dead starts with the file that is there.
                faults.restart(node)

        def anew() -> bool:
            return all(self._lab.pids(node).get("hafwd") not in (None, old[node]) for node in old)

        if not wait_until(RESTART_BOUND_S, anew):
            raise StateError(f"hafwd did not start anew within {RESTART_BOUND_S:g} s")

    def mend(self) -> None:
        """Undo everything. Safe at any time, also without a lab."""
        self.feed()
        if not self._lab.exists():
            return
        if self._config_text:
            self._unconfigure()
        self.free_disks()
        for node in self._stepped:
            lab_clock.step_clock(node, 0)
        self._stepped.clear()


def _copy(source: Path, target: Path) -> None:
    """A folder's content with owners and modes; what has been written there since is newer."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if place.exists() and not entry.is_dir():
            continue
        status = entry.lstat()
        if entry.is_dir():
            place.mkdir(exist_ok=True)
            _copy(entry, place)
        else:
            shutil.copyfile(entry, place)
        os.chown(place, status.st_uid, status.st_gid)
        place.chmod(status.st_mode & 0o7777)
