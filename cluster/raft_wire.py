"""Raft's datagrams: sealed, cut into parts, and what may be in them. Pure.

::

    magic 4s, version u8, sender u8, receiver u8, 0, cluster u32, session u64, seq u64
    AES-256-GCM, nonce = seq, over the msgpack array of `Part`; the head is authenticated with it

The key is derived from the raft key, the cluster, the sender and its session: a session is random
and new at each start, so no nonce is used twice. Nothing is decoded before it is authenticated.

In place of pysyncobj's own transport (ADR 0013), which unpickles what it receives. Messages are
msgpack of the few dictionaries that it sends, each with its types checked here (`Message`), and a
command in them is one of `cluster.assignment` or pysyncobj's no-op. Anything else is refused and
counted: nothing that runs code can be said in this format, whoever holds the key.
"""

from __future__ import annotations

import hmac
import struct
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.assignment import decode_command
from hafw.errors import PeerError

__all__ = [
    "DATAGRAM_BYTES_MAX",
    "HEAD",
    "MESSAGE_BYTES_MAX",
    "NO_OP",
    "REGULAR",
    "Assembler",
    "Part",
    "Wire",
    "WireError",
    "check_command",
    "decode_message",
    "encode_message",
    "split",
]

MAGIC = b"hafR"
VERSION = 1
HEAD = struct.Struct("<4sBBBBIQQ")
PART_BYTES_MAX = 1200
"""Of a message in one datagram: no link needs to fragment it."""
DATAGRAM_BYTES_MAX = 1400
PARTS_MAX = 128
MESSAGE_BYTES_MAX = PARTS_MAX * PART_BYTES_MAX
KEYS_MAX = 256
REGULAR, NO_OP = b"\x00", b"\x01"
"""pysyncobj's first byte of a command."""

U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class WireError(PeerError):
    """A datagram or message was refused; `reason` is the counter's name."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """`echo`: the receiver's session that the sender hears, 0 for none; `mutual`: it has echoed
    the sender's own. `parts` 0: no message, only the sign of life. `first`: seq of the part 0 of
    the same message."""

    echo: U63
    mutual: bool
    first: U63
    part: U63
    parts: Annotated[int, msgspec.Meta(ge=0, le=PARTS_MAX)]
    data: Annotated[bytes, msgspec.Meta(max_length=PART_BYTES_MAX)]


class Wire:
    """Seals and opens datagrams of one cluster, for one node."""

    def __init__(self, raft_key: bytes, *, cluster_id: int, node_id: int) -> None:
        self._key, self._cluster_id, self._node_id = raft_key, cluster_id, node_id
        self._ciphers: dict[tuple[int, int], AESGCM] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Part)

    def seal(self, to: int, session: int, seq: int, part: Part) -> bytes:
        head = HEAD.pack(MAGIC, VERSION, self._node_id, to, 0, self._cluster_id, session, seq)
        nonce = seq.to_bytes(12, "little")
        cipher = self._cipher(self._node_id, session)
        return head + cipher.encrypt(nonce, self._encoder.encode(part), head)

    def head(self, datagram: bytes) -> tuple[int, int, int, int]:
        """Sender, receiver, session and seq, not authenticated. Raises WireError."""
        if not HEAD.size < len(datagram) <= DATAGRAM_BYTES_MAX:
            raise WireError("wrong_size")
        magic, version, sender, to, _, cluster, session, seq = HEAD.unpack_from(datagram)
        if magic != MAGIC or version != VERSION:
            raise WireError("wrong_version")
        if cluster != self._cluster_id:
            raise WireError("wrong_cluster")
        return sender, to, session, seq

    def open(self, datagram: bytes) -> Part:
        """Raises WireError."""
        sender, _, session, seq = self.head(datagram)
        head, body = datagram[: HEAD.size], datagram[HEAD.size :]
        try:
            plain = self._cipher(sender, session).decrypt(seq.to_bytes(12, "little"), body, head)
        except InvalidTag:
            self._ciphers.pop((sender, session), None)
            raise WireError("bad_tag") from None
        try:
            return self._decoder.decode(plain)
        except msgspec.DecodeError:
            raise WireError("malformed") from None

    def _cipher(self, sender: int, session: int) -> AESGCM:
        cipher = self._ciphers.get((sender, session))
        if cipher is None:
            label = b"hafw raft 1\0" + self._cluster_id.to_bytes(4, "big")
            label += sender.to_bytes(1, "big") + session.to_bytes(8, "big")
            cipher = AESGCM(hmac.digest(self._key, label, "sha256"))
            if len(self._ciphers) >= KEYS_MAX:
                self._ciphers.clear()
            self._ciphers[sender, session] = cipher
        return cipher


def split(message: bytes) -> list[bytes]:
    """At least one part."""
    assert len(message) <= MESSAGE_BYTES_MAX, len(message)
    places = range(0, max(1, len(message)), PART_BYTES_MAX)
    return [message[at : at + PART_BYTES_MAX] for at in places]


class Assembler:
    """The parts of one sender's messages, in order; a message with a gap is dropped."""

    def __init__(self) -> None:
        self._first = 0
        self._parts: list[bytes] = []

    def add(self, part: Part) -> bytes | None:
        """The whole message once its last part is there."""
        if part.part == 0:
            self._first, self._parts = part.first, []
        elif part.first != self._first or part.part != len(self._parts):
            self._parts = []
            return None
        self._parts.append(part.data)
        if len(self._parts) < part.parts:
            return None
        message, self._parts = b"".join(self._parts), []
        return message


# ---- messages -----------------------------------------------------------------------------------

Entry = tuple[bytes, U63, U63]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base: pysyncobj's dictionaries; the key ``type`` says which."""


class RequestVote(_Message, frozen=True, tag="request_vote"):
    term: U63
    last_log_index: U63
    last_log_term: U63


class ResponseVote(_Message, frozen=True, tag="response_vote"):
    term: U63


class AppendEntries(_Message, frozen=True, tag="append_entries"):
    """With `prevLogIdx` entries, else a piece of a dump: (bytes, first, last)."""

    term: U63
    commit_index: U63
    entries: list[Entry] | msgspec.UnsetType = msgspec.UNSET
    prevLogIdx: U63 | msgspec.UnsetType | None = msgspec.UNSET  # noqa: N815 pysyncobj's
    prevLogTerm: U63 | msgspec.UnsetType | None = msgspec.UNSET  # noqa: N815 pysyncobj's
    serialized: tuple[bytes, bool, bool] | msgspec.UnsetType | None = msgspec.UNSET


class NextNodeIndex(_Message, frozen=True, tag="next_node_idx"):
    next_node_idx: U63
    reset: bool
    success: bool


class ApplyCommand(_Message, frozen=True, tag="apply_command"):
    command: bytes
    request_id: U63 | msgspec.UnsetType = msgspec.UNSET


class ApplyCommandResponse(_Message, frozen=True, tag="apply_command_response"):
    """`error`, or where the command stands in the log."""

    request_id: U63
    error: U63 | msgspec.UnsetType = msgspec.UNSET
    log_idx: U63 | msgspec.UnsetType = msgspec.UNSET
    log_term: U63 | msgspec.UnsetType = msgspec.UNSET


Message = (
    RequestVote
    | ResponseVote
    | AppendEntries
    | NextNodeIndex
    | ApplyCommand
    | ApplyCommandResponse
)
_message_decoder = msgspec.msgpack.Decoder(Message)


def encode_message(message: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_message(data: bytes) -> dict[str, Any]:
    """A message that pysyncobj may be given. Raises WireError."""
    try:
        message: Message = _message_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise WireError("malformed_message") from None
    match message:
        case AppendEntries(entries=list(entries)):
            for command, _, _ in entries:
                check_command(command)
        case ApplyCommand(command):
            if command[:1] != REGULAR:
                raise WireError("forged_command")
            check_command(command)
        case ApplyCommandResponse(error=error, log_idx=index, log_term=term):
            if error is msgspec.UNSET and msgspec.UNSET in (index, term):
                raise WireError("malformed_message")
    found: dict[str, Any] = msgspec.msgpack.decode(data)
    return found


def check_command(command: bytes) -> None:
    """pysyncobj's no-op, or a command of ours; its own for members and versions, which hold
    pickles, are never sent and never taken. Raises WireError."""
    if command == NO_OP:
        return
    try:
        if command[:1] != REGULAR:
            raise ValueError
        decode_command(command[1:])
    except ValueError:
        raise WireError("forged_command") from None
