"""What the cluster has agreed on: members, voters, orders, policy generation, moves. Pure.

The replicated state machine behind Raft: `apply(state, command)` gives the next state, or the same
state and why not. It is a function of its arguments alone; whoever proposes stamps the time. A
refusal changes nothing, so nodes that apply the same commands in the same order have the same
state, byte for byte (`digest`).

It *assigns*; the lease *executes*. Nothing here opens or shuts a gate, and a cluster whose Raft is
gone goes on with the leases it has. Members, roles, addresses, orders and founders come from
cluster.yaml (`Configure`, proposed by the leader when its file says otherwise); states, who is to
vote, preemption, tokens, policy generation and history live only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, assert_never

import msgspec

from cluster.agreed import (
    DAMPED_MAX,
    HISTORY_MAX,
    TOKENS_MAX,
    AddToken,
    ClearLosses,
    Command,
    Configure,
    DampedNode,
    Dropped,
    DropVoter,
    Group,
    Join,
    Leave,
    Member,
    MemberState,
    Move,
    RecordDamped,
    RecordMove,
    SetGroup,
    SetMemberState,
    SetOrder,
    SetPolicy,
    SetVotes,
    State,
    Token,
    Voters,
    decode_command,
    decode_state,
    digest,
    encode,
    hash_token,
)

__all__ = [
    "DAMPED_MAX",
    "HISTORY_MAX",
    "TOKENS_MAX",
    "AddToken",
    "ClearLosses",
    "Command",
    "Configure",
    "DampedNode",
    "Group",
    "Join",
    "Leave",
    "Member",
    "MemberState",
    "Move",
    "RecordDamped",
    "RecordMove",
    "SetGroup",
    "SetMemberState",
    "SetOrder",
    "SetPolicy",
    "SetVotes",
    "State",
    "Token",
    "Voters",
    "apply",
    "assigned",
    "decode_command",
    "decode_state",
    "digest",
    "encode",
    "find_group",
    "find_member",
    "hash_token",
    "outsiders",
]


DAMPED_AGAIN_S = 30.0
"""What is reported within this time is the same event, seen by another node."""


def apply(state: State, command: Command) -> tuple[State, str]:
    """The next state and an empty text, or the same state and why not."""
    match command:
        case Configure():
            return _configure(state, command)
        case SetMemberState():
            return _set_member_state(state, command)
        case SetGroup(name, preempt, after_s):
            group = _find(state.groups, name)
            if group is None:
                return state, f"there is no group {name}"
            return _with_group(
                state, msgspec.structs.replace(group, preempt=preempt, preempt_after_s=after_s)
            ), ""
        case SetOrder(name, order):
            return _set_order(state, name, order)
        case SetPolicy(generation, hash_):
            if generation <= state.policy_generation:
                return state, f"generation {generation} is not above {state.policy_generation}"
            return msgspec.structs.replace(
                state, policy_generation=generation, policy_hash=hash_
            ), ""
        case RecordMove(move):
            return _record(state, move)
        case RecordDamped(damped):
            return _record_damped(state, damped)
        case ClearLosses(name):
            member = _find(state.members, name)
            if member is None:
                return state, f"there is no member {name}"
            cleared = msgspec.structs.replace(member, cleared=member.cleared + 1)
            return _with_member(state, cleared), ""
        case AddToken():
            return _add_token(state, command)
        case Join():
            return _join(state, command)
        case Leave():
            return _leave(state, command)
        case SetVotes():
            return _set_votes(state, command)
        case DropVoter():
            return _drop_voter(state, command)
        case _:
            assert_never(command)


def _configure(state: State, command: Configure) -> tuple[State, str]:
    for what, values in (
        ("member name", [m.name for m in command.members]),
        ("member id", [m.id for m in command.members]),
        ("group name", [g.name for g in command.groups]),
        ("group index", [g.index for g in command.groups]),
    ):
        if len(set(values)) != len(values):
            return state, f"a {what} is used twice"
    names = {member.name for member in command.members}
    strangers = {name for group in command.groups for name in group.order} - names
    if strangers:
        return state, f"{', '.join(sorted(strangers))} is in a group's order and no member"
    members = []
    for member in command.members:
        known = _find(state.members, member.name)
        if known is not None:
            member = msgspec.structs.replace(
                member, state=known.state, why=known.why, since_s=known.since_s,
                cleared=known.cleared, votes=known.votes, forced=known.forced,
            )  # fmt: skip
        elif not state.members:
            member = msgspec.structs.replace(member, votes="yes")
        members.append(member)
    groups = []
    for group in command.groups:
        before = _find(state.groups, group.name)
        if before is not None:
            group = msgspec.structs.replace(
                group,
                preempt=before.preempt,
                preempt_after_s=before.preempt_after_s,
                preferred=before.preferred if before.order == group.order else (),
            )
        groups.append(group)
    ids = {member.id for member in members}
    return msgspec.structs.replace(
        state, members=tuple(members), groups=tuple(groups), voters=command.voters,
        dropped=tuple(dropped for dropped in state.dropped if dropped.id not in ids),
    ), ""  # fmt: skip


def _set_member_state(state: State, command: SetMemberState) -> tuple[State, str]:
    name, to = command.name, command.state
    member = _find(state.members, name)
    if member is None:
        return state, f"there is no member {name}"
    if member.state == "left":
        return state, f"{name} has left; it comes back by hafwctl node join"
    if member.role == "witness" and to != "online":
        return state, f"{name} is a witness: it carries no group that could be moved away"
    if to != "online" and not _others_online(state, name):
        return state, f"no gateway but {name} is online: nobody could take its groups"
    changed = msgspec.structs.replace(member, state=to, why=command.why, since_s=command.at_s)
    return _with_member(state, changed), ""


def _set_order(state: State, name: str, order: tuple[str, ...]) -> tuple[State, str]:
    group = _find(state.groups, name)
    if group is None:
        return state, f"there is no group {name}"
    if order and (set(order) != set(group.order) or len(order) != len(group.order)):
        candidates = ", ".join(group.order)
        return state, f"an order of group {name} names each of its candidates once: {candidates}"
    preferred = () if order == group.order else order
    return _with_group(state, msgspec.structs.replace(group, preferred=preferred)), ""


def _record(state: State, move: Move) -> tuple[State, str]:
    history = list(state.history)
    for place, known in enumerate(history):
        if known.group != move.group:
            continue
        if known.epoch == move.epoch:
            if known.planned or not move.planned:
                return state, f"epoch {move.epoch} of group {move.group} is recorded already"
            history[place] = move
            break
        if known.epoch > move.epoch:
            history.insert(place, move)
            break
    else:
        history.append(move)
    return msgspec.structs.replace(state, history=tuple(history[-HISTORY_MAX:])), ""


def _record_damped(state: State, damped: DampedNode) -> tuple[State, str]:
    """Of a group that moves, each holder reports the same."""
    for known in reversed(state.damped):
        if (known.group, known.node_id) == (damped.group, damped.node_id):
            if known.losses == damped.losses and damped.at_s - known.at_s < DAMPED_AGAIN_S:
                return state, f"node {damped.node_id} is known to be damped"
            break
    kept = (*state.damped, damped)[-DAMPED_MAX:]
    return msgspec.structs.replace(state, damped=kept), ""


def _add_token(state: State, command: AddToken) -> tuple[State, str]:
    tokens = [token for token in state.tokens if token.expires_s > command.now_s]
    if command.expires_s <= command.now_s:
        return state, "the token would have expired already"
    if any(token.hash == command.hash for token in tokens):
        return state, "the same token again"
    if len(tokens) >= TOKENS_MAX:
        return state, f"{TOKENS_MAX} tokens are not expired yet; wait, or use one of them"
    tokens.append(Token(command.hash, command.expires_s))
    return msgspec.structs.replace(state, tokens=tuple(tokens)), ""


def _join(state: State, command: Join) -> tuple[State, str]:
    member = _find(state.members, command.name)
    if member is None:
        return state, f"{command.name} is not in the cluster's cluster.yaml: add it there first"
    if member.state != "left" and member.votes == "yes":
        return state, f"{command.name} is a member already ({member.state})"
    token = next((token for token in state.tokens if token.hash == command.token_hash), None)
    if token is None:
        return state, "the token is unknown; make one with: hafwctl cluster token"
    if token.used_by:
        return state, f"the token was used already, by {token.used_by}; make another one"
    if token.expires_s <= command.now_s:
        return state, "the token has expired; make another one"
    used = msgspec.structs.replace(token, used_by=command.name)
    state = msgspec.structs.replace(
        state, tokens=tuple(used if t is token else t for t in state.tokens)
    )
    joined = msgspec.structs.replace(member, state="online", votes="yes", forced=False)
    return _with_member(state, joined), ""


def _leave(state: State, command: Leave) -> tuple[State, str]:
    name = command.name
    member = _find(state.members, name)
    if member is None:
        return state, f"there is no member {name}"
    if member.state == "left":
        return state, f"{name} has left already"
    if member.role == "gateway" and not _others_online(state, name):
        return state, f"{name} is the last gateway that is online"
    gone = msgspec.structs.replace(member, state="left")
    if not command.votes:
        if not _others_vote(state, name):
            return state, f"{name} is the last that votes"
        gone = msgspec.structs.replace(gone, votes="no", forced=command.forced)
    return _with_member(state, gone), ""


def _set_votes(state: State, command: SetVotes) -> tuple[State, str]:
    name = command.name
    member = _find(state.members, name)
    if member is None:
        return state, f"there is no member {name}"
    if member.state == "left" and command.votes == "yes":
        return state, f"{name} has left; it comes back by hafwctl node join"
    if command.votes == "no" and not _others_vote(state, name):
        return state, f"{name} is the last that votes"
    changed = msgspec.structs.replace(member, votes=command.votes, forced=command.forced)
    return _with_member(state, changed), ""


def _drop_voter(state: State, command: DropVoter) -> tuple[State, str]:
    for member in state.members:
        if member.id == command.id:
            return state, f"node {command.id} is the member {member.name}"
    others = [dropped for dropped in state.dropped if dropped.id != command.id]
    dropped = [*others, Dropped(command.id, command.forced)]
    dropped.sort(key=lambda at: at.id)
    return msgspec.structs.replace(state, dropped=tuple(dropped)), ""


def outsiders(state: State) -> list[Member]:
    """Voters to be taken out that are no members, as if they were: by the names that
    `ClusterConfig.node_name` gives to ids that the file does not have."""
    return [
        Member(f"node{at.id}", at.id, "gateway", {}, "left", votes="no", forced=at.forced)
        for at in state.dropped
    ]


def assigned(state: State, group: str) -> str | None:
    """The node that should hold `group`: its last known holder while that is online (no
    fail-back), else the first of the order that is; if none is, likewise of those that are being
    drained. None if all are in maintenance or have left."""
    found = _find(state.groups, group)
    if found is None:
        return None
    last = next((m.to_id for m in reversed(state.history) if m.group == group), 0)
    for wanted in ("online", "draining"):
        ids = {member.name: member.id for member in state.members if member.state == wanted}
        candidates = [name for name in found.ranked if name in ids]
        stays = [name for name in candidates if ids[name] == last and not found.preempt]
        if candidates:
            return (stays or candidates)[0]
    return None


def find_group(state: State, name: str) -> Group | None:
    return _find(state.groups, name)


def find_member(state: State, name: str) -> Member | None:
    return _find(state.members, name)


Named = TypeVar("Named", Member, Group)


def _find(parts: Sequence[Named], name: str) -> Named | None:
    return next((part for part in parts if part.name == name), None)


def _others_online(state: State, name: str) -> bool:
    """Whether a gateway other than this one is online."""
    return any(
        member.name != name and member.role == "gateway" and member.state == "online"
        for member in state.members
    )


def _others_vote(state: State, name: str) -> bool:
    """Whether somebody else is wanted among the voters, or is left there if it is one."""
    return any(member.name != name and member.votes != "no" for member in state.members)


def _with_member(state: State, member: Member) -> State:
    members = tuple(member if m.name == member.name else m for m in state.members)
    return msgspec.structs.replace(state, members=members)


def _with_group(state: State, group: Group) -> State:
    groups = tuple(group if g.name == group.name else g for g in state.groups)
    return msgspec.structs.replace(state, groups=groups)
