"""The voters file: the set in force and the one that is to follow, over restarts. Shell.

``NodePaths.voters``: one line of JSON and one with its CRC-32 in hex, written like the era file.
Written before the era file, which says that there is one. Hence a node whose era file says so, and
which has none, knows that it has lost it. Such a node, and one whose file is damaged, may have
told others what it no longer knows: it gets a record that says `lost` (`cluster.voters`). A new
node's file says set 0 until the node knows a set: it then goes by its cluster.yaml of today.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgspec

from cluster.era import write_durable
from cluster.lease_types import NEWCOMER, VoterRecord, is_sound
from hafw.config.model import VoterSet

__all__ = ["read_voters", "write_voters"]

_FILE_BYTES_MAX = 4096


class _Set(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: int
    members: list[int]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: _Set
    next: _Set | None
    lost: bool


def read_voters(path: Path, founders: VoterSet, *, first_start: bool) -> tuple[VoterRecord, str]:
    """The record, and what is wrong with the file; empty if nothing is. Never raises: a node
    without its record may run, follow and carry groups, and does not vote."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if first_start:
            return VoterRecord.newcomer(founders), ""
        return VoterRecord(founders, lost=True), f"{path} is gone"
    except OSError as error:
        return VoterRecord(founders, lost=True), f"cannot read {path}: {error.strerror}"
    try:
        content = os.read(fd, _FILE_BYTES_MAX)
    except OSError as error:
        return VoterRecord(founders, lost=True), f"cannot read {path}: {error.strerror}"
    finally:
        os.close(fd)
    record = _decode(content)
    if record is None:
        return VoterRecord(founders, lost=True), f"{path} is damaged"
    if record.current.id == NEWCOMER:
        return VoterRecord.newcomer(founders), ""
    return record, ""


def write_voters(path: Path, record: VoterRecord) -> None:
    """Make it durable. Raises OSError; the file then holds the old record or the new one."""
    write_durable(path, _encode(record))


def _encode(record: VoterRecord) -> bytes:
    def plain(voters: VoterSet) -> _Set:
        return _Set(voters.id, list(voters.members))

    follows = None if record.next is None else plain(record.next)
    text = msgspec.json.encode(_File(plain(record.current), follows, record.lost))
    return b"%s\n%08x\n" % (text, zlib.crc32(text))


def _decode(content: bytes) -> VoterRecord | None:
    text, _, rest = content.partition(b"\n")
    if rest != b"%08x\n" % zlib.crc32(text):
        return None
    try:
        file = msgspec.json.decode(text, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None

    def checked(voters: _Set) -> VoterSet | None:
        found = VoterSet(id=voters.id, members=tuple(voters.members))
        return found if is_sound(found) else None

    current = checked(file.current)
    follows = None if file.next is None else checked(file.next)
    if current is None or (file.next is not None and follows is None):
        return None
    return VoterRecord(current, follows, file.lost)
