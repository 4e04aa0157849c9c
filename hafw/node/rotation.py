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

Two that begin at the same moment each make a key of the same number, and no step of the one gets
past the other: `conflicts` tells them apart by fingerprint, and one of the two has to be aborted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from hafw.errors import RefusedError
from hafw.keyring import KEY_IDS, Keyring, RingKey, fingerprint, show_fingerprint, show_keys
from hafw.messages import SyncdStatus

__all__ = [
    "BEACON_MS_MAX",
    "SETTLED_S",
    "Peer",
    "abort",
    "accept",
    "begin",
    "conflicts",
    "finish",
    "peers_of",
    "phase",
    "rotation_alarms",
    "rotation_notes",
    "step_of",
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

    def has_another(self, key_id: int, print_: int) -> bool:
        """Another key of that number: two rotations were begun."""
        return self.opens is not None and self.opens.get(key_id, print_) != print_


def peers_of(status: SyncdStatus) -> list[Peer]:
    """The other gateways, as this node's syncd hears them."""
    return [
        Peer(
            peer.name,
            peer.beacon_age_ms is not None and peer.beacon_age_ms <= BEACON_MS_MAX,
            peer.seals_key,
            peer.seals_key_s,
            peer.opens_keys,
        )
        for peer in status.peers
    ]


def phase(ring: Keyring) -> str:
    """``rest`` between rotations, else what this node did last: ``accepted`` or ``switched``."""
    return step_of(ring.fingerprints, ring.seals)


def step_of(opens: Mapping[int, int], seals: int | None) -> str:
    """`phase` of a node of which only numbers and fingerprints are known."""
    if len(opens) < 2:
        return "rest"
    return "switched" if seals == _newer(*opens) else "accepted"


def conflicts(opens: Mapping[int, int], peers: Collection[Peer]) -> list[tuple[str, int, int]]:
    """Peer, number and its fingerprint of each key that a heard peer has, and of which this
    node, which opens `opens`, has another."""
    return [
        (peer.name, key_id, (peer.opens or {})[key_id])
        for peer in peers
        for key_id, print_ in sorted(opens.items())
        if peer.heard and peer.has_another(key_id, print_)
    ]


def begin(
    ring: Keyring, new: bytes, made: str, peers: Collection[Peer] = (), *, node: str = "NODE"
) -> Keyring:
    """With the new key, which is not sealed with yet. No peer that is heard may have begun."""
    if phase(ring) != "rest":
        raise RefusedError(
            f"a rotation is under way: this node opens with keys {_keys(ring)} and seals with "
            f"{ring.seals}; go on with {_next(ring)}, or go back with abort"
        )
    own = ring.fingerprints
    for peer in peers:
        theirs = {id_: it for id_, it in (peer.opens or {}).items() if own.get(id_) != it}
        if not peer.heard or not theirs:
            continue
        if any(_is_newer(key_id, ring.seals) for key_id in theirs):
            raise RefusedError(
                f"a rotation is under way: {peer.name} has key {show_keys(theirs)}, which this "
                "node has not; nothing was changed. Take it: hafwctl key rotate accept --node "
                f"{node} --from a copy of {peer.name}'s key folder. Or go back, on {peer.name}: "
                f"hafwctl key rotate abort --node {peer.name}"
            )
        raise RefusedError(
            f"{peer.name} has not finished the last rotation: it still opens key "
            f"{show_keys(theirs)}; nothing was changed. First {_on([peer.name], 'finish')}"
        )
    key = RingKey((ring.seals + 1) % KEY_IDS, new, made)
    return replace(ring, keys=(*ring.keys, key))


def accept(ring: Keyring, source: Keyring, *, node: str = "NODE") -> Keyring:
    """With the keys of another node's file. A node that was away for a whole rotation takes them
    as they are; the flow secret, which never changes, tells that it is the same cluster."""
    if source.flow_secret != ring.flow_secret:
        raise RefusedError(
            "that key file is of another cluster, or the keys were made anew and not rotated "
            "(hafwctl key init --from copies such a file)"
        )
    if source.by_id.items() <= ring.by_id.items():
        raise RefusedError(
            f"nothing to accept: this node has the keys of that file already ({_keys(source)})"
        )
    if ring.seals not in source.by_id:
        if not _is_newer(_newest(source), _newest(ring)):
            # With them this node would be back at a key that was dropped, and cut off.
            raise RefusedError(
                f"that file is older ({_keys(source)}) than this node's keys ({_keys(ring)}): "
                "nothing was changed. It is the other gateway that missed a rotation: bring this "
                "node's key folder there, and on it: hafwctl key rotate accept --node PEER "
                "--from COPY"
            )
        return source  # Nobody opens what this node seals.
    if source.by_id[ring.seals] != ring.sealing.key:
        raise RefusedError(f"that file has another key {ring.seals} than this node")
    if phase(ring) == "switched":
        raise RefusedError(
            f"this node has not finished the last rotation: it has keys {_keys(ring)}; first: "
            f"hafwctl key rotate finish --node {node}"
        )
    if phase(ring) != "rest":
        raise RefusedError(
            f"two rotations were begun: this node has keys {_keys(ring)}, that file has "
            f"{_keys(source)}; nothing was changed. To go on with the file's, first here: hafwctl "
            f"key rotate abort --node {node}; to go on with this node's, abort there"
        )
    if source.other is None:
        raise RefusedError("that file has no second key: no rotation was begun there")
    return replace(source, seals=ring.seals)


def switch(
    ring: Keyring, peers: Collection[Peer], without: Collection[str] = (), *, node: str = "NODE"
) -> Keyring:
    """Sealing with the new key. All gateways but `without` must open it."""
    if phase(ring) == "rest":
        raise RefusedError(
            f"no rotation is under way here: hafwctl key rotate begin --node {node}, or accept"
        )
    new = _new(ring)
    if ring.seals == new.id:
        raise RefusedError(f"this node seals with key {new.id} already; next: {_next(ring)}")
    _require_heard(peers, without)
    counted = [peer for peer in peers if peer.name not in without]
    for name, key_id, print_ in conflicts(ring.fingerprints, counted):
        raise RefusedError(
            f"two rotations were begun: {name} has another key {key_id} "
            f"({show_fingerprint(print_)}) than this node ({_print(ring, key_id)}); nothing was "
            f"changed. To go on with this node's, first {_on([name], 'abort')}, then accept "
            f"--node {name} --from a copy of this node's key folder; to go on with {name}'s, "
            f"abort --node {node} here, then accept"
        )
    _require_key(new, counted)
    return replace(ring, seals=new.id)


def finish(
    ring: Keyring, peers: Collection[Peer], without: Collection[str] = (), *, node: str = "NODE"
) -> Keyring:
    """Without the old key. All gateways but `without` must seal with the new one."""
    if phase(ring) == "rest":
        raise RefusedError(f"nothing to finish: this node has key {ring.seals} only")
    new = _new(ring)
    if ring.seals != new.id:
        raise RefusedError(
            f"this node still seals with key {ring.seals}; first: hafwctl key rotate switch "
            f"--node {node}"
        )
    _require_heard(peers, without)
    counted = [peer for peer in peers if peer.name not in without]
    _require_key(new, counted)
    behind = [peer.name for peer in counted if peer.seals != new.id]
    if behind:
        raise RefusedError(
            f"{_names(behind)} still seals with the old key: nothing was changed. First "
            f"{_on(behind, 'switch')}"
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
                "On every gateway: hafwctl key rotate switch --node NODE, then finish"
            )
        return replace(ring, seals=old.id)
    ahead = [peer.name for peer in counted if peer.seals == new.id]
    if ahead:
        raise RefusedError(
            f"{_names(ahead)} seals with key {new.id}: nothing was changed. First "
            f"{_on(ahead, 'abort')}"
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
    new = ring.get(_newer(*ring.by_id))
    assert new is not None, ring.seals
    return new


def _newer(one: int, other: int) -> int:
    """Of the numbers of two keys, the one that follows the other, round the byte."""
    return one if (other + 1) % KEY_IDS == one else other


def _is_newer(key_id: int, than: int) -> bool:
    return 0 < (key_id - than) % KEY_IDS < KEY_IDS // 2


def _require_key(key: RingKey, peers: Collection[Peer]) -> None:
    behind = [peer.name for peer in peers if not peer.has(key)]
    if behind:
        raise RefusedError(
            f"{_names(behind)} would refuse what is sealed with key {key.id} "
            f"({show_fingerprint(fingerprint(key.key))}), which it has not: nothing was changed. "
            f"First {_on(behind, 'accept')} --from a copy of this node's key folder"
        )


def _require_heard(peers: Collection[Peer], without: Collection[str]) -> None:
    unknown = set(without) - {peer.name for peer in peers}
    if unknown:
        raise RefusedError(f"{_names(sorted(unknown))} is no other gateway of this cluster")
    heard = [peer.name for peer in peers if peer.heard and peer.name in without]
    if heard:
        raise RefusedError(
            f"{_names(heard)} is heard, and would be cut off: nothing was changed. --without is "
            f"for a gateway that was not heard for {BEACON_MS_MAX / 1e3:g} s"
        )
    silent = [peer.name for peer in peers if not peer.heard and peer.name not in without]
    if silent:
        raise RefusedError(
            f"{_names(silent)} is not heard, so nobody knows what keys it has: nothing was "
            f"changed. Start it, or leave it behind with --without {' --without '.join(silent)}: "
            "when it is back it is refused until it gets the new key by hafwctl key rotate accept "
            "on it"
        )


def _names(names: Collection[str]) -> str:
    return " and ".join(sorted(names))


def _on(names: Collection[str], step: str) -> str:
    """Where to do a step first: ``on gw2: hafwctl key rotate switch --node gw2``."""
    (each,) = names if len(names) == 1 else ("NODE",)
    return f"on {_names(names)}: hafwctl key rotate {step} --node {each}"


def _keys(ring: Keyring) -> str:
    return show_keys(ring.fingerprints)


def _print(ring: Keyring, key_id: int) -> str:
    return show_fingerprint(ring.fingerprints[key_id])


def _next(ring: Keyring) -> str:
    return {"accepted": "switch", "switched": "finish"}[phase(ring)]


def rotation_notes(syncd: SyncdStatus) -> list[str]:
    """What `status` says of a rotation that is under way."""
    step = step_of(syncd.opens_keys, syncd.seals_key)
    if step == "rest":
        return []
    return [
        f"a rotation of the sync key is under way, {step} here: opens with keys "
        f"{show_keys(syncd.opens_keys)}, seals with {syncd.seals_key}; see hafwctl key show"
    ]


def rotation_alarms(node: str, syncd: SyncdStatus) -> list[str]:
    """That two were begun at the same moment."""
    return [
        f"two rotations of the sync key were begun: {peer} has another key {key_id} "
        f"({show_fingerprint(theirs)}) than {node} "
        f"({show_fingerprint(syncd.opens_keys[key_id])}); abort one: hafwctl key rotate abort"
        f" --node {node}, or --node {peer}"
        for peer, key_id, theirs in conflicts(syncd.opens_keys, peers_of(syncd))
    ]
