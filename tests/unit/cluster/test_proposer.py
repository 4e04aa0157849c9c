"""Contiguous: whether nobody else can have held the group since this node did."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cluster.heartbeat import Accepted, Prepare, Promise, Propose, Release
from cluster.lease_types import EraPersisted, StopAsked, SyncdSaid
from cluster.view import NodeView
from hafw.human import make_epoch
from hafw.messages import NewEpochRequest
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, Bench, T, sent

Report = tuple[int, int, bool]
"""What a voter remembers: epoch, its node, whether its gate had opened."""
NOTHING: Report = (0, 0, False)


def epoch(counter: int, node: int) -> int:
    return make_epoch(2, counter, node)


def claim(bench: Bench, reports: Iterable[tuple[int, Report]]) -> bool | None:
    """Let the voters promise with these memories; None if there is no claim yet."""
    prepares = sent(bench.pass_time(2 * HEARTBEAT, bench.calm), Prepare)
    assert prepares
    for voter, (last, holder, opened) in reports:
        bench.hear(voter, Promise(1, prepares[-1].epoch, 3, last, holder, opened, True))
    claimed = bench.core.groups[1].proposer.claim
    return None if claimed is None else claimed.contiguous


@pytest.mark.parametrize(
    ("reports", "contiguous"),
    [
        # After a restart of this process, by what two voters remember (its own forgot).
        ([(2, (epoch(7, 1), 1, True)), (9, (epoch(7, 1), 1, True))], True),
        ([(2, (epoch(6, 1), 1, True)), (9, (epoch(7, 1), 1, True))], True),
        ([(2, (epoch(7, 1), 1, False)), (9, (epoch(7, 1), 1, True))], True),
        # It may never have opened: then another may have held just before.
        ([(2, (epoch(7, 1), 1, False)), (9, (epoch(7, 1), 1, False))], False),
        # Another node was granted a lease since.
        ([(2, (epoch(8, 2), 2, True)), (9, (epoch(7, 1), 1, True))], False),
        ([(2, (epoch(8, 2), 2, False)), (9, (epoch(7, 1), 1, True))], False),
        # One voter forgot: a lease of another could hide there.
        ([(9, (epoch(7, 1), 1, True)), (2, NOTHING)], False),
        ([(2, NOTHING), (9, NOTHING)], False),
    ],
)
def test_after_a_restart(reports: list[tuple[int, Report]], contiguous: bool) -> None:
    bench = Bench()
    bench.pass_time(1900 * MS, bench.calm)
    bench.core.view.votes_from_ns = 1 << 62  # The own voter is mute: both others must speak.
    bench.core.view.majority = 2
    bench.pass_time(100 * MS, bench.calm)
    assert claim(bench, reports) is contiguous


def held_and_lost() -> tuple[Bench, int]:
    bench = Bench()
    bench.hold()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    bench.renew()
    bench.pass_time(T, bench.calm)
    assert bench.core.groups[1].proposer.held is None
    return bench, held.epoch


def test_same_process_wins_the_very_next_epoch() -> None:
    bench, before = held_and_lost()
    assert claim(bench, [(9, (before, 1, True))]) is True


def test_somebody_else_was_in_between() -> None:
    bench, before = held_and_lost()
    assert claim(bench, [(9, (before + (1 << 8) + 1, 2, True))]) is False


def test_own_claim_that_never_opened_hands_on_what_it_was() -> None:
    bench = Bench()
    other = epoch(7, 2)
    bench.pass_time(2100 * MS, bench.calm)
    prepares = sent(bench.pass_time(2 * HEARTBEAT, bench.calm), Prepare)
    first = prepares[-1].epoch
    asked = bench.hear(9, Promise(1, first, 3, other, 2, True, True))
    assert sent(asked, Propose)
    # Granted, and the answer is lost; the claim times out, the next finds it at the voter.
    bench.epochs[9] = first
    bench.pass_time(T + 2 * HEARTBEAT, bench.calm)
    proposer = bench.core.groups[1].proposer
    assert proposer.claim is not None
    second = proposer.claim.epoch
    assert second > first
    bench.hear(9, Promise(1, second, 3, first, 1, False, True))
    assert proposer.claim is not None
    assert proposer.claim.contiguous is False


@pytest.mark.parametrize("restarted", [True, False])
def test_claim_of_a_restarted_node_is_not_released(restarted: bool) -> None:
    """The gate that its process before left open may still need those voters."""
    bench = Bench()
    bench.pass_time(2000 * MS, bench.calm)
    if restarted:
        bench.core.view.votes_from_ns = 1 << 62
        bench.core.view.majority = 2
    prepare = sent(bench.pass_time(100 * MS, bench.calm), Prepare)[-1]
    asked = [bench.hear(node, Promise(1, prepare.epoch, 3, 0, 0, False, True)) for node in (2, 9)]
    assert sent(asked[0] + asked[1], Propose)
    stopped = bench.core.handle(StopAsked(), now_ns=bench.now)
    assert bool(sent(stopped, Release)) is not restarted


def test_requests_answered_out_of_order_never_shorten_the_lease() -> None:
    bench = Bench()
    bench.hold()
    proposer = bench.core.groups[1].proposer
    older = sent(bench.calm() + bench.pass_time(HEARTBEAT), Propose)[-1]
    newer = sent(bench.calm() + bench.pass_time(HEARTBEAT), Propose)[-1]
    bench.hear(9, Accepted(1, newer.epoch, newer.request))
    assert proposer.held is not None
    deadline = proposer.held.deadline_ns
    bench.hear(9, Accepted(1, older.epoch, older.request))
    assert proposer.held.deadline_ns == deadline


def test_lease_won_without_the_own_vote_gets_it_once_the_era_rose() -> None:
    """By a claim under the new era: the own voter, which never granted the old epoch, may not."""
    bench = Bench()
    bench.pass_time(2000 * MS, bench.calm)
    votes_from_ns, bench.core.view.votes_from_ns = bench.now + 200 * MS, 1 << 62
    prepare = sent(bench.pass_time(100 * MS, bench.calm), Prepare)[-1]
    asked = [bench.hear(node, Promise(1, prepare.epoch, 3, 0, 0, False, True)) for node in (2, 9)]
    propose = sent(asked[0] + asked[1], Propose)[-1]
    for node in (2, 9):
        bench.hear(node, Accepted(1, propose.epoch, propose.request))
    proposer = bench.core.groups[1].proposer
    assert proposer.held is not None
    bench.beat(2, era=5)  # It has started, too, and is gone for good.
    bench.core.handle(EraPersisted(5), now_ns=bench.now)
    bench.core.view.votes_from_ns = votes_from_ns
    for _ in range(20):
        asked = [bench.beat(9, era=5), bench.pass_time(HEARTBEAT)]
        for ask in sent(asked[0] + asked[1], Propose)[-1:]:
            bench.hear(9, Accepted(1, ask.epoch, ask.request))
            if bench.now < votes_from_ns:
                bench.hear(2, Accepted(1, ask.epoch, ask.request))
        assert proposer.held is not None
        if proposer.claim is not None:
            break
    assert proposer.claim is not None
    assert proposer.claim.epoch > make_epoch(5, 0, 0)


@pytest.mark.parametrize("alone", [False, True])
def test_who_held_by_its_own_vote_alone_does_not_know_who_held_beside_it(alone: bool) -> None:
    bench = Bench()
    bench.hold()
    proposer = bench.core.groups[1].proposer
    held = proposer.held
    assert held is not None
    with pytest.MonkeyPatch.context() as patch:
        if alone:
            patch.setattr(NodeView, "needed", lambda *_, **__: 1)
        asked = bench.calm() + bench.pass_time(HEARTBEAT)
        proposer.grant_alone(bench.now)
    bench.answer(asked)
    request = NewEpochRequest(group=1, held_epoch=held.epoch, reason="no registry")
    asked = bench.core.handle(SyncdSaid(request), now_ns=bench.now)
    prepare = sent(asked, Prepare)[-1]
    bench.hear(9, Promise(1, prepare.epoch, 3, 0, 0, False, True))  # It has forgotten.
    assert proposer.claim is not None
    assert proposer.claim.contiguous is not alone


def test_claim_alone_is_not_contiguous_even_while_the_gate_is_open() -> None:
    bench = Bench()
    bench.hold()
    proposer = bench.core.groups[1].proposer
    held = proposer.held
    assert held is not None
    request = NewEpochRequest(group=1, held_epoch=held.epoch, reason="no registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeView, "needed", lambda *_, **__: 1)
        bench.core.handle(SyncdSaid(request), now_ns=bench.now)
    won = proposer.held if proposer.claim is None else proposer.claim
    assert won is not None
    assert won.epoch > held.epoch
    assert won.contiguous is False
