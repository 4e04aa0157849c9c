"""Which voter set may follow another one, and for whom it waits to come into force. Pure.

A node follows to a set once its own era has reached that of the nodes that act in it and is above
all it granted in; the set and the era must be durable. A holder that is late with that is heeded
by nobody meanwhile, and one whose voters are late renews by no majority: the lease ends, although
nobody is lost. So the first to act in the set waits until they could follow at once. Heartbeats
tell it: the era, the next set, the highest epoch promised. To wait is always safe.

Bounded by `PATIENCE_WAITS`, as a disk may never answer. Who is not heard is not waited for; while
a group has no holder there is none to keep, and a claim needs the set settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cluster.acceptor import Acceptor
from cluster.lease_types import NEWCOMER, is_sound
from cluster.view import NodeView, PeerView
from hafw.config.model import VoterSet
from hafw.human import epoch_era

__all__ = ["PATIENCE_WAITS", "VOTERS_MAX", "granted_era", "holder_is_held_up", "one_step"]

PATIENCE_WAITS = 5
"""How many times M(1+ε) more a set waits to come into force."""
VOTERS_MAX = 15


def one_step(old: VoterSet, new: VoterSet) -> bool:
    """Whether `new` may follow `old`."""
    return (
        old.id > NEWCOMER
        and is_sound(new)
        and new.id == old.id + 1
        and len(set(old.members) ^ set(new.members)) == 1
        and 0 < len(new.members) <= VOTERS_MAX
    )


def granted_era(acceptors: Iterable[Acceptor]) -> int:
    """The highest era that was promised or granted in here."""
    return max((epoch_era(acceptor.promised) for acceptor in acceptors), default=0)


def holder_is_held_up(
    view: NodeView,
    acceptors: Sequence[Acceptor],
    tellers: Iterable[PeerView],
    voters: VoterSet,
    era: int,
    now_ns: int,
) -> bool:
    """Whether a holder would lose its lease if `voters`, which `tellers` have stored, came into
    force now with `era`: its disk, or those of voters that it needs, do not let them follow."""
    least = max(era, view.era)
    ready = {peer.node_id for peer in tellers if _may_follow(peer, least)}
    if view.era_durable and view.era >= max(least, granted_era(acceptors) + 1):
        ready.add(view.params.node_id)
    holders = {_holder(view, acceptor, now_ns) for acceptor in acceptors}
    if 0 in holders:
        return False
    return not (holders <= ready and len(ready.intersection(voters.members)) >= voters.majority)


def _may_follow(peer: PeerView, era: int) -> bool:
    beat = peer.beat
    if beat is None or beat.era < era:
        return False
    return all(beat.era > epoch_era(group.promised) for group in beat.groups)


def _holder(view: NodeView, acceptor: Acceptor, now_ns: int) -> int:
    """The group's ACTIVE node, as far as is heard; 0: there is none."""
    own = view.params.node_id
    if acceptor.running_for(now_ns) == own:
        return own
    return view.active_peer(acceptor.group, now_ns)[0]
