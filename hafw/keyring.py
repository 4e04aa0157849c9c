"""The key files of a node: 32 random bytes, or a keyring. Shell: reads files.

A fresh key file is 32 bytes and nothing else: key 0. From its first rotation on, `sync.key` is a
*keyring*, a JSON text of one line::

    {"hafw_keyring": 1, "seals": 1, "flow_secret": HEX, "keys": [{"id": 0, "key": HEX,
     "made": DATE}, {"id": 1, ...}]}

`keys` are those that this node opens with, one or (between the steps of a rotation) two; `seals`
is the one it seals with. `flow_secret` is the secret of the flow hash, which every node must
compute alike while flows live: it is derived from the first key and stays when that one goes.

A foundation: `cluster` and `sync` use it too.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hafw.errors import StateError

__all__ = [
    "KEY_BYTES",
    "KEY_IDS",
    "Keyring",
    "RingKey",
    "decode_keyring",
    "encode_keyring",
    "fingerprint",
    "flow_secret_of",
    "read_key",
    "read_key_file",
    "read_keyring",
    "show_fingerprint",
    "show_keys",
]

KEY_BYTES = 32
KEY_IDS = 256
"""Ids are one byte on the wire, and go round."""
FILE_BYTES_MAX = 4096
MEND = "copy it from another node, or replace the keys of all nodes with: hafwctl key init --force"
FLOW_HASH_LABEL = b"hafw flow hash 1"


def fingerprint(key: bytes) -> int:
    """32 bits by which a key is told from another, and that tell nothing of it."""
    return int.from_bytes(hashlib.sha256(b"hafw key fingerprint 1" + key).digest()[:4], "big")


def show_fingerprint(value: int) -> str:
    return f"{value:08x}"


def show_keys(opens: Mapping[int, int]) -> str:
    """Fingerprints by id, as ``0 (2ba3ffe6) and 1 (f0270607)``."""
    return " and ".join(f"{id_} ({show_fingerprint(opens[id_])})" for id_ in sorted(opens))


def flow_secret_of(key: bytes) -> bytes:
    """The secret of the flow hash of a cluster whose first sync key is this."""
    # HKDF-SHA256 (RFC 5869) without salt, by hand: leased must not load a library for it.
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, FLOW_HASH_LABEL + b"\x01", "sha256")


@dataclass(frozen=True, slots=True)
class RingKey:
    """One key. `made` is the UTC date and time in ISO 8601, empty if not known."""

    id: int
    key: bytes
    made: str = ""


@dataclass(frozen=True, slots=True)
class Keyring:
    """What a node opens and seals with. One or two keys, `seals` among them."""

    keys: tuple[RingKey, ...]
    seals: int
    flow_secret: bytes

    def get(self, key_id: int) -> RingKey | None:
        return next((key for key in self.keys if key.id == key_id), None)

    @property
    def sealing(self) -> RingKey:
        key = self.get(self.seals)
        assert key is not None, self.seals
        return key

    @property
    def other(self) -> RingKey | None:
        """The key it opens with but does not seal with."""
        return next((key for key in self.keys if key.id != self.seals), None)

    @property
    def by_id(self) -> dict[int, bytes]:
        return {key.id: key.key for key in self.keys}

    @property
    def fingerprints(self) -> dict[int, int]:
        return {key.id: fingerprint(key.key) for key in self.keys}


class _KeyText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: int
    key: str
    made: str = ""


class _RingText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hafw_keyring: int
    seals: int
    flow_secret: str
    keys: list[_KeyText]


def encode_keyring(ring: Keyring) -> bytes:
    """The content of the file."""
    keys = [_KeyText(key.id, key.key.hex(), key.made) for key in ring.keys]
    text = _RingText(1, ring.seals, ring.flow_secret.hex(), keys)
    return msgspec.json.encode(text) + b"\n"


def decode_keyring(content: bytes) -> Keyring:
    """Raises ValueError, without a byte of the content in its text."""
    if len(content) == KEY_BYTES:
        return Keyring((RingKey(0, content),), 0, flow_secret_of(content))
    try:
        text = msgspec.json.decode(content, type=_RingText)
        keys = tuple(RingKey(key.id, bytes.fromhex(key.key), key.made) for key in text.keys)
        ring = Keyring(keys, text.seals, bytes.fromhex(text.flow_secret))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise ValueError(f"neither {KEY_BYTES} random bytes nor a keyring") from None
    if text.hafw_keyring != 1:
        raise ValueError(f"a keyring of version {text.hafw_keyring}; this release reads version 1")
    ids = [key.id for key in keys]
    if not 1 <= len(ids) <= 2 or len(set(ids)) != len(ids) or ring.seals not in ids:
        raise ValueError("a keyring of one or two keys, of which one seals, it is not")
    if not all(0 <= key.id < KEY_IDS for key in keys):
        raise ValueError(f"key ids go from 0 to {KEY_IDS - 1}")
    if any(len(secret) != KEY_BYTES for secret in (ring.flow_secret, *(k.key for k in keys))):
        raise ValueError(f"each key and the flow secret must have {KEY_BYTES} bytes")
    return ring


def read_key(path: Path) -> bytes:
    """The 32 bytes of a plain key file. Raises StateError if it is missing, has another length,
    or could be read or replaced by others; the text says how to mend it."""
    key = _read_private(path)
    if len(key) != KEY_BYTES:
        size = f"{len(key)} bytes"
        raise StateError(f"key {path} has {size}, a key is {KEY_BYTES} random bytes; {MEND}")
    return key


def read_keyring(path: Path) -> Keyring:
    """A plain key file or a keyring. Raises StateError, as `read_key`."""
    return decode_keyring(read_key_file(path))


def read_key_file(path: Path) -> bytes:
    """Its content, which `decode_keyring` takes. Raises StateError, as `read_key`."""
    content = _read_private(path)
    try:
        decode_keyring(content)
    except ValueError as error:
        raise StateError(f"key {path} has {len(content)} bytes: {error}; {MEND}") from None
    return content


def _read_private(path: Path) -> bytes:
    make = f"make one with: hafwctl key init --node {path.parent.name}"
    try:
        # (A FIFO would wait for a writer.)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StateError(f"key {path} does not exist; {make}") from None
    except OSError as error:
        raise StateError(f"cannot read key {path}: {error.strerror}") from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise StateError(f"key {path} is not a regular file; {make}")
    with os.fdopen(fd, "rb") as file:
        if info.st_uid != os.geteuid():
            raise StateError(
                f"key {path} belongs to uid {info.st_uid}, not to uid {os.geteuid()}; "
                f"after making sure who wrote it: chown {os.geteuid()} {path}"
            )
        if info.st_mode & 0o077:
            raise StateError(
                f"key {path} has mode {stat.S_IMODE(info.st_mode):04o}, others may read it; "
                f"chmod 0600 {path}"
            )
        return file.read(FILE_BYTES_MAX + 1)
