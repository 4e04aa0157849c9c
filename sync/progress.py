"""How far a pass over the holder's own entries is: of adoption, a person waits for its end. Pure.

The total is what the registry knew of the group when the pass began. The kernel may show more
(flows that are not published yet), so that it grows with what is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from hafw.messages import SyncPassStatus

__all__ = ["PassProgress"]


@dataclass(slots=True)
class PassProgress:
    """One pass, running or over."""

    kind: str
    """`take`, `repair` or `refresh`."""
    total: int
    began_at: float
    done: int = 0
    adopted: int = 0
    ended_at: float | None = None

    def note(self, entries: int, adopted: int) -> None:
        """Another chunk of the dump has been dealt with."""
        self.done += entries
        self.adopted += adopted
        self.total = max(self.total, self.done)

    def end(self, *, now: float) -> None:
        """It is through: flows that have ended since it began are not waited for."""
        self.ended_at = now
        self.total = self.done

    def facts(self, *, now: float) -> SyncPassStatus:
        took_s = (now if self.ended_at is None else self.ended_at) - self.began_at
        return SyncPassStatus(
            kind=self.kind,
            running=self.ended_at is None,
            done=self.done,
            total=self.total,
            adopted=self.adopted,
            per_s=self.done / took_s if took_s > 0 else 0.0,
        )
