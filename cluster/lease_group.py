r"""One group on one node: its voter, its proposer, its gate, and the moves between roles.

Theory of operation
    ::

        free --claim wins--> held --position applied (or none awaited)--> ACTIVE --lost--> free
                                                                             \--released--> free

    `tick` runs after every event and at every deadline, in this order: what has ended, what is
    under way, what may begin. So every decision sees the same facts, whatever woke the node.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.acceptor import Acceptor
from cluster.announce_plan import AnnouncePlan
from cluster.claims import Candidacy
from cluster.handover import HandOver
from cluster.heartbeat import (
    Accepted,
    GroupBeat,
    Message,
    MoveAnswer,
    Nack,
    Prepare,
    Promise,
    Propose,
    Release,
)
from cluster.heir import Heir
from cluster.lease_types import (
    Announce,
    Effect,
    GroupParams,
    Note,
    SetGate,
)
from cluster.proposer import Claim, Proposer
from cluster.role import Role
from cluster.view import NodeView
from hafw.human import epoch_node
from hafw.messages import NewEpochRequest

__all__ = ["GroupCore"]

Vote = Prepare | Propose | Promise | Accepted | Nack | Release


@dataclass(frozen=True, slots=True)
class _Lost:
    """A lease that ended unrenewed, and until when voters may count it all the same."""

    epoch: int
    until_ns: int


class GroupCore:
    """State of one group. Written to by `LeaseCore` and by its own `HandOver` only."""

    def __init__(self, params: GroupParams, view: NodeView) -> None:
        self.params = params
        self._view = view
        self._own = view.params.node_id
        self.acceptor = Acceptor(params.index, view.params)
        self._granted_to = 0
        """The session of the peer that the acceptor granted to last."""
        self.proposer = Proposer(params.index, view, self.acceptor)
        self.handover = HandOver(self, view)
        self.answered: dict[int, MoveAnswer] = {}
        self.gate_ns = 0
        """The deadline last stored for accept."""
        self.role = Role(params.index, view, self.acceptor, self.proposer)
        self.moves = 0
        self.renewals = 0
        self._candidacy = Candidacy(params, view, self.acceptor)
        self._heir = Heir(view.params, self.role)
        self._lost: _Lost | None = None
        self._announces = AnnouncePlan(view.params.announce_interval_ns)

    @property
    def active(self) -> bool:
        held = self.proposer.held
        return held is not None and held.opened

    # ---- messages -----------------------------------------------------------------------------

    def on_message(self, sender: int, message: Vote, now_ns: int) -> list[Effect]:
        match message:
            case Prepare() | Propose():
                return self._vote(sender, message, now_ns)
            case Promise():
                self._learn(message)
                return [
                    *self.proposer.on_promise(sender, message, now_ns),
                    *self.grant_alone(now_ns),
                ]
            case Accepted():
                claim = self.proposer.on_accepted(sender, message, now_ns)
                return [] if claim is None else self._on_grant(claim, now_ns)
            case Nack():
                return self.proposer.on_nack(message, now_ns)
            case Release():
                return self._on_release(sender, message)

    def _vote(self, sender: int, ask: Prepare | Propose, now_ns: int) -> list[Effect]:
        view = self._view
        if epoch_node(ask.epoch) != sender or sender not in self.params.order:
            view.counters["not_a_candidate"] += 1
            return []
        if not view.may_vote(now_ns):
            view.counters["votes_withheld"] += 1
            return []
        answer: Message
        if self._is_another_process(sender, now_ns):
            answer = self.acceptor.refuse(ask.epoch, era=view.era, now_ns=now_ns)
        elif isinstance(ask, Prepare):
            answer = self.acceptor.prepare(sender, ask, era=view.era, now_ns=now_ns)
        elif not 0 < ask.lease_ns <= view.params.lease_ns_max:
            view.counters["lease_too_long"] += 1
            return []
        else:
            answer = self.acceptor.propose(sender, ask, era=view.era, now_ns=now_ns)
            if isinstance(answer, Accepted):
                self._granted_to = view.peers[sender].session
                if ask.opened:
                    view.pace.grant(sender, answer)
                    return []
        if isinstance(answer, Nack):
            view.counters["votes_refused"] += 1
        return [view.send(sender, answer)]

    def _is_another_process(self, sender: int, now_ns: int) -> bool:
        """Of the node whose lease is running, and not the one that was granted it: maybe another
        machine that was given its id, with a gate of its own. It waits for the end of that lease
        like everybody else."""
        return (
            self.acceptor.running_for(now_ns) == sender
            and self._view.peers[sender].session != self._granted_to
        )

    def _on_release(self, sender: int, release: Release) -> list[Effect]:
        if not self.acceptor.release(sender, release):
            self._view.counters["releases_stale"] += 1
        self._heir.take(release)
        if release.to == self._own:
            self.proposer.retry_ns = 0
        return []

    def _learn(self, promise: Promise) -> None:
        """What the voter has heard of the lease before."""
        if promise.last_opened:
            self.role.opened(promise.last_epoch)
        if promise.given is not None:
            self._heir.take(promise.given)

    def force(self, until_ns: int) -> None:
        """See `Candidacy.force`."""
        self._candidacy.force(until_ns)

    def grant_alone(self, now_ns: int) -> list[Effect]:
        """With a single voter, or alone, no answer comes from outside."""
        effects = self.proposer.promise_alone(now_ns)
        claim = self.proposer.grant_alone(now_ns)
        return effects if claim is None else [*effects, *self._on_grant(claim, now_ns)]

    def new_epoch(self, request: NewEpochRequest, now_ns: int) -> list[Effect]:
        """Claim a higher epoch while holding; the gate stays open under the old lease."""
        held = self.proposer.held
        if (
            held is None
            or not held.opened
            or held.epoch != request.held_epoch
            or self.proposer.claim is not None
            or self.handover.busy
        ):
            return []
        self._view.counters["new_epochs_asked"] += 1
        note = Note("new_epoch_asked", (("group", self.params.index), ("why", request.reason)))
        return [note, *self.proposer.start(now_ns)]

    # ---- holding ------------------------------------------------------------------------------

    def _on_grant(self, claim: Claim, now_ns: int) -> list[Effect]:
        if claim.opened:
            self.renewals += 1
            return [] if self.handover.gate_frozen else self.store_gate(claim.deadline_ns)
        self._heir.instruct(claim, now_ns)
        if claim.await_position is not None and not self._view.applied(claim.await_position):
            return []
        return self._open(claim, now_ns)

    def store_gate(self, deadline_ns: int) -> list[Effect]:
        self.gate_ns = deadline_ns
        return [SetGate(self.params.index, deadline_ns, deadline_ns)]

    def _open(self, claim: Claim, now_ns: int) -> list[Effect]:
        view, index = self._view, self.params.index
        self.proposer.mark_opened(claim)
        self._lost = None
        self._heir.settle()
        self.moves += 1
        view.beat_soon = True
        view.counters["takeovers"] += 1
        if claim.unsynced:
            view.counters["unsynced_claims"] += 1
        effects = self.store_gate(claim.deadline_ns)
        self._announces.start(now_ns)
        if self._announces.due(now_ns):
            effects.append(Announce(index))
        facts: tuple[tuple[str, int | str | bool], ...] = (
            ("group", index),
            ("epoch", claim.epoch),
            ("contiguous", claim.contiguous),
            ("synced", not claim.unsynced),
        )
        return [*effects, *self.role.tell(now_ns), Note("lease_won", facts)]

    def let_go(self) -> None:
        """No longer the holder, whatever the gate still does."""
        self.proposer.held = None
        self._announces.stop()
        self._candidacy.reset()
        self._view.beat_soon = True

    def _shut(self, event: str, now_ns: int) -> list[Effect]:
        held = self.proposer.held
        assert held is not None
        self.let_go()
        self.gate_ns = 0
        facts = (("group", self.params.index), ("epoch", held.epoch))
        effects: list[Effect] = [SetGate(self.params.index, 0, 0)]
        effects += self.handover.cancel("the lease ended during the move")
        return [*effects, *self.role.tell(now_ns), Note(event, facts)]

    def stop(self, now_ns: int) -> list[Effect]:
        """Clean stop: shut, then release to anybody, so that a peer claims at once."""
        effects = self.handover.stop()
        held = self.proposer.held
        if held is not None:
            effects += self._shut("lease_given_up", now_ns)
            effects += self.proposer.give_up(held.epoch)
        if self.proposer.claim is not None:
            effects += self.proposer.drop(retry_ns=now_ns)
        return effects

    # ---- time ---------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[Effect]:
        effects = self.expire(now_ns)
        self.role.learn(now_ns)
        if self._view.pair is not None:
            effects += self.grant_alone(now_ns)
        if self.proposer.claim is not None:
            effects += self._tend_claim(now_ns)
        effects += self._tend_takeover(now_ns)
        effects += self.handover.tick(now_ns)
        effects += self._outbid(now_ns)
        effects += self._consider(now_ns)
        if self._announces.due(now_ns):
            effects.append(Announce(self.params.index))
        if self.role.due(now_ns):
            effects += self.role.tell(now_ns)
        return effects

    def repeat(self, now_ns: int) -> list[Message]:
        """What goes along with each heartbeat."""
        again = self.proposer.repeat(now_ns)
        if self.active:
            return again
        return [*again, *self.handover.repeat(now_ns), *self._give_up_lost(now_ns)]

    def _give_up_lost(self, now_ns: int) -> list[Message]:
        """A node that hears no majority may be deaf alone: then all its asks have come, and the
        voters count a lease that it has not. It has shut its gate, so others need not wait. Who
        hears a majority claims anew, and is in nobody's way."""
        lost, index = self._lost, self.params.index
        if lost is None or self.proposer.held is not None or now_ns >= lost.until_ns:
            return []
        if self._view.voters_ready(index, now_ns):
            return []
        release = Release(index, lost.epoch, 0, None)
        self.acceptor.release(self._own, release)
        return [release]

    def deadline(self, now_ns: int) -> int | None:
        """The next moment at which `tick` would do something by itself."""
        times = [self._candidacy.at_ns, self._announces.at_ns, self.handover.deadline()]
        held, claim = self.proposer.held, self.proposer.claim
        if held is not None:
            times.append(held.deadline_ns)
            if not held.opened:
                times.append(held.await_until_ns)
        if claim is not None:
            times.append(claim.resend_ns)
        if self._own in self.params.order:
            times.append(self.acceptor.until_ns)
        return min((at for at in times if at is not None and at > now_ns), default=None)

    def beat(self, now_ns: int) -> GroupBeat:
        view, index = self._view, self.params.index
        synced, reason = view.own_fit(index, now_ns)
        held = self.proposer.held
        return GroupBeat(
            group=index,
            promised=self.acceptor.promised,
            active=held.epoch if held is not None and held.opened else 0,
            holder=self.acceptor.running_for(now_ns),
            synced=synced and view.able(),
            synced_seen=self._candidacy.synced_seen(now_ns),
            reason=reason,
            upstream=not view.upstream_fault(index),
            carrier=not view.carrier_fault(index),
            damped=view.flaps.told(index, now_ns),
        )

    def expire(self, now_ns: int) -> list[Effect]:
        """The end of a lease, before anything else is looked at."""
        held = self.proposer.held
        if held is not None and self._view.outranked(self.params.index, held.epoch, now_ns):
            effects = self._shut("lease_yielded", now_ns)
            return [*effects, *self.proposer.give_up(held.epoch)]
        if held is None or now_ns < held.deadline_ns:
            return []
        view = self._view
        view.counters["leases_lost"] += 1
        # Asked for until now, perhaps in vain only as far as is heard here; long ones, perhaps.
        longest_ns = max(view.params.lease_ns, held.longest_ask_ns)
        self._lost = _Lost(held.epoch, now_ns + view.params.longer(longest_ns))
        return self._shut("lease_lost", now_ns)

    def _tend_claim(self, now_ns: int) -> list[Effect]:
        view, claim = self._view, self.proposer.claim
        assert claim is not None
        outrun = self.acceptor.blocks(self._own, now_ns) > 0
        if outrun or view.active_peer(self.params.index, now_ns)[0]:
            return self.proposer.drop(retry_ns=now_ns)
        if claim.refused:
            # Two claim at once, and each holds the other's vote: one must begin anew.
            view.counters["claims_outbid"] += 1
            pause_ns = view.rng.randrange(view.params.heartbeat_ns)
            return self.proposer.drop(retry_ns=now_ns + pause_ns)
        if now_ns - claim.started_ns > view.params.lease_ns:
            view.counters["claims_timed_out"] += 1
            pause_ns = view.rng.randrange(view.params.heartbeat_ns)
            return self.proposer.drop(retry_ns=now_ns + pause_ns)
        return self.proposer.resend(now_ns)

    def _outbid(self, now_ns: int) -> list[Effect]:
        """Claim anew while holding, when renewals fail."""
        held, busy = self.proposer.held, self.handover.busy or self.proposer.claim is not None
        if held is None or busy or not self.proposer.needs_epoch(now_ns):
            return []
        held.refused = False
        self._view.counters["reclaims"] += 1
        return self.proposer.start(now_ns)

    def _consider(self, now_ns: int) -> list[Effect]:
        busy = self.proposer.held is not None or self.proposer.claim is not None
        if not self._candidacy.due(now_ns, busy=busy, retry_ns=self.proposer.retry_ns):
            return []
        synced = self._view.synced(self._own, self.params.index, now_ns)
        effects = self.proposer.start(now_ns, unsynced=not synced)
        return [*effects, *self.grant_alone(now_ns)]

    def _tend_takeover(self, now_ns: int) -> list[Effect]:
        held = self.proposer.held
        if held is None or held.opened or held.await_position is None:
            return []
        if self._view.applied(held.await_position):
            return self._open(held, now_ns)
        if now_ns < held.await_until_ns:
            return []
        self._view.counters["takeovers_abandoned"] += 1
        self._heir.settle()
        effects = self._shut("takeover_abandoned", now_ns)
        self.proposer.retry_ns = now_ns + self._view.params.lease_ns
        return [*effects, *self.proposer.give_up(held.epoch)]
