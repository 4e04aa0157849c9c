r"""The proposer of one group: how a lease is won, renewed, and counted.

Theory of operation
    ::

        start -> PREPARE --majority promised--> PROPOSE --majority granted--> held
                    |  \-- a higher promise: drop, try again after a random pause
                    \----- a running lease elsewhere: ask again when it ends

    Every `Propose` carries a request number, and **the holder's deadline is when that request was
    sent plus T(1-ε)**, once a majority granted that request: the grants are younger than the
    request, so they last longer than the deadline, whatever the network did in between.

    The node's own voter counts like any other, but is asked last, when its vote would make the
    majority. A gateway cut off from the others therefore never promises itself an epoch that
    would disturb the holder when it is back.

    *Contiguous*: nobody but this node can have held the group since it last did. The promises of
    a majority tell, because any lease that opened was granted by a voter among them. A voter that
    has restarted forgot what it granted, so only promises that remember a lease count: a voter
    that remembers epoch e never granted one above e in an earlier life, as its era would have
    made it refuse e. An own earlier claim that never opened hands on what it was itself. What was
    accepted in an earlier voter set is no memory either: majorities of sets two apart may have
    no voter in common. The one promise of a node alone (`cluster.pair`) tells nothing, and who
    ever held a lease by its own vote alone cannot know who held the group beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from cluster.acceptor import Acceptor
from cluster.heartbeat import Accepted, Message, Nack, Prepare, Promise, Propose, Release
from cluster.lease_types import Effect
from cluster.view import NodeView
from hafw.human import epoch_era
from hafw.messages import Position

__all__ = ["Claim", "Phase", "Proposer"]

REQUESTS_MAX = 256
"""Requests of one claim awaiting a majority; the oldest are dropped. A lease holds far fewer."""
HISTORY_MAX = 64
"""Own claims whose contiguity is remembered."""


class Phase(Enum):
    PREPARE = "prepare"
    PROPOSE = "propose"


@dataclass(slots=True)
class Request:
    sent_ns: int
    lease_ns: int
    voters: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Claim:
    """One epoch of ours, from the first `Prepare` to the end of the lease."""

    epoch: int
    started_ns: int
    phase: Phase = Phase.PREPARE
    promises: dict[int, Promise] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    deadline_ns: int = 0
    opened: bool = False
    contiguous: bool = False
    succeeds: int = 0
    """Highest epoch granted before, as the promises said."""
    resend_ns: int | None = None
    refused: bool = False
    """Outbid: of the held claim some voter says so, of a new one this node's own voter."""
    await_position: Position | None = None
    await_until_ns: int = 0
    unsynced: bool = False
    alone: bool = False
    """Some grant that it rests on, or rested on, was no majority's."""

    @property
    def longest_ask_ns(self) -> int:
        """Of the asks that voters may have granted unheard; 0: there is none."""
        return max((request.lease_ns for request in self.requests.values()), default=0)


class Proposer:
    """Claims of one group. `held` has a majority's grant; `claim` is on its way to one."""

    def __init__(self, group: int, view: NodeView, acceptor: Acceptor) -> None:
        self._group = group
        self._view = view
        self._acceptor = acceptor
        self.held: Claim | None = None
        self.claim: Claim | None = None
        self.retry_ns = 0
        self._floor = 0
        self._awaits_era = False
        """A voter refused the own era: until it is higher, claim only once a heartbeat."""
        self._was_own: dict[int, bool] = {}

    # ---- asking -------------------------------------------------------------------------------

    def start(self, now_ns: int, *, unsynced: bool = False) -> list[Effect]:
        """Begin a claim, above every epoch known. Nothing if the own era file must grow first."""
        epoch = self._view.next_epoch(self._group, max(self._floor, self._acceptor.promised))
        if epoch is None:
            return []
        self._floor = epoch
        self.claim = Claim(epoch, now_ns, unsynced=unsynced)
        self._view.counters["claims_started"] += 1
        return self._ask(self.claim, now_ns)

    def repeat(self, now_ns: int) -> list[Message]:
        """What goes along with each heartbeat: renewals, and asks not yet answered."""
        messages: list[Message] = []
        if self.held is not None:
            messages.append(self._propose(self.held, now_ns))
        if self.claim is not None:
            messages.append(
                Prepare(self._group, self.claim.epoch)
                if self.claim.phase is Phase.PREPARE
                else self._propose(self.claim, now_ns)
            )
        return messages

    def resend(self, now_ns: int) -> list[Effect]:
        """Ask once more at the moment when a voter's running lease ends."""
        claim = self.claim
        if claim is None or claim.resend_ns is None or now_ns < claim.resend_ns:
            return []
        claim.resend_ns = None
        return self._ask(claim, now_ns)

    def drop(self, *, retry_ns: int) -> list[Effect]:
        """Give the claim up. Voters that granted it are told, so that nobody waits for it."""
        claim = self.claim
        assert claim is not None
        self.claim = None
        self.retry_ns = max(self.retry_ns, retry_ns)
        restarted = claim.started_ns < self._view.votes_from_ns
        if claim.phase is Phase.PREPARE or self.held is not None or restarted:
            # Releasing a second claim while the gate is open under the first would free voters
            # whose grant the open gate still needs. The first may be one of this node's process
            # before: its gate may be open until M after the start, as M is the longest lease.
            return []
        return self.give_up(claim.epoch)

    def give_up(self, epoch: int) -> list[Effect]:
        """Release to anybody; the gate of `epoch` must be shut before."""
        release = Release(self._group, epoch, 0, None)
        self._acceptor.release(self._view.params.node_id, release)
        return [self._view.send(0, release)]

    def _ask(self, claim: Claim, now_ns: int) -> list[Effect]:
        if claim.phase is Phase.PREPARE:
            effects: list[Effect] = [self._view.send(0, Prepare(self._group, claim.epoch))]
            return effects + self._weigh_promises(claim, now_ns)
        return [self._view.send(0, self._propose(claim, now_ns))]

    def _propose(self, claim: Claim, now_ns: int) -> Propose:
        request = self._view.next_request()
        lease_ns = self._view.lease_asked_ns(now_ns, opened=claim.opened)
        claim.requests[request] = Request(now_ns, lease_ns)
        while len(claim.requests) > REQUESTS_MAX:
            del claim.requests[next(iter(claim.requests))]
        return Propose(self._group, claim.epoch, request, lease_ns, claim.opened)

    def era_raised(self, now_ns: int) -> None:
        """The own era is durable: a claim that was refused for the last one need not wait."""
        if self._awaits_era:
            self._awaits_era = False
            self.retry_ns = min(self.retry_ns, now_ns)

    # ---- answers ------------------------------------------------------------------------------

    def on_promise(self, sender: int, promise: Promise, now_ns: int) -> list[Effect]:
        claim = self.claim
        if claim is None or claim.epoch != promise.epoch or claim.phase is not Phase.PREPARE:
            return []
        if not self._view.counts(sender):
            return []
        claim.promises[sender] = promise
        return self._weigh_promises(claim, now_ns)

    def on_accepted(self, sender: int, accepted: Accepted, now_ns: int) -> Claim | None:
        """A grant. Returns the claim if that made a majority and its deadline moved."""
        for claim in (self.held, self.claim):
            if claim is not None and claim.epoch == accepted.epoch:
                request = claim.requests.get(accepted.request)
                if request is None or not self._view.counts(sender):
                    return None
                request.voters.add(sender)
                return self._weigh_grants(claim, accepted.request, request, now_ns)
        return None

    def grant_alone(self, now_ns: int) -> Claim | None:
        """If the own vote is enough, nobody else answers: count the last request by itself."""
        if self._needed(now_ns) > 1:
            return None
        for claim in (self.claim, self.held):
            if claim is not None and claim.requests:
                number = next(reversed(claim.requests))
                granted = self._weigh_grants(claim, number, claim.requests[number], now_ns)
                if granted is not None:
                    return granted
        return None

    def promise_alone(self, now_ns: int) -> list[Effect]:
        """If the own vote is enough by now, though it was not when the claim was made."""
        claim = self.claim
        if claim is None or claim.phase is not Phase.PREPARE or self._needed(now_ns) > 1:
            return []
        return self._weigh_promises(claim, now_ns)

    def on_nack(self, nack: Nack, now_ns: int) -> list[Effect]:
        if not self._view.credible(max(nack.era, epoch_era(nack.promised))):
            self._view.counters["eras_ignored"] += 1
            return []  # Its era file is damaged: it can neither vote for us nor hold us up.
        claim = self.claim
        if claim is None or claim.epoch != nack.epoch:
            if self.held is not None and self.held.epoch == nack.epoch:
                self.held.refused = True
            return []
        self._floor = max(self._floor, nack.promised)
        if nack.era > epoch_era(claim.epoch):
            self._view.counters["claims_era_low"] += 1
            self._view.want_era(nack.era)
            self._awaits_era = self._view.era < nack.era
            pause_ns = self._view.params.heartbeat_ns if self._awaits_era else 0
            return self.drop(retry_ns=now_ns + pause_ns)
        if nack.left_ns > 0:
            at_ns = now_ns + nack.left_ns
            claim.resend_ns = at_ns if claim.resend_ns is None else min(claim.resend_ns, at_ns)
            return []
        if nack.promised > claim.epoch:
            self._view.counters["claims_outbid"] += 1
            pause_ns = self._view.rng.randrange(self._view.params.heartbeat_ns)
            return self.drop(retry_ns=now_ns + pause_ns)
        return []

    def _weigh_promises(self, claim: Claim, now_ns: int) -> list[Effect]:
        view = self._view
        own = view.params.node_id
        others = len(claim.promises) - (own in claim.promises)
        needed = self._needed(now_ns)
        if others >= needed - 1 and own not in claim.promises and view.may_vote(now_ns):
            ask = Prepare(self._group, claim.epoch)
            answer = self._acceptor.prepare(own, ask, era=view.era, now_ns=now_ns)
            if isinstance(answer, Promise):
                claim.promises[own] = answer
            elif answer.promised > claim.epoch:
                claim.refused = True
        if len(claim.promises) < needed:
            return []
        claim.succeeds = max(promise.last_epoch for promise in claim.promises.values())
        claim.contiguous = self._is_contiguous(claim)
        self._remember(claim.epoch, claim.contiguous)
        claim.phase = Phase.PROPOSE
        return self._ask(claim, now_ns)

    def _weigh_grants(
        self, claim: Claim, number: int, request: Request, now_ns: int
    ) -> Claim | None:
        view = self._view
        own = view.params.node_id
        others = len(request.voters) - (own in request.voters)
        needed = self._needed(now_ns)
        if others >= needed - 1 and own not in request.voters and view.may_vote(now_ns):
            ask = Propose(self._group, claim.epoch, number, request.lease_ns, claim.opened)
            answer = self._acceptor.propose(own, ask, era=view.era, now_ns=now_ns)
            if isinstance(answer, Accepted):
                request.voters.add(own)
            elif answer.promised > claim.epoch or answer.era > epoch_era(claim.epoch):
                # Outbid, or won while this voter was silent after its start, and the era rose.
                claim.refused = True
        if len(request.voters) < needed:
            return None
        deadline_ns = self.deadline_of(request, now_ns)
        # All requests up to this one have served.
        for old in [key for key in claim.requests if key <= number]:
            del claim.requests[old]
        if deadline_ns <= now_ns:
            view.counters["grants_too_late"] += 1  # A grant that comes too late is not a right.
            return None
        if deadline_ns <= claim.deadline_ns:
            return None
        claim.deadline_ns = deadline_ns
        claim.refused = False
        if needed < view.majority and len(request.voters) < view.majority:
            claim.alone = True
            self._remember(claim.epoch, False)
        if claim is self.claim:
            self.claim = None
            self.held = claim
        return claim

    def _needed(self, now_ns: int) -> int:
        """Votes that are enough now: a majority, or the own one of a node alone."""
        return self._view.needed(self._group, now_ns, holding=self.held is not None)

    def deadline_of(self, request: Request, now_ns: int) -> int:
        """The end of the right that a majority's grant of `request` gives."""
        assert request.sent_ns <= now_ns
        return request.sent_ns + self._view.params.shorter(request.lease_ns)

    def needs_epoch(self, now_ns: int) -> bool:
        """Whether renewals fail: voters promised a higher epoch to a claimant that got nowhere, or
        started since and can grant only a later era."""
        held = self.held
        return (
            held is not None
            and held.refused
            and held.deadline_ns - now_ns <= self._view.params.lease_ns // 2
        )

    def voters_changed(self, now_ns: int) -> list[Effect]:
        """Grants of two voter sets are not added up: what is under way begins anew."""
        if self.held is not None:
            self.held.requests.clear()
        return [] if self.claim is None else self.drop(retry_ns=now_ns)

    # ---- contiguity ---------------------------------------------------------------------------

    def mark_opened(self, claim: Claim) -> None:
        claim.opened = True
        self._remember(claim.epoch, not claim.alone)

    def _remember(self, epoch: int, own: bool) -> None:
        self._was_own[epoch] = own
        while len(self._was_own) > HISTORY_MAX:
            del self._was_own[next(iter(self._was_own))]

    def _is_contiguous(self, claim: Claim) -> bool:
        if len(claim.promises) < self._view.majority:
            return False
        if self.held is not None and self.held.opened and not self.held.alone:
            return True  # Who is open now, and gets a majority's promise, has had no successor.
        remembering = [p for p in claim.promises.values() if p.last_epoch and p.last_in_set]
        if len(remembering) < self._view.majority:
            return False
        top = max(remembering, key=lambda promise: promise.last_epoch)
        if top.last_epoch in self._was_own:
            return self._was_own[top.last_epoch]
        # Before this process started: only a lease of this node that is known to have opened.
        return top.last_holder == self._view.params.node_id and any(
            p.last_opened for p in remembering if p.last_epoch == top.last_epoch
        )
