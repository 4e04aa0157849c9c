"""Forced moves: transcripts of the target, the holder, and what nothing overrides."""

from __future__ import annotations

from cluster.asks import FORCE_MS
from cluster.heartbeat import MoveAnswer, MoveAsk, Prepare, Release
from cluster.lease_types import Effect, MoveAsked, ReplyMove, SetGate, StandingSaid
from hafw.human import make_epoch
from hafw.messages import MoveReply, MoveRequest, Standing
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, Bench, T, done, sent
from tests.unit.cluster.test_handover import holder, position


def force(bench: Bench, target: int = 1) -> list[Effect]:
    request = MoveRequest(group=1, target_id=target, wait_s=0.0, force=True)
    return bench.core.handle(MoveAsked("cli", request), now_ns=bench.now)


def replies(effects: list[Effect]) -> list[MoveReply]:
    return [effect.reply for effect in done(effects, ReplyMove)]


def alone_and_unsynced() -> Bench:
    """Node 1 is not synced, nobody holds the group, and node 2, which could, does not claim."""
    bench = Bench()
    bench.synced = False
    bench.pass_time(2030 * MS, bench.calm)
    return bench


def test_an_unsynced_node_claims_a_free_group_at_once() -> None:
    bench = alone_and_unsynced()
    assert sent(bench.pass_time(HEARTBEAT, bench.calm), Prepare) == []
    effects = force(bench)
    assert sent(effects, Prepare)
    won = bench.answer(effects)
    [reply] = replies(won + bench.pass_time(HEARTBEAT))
    assert (reply.moved, reply.epoch) == (True, bench.core.groups[1].role.epoch)


def test_without_a_majority_nothing_is_forced() -> None:
    bench = alone_and_unsynced()
    bench.pass_time(5 * T)  # Nobody is heard any more.
    effects = force(bench)
    [reply] = replies(effects)
    assert not reply.moved
    assert "two nodes could be ACTIVE; nothing overrides that" in reply.reason
    assert "nodes 2, 9" in reply.reason
    assert sent(effects + bench.pass_time(FORCE_MS * MS), Prepare) == []


def test_votes_that_do_not_come_end_the_wish() -> None:
    bench = alone_and_unsynced()
    force(bench)
    [reply] = replies(bench.pass_time(FORCE_MS * MS + 2 * HEARTBEAT, bench.calm))
    assert "no majority granted a lease" in reply.reason
    assert not bench.core.groups[1].active


def test_maintenance_is_not_overridden() -> None:
    bench = alone_and_unsynced()
    bench.core.handle(StandingSaid(Standing({}, [], [1])), now_ns=bench.now)
    [reply] = replies(force(bench))
    assert "in maintenance" in reply.reason
    bench = Bench()
    bench.hold()
    bench.core.handle(StandingSaid(Standing({}, [], [2])), now_ns=bench.now)
    [answer] = sent(bench.hear(2, MoveAsk(7, 1, 2, 0, True)), MoveAnswer)
    assert (answer.moved, answer.released) == (False, False)
    assert "in maintenance" in answer.reason


def test_the_target_asks_the_holder_and_a_refusal_disarms_it() -> None:
    bench = Bench()
    bench.synced = False
    epoch = make_epoch(3, 1, 2)

    def each() -> list[Effect]:
        return bench.beacon() + bench.beat(2, active=epoch, holder=2) + bench.beat(9, holder=2)

    bench.pass_time(2100 * MS, each)
    [ask] = sent(force(bench), MoveAsk)
    assert (ask.target, ask.force) == (1, True)
    [reply] = replies(bench.hear(2, MoveAnswer(ask.request, False, False, 0, "because")))
    assert reply.reason == "because"
    assert bench.core.groups[1]._candidacy._forced_until_ns == 0


def test_the_holder_lets_go_for_an_unsynced_target_without_a_position() -> None:
    bench, epoch = holder()
    bench.beat(2, synced=False)
    stored = bench.core.groups[1].gate_ns
    assert done(bench.hear(2, MoveAsk(7, 1, 2, 0, False)), SetGate) == []
    assert not bench.core.groups[1].handover.busy
    effects = bench.hear(2, MoveAsk(8, 1, 2, 0, True))
    assert done(effects, SetGate) == [SetGate(1, 0, stored)]
    released = sent(position(bench, epoch), Release)
    assert released[0] == Release(1, epoch, 2, None)


def test_a_holder_whose_syncd_is_silent_can_be_forced() -> None:
    bench, epoch = holder()

    def each() -> list[Effect]:
        return bench.beat(2) + bench.beat(9)

    effects = bench.hear(2, MoveAsk(8, 1, 2, 0, True))
    effects += bench.pass_time(4 * HEARTBEAT, each)
    assert sent(effects, Release)[0] == Release(1, epoch, 2, None)


def test_only_the_target_itself_forces() -> None:
    bench, _ = holder()
    [reply] = replies(force(bench, target=2))
    assert "by that node: ask node 2" in reply.reason
    [reply] = replies(force(bench))
    assert "already the holder" in reply.reason
    bench.beat(2, synced=False)
    [answer] = sent(bench.hear(9, MoveAsk(8, 1, 2, 0, True)), MoveAnswer)
    assert "not synced" in answer.reason
