"""What the simulated machines of the lease are made of: clock, disk, gates, syncd, network."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cluster.heartbeat import Codec
from cluster.lease import LeaseCore
from cluster.lease_types import Effect, Event, VoterRecord
from hafw.messages import Position

MS = 1_000_000
PPM = 1_000_000
GROUP = 1
SECOND_GROUP = 2
SEGMENTS = (("lan", "lan0"), ("wan", "wan0"))
HEARTBEAT_NS = 25 * MS
LEASE_NS = 80 * MS
LEASE_NS_MAX = 100 * MS
RESTART_WAIT_NS = 120 * MS
BEACON_NS = 50 * MS
UPSTREAM_NS = 3 * HEARTBEAT_NS
DRIFT_PPM = 10_000
CALM_NS = 8 * LEASE_NS + RESTART_WAIT_NS
"""What has been undisturbed for as long has no excuse."""
NOT_WON: dict[int, tuple[int, bool]] = {}


class ViolationError(AssertionError):
    """A checker found what may never be."""


@dataclass(slots=True)
class Network:
    least_ns: int = 100_000
    """A datagram takes this long, or up to six times as long."""
    loss: float = 0.0
    double: float = 0.0
    slow: float = 0.0
    slow_ns: int = 0
    cut: set[tuple[int, int]] = field(default_factory=set)
    """(from, to) pairs that lose everything."""


@dataclass(slots=True)
class Gate:
    """Deadlines in the node's own clock, as the kernel keeps them."""

    announce_ns: int = 0
    accept_ns: int = 0
    shut_at: int = 0
    """True time when announce was last shut with accept left open."""
    given_to: int = 0
    """Whom the lease was released to since."""


@dataclass(slots=True)
class Lane:
    """What the checkers have seen of one group."""

    index: int
    order: tuple[int, ...]
    holder: int = 0
    """Who opened last."""
    top_epoch: int = 0
    won_last: tuple[int, int] = (0, 0)
    """The highest epoch that was won, and who won it."""
    takeovers: list[tuple[int, int, int]] = field(default_factory=list)
    """(true time, node, epoch) of every new epoch under which a gate opened."""
    moved_at: int = 0
    """When a move was asked last, of whomever."""
    forced_at: int = -(10**18)
    lost_in: frozenset[int] | None = None
    """While nobody holds it: the voter sets in play when the last holder had lost it."""


@dataclass(frozen=True, slots=True)
class Given:
    """A release to a node, whether it reached it or not: no voter is free for that node before
    `kept_until` but by the release, so that voters can tell of the position."""

    epoch: int
    position: Position
    kept_until: int
    process: int


@dataclass(frozen=True, slots=True)
class Owed:
    """A release to a node that reached its process: the position that it must apply first."""

    epoch: int
    position: Position
    told_at: int
    process: int


class Node:
    """A machine: clock, disk and gates live longer than its lease process."""

    __slots__ = (
        "applied",
        "busy_until",
        "codec",
        "core",
        "disk_era",
        "disk_fails",
        "disk_hangs",
        "disk_least_ns",
        "disk_ns",
        "disk_slow_until",
        "disturbed_at",
        "gates",
        "gateway",
        "given",
        "held_up",
        "id",
        "inbox",
        "late",
        "late_ns",
        "lease_ns",
        "offset_ns",
        "owed",
        "paused_until",
        "ppm",
        "process",
        "published",
        "record",
        "segments_down",
        "started_at",
        "syncd_session",
        "syncd_up",
        "synced",
        "todo",
        "unanswered",
        "unanswered_at",
        "wake_at",
    )  # fmt: skip

    def __init__(
        self, node_id: int, groups: tuple[int, ...], *, gateway: bool, ppm: int, offset_ns: int
    ) -> None:
        self.id = node_id
        self.gateway = gateway
        self.ppm = ppm
        self.offset_ns = offset_ns
        self.disk_era = 0
        self.disk_fails = False
        self.disk_ns = MS
        self.disk_least_ns = 0
        self.disk_slow_until = 0
        self.disk_hangs = False
        self.gates = {group: Gate() for group in groups}
        self.core: LeaseCore | None = None
        self.codec: Codec | None = None
        """Seals and opens what goes over the network; None: the objects themselves go."""
        self.process = 0
        self.inbox: deque[Event] = deque()
        self.todo: deque[tuple[Effect, int, dict[int, tuple[int, bool]]]] = deque()
        """Effects not done yet, the local time they were decided at, what was then won."""
        self.paused_until = 0
        self.busy_until = 0
        self.wake_at = -1
        self.late = 0.0
        self.late_ns = 0
        self.held_up = False
        self.syncd_up = True
        self.synced = True
        self.syncd_session = 1
        self.published = 0
        self.applied: dict[tuple[int, int], int] = {}
        self.disturbed_at = 0
        self.started_at = 0
        self.lease_ns = LEASE_NS
        self.segments_down: frozenset[str] = frozenset()
        self.unanswered: frozenset[tuple[int, str]] = frozenset()
        self.unanswered_at = 0
        """When the answers of its upstream checks last changed."""
        self.owed: dict[int, Owed] = {}
        """By group: the last release to this node."""
        self.given: dict[int, Given] = {}
        self.record: VoterRecord | None = None
        """The voters file; None: it is gone."""

    @property
    def gate(self) -> Gate:
        """Of the first group."""
        return self.gates[GROUP]

    def shut(self) -> None:
        """The machine lost its power."""
        self.gates = {group: Gate() for group in self.gates}

    def local(self, t: int) -> int:
        return self.offset_ns + t + t * self.ppm // PPM

    def true(self, local_ns: int) -> int:
        """The last true instant before a deadline of this clock passes."""
        since = local_ns - self.offset_ns
        return since * PPM // (PPM + self.ppm)
