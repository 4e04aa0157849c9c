"""Gather what `hafwctl status` shows of one node, now. Shell; the rows are made by
`hafw.node.status_rows`.

hafwd gathers for its API; `hafwctl` asks it, and gathers by itself what can be seen without hafwd
if that is down or hangs. Whoever gathers reads the gate's deadlines from the pinned map itself.
What cannot be learnt now is None and the reason stands beside it; nothing is remembered.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from cluster.gate import attached
from cluster.gate_page import GateReader
from hafw.config.model import ClusterConfig
from hafw.errors import HafwError, PeerError, StateError
from hafw.instance import process_state, running_pid
from hafw.kernel import netns
from hafw.node import api
from hafw.node.client import LocalClient, Unavailable, ask_hafwd
from hafw.node.parts import policy_in_kernel
from hafw.node.policy import read_policy_record
from hafw.node.raft_client import RaftClient
from hafw.node.status_rows import (
    DaemonFacts,
    DaemonState,
    DeviceFacts,
    GateFacts,
    NodeFacts,
    PolicyFacts,
    Tables,
    build_tables,
)
from hafw.paths import NodePaths

__all__ = [
    "collect_status",
    "daemon_facts",
    "gather_directly",
    "now_ns",
    "read_devices",
    "read_gates",
]

_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1


def now_ns() -> int:
    """CLOCK_BOOTTIME, the clock of the gate's deadlines."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def collect_status(
    config: ClusterConfig | Callable[[], ClusterConfig], node: str, paths: NodePaths
) -> Tables:
    """The tables of one node: from its hafwd if it answers, else gathered here, for which the
    configuration is needed (given, or by a function). Blocking; at most about 3 s. A daemon that
    is down is no error: its row says so. Raises ConfigError, StateError, PeerError."""
    reply = ask_hafwd(paths, api.Status())
    if isinstance(reply, Unavailable):
        known = config() if callable(config) else config
        if node not in known.nodes:
            raise StateError(f"no node is named {node}; there are {', '.join(known.nodes)}")
        return build_tables(known, gather_directly(known, node, paths, hafwd=reply))
    if not reply.ok:
        raise PeerError(f"hafwd of {node} refused to give its status: {reply.error}")
    return reply.result


def gather_directly(
    config: ClusterConfig, node: str, paths: NodePaths, *, hafwd: Unavailable
) -> NodeFacts:
    """Without hafwd: the other daemons, the gate and the record of the policy."""
    client = LocalClient(paths)
    leased, syncd = client.ask_leased(), None
    daemons = [
        _hafwd_facts(paths, hafwd),
        daemon_facts(paths, "leased", leased),
    ]
    if config.nodes[node].role == "gateway":
        if config.sync.enabled:
            syncd = client.ask_syncd()
            daemons.append(daemon_facts(paths, "syncd", syncd))
        else:
            daemons.append(SYNC_DISABLED)
    raft = RaftClient(paths).status()
    daemons.append(daemon_facts(paths, "raftd", raft))
    alarms: list[str] = []
    gates = read_gates(config, node, paths, alarms)
    return NodeFacts(
        node=node,
        now_ns=now_ns(),
        assembled_by="hafwctl",
        daemons=daemons,
        leased=None if isinstance(leased, Unavailable) else leased,
        syncd=None if isinstance(syncd, Unavailable) else syncd,
        raft=None if isinstance(raft, Unavailable) else raft,
        gates=gates,
        devices=_devices_from_outside(config, node, paths),
        policy=_recorded_policy(config, node, paths),
        alarms=alarms,
    )


SYNC_DISABLED = DaemonFacts("syncd", "off", reason="sync.enabled is false: nothing is replicated")


def daemon_facts(
    paths: NodePaths,
    daemon: str,
    answer: object,
    *,
    restarts: int | None = None,
    reason_down: str = "",
) -> DaemonFacts:
    """A daemon's row from its lock, its process and whether it answered just now."""
    pid = running_pid(paths, daemon)
    found = None if pid is None else process_state(pid)
    if pid is None or found is None:
        return DaemonFacts(daemon, "down", restarts=restarts, reason=reason_down)
    letter, up_s = found
    state: DaemonState = "up"
    reason = ""
    if isinstance(answer, Unavailable):
        reason = answer.reason
        state = "silent"
        if letter in "Tt":
            reason = "the process is stopped (SIGSTOP or a debugger)"
        elif answer.state == "down":
            state = "starting"
    return DaemonFacts(daemon, state, pid, up_s, restarts, reason)


def read_gates(
    config: ClusterConfig, node: str, paths: NodePaths, alarms: list[str]
) -> dict[int, GateFacts] | None:
    """The deadlines as the kernel has them; None, and a line in `alarms`, if there is no gate."""
    if config.nodes[node].role != "gateway":
        return None
    try:
        reader = GateReader.open(paths)
    except (HafwError, OSError) as error:
        alarms.append(f"the gate cannot be read: {error}")
        return None
    try:
        if reader.always_pass:
            alarms.append("UNSAFE: this gate always passes (a drill's variant): no exclusivity")
        gates = {}
        for group in config.groups.values():
            deadlines = reader.read(group.index)
            dropped_in, dropped_out = reader.dropped(group.index)
            gates[group.index] = GateFacts(
                deadlines.announce_ns,
                deadlines.accept_ns,
                dropped_in,
                dropped_out,
                reader.handed_over(group.index),
            )
        return gates
    finally:
        reader.close()


def read_devices(config: ClusterConfig, node: str, paths: NodePaths) -> list[DeviceFacts]:
    """The virtual MAC devices of this node's groups, seen in the calling thread's network
    namespace."""
    facts = []
    for name, group in config.groups.items():
        if node not in group.order:
            continue
        for segment in group.vips:
            device = group.device(segment)
            up = _device_up(device)
            gated = _gated(paths, device) if up is not None else False
            facts.append(DeviceFacts(name, segment, device, up is not None, bool(up), gated))
    return facts


def _devices_from_outside(config: ClusterConfig, node: str, paths: NodePaths) -> list[DeviceFacts]:
    """The same, from whatever namespace."""
    try:
        with _inside(node, paths):
            return read_devices(config, node, paths)
    except HafwError:
        return [
            DeviceFacts(name, segment, group.device(segment), None, None, None)
            for name, group in config.groups.items()
            if node in group.order
            for segment in group.vips
        ]


def _inside(node: str, paths: NodePaths) -> AbstractContextManager[None]:
    """The node's network namespace, from whatever namespace: that of a daemon of the node, or of
    the lab's node; without either, this process is taken to be in the right one."""
    home = netns.path_of(f"hafw-{node}")
    for daemon in ("hafwd", "leased", "syncd", "raftd"):
        pid = running_pid(paths, daemon)
        if pid is not None:
            home = Path(f"/proc/{pid}/ns/net")
    return netns.entered(home) if home.exists() else nullcontext()


def _gated(paths: NodePaths, device: str) -> bool | None:
    try:
        return attached(paths, device)
    except (HafwError, OSError):
        return None


def _device_up(device: str) -> bool | None:
    """None if there is no such device in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        try:
            answer = fcntl.ioctl(ask, _SIOCGIFFLAGS, struct.pack("16sH14x", device.encode(), 0))
        except OSError:
            return None
    return bool(struct.unpack_from("16xH", answer)[0] & _IFF_UP)


def _hafwd_facts(paths: NodePaths, answer: Unavailable) -> DaemonFacts:
    return daemon_facts(
        paths, "hafwd", answer, reason_down="nothing restarts the other daemons meanwhile"
    )


def _recorded_policy(config: ClusterConfig, node: str, paths: NodePaths) -> PolicyFacts | None:
    if config.nodes[node].role != "gateway":
        return None
    record = read_policy_record(paths)
    if record is None:
        return PolicyFacts("failed", error="hafwd is down and left no record of a loaded policy")
    try:
        with _inside(node, paths):
            there, error = policy_in_kernel(), ""
    except HafwError as failure:
        there, error = True, f"whether it is still there is unknown: {failure}"
    if not there:
        return PolicyFacts("gone", file=record.file, error="hafwd is down: nobody loads it again")
    return PolicyFacts(
        "recorded",
        record.hash,
        record.generation,
        record.rules,
        record.file,
        record.loaded_at,
        error=error,
    )
