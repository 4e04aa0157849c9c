"""Replacing the sync key while flows are replicated: what each step does, and when it may. Pure.

::

      begin        on one node: a new key is made; it is opened, the old one seals
      accept       on every other gateway: the same
      switch       on every gateway, once all open the new key: it seals, both are opened
      finish       on every gateway, once all seal with the new key: the old one goes

    abort goes back: from switched to accepted, and once nobody seals with the new key, out.

So at any moment what one gateway seals with, every other opens; no step is refused by time, and
none needs the others to happen at the same moment. What the peers open and seal with is what
they say in their sealed beacons, seconds ago at most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from hafw.errors import RefusedError
from hafw.keyring import KEY_IDS, Keyring, RingKey, fingerprint

__all__ = [
    "BEACON_MS_MAX",
    "SETTLED_S",
    "Peer",
    "abort",
    "accept",
    "begin",
    "finish",
    "phase",
    "switch",
]

BEACON_MS_MAX = 3000.0
SETTLED_S = 5.0
"""The old key goes when all have sealed with the new one for so long: what was sealed before is
not asked for again after that (a gap is given up in less than a second)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway as the node's own syncd sees it. `heard`: its beacons come, and open."""

    name: str
    heard: bool
    seals: int | None = None
    seals_s: float = 0.0
    opens: Mapping[int, int] | None = None

    def has(self, key: RingKey) -> bool:
        return self.opens is not None and self.opens.get(key.id) == fingerprint(key.key)


def phase(ring: Keyring) -> str:
    """``rest`` between rotations, else what this node did last: ``accepted`` or ``switched``."""
    if ring.other is None:
        return "rest"
    return "switched" if _new(ring).id == ring.seals else "accepted"


def begin(ring: Keyring, new: bytes, made: str) -> Keyring:
    """With the new key, which is not sealed with yet."""
    if phase(ring) != "rest":
        raise RefusedError(
            f"a rotation is under way: this node opens with keys {_ids(ring)} and seals with "
            f"{ring.seals}; go on with {_next(ring)}, or go back with abort"
        )
    key = RingKey((ring.seals + 1) % KEY_IDS, new, made)
    return replace(ring, keys=(*ring.keys, key))


def accept(ring: Keyring, source: Keyring) -> Keyring:
    """With the keys of another node's file. A node that was away for a whole rotation takes them
    as they are; the flow secret, which never changes, tells that it is the same cluster."""
    if source.flow_secret != ring.flow_secret:
        raise RefusedError(
            "that key file is of another cluster, or the keys were made anew and not rotated "
            "(hafwctl key init --from copies such a file)"
        )
    if source.by_id.items() <= ring.by_id.items():
        raise RefusedError(
            f"nothing to accept: this node has the keys of that file already ({_ids(source)})"
        )
    if ring.seals not in source.by_id:
        if not 0 < (_newest(source) - _newest(ring)) % KEY_IDS < KEY_IDS // 2:
            # With them this node would be back at a key that was dropped, and cut off.
            raise RefusedError(
                f"that file is older ({_ids(source)}) than this node's keys ({_ids(ring)}): "
                "nothing was changed. It is the other gateway that missed a rotation: bring this "
                "node's key folder there, and on it: hafwctl key rotate accept"
            )
        return source  # Nobody opens what this node seals.
    if source.by_id[ring.seals] != ring.sealing.key:
        raise RefusedError(f"that file has another key {ring.seals} than this node")
    if phase(ring) != "rest":
        raise RefusedError(
            f"this node has keys {_ids(ring)} already and that file has {_ids(source)}: two "
            "rotations at once; abort one of them first, on all nodes that began it"
        )
    if source.other is None:
        raise RefusedError("that file has no second key: no rotation was begun there")
    return replace(source, seals=ring.seals)


def switch(ring: Keyring, peers: Collection[Peer], without: Collection[str] = ()) -> Keyring:
    """Sealing with the new key. All gateways but `without` must open it."""
    if phase(ring) == "rest":
        raise RefusedError("no rotation is under way here: hafwctl key rotate begin, or accept")
    new = _new(ring)
    if ring.seals == new.id:
        raise RefusedError(f"this node seals with key {new.id} already; next: {_next(ring)}")
    _require_heard(peers, without)
    behind = [peer.name for peer in peers if peer.name not in without and not peer.has(new)]
    if behind:
        raise RefusedError(
            f"{_names(behind)} would refuse what is sealed with key {new.id}: nothing was "
            f"changed. First on {_names(behind)}: hafwctl key rotate accept --from a copy of "
            "this node's key folder"
        )
    return replace(ring, seals=new.id)


def finish(ring: Keyring, peers: Collection[Peer], without: Collection[str] = ()) -> Keyring:
    """Without the old key. All gateways but `without` must seal with the new one."""
    if phase(ring) == "rest":
        raise RefusedError(f"nothing to finish: this node has key {ring.seals} only")
    new = _new(ring)
    if ring.seals != new.id:
        raise RefusedError(
            f"this node still seals with key {ring.seals}; first: hafwctl key rotate switch"
        )
    _require_heard(peers, without)
    counted = [peer for peer in peers if peer.name not in without]
    behind = [peer.name for peer in counted if peer.seals != new.id]
    if behind:
        raise RefusedError(
            f"{_names(behind)} still seals with the old key: nothing was changed. First on "
            f"{_names(behind)}: hafwctl key rotate switch"
        )
    early = max((SETTLED_S - peer.seals_s for peer in counted), default=0.0)
    if early > 0:
        raise RefusedError(
            f"what was sealed with the old key may still be asked for: again in {early:.0f} s"
        )
    return replace(ring, keys=(new,))


def abort(ring: Keyring, peers: Collection[Peer], without: Collection[str] = ()) -> Keyring:
    """One step back."""
    if phase(ring) == "rest":
        raise RefusedError(f"no rotation is under way here: this node has key {ring.seals} only")
    new = _new(ring)
    old = next(key for key in ring.keys if key.id != new.id)
    _require_heard(peers, without)
    counted = [peer for peer in peers if peer.name not in without]
    if ring.seals == new.id:
        gone = [peer.name for peer in counted if not peer.has(old)]
        if gone:
            raise RefusedError(
                f"{_names(gone)} dropped key {old.id} already: the rotation can only go on. "
                "On every gateway: hafwctl key rotate switch, then finish"
            )
        return replace(ring, seals=old.id)
    ahead = [peer.name for peer in counted if peer.seals == new.id]
    if ahead:
        raise RefusedError(
            f"{_names(ahead)} seals with key {new.id}: nothing was changed. First on "
            f"{_names(ahead)}: hafwctl key rotate abort"
        )
    early = max((SETTLED_S - peer.seals_s for peer in counted), default=0.0)
    if early > 0:
        raise RefusedError(
            f"what was sealed with the new key may still be asked for: again in {early:.0f} s"
        )
    return replace(ring, keys=(old,))


def _newest(ring: Keyring) -> int:
    return ring.seals if ring.other is None else _new(ring).id


def _new(ring: Keyring) -> RingKey:
    """Of two keys, the one whose id follows the other's, round the byte."""
    assert len(ring.keys) == 2, ring.seals
    one, other = ring.keys
    return one if (other.id + 1) % KEY_IDS == one.id else other


def _require_heard(peers: Collection[Peer], without: Collection[str]) -> None:
    unknown = set(without) - {peer.name for peer in peers}
    if unknown:
        raise RefusedError(f"{_names(sorted(unknown))} is no other gateway of this cluster")
    silent = [peer.name for peer in peers if not peer.heard and peer.name not in without]
    if silent:
        raise RefusedError(
            f"{_names(silent)} is not heard, so nobody knows what keys it has: nothing was "
            f"changed. Start it, or leave it behind with --without {' --without '.join(silent)}: "
            "when it is back it is refused until it gets the new key by hafwctl key rotate accept"
        )


def _names(names: Collection[str]) -> str:
    return " and ".join(sorted(names))


def _ids(ring: Keyring) -> str:
    return " and ".join(str(key.id) for key in ring.keys)


def _next(ring: Keyring) -> str:
    return {"accepted": "switch", "switched": "finish"}[phase(ring)]
