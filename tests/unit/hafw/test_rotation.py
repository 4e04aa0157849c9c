"""Rotating a key: whatever is done in whatever order, what one seals every other opens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from hafw.errors import RefusedError
from hafw.keyring import (
    Keyring,
    RingKey,
    decode_keyring,
    encode_keyring,
    fingerprint,
    flow_secret_of,
    show_fingerprint,
    show_keys,
)
from hafw.node.rotation import (
    SETTLED_S,
    Peer,
    abort,
    accept,
    begin,
    conflicts,
    finish,
    phase,
    step_of,
    switch,
)

FIRST = decode_keyring(bytes(range(32)))
NAMES = ("gw1", "gw2", "gw3", "gw4")
STEPS = ("begin", "accept", "switch", "finish", "abort")


class World:
    """Gateways that hear each other at once."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.rng = Random(seed)
        self.rings = dict.fromkeys(NAMES[:count], FIRST)

    def peers(self, name: str, seals_s: float = 60.0) -> list[Peer]:
        return [
            Peer(other, True, ring.seals, seals_s, ring.fingerprints)
            for other, ring in self.rings.items()
            if other != name
        ]

    def do(self, name: str, step: str, source: str = "") -> bool:
        ring = self.rings[name]
        steps: dict[str, Callable[[], Keyring]] = {
            "begin": lambda: begin(
                ring, self.rng.randbytes(32), "2026-01-01T00:00:00Z", self.peers(name)
            ),
            "accept": lambda: accept(ring, self.rings[source]),
            "switch": lambda: switch(ring, self.peers(name)),
            "finish": lambda: finish(ring, self.peers(name)),
            "abort": lambda: abort(ring, self.peers(name)),
        }
        try:
            self.rings[name] = steps[step]()
        except RefusedError:
            return False
        self.check(f"{step} on {name}")
        return True

    def check(self, what: str) -> None:
        for name, ring in self.rings.items():
            assert ring.flow_secret == FIRST.flow_secret
            for other, theirs in self.rings.items():
                assert theirs.by_id.get(ring.seals) == ring.sealing.key, (
                    f"after {what}: {other} refuses what {name} seals"
                )

    def rotate(self) -> None:
        first, *others = self.rings
        assert self.do(first, "begin")
        assert all(self.do(name, "accept", first) for name in others)
        assert all(self.do(name, "switch") for name in self.rings)
        assert all(self.do(name, "finish") for name in self.rings)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_rotation_replaces_the_key_everywhere(count: int) -> None:
    world = World(count)
    for round_ in range(1, 260):  # The id is a byte and goes round.
        world.rotate()
        (key,) = {ring.sealing for ring in world.rings.values()}
        assert key.id == round_ % 256
        assert all(ring.by_id == {key.id: key.key} for ring in world.rings.values())


@pytest.mark.parametrize("seed", range(60))
def test_no_order_of_steps_makes_one_refuse_another(seed: int) -> None:
    rng = Random(seed)
    world = World(rng.choice((2, 3, 4)), seed)
    done = 0
    for _ in range(300):
        name = rng.choice(list(world.rings))
        source = rng.choice([other for other in world.rings if other != name])
        done += world.do(name, rng.choice(STEPS), source)
        # Each hears the others at once here, so no two rotations can be under way.
        assert not any(conflicts(r.fingerprints, world.peers(n)) for n, r in world.rings.items())
    assert done > 20
    # From wherever it stands it can be brought to its end.
    names = list(world.rings)
    for step in ("accept", "switch", "finish", "accept", "abort", "abort"):
        for name in names:
            for source in names:
                if source != name:
                    world.do(name, step, source)
    states = {phase(ring) for ring in world.rings.values()}
    assert states == {"rest"}
    assert len({ring.sealing for ring in world.rings.values()}) == 1


def test_two_that_begin_at_once_are_told_and_can_go_back() -> None:
    world = World(2)
    for name, key in (("gw1", b"a" * 32), ("gw2", b"b" * 32)):
        world.rings[name] = begin(FIRST, key, "")  # Neither has heard of the other's yet.
    one, two = (show_fingerprint(fingerprint(key * 32)) for key in (b"a", b"b"))
    first = show_fingerprint(fingerprint(FIRST.sealing.key))
    gw1, gw2 = world.rings.values()
    assert conflicts(gw1.fingerprints, world.peers("gw1")) == [("gw2", 1, fingerprint(b"b" * 32))]
    assert conflicts(FIRST.fingerprints, world.peers("gw1")) == []
    said = refusal(lambda: accept(gw2, gw1, node="gw2"))
    assert f"this node has keys 0 ({first}) and 1 ({two}), that file has 0 ({first}) and" in said
    assert "first here: hafwctl key rotate abort --node gw2" in said
    said = refusal(lambda: switch(gw1, world.peers("gw1"), node="gw1"))
    assert f"gw2 has another key 1 ({two}) than this node ({one})" in said
    assert "first on gw2: hafwctl key rotate abort --node gw2" in said
    assert world.do("gw2", "abort")
    assert world.do("gw2", "accept", "gw1")
    assert world.do("gw1", "switch")


def test_none_begins_while_another_is_heard_to_have_begun() -> None:
    ring, both = two()
    said = refusal(lambda: begin(ring, b"x" * 32, "", [peer(both)], node="gw1"))
    assert f"gw2 has key {show_keys({1: fingerprint(b'n' * 32)})}, which this node has not" in said
    assert "accept --node gw1 --from a copy of gw2's key folder" in said
    assert len(begin(ring, b"x" * 32, "", [peer(both, heard=False), peer(ring)]).keys) == 2
    alone = replace(both, keys=both.keys[1:], seals=1)
    said = refusal(lambda: begin(alone, b"x" * 32, "", [peer(replace(both, seals=1))]))
    assert "gw2 has not finished the last rotation: it still opens key 0" in said
    assert "First on gw2: hafwctl key rotate finish --node gw2" in said
    third = begin(alone, b"x" * 32, "")
    said = refusal(lambda: accept(replace(both, seals=1), third, node="gw2"))
    assert "first: hafwctl key rotate finish --node gw2" in said


def test_none_that_is_heard_is_left_behind() -> None:
    ring, both = two()
    sealing = replace(both, seals=1)
    for step in (
        lambda: switch(both, [peer(ring)], ["gw2"]),
        lambda: finish(sealing, [peer(both)], ["gw2"]),
        lambda: abort(sealing, [peer(both)], ["gw2"]),
    ):
        assert "gw2 is heard, and would be cut off" in refusal(step)


@pytest.mark.parametrize(
    ("opens", "seals", "step"),
    [
        ({}, None, "rest"),
        ({4: 1}, 4, "rest"),
        ({4: 1, 5: 2}, 4, "accepted"),
        ({4: 1, 5: 2}, 5, "switched"),
        ({255: 1, 0: 2}, 255, "accepted"),
        ({255: 1, 0: 2}, 0, "switched"),
    ],
)
def test_the_step_of_a_peer_is_read_from_its_beacon(
    opens: dict[int, int], seals: int | None, step: str
) -> None:
    assert step_of(opens, seals) == step


def two() -> tuple[Keyring, Keyring]:
    """Before, and with a second key."""
    return FIRST, begin(FIRST, b"n" * 32, "")


def peer(ring: Keyring, **changes: object) -> Peer:
    heard = Peer("gw2", True, ring.seals, 60.0, ring.fingerprints)
    return replace(heard, **changes)  # type: ignore[arg-type]


def refusal(step: Callable[[], Keyring]) -> str:
    with pytest.raises(RefusedError) as error:
        step()
    return str(error.value)


def test_every_refusal_says_what_to_do() -> None:
    old, both = two()
    sealing = replace(both, seals=1)
    alone = replace(both, keys=(both.keys[1],), seals=1)
    assert "go on with switch" in refusal(lambda: begin(both, b"x" * 32, ""))
    assert "go on with finish" in refusal(lambda: begin(sealing, b"x" * 32, ""))
    other = decode_keyring(b"o" * 32)
    assert "of another cluster" in refusal(lambda: accept(old, other))
    assert "nothing to accept" in refusal(lambda: accept(both, old))
    forged = replace(both, keys=(RingKey(0, b"f" * 32), both.keys[1]))
    assert "another key 0" in refusal(lambda: accept(old, forged))
    assert "begin --node NODE, or accept" in refusal(lambda: switch(old, []))
    assert "next: finish" in refusal(lambda: switch(sealing, []))
    assert "gw2 is not heard" in refusal(lambda: switch(both, [peer(both, heard=False)]))
    assert "--without gw2" in refusal(lambda: finish(sealing, [peer(both, heard=False)]))
    assert "gw9 is no other gateway" in refusal(lambda: switch(both, [peer(both)], ["gw9"]))
    said = refusal(lambda: switch(both, [peer(old)]))
    assert "First on gw2: hafwctl key rotate accept --node gw2 --from a copy" in said
    said = refusal(lambda: finish(sealing, [peer(old)]))
    assert "First on gw2: hafwctl key rotate accept --node gw2 --from a copy" in said
    assert "nothing to finish" in refusal(lambda: finish(old, []))
    assert "first: hafwctl key rotate switch" in refusal(lambda: finish(both, []))
    assert "First on gw2: hafwctl key rotate switch" in refusal(
        lambda: finish(sealing, [peer(both)])
    )
    early = peer(sealing, seals_s=SETTLED_S - 2)
    assert "again in 2 s" in refusal(lambda: finish(sealing, [early]))
    assert "no rotation is under way" in refusal(lambda: abort(old, []))
    assert "can only go on" in refusal(lambda: abort(sealing, [peer(alone)]))
    assert "First on gw2: hafwctl key rotate abort" in refusal(
        lambda: abort(both, [peer(sealing)])
    )
    assert "again in" in refusal(lambda: abort(both, [peer(both, seals_s=1.0)]))


def test_a_peer_that_is_away_may_be_left_behind_and_gets_back_in() -> None:
    old, both = two()
    away = peer(old, heard=False)
    sealing = switch(both, [away], ["gw2"])
    alone = finish(sealing, [away], ["gw2"])
    assert accept(old, alone) == alone
    assert accept(old, sealing) == both, "not sealing yet: its own switch decides that"


@pytest.mark.parametrize("rounds", [1, 2, 255, 256, 257])
def test_the_keys_of_one_that_missed_a_rotation_go_nowhere(rounds: int) -> None:
    world = World(2)
    for _ in range(rounds - 1):
        world.rotate()
    behind = world.rings["gw2"]
    world.rotate()
    ahead = world.rings["gw1"]
    both = begin(ahead, b"n" * 32, "")
    for ring in (ahead, both, replace(both, seals=both.keys[1].id)):
        assert "that file is older" in refusal(partial(accept, ring, behind))
    assert accept(behind, ahead) == ahead


def test_a_key_of_the_same_id_is_not_the_same_key() -> None:
    _, both = two()
    wrong = {0: fingerprint(FIRST.sealing.key), 1: fingerprint(b"w" * 32)}
    assert "gw2 has another key 1" in refusal(lambda: switch(both, [peer(both, opens=wrong)]))


def test_the_file_is_read_as_it_was_written() -> None:
    _, both = two()
    for ring in (both, replace(both, seals=1), replace(both, keys=both.keys[1:], seals=1)):
        assert decode_keyring(encode_keyring(ring)) == ring
    assert FIRST.flow_secret == flow_secret_of(bytes(range(32)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"short", "neither 32 random bytes nor a keyring"),
        (b"[1]", "neither"),
        (b"{" * 3000, "neither"),
        (encode_keyring(FIRST).replace(b'"hafw_keyring":1', b'"hafw_keyring":2'), "version 2"),
        (encode_keyring(FIRST).replace(b'"seals":0', b'"seals":1'), "one or two keys"),
        (encode_keyring(FIRST).replace(b'"id":0', b'"id":999'), "one or two keys"),
        (
            encode_keyring(FIRST)
            .replace(b'"id":0', b'"id":999')
            .replace(b'"seals":0', b'"seals":999'),
            "from 0 to 255",
        ),
        (encode_keyring(FIRST).replace(b"0001", b""), "must have 32 bytes"),
        (encode_keyring(FIRST).replace(b"0001", b"zz01"), "neither"),
    ],
)
def test_a_damaged_file_is_refused_without_showing_it(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        decode_keyring(content)
    assert bytes(range(8)).hex() not in str(error.value)
