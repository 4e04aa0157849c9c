"""The stream core under everything at once; and the checkers, each with a mistake it catches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from sync.ring import Repair, Repairer, SendRing
from sync.stream import Deliver, StreamBroken, StreamEffect, StreamReceiver
from tests.simulation.stream_node import Datagram
from tests.simulation.stream_world import Cores, Faults, StreamWorld
from tests.simulation.timeline import CheckFailed

SEEDS = 100
SEEDS_LONG = 10_000
SEEDS_TO_CATCH = 40


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_receiver_gets_all_or_knows_what_it_lacks(seed: int) -> None:
    StreamWorld(seed).run()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_receiver_gets_all_for_many_seeds() -> None:
    for seed in range(SEEDS, SEEDS_LONG):
        StreamWorld(seed).run()


# -- the cost of a loss that all share


QUIET = Faults(0.0, 0.0, 0.0, 0.0003, 1024, 0.0, 0.0, 0.0, 0.0)


def test_nobody_asks_where_nothing_is_lost() -> None:
    counts = StreamWorld(1, nodes=8, faults=QUIET).run()
    assert counts["nack"] == counts["repair"] == 0
    assert counts["challenge"] == 8 * 7, "one for each pair"


@pytest.mark.parametrize("nodes", [3, 5, 8])
def test_a_loss_that_all_share_costs_one_repair_and_few_questions(nodes: int) -> None:
    """Lost before the switch, on the only link: every receiver misses the same datagram."""
    world = StreamWorld(2, nodes=nodes, faults=replace(QUIET, common_loss=0.05))
    world.links, world.rate = 1, 60.0
    lost = 0
    carry = world.multicast

    def multicast(datagram: Datagram) -> None:
        nonlocal lost
        before = len(world._queue)
        carry(datagram)
        lost += datagram.kind == "deltas" and len(world._queue) == before

    world.multicast = multicast  # type: ignore[method-assign]
    counts = world.run()
    assert lost > 10
    # Some are lost before anybody listens; and a repair may be lost as well.
    assert 0.8 * lost <= counts["repair"] <= 1.3 * lost
    # Without the spread and the shared repair it would be all receivers, each time.
    assert counts["nack"] <= lost * (1 + 0.6 * (nodes - 1))


# -- planted mistakes: every checker must catch one


class NoDedupe(StreamReceiver):
    """A datagram that came before is delivered again."""

    def on_datagram(
        self, sender_id: int, session: int, seq: int, body: bytes, *, now: float
    ) -> list[StreamEffect]:
        view = self.view(sender_id)
        if view is not None and view.session == session and seq <= view.applied_seq:
            return [Deliver(sender_id, session, seq, body)]
        return super().on_datagram(sender_id, session, seq, body, now=now)


class GapsForgiven(StreamReceiver):
    """A gap is given up, and nobody is told."""

    def tick(self, *, now: float) -> list[StreamEffect]:
        return [e for e in super().tick(now=now) if not isinstance(e, StreamBroken)]

    def on_beacon(
        self, sender_id: int, session: int, high_water: int, low_water: int, *, now: float
    ) -> list[StreamEffect]:
        effects = super().on_beacon(sender_id, session, high_water, low_water, now=now)
        return [effect for effect in effects if not isinstance(effect, StreamBroken)]


class TailIgnored(StreamReceiver):
    """What the beacon says of the newest seq is not believed."""

    def on_beacon(
        self, sender_id: int, session: int, high_water: int, low_water: int, *, now: float
    ) -> list[StreamEffect]:
        view = self.view(sender_id)
        known = 0 if view is None else view.high_water
        low_water = min(low_water, known + 1)
        return super().on_beacon(sender_id, session, known, low_water, now=now)


class RingMarkIgnored(StreamReceiver):
    """What can never be repaired is asked for until the attempts run out, then lost silently."""

    def on_beacon(
        self, sender_id: int, session: int, high_water: int, low_water: int, *, now: float
    ) -> list[StreamEffect]:
        return super().on_beacon(sender_id, session, high_water, 1, now=now)

    def _give_up(self, *_: object) -> list[StreamEffect]:
        return []


class AskedOnce(StreamReceiver):
    """A NACK that is lost, or whose answer is, is not said again."""

    def tick(self, *, now: float) -> list[StreamEffect]:
        effects = super().tick(now=now)
        for session in self._accepted.values():
            if session.attempt:
                session.nack_at = None
        return effects


class Impatient(StreamReceiver):
    """It asks again at once, and again."""

    def tick(self, *, now: float) -> list[StreamEffect]:
        effects = super().tick(now=now)
        for session in self._accepted.values():
            if session.nack_at is not None:
                session.nack_at = min(session.nack_at, now + 0.001)
                session.attempt = min(session.attempt, 3)
        return effects


class Credulous(StreamReceiver):
    """The first datagram of a session is proof enough."""

    def _challenge(self, sender_id: int, session: int, now: float) -> list[StreamEffect]:
        super()._challenge(sender_id, session, now)
        proof = self._proofs.get(sender_id)
        if proof is None:
            return []
        nonce = next(reversed(proof.nonces))
        return self.on_challenge_reply(sender_id, session, nonce, 0, now=now)


class AnyAnswer(StreamReceiver):
    """An answer counts, whatever it is the answer to."""

    def on_challenge_reply(
        self, sender_id: int, session: int, nonce: bytes, position: int, *, now: float
    ) -> list[StreamEffect]:
        proof = self._proofs.get(sender_id)
        if proof is not None:
            proof.nonces[nonce] = now
        return super().on_challenge_reply(sender_id, session, nonce, position, now=now)


class Curious(StreamReceiver):
    """Every datagram of an unknown session is a reason to ask."""

    def _challenge(self, sender_id: int, session: int, now: float) -> list[StreamEffect]:
        self._asked_at.pop(sender_id, None)
        proof = self._proofs.get(sender_id)
        if proof is not None:
            proof.next_at = now
        return super()._challenge(sender_id, session, now)


class SlotOff(SendRing):
    """After the ring has gone round, a repair brings another seq's bytes."""

    def get(self, seq: int) -> bytes | None:
        if super().get(seq) is None:
            return None
        return self._slots[(seq - (self.high_water <= self._size)) % len(self._slots)]


class NeverHeld(Repairer):
    """Everybody who asks is answered, each for himself and all."""

    def answer(self, peer_id: int, ranges: Iterable[tuple[int, int]], *, now: float) -> Repair:
        self._sent.clear()
        return super().answer(peer_id, ranges, now=now)


class OthersForgotten(Repairer):
    """What one node alone was sent counts as sent to all, for ever."""

    def _held(self, seq: int, peer_id: int, now: float) -> bool:
        return seq in self._sent

    def _refill(self, now: float) -> None:
        self._tokens = 1e9


def caught(cores: Cores) -> tuple[int, str]:
    """After how many seeds, and by what."""
    for seed in range(SEEDS_TO_CATCH):
        try:
            StreamWorld(seed, cores=cores).run()
        except CheckFailed as error:
            return seed + 1, str(error)
    pytest.fail("the planted mistake was not caught")


@pytest.mark.parametrize(
    ("cores", "checker"),
    [
        (Cores(stream=NoDedupe), ": seq "),
        (Cores(stream=GapsForgiven), ": seq "),
        (Cores(stream=TailIgnored), " is at "),
        (Cores(stream=RingMarkIgnored), " is at "),
        (Cores(stream=AskedOnce), " is at "),
        (Cores(stream=Impatient), " times nack "),
        (Cores(stream=Credulous), " accepted a dead session "),
        (Cores(stream=AnyAnswer), " accepted a dead session "),
        (Cores(stream=Curious), " times challenge "),
        (Cores(ring=SlotOff), " is not what was said"),
        (Cores(repairer=NeverHeld), " twice in "),
        (Cores(repairer=OthersForgotten), " is at "),
        (Cores(acknowledges_holes=True), " and has a hole before it"),
    ],
    ids=lambda value: "" if isinstance(value, str) else planted(value),
)
def test_a_planted_mistake_is_caught(cores: Cores, checker: str) -> None:
    _, how = caught(cores)
    assert checker in how, how


def planted(cores: Cores) -> str:
    if cores.acknowledges_holes:
        return "acknowledges_holes"
    for core, right in ((cores.stream, StreamReceiver), (cores.ring, SendRing)):
        if core is not right:
            return core.__name__
    return cores.repairer.__name__
