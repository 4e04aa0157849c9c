"""The words for one snapshot: where it stands, and where a finished one came from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sync.dumper import Dumper
from sync.snapshot_wire import SnapshotHead

__all__ = ["RESUMES_MAX", "Fetch", "Phase", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a finished snapshot came from, and the stream position at which it began."""

    holder_id: int
    session: int
    seq: int


class Phase(Enum):
    """Of the snapshot under way."""

    IDLE = "idle"
    ASKED = "asked"
    RECEIVING = "receiving"
    SWEEPING = "sweeping"


RESUMES_MAX = 8
"""In a row without a chunk; one each `NO_PROGRESS_S`, so that the server still has the job."""


@dataclass(slots=True)
class Fetch:
    """The snapshot under way."""

    group: int
    holder_id: int
    session: int
    phase: Phase
    progress_at: float
    head: SnapshotHead | None = None
    chunks: int = 0
    resumed: int = 0
    """How often it was asked to go on, since the last chunk came."""
    sweep: Dumper | None = None
    buckets: frozenset[int] | None = None
    """It is a repair of these alone."""
    end_seq: int = 0
    """The holder's position when it had sent all."""
    spoilt: bool = False
    """A replica went missing meanwhile: another snapshot is needed."""

    def may_resume(self) -> bool:
        """Something of it has come; counts."""
        self.resumed += 1
        return self.phase is Phase.RECEIVING and self.chunks > 0 and self.resumed <= RESUMES_MAX
