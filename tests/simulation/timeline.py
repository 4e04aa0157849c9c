"""What the simulated worlds share: time that a queue moves on, a network's faults, the verdict."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

__all__ = ["CheckFailed", "Timeline"]

CALM_DELAY_S = 0.0002


class CheckFailed(AssertionError):  # noqa: N818 - it is a verdict, not an error
    """A checker caught the cores; the message names the seed."""


class Timeline:
    """Everything random comes from the seed. In the calm, nothing is lost."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 0.0
        self.calm = False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def check(self, true: bool, what: str) -> None:
        if not true:
            raise CheckFailed(f"seed {self.seed}, t={self.now:.4f}: {what}")

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, act))

    def next_due(self, end: float) -> bool:
        """Whether something waits that is due by `end`."""
        return bool(self._queue) and self._queue[0][0] <= end

    def pop(self) -> tuple[float, Callable[[], None]]:
        when, _, act = heapq.heappop(self._queue)
        return when, act

    def over_a_link(
        self, arrive: Callable[[], None], *, loss: float, duplicate: float, delay_s: float
    ) -> None:
        """It may lose, delay (and so reorder) or double a datagram."""
        rng = self.rng
        if self.calm:
            self.at(self.now + CALM_DELAY_S, arrive)
        elif rng.random() >= loss:
            for _ in range(2 if rng.random() < duplicate else 1):
                self.at(self.now + rng.uniform(0.0001, delay_s), arrive)
