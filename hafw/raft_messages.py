"""What hafw-raftd is asked and answers. Pure types.

Transport: one Unix sequential-packet connection a question (`hafw.paths.NodePaths.raftd_socket`),
msgpack of one tagged struct each way: raftd is unprivileged and could not send to an asker's
address in a folder of root's. Commands and the state are those of `cluster.assignment`, encoded.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "PACKET_BYTES_MAX",
    "ProposeReply",
    "ProposeRequest",
    "RaftMessage",
    "RaftPeer",
    "RaftStatus",
    "RaftStatusRequest",
    "decode_raft",
    "encode_raft",
]

PACKET_BYTES_MAX = 1 << 17
"""A full history is about half of it."""


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base: tagged by class name."""


class RaftStatusRequest(_Message, frozen=True):
    """Answered with `RaftStatus`."""


class ProposeRequest(_Message, frozen=True):
    """Have the cluster agree on a command. Answered with `ProposeReply`."""

    command: bytes


class ProposeReply(_Message, frozen=True):
    """`known` false: it may or may not be carried out. `again`: the reason passes by itself, as an
    election does."""

    ok: bool
    reason: str = ""
    known: bool = True
    again: bool = False


class RaftPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another member as heard over the links."""

    node_id: int
    connected: bool
    age_ms: float | None


class RaftStatus(_Message, frozen=True):
    """`role`: follower, candidate or leader, as this node believes. `leader_id` 0: none is known,
    and everything is `read_only`. `state` as `cluster.assignment` encodes it, and its `digest`.
    `recovering`: why it does not vote for now; empty if it does."""

    node_id: int
    pid: int
    uid: int
    role: str
    leader_id: int
    term: int
    commit: int
    applied: int
    entries: int
    quorum: bool
    read_only: bool
    recovering: str
    peers: list[RaftPeer]
    state: bytes
    digest: str
    counters: dict[str, int]
    alarms: list[str]


RaftMessage = RaftStatusRequest | ProposeRequest | ProposeReply | RaftStatus
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RaftMessage)


def encode_raft(message: RaftMessage) -> bytes:
    """One packet."""
    return _encoder.encode(message)


def decode_raft(packet: bytes) -> RaftMessage:
    """Raises msgspec.DecodeError (and what that leaves out: UnicodeDecodeError; RecursionError for
    what is nested too deep)."""
    message: RaftMessage = _decoder.decode(packet)
    return message
