"""Which ways to each peer work: is multicast heard, and how large may a datagram be? Pure.

A switch may drop multicast (IGMP snooping without a querier), and a switch or tunnel on the way
may have a smaller MTU than the devices at both ends. Neither tells: beacons pass and full
datagrams never, or the other way round. So every link shared with a peer is probed by unicast,
with the smallest and the largest datagram, and each node says in its own probes what it hears of
the peer over each link::

    peer's beacons by multicast, its probes by unicast --heard--> judged --said--> the peer

Whoever is told that a link brings its unicast but not its multicast sends over it by unicast too,
to that peer. Whoever is told that only smaller datagrams arrive makes its own no larger, on all
links, since each datagram goes over all of them. Nothing is judged before a way has been heard
for `JUDGE_S`, and what is not judged is not said: the last word stays in force, until the peer has
named other ways for `FORGET_S` and not this one. That one is dead, and no limit for the others.

Segments, which carry nothing else until all links are cut (`sync.detour`), are probed in the same
way, without multicast: so it is known before whether they would do, and their MTU counts always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sync.wire import DATAGRAM_BYTES_MAX

__all__ = [
    "FORGET_S",
    "HEADERS_BYTES",
    "JUDGE_S",
    "PROBE_S",
    "SIZES",
    "Heard",
    "Paths",
    "ProbeOver",
]

SIZES = (DATAGRAM_BYTES_MAX, 1280, 1024, 768, 548)
"""Of datagrams. The last is what every IPv4 host must take (RFC 791: 576 with its headers)."""
HEADERS_BYTES = 28
"""Of IPv4 and UDP: what an MTU counts beside the datagram."""
PROBE_S = 0.5
JUDGE_S = 4.0
"""What has not come for this long, while other probes have, does not arrive: eight in a row."""
FORGET_S = 30.0
"""Longer than a restart of the peer or of a switch."""
ALARM_S = 30.0
"""What a peer said longer ago is no alarm any more: it is gone, and that is leased's business."""

Heard = tuple[int, bool]
"""Of a peer over one link: its largest probe that arrives, and whether its multicast does."""


@dataclass(frozen=True, slots=True)
class ProbeOver:
    """Send a probe of this size over this link."""

    peer_id: int
    link: str
    bytes: int


@dataclass(slots=True)
class _Way:
    """One link to one peer."""

    first_at: float | None = None
    """Since when its unicast is heard without a pause."""
    heard_at: float = 0.0
    sizes: dict[int, float] = field(default_factory=dict)
    """Size of a probe -> when one was heard last."""
    multicast_at: float | None = None
    told: Heard | None = None
    """What the peer hears of us."""
    told_at: float = 0.0
    unsaid_s: float = 0.0
    """For how long the peer has named other ways, and not this one."""

    @property
    def whole(self) -> bool:
        return self.told is not None and self.told[0] >= SIZES[0]


class Paths:
    """All ways of one node."""

    def __init__(
        self,
        links: Mapping[int, Iterable[str]],
        *,
        unicast: bool,
        segments: Mapping[int, Iterable[str]] | None = None,
    ) -> None:
        """`links`: of each peer, those shared with it; and `segments`, by other names. `unicast`:
        multicast is not used."""
        self._segments = {
            (peer_id, name) for peer_id, names in (segments or {}).items() for name in names
        }
        of_links = {(peer_id, name) for peer_id, names in links.items() for name in names}
        self._ways = {where: _Way() for where in sorted(of_links | self._segments)}
        self._unicast = unicast
        self._probe_at = 0.0
        self._named_at: dict[int, float] = {}
        """Peer -> when it named any way last."""

    # -- what is heard

    def on_beacon(self, peer_id: int, link: str, *, by_multicast: bool, now: float) -> None:
        """An authentic one, or a copy of it."""
        way = self._ways.get((peer_id, link))
        if way is not None and by_multicast:
            way.multicast_at = now

    def on_probe(self, peer_id: int, link: str, size: int, *, now: float) -> None:
        """An authentic datagram that carried one."""
        way = self._ways.get((peer_id, link))
        if way is None:
            return
        size = min((whole for whole in SIZES if whole >= size), default=SIZES[0])
        if way.first_at is None or now - way.heard_at > JUDGE_S:
            way.first_at = now
            way.sizes.clear()
        way.heard_at = now
        way.sizes[size] = now

    def on_told(self, peer_id: int, heard: Mapping[str, Heard], *, now: float) -> None:
        """What this peer hears of us, by its probe."""
        if not heard:
            return  # It has just started, or hears nothing of us.
        passed_s = min(now - self._named_at.get(peer_id, now), 2 * PROBE_S)
        self._named_at[peer_id] = now
        for (peer, link), way in self._ways.items():
            if peer != peer_id:
                continue
            said = heard.get(link)
            if said is not None:
                way.told, way.told_at, way.unsaid_s = (max(said[0], SIZES[-1]), said[1]), now, 0.0
            else:
                way.unsaid_s += passed_s
                if way.unsaid_s >= FORGET_S:
                    way.told = None

    # -- what to say

    def hears(self, peer_id: int, *, now: float) -> dict[str, Heard]:
        """For a probe to this peer."""
        return {
            link: (
                max(size for size, at in way.sizes.items() if now - at <= JUDGE_S),
                way.multicast_at is not None and now - way.multicast_at <= JUDGE_S,
            )
            for (peer, link), way in self._ways.items()
            if peer == peer_id and self._judged(way, now)
        }

    @staticmethod
    def _judged(way: _Way, now: float) -> bool:
        return (
            way.first_at is not None
            and now - way.first_at >= JUDGE_S
            and now - way.heard_at <= JUDGE_S
        )

    def due(self, *, now: float) -> list[ProbeOver]:
        """The probes to send now. All sizes, unless the peer has said that the largest comes."""
        if now < self._probe_at:
            return []
        self._probe_at = now + PROBE_S
        return [
            ProbeOver(peer_id, link, size)
            for (peer_id, link), way in self._ways.items()
            for size in ((SIZES[0], SIZES[-1]) if way.whole else SIZES)
        ]

    # -- what follows

    @property
    def datagram_bytes(self) -> int:
        """No datagram should be larger."""
        return min(
            (w.told[0] for w in self._ways.values() if w.told is not None), default=SIZES[0]
        )

    @property
    def by_unicast(self) -> frozenset[tuple[int, str]]:
        """(peer, link) where all must be sent by unicast."""
        return frozenset(
            where
            for where, way in self._ways.items()
            if where not in self._segments
            and (self._unicast or (way.told is not None and not way.told[1]))
        )

    def small(self, *, now: float) -> list[tuple[int, str, int]]:
        """(peer, link, bytes) where larger datagrams do not arrive, lately."""
        return [
            (*where, way.told[0])
            for where, way in self._ways.items()
            if way.told is not None and not way.whole and now - way.told_at <= ALARM_S
        ]

    def unheard(self, *, now: float) -> list[tuple[int, str]]:
        """(peer, link) where our multicast does not arrive, lately, though it should."""
        return [
            where
            for where, way in self._ways.items()
            if not self._unicast
            and where not in self._segments
            and way.told is not None
            and not way.told[1]
            and now - way.told_at <= ALARM_S
        ]
