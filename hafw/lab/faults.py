"""What drills do to the lab and how they look at it: faults, moves, gates, tables. Shell.

Looking is done at the kernel (gates' pages, conntrack tables, sysctls); only epochs are asked of
the daemons, because the kernel does not know them. Everything that hurts a node is undone by
`Faults.mend`, whatever happened in between.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.gate import GateReader
from hafw.errors import HafwError, RefusedError, StateError
from hafw.flow import IPS_ASSURED, IPS_SEEN_REPLY, FlowEntry, Tuple
from hafw.lab.inside import call_in
from hafw.lab.lab import Lab
from hafw.lab.probe_loop import now_ns
from hafw.lab.probe_process import LineProcess, spawn_here
from hafw.lab.report import StrictReading
from hafw.lab.silence import Direction
from hafw.lab.topology import SWITCH, namespace_of
from hafw.messages import LeasedStatus, MoveRequest
from hafw.node.client import LocalClient, Unavailable
from hafw.node.raft_client import RaftClient
from hafw.paths import NodePaths
from sync.ctsocket import RequestSocket

__all__ = ["DRILL_GROUP", "Faults", "Holder", "Sight", "is_established", "wait_until"]

DRILL_GROUP = "main"
MOVE_WAIT_S = 10.0
DEATH_WAIT_S = 5.0
HOLDER_WAIT_S = 3.0
SLOW_WAIT_S = 10.0
POLL_S = 0.002
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("=16sH22x")
STRICT_SYSCTLS = Path("/proc/sys/net/netfilter")


def wait_until(bound_s: float, claim: Callable[[], bool], *, poll_s: float = POLL_S) -> bool:
    """Poll a claim until it holds; False at the bound."""
    deadline = time.monotonic() + bound_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def is_established(entry: FlowEntry | None) -> bool:
    """TCP: ASSURED. Others: seen in both directions."""
    if entry is None:
        return False
    wanted = IPS_ASSURED if entry.tcp is not None else IPS_SEEN_REPLY
    return bool(entry.status & wanted)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is ACTIVE: by the gates, with the epoch that its leased names (0 = it did not say)."""

    node: str
    epoch: int


class Sight:
    """Looks at the gateways of a lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._group = lab.config.groups[DRILL_GROUP]

    def open_gateways(self) -> list[str]:
        """Gateways whose gate is open for announcing at this moment."""
        return [name for name in self._lab.gateways if self._is_open(name)]

    def _is_open(self, node: str) -> bool:
        try:
            reader = GateReader.open(NodePaths(node))
        except HafwError:
            return False  # No pins: nothing of hafw's can be open.
        try:
            return reader.read(self._group.index).announce_ns > now_ns()
        finally:
            reader.close()

    def holder(self) -> Holder:
        """The one gateway with an open gate. Raises StateError if there is not exactly one
        within `HOLDER_WAIT_S`."""
        found: list[str] = []

        def one() -> bool:
            found[:] = self.open_gateways()
            return len(found) == 1

        if not wait_until(HOLDER_WAIT_S, one):
            raise StateError(f"group {DRILL_GROUP} is ACTIVE on {', '.join(found) or 'no node'}")
        return Holder(found[0], self.epoch(found[0]))

    def _leased(self, node: str) -> LeasedStatus | None:
        answer = LocalClient(NodePaths(node)).ask_leased()
        return None if isinstance(answer, Unavailable) else answer

    def epoch(self, node: str) -> int:
        answer = self._leased(node)
        groups = answer.groups if answer else []
        return next((g.epoch for g in groups if g.group == self._group.index), 0)

    def leased_alarms(self, node: str) -> list[str]:
        """What a node's leased complains of; nothing if it does not answer."""
        answer = self._leased(node)
        return answer.alarms if answer else []

    def path_is_silent(self, node: str, path: str) -> bool:
        """A node shows that nobody is heard over a link or segment, though others are."""
        answer = self._leased(node)
        links = [link for peer in answer.peers for link in peer.links] if answer else []
        heard = {link.name for link in links if link.alive}
        return bool(heard) and path not in heard

    def heard_over(self, node: str, peer: str) -> set[str]:
        """Links and segments over which a node hears a peer. Raises StateError."""
        answer = self._leased(node)
        if answer is None:
            raise StateError(f"hafw-leased on {node} does not say whom it hears")
        peer_id = self._lab.config.nodes[peer].id
        links = [link for p in answer.peers if p.node_id == peer_id for link in p.links]
        return {link.name for link in links if link.alive}

    def rtt_ms(self, node: str, peer: str) -> float:
        """How long a node's leased waits for an answer of a peer's; 0 if it cannot say."""
        peer_id = self._lab.config.nodes[peer].id
        answer = self._leased(node)
        peers = answer.peers if answer else []
        return next((p.rtt_ms or 0.0 for p in peers if p.node_id == peer_id), 0.0)

    def stands_in(self, node: str, peer: str) -> str:
        """The segment over which a node's syncd replicates with a peer because all links to it
        are cut, if both nodes say so; else empty."""
        found = {self._replicates_over(node, peer), self._replicates_over(peer, node)}
        return found.pop() if len(found) == 1 and "links" not in found else ""

    def _replicates_over(self, node: str, peer: str) -> str:
        answer = LocalClient(NodePaths(node)).ask_syncd()
        peers = [] if isinstance(answer, Unavailable) else answer.peers
        return next((p.over for p in peers if p.name == peer), "")

    def is_synced(self, node: str) -> bool:
        """By its syncd's own word, for the group of the drills."""
        answer = LocalClient(NodePaths(node)).ask_syncd()
        groups = [] if isinstance(answer, Unavailable) else answer.groups
        return any(g.group == self._group.index and g.synced for g in groups)

    def raft_leader(self) -> tuple[str, int]:
        """The node that leads and its term, by its own word; ("", 0) if none says so."""
        found = ("", 0)
        for node in self._lab.config.nodes:
            answer = RaftClient(NodePaths(node)).status()
            if not isinstance(answer, Unavailable) and answer.role == "leader":
                found = max(found, (node, answer.term), key=lambda pair: pair[1])
        return found

    def raft_read_only(self, node: str) -> bool:
        """A node's raftd answers that nothing can be agreed on."""
        answer = RaftClient(NodePaths(node)).status()
        return not isinstance(answer, Unavailable) and answer.read_only

    def mute_voters(self) -> list[str]:
        """Nodes whose leased does not answer or may not vote (yet), with the reason."""
        found = []
        for node in self._lab.config.nodes:
            answer = LocalClient(NodePaths(node)).ask_leased()
            if isinstance(answer, Unavailable):
                found.append(f"{node}: {answer.reason}")
            elif not answer.may_vote:
                found.append(f"{node} may not vote yet")
        return found

    def others(self, node: str) -> list[str]:
        return [name for name in self._lab.gateways if name != node]

    def conntrack(self, node: str) -> dict[Tuple, FlowEntry]:
        """A gateway's conntrack table by original tuple."""

        def dump() -> dict[Tuple, FlowEntry]:
            with RequestSocket() as requests:
                return {entry.key.orig: entry for chunk in requests.dump() for entry in chunk}

        return call_in(namespace_of(node), dump)

    def strict(self, when: str) -> list[StrictReading]:
        """tcp_loose and tcp_be_liberal of every gateway."""

        def read() -> tuple[int, int]:
            return (
                int((STRICT_SYSCTLS / "nf_conntrack_tcp_loose").read_text()),
                int((STRICT_SYSCTLS / "nf_conntrack_tcp_be_liberal").read_text()),
            )

        return [
            StrictReading(when, node, *call_in(namespace_of(node), read))
            for node in self._lab.gateways
        ]


class Faults:
    """Hurts nodes and mends them. Each fault returns CLOCK_BOOTTIME ns, just before it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stopped: list[tuple[int, int]] = []
        self._off: set[str] = set()
        self._unplugged: set[tuple[str, str]] = set()
        self._slow: dict[str, LineProcess] = {}

    def silence(self, node: str, direction: Direction = "both") -> int:
        for wire in self._slow.values():
            wire.ask(json.dumps([node]).encode(), timeout_s=SLOW_WAIT_S)
        return self._lab.silence(node, direction=direction)

    def cut(self, node: str, devices: Collection[str]) -> int:
        """Silence on some devices; their carrier stays. `heal` ends it."""
        return self._lab.silence(node, devices=devices)

    def unplug(self, node: str, device: str) -> int:
        """The node's device loses its carrier: its port of the switch goes down."""
        self._unplugged.add((node, device))
        before_ns = now_ns()
        _set_port(f"{node}-{device}", up=False)
        return before_ns

    def plug_in(self, node: str, device: str) -> None:
        _set_port(f"{node}-{device}", up=True)
        self._unplugged.discard((node, device))

    def slow_down(self, host: str, delay_ms: float) -> int:
        """Everything from and to a host takes longer, each way (`hafw.lab.slow_wire`)."""
        arguments = ["--config", str(self._lab.config_file), "--host", host]
        wire = LineProcess(
            spawn_here, "", "hafw.lab.slow_wire", *arguments, "--delay-ms", str(delay_ms)
        )
        self._slow[host] = wire
        wire.ask(b"[]", timeout_s=SLOW_WAIT_S)  # It carries frames: the fast way may go.
        return self._lab.silence(host)

    def speed_up(self, host: str) -> int:
        """End `slow_down`; how many frames were carried slowly."""
        wire = self._slow.pop(host)
        try:
            return int(wire.ask(b"[]", timeout_s=SLOW_WAIT_S))
        finally:
            self._lab.heal(host)
            wire.close()

    def heal(self, node: str) -> None:
        self._lab.heal(node)

    def power_off(self, node: str) -> None:
        """Processes, tables, pins and devices of the node are gone; it is held until `start`."""
        self._off.add(node)
        self._lab.power_off(node)

    def start(self, node: str) -> None:
        self._lab.start(node)
        self._off.discard(node)

    def freeze(self, node: str) -> int:
        """SIGSTOP every process of the node. hafwd goes first, or it would mend the others."""
        pids = self._lab.all_pids(node)
        if not pids:
            raise StateError(f"{node} has no process that could be stopped")
        named = self._lab.pids(node)
        first = named.get("hafwd", 0)
        before_ns = now_ns()
        self._stop(sorted(pids, key=lambda pid: pid != first))
        return before_ns

    def stop(self, node: str, daemon: str) -> int:
        """SIGSTOP one daemon. Raises StateError."""
        pid = self._pid_of(node, daemon, "stopped")
        before_ns = now_ns()
        self._stop([pid])
        return before_ns

    def _stop(self, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # A worker that has just ended.
                os.kill(pid, signal.SIGSTOP)
                self._stopped.append((pid, _start_time(pid)))

    def thaw(self) -> int:
        """SIGCONT everything that `freeze` and `stop` stopped."""
        before_ns = now_ns()
        for pid, started in self._stopped:
            with suppress(ProcessLookupError):
                if _start_time(pid) == started:
                    os.kill(pid, signal.SIGCONT)
        self._stopped = []
        return before_ns

    def kill(self, node: str, daemon: str) -> int:
        """SIGKILL one daemon; returns when the kernel has buried it. Raises StateError."""
        pid = self._pid_of(node, daemon, "killed")
        started = _start_time(pid)
        before_ns = now_ns()
        os.kill(pid, signal.SIGKILL)
        if not wait_until(DEATH_WAIT_S, lambda: _start_time(pid) != started):
            raise StateError(
                f"{daemon} on {node} (pid {pid}) outlived SIGKILL by {DEATH_WAIT_S} s"
            )
        return before_ns

    def restart(self, node: str) -> int:
        """SIGTERM to hafwd: it stops its daemons and ends; labd starts it again."""
        pid = self._pid_of(node, "hafwd", "restarted")
        before_ns = now_ns()
        os.kill(pid, signal.SIGTERM)
        return before_ns

    def _pid_of(self, node: str, daemon: str, what: str) -> int:
        pid = self._lab.pids(node).get(daemon)
        if pid is None:
            raise StateError(f"{daemon} is not running on {node}, so it cannot be {what}")
        return pid

    def move(self, holder: str, target: str) -> int:
        """A planned hand-over. Raises RefusedError with the holder's reason."""
        request = MoveRequest(
            group=self._lab.config.groups[DRILL_GROUP].index,
            target_id=self._lab.config.nodes[target].id,
            wait_s=MOVE_WAIT_S,
        )
        before_ns = now_ns()
        answer = LocalClient(NodePaths(holder)).move(request)
        if isinstance(answer, Unavailable):
            raise RefusedError(f"move from {holder} to {target}: {answer.reason}")
        if not answer.moved:
            raise RefusedError(f"move from {holder} to {target} refused: {answer.reason}")
        return before_ns

    def mend(self) -> None:
        """Undo everything: thaw, heal, plug in, release. Safe at any time, also without a lab."""
        self.thaw()
        for wire in self._slow.values():
            wire.close()
        self._slow.clear()
        if not self._lab.exists():
            return
        self._lab.heal_all()
        for node, device in sorted(self._unplugged):
            self.plug_in(node, device)
        for node in sorted(self._off):
            self._lab.start(node)
        self._off.clear()


def _set_port(port: str, *, up: bool) -> None:
    """A port of the switch, whose other end has carrier while it is up. Raises StateError."""

    def change() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, _IFREQ.pack(port.encode(), 0))
            flags = _IFREQ.unpack(answer)[1]
            wanted = flags | _IFF_UP if up else flags & ~_IFF_UP
            fcntl.ioctl(asking, _SIOCSIFFLAGS, _IFREQ.pack(port.encode(), wanted))

    try:
        call_in(namespace_of(SWITCH), change)
    except OSError as error:
        raise StateError(f"port {port} of the switch: {error.strerror}") from None


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat; 0 if there is no such process, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
