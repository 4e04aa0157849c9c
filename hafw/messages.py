"""What the daemons of one node say to each other, and the status they give. Pure types.

Transport: one Unix datagram socket each (`hafw.paths.NodePaths`), msgpack of one tagged struct a
datagram, at most `DATAGRAM_BYTES_MAX`. A request is answered to the sender's bound address; a
sender without an address gets no answer. Times are CLOCK_BOOTTIME nanoseconds (`*_ns`), which all
network namespaces of a machine share, unless a name says `_s` (seconds) or `_ms`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from hafw.lease_facts import (
    DampedStatus,
    GroupLeaseStatus,
    LinkStatus,
    LoopDelay,
    PeerStatus,
    Spread,
    VoterSetStatus,
)
from hafw.sync_facts import SyncDigestStatus, SyncPassStatus

__all__ = [
    "DATAGRAM_BYTES_MAX",
    "HEAVY_S_MAX",
    "DampedStatus",
    "GroupLeaseStatus",
    "HeavyWork",
    "LeasedMessage",
    "LeasedStatus",
    "LinkStatus",
    "LoopDelay",
    "MoveReply",
    "MoveRequest",
    "NewEpochRequest",
    "PeerStatus",
    "Position",
    "PositionReply",
    "PositionRequest",
    "RoleChange",
    "Spread",
    "Standing",
    "StatusRequest",
    "SyncBeacon",
    "SyncDigestStatus",
    "SyncGroupStatus",
    "SyncPassStatus",
    "SyncPeerStatus",
    "SyncdMessage",
    "SyncdStatus",
    "VoterSetStatus",
    "VotersReply",
    "VotersRequest",
    "decode_leased",
    "decode_syncd",
    "encode",
]

DATAGRAM_BYTES_MAX = 65536
HEAVY_S_MAX = 5.0
"""Longest that one word about heavy work holds."""


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base: tagged by class name."""


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in one sender's replication stream: everything up to `seq` of `session`."""

    sender_id: int
    session: int
    seq: int


# ---- syncd -> leased ------------------------------------------------------------------------


class SyncBeacon(Message, frozen=True):
    """Every `sync.beacon_ms`, and at once on a change. Stale after 3 beacons = unsynced.

    `synced` is syncd's answer to "could this node carry this group without losing flows?", per
    group index; `reasons` says why not. `applied` is the position applied of each peer's stream.
    `stale_entries` counts entries that still await their pristine replacement.
    """

    synced: dict[int, bool]
    reasons: dict[int, str]
    applied: list[Position]
    stale_entries: int


class PositionReply(Message, frozen=True):
    """Answer to `PositionRequest`: every event of the group read so far is at or before it."""

    group: int
    epoch: int
    position: Position


class NewEpochRequest(Message, frozen=True):
    """A restarted syncd on the ACTIVE node has no registry: leased claims a higher epoch for the
    group this node already holds (DESIGN §6, identity and order)."""

    group: int
    held_epoch: int
    reason: str


# ---- leased -> syncd ------------------------------------------------------------------------


class RoleChange(Message, frozen=True):
    """The role of this node in a group. Sent at each change and repeated every 100 ms.

    `epoch` is the newest epoch known for the group and `holder_id` its node (0 = nobody).
    `contiguous`: this node held the immediately preceding epoch too, so nobody else can have
    carried the group's packets since (its windows are not stale). For role ACTIVE `holder_id` is
    this node.
    """

    group: int
    active: bool
    epoch: int
    holder_id: int
    contiguous: bool


class PositionRequest(Message, frozen=True):
    """In a planned hand-over: drain the event socket, publish, and say the stream position."""

    group: int
    epoch: int


# ---- hafwd or hafwctl -> leased, syncd ---------------------------------------------------------


class StatusRequest(Message, frozen=True):
    """Answered with `LeasedStatus` or `SyncdStatus`."""


class Standing(Message, frozen=True):
    """What Raft has agreed on that ranks candidates; hafwd repeats it. `orders`: best first, by
    group index. `last`: drained nodes, behind all others that are synced. `out`: nodes in
    maintenance, or that left: they claim nothing. `cleared`: how often each node was cleared of
    its losses (`cluster.damping`)."""

    orders: dict[int, list[int]]
    last: list[int]
    out: list[int]
    cleared: dict[int, int] = {}


class HeavyWork(Message, frozen=True):
    """To leased: for `for_s` seconds from now the machine does what may hold up its loop; repeated
    while it lasts, 0 when it is done (`cluster.view.NodeView.lease_asked_ns`)."""

    for_s: Annotated[float, msgspec.Meta(ge=0, le=HEAVY_S_MAX)]


class MoveRequest(Message, frozen=True):
    """Planned hand-over of a group this node holds (or forwarded refusal). `wait_s` bounds how
    long an unsynced target is waited for; 0 refuses at once. `force` (`cluster.asks`): asked of
    the target itself; the votes of a majority it needs all the same."""

    group: int
    target_id: int
    wait_s: float
    force: bool = False


class MoveReply(Message, frozen=True):
    """The outcome: `moved` once the target holds a newer epoch, else why not. Nothing changed if
    `moved` is false and `released` is false; `released` without `moved` means the lease was given
    up and the target did not take it in time (somebody claims it by rank then)."""

    moved: bool
    released: bool
    epoch: int
    reason: str


class VotersRequest(Message, frozen=True):
    """To leased: let this voter set follow the one in force (`cluster.voters`). Asking any node
    is enough, and asking again does no harm."""

    id: Annotated[int, msgspec.Meta(ge=1)]
    members: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=62)]], msgspec.Meta(min_length=1, max_length=62)
    ]


class VotersReply(Message, frozen=True):
    """`reason`: why not; empty if the set is stored here, or about to be."""

    reason: str


# ---- status ------------------------------------------------------------------------------------


class LeasedStatus(Message, frozen=True):
    """hafw-leased's answer to `StatusRequest`. `counters` are refusals and events by name."""

    node_id: int
    pid: int
    session: int
    era: int
    now_ns: int
    may_vote: bool
    votes_from_ns: int
    voters_id: int
    voters_hash: str
    realtime: bool
    groups: list[GroupLeaseStatus]
    peers: list[PeerStatus]
    loop_delay: LoopDelay
    counters: dict[str, int]
    alarms: list[str]
    voters: VoterSetStatus | None = None
    """The set in force here; whether this node is in it says whether it is a voter at all."""
    voters_next: VoterSetStatus | None = None
    voters_lost: bool = False
    """This node has lost its voters file, and does not vote until it is added anew."""
    damped: list[DampedStatus] = []
    lease_ms: float = 0.0
    """What its holders ask for now; `heavy_left_s`: for how long that is a long lease."""
    heavy_left_s: float = 0.0
    two_node: bool = False
    """It runs as one of two nodes of which one may decide alone."""


class SyncGroupStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One group as syncd sees it. `liberal` counts adopted TCP entries whose windows are still
    to be learnt; `stale` those that await a pristine replacement; `own_pass` is the pass of the
    holder that runs, or its last one; `digest` is of a follower."""

    group: int
    active: bool
    epoch: int
    holder_id: int
    synced: bool
    reason: str
    owned: int
    replicas: int
    liberal: int
    stale: int
    own_pass: SyncPassStatus | None = None
    digest: SyncDigestStatus | None = None


class SyncPeerStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer's stream as received. `lag_deltas`: its high-water mark minus what is applied, in
    datagrams; `delay_*_ms`: send to applied, over the last minute."""

    node_id: int
    session: int
    accepted: bool
    applied_seq: int
    high_water_seq: int
    lag_deltas: int
    beacon_age_ms: float | None
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    flows_at_risk: int | None = None
    """Flows first published here that this peer has not confirmed; None if it is not heard."""
    confirm_p50_ms: float | None = None
    confirm_p99_ms: float | None = None
    """Sealed here until applied there, by this node's clock, the peer's answer included."""
    seals_key: int | None = None
    seals_key_s: float = 0.0
    """The key under which its last beacon came, and for how long all of them did."""
    opens_keys: dict[int, int] = {}
    """The keys it opens with, by id: fingerprints."""
    name: str = ""
    over: str = "links"
    """What deltas for it go over: ``links``, or the segment that stands in (``segment lan``);
    empty if neither brings anything of it."""


class SyncdStatus(Message, frozen=True):
    """hafw-syncd's answer to `StatusRequest`."""

    node_id: int
    pid: int
    session: int
    seq: int
    codec: str
    """``native``, or ``reference`` and why in brackets."""
    groups: list[SyncGroupStatus]
    peers: list[SyncPeerStatus]
    counters: dict[str, int]
    alarms: list[str]
    seals_key: int = 0
    opens_keys: dict[int, int] = {}
    """This node's own keys, as in `SyncPeerStatus`."""


class VerifyRequest(Message, frozen=True):
    """To syncd: compare your kernel with your registry now, and the registry with the holder's
    next digest. Answered with `VerifyReply` when done."""


class SyncVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a verification found of one group. `flows` are in the registry, `entries` in the
    kernel; `missing` only in the registry, `left_over` only in the kernel; `stale` in both, but
    another life of the tuple or with windows that may be out of date. `differing`: digest buckets
    that differ from the holder's at its position `seq`; None on the holder, and if no digest came
    (then `error` says so). `error`: why there is no verdict; empty if there is."""

    group: int
    active: bool
    flows: int
    entries: int
    missing: int
    stale: int
    left_over: int
    differing: int | None
    seq: int
    took_s: float
    error: str = ""


class VerifyReply(Message, frozen=True):
    """Answer to `VerifyRequest`."""

    node_id: int
    groups: list[SyncVerdict]


class ResyncRequest(Message, frozen=True):
    """To syncd: fetch full snapshots of all groups that others hold."""


class ResyncReply(Message, frozen=True):
    """Answer to `ResyncRequest`: the groups that are fetched again, and of the others why not."""

    groups: list[int]
    refused: dict[int, str]


LeasedMessage = (
    SyncBeacon
    | PositionReply
    | NewEpochRequest
    | StatusRequest
    | MoveRequest
    | MoveReply
    | Standing
    | HeavyWork
    | VotersRequest
    | VotersReply
    | LeasedStatus
)
SyncdMessage = (
    RoleChange
    | PositionRequest
    | StatusRequest
    | SyncdStatus
    | VerifyRequest
    | VerifyReply
    | ResyncRequest
    | ResyncReply
)

_encoder = msgspec.msgpack.Encoder()
_leased_decoder = msgspec.msgpack.Decoder(LeasedMessage)
_syncd_decoder = msgspec.msgpack.Decoder(SyncdMessage)


def encode(message: LeasedMessage | SyncdMessage) -> bytes:
    """One datagram."""
    return _encoder.encode(message)


def decode_leased(datagram: bytes) -> LeasedMessage:
    """What comes to leased, or its answers. Raises msgspec.DecodeError on anything else
    (and what that leaves out: UnicodeDecodeError; RecursionError for what is nested too deep)."""
    message: LeasedMessage = _leased_decoder.decode(datagram)
    return message


def decode_syncd(datagram: bytes) -> SyncdMessage:
    """What comes to syncd, or its answers. Raises msgspec.DecodeError on anything else
    (and what that leaves out: UnicodeDecodeError; RecursionError for what is nested too deep)."""
    message: SyncdMessage = _syncd_decoder.decode(datagram)
    return message
