"""What the peers have confirmed of this session: flows at risk, and how long a delta took. Pure.

Peers say in each beacon up to which datagram they have applied, and since when. A flow is *at
risk* from its first publication until the slowest peer that follows has applied it: should this
node die now, that peer would not have it. A delay runs from the sealing of a datagram to the
peer's having applied it, measured by this node's clock alone: what the peer says it has waited
since is taken off, so that the beacon's period does not count. The way back of the beacon does,
which makes it an upper bound.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

__all__ = ["DELAY_SAMPLES", "DELAY_WINDOW_S", "DelayWindow", "Ledger", "SentBook", "SentTimes"]

DELAY_SAMPLES = 4096
DELAY_WINDOW_S = 60.0


class DelayWindow:
    """Delays of the last minute, in milliseconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=DELAY_SAMPLES)

    def add(self, delay_ms: float, now: float) -> None:
        self._samples.append((now, delay_ms))

    def percentiles(self, now: float) -> tuple[float | None, float | None]:
        values = sorted(ms for at, ms in self._samples if now - at <= DELAY_WINDOW_S)
        if not values:
            return None, None
        return values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)]


class SentTimes(Protocol):
    """What was sent in one session, as far back as the ring goes."""

    @property
    def high_water(self) -> int: ...
    def sent(self, seq: int) -> tuple[int, float] | None:
        """Flows ever published up to it, and when it was sealed; None: not in the ring."""


class SentBook:
    """The reference of `SentTimes`, by seq as in `SendRing`."""

    def __init__(self, datagrams: int) -> None:
        self._size = datagrams
        self._slots: list[tuple[int, float]] = []
        self.high_water = 0

    def note(self, seq: int, published: int, *, now: float) -> None:
        assert seq == self.high_water + 1, (seq, self.high_water)
        if len(self._slots) < self._size:
            self._slots.append((published, now))
        else:
            self._slots[(seq - 1) % self._size] = (published, now)
        self.high_water = seq

    def sent(self, seq: int) -> tuple[int, float] | None:
        if not max(1, self.high_water - len(self._slots) + 1) <= seq <= self.high_water:
            return None
        return self._slots[(seq - 1) % self._size]


class Ledger:
    """One session of this node. Bounded: of what left the ring only the count is known."""

    def __init__(self, datagrams: int, published: int, times: SentTimes | None = None) -> None:
        """`published`: flows before this session; a snapshot brings them. `times` keeps the last
        `datagrams`; without it they are told by `sent`."""
        self._size = datagrams
        self._before = published
        self._book = SentBook(datagrams)
        self._times = self._book if times is None else times
        self._acked: dict[int, int] = {}
        self.delays: dict[int, DelayWindow] = {}

    @property
    def published(self) -> int:
        """Flows published up to the last datagram."""
        last = self._times.sent(self._times.high_water)
        return self._before if last is None else last[0]

    def sent(self, seq: int, published: int, *, now: float) -> None:
        assert self._times is self._book, "the sender keeps the times itself"
        self._book.note(seq, published, now=now)

    def on_ack(self, peer_id: int, seq: int, age_s: float, *, now: float) -> None:
        """The peer has applied all up to `seq`, for `age_s` now."""
        if seq > self._times.high_water or seq <= self._acked.get(peer_id, -1):
            return
        self._acked[peer_id] = seq
        times = self._times.sent(seq)
        if times is not None:
            window = self.delays.setdefault(peer_id, DelayWindow())
            window.add(max(now - age_s - times[1], 0.0) * 1e3, now)

    def acked(self, peer_id: int) -> int | None:
        """The newest seq that the peer confirmed; None if it never spoke of this session."""
        return self._acked.get(peer_id)

    def at_risk(self, peer_id: int) -> int:
        """Flows first published in this session that the peer has not confirmed. At least, if
        what it last confirmed has left the ring."""
        acked = self._acked.get(peer_id, 0)
        high = self._times.high_water
        if acked >= high:
            return 0
        if acked == 0 and high <= self._size:
            return self.published - self._before
        oldest = self._times.sent(max(acked, high - min(self._size, high) + 1))
        assert oldest is not None
        return self.published - oldest[0]
