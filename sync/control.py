"""What the syncds say to each other beside deltas: sealed payloads, msgpack arrays. Pure."""

from __future__ import annotations

from typing import Annotated, assert_never

import msgspec

from sync.wire import MessageType, WireError

__all__ = [
    "CHALLENGE_BYTES",
    "NACK_RANGES_MAX",
    "Ack",
    "Beacon",
    "Challenge",
    "ChallengeReply",
    "Control",
    "Nack",
    "control_type",
    "decode_control",
    "encode_control",
]

CHALLENGE_BYTES = 16
NACK_RANGES_MAX = 64
GROUPS_MAX = 15
NODES_MAX = 62
KEYS_MAX = 8

Seq = Annotated[int, msgspec.Meta(ge=0)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=CHALLENGE_BYTES, max_length=CHALLENGE_BYTES)]
GroupIndex = Annotated[int, msgspec.Meta(ge=1, le=GROUPS_MAX)]
NodeId = Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)]
KeyId = Annotated[int, msgspec.Meta(ge=0, le=255)]
Fingerprint = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """What a node has of another's session: all DELTAS up to `seq` are applied, for `age_us`
    now, and `beacon` is the newest beacon heard."""

    session: Seq
    seq: Seq
    beacon: Seq
    age_us: Seq


class Beacon(msgspec.Struct, frozen=True, array_like=True):
    """Every `sync.beacon_ms`, by multicast: a lost tail shows here, and a silent sender.

    `high_water` is the last DELTAS seq sent; `send_ns` the sender's CLOCK_BOOTTIME, meaningful to
    others only as a difference; `epochs` the newest epoch known, by group index. `low_water` is
    the oldest seq that can still be repaired. `boot` tells senders on one kernel, whose clock is
    the receiver's own, from others: 64 bits of its boot id, 0 if not known. `acks` is what the
    sender has of each peer; `keys` the sync keys it opens, by id: fingerprints.
    """

    high_water: Seq
    send_ns: Seq
    epochs: Annotated[dict[GroupIndex, Seq], msgspec.Meta(max_length=GROUPS_MAX)]
    low_water: Seq = 0
    boot: Seq = 0
    acks: Annotated[dict[NodeId, Ack], msgspec.Meta(max_length=NODES_MAX)] = {}
    keys: Annotated[dict[KeyId, Fingerprint], msgspec.Meta(max_length=KEYS_MAX)] = {}


class Nack(msgspec.Struct, frozen=True, array_like=True):
    """By unicast to a sender: resend these of your `session`. Ranges include both ends."""

    session: Seq
    ranges: Annotated[
        list[tuple[Seq, Seq]], msgspec.Meta(min_length=1, max_length=NACK_RANGES_MAX)
    ]


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """By unicast to the sender of a session not yet accepted: prove that you are alive now."""

    nonce: Nonce


class ChallengeReply(msgspec.Struct, frozen=True, array_like=True):
    """The answer, by unicast: `session` is mine, and `seq` is the last DELTAS I had sent. What
    came before it is a snapshot's business."""

    nonce: Nonce
    session: Seq
    seq: Seq


Control = Beacon | Nack | Challenge | ChallengeReply

_decoders: dict[MessageType, msgspec.msgpack.Decoder[Control]] = {
    MessageType.BEACON: msgspec.msgpack.Decoder(Beacon),
    MessageType.NACK: msgspec.msgpack.Decoder(Nack),
    MessageType.CHALLENGE: msgspec.msgpack.Decoder(Challenge),
    MessageType.CHALLENGE_REPLY: msgspec.msgpack.Decoder(ChallengeReply),
}
_encoder = msgspec.msgpack.Encoder()


def control_type(control: Control) -> MessageType:
    """The datagram type that carries it."""
    match control:
        case Beacon():
            return MessageType.BEACON
        case Nack():
            return MessageType.NACK
        case Challenge():
            return MessageType.CHALLENGE
        case ChallengeReply():
            return MessageType.CHALLENGE_REPLY
        case _:
            assert_never(control)


def encode_control(control: Control) -> bytes:
    """The payload to seal under `control_type`."""
    return _encoder.encode(control)


def decode_control(type: MessageType, payload: bytes) -> Control:  # noqa: A002
    """The payload of an opened datagram of any type but DELTAS. Raises WireError bad_payload."""
    assert type is not MessageType.DELTAS, "deltas are not control"
    try:
        control: Control = _decoders[type].decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("bad_payload", f"{type.name}: {error}") from None
    if isinstance(control, Nack) and any(first > last for first, last in control.ranges):
        raise WireError("bad_payload", "NACK: a range ends before it begins")
    return control
