"""Sealed datagrams of ct_sync: header, keys, nonces, replay. Pure.

====== ===== ===================================================================================
offset bytes field (big-endian)
====== ===== ===================================================================================
0      4     magic ``hCTS``
4      1     version, 2
5      1     type: 1 DELTAS, 2 BEACON, 3 NACK, 4 CHALLENGE, 5 CHALLENGE_REPLY,
              6 PROBE
6      2     length of the payload, without header and tag
8      4     cluster id
12     1     sender: node id, 1 to 62
13     1     key id: which of the cluster's sync keys
14     2     zero
16     8     session: random, drawn at each start of the sender's syncd
24     8     epoch
32     8     seq
40     8     fresh: new for each datagram (see *Nonces*)
48     n     payload, AES-256-GCM
48 + n 16    tag; the header is the associated data
====== ===== ===================================================================================

*Keys.* HKDF-SHA256 over one of the cluster's 32-byte sync keys gives one key for each (cluster,
sender, session). A restart draws a new session and so a new key: no counter need survive it.

*Nonces.* 8 bytes ``fresh``, then 32 bits: 3 of type, the low 29 of seq. Within one process seq
grows for each type (`Sealer` asserts it), and ``fresh`` covers its wrapping. But a process can be
doubled behind its own back, by a fork or by a snapshot of its virtual machine that is resumed
twice, and then both go on with the same session and seq. So ``fresh`` is BLAKE2b-64 under a
secret of the sender, over 16 bytes from the kernel's generator, the header before it and the
payload: two copies part at the first random byte that differs, and even with a generator that
repeats itself a nonce comes again only for the same plaintext, which gives the same bytes. A
repair resends the sealed bytes of its ring and seals nothing again. (docs/adr/0008)

*Trust.* Nothing of the payload is parsed before the tag holds. Header fields are read before that
only to find the key; a stranger's datagram costs one derivation at most, and no memory: a key is
remembered only once it has opened something.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hafw.errors import PeerError

__all__ = [
    "CACHED_KEYS_MAX",
    "DATAGRAM_BYTES_MAX",
    "FRESH_BYTES",
    "HEADER_BYTES",
    "KEY_BYTES",
    "PAYLOAD_BYTES_MAX",
    "REPLAY_WINDOW",
    "TAG_BYTES",
    "Header",
    "MessageType",
    "Opener",
    "ReplayWindow",
    "Sealer",
    "Seals",
    "UnknownKeyError",
    "WireError",
    "derive_key",
    "fresh_bytes",
    "nonce_of",
    "parse_header",
]

MAGIC = b"hCTS"
VERSION = 2
_HEADER = struct.Struct(">4sBBHIBB2xQQQ")
_NONCE_END = struct.Struct(">I")
_SEQ_NONCE_BITS = 29
FRESH_BYTES = 8
RANDOM_BYTES = 16
HEADER_BYTES = _HEADER.size + FRESH_BYTES
TAG_BYTES = 16
KEY_BYTES = 32
DATAGRAM_BYTES_MAX = 1400
"""Default bound of what UDP carries: fits an MTU of 1,500 with room for a tunnel."""
PAYLOAD_BYTES_MAX = DATAGRAM_BYTES_MAX - HEADER_BYTES - TAG_BYTES
CACHED_KEYS_MAX = 64
REPLAY_WINDOW = 4096
_SEQ_MAX = (1 << 64) - 1


class MessageType(IntEnum):
    """What a datagram carries; also its counter space (see *Nonces*)."""

    DELTAS = 1
    BEACON = 2
    NACK = 3
    CHALLENGE = 4
    CHALLENGE_REPLY = 5
    PROBE = 6


class WireError(PeerError):
    """A datagram to drop. `reason` names the counter:

    ``truncated`` ``bad_magic`` ``wrong_version`` ``unknown_type`` ``wrong_cluster``
    ``foreign_sender`` ``unknown_key`` ``lying_length`` ``bad_tag`` ``bad_payload``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"datagram refused ({reason}): {detail}")


class UnknownKeyError(WireError):
    """``unknown_key``: sealed, so it says, by a peer with a key that this node has not."""

    def __init__(self, sender_id: int, key_id: int) -> None:
        self.sender_id, self.key_id = sender_id, key_id
        super().__init__("unknown_key", f"node {sender_id} seals with key {key_id}")


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the payload. Not to be believed until the tag holds."""

    type: MessageType
    payload_bytes: int
    cluster_id: int
    sender_id: int
    key_id: int
    session: int
    epoch: int
    seq: int


def parse_header(
    datagram: bytes, *, cluster_id: int, senders: Collection[int] | None = None
) -> Header:
    """The header of a datagram that is for us, by everything that can be seen without a key.

    `senders` are the node ids to listen to; None for any. Raises WireError.
    """
    size = len(datagram)
    if size < HEADER_BYTES + TAG_BYTES:
        raise WireError("truncated", f"{size} bytes; at least {HEADER_BYTES + TAG_BYTES}")
    magic, version, kind, length, cluster, sender, key_id, session, epoch, seq = (
        _HEADER.unpack_from(datagram)
    )
    if magic != MAGIC:
        raise WireError("bad_magic", magic.hex())
    if version != VERSION:
        raise WireError("wrong_version", f"version {version}; this node speaks {VERSION}")
    if cluster != cluster_id:
        raise WireError("wrong_cluster", f"cluster {cluster:#010x}; ours is {cluster_id:#010x}")
    if senders is not None and sender not in senders:
        raise WireError("foreign_sender", f"node {sender} is not a peer of this node")
    if HEADER_BYTES + length + TAG_BYTES != size:
        raise WireError("lying_length", f"states {length} bytes of payload in {size} bytes")
    try:
        kind = _TYPES[kind]
    except KeyError:
        raise WireError("unknown_type", f"type {kind}") from None
    return Header(kind, length, cluster, sender, key_id, session, epoch, seq)


_TYPES = {kind.value: kind for kind in MessageType}


def derive_key(master: bytes, *, cluster_id: int, sender_id: int, session: int) -> bytes:
    """The key under which one process of one node seals: HKDF-SHA256, 32 bytes."""
    assert len(master) == KEY_BYTES, len(master)
    info = b"hafw ct_sync 2" + struct.pack(">IBQ", cluster_id, sender_id, session)
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(master)


def fresh_bytes(secret: bytes, random: bytes, header: bytes, payload: bytes) -> bytes:
    """The header's last field, for the `header` before it. A receiver only reads it."""
    assert len(random) == RANDOM_BYTES, len(random)
    return blake2b(random + header + payload, digest_size=FRESH_BYTES, key=secret).digest()


def nonce_of(datagram: bytes) -> bytes:
    """The 12 bytes under which a datagram is sealed, by its header."""
    kind, seq = datagram[5], int.from_bytes(datagram[36:40], "big")
    return datagram[40:48] + _NONCE_END.pack(
        kind << _SEQ_NONCE_BITS | seq & ((1 << _SEQ_NONCE_BITS) - 1)
    )


class Seals(Protocol):
    """What seals the datagrams of one session: `Sealer`, or the native one."""

    @property
    def session(self) -> int: ...
    @property
    def key_id(self) -> int: ...
    def use_key(self, key_id: int, master: bytes) -> None: ...
    def seal(self, type: MessageType, seq: int, epoch: int, payload: bytes) -> bytes: ...  # noqa: A002


class Sealer:
    """Seals the datagrams of this process. `session` must be drawn afresh at each start; `draw`
    is the kernel's random source, asked anew for each datagram and never ahead of it."""

    def __init__(
        self,
        master: bytes,
        *,
        key_id: int,
        cluster_id: int,
        sender_id: int,
        session: int,
        draw: Callable[[int], bytes],
    ) -> None:
        self._cluster_id = cluster_id
        self._sender_id = sender_id
        self.session = session
        self._draw = draw
        self._secret = draw(KEY_BYTES)
        self._last = dict.fromkeys(MessageType, 0)
        self.use_key(key_id, master)

    def use_key(self, key_id: int, master: bytes) -> None:
        """Seal with this key of the cluster from now on. Seq goes on where it was."""
        self.key_id = key_id
        key = derive_key(
            master,
            cluster_id=self._cluster_id,
            sender_id=self._sender_id,
            session=self.session,
        )
        self._aead = AESGCM(key)

    def seal(self, type: MessageType, seq: int, epoch: int, payload: bytes) -> bytes:  # noqa: A002
        """A whole datagram. `seq` must be above every earlier one of the same type: a nonce that
        came twice would give the key away, so that is an assertion and not an error."""
        assert self._last[type] < seq <= _SEQ_MAX, (type, seq, self._last[type])
        self._last[type] = seq
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            type,
            len(payload),
            self._cluster_id,
            self._sender_id,
            self.key_id,
            self.session,
            epoch,
            seq,
        )
        header += fresh_bytes(self._secret, self._draw(RANDOM_BYTES), header, payload)
        return header + self._aead.encrypt(nonce_of(header), payload, header)


class Opener:
    """Opens what peers sealed. Stateless but for a bounded cache of derived keys: replay is the
    caller's to judge, with a `ReplayWindow` for each sender, session and type it accepts."""

    def __init__(
        self,
        keys: Mapping[int, bytes],
        *,
        cluster_id: int,
        senders: Collection[int] | None = None,
    ) -> None:
        self._cluster_id = cluster_id
        self._senders = None if senders is None else frozenset(senders)
        self._keys: OrderedDict[tuple[int, int, int], AESGCM] = OrderedDict()
        self.accept_keys(keys)

    def accept_keys(self, keys: Mapping[int, bytes]) -> None:
        """The cluster's keys by id; what another one sealed is refused from now on."""
        assert all(len(key) == KEY_BYTES for key in keys.values())
        self._masters = dict(keys)
        self._keys.clear()

    def open(self, datagram: bytes) -> tuple[Header, bytes]:
        """Header and payload, both authentic. Raises WireError."""
        header = parse_header(datagram, cluster_id=self._cluster_id, senders=self._senders)
        return header, self.open_payload(header, datagram)

    def open_payload(self, header: Header, datagram: bytes) -> bytes:
        """The payload of a datagram whose header is parsed already (to drop duplicates first).
        Raises WireError."""
        who = (header.key_id, header.sender_id, header.session)
        aead = self._keys.get(who)
        known = aead is not None
        if aead is None:
            master = self._masters.get(header.key_id)
            if master is None:
                raise UnknownKeyError(header.sender_id, header.key_id)
            aead = AESGCM(
                derive_key(
                    master,
                    cluster_id=self._cluster_id,
                    sender_id=header.sender_id,
                    session=header.session,
                )
            )
        try:
            payload = aead.decrypt(
                nonce_of(datagram), datagram[HEADER_BYTES:], datagram[:HEADER_BYTES]
            )
        except InvalidTag:
            raise WireError("bad_tag", f"from node {header.sender_id}") from None
        if known:
            self._keys.move_to_end(who)
        else:
            # Only now: a stranger with random sessions must not push the peers' keys out.
            self._keys[who] = aead
            if len(self._keys) > CACHED_KEYS_MAX:
                self._keys.popitem(last=False)
        return payload

    def key_of(self, key_id: int, sender_id: int, session: int) -> bytes | None:
        """The key of a session, if it has opened something."""
        if (key_id, sender_id, session) not in self._keys:
            return None
        return derive_key(
            self._masters[key_id],
            cluster_id=self._cluster_id,
            sender_id=sender_id,
            session=session,
        )

    @property
    def cached_keys(self) -> int:
        return len(self._keys)


class ReplayWindow:
    """Which of the last `size` sequence numbers have come (RFC 4303 section 3.4.3, on one int).

    Bit i of the bitmap is ``highest - i``. What is older than the window counts as seen.
    """

    __slots__ = ("_bitmap", "_mask", "highest", "size")

    def __init__(self, size: int = REPLAY_WINDOW, *, highest: int = 0) -> None:
        assert size >= 1, size
        self.size = size
        self.highest = highest
        self._mask = (1 << size) - 1
        self._bitmap = self._mask  # Everything up to the start counts as seen.

    def seen(self, seq: int) -> bool:
        """Has it come before, or is it too old to tell?"""
        age = self.highest - seq
        return age >= 0 and (age >= self.size or bool(self._bitmap >> age & 1))

    def accept(self, seq: int) -> bool:
        """Record it; False if it was seen. Only for datagrams whose tag holds."""
        ahead = seq - self.highest
        if ahead > 0:
            self._bitmap = (self._bitmap << ahead | 1) & self._mask if ahead < self.size else 1
            self.highest = seq
            return True
        if self.seen(seq):
            return False
        self._bitmap |= 1 << -ahead
        return True
