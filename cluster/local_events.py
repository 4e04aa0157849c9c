"""What comes to leased over its local socket, as events of the lease core. Pure."""

from __future__ import annotations

from typing import assert_never

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

__all__ = ["local_event"]


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
