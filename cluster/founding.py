"""Who founds: how set 1 comes to be, and what a new node is until it knows a set. Pure.

A node without a voters file does not know whether it is one of the first of its cluster, was
added to cluster.yaml later, or was installed anew. It tells set 0 with the nodes of its file, in
which nobody votes, until one of two things happens:

- It hears **all** the nodes of its file, and each tells set 0 with the very same nodes, or set 1
  of them with nothing to follow. Then it acts in set 1, too.
- It hears a node that acts in any other set. Then it follows it, as everybody does; if it is a
  voter there, it may have told what it no longer knows: it is `lost` (`cluster.voters`, rule 5).

So nodes that are new in a cluster never act in a set of their own, however many they are: a node
that was there before them tells no set 0 of theirs. And a voter that was installed anew votes
again only in a set 1 in which nobody has stored set 2: had it told that one with others, enough to
put it into force, one of those would tell it still.
"""

from __future__ import annotations

from cluster.lease_types import FIRST_SET, NEWCOMER
from cluster.view import NodeView, PeerView
from hafw.config.model import VoterSet

__all__ = ["first_set", "founders_missing"]


def first_set(view: NodeView) -> VoterSet:
    """What a newcomer's cluster.yaml would found."""
    return VoterSet(id=FIRST_SET, members=view.voters.members)


def founders_missing(view: NodeView, now_ns: int) -> list[int]:
    """The nodes of a newcomer's file that keep it from founding: not heard, or of another mind."""
    agree = {
        peer.node_id for peer in view.alive_peers(now_ns) if _founds(peer, view.voters.members)
    }
    return sorted(set(view.voters.members) - agree - {view.params.node_id})


def _founds(peer: PeerView, members: tuple[int, ...]) -> bool:
    beat = peer.beat
    return (
        beat is not None
        and beat.era > 0
        and beat.voters.id in (NEWCOMER, FIRST_SET)
        and beat.voters.members == members
        and beat.next is None
    )
