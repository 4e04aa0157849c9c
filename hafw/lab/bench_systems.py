"""The two systems that are measured: hafw's syncd, and conntrackd as it does best. Shell.

Both run in the same namespaces, one after the other, pinned alike: the owner's daemon to the
first CPU, the replica's to the second. conntrackd (Debian's, unpacked by `make install` and not
installed, for its package would start a daemon) has one link, since it can use only one; direct
injection (DisableExternalCache), and in NOTRACK mode no internal cache either; socket buffers as
large as syncd's; the caches' hash sized for the flows; no log.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from hafw.errors import StateError
from hafw.lab.bench_tools import flush
from hafw.lab.sync_spaces import SyncSpaces, wait_for

__all__ = [
    "CONNTRACKD_MODES",
    "Conntrackd",
    "Hafw",
    "System",
    "find_conntrackd",
    "require_conntrackd",
]

CONNTRACKD_MODES = ("FTFW", "NOTRACK")
START_S = 10.0
SETTLE_S = 0.3
"""Its answer comes before the two have found each other."""
_LOSSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("runtime",), r"netlink overrun:\s+(\d+)"),
    (("network",), r"Packets lost:\s+(\d+)"),
    ((), r"(?s)external inject:.*?connections created:\s+\d+\s+failed:\s+(\d+)"),
)
CONFIG = """
Sync {{
  Mode {mode} {{
    DisableExternalCache yes
    {extra}
  }}
  Multicast {{
    IPv4_address 225.0.0.50
    Group 3780
    IPv4_interface 203.0.113.{number}
    Interface sync0
    SndSocketBuffer 67108864
    RcvSocketBuffer 67108864
    Checksum on
  }}
}}
General {{
  Systemd no
  HashSize {hash_size}
  HashLimit {hash_limit}
  LogFile no
  Syslog no
  LockFile {folder}/lock{number}
  UNIX {{ Path {folder}/ctl{number} }}
  NetlinkBufferSize 67108864
  NetlinkBufferSizeMaxGrowth 268435456
  Filter From Kernelspace {{
    Protocol Accept {{ TCP UDP }}
    Address Ignore {{ IPv4_address 127.0.0.1 }}
  }}
}}
"""


class System(Protocol):
    """One system, on both gateways; gw1 is the owner."""

    name: str

    def start(self) -> None:
        """Tables are empty."""

    def stop(self) -> None: ...

    def owner(self) -> int: ...

    def replica(self) -> int:
        """The daemons' process ids."""

    def is_done(self, flows: int) -> bool:
        """The system itself says that all is replicated."""

    def trouble(self) -> str:
        """What was lost or had to be repaired since the start; empty if nothing."""


class Hafw:
    """hafw-syncd."""

    name = "hafw"

    def __init__(self, spaces: SyncSpaces, cpus: tuple[int, int] | None) -> None:
        self._spaces = spaces
        if cpus is not None:
            for node, cpu in zip(spaces.nodes, cpus, strict=True):
                node.cpu = cpu

    def start(self) -> None:
        self._spaces.start()

    def stop(self) -> None:
        for node in self._spaces.nodes:
            node.stop(signal.SIGKILL)
        _empty(self._spaces)

    def owner(self) -> int:
        return self._spaces[1].pid

    def replica(self) -> int:
        return self._spaces[2].pid

    def is_done(self, flows: int) -> bool:
        owner, replica = (node.status().groups[0] for node in self._spaces.nodes)
        return owner.owned == replica.replicas == flows and replica.synced

    def trouble(self) -> str:
        running = [node for node in self._spaces.nodes if node.process is not None]
        found = {
            name: count
            for name in ("event_overruns", "replicas_refused", "holes", "passes_failed")
            if (count := sum(node.counter(name) for node in running))
        }
        return ", ".join(f"{name} {count}" for name, count in found.items())


class Conntrackd:
    """conntrackd in one of its modes."""

    def __init__(
        self, spaces: SyncSpaces, cpus: tuple[int, int] | None, *, mode: str, program: Path,
        flows: int,
    ) -> None:  # fmt: skip
        self.name = f"conntrackd {mode}"
        self._spaces = spaces
        self._cpus = cpus
        self._program = program
        self._files: list[Path] = []
        self._daemons: list[subprocess.Popen[bytes]] = []
        extra = "DisableInternalCache yes" if mode == "NOTRACK" else "ResendQueueSize 262144"
        for number in (1, 2):
            file = spaces.folder / f"conntrackd-{mode}-{number}.conf"
            file.write_text(
                CONFIG.format(mode=mode, extra=extra, number=number, folder=spaces.folder,
                              hash_size=max(1024, flows // 4), hash_limit=max(65536, flows * 2))
            )  # fmt: skip
            self._files.append(file)

    def start(self) -> None:
        for index, (node, file) in enumerate(zip(self._spaces.nodes, self._files, strict=True)):
            pin = [] if self._cpus is None else ["taskset", "-c", str(self._cpus[index])]
            argv = ["nsenter", f"--net=/run/netns/{node.space}", *pin, str(self._program)]
            log = (self._spaces.folder / f"conntrackd{index}.log").open("wb")
            with log:
                daemon = subprocess.Popen([*argv, "-C", str(file)], stdout=log, stderr=log)
            self._daemons.append(daemon)
        wait_for(self._words, lambda: all(self._stats(n) for n in (1, 2)), START_S)
        time.sleep(SETTLE_S)

    def stop(self) -> None:
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait(START_S)
        self._daemons.clear()
        for number in (1, 2):
            for name in ("lock", "ctl"):
                (self._spaces.folder / f"{name}{number}").unlink(missing_ok=True)
        _empty(self._spaces)

    def owner(self) -> int:
        return self._daemons[0].pid

    def replica(self) -> int:
        return self._daemons[1].pid

    def is_done(self, flows: int) -> bool:  # noqa: ARG002 - it cannot say; the tables do
        return True

    def trouble(self) -> str:
        """Overruns, losses and refusals that ``conntrackd -s`` counts."""
        found = []
        for number in (1, 2):
            for topic, pattern in _LOSSES:
                match = re.search(pattern, self._stats(number, *topic))
                if match and int(match[1]):
                    found.append(f"gw{number}: {match[0].split(':')[0]} {match[1]}")
        return ", ".join(found)

    def _stats(self, number: int, *topic: str) -> str:
        done = subprocess.run(
            [str(self._program), "-C", str(self._files[number - 1]), "-s", *topic],
            capture_output=True, text=True, check=False, timeout=START_S,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def _words(self) -> str:
        logs = sorted(self._spaces.folder.glob("conntrackd*.log"))
        return "conntrackd runs: " + " ".join(log.read_text()[-200:] for log in logs)


def _empty(spaces: SyncSpaces) -> None:
    flush(*(node.space for node in spaces.nodes))


def find_conntrackd() -> Path | None:
    """The program that `make install` unpacked beside this Python, or an installed one."""
    unpacked = Path(sys.prefix) / "conntrackd/usr/sbin/conntrackd"
    if unpacked.exists():
        return unpacked
    installed = shutil.which("conntrackd", path="/usr/sbin:/usr/local/sbin")
    return None if installed is None else Path(installed)


def require_conntrackd() -> Path:
    """Raises StateError if there is none."""
    program = find_conntrackd()
    if program is None:
        raise StateError("conntrackd is not there to compare with: make install, or leave it out")
    return program
