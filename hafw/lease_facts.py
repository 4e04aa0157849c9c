"""What `LeasedStatus` is made of: groups, peers, paths, how late the loop was. Pure types."""

from __future__ import annotations

import msgspec

__all__ = [
    "DampedStatus",
    "GroupLeaseStatus",
    "LinkStatus",
    "LoopDelay",
    "PeerStatus",
    "Spread",
    "VoterSetStatus",
]


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Durations of the last minute, in milliseconds."""

    min_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    count: int


class LoopDelay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How late the daemon's own loop woke: over the last minute, and since its start. Bucket n of
    `buckets` counts what was later than 2^(n-1) and at most 2^n microseconds; `worst_age_s` is how
    long ago the worst was."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    buckets: list[int] = []
    worst_ms: float = 0.0
    worst_age_s: float = 0.0


class LinkStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One path to one peer. `alive`: an authenticated heartbeat came within one lease.
    `round_trip`: out over the fastest path, back over this one; None: not measured yet."""

    name: str
    alive: bool
    age_ms: float | None
    received: int
    round_trip: Spread | None = None


class PeerStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer as heard over authenticated heartbeats. `synced` by group index, as it reports, and
    `upstream`: false if a check of the group fails there. `votes` (in the set in force here) and
    `able` (to carry groups) as its last heartbeat says; `round_trip` over the fastest path."""

    node_id: int
    alive: bool
    proven: bool
    age_ms: float | None
    era: int
    synced: dict[int, bool]
    reasons: dict[int, str]
    rtt_ms: float | None
    links: list[LinkStatus]
    round_trip: Spread | None = None
    votes: bool = False
    able: bool = False
    voters_id: int = 0
    """The number of the voter set that it acts in."""
    upstream: dict[int, bool] = {}


class GroupLeaseStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One group as leased sees it. Deadlines are read back from the kernel map (0 = shut).
    `synced`: this node could carry it now without losing flows; else `reason`."""

    group: int
    active: bool
    epoch: int
    holder_id: int
    lease_left_ms: float
    announce_deadline_ns: int
    accept_deadline_ns: int
    dropped_in: int
    dropped_out: int
    moves: int
    renewals: int
    synced: bool = False
    reason: str = ""


class VoterSetStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A voter set as leased knows it. `stored_by`: the nodes that are known to have it on disk,
    this one included. `settles_ms`: how long until it can be in force; None: a majority of the
    old or of the new set has not stored it yet, or it is in force."""

    id: int
    members: list[int]
    stored_by: list[int]
    settles_ms: float | None = None


class DampedStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node that flapped is not preferred for a group. `losses`, the last one's reason and the
    quiet that is missing (None: the fault lasts) as the node that answers has counted; `told_by`
    are the other nodes that say so, and it alone may be one that does not (`losses` 0)."""

    group: int
    node_id: int
    losses: int
    why: str
    left_s: float | None
    told_by: list[int]
