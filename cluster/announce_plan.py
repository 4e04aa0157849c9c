"""When a new holder announces its virtual MAC: quickly several times, then slowly for ever.

Switches learn the new port from these frames, and forget it in minutes (DESIGN §4).
"""

from __future__ import annotations

from cluster.lease_types import NS_PER_MS

__all__ = ["ANNOUNCE_MS", "AnnouncePlan"]

ANNOUNCE_MS = (0, 20, 50, 100, 250, 500, 1000, 2000, 4000)
"""Milliseconds after the takeover; then every announce interval."""


class AnnouncePlan:
    """The next announcement of one group; none while this node is not the holder."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._from_ns = 0
        self._step = 0
        self.at_ns: int | None = None

    def start(self, now_ns: int) -> None:
        """Begin, unless it runs: a new epoch of the same holder needs no burst."""
        if self.at_ns is None:
            self._from_ns = now_ns
            self._step = 0
            self.at_ns = now_ns

    def stop(self) -> None:
        self.at_ns = None

    def due(self, now_ns: int) -> bool:
        """Whether to announce now; steps that were slept through count as one."""
        if self.at_ns is None or now_ns < self.at_ns:
            return False
        while self._step < len(ANNOUNCE_MS) and self._step_ns() <= now_ns:
            self._step += 1
        burst = self._step < len(ANNOUNCE_MS)
        self.at_ns = self._step_ns() if burst else now_ns + self._interval_ns
        return True

    def _step_ns(self) -> int:
        return self._from_ns + ANNOUNCE_MS[self._step] * NS_PER_MS
