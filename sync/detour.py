"""Whom no link reaches, and which segment stands in. Pure.

Deltas run over links. Segments belong to the users: of replication only probes cross them, until
*all* links to a peer are cut. Then everything for that peer goes over one segment as well, by
unicast: deltas, beacons, repairs, snapshots. Each node judges for itself, and for each peer::

              silent over all links, or it says that it is       (0.2 s)
      LINKS ------------------------------------------------> DETOUR over a segment that is heard
            <------------------------------------------------
              heard over a link, and it hears us, for `BACK_S`

* *Silence* is counted in the node's own attentive time, so that whoever was stopped himself does
  not take his own pause for a cut. Links that bring multicast and no unicast (no probe for
  `HEARD_S`) count as silent: repairs, proofs of a session and snapshots need it.
* *A cut in one direction* is seen by one end only, so its beacon says whom it does not hear over
  links (`deaf`), and these send over a segment too. What one says follows from what one hears over
  links alone: two nodes cannot keep each other in a detour.
* *Which segment*: the first of `sync.segments` over which the peer's probes come (two a second,
  also at rest) and over which it says that ours do; it is kept while that is so.
* *A dead peer* is silent, too. So a segment is used only if it brought a probe since the links
  fell silent. Either end sends some when half of that silence has passed (`doubted`), so that the
  proof is there when the links are given up; to whom it does not come nothing but questions go.
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
DOUBTED_PROBES = 8
"""In one silence, one with each beacon, so that a lossy segment brings one."""
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
    no_unicast_s: float = 0.0
    """Since a probe came over a link."""
    unicast: bool = True
    """One came since the last silence."""
    says_deaf: bool = False
    asked: int = 0
    """Probes for which this silence was the reason."""
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
        """A peer has just said that it is cut off, or been heard on a segment at last: what it
        misses should reach it soon."""
        self.doubted: list[int] = []
        """Peers to probe now on all segments: they may be dead, or cut off."""
        self.counters: Counter[str] = Counter()

    # -- what is heard, and authentic

    def on_link(self, peer_id: int) -> None:
        """Anything of this peer came over a link."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        if peer.silent_s >= self._cut_s:
            peer.no_unicast_s = 0.0  # Its probes have a chance to come now.
        peer.silent_s = 0.0

    def on_link_probe(self, peer_id: int) -> None:
        """A new probe came over a link."""
        self.on_link(peer_id)
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.no_unicast_s = 0.0
            peer.unicast = True

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
        self.pressing |= peer.away and not peer.over

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
        self.doubted = []
        for peer_id, peer in self._peers.items():
            peer.silent_s += passed_s
            peer.no_unicast_s += passed_s
            deaf = self._deaf_to(peer)
            peer.unicast = peer.unicast and not deaf
            if deaf or peer.says_deaf:
                peer.good_s = 0.0
                if not peer.away:
                    peer.away = True
                    self.counters["detours_begun"] += 1
            elif peer.away:
                peer.good_s += passed_s
                if peer.good_s >= BACK_S and peer.unicast:
                    peer.away = False
                    self.counters["detours_ended"] += 1
            if peer.silent_s < self._cut_s / 2 and not peer.says_deaf:
                peer.asked = 0
            elif peer.asked < DOUBTED_PROBES:
                peer.asked += 1
                self.doubted.append(peer_id)
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
            if name in peer.segments
            and self._proves_life(peer, peer.segments[name], now)
            and (rank := _rank(peer.segments[name], now)) is not None
        }
        best = min(ranks.values(), default=None)
        if peer.over in ranks and ranks[peer.over] == best:
            return peer.over
        return next((name for name, rank in ranks.items() if rank == best), "")

    def _proves_life(self, peer: _Peer, way: _Segment, now: float) -> bool:
        """A link has just brought something, or the segment has since none did."""
        return (
            peer.silent_s < self._cut_s or now - way.heard_at < peer.silent_s - 2 * self._beacon_s
        )

    def _deaf_to(self, peer: _Peer) -> bool:
        return peer.silent_s >= self._cut_s or peer.no_unicast_s >= max(HEARD_S, self._cut_s)

    @property
    def deaf(self) -> list[int]:
        """Peers of which no link brings anything, or no unicast: for the beacon."""
        return [n for n, peer in self._peers.items() if self._deaf_to(peer)]

    @property
    def multicast_alone(self) -> list[int]:
        """Of these, those whose multicast comes."""
        return [n for n in self.deaf if self._peers[n].silent_s < self._cut_s]

    @property
    def away(self) -> dict[int, str]:
        """Peer -> segment, for all that the links do not reach; empty where no segment does."""
        return {n: peer.over for n, peer in self._peers.items() if peer.away}

    @property
    def asked_over(self) -> set[str]:
        """Segments over which a peer may ask, while one stands in: all over which it is heard.
        Each end chooses its own, so that may be another one than this node sends over."""
        return {name for peer in self._peers.values() for name in peer.heard}


def _rank(way: _Segment, now: float) -> int | None:
    """0: it works both ways; 1: perhaps; None: it does not."""
    if now - way.heard_at > HEARD_S:
        return None
    if way.told_at is None:
        return 1 if now - way.first_at <= TOLD_S else None
    return 0 if now - way.told_at <= TOLD_S else None
