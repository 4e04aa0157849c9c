"""What a sender keeps for repair, and how it answers those who ask. Pure.

Every receiver that misses a datagram asks for it, and with more than two nodes they mostly miss
the same one (it was lost before the switch parted it). So a repair goes to all, and is not sent
again for `REPAIR_HOLD_S`: who asked meanwhile hears it, and who does not asks again after that.
A long gap is one node's own trouble (it was paused, its link was cut): it alone gets what it
asks for.

All repairs together keep to a rate. Most of them sent for the second time mean that they do not
arrive: then the rate is halved, else doubled, between `REPAIRS_PER_S_MIN` and `_MAX`. Else a
link that is full would be filled with repairs of what it dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "REPAIRS_BURST",
    "REPAIRS_PER_S_MAX",
    "REPAIRS_PER_S_MIN",
    "REPAIR_DATAGRAMS_MAX",
    "REPAIR_HOLD_S",
    "REPAIR_MEMORY_S",
    "SHARED_GAP_MAX",
    "KeptDatagrams",
    "Repair",
    "Repairer",
    "SendRing",
]

REPAIR_DATAGRAMS_MAX = 256
"""Datagrams re-sent for one NACK; the receiver asks again for the rest."""
REPAIR_HOLD_S = 0.0015
"""Less than what a receiver waits before it asks again (`sync.stream`: 2 ms, then longer)."""
SHARED_GAP_MAX = 64
"""A NACK for more datagrams than this is answered to its sender alone."""
REPAIR_MEMORY_S = 0.5
"""A repair asked for again within this time has not arrived."""
REPAIRS_PER_S_MAX = 20_000
REPAIRS_PER_S_MIN = 200
REPAIRS_BURST = 1024
"""At the greatest rate; less in proportion, but some."""
REPAIRS_BURST_MIN = 16
RATE_STEP_S = 0.02
"""The rate changes at most this often: longer than the way there and back."""


class KeptDatagrams(Protocol):
    """The last datagrams of a session."""

    @property
    def low_water(self) -> int: ...
    @property
    def high_water(self) -> int: ...
    def get(self, seq: int) -> bytes | None: ...


class SendRing:
    """The last `size` sealed datagrams of this session, by seq, for repair."""

    def __init__(self, size: int) -> None:
        assert size > 0, size
        self._size = size
        self._slots: list[bytes] = []
        self.high_water = 0
        """The newest seq sent; 0 = nothing yet."""

    @property
    def low_water(self) -> int:
        """The oldest seq that can still be repaired; high_water + 1 if there is none."""
        return max(1, self.high_water - min(len(self._slots), self._size) + 1)

    def push(self, seq: int, datagram: bytes) -> None:
        assert seq == self.high_water + 1, (seq, self.high_water)
        if len(self._slots) < self._size:
            self._slots.append(datagram)
        else:
            self._slots[(seq - 1) % self._size] = datagram
        self.high_water = seq

    def get(self, seq: int) -> bytes | None:
        if not self.low_water <= seq <= self.high_water:
            return None
        return self._slots[(seq - 1) % self._size]


@dataclass(frozen=True, slots=True)
class Repair:
    """What to send again. `to_all`: by multicast; else to the asker, over one link."""

    seqs: list[int]
    to_all: bool


class Repairer:
    """Answers the NACKs of a session's receivers."""

    def __init__(
        self, ring: KeptDatagrams, *, peers: int, counters: Counter[str] | None = None
    ) -> None:
        self._ring = ring
        self._peers = peers
        self._sent: dict[int, tuple[float, int]] = {}
        """Seq -> when it was last repaired, and for whom: 0 for all. In the order of time."""
        self._rate = float(REPAIRS_PER_S_MAX)
        self._rate_at = 0.0
        self._tokens = float(REPAIRS_BURST)
        self._filled_at = 0.0
        self.counters: Counter[str] = Counter() if counters is None else counters

    def answer(self, peer_id: int, ranges: Iterable[tuple[int, int]], *, now: float) -> Repair:
        """For a NACK of `peer_id`. What left the ring is only counted: the beacon's low-water
        mark tells the receiver so."""
        self._refill(now)
        self.counters["nacks_received"] += 1
        low, high = self._ring.low_water, self._ring.high_water
        wanted: list[int] = []
        asked = 0
        for first, last in ranges:
            start, end = max(first, 1), min(last, high)
            if start < low and start <= end:
                self.counters["repairs_beyond_ring"] += min(end, low - 1) - start + 1
                start = low
            asked += max(end - start + 1, 0)
            for seq in range(start, end + 1):
                if len(wanted) >= REPAIR_DATAGRAMS_MAX:
                    break
                if self._held(seq, peer_id, now):
                    self.counters["repairs_suppressed"] += 1
                else:
                    wanted.append(seq)
        if len(wanted) > self._tokens:
            self.counters["repairs_rate_limited"] += 1
            del wanted[int(self._tokens) :]
        to_all = self._peers > 1 and asked <= SHARED_GAP_MAX
        again = 0
        for seq in wanted:
            again += self._sent.pop(seq, (0.0, -1))[1] in (0, peer_id)
            self._sent[seq] = (now, 0 if to_all else peer_id)
        self._adapt(again, len(wanted), now)
        self._tokens -= len(wanted)
        self.counters["repairs_sent"] += len(wanted)
        return Repair(wanted, to_all)

    def _held(self, seq: int, peer_id: int, now: float) -> bool:
        at, whom = self._sent.get(seq, (-1.0, 0))
        return whom in (0, peer_id) and at >= 0 and now - at < REPAIR_HOLD_S

    def _adapt(self, again: int, sent: int, now: float) -> None:
        if not sent or now - self._rate_at < RATE_STEP_S:
            return
        rate = self._rate / 2 if 2 * again > sent else self._rate * 2
        self._rate = min(max(rate, REPAIRS_PER_S_MIN), REPAIRS_PER_S_MAX)
        self._rate_at = now

    def _refill(self, now: float) -> None:
        burst = max(REPAIRS_BURST * self._rate / REPAIRS_PER_S_MAX, REPAIRS_BURST_MIN)
        earned = max(now - self._filled_at, 0.0) * self._rate
        self._tokens = min(self._tokens + earned, burst)
        self._filled_at = now
        while self._sent:
            oldest = next(iter(self._sent))
            if now - self._sent[oldest][0] < REPAIR_MEMORY_S:
                break
            del self._sent[oldest]
