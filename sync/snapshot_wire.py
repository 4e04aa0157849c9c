"""The words of a snapshot (`sync.snapshot` has the order in which they are spoken). Pure."""

from __future__ import annotations

import msgspec

__all__ = [
    "ASK_BYTES_MAX",
    "CHUNKS_IN_FLIGHT",
    "HANDSHAKE_MS",
    "SnapshotAsk",
    "SnapshotChunk",
    "SnapshotCredit",
    "SnapshotEnd",
    "SnapshotHead",
    "SnapshotRefused",
    "SnapshotReply",
    "SnapshotRequest",
    "decode_ask",
    "decode_reply",
    "encode_snapshot",
]

CHUNKS_IN_FLIGHT = 16
ASK_BYTES_MAX = 4096
"""Of one frame to the server, the CURVE handshake included: libzmq makes room for what a frame
announces before anybody is authenticated, and hangs up on more than this."""
HANDSHAKE_MS = 2000
"""A connection that is no member's by then is closed; 30 s is libzmq's default."""


class SnapshotRequest(msgspec.Struct, frozen=True, tag=True):
    """`buckets`: one byte for each bucket that a repair is about; empty: the whole group.
    `failures`: repairs of it in a row that did not help. `have`: go on with this request at that
    chunk, over another connection; 0: begin."""

    request: int
    node_id: int
    group: int
    buckets: bytes = b""
    failures: int = 0
    have: int = 0


class SnapshotCredit(msgspec.Struct, frozen=True, tag=True):
    """All chunks below `applied` are applied; `done`: and the end has come."""

    request: int
    applied: int
    done: bool = False


class SnapshotHead(msgspec.Struct, frozen=True, tag=True):
    request: int
    node_id: int
    session: int
    seq: int
    epoch: int


class SnapshotRefused(msgspec.Struct, frozen=True, tag=True):
    request: int
    reason: str


class SnapshotChunk(msgspec.Struct, frozen=True, tag=True):
    request: int
    index: int
    deltas: bytes


class SnapshotEnd(msgspec.Struct, frozen=True, tag=True):
    """`seq`: the stream's position when the dump had ended."""

    request: int
    chunks: int
    flows: int
    seq: int


SnapshotAsk = SnapshotRequest | SnapshotCredit
SnapshotReply = SnapshotHead | SnapshotRefused | SnapshotChunk | SnapshotEnd

_encoder = msgspec.msgpack.Encoder()
_asks: msgspec.msgpack.Decoder[SnapshotAsk] = msgspec.msgpack.Decoder(SnapshotAsk)
_replies: msgspec.msgpack.Decoder[SnapshotReply] = msgspec.msgpack.Decoder(SnapshotReply)


def encode_snapshot(message: SnapshotAsk | SnapshotReply) -> bytes:
    return _encoder.encode(message)


def decode_ask(payload: bytes) -> SnapshotAsk:
    """Raises msgspec.DecodeError."""
    return _asks.decode(payload)


def decode_reply(payload: bytes) -> SnapshotReply:
    """Raises msgspec.DecodeError."""
    return _replies.decode(payload)
