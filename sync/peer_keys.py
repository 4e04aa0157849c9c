"""Which sync keys the peers have: by what they say in their beacons, and seal with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["UNKNOWN_KEY_S", "PeerKeys", "PeerKeysView"]

UNKNOWN_KEY_S = 10.0
"""A datagram under a key that this node has not is remembered this long."""


@dataclass(frozen=True, slots=True)
class PeerKeysView:
    """`opens`: fingerprints by key id; `since`: when it began to seal with `seals`."""

    seals: int
    since: float
    opens: Mapping[int, int]


class PeerKeys:
    """Fed with authentic beacons of accepted sessions only, and with refusals, which are not."""

    def __init__(self) -> None:
        self._views: dict[int, PeerKeysView] = {}
        self._unknown: dict[int, tuple[int, float]] = {}

    def on_beacon(self, peer_id: int, key_id: int, opens: Mapping[int, int], now: float) -> None:
        known = self._views.get(peer_id)
        since = known.since if known is not None and known.seals == key_id else now
        self._views[peer_id] = PeerKeysView(key_id, since, opens)
        self._unknown.pop(peer_id, None)

    def on_unknown(self, peer_id: int, key_id: int, now: float) -> None:
        self._unknown[peer_id] = key_id, now

    def view(self, peer_id: int) -> PeerKeysView | None:
        return self._views.get(peer_id)

    def seals(self, peer_id: int) -> int | None:
        view = self._views.get(peer_id)
        return None if view is None else view.seals

    def strangers(self, *, now: float) -> dict[int, int]:
        """Peer -> the key id under which it spoke lately, and which this node has not."""
        return {
            peer_id: key_id
            for peer_id, (key_id, at) in sorted(self._unknown.items())
            if now - at <= UNKNOWN_KEY_S
        }
