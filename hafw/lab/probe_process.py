"""A child that answers JSON lines: the conductor's end of agents and judges. Shell."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hafw.errors import StateError

__all__ = ["CLOSE_WAIT_S", "LineProcess", "Spawn", "spawn_here"]

CLOSE_WAIT_S = 2.0
"""How long a child may take to end after its stdin was closed, before SIGKILL."""

Spawn = Callable[[str, Sequence[str], dict[str, Any]], "subprocess.Popen[bytes]"]
"""(host, argv, Popen options) -> process, in the namespace of the host."""


def spawn_here(
    _host: str, argv: Sequence[str], options: dict[str, Any]
) -> subprocess.Popen[bytes]:
    """A `Spawn` that stays in the caller's own namespace."""
    return subprocess.Popen(argv, **options)


class LineProcess:
    """One child, `python -m MODULE ARGUMENTS`. It ends when its stdin is closed."""

    def __init__(self, spawn: Spawn, host: str, module: str, *arguments: str) -> None:
        self.name = f"{module.rpartition('.')[2]} in {host}" if host else module.rpartition(".")[2]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 closed by close()
        self._buffer = b""
        argv = [sys.executable, "-m", module, *arguments]
        options = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": self._stderr,
            # Ctrl-C is the conductor's to handle: it still needs its children's reports.
            "start_new_session": True,
        }
        self._process = spawn(host, argv, options)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: bytes, *, timeout_s: float) -> bytes:
        """Send one line and wait for one. Raises StateError if the child is dead or silent."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        deadline = time.monotonic() + timeout_s
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
                raise StateError(f"{self.name} (pid {self.pid}) did not answer in {timeout_s:g} s")
            octets = os.read(fd, 1 << 20)
            if not octets:
                raise self._died()
            self._buffer += octets
        answer, _, self._buffer = self._buffer.partition(b"\n")
        return answer

    def close(self) -> None:
        """End the child: by closing its stdin, then by SIGKILL. Idempotent."""
        process = self._process
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(CLOSE_WAIT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._stderr.close()

    def _died(self) -> StateError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_WAIT_S)
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()
        last = f": {words[-1]}" if words else ""
        return StateError(f"{self.name} ended with code {self._process.returncode}{last}")
