"""hafwd as a process, with stand-ins for what it starts (`stub_node`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hafw.instance import running_pid
from hafw.node import api
from hafw.node.client import Unavailable, ask_hafwd
from hafw.paths import NodePaths

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub_node.py")
LAB_CONFIG = ROOT / "hafw/lab/cluster.yaml"
WAIT_S = 15.0


def wait_for(what: str, claim: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """The first true answer of `claim`; fails by name if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := claim()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return answer


class World:
    """One node's folders, its hafwd and what the stand-ins left behind."""

    def __init__(self, folder: Path, node: str = "gw1") -> None:
        self.folder = folder
        self.node = node
        self.config = folder / "cluster.yaml"
        self.config.write_text(LAB_CONFIG.read_text())
        self.policy_file = folder / "policy.yaml"
        self.policy_file.write_text("one\n")
        self.stubs = folder / "stubs"
        self.stubs.mkdir()
        self.hafwds: list[subprocess.Popen[str]] = []

    @property
    def paths(self) -> NodePaths:
        return NodePaths(self.node)

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(STUB), "hafwd", "--node", self.node]
        process = subprocess.Popen(
            [*command, "--config", str(self.config), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.hafwds.append(process)
        return process

    def pid(self, daemon: str) -> int | None:
        return running_pid(self.paths, daemon)

    def pids(self) -> tuple[int, int]:
        """Those of leased and syncd, once all children answer."""

        names = ("leased", "syncd", "raftd")

        def both() -> tuple[int, int] | None:
            rows = self.daemons()
            if all(rows.get(name, {}).get("state") == "up" for name in names):
                return rows["leased"]["pid"], rows["syncd"]["pid"]
            return None

        found: tuple[int, int] = wait_for("the children are up", both)
        return found

    def ask(self, request: api.Request) -> api.Reply:
        def answered() -> api.Reply | None:
            reply = ask_hafwd(self.paths, request)
            return None if isinstance(reply, Unavailable) else reply

        reply: api.Reply = wait_for("hafwd answers", answered)
        return reply

    def status(self) -> dict[str, Any]:
        reply = self.ask(api.Status())
        assert reply.ok, reply.error
        return reply.result

    def daemons(self) -> dict[str, dict[str, Any]]:
        return {row["daemon"]: row for row in self.status()["daemons"]}

    def alarms(self) -> list[str]:
        return [row["alarm"] for row in self.status()["alarms"]]

    def runs(self) -> list[str]:
        file = self.stubs / "runs"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def hafwctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = "from hafw.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"HAFW_NODE": self.node},
        )  # fmt: skip

    def close(self) -> None:
        for process in self.hafwds:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for daemon in ("leased", "syncd", "raftd"):
            pid = self.pid(daemon)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


@contextmanager
def hafwd_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Folders of its own, gone afterwards like all that was started."""
    # Short, because a Unix socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hafw-t-node-") as name:
        folder = Path(name)
        for root in ("RUN", "LIB", "ETC", "BPF"):
            monkeypatch.setenv(f"HAFW_{root}_ROOT", str(folder / root.lower()))
        monkeypatch.setenv("HAFW_STUBS", str(folder / "stubs"))
        monkeypatch.delenv("HAFW_UNSAFE_GATE_ALWAYS_PASS", raising=False)
        built = World(folder)
        try:
            yield built
        finally:
            built.close()
