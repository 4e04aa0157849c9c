"""The journal of hafw-raftd: entries, term and vote, on disk before a word of them is said. Shell.

In place of pysyncobj's, which maps its file into memory (a full disk is SIGBUS), has no checksum
and never calls fsync (ADR 0013)::

    journal   MAGIC, then records: length u32, CRC-32 u32, index u64, term u64, command
    vote      MAGIC, CRC-32 u32, term u64, name of the node voted for
    commit    index u64, CRC-32 u32: a lower bound, not synced; without it the leader says it
              again; a journal that ends below it was cut
    dump      MAGIC, CRC-32 u32, msgpack of (state, last entry, the one before it)

Written by append and truncate; `sync` makes what was appended durable and is called before any
message leaves. What is damaged is moved aside (``journal.damaged-N``), never overwritten and never
guessed at: the node then starts empty and must not vote until it has heard a leader out
(`Journal.amnesia`). A record cut short at the very end is damage like any other: fsync came before
anybody was told of it, or it did not, and from here the two look alike.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["DAMAGED_MAX", "DamageError", "Entry", "Journal", "parse", "read_dump", "write_dump"]

Entry = tuple[bytes, int, int]
"""(command, index, term): the order that pysyncobj expects."""

MAGIC = b"hafw raft journal 1\n"
VOTE_MAGIC = b"hafw raft vote 1\n"
DUMP_MAGIC = b"hafw raft dump 1\n"
_HEAD = struct.Struct("<II")
_NUMBERS = struct.Struct("<QQ")
_COMMIT = struct.Struct("<QI")
RECORD_BYTES_MAX = 1 << 20
DAMAGED_MAX = 8
"""Damaged files that are kept of each; then the last one is replaced."""


class DamageError(Exception):
    """What is wrong with a file, and where."""


class Journal:
    """What pysyncobj calls a journal. Paths are relative: the process has changed its folder and
    may not walk to it from the root."""

    def __init__(self, folder: Path, shown: Path, tell: Callable[..., None]) -> None:
        """`shown` is the folder in words for people; `tell` logs. Raises OSError."""
        self._folder, self._shown, self._tell = folder, shown, tell
        self._path = folder / "journal"
        self._vote_path = folder / "vote"
        self._entries: list[Entry] = []
        self._ends: list[int] = []
        self._term, self._vote = 0, ""
        self._dirty = False
        self.amnesia = ""
        """Why this node no longer knows what it had agreed to; empty if it does."""
        # A node that has voted before has a journal; without one, it was taken away.
        had = self._vote_path.exists()
        self._read_vote()
        if self._path.exists():
            self._read()
        elif had:
            self._forget("journal", "it is missing, though this node has voted before")
        self._align()
        self._commit = self._commit_written = self._read_commit()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._entries and os.fstat(self._file).st_size != len(MAGIC):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, MAGIC, 0)
        self._dirty = True
        self.sync()
        _sync_folder(self._folder)

    # ---- reading ----------------------------------------------------------------------------

    def _read(self) -> None:
        data = self._path.read_bytes()
        try:
            self._entries, self._ends = parse(data)
        except DamageError as damage:
            self._entries, self._ends = [], []
            self._forget("journal", str(damage))

    def _read_vote(self) -> None:
        if not self._vote_path.exists():
            return
        data = self._vote_path.read_bytes()
        body = data[len(VOTE_MAGIC) + 4 :]
        crc = zlib.crc32(body).to_bytes(4, "little")
        if data[: len(VOTE_MAGIC) + 4] != VOTE_MAGIC + crc or len(body) < 8:
            self._forget("vote", f"its {len(data)} bytes do not have their checksum")
            return
        self._term = int.from_bytes(body[:8], "little")
        self._vote = body[8:].decode()

    def _align(self) -> None:
        """The dump and the journal must meet: the journal holds the dump's two entries, or what
        follows cannot be applied."""
        if (self._folder / "dump").exists():
            try:
                _, last, before = read_dump(self._folder / "dump")
            except DamageError as damage:
                self._forget("dump", str(damage))
            else:
                # A crash between the dump and the cut left the journal longer: cut it now.
                with suppress(ValueError):
                    place = self._entries.index(before)
                    if self._entries[place + 1 : place + 2] == [last]:
                        del self._entries[:place]
                        self._rewrite()
                return
        if self._entries and self._entries[0][1] != 1:
            what = f"it begins at entry {self._entries[0][1]} and there is no dump of those before"
            self._entries, self._ends = [], []
            self._forget("journal", what)

    def _read_commit(self) -> int:
        """What was committed was on this disk before: an end below it was cut off, and a cut
        between two records can be seen by nothing else."""
        with suppress(OSError, struct.error):
            index, crc = _COMMIT.unpack((self._folder / "commit").read_bytes())
            if crc != zlib.crc32(index.to_bytes(8, "little")) or index <= 1:
                return 1
            if self._entries and index <= self._entries[-1][1]:
                return int(index)
            if self.amnesia or (not self._entries and (self._folder / "dump").exists()):
                return 1  # Known already; or a crash while a dump was being taken over.
            what = f"it ends at entry {self._entries[-1][1]}" if self._entries else "it is empty"
            self._entries, self._ends = [], []
            self._forget("journal", f"{what}, and entry {index} was committed")
        return 1

    def _forget(self, name: str, what: str) -> None:
        self.amnesia = f"{self._shown / name} is damaged: {what}"
        source = self._folder / name
        kept = ""
        if source.exists():
            places = [self._folder / f"{name}.damaged-{n}" for n in range(1, DAMAGED_MAX + 1)]
            target = next((place for place in places if not place.exists()), places[-1])
            os.replace(source, target)
            kept = str(self._shown / target.name)
        if name == "journal":  # It is of the journal that was.
            (self._folder / "commit").unlink(missing_ok=True)
        self._tell("raft_file_refused", file=str(self._shown / name), what=what, kept=kept)

    # ---- pysyncobj's interface --------------------------------------------------------------

    def add(self, command: bytes, index: int, term: int) -> None:
        record = _NUMBERS.pack(index, term) + command
        record = _HEAD.pack(len(record), zlib.crc32(record)) + record
        end = self._end()
        try:
            written = os.pwrite(self._file, record, end)
            if written < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, end)  # Half a record would be damage.
            raise
        self._entries.append((bytes(command), index, term))
        self._ends.append(end + len(record))
        self._dirty = True

    def clear(self) -> None:
        self._cut(0)

    def deleteEntriesFrom(self, first: int) -> None:  # noqa: N802 pysyncobj's
        self._cut(first)

    def deleteEntriesTo(self, count: int) -> None:  # noqa: N802 pysyncobj's
        """Forget the first `count`: a new file takes the old one's place at once."""
        del self._entries[:count]
        self._rewrite()
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def __getitem__(self, place: int | slice) -> Any:  # An entry, or a list of them.
        return self._entries[place]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802 pysyncobj's
        self._commit = index

    def getRaftCommitIndex(self) -> int:  # noqa: N802 pysyncobj's
        return self._commit

    def setCurrentTerm(self, term: int, vote: str | None) -> None:  # noqa: N802 pysyncobj's
        """Durable when this returns: nobody is asked for a vote or given one before."""
        if (term, vote or "") == (self._term, self._vote) and self._vote_path.exists():
            return
        body = term.to_bytes(8, "little") + (vote or "").encode()
        _replace(self._vote_path, VOTE_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
        self._term, self._vote = term, vote or ""

    def getCurrentTerm(self) -> int:  # noqa: N802 pysyncobj's
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802 pysyncobj's
        return self._vote or None

    def onOneSecondTimer(self) -> None:  # noqa: N802 pysyncobj's
        self.sync()
        if self._commit != self._commit_written:
            fresh = self._folder / "commit.new"
            crc = zlib.crc32(self._commit.to_bytes(8, "little"))
            fresh.write_bytes(_COMMIT.pack(self._commit, crc))
            os.replace(fresh, self._folder / "commit")
            self._commit_written = self._commit

    def _destroy(self) -> None:
        self.onOneSecondTimer()
        os.close(self._file)

    # ---- the disk ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Everything appended or cut is on the disk. Raises OSError."""
        if self._dirty:
            os.fsync(self._file)
            self._dirty = False

    def _end(self) -> int:
        return self._ends[-1] if self._ends else len(MAGIC)

    def _cut(self, first: int) -> None:
        del self._entries[first:]
        del self._ends[first:]
        os.ftruncate(self._file, self._end())
        self._dirty = True

    def _rewrite(self) -> None:
        content = MAGIC + b"".join(_record(entry) for entry in self._entries)
        _replace(self._path, content)
        self._entries, self._ends = parse(content)


def _replace(path: Path, content: bytes) -> None:
    """The file is the old one or the new one at any moment, on the disk too. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_dump(path: Path, state: bytes, last: Entry, before: Entry) -> None:
    """Raises OSError."""
    body = msgspec.msgpack.encode((state, last, before))
    _replace(path, DUMP_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)


def read_dump(path: Path) -> tuple[bytes, Entry, Entry]:
    """Raises DamageError, OSError."""
    data = path.read_bytes()
    body = data[len(DUMP_MAGIC) + 4 :]
    if data[: len(DUMP_MAGIC) + 4] != DUMP_MAGIC + zlib.crc32(body).to_bytes(4, "little"):
        raise DamageError(f"its {len(data)} bytes do not have their checksum")
    try:
        return msgspec.msgpack.decode(body, type=tuple[bytes, Entry, Entry])
    except msgspec.DecodeError as error:
        raise DamageError(str(error)) from None


def _record(entry: Entry) -> bytes:
    command, index, term = entry
    record = _NUMBERS.pack(index, term) + command
    return _HEAD.pack(len(record), zlib.crc32(record)) + record


def parse(data: bytes) -> tuple[list[Entry], list[int]]:
    """Entries and where each ends. Raises DamageError."""
    if not data.startswith(MAGIC):
        raise DamageError(f"its {len(data)} bytes do not begin as a journal does")
    entries: list[Entry] = []
    ends: list[int] = []
    at = len(MAGIC)
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise DamageError(f"it is cut short in a record's head at byte {at}")
        size, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + size]
        if not _NUMBERS.size <= size <= RECORD_BYTES_MAX:
            raise DamageError(f"the record at byte {at} has an impossible length of {size}")
        if len(body) < size:
            raise DamageError(f"it is cut short in the record at byte {at}")
        if zlib.crc32(body) != crc:
            raise DamageError(f"the record at byte {at} does not have its checksum")
        index, term = _NUMBERS.unpack_from(body)
        if entries and (index != entries[-1][1] + 1 or term < entries[-1][2]):
            raise DamageError(f"the record at byte {at} does not follow the one before it")
        at += _HEAD.size + size
        entries.append((body[_NUMBERS.size :], index, term))
        ends.append(at)
    return entries, ends
