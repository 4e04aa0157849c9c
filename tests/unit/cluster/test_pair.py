"""When one of two nodes without a witness may decide alone; what the simulation leaves out."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from cluster.heartbeat import Accepted, Beat, Envelope, GroupBeat, Message, Voters
from cluster.lease import LeaseCore
from cluster.lease_types import (
    Arrived,
    Effect,
    EraFailed,
    HeavyUntil,
    SegmentsDown,
    SetGate,
    Unreadable,
)
from cluster.pair import PairWatch
from hafw.config.model import VoterSet
from tests.unit.cluster.lease_bench import HEARTBEAT, KEPT, MS, START, Peer, T, params

VOTERS = VoterSet(id=1, members=(1, 2))
PAIR = replace(params(1, VOTERS), two_node=True)
VOTING = 2 * (T + HEARTBEAT) * 101 // 100


def beat(*, votes: bool = True, active: int = 0) -> Beat:
    group = GroupBeat(1, active, active, 0, True, True, "")
    told = Voters(VOTERS.id, VOTERS.members)
    return Beat(3, votes, True, [group], [], told, None)


def envelope(*messages: Message) -> Envelope:
    return Peer(2, 7, VOTERS).envelope(*messages, heard=[])


class Watched:
    """A `PairWatch` in a loop that is never late unless told to be."""

    def __init__(self) -> None:
        self.now = START
        self.pair = PairWatch(PAIR, START)
        self.pass_time(10_000 * MS)

    def pass_time(self, duration_ns: int, *, late_ns: int = 0) -> None:
        end = self.now + duration_ns
        while self.now < end:
            self.pair.turn(self.now, votes=True)
            self.pair.ticked(self.now, self.now + HEARTBEAT)
            self.pair.wait(self.now)
            self.now = min(end, self.pair._due_ns + late_ns)

    def alone(self) -> tuple[bool, bool]:
        """As a holder, as a claimant."""
        return (
            self.pair.alone(self.now, holding=True),
            self.pair.alone(self.now, holding=False),
        )


def test_silence_of_half_a_lease_holds_and_of_a_lease_claims() -> None:
    watched = Watched()
    watched.pair.hear(envelope(beat()), watched.now)
    watched.pass_time(T // 2 - 1)
    assert watched.alone() == (False, False)
    watched.pass_time(1)
    assert watched.alone() == (True, False)
    watched.pass_time(KEPT - T // 2 - 1)
    assert watched.alone() == (True, False)
    watched.pass_time(1)
    assert watched.alone() == (True, True)


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ((beat(),), True),
        ((beat(votes=False),), False),
        ((beat(votes=False, active=1 << 40),), True),
        ((beat(votes=False), Accepted(1, 1 << 40, 5)), True),
        ((), True),
    ],
    ids=["voter", "starter", "open gate", "answer", "nothing"],
)
def test_who_counts_as_there(said: tuple[Message, ...], counts: bool) -> None:
    watched = Watched()
    assert watched.alone() == (True, True)
    watched.pair.hear(envelope(*said), watched.now)
    assert watched.alone() == ((False, False) if counts else (True, True))


def test_a_late_loop_begins_the_silence_anew() -> None:
    watched = Watched()
    watched.pass_time(60 * MS, late_ns=watched.pair.late_ns)
    assert watched.alone() == (True, True)
    watched.pass_time(60 * MS, late_ns=watched.pair.late_ns + 1)
    assert watched.alone() == (False, False)


def test_work_that_takes_long_begins_the_silence_anew() -> None:
    watched = Watched()
    watched.pair.turn(watched.now, votes=True)
    watched.pair.ticked(watched.now, watched.now + HEARTBEAT)
    watched.now += watched.pair.late_ns + 1
    watched.pair.wait(watched.now)
    assert watched.alone() == (False, False)


def test_a_new_voter_claims_alone_two_leases_later() -> None:
    watched = Watched()
    watched.pair.turn(watched.now, votes=False)
    watched.pair.turn(watched.now, votes=True)
    watched.pass_time(VOTING - 1)
    assert watched.alone() == (True, False)
    watched.pass_time(1)
    assert watched.alone() == (True, True)


def test_the_gaps_of_a_claimant_are_no_silence_for_a_holder() -> None:
    for heartbeat_ms, lease_ms in ((20, 100), (10, 40), (5, 20), (25, 100)):
        timed = replace(PAIR, heartbeat_ns=heartbeat_ms * MS, lease_ns=lease_ms * MS)
        pair = PairWatch(timed, START)
        gap_ns = timed.heartbeat_ns + 3 * pair.late_ns + timed.heartbeat_ns // 4
        assert pair.late_ns > 0
        assert gap_ns <= timed.lease_ns // 2


# ---- in the core --------------------------------------------------------------------------------


class Alone:
    """A core whose peer has never been heard, ACTIVE by its own vote."""

    def __init__(self) -> None:
        self.now = START
        self.core = LeaseCore(PAIR, era=3, era_durable=True, rng=Random(1), now_ns=START)
        self.peer = Peer(2, 1002, VOTERS)
        self.run(2020 * MS + VOTING + 6 * T)
        assert self.active

    @property
    def active(self) -> bool:
        return self.core.groups[1].active

    def run(self, duration_ns: int) -> list[Effect]:
        """Let the loop run, never late."""
        effects: list[Effect] = []
        end = self.now + duration_ns
        while self.now < end:
            effects += self.core.tick(now_ns=self.now)
            self.now = min(end, max(self.now + 1, self.core.deadline(now_ns=self.now)))
        return effects

    def hears(self, *messages: Message) -> None:
        said = self.peer.envelope(*messages, heard=[])
        self.core.handle(Arrived(2, said), now_ns=self.now)


def test_own_vote_is_enough_for_an_unsynced_node_whose_peer_is_gone() -> None:
    alone = Alone()
    assert alone.core.view.counters["unsynced_claims"] == 1
    shut = [e for e in alone.run(20 * T) if isinstance(e, SetGate) and not e.announce_ns]
    assert not shut


@pytest.mark.parametrize(
    "event",
    [SegmentsDown(frozenset({"lan"})), Unreadable()],
    ids=["carrier", "unreadable"],
)
def test_what_ends_being_alone_ends_the_lease(event: SegmentsDown | Unreadable) -> None:
    alone = Alone()
    begun = alone.now
    while alone.active:
        alone.core.handle(event, now_ns=alone.now)
        alone.run(HEARTBEAT)
        assert alone.now - begun <= T + HEARTBEAT
    assert alone.core.view.counters["leases_lost"] == 1


def test_unproven_words_of_a_voter_end_the_lease_and_of_a_starter_do_not() -> None:
    alone = Alone()
    for _ in range(10):
        alone.hears(beat(votes=False))
        alone.run(HEARTBEAT)
    assert alone.active
    for _ in range(7):
        alone.hears(beat())
        alone.run(HEARTBEAT)
    assert not alone.active


def test_a_node_that_cannot_write_is_not_active_alone() -> None:
    alone = Alone()
    alone.core.handle(EraFailed(4, "disk full"), now_ns=alone.now)
    alone.run(2 * T)
    assert not alone.active


def test_heavy_work_makes_no_lease_longer_than_silence_is_weighed_against() -> None:
    alone = Alone()
    alone.core.handle(HeavyUntil(alone.now + 60_000 * MS), now_ns=alone.now)
    shut = [e.announce_ns - alone.now for e in alone.run(20 * T) if isinstance(e, SetGate)]
    assert shut, "it goes on renewing"
    assert alone.core.groups[1].gate_ns - alone.now <= T
    assert alone.core.view.lease_asked_ns(alone.now, opened=True) == T


def test_a_twin_is_no_silence() -> None:
    alone = Alone()
    for _ in range(7):
        twin = Peer(1, 99, VOTERS).envelope(beat(), heard=[])
        alone.core.handle(Arrived(1, twin), now_ns=alone.now)
        alone.run(HEARTBEAT)
    assert not alone.active


def test_a_majority_is_asked_of_anybody_else() -> None:
    core = LeaseCore(params(1, VOTERS), era=3, era_durable=True, rng=Random(1), now_ns=START)
    for step in range(2000):
        core.tick(now_ns=START + step * 5 * MS)
    assert not core.groups[1].active
    assert core.view.counters["claims_started"] == 0


def test_upstream_checks_that_flap_are_no_news_of_the_peer() -> None:
    alone = Alone()
    for turn in range(20):
        unanswered = frozenset({(1, "lan")} if turn % 2 else ())
        alone.core.handle(SegmentsDown(frozenset(), unanswered), now_ns=alone.now)
        alone.run(HEARTBEAT)
    assert alone.active
    both = SegmentsDown(frozenset({"dmz"}), frozenset({(1, "lan")}))
    alone.core.handle(both, now_ns=alone.now)
    assert not alone.core.view.alone(1, alone.now, holding=True), "a carrier went as well"
