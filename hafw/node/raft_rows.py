"""What `hafwctl status` and `hafwctl cluster` show of Raft. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cluster.assignment import State, assigned, decode_state, find_member, outsiders
from hafw.config.model import ClusterConfig
from hafw.human import format_epoch
from hafw.messages import LeasedStatus
from hafw.node.voters import change_words
from hafw.raft_messages import RaftStatus

__all__ = [
    "assigned_node",
    "group_rows",
    "history_rows",
    "member_rows",
    "member_state",
    "raft_row",
    "target_problem",
]

Row = dict[str, Any]


def raft_row(config: ClusterConfig, node: str, raft: RaftStatus) -> Row:
    """The row of the table ``raft``."""
    state = decode_state(raft.state)
    return {
        "node": node,
        "role": raft.role,
        "leader": config.node_name(raft.leader_id),
        "term": raft.term,
        "commit": raft.commit,
        "applied": raft.applied,
        "quorum": raft.quorum,
        "read_only": raft.read_only,
        "connected": sum(peer.connected for peer in raft.peers),
        "peers": len(raft.peers),
        "entries": raft.entries,
        "recovering": raft.recovering,
        "members": len(state.members),
        "moves": len(state.history),
        "digest": raft.digest,
    }


def assigned_node(raft: RaftStatus | None, group: str) -> str | None:
    """Who should hold the group; None if raftd does not answer or knows nobody."""
    return None if raft is None else assigned(decode_state(raft.state), group)


def member_rows(raft: RaftStatus, leased: LeasedStatus | None) -> list[Row]:
    """`in_raft`, `in_lease`: heard by this node's raftd and leased; True for itself. `votes`: in
    the voter set in force, as its leased says; `voting`: the change of that under way. None:
    leased cannot be asked. A voter that is no member has a row, too."""
    state = decode_state(raft.state)
    voters = None if leased is None else leased.voters
    known = {member.id for member in state.members}
    strangers = [] if voters is None else [node for node in voters.members if node not in known]
    in_raft = {peer.node_id for peer in raft.peers if peer.connected} | {raft.node_id}
    in_lease: set[int] | None = None
    if leased is not None:
        in_lease = {peer.node_id for peer in leased.peers if peer.alive} | {leased.node_id}
    return [
        {
            "member": member.name,
            "id": member.id,
            "role": member.role,
            "state": member.state,
            "why": member.why,
            "votes": None if voters is None else voters.id > 0 and member.id in voters.members,
            "voting": change_words(leased, member),
            "raft": _place(raft, member.id),
            "in_raft": member.id in in_raft,
            "in_lease": None if in_lease is None else member.id in in_lease,
            "addresses": [f"{link} {at}" for link, at in sorted(member.addresses.items())],
        }
        for member in state.members
    ] + [_outsider_row(state, leased, node_id, in_raft) for node_id in strangers]


def _outsider_row(
    state: State, leased: LeasedStatus | None, node_id: int, in_raft: set[int]
) -> Row:
    """A voter in force that cluster.yaml, as agreed on, does not have."""
    wish = next((m for m in outsiders(state) if m.id == node_id), None)
    return {
        "member": f"node{node_id}",
        "id": node_id,
        "role": None,
        "state": "not in cluster.yaml",
        "why": "",
        "votes": True,
        "voting": "" if wish is None else change_words(leased, wish),
        "raft": "-",
        "in_raft": node_id in in_raft,
        "in_lease": False,
        "addresses": [],
    }


def member_state(raft: RaftStatus | None, node: str) -> str | None:
    """Of a node, as agreed on; None if raftd does not answer or does not know it."""
    member = None if raft is None else find_member(decode_state(raft.state), node)
    return None if member is None else member.state


def target_problem(state: State, node: str, *, force: bool = False) -> str:
    """Why nothing should be moved to the node, as agreed on, with the way out; empty: it may."""
    member = find_member(state, node)
    if member is None:
        return ""
    if member.state == "left":
        return f"{node} has left: first hafwctl node join {node}"
    if member.state == "maintenance" or (member.state == "draining" and not force):
        words = "in maintenance" if member.state == "maintenance" else "being drained"
        return f"{node} is {words}: first hafwctl node online {node}"
    if member.votes == "no" and not force:
        return f"{node} is not to vote any more: first hafwctl cluster voters --add {node}"
    return ""


def group_rows(state: State) -> list[Row]:
    """`order_from`: cluster.yaml, or an operator."""
    return [
        {
            "group": group.name,
            "order": list(group.ranked),
            "order_from": "hafwctl" if group.preferred else "cluster.yaml",
            "preempt": group.preempt,
            "preempt_after_s": group.preempt_after_s if group.preempt else None,
            "assigned": assigned(state, group.name),
        }
        for group in state.groups
    ]


def _place(raft: RaftStatus, member: int) -> str:
    if member == raft.leader_id:
        return "leader"
    return raft.role if member == raft.node_id else "-"


def history_rows(config: ClusterConfig, state: State) -> list[Row]:
    """Oldest first. A node that was damped stands in ``from``, without an epoch."""
    moves = [
        {
            "when": _when(move.at_s),
            "group": move.group,
            "from": config.node_name(move.from_id),
            "to": config.node_name(move.to_id),
            "epoch": format_epoch(move.epoch),
            "planned": move.planned,
            "why": move.why,
        }
        for move in state.history
    ]
    damped = [
        {
            "when": _when(at.at_s), "group": at.group, "from": config.node_name(at.node_id),
            "to": "-", "epoch": "-", "planned": False,
            "why": f"damped after {at.losses} losses: {at.why}",
        }
        for at in state.damped
    ]  # fmt: skip
    return sorted([*moves, *damped], key=lambda row: str(row["when"])) if damped else moves


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
