"""Whom no link reaches, and which segment stands in. Pure.

Deltas run over links. Segments belong to the users: of replication only probes cross them, until
*all* links to a peer are cut. Then everything for that peer goes over one segment as well, by
unicast: deltas, beacons, repairs, snapshots. Each node judges for itself, and for each peer::

              silent over all links, or it says that it is       (0.2 s)
      LINKS ------------------------------------------------> DETOUR over a segment that is heard
            <------------------------------------------------
              heard over a link, and it hears us, for `BACK_S`

* *Silence* is counted in the node's own attentive time, so that whoever was stopped himself does
  not take his own pause for a cut.
* *A cut in one direction* is seen by one end only, so its beacon says whom it does not hear over
  links (`deaf`), and these send over a segment too. What one says follows from what one hears over
  links alone: two nodes cannot keep each other in a detour.
* *Which segment*: the first of `sync.segments` over which the peer's probes come (two a second,
  also at rest) and over which it says that ours do; it is kept while that is so. A peer of which
  no segment has brought anything for `HEARD_S` is dead, or not to be reached: nothing is sent to
  it there.
* *The links are tried all the time*: nothing is taken away from them, so that no datagram is lost
  at the way back. What was lost on the way there is repaired like any gap (`sync.stream`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sync.paths import JUDGE_S, PROBE_S

__all__ = ["BACK_S", "CUT_S", "HEARD_S", "TOLD_S", "Detour", "is_segment", "segment_name"]

CUT_S = 0.2
"""Of silence over all links; five beacons, where these are rare."""
CUT_BEACONS = 5
BACK_S = 1.0
HEARD_S = 3.5 * PROBE_S
TOLD_S = JUDGE_S + 3 * PROBE_S
"""A peer goes on saying that it hears a way for `JUDGE_S` after it has ceased to."""


_SEGMENT = "segment "


def segment_name(segment: str) -> str:
    """A segment's name as a way; no link is named so."""
    return _SEGMENT + segment


def is_segment(way: str) -> bool:
    """Else it is a link."""
    return way.startswith(_SEGMENT)


@dataclass(slots=True)
class _Segment:
    heard_at: float
    first_at: float
    """Since when it is heard without a pause."""
    told_at: float | None = None


@dataclass(slots=True)
class _Peer:
    silent_s: float = 0.0
    """Over all links."""
    says_deaf: bool = False
    good_s: float = 0.0
    away: bool = False
    over: str = ""
    heard: frozenset[str] = frozenset()
    segments: dict[str, _Segment] = field(default_factory=dict)


class Detour:
    """Of one node."""

    def __init__(self, segments: Mapping[int, Sequence[str]], *, beacon_s: float) -> None:
        """`segments`: those shared with each peer, the best first."""
        self._order = {peer_id: list(names) for peer_id, names in sorted(segments.items())}
        self._peers = {peer_id: _Peer() for peer_id in self._order}
        self._beacon_s = beacon_s
        self._cut_s = max(CUT_S, CUT_BEACONS * beacon_s)
        self._worked_at: float | None = None
        self.pressing = False
        """A peer has just said that it is cut off: what it misses should reach it soon."""
        self.counters: Counter[str] = Counter()

    # -- what is heard, and authentic

    def on_link(self, peer_id: int) -> None:
        """Anything of this peer came over a link."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.silent_s = 0.0

    def on_beacon(self, peer_id: int, deaf: Collection[int], own_id: int) -> None:
        """A new one, by whatever way: those that it does not hear over links."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.says_deaf = own_id in deaf
            self.pressing |= peer.says_deaf and not peer.away

    def on_segment(self, peer_id: int, segment: str, *, now: float) -> None:
        """A new probe came over a segment."""
        peer = self._peers.get(peer_id)
        if peer is None or segment not in self._order[peer_id]:
            return
        way = peer.segments.get(segment)
        if way is None or now - way.heard_at > HEARD_S:
            told_at = None if way is None else way.told_at
            way = peer.segments[segment] = _Segment(now, now, told_at)
        way.heard_at = now

    def on_told(self, peer_id: int, heard: Collection[str], *, now: float) -> None:
        """The ways over which this peer hears our probes."""
        peer = self._peers.get(peer_id)
        for segment, way in peer.segments.items() if peer is not None else ():
            if segment in heard:
                way.told_at = now

    # -- what follows

    def work(self, *, now: float) -> None:
        """With each beacon, and when it is pressing."""
        self.pressing = False
        passed_s = 0.0
        if self._worked_at is not None:
            passed_s = min(now - self._worked_at, 2 * self._beacon_s)
        self._worked_at = now
        for peer_id, peer in self._peers.items():
            peer.silent_s += passed_s
            if peer.silent_s >= self._cut_s or peer.says_deaf:
                peer.good_s = 0.0
                if not peer.away:
                    peer.away = True
                    self.counters["detours_begun"] += 1
            elif peer.away:
                peer.good_s += passed_s
                if peer.good_s >= BACK_S:
                    peer.away = False
                    self.counters["detours_ended"] += 1
            peer.over = self._choose(peer_id, peer, now) if peer.away else ""
            peer.heard = frozenset(
                name
                for name, way in peer.segments.items()
                if peer.over and now - way.heard_at <= HEARD_S
            )

    def _choose(self, peer_id: int, peer: _Peer, now: float) -> str:
        ranks = {
            name: rank
            for name in self._order[peer_id]
            if name in peer.segments and (rank := _rank(peer.segments[name], now)) is not None
        }
        best = min(ranks.values(), default=None)
        if peer.over in ranks and ranks[peer.over] == best:
            return peer.over
        return next((name for name, rank in ranks.items() if rank == best), "")

    @property
    def deaf(self) -> list[int]:
        """Peers that are heard over no link: for the beacon."""
        return [n for n, peer in self._peers.items() if peer.silent_s >= self._cut_s]

    @property
    def away(self) -> dict[int, str]:
        """Peer -> segment, for all that the links do not reach; empty where no segment does."""
        return {n: peer.over for n, peer in self._peers.items() if peer.away}

    @property
    def asked_over(self) -> set[str]:
        """Segments over which a peer may ask, while one stands in: all over which it is heard.
        Each end chooses its own, so that may be another one than this node sends over."""
        return {name for peer in self._peers.values() for name in peer.heard}

    def proven(self, peer_id: int) -> bool:
        """It was heard over its segment since it was last heard over a link: it is not dead."""
        peer = self._peers[peer_id]
        way = peer.segments.get(peer.over)
        if way is None or self._worked_at is None:
            return False
        return (
            peer.says_deaf or self._worked_at - way.heard_at < peer.silent_s - 2 * self._beacon_s
        )


def _rank(way: _Segment, now: float) -> int | None:
    """0: it works both ways; 1: perhaps; None: it does not."""
    if now - way.heard_at > HEARD_S:
        return None
    if way.told_at is None:
        return 1 if now - way.first_at <= TOLD_S else None
    return 0 if now - way.told_at <= TOLD_S else None
