"""What the cluster has agreed on: members, voters, orders, policy generation, moves. Pure.

The replicated state machine behind Raft: `apply(state, command)` gives the next state, or the same
state and why not. It is a function of its arguments alone; whoever proposes stamps the time. A
refusal changes nothing, so nodes that apply the same commands in the same order have the same
state, byte for byte (`digest`).

It *assigns*; the lease *executes*. Nothing here opens or shuts a gate, and a cluster whose Raft is
gone goes on with the leases it has. Members, roles, addresses, orders and voters come from
cluster.yaml (`Configure`, proposed by the leader when its file says otherwise); states,
preemption, tokens, policy generation and history live only here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar, assert_never

import msgspec

__all__ = [
    "HISTORY_MAX",
    "TOKENS_MAX",
    "AddToken",
    "Command",
    "Configure",
    "Group",
    "Join",
    "Leave",
    "Member",
    "MemberState",
    "Move",
    "RecordMove",
    "SetGroup",
    "SetMemberState",
    "SetPolicy",
    "State",
    "Token",
    "Voters",
    "apply",
    "assigned",
    "decode_command",
    "decode_state",
    "digest",
    "encode",
    "hash_token",
]

HISTORY_MAX = 200
"""Moves remembered, the newest."""
TOKENS_MAX = 16
COMMAND_BYTES_MAX = 32768

MemberState = Literal["online", "draining", "maintenance", "left"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=300)]
NodeId = Annotated[int, msgspec.Meta(ge=0, le=62)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Hash = Annotated[str, msgspec.Meta(max_length=64)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a state or a command is made of."""


class Member(_Part, frozen=True):
    """A node of the cluster. `addresses` by link."""

    name: Name
    id: Annotated[int, msgspec.Meta(ge=1, le=62)]
    role: Literal["gateway", "witness"]
    addresses: dict[Name, Text]
    state: MemberState = "online"


class Group(_Part, frozen=True):
    """A group's candidates, best first. Without `preempt` (the default) a node that comes back
    leaves the group where it is."""

    name: Name
    index: Annotated[int, msgspec.Meta(ge=1, le=15)]
    order: tuple[Name, ...]
    preempt: bool = False


class Voters(_Part, frozen=True):
    """The voter set of the lease, as `hafw.config.model.VoterSet` names it."""

    id: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    members: tuple[NodeId, ...]
    hash: Hash


class Move(_Part, frozen=True):
    """A group got another holder, or the same one a new epoch. Nodes by id, 0: nobody. `at_s` is
    the reporter's wall clock. `planned`: somebody asked for it."""

    group: Name
    epoch: Epoch
    from_id: NodeId
    to_id: NodeId
    at_s: float
    why: Annotated[str, msgspec.Meta(max_length=120)]
    planned: bool = False


class Token(_Part, frozen=True):
    """A join token that was handed out. Only its hash is known here; `used_by` is empty until it
    is used, and it is never taken twice."""

    hash: Hash
    expires_s: float
    used_by: Text = ""


class State(_Part, frozen=True):
    """Everything. An empty one is the state of a cluster that has never had a leader."""

    members: tuple[Member, ...] = ()
    voters: Voters = Voters(0, (), "")
    groups: tuple[Group, ...] = ()
    policy_generation: int = 0
    policy_hash: str = ""
    history: tuple[Move, ...] = ()
    tokens: tuple[Token, ...] = ()


# ---- commands -----------------------------------------------------------------------------------


class _Command(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base: tagged by class name."""


class Configure(_Command, frozen=True):
    """What cluster.yaml says. States and preemption of those that stay are kept; a member that
    the file no longer has is gone."""

    members: tuple[Member, ...]
    groups: tuple[Group, ...]
    voters: Voters


class SetMemberState(_Command, frozen=True):
    """Not ``left``, into which and out of which only `Leave` and `Join` lead."""

    name: Name
    state: Literal["online", "draining", "maintenance"]


class SetGroup(_Command, frozen=True):
    """The preemption policy of a group."""

    group: Name
    preempt: bool


class SetPolicy(_Command, frozen=True):
    """The policy generation in force; it only grows."""

    generation: Annotated[int, msgspec.Meta(ge=1)]
    hash: Hash


class RecordMove(_Command, frozen=True):
    """A node saw `move` happen. Reported once an epoch; what was planned replaces a guess."""

    move: Move


class AddToken(_Command, frozen=True):
    hash: Hash
    expires_s: float
    now_s: float


class Join(_Command, frozen=True):
    """A member that left is online again, for one unused token."""

    name: Name
    token_hash: Hash
    now_s: float


class Leave(_Command, frozen=True):
    name: Name


Command = Configure | SetMemberState | SetGroup | SetPolicy | RecordMove | AddToken | Join | Leave

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_command_decoder = msgspec.msgpack.Decoder(Command)
_state_decoder = msgspec.msgpack.Decoder(State)


def encode(value: State | Command) -> bytes:
    return _encoder.encode(value)


def decode_command(data: bytes) -> Command:
    """Raises ValueError for what is no command of this release."""
    if len(data) > COMMAND_BYTES_MAX:
        raise ValueError(f"a command of {len(data)} bytes; at most {COMMAND_BYTES_MAX}")
    try:
        command: Command = _command_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a command: {error}") from None
    return command


def decode_state(data: bytes) -> State:
    """Raises ValueError."""
    try:
        return _state_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a state: {error}") from None


def digest(state: State) -> str:
    """16 hex digits by which two nodes' states are compared."""
    return hashlib.sha256(encode(state)).hexdigest()[:16]


def hash_token(token: str) -> str:
    """What is stored of a token. Tokens are random (128 bits), so a plain hash hides them."""
    return hashlib.sha256(b"hafw join token 1\0" + token.encode()).hexdigest()


# ---- the state machine --------------------------------------------------------------------------


def apply(state: State, command: Command) -> tuple[State, str]:
    """The next state and an empty text, or the same state and why not."""
    match command:
        case Configure():
            return _configure(state, command)
        case SetMemberState(name, to):
            member = _find(state.members, name)
            if member is None:
                return state, f"there is no member {name}"
            if member.state == "left":
                return state, f"{name} has left; it comes back by hafwctl node join"
            return _with_member(state, msgspec.structs.replace(member, state=to)), ""
        case SetGroup(name, preempt):
            group = _find(state.groups, name)
            if group is None:
                return state, f"there is no group {name}"
            changed = msgspec.structs.replace(group, preempt=preempt)
            groups = tuple(changed if g.name == name else g for g in state.groups)
            return msgspec.structs.replace(state, groups=groups), ""
        case SetPolicy(generation, hash_):
            if generation <= state.policy_generation:
                return state, f"generation {generation} is not above {state.policy_generation}"
            return msgspec.structs.replace(
                state, policy_generation=generation, policy_hash=hash_
            ), ""
        case RecordMove(move):
            return _record(state, move)
        case AddToken():
            return _add_token(state, command)
        case Join():
            return _join(state, command)
        case Leave(name):
            return _leave(state, name)
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
        kept: MemberState = "online" if known is None else known.state
        members.append(msgspec.structs.replace(member, state=kept))
    groups = []
    for group in command.groups:
        before = _find(state.groups, group.name)
        preempt = before is not None and before.preempt
        groups.append(msgspec.structs.replace(group, preempt=preempt))
    return msgspec.structs.replace(
        state, members=tuple(members), groups=tuple(groups), voters=command.voters
    ), ""


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
    if member.state != "left":
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
    return _with_member(state, msgspec.structs.replace(member, state="online")), ""


def _leave(state: State, name: str) -> tuple[State, str]:
    member = _find(state.members, name)
    if member is None:
        return state, f"there is no member {name}"
    if member.state == "left":
        return state, f"{name} has left already"
    others = [
        other
        for other in state.members
        if other.name != name and other.role == "gateway" and other.state == "online"
    ]
    if member.role == "gateway" and not others:
        return state, f"{name} is the last gateway that is online"
    return _with_member(state, msgspec.structs.replace(member, state="left")), ""


def assigned(state: State, group: str) -> str | None:
    """The node that should hold `group`: its last known holder while that is online (no
    fail-back), else the first of the order that is; None if there is none."""
    found = _find(state.groups, group)
    if found is None:
        return None
    online = {member.name: member.id for member in state.members if member.state == "online"}
    candidates = [name for name in found.order if name in online]
    if not found.preempt:
        last = next((m.to_id for m in reversed(state.history) if m.group == group), 0)
        for name in candidates:
            if online[name] == last:
                return name
    return candidates[0] if candidates else None


Named = TypeVar("Named", Member, Group)


def _find(parts: Sequence[Named], name: str) -> Named | None:
    return next((part for part in parts if part.name == name), None)


def _with_member(state: State, member: Member) -> State:
    members = tuple(member if m.name == member.name else m for m in state.members)
    return msgspec.structs.replace(state, members=members)
