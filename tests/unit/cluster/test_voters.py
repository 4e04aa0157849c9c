"""Changes of the voter set, on one node among peers that the test plays."""

from __future__ import annotations

import pytest

from cluster.founding import founders_missing
from cluster.heartbeat import Accepted, Beat, Prepare, Promise, Propose, Voters
from cluster.lease_types import (
    Effect,
    EraPersisted,
    Note,
    PersistEra,
    PersistVoters,
    ReplyVoters,
    VoterRecord,
    VotersAsked,
    VotersFailed,
    VotersPersisted,
)
from cluster.settling import one_step
from hafw.config.model import RESTART_WAIT_MS, VoterSet
from hafw.human import make_epoch
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, VOTED, VOTERS, Bench, T, done, sent

FOUR = VoterSet(id=2, members=(1, 2, 3, 9))
TWO = VoterSet(id=2, members=(1, 9))
WAIT = RESTART_WAIT_MS * MS * 101 // 100
"""M(1+ε)."""


def told(voters: VoterSet) -> Voters:
    return Voters(voters.id, voters.members)


def disk(bench: Bench, effects: list[Effect]) -> list[Effect]:
    """Every write succeeds, and those that follow from it."""
    answers: list[Effect] = []
    for effect in effects:
        if isinstance(effect, PersistEra):
            answers += bench.core.handle(EraPersisted(effect.era), now_ns=bench.now)
        elif isinstance(effect, PersistVoters):
            answers += bench.core.handle(VotersPersisted(effect.record), now_ns=bench.now)
    return effects + (disk(bench, answers) if answers else [])


def ask(bench: Bench, voters: VoterSet) -> tuple[str, list[Effect]]:
    effects = bench.core.handle(VotersAsked("t", voters), now_ns=bench.now)
    [reply] = done(effects, ReplyVoters)
    return reply.reason, effects


def beat(
    follows: VoterSet | None, *, current: Voters = VOTED, able: bool = True, era: int = 3
) -> Beat:
    return Beat(era, True, able, [], [], current, None if follows is None else told(follows))


def tell(
    bench: Bench,
    node: int,
    *,
    current: Voters = VOTED,
    follows: VoterSet | None = None,
    era: int = 3,
) -> list[Effect]:
    return disk(bench, bench.hear(node, beat(follows, current=current, able=node != 9, era=era)))


def live(bench: Bench, duration_ns: int, follows: VoterSet | None, *nodes: int) -> list[Effect]:
    """`nodes` go on telling `follows`."""

    def each() -> list[Effect]:
        return [effect for node in nodes for effect in tell(bench, node, follows=follows)]

    return disk(bench, bench.pass_time(duration_ns, each))


def stored(bench: Bench, voters: VoterSet) -> None:
    reason, effects = ask(bench, voters)
    assert reason == ""
    disk(bench, effects)
    assert bench.core.voters.next == voters


@pytest.mark.parametrize(
    ("members", "number", "may"),
    [
        ((1, 2, 3, 9), 2, True),
        ((1, 9), 2, True),
        ((1, 2, 9), 2, False),
        ((1, 3, 9), 2, False),
        ((1, 2, 3, 9), 3, False),
        ((1, 2, 3, 9), 1, False),
        ((1, 2, 3, 4, 9), 2, False),
        ((), 2, False),
        ((1, 2, 3, 9, 9), 2, False),
        ((1, 2, 9, 63), 2, False),
    ],
)
def test_a_set_follows_by_one_number_and_one_voter(
    members: tuple[int, ...], number: int, may: bool
) -> None:
    voters = VoterSet(id=number, members=members)
    assert one_step(VOTERS, voters) is may
    reason, effects = ask(Bench(), voters)
    assert (reason == "") is may
    assert bool(done(effects, PersistVoters)) is may


def test_the_next_set_is_told_only_when_it_is_durable() -> None:
    bench = Bench()
    _, effects = ask(bench, FOUR)
    [write] = done(effects, PersistVoters)
    assert write.record == VoterRecord(VOTERS, FOUR)
    assert all(beat.next is None for beat in sent(bench.pass_time(2 * HEARTBEAT), Beat))
    bench.core.handle(VotersPersisted(write.record), now_ns=bench.now)
    assert sent(bench.pass_time(2 * HEARTBEAT), Beat)[-1].next == told(FOUR)


def test_a_stored_set_stays_while_a_majority_may_have_told_it() -> None:
    bench = Bench()
    stored(bench, FOUR)
    assert ask(bench, FOUR)[0] == ""
    assert "not done yet" in ask(bench, TWO)[0]
    assert FOUR.members < TWO.members
    assert done(tell(bench, 2, follows=TWO), PersistVoters) == []  # Node 9 may have told ours.
    assert bench.core.voters.next == FOUR
    assert bench.core.voters.rival == TWO


def test_a_set_for_which_no_majority_is_left_gives_way_upwards_only() -> None:
    lower, higher = VoterSet(id=2, members=(1, 2)), VoterSet(id=2, members=(2, 9))
    bench = Bench()
    stored(bench, TWO)
    tell(bench, 2, follows=lower)
    assert done(tell(bench, 9, follows=FOUR), PersistVoters) == []
    assert bench.core.voters.next == TWO
    bench = Bench()
    stored(bench, FOUR)
    tell(bench, 2, follows=TWO)
    effects = tell(bench, 9, follows=higher)
    assert [w.record for w in done(effects, PersistVoters)] == [VoterRecord(VOTERS, higher)]
    assert bench.core.voters.next == higher


def test_a_set_gives_way_to_what_a_majority_tells_whatever_its_order() -> None:
    bench = Bench()
    stored(bench, TWO)
    tell(bench, 2, follows=FOUR)
    assert bench.core.voters.next == TWO
    tell(bench, 9, follows=FOUR)
    assert bench.core.voters.next == FOUR
    assert bench.core.voters.rival is None


def test_the_alarm_ends_when_the_other_gave_way() -> None:
    bench = Bench()
    stored(bench, TWO)
    tell(bench, 2, follows=FOUR)
    assert bench.core.voters.rival == FOUR
    tell(bench, 2, follows=TWO)
    bench.pass_time(HEARTBEAT)
    assert bench.core.voters.rival is None


def test_a_set_that_a_peer_has_stored_is_stored_here_too() -> None:
    bench = Bench()
    effects = tell(bench, 9, follows=FOUR)
    assert [write.record for write in done(effects, PersistVoters)] == [VoterRecord(VOTERS, FOUR)]


def test_switches_one_longest_lease_after_both_majorities_with_a_higher_era() -> None:
    bench = Bench()
    stored(bench, FOUR)
    live(bench, 3 * WAIT, FOUR, 2)  # Two of three, and two of four.
    assert bench.core.view.voters == VOTERS
    start = bench.now
    effects = tell(bench, 9, follows=FOUR, era=7)
    assert bench.core.view.era == 8
    while bench.core.view.voters == VOTERS:
        live(bench, HEARTBEAT, FOUR, 2)
        tell(bench, 9, follows=FOUR, era=7)
    assert 0 <= bench.now - start - WAIT <= 2 * HEARTBEAT
    assert bench.core.view.voters == FOUR
    assert bench.core.view.majority == 3
    effects = disk(bench, bench.pass_time(2 * HEARTBEAT))
    assert sent(effects, Beat)[-1].voters == told(FOUR)
    assert bench.core.voters.record == VoterRecord(FOUR)


def test_a_majority_of_the_new_set_alone_does_not_do() -> None:
    bench = Bench()
    stored(bench, TWO)
    live(bench, 3 * WAIT, None, 2, 9)
    assert bench.core.view.voters == VOTERS
    live(bench, WAIT + 2 * HEARTBEAT, TWO, 9)
    assert bench.core.view.voters == TWO


def test_a_claim_while_waiting_is_not_ended_by_an_era_above_its_promise() -> None:
    bench = Bench()
    live(bench, WAIT + HEARTBEAT, None, 2, 9)
    stored(bench, FOUR)
    live(bench, 2 * HEARTBEAT, FOUR, 2, 9)
    era = bench.core.view.era  # Raised ahead.
    claim = make_epoch(era, 7, 2)
    [promise] = sent(disk(bench, bench.hear(2, Prepare(1, claim))), Promise)
    assert promise.epoch == claim
    live(bench, 2 * HEARTBEAT, FOUR, 2, 9)
    assert bench.core.view.era == era
    [grant] = sent(bench.hear(2, Propose(1, claim, 1, T, False)), Accepted)
    assert grant.epoch == claim
    live(bench, 2 * WAIT, FOUR, 2, 9)
    assert bench.core.view.voters == FOUR
    assert bench.core.view.era > era  # In the end it is left behind.


def test_the_switch_comes_before_what_waits_for_its_era() -> None:
    bench = Bench()
    live(bench, WAIT + HEARTBEAT, None, 2, 9)
    stored(bench, FOUR)
    live(bench, WAIT - 5 * HEARTBEAT, FOUR, 2, 9)
    disk(bench, bench.hear(2, Prepare(1, make_epoch(bench.core.view.era, 7, 2))))
    effects: list[Effect] = []
    for _ in range(6 * HEARTBEAT // MS):
        bench.now += MS
        effects = [e for node in (2, 9) for e in bench.hear(node, beat(FOUR))]
        if done(effects, PersistEra):
            break
    assert bench.core.view.voters == VOTERS
    [write] = done(effects, PersistEra)
    bench.hear(2, Prepare(1, make_epoch(write.era, 1, 2)))  # Its disk was quicker.
    bench.core.handle(EraPersisted(write.era), now_ns=bench.now)
    assert bench.core.view.voters == FOUR


def test_an_era_granted_in_while_waiting_is_left_behind() -> None:
    bench = Bench()
    live(bench, WAIT + HEARTBEAT, None, 2, 9)
    stored(bench, FOUR)
    live(bench, WAIT - 5 * HEARTBEAT, FOUR, 2, 9)
    tell(bench, 2, follows=FOUR, era=90)  # It restarted often, and asks in that era.
    assert bench.core.view.era == 90
    effects = disk(bench, bench.hear(2, Prepare(1, (90 << 40) + (1 << 8) + 2)))
    [promise] = sent(effects, Promise)
    live(bench, 10 * HEARTBEAT, FOUR, 2, 9)
    assert bench.core.view.voters == FOUR
    assert bench.core.view.era > promise.epoch >> 40


def test_a_higher_set_in_force_is_followed_once_era_and_set_are_durable() -> None:
    bench = Bench()
    far = VoterSet(id=9, members=(2, 3, 9))
    beat = Beat(6, True, False, [], [], told(far), None)
    effects = bench.hear(9, beat)
    assert done(effects, PersistVoters) == []
    [era] = done(effects, PersistEra)
    effects = bench.core.handle(EraPersisted(era.era), now_ns=bench.now)
    [write] = done(effects, PersistVoters)
    assert write.record == VoterRecord(far)
    assert bench.core.view.voters == VOTERS
    effects = bench.core.handle(VotersPersisted(write.record), now_ns=bench.now)
    assert bench.core.view.voters == far
    assert [note.event for note in done(effects, Note)] == ["voters_changed"]
    bench.pass_time(2 * WAIT)
    assert not bench.core.view.may_vote(bench.now)
    assert not bench.core.view.able()


def test_a_set_whose_teller_has_no_durable_era_is_not_followed() -> None:
    bench = Bench()
    tell(bench, 9, current=told(FOUR), era=0)
    assert bench.core.view.voters == VOTERS
    tell(bench, 9, current=told(FOUR), era=3)
    assert bench.core.view.voters == FOUR


def test_a_claim_under_way_is_dropped_at_the_switch_and_its_grants_with_it() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    stored(bench, TWO)
    assert bench.core.groups[1].proposer.claim is not None
    tell(bench, 9, current=told(TWO))
    assert bench.core.view.voters == TWO
    claim = bench.core.groups[1].proposer.claim
    assert claim is None or claim.epoch > prepare.epoch
    bench.hear(2, Promise(1, prepare.epoch, 3, 0, 0, False, True))
    assert bench.core.groups[1].proposer.held is None


def test_renewals_under_way_do_not_count_in_the_next_set() -> None:
    bench = Bench()
    bench.hold()
    bench.pass_time(HEARTBEAT)
    held = bench.core.groups[1].proposer.held
    assert held is not None
    assert held.requests
    request, deadline_ns = max(held.requests), held.deadline_ns
    stored(bench, TWO)
    tell(bench, 9, current=told(TWO))
    bench.peers[9].voters = TWO
    bench.hear(9, Accepted(1, held.epoch, request))
    assert held.deadline_ns == deadline_ns


def test_votes_of_nodes_outside_of_the_set_do_not_count() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    bench.core.view.act_in(VoterSet(id=1, members=(1, 9)))
    bench.core.view.voters_hash = VOTERS.hash  # As if it named the same set.
    bench.hear(2, Promise(1, prepare.epoch, 3, 0, 0, False, True))
    claim = bench.core.groups[1].proposer.claim
    assert claim is None or not claim.promises


def test_a_node_that_lost_its_file_stores_and_votes_only_when_added_anew() -> None:
    bench = Bench()
    bench.core.view.voters_lost = True
    bench.core.voters.record = VoterRecord(VOTERS, lost=True)
    assert "lost" in ask(bench, FOUR)[0]
    assert done(tell(bench, 9, follows=FOUR), PersistVoters) == []
    bench.pass_time(2 * WAIT)
    assert not bench.core.view.may_vote(bench.now)
    without = VoterSet(id=3, members=(2, 9))
    tell(bench, 9, current=told(without))
    assert bench.core.voters.record == VoterRecord(without, lost=True)
    again = VoterSet(id=4, members=(1, 2, 9))
    stored(bench, again)
    assert bench.core.voters.record == VoterRecord(without, again, lost=True)
    tell(bench, 9, current=told(again))
    assert bench.core.voters.record == VoterRecord(again)
    assert bench.core.view.may_vote(bench.now)


def test_who_acts_in_a_later_set_told_nothing_of_the_next_one() -> None:
    bench = Bench()
    stored(bench, TWO)
    later = told(VoterSet(id=3, members=(1, 2, 9, 10)))  # Descends from a rival of TWO.
    for _ in range(10):
        bench.hear(9, beat(None, current=later, able=False))  # And no write ends.
        bench.hear(2, beat(None, current=later))
        bench.pass_time(WAIT // 5)
    assert bench.core.voters.settles_ns is None
    assert bench.core.view.voters == VOTERS


def test_sets_that_cannot_be_are_not_taken_from_a_peer() -> None:
    bench = Bench()
    doubled = Voters(2, (1, 2, 9, 9))
    effects = tell(bench, 9, current=doubled)
    effects += disk(bench, bench.hear(9, Beat(3, True, False, [], [], VOTED, doubled)))
    assert done(effects, PersistVoters) == []
    assert bench.core.view.voters == VOTERS


def newcomer() -> Bench:
    """Node 1 has cluster.yaml alone, which names 1, 2 and 9."""
    bench = Bench()
    record = VoterRecord.newcomer(VOTERS)
    bench.core.view.act_in(record.current)
    bench.core.voters.record = record
    return bench


NEW = Voters(0, VOTERS.members)


def test_a_newcomer_founds_once_all_of_its_file_are_heard_to_found_the_same() -> None:
    bench = newcomer()
    assert "knows no voters yet" in ask(bench, FOUR)[0]
    assert founders_missing(bench.core.view, bench.now) == [2, 9]
    effects = tell(bench, 2, current=NEW)
    effects += tell(bench, 9, current=Voters(0, (1, 9)))
    effects += tell(bench, 9, current=told(VOTERS), follows=TWO)
    effects += live(bench, 0, None)
    assert done(effects, PersistVoters) == []
    assert not bench.core.view.is_voter
    effects = tell(bench, 9, current=told(VOTERS))  # It has founded already.
    assert [write.record for write in done(effects, PersistVoters)] == [VoterRecord(VOTERS)]
    assert bench.core.view.voters == VOTERS
    assert bench.core.view.is_voter
    assert not bench.core.view.voters_lost


def test_a_newcomer_does_not_found_with_who_is_silent_again() -> None:
    bench = newcomer()
    tell(bench, 2, current=NEW)
    bench.pass_time(5 * HEARTBEAT)
    assert done(tell(bench, 9, current=NEW), PersistVoters) == []


@pytest.mark.parametrize(("members", "lost"), [((2, 9), False), ((1, 2, 9), True)])
def test_a_newcomer_follows_any_other_set_and_votes_in_none_of_it(
    members: tuple[int, ...], lost: bool
) -> None:
    bench = newcomer()
    tell(bench, 2, current=NEW)
    there = VoterSet(id=1 if members == (2, 9) else 4, members=members)
    tell(bench, 9, current=told(there))
    assert bench.core.voters.record == VoterRecord(there, lost=lost)
    assert bench.core.view.voters == there
    bench.pass_time(2 * WAIT)
    assert not bench.core.view.may_vote(bench.now)


def test_a_write_that_fails_is_tried_again_after_a_second() -> None:
    bench = Bench()
    ask(bench, FOUR)
    effects = bench.core.handle(VotersFailed("No space left on device"), now_ns=bench.now)
    assert [note.event for note in done(effects, Note)] == ["voters_write_failed"]
    assert done(bench.pass_time(999 * MS), PersistVoters) == []
    [write] = done(bench.pass_time(2 * MS), PersistVoters)
    bench.core.handle(VotersPersisted(write.record), now_ns=bench.now)
    assert bench.core.voters.error == ""
    assert bench.core.voters.next == FOUR
