"""One gateway of a `syncd_world`: its namespace, its syncd, and the leased that the test plays."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from typing import Any

from hafw.flow import FlowEntry, FlowKey
from hafw.human import make_epoch
from hafw.kernel.netns import entered
from hafw.messages import (
    DATAGRAM_BYTES_MAX,
    NewEpochRequest,
    PositionReply,
    PositionRequest,
    RoleChange,
    StatusRequest,
    SyncBeacon,
    SyncdStatus,
    decode_leased,
    decode_syncd,
    encode,
)
from hafw.paths import NodePaths
from sync.ctnetlink import build_create, build_delete, build_update
from sync.ctsocket import RequestSocket
from tests.integration.ct_spaces import inside

__all__ = ["ROOT", "Gateway", "epoch", "wait_for"]

_numbers = itertools.count()
ROOT = Path(__file__).resolve().parents[2]


def epoch(counter: int, node_id: int) -> int:
    return make_epoch(1, counter, node_id)


def wait_for(
    what: str | Callable[[], str], check: Callable[[], Any], timeout_s: float = 10.0
) -> Any:
    """The first true value of `check`."""
    until = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > until:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout_s} s: {text}")
        time.sleep(0.01)


class Gateway:
    """One node: its namespace, its syncd, and the leased that the test plays for it."""

    def __init__(self, number: int, space: str, config: Path, environment: dict[str, str]) -> None:
        self.number = number
        self.name = f"gw{number}"
        self.space = space
        self.paths = NodePaths(self.name)
        self._config = config
        self.environment = environment
        self.program = "sync.daemon"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.paths.run / "syncd.log"
        self.role: RoleChange | None = None
        self.beacons: list[SyncBeacon] = []
        self.heard_at: list[float] = []
        self.positions: list[PositionReply] = []
        self.new_epochs: list[NewEpochRequest] = []
        self.on_new_epoch: Callable[[NewEpochRequest], None] | None = None
        self._leased = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._leased.bind(str(self.paths.leased_socket))
        self._leased.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play_leased, daemon=True)
        self._thread.start()
        with entered(space):
            self.kernel = RequestSocket()

    # -- the process

    def start(self) -> None:
        self.launch()
        self.wait_answers()

    def wait_answers(self) -> None:
        wait_for(f"{self.name} answers", lambda: self.status(0.2))

    def launch(self) -> None:
        argv = ["nsenter", f"--net=/run/netns/{self.space}", sys.executable, "-m", self.program]
        argv += ["--node", self.name, "--config", str(self._config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=self.environment, stderr=log, stdout=log
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(10)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        self._ending.set()
        self._thread.join(5)
        self._leased.close()
        self.kernel.close()

    # -- leased

    def _play_leased(self) -> None:
        next_at = 0.0
        while not self._ending.is_set():
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + 0.1
                self._say_role()
            try:
                message = decode_leased(self._leased.recv(DATAGRAM_BYTES_MAX))
            except TimeoutError:
                continue
            match message:
                case SyncBeacon():
                    self.beacons = [*self.beacons[-999:], message]
                    self.heard_at.append(time.monotonic())
                case PositionReply():
                    self.positions.append(message)
                case NewEpochRequest():
                    self.new_epochs.append(message)
                    if self.on_new_epoch is not None:
                        self.on_new_epoch(message)
                case _:
                    raise AssertionError(message)

    def say(self, role: RoleChange | None) -> None:
        self.role = role
        self._say_role()

    def _say_role(self) -> None:
        if self.role is not None:
            self._send(self.role)

    def _send(self, message: RoleChange | PositionRequest) -> None:
        with suppress(OSError):
            self._leased.sendto(encode(message), str(self.paths.syncd_socket))

    def hold(self, counter: int, *, contiguous: bool = False) -> None:
        number = epoch(counter, self.number)
        self.say(RoleChange(1, True, number, self.number, contiguous))

    def follow(self, counter: int, holder: int, *, lives: bool = True) -> None:
        number = epoch(counter, holder)
        self.say(RoleChange(1, False, number, holder if lives else 0, False))

    def ask_position(self) -> PositionReply:
        assert self.role is not None
        before = len(self.positions)
        self._send(PositionRequest(1, self.role.epoch))
        wait_for("a position", lambda: len(self.positions) > before, 2)
        return self.positions[-1]

    @property
    def reason(self) -> str:
        """Why syncd says it is not synced; empty if it is, or says nothing yet."""
        return self.beacons[-1].reasons.get(1, "") if self.beacons else "no beacon yet"

    def wait_synced(self, timeout_s: float = 15.0) -> None:
        self.beacons = []
        wait_for(
            lambda: f"{self.name} synced (last: {self.reason}); {self.status()}",
            lambda: self.beacons and self.beacons[-1].synced.get(1),
            timeout_s,
        )

    def wait_reason(self, part: str, timeout_s: float = 10.0) -> None:
        wait_for(
            lambda: f"{self.name}: {part} (last: {self.reason})",
            lambda: part in self.reason,
            timeout_s,
        )

    def status(self, timeout_s: float = 2.0) -> SyncdStatus | None:
        address = self.paths.run / f"t{next(_numbers)}"  # A path of at most 107.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(address))
            sock.settimeout(timeout_s)
            try:
                sock.sendto(encode(StatusRequest()), str(self.paths.syncd_socket))
                message = decode_syncd(sock.recv(DATAGRAM_BYTES_MAX))
            except (TimeoutError, OSError):
                return None
            finally:
                address.unlink()
        assert isinstance(message, SyncdStatus)
        return message

    def counter(self, name: str) -> int:
        status = self.status()
        assert status is not None
        return status.counters.get(name, 0)

    # -- the kernel

    def put(self, entries: list[FlowEntry]) -> None:
        """As if packets had made them: by a socket that is not syncd's."""
        codes = self.kernel.execute([build_create(entry, pristine=False) for entry in entries])
        assert not any(codes), codes

    def change(self, entry: FlowEntry) -> None:
        message = build_update(
            entry.key, status=entry.status, timeout_s=entry.timeout_s, tcp=entry.tcp
        )
        assert self.kernel.execute([message]) == [0]

    def delete(self, entries: list[FlowEntry]) -> None:
        codes = self.kernel.execute([build_delete(entry.key) for entry in entries])
        assert not any(codes), codes

    def table(self) -> dict[FlowKey, FlowEntry]:
        return {entry.key: entry for chunk in self.kernel.dump() for entry in chunk}

    def listed(self) -> set[str]:
        """conntrack(8)'s view, without what may differ between owner and replica."""
        lines = set()
        for family in ("ipv4", "ipv6"):
            text = inside(self.space, "conntrack", "-L", "-f", family, "-o", "extended")
            for line in text.splitlines():
                words = line.split()
                if words:
                    own = ("mark=", "delta-time=")
                    kept = [word for word in words[5:] if not word.startswith(own)]
                    lines.add(" ".join([*words[:4], *kept]))
        return lines

    def flush(self) -> None:
        inside(self.space, "conntrack", "-F")
