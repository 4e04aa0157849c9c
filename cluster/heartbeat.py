"""The lease channel on the wire: what nodes say to each other, and how a datagram is sealed.

::

    0      2      3       4            8                         n-16      n
    +------+------+-------+------------+-- - - - - - - - - - - --+-- - - - -+
    | HAL1 magic  | ver   | sender | cluster_id | msgpack Envelope         | tag     |

    magic 2 bytes, version 1, sender id 1, cluster id 4 (big endian), body, HMAC-SHA256 cut to 16

The tag covers header and body. Only the fixed header is looked at before the tag is verified, and
only to count what is wrong; nothing unauthenticated is parsed. One envelope goes out byte for byte
the same over every link, so receivers drop copies by comparing bytes.

The key is SHA-256 over a label, the cluster id and the content of ``lease.key``.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Annotated

import msgspec

from hafw.errors import PeerError
from hafw.messages import Position

__all__ = [
    "DATAGRAM_BYTES_MAX",
    "REASON_CHARS_MAX",
    "Accepted",
    "Beat",
    "Codec",
    "DatagramError",
    "Envelope",
    "GroupBeat",
    "Heard",
    "Message",
    "MoveAnswer",
    "MoveAsk",
    "Nack",
    "Prepare",
    "Promise",
    "Propose",
    "Release",
    "Voters",
    "derive_key",
]

MAGIC = b"HL"
VERSION = 2
HEADER = struct.Struct(">2sBBI")
TAG_BYTES = 16
_BLOCK_BYTES = 64
DATAGRAM_BYTES_MAX = 8192
"""Larger ones are refused unread. 15 groups with reasons need less than 2,500."""
REASON_CHARS_MAX = 80

U8 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 8)]
U24 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)]
U63 = Annotated[int, msgspec.Meta(ge=0)]
"""Counters, epochs, durations and session ids: all below 2^63."""
NodeId = Annotated[int, msgspec.Meta(ge=0, le=62)]
GroupIndex = Annotated[int, msgspec.Meta(ge=1, le=15)]
Text = Annotated[str, msgspec.Meta(max_length=400)]


class Wire(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=True
):
    """Base of messages: a msgpack array whose first element is the class name."""


class GroupBeat(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False
):
    """One group in a heartbeat.

    `promised`: the highest epoch the sender's acceptor promised. `active`: the epoch under which
    the sender's gate is open now, or 0. `holder`: whose lease its acceptor counts as running (0:
    nobody's). `synced`, `reason`: what its syncd says. `synced_seen`: it hears (or is) a candidate
    that is alive and synced. `upstream`: no upstream check of the sender's fails. `carrier`: all
    of the group's segments live there, else `reason` names one. `damped`: whom it damps
    (`cluster.damping`).
    """

    group: GroupIndex
    promised: U63
    active: U63
    holder: NodeId
    synced: bool
    synced_seen: bool
    reason: Text
    upstream: bool = True
    carrier: bool = True
    damped: Annotated[list[NodeId], msgspec.Meta(max_length=62)] = []


class Voters(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A voter set; `members` ascending."""

    id: U63
    members: Annotated[tuple[NodeId, ...], msgspec.Meta(min_length=1, max_length=62)]


class Beat(Wire, frozen=True, tag="b"):
    """The heartbeat; it and `Release` are acted on whatever voter set the envelope names.
    `voters`: the set that the sender acts in; `next`: the one it has stored to follow. `votes`:
    its acceptor may vote. `able`: it could carry groups. `echoes`: (node, seq of the last beat
    heard from it, nanoseconds since), for the round trip."""

    era: U24
    votes: bool
    able: bool
    groups: Annotated[list[GroupBeat], msgspec.Meta(max_length=15)]
    echoes: Annotated[list[tuple[NodeId, U63, U63]], msgspec.Meta(max_length=64)]
    voters: Voters
    next: Voters | None


class Prepare(Wire, frozen=True, tag="p"):
    """Ask every voter to promise `epoch`."""

    group: GroupIndex
    epoch: U63


class Release(Wire, frozen=True, tag="r"):
    """The holder's announce gate is shut and stays so; the lease `epoch` is given to `to` (0:
    anybody). The receiver opens once it applied `position` of the old holder's stream."""

    group: GroupIndex
    epoch: U63
    to: NodeId
    position: Position | None


class Promise(Wire, frozen=True, tag="P"):
    """A voter will accept nothing below `epoch`. `last_*` is the highest lease it has accepted
    since it started (0: none); `last_opened` says that its holder's gate had opened,
    `last_in_set` that it was accepted in the voter set now in force. `given`: the last release to
    a node that the voter heard, unless a later lease is known to have opened."""

    group: GroupIndex
    epoch: U63
    era: U24
    last_epoch: U63
    last_holder: NodeId
    last_opened: bool
    last_in_set: bool
    given: Release | None = None


class Propose(Wire, frozen=True, tag="a"):
    """Ask every voter to accept (or renew) the sender's lease of `lease_ns`. `request` numbers the
    requests of one process: the holder's deadline counts from when *that* one was sent."""

    group: GroupIndex
    epoch: U63
    request: U63
    lease_ns: U63
    opened: bool


class Accepted(Wire, frozen=True, tag="A"):
    """The voter granted `request`."""

    group: GroupIndex
    epoch: U63
    request: U63


class Nack(Wire, frozen=True, tag="N"):
    """The voter refused `epoch`: its era is higher, it promised a higher epoch, or it has granted
    a lease to `leased_to` that runs `left_ns` longer by its clock."""

    group: GroupIndex
    epoch: U63
    era: U24
    promised: U63
    leased_to: NodeId
    left_ns: U63


class MoveAsk(Wire, frozen=True, tag="m"):
    """A `MoveRequest` that reached a node which is not the holder. Repeated until answered."""

    request: U63
    group: GroupIndex
    target: U8
    wait_ms: U63
    force: bool = False


class MoveAnswer(Wire, frozen=True, tag="M"):
    """The holder's `MoveReply` to a `MoveAsk`."""

    request: U63
    moved: bool
    released: bool
    epoch: U63
    reason: Text


Message = Beat | Prepare | Promise | Propose | Accepted | Nack | Release | MoveAsk | MoveAnswer


class Heard(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The sender hears `session` of `node`; `mutual`: that session has echoed the sender's own."""

    node: NodeId
    session: U63
    mutual: bool


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one datagram holds. `seq` is one sequence over all links. `to` 0 = all."""

    session: U63
    seq: U63
    to: NodeId
    voters_id: U63
    voters_hash: Annotated[str, msgspec.Meta(max_length=16)]
    heard: Annotated[list[Heard], msgspec.Meta(max_length=256)]
    messages: Annotated[list[Message], msgspec.Meta(max_length=64)]


class DatagramError(PeerError):
    """A datagram was refused; `reason` is the counter's name."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def derive_key(master: bytes, *, cluster_id: int) -> bytes:
    """The HMAC key of the lease channel."""
    return hashlib.sha256(b"hafw lease v1\0" + cluster_id.to_bytes(4, "big") + master).digest()


class Codec:
    """Seals and opens datagrams of one cluster."""

    def __init__(self, key: bytes, *, cluster_id: int, node_id: int) -> None:
        # RFC 2104, with the hash of both padded keys done once: a fifth of a whole HMAC's time.
        assert len(key) <= _BLOCK_BYTES
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in padded))
        self._outer = hashlib.sha256(bytes(octet ^ 0x5C for octet in padded))
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Envelope)

    def seal(self, envelope: Envelope) -> bytes:
        """One datagram; the same bytes for every link."""
        header = HEADER.pack(MAGIC, VERSION, self._node_id, self._cluster_id)
        text = header + self._encoder.encode(envelope)
        assert len(text) + TAG_BYTES <= DATAGRAM_BYTES_MAX, len(text)
        return text + self._tag(text)

    def open(self, datagram: bytes) -> tuple[int, Envelope]:
        """Sender id and content. Raises DatagramError, named after what is wrong."""
        if len(datagram) < HEADER.size + TAG_BYTES + 1:
            raise DatagramError("truncated")
        if len(datagram) > DATAGRAM_BYTES_MAX:
            raise DatagramError("oversize")
        magic, version, sender, cluster_id = HEADER.unpack_from(datagram)
        if magic != MAGIC:
            raise DatagramError("bad_magic")
        if version != VERSION:
            raise DatagramError("wrong_version")
        if cluster_id != self._cluster_id:
            raise DatagramError("wrong_cluster")
        text = datagram[:-TAG_BYTES]
        if not hmac.compare_digest(self._tag(text), datagram[-TAG_BYTES:]):
            raise DatagramError("bad_tag")
        try:
            return sender, self._decoder.decode(text[HEADER.size :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # It has our key and is not of this version: a bug or another release.
            raise DatagramError("malformed") from None

    def _tag(self, text: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.digest()[:TAG_BYTES]
