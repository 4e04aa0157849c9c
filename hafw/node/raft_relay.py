"""What a node tells Raft of its own accord: the groups that it has taken, and why it thinks so.

hafwd sees both: leased, which knows nothing of Raft, and raftd, which must not reach leased. Each
look compares the two; a take that the history does not have is reported by the node that took it,
and again with the next look until a majority has it. Without a Raft leader nothing is lost but
takes of one holder that another follows before there is one again.
"""

from __future__ import annotations

import time

from cluster.assignment import Move, RecordMove, State, decode_state
from hafw.config.model import ClusterConfig
from hafw.messages import LeasedStatus, MoveReply
from hafw.raft_messages import RaftStatus

__all__ = ["planned_move", "unrecorded"]


def unrecorded(
    config: ClusterConfig, leased: LeasedStatus, raft: RaftStatus, *, now_s: float | None = None
) -> list[RecordMove]:
    """The takes of this node that the history lacks; none while Raft is read-only."""
    if raft.read_only:
        return []
    state = decode_state(raft.state)
    at_s = time.time() if now_s is None else now_s
    found = []
    for group in leased.groups:
        if not group.active:
            continue
        name = next((n for n, g in config.groups.items() if g.index == group.group), None)
        known = [move for move in state.history if move.group == name]
        if name is None or any(move.epoch == group.epoch for move in known):
            continue
        before = max(
            (move for move in known if move.epoch < group.epoch),
            key=lambda move: move.epoch,
            default=None,
        )
        from_id = 0 if before is None else before.to_id
        why = _why(config, leased, from_id)
        found.append(
            RecordMove(Move(name, group.epoch, from_id, leased.node_id, round(at_s, 3), why))
        )
    return found


def _why(config: ClusterConfig, leased: LeasedStatus, from_id: int) -> str:
    """A guess from what leased hears now; a planned move is reported by who asked for it."""
    if from_id == 0:
        return "nobody is known to have held it before"
    if from_id == leased.node_id:
        return "claimed anew by its holder"
    peer = next((peer for peer in leased.peers if peer.node_id == from_id), None)
    name = config.node_name(from_id)
    if peer is None or not peer.alive:
        return f"{name} is silent on every link and segment"
    return f"{name} let it go and is alive"


def planned_move(
    config: ClusterConfig,
    state: State,
    reply: MoveReply,
    *,
    group: str,
    target: str,
    asked_on: str,
    now_s: float | None = None,
) -> RecordMove:
    """A hand-over that this node's hafwd was asked for and that was done."""
    earlier = [m for m in state.history if m.group == group and m.epoch < reply.epoch]
    from_id = max(earlier, key=lambda m: m.epoch).to_id if earlier else 0
    at_s = time.time() if now_s is None else now_s
    why = f"planned: hafwctl group move on {asked_on}"
    to_id = config.nodes[target].id
    return RecordMove(Move(group, reply.epoch, from_id, to_id, round(at_s, 3), why, planned=True))
