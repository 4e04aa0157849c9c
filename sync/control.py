"""What the syncds say to each other beside deltas: sealed payloads, msgpack arrays. Pure."""

from __future__ import annotations

from typing import Annotated, assert_never

import msgspec

from sync.wire import HEADER_BYTES, TAG_BYTES, MessageType, WireError

__all__ = [
    "CHALLENGE_BYTES",
    "NACK_RANGES_MAX",
    "Ack",
    "Beacon",
    "Challenge",
    "ChallengeReply",
    "Control",
    "Nack",
    "Probe",
    "control_type",
    "decode_control",
    "encode_control",
    "nack_ranges",
    "padded",
]

CHALLENGE_BYTES = 16
NACK_RANGES_MAX = 64
GROUPS_MAX = 15
NODES_MAX = 62
KEYS_MAX = 8
WAYS_MAX = 16
"""Eight links, eight segments."""
PADDING_BYTES_MAX = 2048

Seq = Annotated[int, msgspec.Meta(ge=0)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=CHALLENGE_BYTES, max_length=CHALLENGE_BYTES)]
GroupIndex = Annotated[int, msgspec.Meta(ge=1, le=GROUPS_MAX)]
NodeId = Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)]
KeyId = Annotated[int, msgspec.Meta(ge=0, le=255)]
LinkName = Annotated[str, msgspec.Meta(max_length=32)]
DatagramBytes = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
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
    sender has of each peer; `keys` the sync keys it opens, by id: fingerprints. `deaf` are the
    peers that it hears over no link (`sync.detour`).
    """

    high_water: Seq
    send_ns: Seq
    epochs: Annotated[dict[GroupIndex, Seq], msgspec.Meta(max_length=GROUPS_MAX)]
    low_water: Seq = 0
    boot: Seq = 0
    acks: Annotated[dict[NodeId, Ack], msgspec.Meta(max_length=NODES_MAX)] = {}
    keys: Annotated[dict[KeyId, Fingerprint], msgspec.Meta(max_length=KEYS_MAX)] = {}
    deaf: Annotated[list[NodeId], msgspec.Meta(max_length=NODES_MAX)] = []


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


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """By unicast over one link or segment, twice a second, as large as a datagram may be and as
    small: what does not arrive shows what the way there cannot carry. `heard` is what arrives of
    the node `to` over each of them: its largest probe, and whether its multicast does
    (`sync.paths`)."""

    to: NodeId
    heard: Annotated[dict[LinkName, tuple[DatagramBytes, bool]], msgspec.Meta(max_length=WAYS_MAX)]
    padding: Annotated[bytes, msgspec.Meta(max_length=PADDING_BYTES_MAX)] = b""


Control = Beacon | Nack | Challenge | ChallengeReply | Probe

_decoders: dict[MessageType, msgspec.msgpack.Decoder[Control]] = {
    MessageType.BEACON: msgspec.msgpack.Decoder(Beacon),
    MessageType.NACK: msgspec.msgpack.Decoder(Nack),
    MessageType.CHALLENGE: msgspec.msgpack.Decoder(Challenge),
    MessageType.CHALLENGE_REPLY: msgspec.msgpack.Decoder(ChallengeReply),
    MessageType.PROBE: msgspec.msgpack.Decoder(Probe),
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
        case Probe():
            return MessageType.PROBE
        case _:
            assert_never(control)


def encode_control(control: Control) -> bytes:
    """The payload to seal under `control_type`."""
    return _encoder.encode(control)


def nack_ranges(datagram_bytes: int) -> int:
    """How many ranges a NACK in a datagram of this size may name."""
    # msgpack: an array of two, the session, the head of an array; an array of two seqs each.
    room = datagram_bytes - HEADER_BYTES - TAG_BYTES - 13
    return min(room // 19, NACK_RANGES_MAX)


def padded(probe: Probe, payload_bytes: int) -> Probe:
    """With so much padding that its payload has this size, or one byte less (msgpack says the
    length of more than 255 bytes in two); as it is, if it is longer."""
    left = payload_bytes - len(encode_control(probe))
    padding = bytes(max(left if left < 256 else max(left - 1, 255), 0))
    return msgspec.structs.replace(probe, padding=padding)


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
