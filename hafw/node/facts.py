"""What is gathered of a node for its status: the input of `hafw.node.status_rows`. Pure types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hafw.messages import LeasedStatus, SyncdStatus
from hafw.raft_messages import RaftStatus

__all__ = ["DaemonFacts", "DaemonState", "DeviceFacts", "GateFacts", "NodeFacts", "PolicyFacts"]

DaemonState = Literal["up", "starting", "silent", "stopping", "down", "off"]


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """`silent`: the process is there and does not answer. `off`: not meant to run."""

    daemon: str
    state: DaemonState
    pid: int | None = None
    up_s: float | None = None
    restarts: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GateFacts:
    """One group's slot in the pinned map, read by the process that assembles the status."""

    announce_ns: int
    accept_ns: int
    dropped_in: int
    dropped_out: int
    handed_over: int = 0


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A virtual MAC device. None: cannot be seen from the asking process."""

    group: str
    segment: str
    device: str
    present: bool | None
    up: bool | None
    gated: bool | None


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """`in force`; `kept` (a newer one failed, an older one is loaded); `failed` (none is
    loaded); `gone` (somebody removed the tables); `recorded` (hafwd is down: what it loaded)."""

    state: Literal["in force", "kept", "failed", "gone", "recorded", "loading"]
    hash: str | None = None
    generation: int | None = None
    rules: int | None = None
    file: str | None = None
    loaded_at: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Everything gathered on one node at one moment. None: unknown now, the daemon row or an
    alarm says why."""

    node: str
    now_ns: int
    assembled_by: Literal["hafwd", "hafwctl"]
    daemons: list[DaemonFacts]
    leased: LeasedStatus | None
    syncd: SyncdStatus | None
    gates: dict[int, GateFacts] | None
    raft: RaftStatus | None = None
    devices: list[DeviceFacts] = field(default_factory=list)
    policy: PolicyFacts | None = None
    alarms: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
