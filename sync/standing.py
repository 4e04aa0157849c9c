"""Could this node carry this group without losing flows? The judgement "synced". Pure.

A holder is synced while it hears all of its own events. A follower is synced while it has all
that the last known holder had: a finished snapshot, and the stream since without a hole. It
*stays* synced when the holder dies, for then it is the one to take over. It does not stay so when
the holder lives (leased says so) and replication alone is silent: that is the failure which other
tools hide.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GAP_LAG_MAX", "SILENT_S", "FollowFacts", "HoldFacts", "judge_follower", "judge_holder"]

SILENT_S = 1.0
"""Beacons missing this long while the holder's lease lives: replication is silent."""
GAP_LAG_MAX = 512
"""Datagrams behind the sender, at most, to count as in step."""


@dataclass(frozen=True, slots=True)
class HoldFacts:
    """What bears on a holder."""

    overrun: bool
    """Events were lost and the repairing dump is not through."""
    stale: int
    replacing: bool
    """Its own stale entries are being replaced."""
    recovering: bool
    """A restarted syncd has not said all flows again."""


def judge_holder(facts: HoldFacts) -> str:
    """Why not synced; empty if synced."""
    if facts.replacing:
        return f"replacing own stale entries, {facts.stale} known to be left"
    if facts.overrun:
        return "conntrack events were lost; comparing with the table"
    if facts.recovering:
        return "restarted; publishing all flows again"
    return ""


@dataclass(frozen=True, slots=True)
class FollowFacts:
    """What bears on a follower. Ages are against `now`, in seconds."""

    holder: str
    """Name of the last known holder; empty if none is known."""
    holder_is_self: bool
    holder_lives: bool
    """leased says that it holds the lease now."""
    session_accepted: bool
    snapshot_done: bool
    """From this session of this holder, with nothing lost since."""
    caught_up: bool
    """The stream is past the snapshot's start."""
    stale: int
    heard_age_s: float
    gap_age_at_contact_s: float
    lag: int
    beacon_s: float
    table_full: bool
    repair: str = ""
    """What a digest found, and is being repaired."""
    refusal: str = ""
    """Name of the errno with which the kernel refused replicas."""
    unanswered_over: str = ""
    """The links over which the holder was asked for a snapshot, one after the other, and never
    answered; empty if it did, or was not asked over all of them."""


def judge_follower(facts: FollowFacts) -> str:
    """Why not synced; empty if synced."""
    if not facts.holder:
        return "no holder known yet"
    if facts.holder_is_self:
        return ""  # Nobody has held the group since this node did.
    if facts.table_full:
        return "conntrack table full: replicas refused"
    if not facts.session_accepted:
        return f"stream of {facts.holder} not accepted yet"
    if facts.unanswered_over and (facts.stale or not facts.snapshot_done):
        return f"no snapshot from {facts.holder} over {facts.unanswered_over}: no answer"
    if facts.refusal and not facts.snapshot_done:
        return f"kernel refused replicas: {facts.refusal}"
    if facts.stale:
        return f"{facts.stale} stale entries await replacement from {facts.holder}"
    if not facts.snapshot_done:
        return f"snapshot from {facts.holder} not finished"
    if not facts.caught_up:
        return f"catching up with the stream of {facts.holder}"
    if facts.repair:
        return facts.repair
    if facts.holder_lives and facts.heard_age_s > SILENT_S:
        return f"replication from {facts.holder} silent for {facts.heard_age_s:.0f} s"
    if facts.gap_age_at_contact_s > max(facts.beacon_s, 0.02) or facts.lag > GAP_LAG_MAX:
        return f"hole in the stream of {facts.holder}"
    return ""
