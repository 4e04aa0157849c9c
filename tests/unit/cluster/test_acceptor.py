"""One voter of one group."""

from __future__ import annotations

from cluster.acceptor import Acceptor
from cluster.heartbeat import Accepted, Nack, Prepare, Promise, Propose, Release
from hafw.human import make_epoch
from hafw.messages import Position
from tests.unit.cluster.lease_bench import KEPT, MS, T, params

ERA = 3
NOW = 10_000 * MS


def epoch(counter: int, node: int, era: int = ERA) -> int:
    return make_epoch(era, counter, node)


def released(number: int, to: int, position: Position | None = None) -> Release:
    return Release(1, number, to, position)


class Voter:
    def __init__(self) -> None:
        self.acceptor = Acceptor(1, params(9))
        self.now = NOW
        self.request = 0

    def prepare(self, node: int, number: int) -> Promise | Nack:
        ask = Prepare(1, number)
        return self.acceptor.prepare(node, ask, era=ERA, now_ns=self.now)

    def propose(
        self, node: int, number: int, lease_ns: int = T, opened: bool = False
    ) -> Accepted | Nack:
        self.request += 1
        ask = Propose(1, number, self.request, lease_ns, opened)
        return self.acceptor.propose(node, ask, era=ERA, now_ns=self.now)


def test_grant_keeps_others_out_for_the_longer_time_and_promises_nothing() -> None:
    voter = Voter()
    assert isinstance(voter.propose(1, epoch(1, 1)), Accepted)
    assert voter.acceptor.until_ns == NOW + KEPT
    voter.now = NOW + KEPT - 1
    for answer in (voter.prepare(2, epoch(2, 2)), voter.propose(2, epoch(2, 2))):
        assert answer == Nack(1, epoch(2, 2), ERA, epoch(1, 1), 1, 1)
    assert voter.acceptor.promised == epoch(1, 1)
    voter.now += 1
    assert isinstance(voter.prepare(2, epoch(2, 2)), Promise)


def test_promise_reports_the_last_lease_even_after_its_end() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    voter.propose(1, epoch(1, 1), opened=True)
    voter.propose(1, epoch(1, 1))
    voter.now += 10 * T
    assert voter.prepare(2, epoch(2, 2)) == Promise(
        1, epoch(2, 2), ERA, epoch(1, 1), 1, True, True
    )
    voter.propose(2, epoch(2, 2))
    voter.now += 10 * T
    assert voter.prepare(1, epoch(3, 1)) == Promise(
        1, epoch(3, 1), ERA, epoch(2, 2), 2, False, True
    )


def test_below_a_promise_nothing_is_granted() -> None:
    voter = Voter()
    voter.prepare(2, epoch(5, 2))
    assert voter.propose(1, epoch(4, 1)) == Nack(1, epoch(4, 1), ERA, epoch(5, 2), 0, 0)
    assert voter.prepare(1, epoch(4, 1)) == Nack(1, epoch(4, 1), ERA, epoch(5, 2), 0, 0)
    assert not voter.acceptor.live(voter.now)


def test_asking_again_is_answered_again() -> None:
    voter = Voter()
    assert voter.prepare(2, epoch(5, 2)) == voter.prepare(2, epoch(5, 2))


def test_below_the_own_era_nothing_is_promised_or_granted() -> None:
    voter = Voter()
    low = epoch(9, 1, era=ERA - 1)
    assert voter.prepare(1, low) == Nack(1, low, ERA, 0, 0, 0)
    assert voter.propose(1, low) == Nack(1, low, ERA, 0, 0, 0)


def test_what_this_voter_granted_is_renewed_when_its_era_has_grown() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    renewal = Propose(1, epoch(1, 1), 2, T, True)
    asked = voter.acceptor.propose(1, renewal, era=ERA + 1, now_ns=voter.now)
    assert asked == Accepted(1, epoch(1, 1), 2)
    voter.prepare(1, epoch(2, 1))  # Another epoch of the old era is refused as ever.
    newer = Propose(1, epoch(2, 1), 3, T, False)
    assert isinstance(voter.acceptor.propose(1, newer, era=ERA + 1, now_ns=voter.now), Nack)


def test_holder_may_claim_anew_while_its_lease_runs() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    assert isinstance(voter.prepare(1, epoch(2, 1)), Promise)
    assert isinstance(voter.propose(1, epoch(2, 1)), Accepted)
    assert isinstance(voter.propose(1, epoch(1, 1)), Nack)


def test_a_shorter_grant_does_not_end_a_longer_one_of_the_same_node() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1), lease_ns=900 * MS)
    voter.now += 10 * MS
    voter.propose(1, epoch(1, 1), lease_ns=T)
    assert voter.acceptor.until_ns == NOW + 909 * MS


def test_release_to_anybody_frees_at_once_and_stays_released() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    assert voter.acceptor.running_for(voter.now) == 1
    assert voter.acceptor.release(1, released(epoch(1, 1), 0))
    assert voter.acceptor.running_for(voter.now) == 0
    assert isinstance(voter.propose(1, epoch(1, 1)), Nack)  # A renewal that was on its way.
    assert isinstance(voter.propose(2, epoch(2, 2)), Accepted)
    assert voter.acceptor.blocks(1, voter.now) == KEPT


def test_release_to_one_node_frees_for_that_node_alone() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    voter.acceptor.release(1, released(epoch(1, 1), 2))
    assert voter.acceptor.blocks(3, voter.now) == KEPT
    assert voter.acceptor.blocks(2, voter.now) == 0


def test_release_of_another_epoch_or_by_another_node_frees_nothing() -> None:
    voter = Voter()
    voter.propose(1, epoch(2, 1))
    assert not voter.acceptor.release(1, released(epoch(1, 1), 0))
    assert not voter.acceptor.release(2, released(epoch(2, 1), 0))
    assert voter.acceptor.blocks(2, voter.now) == KEPT


def test_release_that_overtook_its_proposal_still_ends_it() -> None:
    voter = Voter()
    assert not voter.acceptor.release(1, released(epoch(1, 1), 0))
    refused = voter.propose(1, epoch(1, 1))
    assert isinstance(refused, Nack)
    assert refused.promised == epoch(1, 1)
    assert isinstance(voter.propose(1, epoch(2, 1)), Accepted)


def test_promise_tells_of_a_release_to_a_node_until_a_later_lease_has_opened() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    given = released(epoch(1, 1), 2, Position(sender_id=1, session=7, seq=40))
    voter.acceptor.release(1, given)
    first = voter.prepare(2, epoch(2, 2))
    # It had opened, whoever heard of that: who is not ACTIVE releases to nobody.
    assert isinstance(first, Promise)
    assert (first.last_epoch, first.last_opened, first.given) == (epoch(1, 1), True, given)
    voter.propose(2, epoch(2, 2))  # In vain, and never opened.
    again = voter.prepare(2, epoch(3, 2))
    assert isinstance(again, Promise)
    assert (again.last_epoch, again.last_opened, again.given) == (epoch(2, 2), False, given)
    voter.propose(2, epoch(3, 2))
    voter.propose(2, epoch(3, 2), opened=True)
    voter.now += 10 * T
    last = voter.prepare(1, epoch(4, 1))
    assert isinstance(last, Promise)
    assert last.given is None


def test_release_to_anybody_proves_no_opening() -> None:
    voter = Voter()
    voter.propose(1, epoch(1, 1))
    voter.acceptor.release(1, released(epoch(1, 1), 0))
    promise = voter.prepare(2, epoch(2, 2))
    assert isinstance(promise, Promise)
    assert not promise.last_opened
    assert promise.given is None
