"""What the cluster agrees on by Raft, as types: the state, and the commands that change it. Pure.

`cluster.assignment` says what a command does. Everything is msgpack with every field named, so a
field that is added with a default is read from an older journal too.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

__all__ = [
    "DAMPED_MAX",
    "HISTORY_MAX",
    "PREEMPT_AFTER_S",
    "TOKENS_MAX",
    "AddToken",
    "ClearLosses",
    "Command",
    "Configure",
    "DampedNode",
    "DropVoter",
    "Dropped",
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
    "decode_command",
    "decode_state",
    "digest",
    "encode",
    "hash_token",
]

HISTORY_MAX = 200
"""Moves remembered, the newest."""
DAMPED_MAX = 100
"""Times that a node was damped which are remembered, the newest."""
TOKENS_MAX = 16
PREEMPT_AFTER_S = 60.0
"""How long a better node must have been fit before a group with `preempt` goes back to it."""
COMMAND_BYTES_MAX = 32768

Wish = Literal["", "yes", "no"]
MemberState = Literal["online", "draining", "maintenance", "left"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=300)]
Reason = Annotated[str, msgspec.Meta(max_length=120)]
Delay = Annotated[float, msgspec.Meta(ge=1, le=86400)]
NodeId = Annotated[int, msgspec.Meta(ge=0, le=62)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Hash = Annotated[str, msgspec.Meta(max_length=64)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a state or a command is made of."""


class Member(_Part, frozen=True):
    """A node of the cluster. `addresses` by link; `why` it is in its state, in an operator's
    words, and since when (0: always). `cleared`: how often an operator had what damps it
    forgotten (`cluster.damping`). `votes`: whether it is wanted in the voter set of the lease
    (empty: as it is); `forced`: even if too few of the voters are heard then."""

    name: Name
    id: Annotated[int, msgspec.Meta(ge=1, le=62)]
    role: Literal["gateway", "witness"]
    addresses: dict[Name, Text]
    state: MemberState = "online"
    why: Reason = ""
    since_s: float = 0.0
    cleared: Annotated[int, msgspec.Meta(ge=0)] = 0
    votes: Wish = ""
    forced: bool = False


class Group(_Part, frozen=True):
    """A group's candidates, best first: `order` is cluster.yaml's, `preferred` another one of the
    same nodes that an operator has set (empty: none). Without `preempt` (the default) a node that
    comes back leaves the group where it is; with it the group goes to a better node that has been
    fit for `preempt_after_s`."""

    name: Name
    index: Annotated[int, msgspec.Meta(ge=1, le=15)]
    order: tuple[Name, ...]
    preempt: bool = False
    preempt_after_s: Delay = PREEMPT_AFTER_S
    preferred: tuple[Name, ...] = ()

    @property
    def ranked(self) -> tuple[Name, ...]:
        """The order in force."""
        return self.preferred or self.order


class Dropped(_Part, frozen=True):
    """A voter that is no member and is wanted out of the voter set; `forced` as in `Member`."""

    id: Annotated[int, msgspec.Meta(ge=1, le=62)]
    forced: bool = False


class Voters(_Part, frozen=True):
    """The nodes of the leader's cluster.yaml as `hafw.config.model.VoterSet` names them, with
    which a node without a voters file begins. Who votes is leased's to know, and only its."""

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
    why: Reason
    planned: bool = False


class DampedNode(_Part, frozen=True):
    """A node was damped for a group, or longer than before, because of its `losses`."""

    group: Name
    node_id: NodeId
    losses: Annotated[int, msgspec.Meta(ge=1)]
    at_s: float
    why: Reason


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
    damped: tuple[DampedNode, ...] = ()
    dropped: tuple[Dropped, ...] = ()


# ---- commands -----------------------------------------------------------------------------------


class _Command(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base: tagged by class name."""


class Configure(_Command, frozen=True):
    """What cluster.yaml says. States and preemption of those that stay are kept; a member that
    the file no longer has is gone, and so is an operator's order once the file's has changed. The
    members of the first such command vote, those that come later join by a token."""

    members: tuple[Member, ...]
    groups: tuple[Group, ...]
    voters: Voters


class SetMemberState(_Command, frozen=True):
    """Not ``left``, into which and out of which only `Leave` and `Join` lead."""

    name: Name
    state: Literal["online", "draining", "maintenance"]
    why: Reason = ""
    at_s: float = 0.0


class SetGroup(_Command, frozen=True):
    """The preemption policy of a group."""

    group: Name
    preempt: bool
    preempt_after_s: Delay = PREEMPT_AFTER_S


class SetOrder(_Command, frozen=True):
    """Another order of a group's candidates than cluster.yaml's; empty: that one again."""

    group: Name
    order: tuple[Name, ...]


class SetPolicy(_Command, frozen=True):
    """The policy generation in force; it only grows."""

    generation: Annotated[int, msgspec.Meta(ge=1)]
    hash: Hash


class RecordMove(_Command, frozen=True):
    """A node saw `move` happen. Reported once an epoch; what was planned replaces a guess."""

    move: Move


class RecordDamped(_Command, frozen=True):
    """The holder of a group saw a node being damped."""

    damped: DampedNode


class ClearLosses(_Command, frozen=True):
    """Forget what damps a node."""

    name: Name


class AddToken(_Command, frozen=True):
    hash: Hash
    expires_s: float
    now_s: float


class SetVotes(_Command, frozen=True):
    """Whether a member is wanted among the voters, though it stays what it is."""

    name: Name
    votes: Literal["yes", "no"]
    forced: bool = False


class DropVoter(_Command, frozen=True):
    """Take a voter out that is no member: cluster.yaml no longer has it."""

    id: Annotated[int, msgspec.Meta(ge=1, le=62)]
    forced: bool = False


class Join(_Command, frozen=True):
    """A member that left, or that has come later than the others, is online and wanted as a
    voter, for one unused token."""

    name: Name
    token_hash: Hash
    now_s: float


class Leave(_Command, frozen=True):
    """`votes`: it goes on voting, as two nodes without a witness must."""

    name: Name
    votes: bool = False
    forced: bool = False


Command = (
    Configure
    | SetMemberState
    | SetGroup
    | SetOrder
    | SetPolicy
    | SetVotes
    | DropVoter
    | RecordMove
    | RecordDamped
    | ClearLosses
    | AddToken
    | Join
    | Leave
)

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
