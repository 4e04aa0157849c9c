"""The lease core: events in, effects out."""

from __future__ import annotations

from cluster.heartbeat import (
    Accepted,
    Beat,
    GroupBeat,
    Nack,
    Prepare,
    Promise,
    Propose,
    Release,
)
from cluster.lease_types import (
    Announce,
    Arrived,
    Effect,
    EraFailed,
    EraPersisted,
    PersistEra,
    Send,
    SetGate,
    StopAsked,
    SyncdSaid,
    TellSyncd,
)
from hafw.config.model import VoterSet
from hafw.human import epoch_era, make_epoch
from hafw.messages import NewEpochRequest
from tests.unit.cluster.lease_bench import (
    HEARTBEAT,
    KEPT,
    MS,
    START,
    USABLE,
    VOTED,
    Bench,
    Peer,
    T,
    done,
    messages,
    sent,
)


def test_cold_start_to_active_in_the_order_owed() -> None:
    bench = Bench()
    quiet = bench.pass_time(2019 * MS, bench.calm)
    assert sent(quiet, Prepare) == []  # M(1+e) is 2020 ms: nobody votes, so nobody is asked.
    effects = bench.pass_time(41 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    assert epoch_era(prepare.epoch) == 3
    asked = bench.hear(9, Promise(1, prepare.epoch, 3, 0, 0, False, True))
    [propose] = sent(asked, Propose)
    asked_ns = bench.now
    bench.now += 7 * MS
    effects = bench.hear(9, Accepted(1, prepare.epoch, propose.request))
    kinds = [type(effect) for effect in effects]
    assert kinds.index(SetGate) < kinds.index(Announce) < kinds.index(TellSyncd)
    deadline = asked_ns + USABLE
    assert done(effects, SetGate) == [SetGate(1, deadline, deadline)]
    [told] = done(effects, TellSyncd)
    assert told.message.active
    assert told.message.epoch == prepare.epoch
    assert not told.message.contiguous  # Nobody remembers a lease.


def test_a_grant_that_comes_too_late_is_not_a_right() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    [propose] = sent(bench.hear(9, Promise(1, prepare.epoch, 3, 0, 0, False, True)), Propose)
    bench.now += USABLE
    effects = bench.hear(9, Accepted(1, prepare.epoch, propose.request))
    assert done(effects, SetGate) == []
    assert bench.core.view.counters["grants_too_late"] == 1


def test_renewals_extend_from_each_request_and_expiry_shuts() -> None:
    bench = Bench()
    bench.hold()
    effects = bench.renew()
    stored = done(effects, SetGate)[-1]
    assert bench.now - HEARTBEAT + USABLE < stored.announce_ns <= bench.now + USABLE
    lost = bench.pass_time(T + HEARTBEAT, bench.calm)  # Nobody answers renewals.
    assert done(lost, SetGate)[0] == SetGate(1, 0, 0)
    assert [tell.message.active for tell in done(lost, TellSyncd)].count(False) > 0
    assert bench.core.view.counters["leases_lost"] == 1


def test_lease_that_ends_with_no_majority_heard_is_given_up_while_voters_may_count_it() -> None:
    """They may have granted all that was asked for: this node alone is deaf, perhaps."""
    bench = Bench()
    bench.hold()
    bench.renew()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    effects = bench.pass_time(held.deadline_ns - bench.now - 1)
    assert sent(effects, Release) == []
    ended = bench.pass_time(KEPT)
    given = [isinstance(e, Send) and bool(sent([e], Release)) for e in ended]
    assert ended.index(SetGate(1, 0, 0)) < given.index(True)
    releases = sent(ended, Release)
    assert set(releases) == {Release(1, held.epoch, 0, None)}
    assert len(releases) >= KEPT // HEARTBEAT
    assert sent(bench.pass_time(4 * T), Release) == []


def test_lease_that_ends_while_a_majority_is_heard_is_claimed_anew_and_not_given_up() -> None:
    bench = Bench()
    bench.hold()
    effects = bench.pass_time(2 * T, bench.calm)
    assert SetGate(1, 0, 0) in effects
    assert sent(effects, Prepare)
    assert sent(effects, Release) == []


def test_own_vote_is_only_cast_when_it_makes_the_majority() -> None:
    bench = Bench()
    bench.pass_time(2100 * MS, bench.calm)
    assert bench.core.groups[1].proposer.claim is not None
    assert bench.core.groups[1].acceptor.promised == 0


def test_lease_of_another_is_waited_for_and_asked_again_at_its_end() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    bench.hear(9, Nack(1, prepare.epoch, 3, 0, 2, 3 * MS))
    before = bench.now
    again = bench.pass_time(3 * MS)
    assert sent(again, Prepare) == [prepare]
    assert bench.now - before == 3 * MS


def test_outbid_claim_is_dropped_and_tried_higher_after_a_pause() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    higher = make_epoch(3, 77, 2)
    bench.hear(9, Nack(1, prepare.epoch, 3, higher, 0, 0))
    assert bench.core.groups[1].proposer.claim is None
    again = sent(bench.pass_time(2 * HEARTBEAT, bench.calm), Prepare)
    assert again[0].epoch == make_epoch(3, 78, 1)


def test_claim_that_the_own_voter_refuses_is_begun_anew() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    higher = make_epoch(3, 77, 2)
    assert sent(bench.hear(2, Prepare(1, higher)), Promise)  # Ours goes to the rival meanwhile.
    bench.hear(9, Promise(1, prepare.epoch, 3, 0, 0, False, True))
    assert bench.core.groups[1].proposer.claim is None
    again = sent(bench.pass_time(2 * HEARTBEAT, bench.calm), Prepare)
    assert again[0].epoch == make_epoch(3, 78, 1)


def test_era_of_a_voter_above_ours_is_made_durable_before_the_next_claim() -> None:
    bench = Bench()
    effects = bench.pass_time(2100 * MS, bench.calm)
    [prepare] = sent(effects, Prepare)[:1]
    effects = bench.hear(9, Nack(1, prepare.epoch, 8, 0, 0, 0))
    assert done(effects, PersistEra) == [PersistEra(8)]
    # Claims of the old era are refused again and again: one a heartbeat, not one an answer.
    assert sent(effects, Prepare) == []
    assert sent(bench.pass_time(HEARTBEAT - 1, bench.calm), Prepare) == []
    [again] = sent(bench.pass_time(1, bench.calm), Prepare)[:1]
    assert again.epoch < make_epoch(4, 0, 0)
    assert sent(bench.hear(9, Nack(1, again.epoch, 8, 0, 0, 0)), Prepare) == []
    effects = bench.core.handle(EraPersisted(8), now_ns=bench.now)
    assert bench.core.view.era == 8
    assert sent(effects, Prepare)[0].epoch > make_epoch(8, 0, 0)  # At once.


def test_heartbeat_with_a_higher_era_raises_ours_ahead() -> None:
    bench = Bench()
    bench.beat(9)
    effects = bench.beat(2, era=5)
    assert done(effects, PersistEra) == [PersistEra(5)]
    assert done(bench.beat(2, era=5), PersistEra) == []  # One write at a time.


def voter() -> Bench:
    """A witness that may vote."""
    bench = Bench(9)
    bench.pass_time(2021 * MS)
    for node in bench.peers:
        bench.beat(node)
    return bench


def to(effects: list[Effect], node: int) -> list[object]:
    return [
        m for e in effects if isinstance(e, Send) and e.to == node for m in e.envelope.messages
    ]


def test_a_second_process_with_the_holders_id_waits_for_the_end_of_its_lease() -> None:
    """It may be another machine, and then its gate is another one."""
    bench = voter()
    held = make_epoch(3, 1, 1)
    bench.hear(1, Prepare(1, held))
    assert sent(bench.hear(1, Propose(1, held, 1, T, True)), Accepted)
    granted_at = bench.now
    bench.peers[1] = Peer(1, 4711)
    bench.now += 5 * MS
    claim = make_epoch(3, 2, 1)
    left = granted_at + KEPT - bench.now
    assert to(bench.hear(1, Prepare(1, claim)), 1) == [Nack(1, claim, 3, held, 1, left)]
    for ask in (Propose(1, claim, 1, T, False), Propose(1, held, 2, T, True)):
        assert isinstance(to(bench.hear(1, ask), 1)[0], Nack)
    bench.now = granted_at + KEPT
    assert isinstance(to(bench.hear(1, Prepare(1, claim)), 1)[0], Promise)
    assert isinstance(to(bench.hear(1, Propose(1, claim, 3, T, False)), 1)[0], Accepted)
    assert sent(bench.hear(1, Propose(1, claim, 4, T, True)), Accepted)


def test_absurd_era_of_one_node_is_neither_learned_nor_in_the_way() -> None:
    absurd = 16_000_000
    bench = Bench()
    bench.epochs[2] = make_epoch(absurd, 5, 2)

    def poisoned() -> list[Effect]:
        return [*bench.beacon(), *bench.beat(2, era=absurd), *bench.beat(9)]

    effects = bench.pass_time(2100 * MS, poisoned)
    prepares = sent(effects, Prepare)
    assert prepares  # What it promised does not keep us from finding an epoch.
    epoch = prepares[-1].epoch
    assert epoch_era(epoch) == 3
    effects += bench.hear(2, Nack(1, epoch, absurd, make_epoch(absurd, 5, 2), 0, 0))
    effects += bench.hear(2, Prepare(1, make_epoch(absurd, 6, 2)))
    effects += bench.answer([e for e in effects if isinstance(e, Send)])
    assert bench.core.groups[1].active
    assert done(effects, PersistEra) == []
    assert bench.core.view.counters["eras_ignored"] > 0
    # The holder's renewals are not disturbed by its refusals either.
    held = bench.core.groups[1].proposer.held
    assert held is not None
    bench.hear(2, Nack(1, held.epoch, absurd, make_epoch(absurd, 6, 2), 0, 0))
    assert not held.refused


def test_far_era_of_a_majority_is_learned() -> None:
    """The era file of this node was lost, or the node is new."""
    bench = Bench()
    assert done(bench.beat(2, era=5000), PersistEra) == []
    assert done(bench.beat(9, era=4900), PersistEra) == [PersistEra(4900)]
    bench.beat(2, era=5000)
    effects = bench.core.handle(EraPersisted(4900), now_ns=bench.now)
    assert done(effects, PersistEra) == [PersistEra(5000)]


def test_era_that_is_not_durable_is_told_to_nobody() -> None:
    bench = Bench(era_durable=False)
    [beat] = sent(bench.pass_time(0), Beat)
    assert beat.era == 0
    bench.core.handle(EraPersisted(4), now_ns=bench.now)
    assert sent(bench.pass_time(HEARTBEAT), Beat)[-1].era == 4


def test_voter_says_nothing_until_its_restart_wait_is_over() -> None:
    bench = Bench(9)
    ask = Prepare(1, make_epoch(3, 1, 1))
    assert to(bench.hear(1, ask), 1) == []
    assert bench.core.view.counters["votes_withheld"] == 1
    bench.now = START + 2020 * MS - 1
    assert to(bench.hear(1, ask), 1) == []
    bench.now += 1
    assert isinstance(to(bench.hear(1, ask), 1)[0], Promise)


def test_vote_in_a_higher_era_waits_for_the_disk() -> None:
    bench = voter()
    effects = bench.hear(1, Prepare(1, make_epoch(7, 1, 1)))
    assert to(effects, 1) == []
    assert done(effects, PersistEra) == [PersistEra(7)]
    effects = bench.core.handle(EraPersisted(7), now_ns=bench.now)
    [promise] = to(effects, 1)
    assert promise == Promise(1, make_epoch(7, 1, 1), 7, 0, 0, False, False)


def test_node_that_cannot_write_its_era_does_not_vote_and_tries_again() -> None:
    bench = voter()
    bench.hear(1, Prepare(1, make_epoch(7, 1, 1)))
    bench.core.handle(EraFailed(7, "No space left on device"), now_ns=bench.now)
    assert bench.core.era_error == "No space left on device"
    assert to(bench.hear(1, Prepare(1, make_epoch(3, 1, 1))), 1) == []
    assert not bench.core.view.may_vote(bench.now)
    effects = bench.pass_time(1000 * MS + HEARTBEAT)
    assert done(effects, PersistEra) == [PersistEra(7)]
    bench.core.handle(EraPersisted(7), now_ns=bench.now)
    assert bench.core.view.may_vote(bench.now)
    assert bench.core.era_error == ""


def test_epoch_of_a_lower_era_is_refused_with_ours() -> None:
    bench = voter()
    [nack] = to(bench.hear(1, Prepare(1, make_epoch(2, 9, 1))), 1)
    assert nack == Nack(1, make_epoch(2, 9, 1), 3, 0, 0, 0)


def test_too_long_a_lease_is_refused() -> None:
    bench = voter()
    epoch = make_epoch(3, 1, 1)
    assert to(bench.hear(1, Propose(1, epoch, 1, 1001 * MS, False)), 1) == []
    assert to(bench.hear(1, Propose(1, epoch, 1, 0, False)), 1) == []
    assert bench.core.view.counters["lease_too_long"] == 2


def test_only_candidates_are_voted_for_and_only_under_their_own_epochs() -> None:
    bench = voter()
    assert to(bench.hear(1, Prepare(1, make_epoch(3, 1, 2))), 1) == []
    gateway = Bench(1)
    gateway.pass_time(2021 * MS)
    assert to(gateway.hear(9, Prepare(1, make_epoch(3, 1, 9))), 9) == []
    assert gateway.core.view.counters["not_a_candidate"] == 1


def test_messages_of_another_voter_set_are_refused_and_counted() -> None:
    bench = voter()
    bench.peers[1] = Peer(1, 4711, VoterSet(id=1, members=(1, 9)))
    effects = bench.hear(1, Prepare(1, make_epoch(3, 1, 1)))
    assert to(effects, 1) == []
    assert bench.core.view.counters["wrong_voters"] == 1
    assert bench.core.wrong_voters_ns == bench.now
    assert not bench.core.view.alive(1, bench.now + 1) or bench.core.view.peers[1].session != 4711


def test_nothing_but_a_hello_is_acted_on_before_the_session_is_proven() -> None:
    bench = voter()
    bench.peers[1] = Peer(1, 4711)
    effects = bench.hear(1, Prepare(1, make_epoch(3, 1, 1)), mutual=False)
    assert to(effects, 1) == []
    assert bench.core.view.counters["unproven"] == 1
    assert isinstance(to(bench.hear(1, Prepare(1, make_epoch(3, 1, 1))), 1)[0], Promise)


def test_envelopes_for_others_from_strangers_and_from_oneself_are_counted() -> None:
    bench = voter()
    core = bench.core
    stranger = Peer(33, 5).envelope(heard=[])
    core.handle(Arrived(33, stranger), now_ns=bench.now)
    core.handle(Arrived(9, stranger), now_ns=bench.now)
    core.handle(Arrived(1, bench.peers[1].envelope(heard=[], to=2)), now_ns=bench.now)
    counters = core.view.counters
    assert (counters["unknown_sender"], counters["own_id_heard"], counters["not_for_us"]) == (
        1,
        1,
        1,
    )


def test_overtaken_heartbeat_does_not_undo_a_release() -> None:
    bench = Bench(2)
    bench.pass_time(2100 * MS)
    epoch = make_epoch(3, 1, 1)
    group = GroupBeat(1, epoch, epoch, 1, True, True, "")
    late = bench.peers[1]
    late.seq += 1
    old_seq = late.seq
    bench.hear(1, Release(1, epoch, 2, None))
    late_again, late.seq = late.seq, old_seq - 1
    bench.hear(1, Beat(3, True, True, [group], [], VOTED, None))
    late.seq = late_again
    assert bench.core.view.counters["beats_overtaken"] == 1
    assert bench.core.view.active_peer(1, bench.now) == (0, 0)


def test_backup_claims_the_moment_its_own_vote_expires() -> None:
    bench = Bench(2)
    epoch = make_epoch(3, 1, 1)

    def holder_too() -> list[Effect]:
        return [*bench.beacon(), *bench.beat(1, active=epoch, holder=1), *bench.beat(9, holder=1)]

    def others() -> list[Effect]:
        return [*bench.beacon(), *bench.beat(9, holder=1)]

    bench.pass_time(2100 * MS, holder_too)
    granted_ns = bench.now
    bench.hear(1, Propose(1, epoch, 1, T, True))
    effects = bench.pass_time(KEPT - 1, others)
    assert sent(effects, Prepare) == []
    effects = bench.pass_time(1)
    assert bench.now == granted_ns + KEPT
    [prepare] = sent(effects, Prepare)
    assert prepare.epoch > epoch


def test_no_claim_while_a_holder_is_heard_to_be_active() -> None:
    bench = Bench(2)
    epoch = make_epoch(3, 1, 1)

    def holder_too() -> list[Effect]:
        # Its renewals are lost on the way to us, its heartbeats are not.
        return [*bench.beacon(), *bench.beat(1, active=epoch, holder=1), *bench.beat(9, holder=1)]

    assert sent(bench.pass_time(4000 * MS, holder_too), Prepare) == []
    role = bench.core.groups[1].role
    assert (role.epoch, role.holder) == (epoch, 1)


def test_unsynced_candidate_is_patient_for_five_leases() -> None:
    bench = Bench()
    bench.synced = False

    def unsynced() -> list[Effect]:
        return [*bench.beacon(), *bench.beat(2, synced=False), *bench.beat(9, synced=False)]

    bench.pass_time(1900 * MS, bench.calm_with(synced=True))
    effects = bench.pass_time(5 * T - HEARTBEAT, unsynced)
    assert sent(effects, Prepare) == []
    assert sent(bench.pass_time(3 * HEARTBEAT, unsynced), Prepare)


def test_unsynced_candidate_does_not_claim_while_a_synced_one_is_heard() -> None:
    bench = Bench()
    bench.synced = False
    effects = bench.pass_time(4000 * MS, bench.calm_with(synced=True))
    assert sent(effects, Prepare) == []


def test_synced_candidate_that_does_not_claim_is_not_waited_for_for_ever() -> None:
    bench = Bench()
    bench.synced = False
    early = bench.pass_time((2000 + 25 * 100) * MS, bench.calm)
    assert sent(early, Prepare) == []  # Node 2 says that it is synced, and able to claim.
    assert sent(bench.pass_time(3 * HEARTBEAT, bench.calm), Prepare)


def test_lease_that_was_held_begins_the_wait_anew() -> None:
    bench = Bench()
    bench.hold()
    bench.synced = False
    lost = bench.pass_time(25 * T, bench.calm)  # Nobody renews; node 2 is synced.
    assert done(lost, SetGate)[0] == SetGate(1, 0, 0)
    assert sent(lost[lost.index(SetGate(1, 0, 0)) :], Prepare) == []


def test_second_in_order_claims_one_heartbeat_after_the_first() -> None:
    bench = Bench(2)
    bench.pass_time(2020 * MS - 1, bench.calm)
    effects = bench.pass_time(HEARTBEAT - 1, bench.calm)
    assert sent(effects, Prepare) == []
    assert sent(bench.pass_time(2 * HEARTBEAT, bench.calm), Prepare)


def test_new_epoch_is_claimed_while_the_gate_stays_open() -> None:
    bench = Bench()
    bench.hold()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    request = NewEpochRequest(group=1, held_epoch=held.epoch, reason="registry lost")
    effects = bench.core.handle(SyncdSaid(request), now_ns=bench.now)
    [prepare] = sent(effects, Prepare)
    assert prepare.epoch > held.epoch
    assert done(effects, SetGate) == []
    effects = bench.hear(9, Promise(1, prepare.epoch, 3, held.epoch, 1, True, True))
    [propose] = sent(effects, Propose)
    effects = bench.hear(9, Accepted(1, prepare.epoch, propose.request))
    [told] = done(effects, TellSyncd)
    assert (told.message.epoch, told.message.active) == (prepare.epoch, True)
    assert done(effects, SetGate)[0].announce_ns > bench.now
    stale = NewEpochRequest(group=1, held_epoch=held.epoch, reason="late")
    assert sent(bench.core.handle(SyncdSaid(stale), now_ns=bench.now), Prepare) == []


def test_clean_stop_shuts_before_it_releases_to_anybody() -> None:
    bench = Bench()
    bench.hold()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    effects = bench.core.handle(StopAsked(), now_ns=bench.now)
    order = [
        effect
        for effect in effects
        if isinstance(effect, SetGate)
        or (isinstance(effect, Send) and any(isinstance(m, Release) for m in messages([effect])))
    ]
    assert order[0] == SetGate(1, 0, 0)
    assert messages([order[1]]) == [Release(1, held.epoch, 0, None)]
    assert sent(bench.pass_time(1000 * MS, bench.calm), Prepare) == []  # Stopping: no more claims.


def test_round_trip_comes_from_echoed_heartbeats() -> None:
    bench = Bench()
    bench.beat(9)
    [send] = [e for e in bench.pass_time(HEARTBEAT) if isinstance(e, Send)][:1]
    bench.now += 5 * MS
    bench.hear(9, Beat(3, True, False, [], [(1, send.envelope.seq, 2 * MS)], VOTED, None))
    rtt_ns = bench.core.view.peers[9].rtt_ns
    assert rtt_ns is not None
    assert 3 * MS <= rtt_ns <= 3 * MS + HEARTBEAT
