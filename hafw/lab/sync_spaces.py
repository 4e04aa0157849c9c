"""Two gateways with a real hafw-syncd each, in namespaces of their own, for measuring ct_sync.

::

    client --- gw1 --- server          gw1, gw2 --- sync0, sync1 --- switch
          \\--- gw2 ---/

No lease and no virtual MAC: who holds the group is said by datagram, as leased would say it, and
which gateway carries packets is one route at each end (`SyncSpaces.carry`). Several such worlds
may stand beside each other and beside the lab; nothing of theirs has a global name but the
namespaces, which carry the process id. Shell.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hafw.errors import StateError
from hafw.human import make_epoch
from hafw.instance import write_atomically
from hafw.lab.inside import kill_all_in
from hafw.lab.sync_network import (
    GROUP,
    RUN_WAIT_S,
    SERVER,
    VIP,
    build_network,
    inside,
    run,
)
from hafw.messages import (
    DATAGRAM_BYTES_MAX,
    NewEpochRequest,
    RoleChange,
    StatusRequest,
    SyncBeacon,
    SyncdStatus,
    decode_leased,
    decode_syncd,
    encode,
)
from hafw.paths import NodePaths

__all__ = [
    "DAEMON_ANSWERS_S",
    "SyncNode",
    "SyncSpaces",
    "sync_spaces",
    "wait_for",
]

ROLE_REPEAT_S = 0.1
DAEMON_ANSWERS_S = 15.0

_numbers = itertools.count()

CONFIG = """
name: sync-spaces
nodes:
{nodes}
groups:
  main: {{index: 1, vrid: 1, order: [gw1, gw2],
         vips: {{lan: [192.0.2.254], wan: [198.51.100.254]}}}}
sync: {{hold_s: {hold_s}, refresh_s: {refresh_s}}}
"""
NODE = """  gw{n}:
    id: {n}
    segments:
      lan: {{device: lan0, addresses: [192.0.2.{n}/24]}}
      wan: {{device: wan0, addresses: [198.51.100.{n}/24]}}
    links:
      sync0: {{device: sync0, address: 203.0.113.{n}/25}}
      sync1: {{device: sync1, address: 203.0.113.{m}/25}}
"""


def wait_for(what: str | Callable[[], str], claim: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until the claim holds. Raises StateError with what was waited for."""
    begun = time.monotonic()
    while not claim():
        if time.monotonic() - begun > timeout_s:
            text = what() if callable(what) else what
            raise StateError(f"not within {timeout_s:g} s: {text}")
        time.sleep(0.01)
    return time.monotonic() - begun


class SyncNode:
    """One gateway: its namespace, its syncd, and what leased would know."""

    def __init__(self, number: int, space: str, folder: Path) -> None:
        self.number = number
        self.name = f"gw{number}"
        self.space = space
        self.folder = folder
        self.paths = NodePaths(self.name)
        self.log = self.paths.run / "syncd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.cpu: int | None = None
        """Pin syncd to it."""
        self.role: RoleChange | None = None
        self.beacon: SyncBeacon | None = None
        self.leased = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.leased.bind(str(self.paths.leased_socket))

    def start(self) -> None:
        """Until syncd answers. Raises StateError."""
        self.launch()
        self.wait_answers()

    def wait_answers(self) -> None:
        wait_for(f"{self.name}'s syncd answers", self._answers, DAEMON_ANSWERS_S)

    def _answers(self) -> bool:
        if self.process is not None and (code := self.process.poll()) is not None:
            # The folder goes with the run, and the log with it.
            said = self.log.read_text(errors="replace").strip() or "nothing"
            raise StateError(f"{self.name}'s syncd ended with {code} and said: {said[-1000:]}")
        return self.ask(0.2) is not None

    def launch(self) -> None:
        pin = [] if self.cpu is None else ["taskset", "-c", str(self.cpu)]
        argv = [
            "nsenter", f"--net=/run/netns/{self.space}", *pin, sys.executable, "-m", "sync.daemon",
            "--node", self.name, "--config", str(self.folder / "cluster.yaml"),
        ]  # fmt: skip
        self.beacon = None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(number)
        process.wait(RUN_WAIT_S)

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name}'s syncd is not running"
        return self.process.pid  # nsenter has become the daemon

    def say(self, role: RoleChange) -> None:
        self.role = role
        self.repeat_role()

    def repeat_role(self) -> None:
        if self.role is not None:
            with suppress(OSError):  # The daemon is down or starting; it is said again.
                self.leased.sendto(encode(self.role), str(self.paths.syncd_socket))

    def ask(self, timeout_s: float = 5.0) -> SyncdStatus | None:
        """syncd's status; None if it did not answer."""
        address = self.paths.run / f"q{next(_numbers)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            try:
                sock.bind(str(address))  # An interrupted run has taken the folder away.
                sock.sendto(encode(StatusRequest()), str(self.paths.syncd_socket))
                message = decode_syncd(sock.recv(DATAGRAM_BYTES_MAX))
            except OSError:
                return None
            finally:
                address.unlink(missing_ok=True)
        assert isinstance(message, SyncdStatus)
        return message

    def status(self) -> SyncdStatus:
        """Raises StateError if syncd does not answer."""
        status = self.ask()
        if status is None:
            raise StateError(f"{self.name}'s syncd does not answer; its log is {self.log}")
        return status

    def counter(self, name: str) -> int:
        return self.status().counters.get(name, 0)

    @property
    def synced(self) -> bool:
        return self.beacon is not None and self.beacon.synced.get(GROUP, False)

    @property
    def reason(self) -> str:
        return "no beacon yet" if self.beacon is None else self.beacon.reasons.get(GROUP, "")

    def wait_synced(self, timeout_s: float = 20.0) -> float:
        self.beacon = None
        return wait_for(
            lambda: f"{self.name} synced ({self.reason})", lambda: self.synced, timeout_s
        )

    def sysctl(self, name: str) -> int:
        return int(inside(self.space, "sysctl", "-n", name))

    def entries(self) -> int:
        """What the kernel counts; entries that have expired and wait for collection included."""
        return self.sysctl("net.netfilter.nf_conntrack_count")


class SyncSpaces:
    """The world; gw1 holds the group after `start`."""

    def __init__(self, prefix: str, folder: Path) -> None:
        self.switch, self.client, self.server = (f"{prefix}-{n}" for n in ("sw", "cl", "sv"))
        self.folder = folder
        self.nodes = [SyncNode(n, f"{prefix}-gw{n}", folder) for n in (1, 2)]
        self.epoch_counter = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play_leased, daemon=True)
        self._thread.start()

    def __getitem__(self, number: int) -> SyncNode:
        return self.nodes[number - 1]

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_answers()
        self.lead(1)
        for node in self.nodes:
            node.wait_synced()

    def lead(self, number: int, *, contiguous: bool = False) -> None:
        """`number` holds the group under a new epoch, and all know it."""
        self.epoch_counter += 1
        epoch = make_epoch(1, self.epoch_counter, number)
        for node in self.nodes:
            holds = node.number == number
            node.say(RoleChange(GROUP, holds, epoch, number, holds and contiguous))

    def carry(self, number: int) -> None:
        """From now on this gateway carries the packets, both ways."""
        run("ip", "-n", self.client, "route", "replace", SERVER, "via", f"10.7{number}.1.1")
        run("ip", "-n", self.server, "route", "replace", VIP, "via", f"10.7{number}.2.1")

    def lose(self, percent: int) -> None:
        """Drop this share of all frames on both sync links, between the switch's ports."""
        rules = (  # nft 1.0.6: no two braces on one line
            "table bridge lossy {\n chain forward {\n"
            "  type filter hook forward priority 0\n"
            f'  iifname "l*" numgen random mod 100 < {percent} counter drop\n }}\n}}\n'
        )
        inside(self.switch, "nft", "-f", "-", stdin=rules)

    def lost_frames(self) -> int:
        words = inside(self.switch, "nft", "list", "table", "bridge", "lossy").split()
        return int(words[words.index("packets") + 1])

    def heal(self) -> None:
        inside(self.switch, "nft", "delete", "table", "bridge", "lossy")

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                node.process.kill()
                node.process.wait(RUN_WAIT_S)
        self._ending.set()
        self._thread.join(5)
        for node in self.nodes:
            node.leased.close()

    def tracebacks(self) -> list[str]:
        """What the daemons wrote of their own bugs."""
        texts = [node.log.read_text() for node in self.nodes if node.log.exists()]
        return [text[text.index("Traceback") :] for text in texts if "Traceback" in text]

    def _play_leased(self) -> None:
        sockets = {node.leased: node for node in self.nodes}
        repeat_at = 0.0
        while not self._ending.is_set():
            now = time.monotonic()
            if now >= repeat_at:
                repeat_at = now + ROLE_REPEAT_S
                for node in self.nodes:
                    node.repeat_role()
            ready, _, _ = select.select(list(sockets), [], [], ROLE_REPEAT_S / 2)
            for sock in ready:
                message = decode_leased(sock.recv(DATAGRAM_BYTES_MAX))
                match message:
                    case SyncBeacon():
                        sockets[sock].beacon = message
                    case NewEpochRequest(held_epoch=held):
                        role = sockets[sock].role
                        if role is not None and role.active and role.epoch == held:
                            self.lead(sockets[sock].number, contiguous=True)
                    case _:
                        pass


@contextmanager
def sync_spaces(
    *, hold_s: int = 900, refresh_s: int = 300, labels: bool = False
) -> Iterator[SyncSpaces]:
    """Namespaces, keys and configuration; daemons are not started. All is removed at the end.
    `labels`: the gateways have a rule for labels."""
    prefix = f"hafw-b-{os.getpid()}-{next(_numbers)}"
    names = [f"{prefix}-{part}" for part in ("sw", "cl", "sv", "gw1", "gw2")]
    with tempfile.TemporaryDirectory(prefix="hafw-b-") as text, _roots(Path(text)):
        folder = Path(text)
        nodes = "".join(NODE.format(n=n, m=128 + n) for n in (1, 2))
        (folder / "cluster.yaml").write_text(
            CONFIG.format(nodes=nodes, hold_s=hold_s, refresh_s=refresh_s)
        )
        key = os.urandom(32)
        for name in ("gw1", "gw2"):
            paths = NodePaths(name)
            for path in (paths.run, paths.etc):
                path.mkdir(mode=0o700, parents=True)
            write_atomically(paths.sync_key, key, mode=0o600)
        try:
            build_network(names, labels=labels)
            spaces = SyncSpaces(prefix, folder)
            try:
                yield spaces
            finally:
                spaces.close()
        finally:
            kill_all_in(names)
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def _roots(folder: Path) -> Iterator[None]:
    """Keep the nodes' files in this folder, for this process and those it starts."""
    wanted = {"HAFW_RUN_ROOT": str(folder / "r"), "HAFW_ETC_ROOT": str(folder / "e")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
