"""What the lease loop measures of itself and of its paths. Pure.

Durations are counted in buckets, so that taking one costs less than a microsecond and a minute of
them is a few hundred numbers: least and largest are exact, percentiles are the upper edge of their
bucket, at most 1/16 above the truth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from hafw.messages import LinkStatus, LoopDelay, Spread

__all__ = ["LOOP_BUCKETS", "DelayMeter", "FirstCopy", "LinkMeter", "Window"]

NS_PER_MS = 1_000_000
_WINDOW_NS = 10_000_000_000
_WINDOWS = 6
_FINE_BITS = 4
_AGAIN_NS = 1_000_000_000
_SAMPLE_NS = 50_000_000
_PERCENTS = (50, 99)
LOOP_BUCKETS = 25
"""Of the histogram of the loop: bucket n counts what was later than 2^(n-1) and at most 2^n us,
the last one all above 8.4 s."""


def _bucket(duration_ns: int) -> int:
    """Ordered like the durations; 16 buckets for each power of two."""
    shift = duration_ns.bit_length() - _FINE_BITS - 1
    if shift <= 0:
        return duration_ns
    return (shift << _FINE_BITS) + (duration_ns >> shift)


def _upper_ns(bucket: int) -> int:
    """The largest duration of a bucket."""
    shift = (bucket >> _FINE_BITS) - 1
    if shift <= 0:
        return bucket
    return ((bucket - (shift << _FINE_BITS) + 1) << shift) - 1


class Window:
    """Durations of the last minute, in windows of ten seconds."""

    def __init__(self) -> None:
        self._windows: deque[dict[int, int]] = deque([{}], maxlen=_WINDOWS)
        self._edges: deque[list[int]] = deque([[0, 0]], maxlen=_WINDOWS)
        self._until_ns = 0
        self._told: Spread | None = None
        self._told_until_ns = 0

    def add(self, duration_ns: int, now_ns: int) -> None:
        if now_ns >= self._until_ns:
            # Who was silent for a minute or more begins anew.
            for _ in range(min(_WINDOWS, 1 + (now_ns - self._until_ns) // _WINDOW_NS)):
                self._windows.append({})
                self._edges.append([duration_ns, duration_ns])
            self._until_ns = now_ns + _WINDOW_NS
        window, edge = self._windows[-1], self._edges[-1]
        bucket = _bucket(duration_ns)
        window[bucket] = window.get(bucket, 0) + 1
        if duration_ns < edge[0]:
            edge[0] = duration_ns
        elif duration_ns > edge[1]:
            edge[1] = duration_ns

    def read(self, now_ns: int) -> Spread | None:
        """At most `_AGAIN_NS` old, for adding it all up takes a while. None: nothing was
        measured."""
        if now_ns >= self._told_until_ns:
            self._told = self._add_up()
            self._told_until_ns = now_ns + _AGAIN_NS
        return self._told

    def _add_up(self) -> Spread | None:
        merged: dict[int, int] = {}
        for window in self._windows:
            for bucket, count in window.items():
                merged[bucket] = merged.get(bucket, 0) + count
        if not merged:
            return None
        edges = [edge for edge, window in zip(self._edges, self._windows, strict=True) if window]
        least_ns, most_ns = min(edge[0] for edge in edges), max(edge[1] for edge in edges)
        total = sum(merged.values())
        found: list[int] = []
        at = 0
        for bucket in sorted(merged):
            at += merged[bucket]
            while len(found) < len(_PERCENTS) and at > total * _PERCENTS[len(found)] // 100:
                found.append(min(most_ns, max(least_ns, _upper_ns(bucket))))
        p50_ns, p99_ns = found
        return Spread(
            min_ms=least_ns / NS_PER_MS,
            p50_ms=p50_ns / NS_PER_MS,
            p99_ms=p99_ns / NS_PER_MS,
            max_ms=most_ns / NS_PER_MS,
            count=total,
        )


class DelayMeter:
    """How late the loop woke: the last minute, and all of this process as a histogram."""

    def __init__(self) -> None:
        self._minute = Window()
        self._buckets = [0] * LOOP_BUCKETS
        self._worst_ns = 0
        self._worst_at_ns = 0

    def add(self, late_ns: int, now_ns: int) -> None:
        self._minute.add(late_ns, now_ns)
        bucket = max(0, late_ns - 1) // 1000
        self._buckets[min(bucket.bit_length(), LOOP_BUCKETS - 1)] += 1
        if late_ns > self._worst_ns:
            self._worst_ns, self._worst_at_ns = late_ns, now_ns

    def read(self, now_ns: int) -> LoopDelay:
        minute = self._minute.read(now_ns)
        if minute is None:
            return LoopDelay(p50_ms=0.0, p99_ms=0.0, max_ms=0.0)
        return LoopDelay(
            p50_ms=minute.p50_ms,
            p99_ms=minute.p99_ms,
            max_ms=minute.max_ms,
            buckets=list(self._buckets),
            worst_ms=self._worst_ns / NS_PER_MS,
            worst_age_s=max(0, now_ns - self._worst_at_ns) / 1e9,
        )


@dataclass(frozen=True, slots=True)
class FirstCopy:
    """Who sent a datagram, when its first copy came, and the round trip that it told, if any."""

    sender: int
    at_ns: int
    round_trip_ns: int | None


class _Path:
    """One path to one peer."""

    __slots__ = ("heard_ns", "received", "round_trips", "sample_ns")

    def __init__(self) -> None:
        self.sample_ns = 0
        self.heard_ns = 0
        self.received = 0
        self.round_trips = Window()


class LinkMeter:
    """When each peer was last heard on each path, and the round trips to it.

    An envelope goes out over all paths at once, and its echo says how long the peer had it. So the
    first copy that comes back gives the round trip over the fastest path, and each later copy the
    round trip out over the fastest path and back over its own. Of a path, 20 a second are taken.
    """

    def __init__(self, paths: Iterable[tuple[str, Iterable[int]]]) -> None:
        self._paths = {(peer, name): _Path() for name, peers in paths for peer in peers}
        self._fastest = {peer: Window() for peer, _ in self._paths}

    def first(self, copy: FirstCopy, path: str) -> None:
        """A datagram of which no copy came before."""
        self.again(copy, path, copy.at_ns)
        if copy.round_trip_ns is not None and copy.sender in self._fastest:
            self._fastest[copy.sender].add(copy.round_trip_ns, copy.at_ns)

    def again(self, copy: FirstCopy, path: str, now_ns: int) -> None:
        """Another copy of it."""
        entry = self._paths.get((copy.sender, path))
        if entry is None:
            return
        entry.heard_ns = now_ns
        entry.received += 1
        if now_ns >= entry.sample_ns and copy.round_trip_ns is not None:
            entry.sample_ns = now_ns + _SAMPLE_NS
            entry.round_trips.add(copy.round_trip_ns + now_ns - copy.at_ns, now_ns)

    def read_peer(self, peer: int, now_ns: int) -> Spread | None:
        """Round trips over the fastest path."""
        window = self._fastest.get(peer)
        return None if window is None else window.read(now_ns)

    def read(self, peer: int, *, now_ns: int, alive_ns: int) -> list[LinkStatus]:
        return [
            LinkStatus(
                name=name,
                alive=bool(at.heard_ns) and now_ns - at.heard_ns <= alive_ns,
                age_ms=(now_ns - at.heard_ns) / NS_PER_MS if at.heard_ns else None,
                received=at.received,
                round_trip=at.round_trips.read(now_ns),
            )
            for (node, name), at in self._paths.items()
            if node == peer
        ]
