"""Events into the lease core, effects out of it, and the parameters it runs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cluster.heartbeat import Envelope
from hafw.config.model import (
    DRIFT,
    LEASE_MS_MAX,
    RESTART_WAIT_MS,
    ClusterConfig,
    VoterSet,
)
from hafw.messages import (
    MoveReply,
    MoveRequest,
    NewEpochRequest,
    PositionReply,
    RoleChange,
    Standing,
    SyncBeacon,
)

__all__ = [
    "FIRST_SET",
    "NEWCOMER",
    "NS_PER_MS",
    "Announce",
    "Arrived",
    "AskPosition",
    "DampingParams",
    "Effect",
    "EraFailed",
    "EraPersisted",
    "Event",
    "GroupParams",
    "HeavyUntil",
    "LeaseParams",
    "MoveAsked",
    "Note",
    "PersistEra",
    "PersistVoters",
    "ReplyMove",
    "ReplyVoters",
    "Rng",
    "SegmentsDown",
    "Send",
    "SetGate",
    "StandingSaid",
    "StopAsked",
    "SyncdSaid",
    "TellSyncd",
    "Unreadable",
    "VoterRecord",
    "VotersAsked",
    "VotersFailed",
    "VotersPersisted",
    "is_sound",
]

NS_PER_MS = 1_000_000
PPM = 1_000_000
UPSTREAM_BEATS = 3
NEWCOMER = 0
"""The number of the set that no node votes in: what a new node's cluster.yaml says."""
FIRST_SET = 1
VOTER_ID_MAX = 62
SET_ID_MAX = (1 << 63) - 1


class Rng(Protocol):
    """The injected random source (`random.Random` has it)."""

    def randrange(self, stop: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class GroupParams:
    """A group and its candidates by id, best first; its segments here, as (name, device)."""

    index: int
    order: tuple[int, ...]
    segments: tuple[tuple[str, str], ...] = ()
    upstream_ns: int = 0
    """For how long a peer's upstream check must be better than the own one to be worth a move:
    the checks of one far side that comes or goes differ by an interval, as heard."""


def is_sound(voters: VoterSet) -> bool:
    """Whether the set can be one: ascending ids, each once."""
    members = voters.members
    if not members or members != tuple(sorted(set(members))):
        return False
    return members[0] > 0 and members[-1] <= VOTER_ID_MAX and 0 <= voters.id <= SET_ID_MAX


@dataclass(frozen=True, slots=True)
class VoterRecord:
    """What a node keeps of voter sets over restarts: the one in force, the one stored to follow
    it, and whether it once lost what it had stored: then it does not vote (`cluster.voters`)."""

    current: VoterSet
    next: VoterSet | None = None
    lost: bool = False

    @classmethod
    def newcomer(cls, founders: VoterSet) -> VoterRecord:
        """Of a node that knows its cluster.yaml alone (`cluster.founding`)."""
        return cls(VoterSet(id=NEWCOMER, members=founders.members))


@dataclass(frozen=True, slots=True)
class DampingParams:
    """Losses until a node is damped, and how long it must then be quiet (`cluster.damping`)."""

    losses: int
    quiet_ns: int
    quiet_ns_max: int


@dataclass(frozen=True, slots=True)
class LeaseParams:
    """Everything the core is configured with. Times in nanoseconds of the node's own clock.
    `voters` is the set that the cluster was founded with, `nodes` are all nodes, voters or not
    (none named: the founders)."""

    node_id: int
    gateway: bool
    voters: VoterSet
    groups: tuple[GroupParams, ...]
    heartbeat_ns: int
    lease_ns: int
    restart_wait_ns: int = RESTART_WAIT_MS * NS_PER_MS
    lease_ns_max: int = LEASE_MS_MAX * NS_PER_MS
    beacon_ns: int = 20 * NS_PER_MS
    announce_interval_ns: int = 10_000 * NS_PER_MS
    drift_ppm: int = int(DRIFT * PPM)
    two_node: bool = False
    """Two voters, of which one may decide alone (`cluster.pair`)."""
    nodes: tuple[int, ...] = ()
    damping: DampingParams | None = None

    @classmethod
    def from_config(cls, config: ClusterConfig, node_name: str) -> LeaseParams:
        node = config.nodes[node_name]
        return cls(
            node_id=node.id,
            gateway=node.role == "gateway",
            voters=config.voters,
            nodes=tuple(sorted(node.id for node in config.nodes.values())),
            groups=tuple(
                GroupParams(
                    group.index,
                    tuple(config.nodes[name].id for name in group.order),
                    tuple(
                        (segment, node.segments[segment].device)
                        for segment in sorted(group.vips)
                        if segment in node.segments
                    ),
                    max((at.interval_ms for at in group.upstream.values()), default=0) * NS_PER_MS
                    + UPSTREAM_BEATS * config.lease.heartbeat_ms * NS_PER_MS,
                )
                for group in config.groups.values()
            ),
            heartbeat_ns=config.lease.heartbeat_ms * NS_PER_MS,
            lease_ns=config.lease.lease_ms * NS_PER_MS,
            beacon_ns=config.sync.beacon_ms * NS_PER_MS,
            announce_interval_ns=int(config.lease.announce_interval_s * 1e9),
            two_node=config.quorum == "two-node",
            damping=DampingParams(
                config.damping.losses,
                config.damping.quiet_s * 1000 * NS_PER_MS,
                config.damping.quiet_s_max * 1000 * NS_PER_MS,
            )
            if config.damping.losses
            else None,
        )

    def shorter(self, duration_ns: int) -> int:
        """T(1-ε), rounded down: what the holder may use of its own clock."""
        return duration_ns - -(-duration_ns * self.drift_ppm // PPM)

    def longer(self, duration_ns: int) -> int:
        """T(1+ε), rounded up: what a voter waits by its own clock."""
        return duration_ns + -(-duration_ns * self.drift_ppm // PPM)


# ---- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """An authenticated envelope. `now_ns` must be read after it was received: a grant counts from
    then, and a grant dated before the request was sent would end too early."""

    sender: int
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class SyncdSaid:
    message: SyncBeacon | PositionReply | NewEpochRequest


@dataclass(frozen=True, slots=True)
class EraPersisted:
    """The era file holds `era` and both it and its folder are fsynced."""

    era: int


@dataclass(frozen=True, slots=True)
class EraFailed:
    era: int
    error: str


@dataclass(frozen=True, slots=True)
class VotersPersisted:
    """The voters file holds `record`, fsynced like the era file."""

    record: VoterRecord


@dataclass(frozen=True, slots=True)
class VotersFailed:
    error: str


@dataclass(frozen=True, slots=True)
class VotersAsked:
    """Somebody on this node wants `voters` to follow the set in force. Asked again until done;
    `token` comes back in `ReplyVoters`."""

    token: str
    voters: VoterSet


@dataclass(frozen=True, slots=True)
class MoveAsked:
    """A local request; `token` comes back in `ReplyMove`."""

    token: str
    request: MoveRequest


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A clean stop: shut the gates, release, claim no more."""


@dataclass(frozen=True, slots=True)
class SegmentsDown:
    """Exactly these segments of this node have no carrier now, and the upstream checks of exactly
    these groups on these segments get no answer."""

    names: frozenset[str]
    unanswered: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class HeavyUntil:
    """The machine is busy until then, as somebody on this node says: leases may be renewed late,
    so holders ask for long ones. 0: it is done."""

    until_ns: int


@dataclass(frozen=True, slots=True)
class StandingSaid:
    """What Raft has agreed on, as hafwd says it, or as it was when it was written last."""

    standing: Standing


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A lease datagram of this cluster that cannot be read, and that in all likelihood only the
    peer can have sent: it came over a link, or is sealed with our key. Another key, another
    release: somebody lives there."""


Event = (
    Arrived
    | SyncdSaid
    | EraPersisted
    | EraFailed
    | VotersPersisted
    | VotersFailed
    | VotersAsked
    | MoveAsked
    | StopAsked
    | SegmentsDown
    | StandingSaid
    | HeavyUntil
    | Unreadable
)


# ---- effects --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Seal and send to node `to` (0: all), over every link. Must leave after the core was called:
    a holder's deadline counts from the `now_ns` of the call that made the envelope."""

    to: int
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class SetGate:
    """Store absolute deadlines (opening: accept first; closing: announce first). 0 = shut."""

    group: int
    announce_ns: int
    accept_ns: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Gratuitous ARP and unsolicited NA for the group's VIPs."""

    group: int


@dataclass(frozen=True, slots=True)
class PersistEra:
    """Write the era file off the loop; answered by `EraPersisted` or `EraFailed`."""

    era: int


@dataclass(frozen=True, slots=True)
class PersistVoters:
    """Write the voters file off the loop; answered by `VotersPersisted` or `VotersFailed`."""

    record: VoterRecord


@dataclass(frozen=True, slots=True)
class ReplyVoters:
    """`reason`: why the set is not stored to follow; empty if it is or will be."""

    token: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellSyncd:
    message: RoleChange


@dataclass(frozen=True, slots=True)
class AskPosition:
    group: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ReplyMove:
    token: str
    reply: MoveReply


@dataclass(frozen=True, slots=True)
class Note:
    """A transition worth a log line: a stable name and facts."""

    event: str
    facts: tuple[tuple[str, int | str | bool], ...] = ()


Effect = (
    Send
    | SetGate
    | Announce
    | PersistEra
    | PersistVoters
    | TellSyncd
    | AskPosition
    | ReplyMove
    | ReplyVoters
    | Note
)
