"""What the snapshot server remembers of a request, and what it asks of the rest of syncd. Plain
records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sync.delta import Delta
from sync.dumper import Dumper
from sync.snapshot_wire import SnapshotChunk, SnapshotEnd

__all__ = ["Job", "Serving"]


@dataclass(frozen=True, slots=True)
class Serving:
    """What the server asks the rest of syncd. `start` flushes the stream and returns (session,
    seq, epoch), or why the group is not served now. `position` flushes it and says where it is.
    `doubt`: a repair of the group did not help; our own registry may be wrong."""

    start: Callable[[int], tuple[int, int, int] | str]
    dump: Callable[[int], Dumper]
    position: Callable[[], int]
    doubt: Callable[[int], None]
    plain: Callable[[bytes, int, Collection[int]], tuple[bytes, int, list[bytes]]] | None = None
    """If dumps are raw: of a chunk, an epoch and buckets, the deltas of what is plain, how many,
    and the messages of the rest."""


@dataclass(slots=True)
class Job:
    """One request of one node."""

    identity: bytes
    """Its connection."""
    request: int
    group: int
    epoch: int
    dumper: Dumper
    buckets: frozenset[int]
    heard_at: float
    sent: int = 0
    applied: int = 0
    unacknowledged: deque[SnapshotChunk] = field(default_factory=deque)
    """From `applied` on, `CHUNKS_IN_FLIGHT` at most."""
    broken: bool = False
    """The connection took no more: wait for the client to ask over another."""
    ended: SnapshotEnd | None = None
    flows: int = 0
    children: list[Delta] = field(default_factory=list)
    late: list[Delta] | None = None
    """What is left to send once the dump is through."""
