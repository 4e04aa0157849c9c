"""Planned hand-over: transcripts of the old holder, the target, and who was asked instead."""

from __future__ import annotations

import pytest

from cluster.handover import SYNCD_SILENT_MS
from cluster.heartbeat import (
    Accepted,
    Message,
    MoveAnswer,
    MoveAsk,
    Prepare,
    Promise,
    Propose,
    Release,
)
from cluster.lease_types import (
    AskPosition,
    Effect,
    MoveAsked,
    PersistVoters,
    ReplyMove,
    SetGate,
    StopAsked,
    SyncdSaid,
    TellSyncd,
    VotersAsked,
    VotersPersisted,
)
from hafw.config.model import VoterSet
from hafw.human import make_epoch
from hafw.messages import MoveReply, MoveRequest, Position, PositionReply
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, Bench, Peer, T, done, sent

HERE = Position(sender_id=1, session=77, seq=500)


def ask(bench: Bench, target: int = 2, wait_s: float = 0.0) -> list[Effect]:
    request = MoveRequest(group=1, target_id=target, wait_s=wait_s)
    return bench.core.handle(MoveAsked("cli", request), now_ns=bench.now)


def replies(effects: list[Effect]) -> list[MoveReply]:
    return [effect.reply for effect in done(effects, ReplyMove)]


def holder() -> tuple[Bench, int]:
    bench = Bench()
    bench.hold()
    bench.renew()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    return bench, held.epoch


def position(bench: Bench, epoch: int) -> list[Effect]:
    reply = PositionReply(group=1, epoch=epoch, position=HERE)
    return bench.core.handle(SyncdSaid(reply), now_ns=bench.now)


def test_old_holder_from_request_to_moved() -> None:
    bench, epoch = holder()
    stored = bench.core.groups[1].gate_ns
    effects = ask(bench)
    gate, question = [e for e in effects if isinstance(e, SetGate | AskPosition)]
    assert gate == SetGate(1, 0, stored)  # Announce shut, accept as it was.
    assert question == AskPosition(1, epoch)
    effects = bench.renew()
    assert done(effects, SetGate) == []  # The lease is renewed, the gate is not.
    assert sent(effects, Propose)
    effects = position(bench, epoch)
    assert sent(effects, Release)[0] == Release(1, epoch, 2, HERE)
    assert [tell.message.active for tell in done(effects, TellSyncd)][:1] == [False]
    repeated = bench.pass_time(HEARTBEAT, bench.calm)
    assert sent(repeated, Release)[0] == Release(1, epoch, 2, HERE)
    assert sent(repeated, Propose) == []
    newer = make_epoch(3, 9, 2)
    [reply] = replies(bench.beat(2, active=newer, holder=2))
    assert reply == MoveReply(moved=True, released=True, epoch=newer, reason="")


def test_old_holder_does_not_claim_while_the_target_has_its_chance() -> None:
    bench, epoch = holder()
    ask(bench)
    position(bench, epoch)
    assert sent(bench.pass_time(60 * MS, bench.calm), Prepare) == []


def test_target_that_never_comes_is_reported_as_released_not_moved() -> None:
    bench, epoch = holder()
    ask(bench)
    position(bench, epoch)
    [reply] = replies(bench.pass_time(5 * T, lambda: [*bench.beacon(), *bench.beat(2)]))
    assert (reply.moved, reply.released) == (False, True)
    assert "somebody claims it by rank" in reply.reason


def test_lease_taken_by_another_than_the_target_is_said() -> None:
    bench, epoch = holder()
    ask(bench)
    position(bench, epoch)
    own = make_epoch(3, 9, 1)
    bench.core.groups[1].role.epoch = own
    [reply] = replies(bench.pass_time(HEARTBEAT, bench.calm))
    assert (reply.moved, reply.released, reply.epoch) == (False, True, own)
    assert "node 1 took it instead" in reply.reason


def test_syncd_that_does_not_say_its_position_calls_the_move_off() -> None:
    bench, _ = holder()
    ask(bench)
    effects: list[Effect] = []
    for _ in range(4):
        effects += bench.renew()
    [reply] = replies(effects)
    assert (reply.moved, reply.released) == (False, False)
    assert "position" in reply.reason
    assert sent(effects, Release) == []
    reopened = done(effects, SetGate)[0]
    assert reopened.announce_ns == reopened.accept_ns > 0
    assert bench.core.groups[1].active


def test_lease_lost_during_the_move_ends_it_and_gives_it_to_nobody_by_name() -> None:
    bench, _ = holder()
    ask(bench)
    bench.now += 2 * T
    effects = bench.core.tick(now_ns=bench.now)
    assert done(effects, SetGate)[0] == SetGate(1, 0, 0)
    [reply] = replies(effects)
    assert (reply.moved, reply.released) == (False, False)
    assert [release.to for release in sent(effects, Release)] == [0]  # It hears nobody.


def test_stop_during_a_move_answers_it() -> None:
    bench, _ = holder()
    ask(bench)
    [reply] = replies(bench.core.handle(StopAsked(), now_ns=bench.now))
    assert reply.reason == "the node stops"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (1, "already the holder"),
        (9, "not a candidate"),
        (44, "not a candidate"),
    ],
)
def test_refused_targets(target: int, words: str) -> None:
    bench, _ = holder()
    effects = ask(bench, target)
    [reply] = replies(effects)
    assert (reply.moved, reply.released) == (False, False)
    assert words in reply.reason
    assert done(effects, SetGate) == []


def test_refused_for_a_group_that_is_not_there() -> None:
    bench, _ = holder()
    request = MoveRequest(group=7, target_id=2, wait_s=0)
    [reply] = replies(bench.core.handle(MoveAsked("cli", request), now_ns=bench.now))
    assert "no group 7" in reply.reason


@pytest.mark.parametrize("wait_s", [float("inf"), float("nan"), 1e300, -0.1, 600.1])
def test_refused_for_a_wait_that_is_none(wait_s: float) -> None:
    for bench in (holder()[0], Bench(2)):
        [reply] = replies(ask(bench, wait_s=wait_s))
        assert reply == MoveReply(False, False, 0, "wait_s is 0 to 600 seconds")


def test_refused_while_the_target_is_not_heard() -> None:
    bench, _ = holder()
    bench.now += 61 * MS
    bench.beacon()
    [reply] = replies(ask(bench))
    assert "not heard" in reply.reason


def test_refused_for_a_target_that_leaves_the_voters() -> None:
    """Before the set is in force: afterwards it would be ACTIVE without a vote."""
    bench, _ = holder()
    [write] = done(
        [
            *bench.core.handle(VotersAsked("v", VoterSet(id=2, members=(1, 9))), now_ns=bench.now),
            *bench.core.tick(now_ns=bench.now),
        ],
        PersistVoters,
    )
    bench.core.handle(VotersPersisted(write.record), now_ns=bench.now)
    [reply] = replies(ask(bench))
    assert reply.reason == "node 2 does not vote, or is being taken out of the voters"


def test_refused_while_the_target_cannot_carry_groups() -> None:
    bench, _ = holder()
    bench.beat(2, able=False)
    [reply] = replies(ask(bench))
    assert "cannot carry groups" in reply.reason


def test_refused_while_the_own_syncd_is_silent() -> None:
    bench, _ = holder()
    bench.core.view.beacon = None
    [reply] = replies(ask(bench))
    assert "syncd silent" in reply.reason


def test_second_move_is_refused_while_one_is_under_way() -> None:
    bench, _ = holder()
    ask(bench)
    [reply] = replies(ask(bench))
    assert "another move" in reply.reason


def test_unsynced_target_is_refused_at_once_or_waited_for() -> None:
    bench, _ = holder()
    bench.beat(2, synced=False, reason="12 stale entries")
    [reply] = replies(ask(bench))
    assert "not synced: 12 stale entries" in reply.reason

    bench.beat(2, synced=False, reason="12 stale entries")
    assert done(ask(bench, wait_s=0.05), SetGate) == []
    assert done(bench.beat(2, synced=True), SetGate)[0].announce_ns == 0

    bench, _ = holder()
    bench.beat(2, synced=False, reason="snapshot runs")
    effects = ask(bench, wait_s=0.03)
    for _ in range(3):
        effects += bench.beacon() + bench.beat(2, synced=False, reason="snapshot runs")
        passed = bench.pass_time(HEARTBEAT)
        effects += passed + bench.answer(passed)
    [reply] = replies(effects)
    assert "snapshot runs" in reply.reason


def test_request_at_another_node_is_forwarded_and_answered_once() -> None:
    bench = Bench(2)
    epoch = make_epoch(3, 1, 1)
    bench.beat(1, active=epoch, holder=1)
    effects = ask(bench)
    [forwarded] = sent(effects, MoveAsk)
    assert (forwarded.group, forwarded.target) == (1, 2)
    again = bench.pass_time(HEARTBEAT)
    assert sent(again, MoveAsk) == [forwarded]
    newer = make_epoch(3, 2, 2)
    [reply] = replies(bench.hear(1, MoveAnswer(forwarded.request, True, True, newer, "")))
    assert reply == MoveReply(moved=True, released=True, epoch=newer, reason="")
    assert replies(bench.hear(1, MoveAnswer(forwarded.request, True, True, newer, ""))) == []


def test_forwarded_move_ends_when_the_holder_does_not_answer() -> None:
    bench = Bench(2)
    bench.beat(1, active=make_epoch(3, 1, 1), holder=1)
    ask(bench, wait_s=1)
    [reply] = replies(bench.pass_time(11_100 * MS))
    assert "did not answer" in reply.reason


def test_refused_when_nobody_is_known_to_hold() -> None:
    bench = Bench(2)
    [reply] = replies(ask(bench))
    assert "no node is known to hold" in reply.reason


def test_repeated_asks_start_one_move_and_get_one_answer_each() -> None:
    bench, epoch = holder()
    first = bench.hear(2, MoveAsk(5, 1, 2, 0))
    assert done(first, AskPosition)
    second = bench.hear(2, MoveAsk(5, 1, 2, 0))
    assert done(second, AskPosition) == []
    assert sent(second, MoveAnswer) == []
    position(bench, epoch)
    newer = make_epoch(3, 9, 2)
    [answer] = sent(bench.beat(2, active=newer, holder=2), MoveAnswer)
    assert answer == MoveAnswer(5, True, True, newer, "")
    assert sent(bench.hear(2, MoveAsk(5, 1, 2, 0)), MoveAnswer) == [answer]
    [unknown] = sent(bench.hear(2, MoveAsk(6, 1, 2, 0)), MoveAnswer)
    assert "does not hold" in unknown.reason


def test_answer_is_not_given_to_a_later_process_of_the_asker() -> None:
    bench, epoch = holder()
    bench.hear(2, MoveAsk(5, 1, 2, 0))
    position(bench, epoch)
    assert sent(bench.beat(2, active=make_epoch(3, 9, 2), holder=2), MoveAnswer)
    bench.peers[2] = Peer(2, 2222)  # Its request numbers begin anew.
    [answer] = sent(bench.hear(2, MoveAsk(5, 1, 1, 0)), MoveAnswer)
    assert not answer.moved
    assert "does not hold" in answer.reason


# ---- the target ---------------------------------------------------------------------------------


def target(applied: list[Position]) -> tuple[Bench, int, list[Effect]]:
    """Node 2 at the moment when the release reached it, and the claim it made at once."""
    bench = Bench(2)
    epoch = make_epoch(3, 1, 1)

    def holder_too() -> list[Effect]:
        return [*bench.beacon(), *bench.beat(1, active=epoch, holder=1), *bench.beat(9, holder=1)]

    bench.pass_time(2100 * MS, holder_too)
    bench.hear(1, Propose(1, epoch, 1, T, True))
    bench.applied = applied
    bench.beacon()
    return bench, epoch, bench.hear(1, Release(1, epoch, 2, HERE))


def win(
    bench: Bench,
    effects: list[Effect],
    succeeds: int,
    *,
    opened: bool = True,
    given: Release | None = None,
) -> list[Effect]:
    prepare = sent(effects, Prepare)[0]
    answer: Message = Promise(1, prepare.epoch, 3, succeeds, 1, opened, True, given)
    [propose] = sent(bench.hear(9, answer), Propose)
    return bench.hear(9, Accepted(1, prepare.epoch, propose.request))


def test_target_opens_at_once_when_it_has_applied_everything() -> None:
    bench, epoch, effects = target([HERE])
    effects = win(bench, effects, epoch)
    opened = done(effects, SetGate)[0]
    assert opened.announce_ns == opened.accept_ns > bench.now


def test_target_waits_for_the_position_in_the_same_session() -> None:
    other = Position(sender_id=1, session=76, seq=9999)
    behind = Position(sender_id=1, session=77, seq=499)
    bench, epoch, effects = target([other, behind])
    assert done(win(bench, effects, epoch), SetGate) == []
    bench.applied = [HERE]
    effects = bench.beacon()
    assert done(effects, SetGate)[0].announce_ns > bench.now
    assert done(effects, TellSyncd)[0].message.active


def test_target_waits_for_the_position_also_after_a_claim_that_it_dropped() -> None:
    bench, epoch, effects = target([])
    dropped = epoch + (1 << 8) + 1  # The next counter, by node 2: granted, never opened.
    assert done(win(bench, effects, dropped, opened=False), SetGate) == []
    bench.applied = [HERE]
    assert done(bench.beacon(), SetGate)[0].announce_ns > bench.now


def test_target_waits_for_no_position_before_a_lease_that_has_opened_since() -> None:
    bench, epoch, effects = target([])
    since = epoch + (1 << 8) + 1
    assert done(win(bench, effects, since), SetGate)[0].announce_ns > bench.now


@pytest.mark.parametrize("asked", [False, True])
def test_target_waits_for_the_position_of_a_lease_that_nobody_heard_opened(asked: bool) -> None:
    """It was released in the very turn in which it had opened, and another claim lay between."""
    bench = Bench(2)
    bench.pass_time(2030 * MS, bench.calm)
    epoch = make_epoch(3, 1, 1)
    if asked:
        bench.hear(1, Propose(1, epoch, 1, T, False))
    effects = bench.hear(1, Release(1, epoch, 2, HERE))
    assert done(win(bench, effects, epoch + (1 << 8) + 1, opened=False), SetGate) == []
    bench.applied = [HERE]
    assert done(bench.beacon(), SetGate)[0].announce_ns > bench.now


def test_target_learns_the_position_from_a_voter_if_the_release_did_not_reach_it() -> None:
    bench = Bench(2)
    effects = bench.pass_time(2050 * MS, bench.calm)
    epoch = make_epoch(3, 1, 1)
    given = Release(1, epoch, 2, HERE)
    assert done(win(bench, effects, epoch, given=given), SetGate) == []
    bench.applied = [HERE]
    assert done(bench.beacon(), SetGate)[0].announce_ns > bench.now


def test_target_that_never_catches_up_gives_the_lease_back() -> None:
    bench, epoch, effects = target([])
    assert done(win(bench, effects, epoch), SetGate) == []
    effects = []
    for _ in range(15):
        effects += bench.renew()
    assert [gate.announce_ns for gate in done(effects, SetGate)] == [0]
    assert [release.to for release in sent(effects, Release)] == [0]
    assert bench.core.view.counters["takeovers_abandoned"] == 1
    assert not bench.core.groups[1].active


def test_target_that_waited_in_vain_opens_next_time_whatever_voters_tell() -> None:
    bench, epoch, effects = target([])
    assert done(win(bench, effects, epoch), SetGate) == []
    while not bench.core.view.counters["takeovers_abandoned"]:
        bench.renew()
    effects = bench.pass_time(2 * T, bench.calm)
    given = Release(1, epoch, 2, HERE)
    assert done(win(bench, effects, epoch, given=given), SetGate)[0].announce_ns > bench.now


def test_release_to_another_is_respected_until_the_lease_would_have_ended() -> None:
    bench = Bench(9)
    bench.pass_time(2100 * MS)
    bench.hear(1, Propose(1, make_epoch(3, 1, 1), 1, T, True))
    bench.hear(1, Release(1, make_epoch(3, 1, 1), 2, None))
    acceptor = bench.core.groups[1].acceptor
    assert acceptor.blocks(2, bench.now) == 0
    assert acceptor.blocks(3, bench.now) > 0


# ---- a silent syncd -----------------------------------------------------------------------------


def test_holder_with_a_silent_syncd_gives_the_group_to_a_synced_peer() -> None:
    bench, epoch = holder()
    effects: list[Effect] = []
    started = bench.now
    while not sent(effects, Release):
        effects = [*bench.beat(2), *bench.beat(9)]
        effects += bench.pass_time(HEARTBEAT)
        effects += bench.answer(effects)
        assert bench.now - started < 2 * SYNCD_SILENT_MS * MS
    assert SYNCD_SILENT_MS * MS <= bench.now - started <= (SYNCD_SILENT_MS + 150) * MS
    assert sent(effects, Release)[0] == Release(1, epoch, 2, None)
    gates = done(effects, SetGate)
    assert gates[-1].announce_ns == 0
    assert bench.core.view.counters["moves_syncd_silent"] == 1


def test_holder_with_a_silent_syncd_keeps_the_group_if_nobody_is_synced() -> None:
    bench, _ = holder()
    for _ in range(200):
        effects = [*bench.beat(2, synced=False), *bench.beat(9)]
        effects += bench.pass_time(HEARTBEAT)
        assert sent(effects, Release) == []
        bench.answer(effects)
    assert bench.core.groups[1].active
