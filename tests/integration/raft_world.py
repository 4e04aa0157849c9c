"""Three real hafw-raftd in network namespaces, on two links."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.assignment import Command, State, decode_state
from hafw.node.client import Unavailable
from hafw.node.raft_client import RaftClient
from hafw.paths import NodePaths
from hafw.raft_messages import ProposeReply, RaftStatus

CONFIG = """
name: rafttest
nodes:
  gw1:
    id: 1
    segments: {lan: {device: lan0, addresses: [192.0.2.1/24]}}
    links:
      sync0: {device: sync0, address: 203.0.113.1/25}
      sync1: {device: sync1, address: 203.0.113.129/25}
  gw2:
    id: 2
    segments: {lan: {device: lan0, addresses: [192.0.2.2/24]}}
    links:
      sync0: {device: sync0, address: 203.0.113.2/25}
      sync1: {device: sync1, address: 203.0.113.130/25}
  wit:
    id: 9
    role: witness
    links:
      sync0: {device: sync0, address: 203.0.113.9/25}
      sync1: {device: sync1, address: 203.0.113.137/25}
groups:
  main: {index: 1, vrid: 1, order: [gw1, gw2], vips: {lan: [192.0.2.254]}}
"""
KEY = bytes(range(32))
IDS = {"gw1": 1, "gw2": 2, "wit": 9}


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def wait_for(what: str, claim: Callable[[], bool], timeout_s: float = 15.0) -> float:
    """Seconds until the claim holds; fails by name when it does not."""
    begun = time.monotonic()
    while not claim():
        assert time.monotonic() - begun < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begun


class Member:
    """One raftd. `node` is the name it runs under, `place` the namespace it runs in."""

    def __init__(self, world: World, node: str, place: str, root: Path) -> None:
        self._world, self.node, self.place, self.root = world, node, place, root
        self.process: subprocess.Popen[bytes] | None = None
        for folder in ("run", "lib", f"etc/{node}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.write_key(KEY)

    @property
    def environment(self) -> dict[str, str]:
        return {f"HAFW_{n.upper()}_ROOT": str(self.root / n) for n in ("run", "lib", "etc")}

    @property
    def folder(self) -> Path:
        return self.root / "lib" / self.node / "raft"

    @property
    def config(self) -> Path:
        return self._world.config

    @property
    def log(self) -> str:
        return (self.root / "raftd.log").read_text(errors="replace")

    def write_key(self, key: bytes) -> None:
        path = self.root / "etc" / self.node / "raft.key"
        path.write_bytes(key)
        path.chmod(0o600)

    def start(self) -> None:
        with (self.root / "raftd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self._world.space(self.place)}",
                 sys.executable, "-m", "cluster.raftd",
                 "--node", self.node, "--config", str(self._world.config)],
                env=os.environ | self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        code = self.process.wait(10)
        self.process = None
        return code

    def _client(self) -> RaftClient:
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            return RaftClient(NodePaths(self.node))
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def status(self) -> RaftStatus | None:
        answer = self._client().status(2.0)
        return None if isinstance(answer, Unavailable) else answer

    def must(self) -> RaftStatus:
        status = self.status()
        assert status is not None, self.log
        return status

    def state(self) -> State:
        return decode_state(self.must().state)

    def counter(self, name: str) -> int:
        return self.must().counters.get(name, 0)

    def propose(self, command: Command) -> ProposeReply:
        return self._replied(self._client().propose(command))

    def agree(self, command: Command) -> ProposeReply:
        return self._replied(self._client().agree(command))

    @staticmethod
    def _replied(answer: ProposeReply | Unavailable) -> ProposeReply:
        assert not isinstance(answer, Unavailable), answer
        return answer


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"hafw-k{os.getpid()}-"
        self.config = folder / "cluster.yaml"
        self.config.write_text(CONFIG)
        self.members = {n: Member(self, n, n, folder / n) for n in ("gw1", "gw2", "wit")}

    def __getitem__(self, node: str) -> Member:
        return self.members[node]

    def space(self, place: str) -> str:
        return self.prefix + place

    def start(self) -> None:
        for member in self.members.values():
            member.start()
        self.wait_agreed()

    def leader(self, among: list[Member] | None = None) -> str | None:
        """The one that leads, if all of `among` say so and it says so itself."""
        found = [m.status() for m in (among or list(self.members.values()))]
        names = {s.leader_id for s in found if s is not None}
        leads = {s.node_id for s in found if s is not None and s.role == "leader"}
        if None in found or names != leads or len(names) != 1 or names == {0}:
            return None
        return next(n for n, i in IDS.items() if i in names)

    def wait_agreed(self, among: list[Member] | None = None) -> str:
        """A leader, and one state on all of them that is not empty."""
        of = among or list(self.members.values())

        def agreed() -> bool:
            if self.leader(of) is None:
                return False
            states = {m.must().digest for m in of}
            return len(states) == 1 and bool(of[0].state().members)

        wait_for("one leader and one state", agreed)
        leader = self.leader(of)
        while leader is None:
            leader = self.leader(of)
        return leader

    def link(self, node: str, name: str, state: str) -> None:
        run("ip", "-n", self.space(node), "link", "set", name, state)


@contextmanager
def raft_world(folder: Path) -> Iterator[World]:
    world = World(folder)
    switch = world.space("sw")
    places = ["gw1", "gw2", "wit", "odd"]
    hosts = {"gw1": 1, "gw2": 2, "wit": 9, "odd": 17}
    try:
        for space in (switch, *(world.space(p) for p in places)):
            run("ip", "netns", "add", space)
        for number in (0, 1):
            run("ip", "-n", switch, "link", "add", f"br{number}", "type", "bridge")
            run("ip", "-n", switch, "link", "set", f"br{number}", "up")
            for place in places:
                port, device = f"{place}-{number}", f"sync{number}"
                run("ip", "-n", switch, "link", "add", port, "type", "veth",
                    "peer", "name", device, "netns", world.space(place))  # fmt: skip
                run("ip", "-n", switch, "link", "set", port, "master", f"br{number}", "up")
                address = f"203.0.113.{hosts[place] + 128 * number}/25"
                run("ip", "-n", world.space(place), "addr", "add", address, "dev", device)
                run("ip", "-n", world.space(place), "link", "set", device, "up")
        yield world
    finally:
        for member in world.members.values():
            if member.process is not None:
                member.process.kill()
                member.process.wait()
        for space in (switch, *(world.space(p) for p in places)):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
