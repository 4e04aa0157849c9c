"""What comes to leased over its local socket, as events of the lease core, and when it is urgent.
Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from cluster.lease_group import GroupCore
from cluster.lease_types import (
    NS_PER_MS,
    Event,
    HeavyUntil,
    MoveAsked,
    StandingSaid,
    SyncdSaid,
    VotersAsked,
)
from hafw.config.model import VoterSet
from hafw.messages import (
    HeavyWork,
    LeasedMessage,
    LeasedStatus,
    MoveReply,
    MoveRequest,
    NewEpochRequest,
    PositionReply,
    Standing,
    StatusRequest,
    SyncBeacon,
    VotersReply,
    VotersRequest,
)

__all__ = ["awaits_syncd", "local_event"]


def awaits_syncd(groups: Iterable[GroupCore]) -> bool:
    """Whether a gate is shut until syncd has spoken, or soon may be. At all other times what
    comes over the local socket does not wake a gateway, whose calm turns its beacons would be a
    third of. It waits for the next turn: at most a heartbeat, and it is taken before anything
    asks how old the last beacon is."""
    return any(
        group.handover.busy
        or group.proposer.claim is not None
        or (group.proposer.held is not None and not group.proposer.held.opened)
        for group in groups
    )


def local_event(message: LeasedMessage, sender: str, now_ns: int) -> Event | None:
    """None: a question that is not the core's, or what nobody sends to leased. `sender` is where
    an answer would go."""
    match message:
        case SyncBeacon() | PositionReply() | NewEpochRequest():
            return SyncdSaid(message)
        case MoveRequest():
            return MoveAsked(sender, message)
        case Standing():
            return StandingSaid(message)
        case HeavyWork(for_s):
            return HeavyUntil(now_ns + int(for_s * 1000) * NS_PER_MS)
        case VotersRequest(number, members):
            return VotersAsked(sender, VoterSet(id=number, members=tuple(members)))
        case StatusRequest() | MoveReply() | VotersReply() | LeasedStatus():
            return None
        case _:
            assert_never(message)
