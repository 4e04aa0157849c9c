"""The lease core of one node: PaxosLease for every group, in one pure state machine.

Theory of operation
    DESIGN §5. For every group at most one node is ACTIVE, because

    1. a voter that granted T grants to nobody else for T(1+ε) from its grant (`acceptor`),
    2. a holder uses T(1-ε) from when the granted request was *sent* (`proposer`),
    3. a voter that has started votes for nobody for M(1+ε), and refuses every epoch of an era
       below its own, which it raised and made durable before (here),
    4. the gate takes absolute deadlines, so effects that are carried out late can only end early,
    5. a released lease is released by its holder, for its epoch, after announce was shut.

    `handle` takes one event, `tick` the passing of time; both give effects in the order in which
    they are owed, `deadline` says when to tick at the latest. Everything goes out in envelopes
    (`heartbeat`), and only what comes in a proven session (`session`) is acted on; if it names
    another voter set, only its heartbeat, which tells how the sets follow each other (`voters`),
    and its releases, which tell of the sender's own gate.

    Eras: an epoch of a higher era than ours is answered only after that era is durable here. It
    is raised ahead when a heartbeat shows it, so a claim seldom waits for a disk.
"""

from __future__ import annotations

from typing import assert_never

from cluster.asks import Asks
from cluster.heartbeat import (
    Accepted,
    Beat,
    Envelope,
    Message,
    MoveAnswer,
    MoveAsk,
    Nack,
    Prepare,
    Promise,
    Propose,
    Release,
)
from cluster.lease_group import GroupCore
from cluster.lease_types import (
    NS_PER_MS,
    Arrived,
    Effect,
    EraFailed,
    EraPersisted,
    Event,
    HeavyUntil,
    LeaseParams,
    MoveAsked,
    Note,
    PersistEra,
    ReplyVoters,
    Rng,
    SegmentsDown,
    StandingSaid,
    StopAsked,
    SyncdSaid,
    Unreadable,
    VoterRecord,
    VotersAsked,
    VotersFailed,
    VotersPersisted,
)
from cluster.session import SessionTable, Verdict
from cluster.view import NodeView
from cluster.voters import VoterChange
from hafw.human import epoch_era
from hafw.messages import (
    NewEpochRequest,
    PositionReply,
    Standing,
    SyncBeacon,
)

__all__ = ["LeaseCore"]

ERA_RETRY_MS = 1000
BEATS_SENT_MAX = 64
SESSION_ID_BITS = 63


class LeaseCore:
    """Give it events and time; carry out what it returns, in order."""

    def __init__(
        self,
        params: LeaseParams,
        *,
        era: int,
        era_durable: bool,
        rng: Rng,
        now_ns: int,
        standing: Standing | None = None,
        record: VoterRecord | None = None,
    ) -> None:
        """`era`: what the era file held when this process started, plus one once that is durable
        (`era_durable`). `now_ns` is the start: voting begins M(1+ε) later. `record`: what the
        voters file holds; None: the set that the cluster was founded with."""
        assert params.lease_ns <= params.lease_ns_max <= params.restart_wait_ns
        sessions = SessionTable(
            params.node_id, lambda: rng.randrange((1 << SESSION_ID_BITS) - 1) + 1
        )
        self.params = params
        self.view = NodeView(
            params, era=era, era_durable=era_durable, sessions=sessions, rng=rng, now_ns=now_ns
        )
        if standing is not None:
            self.view.standing = standing
        self.groups = {group.index: GroupCore(group, self.view) for group in params.groups}
        record = record or VoterRecord(params.voters)
        self.view.act_in(record.current)
        self.view.voters_lost = record.lost
        acceptors = [group.acceptor for group in self.groups.values()]
        self.voters = VoterChange(record, self.view, acceptors)
        self.era_error = ""
        """Why the era file could not be written; empty: it could."""
        self.wrong_voters_ns: int | None = None
        """When another set with the number of ours was last named."""
        self._persisting = False
        self._era_retry_ns = now_ns
        self._beats_sent: dict[int, int] = {}
        self._awaiting_era: dict[tuple[int, int], Prepare | Propose] = {}
        self._asks = Asks(self.view, self.groups)

    # ---- the machine --------------------------------------------------------------------------

    def handle(self, event: Event, *, now_ns: int) -> list[Effect]:
        """One event. `now_ns` is read after the event happened and before effects are done."""
        effects: list[Effect] = []
        self.view.turn(now_ns)
        for group in self.groups.values():
            effects += group.expire(now_ns)
        match event:
            case Arrived(sender, envelope):
                effects += self._on_envelope(sender, envelope, now_ns)
            case SyncdSaid(message):
                effects += self._on_syncd(message, now_ns)
            case EraPersisted(era):
                effects += self._on_era(era, now_ns)
            case EraFailed(_, error):
                self._persisting = False
                self.view.era_durable = False
                self.era_error = error
                self._era_retry_ns = now_ns + ERA_RETRY_MS * NS_PER_MS
                self.view.counters["era_write_failed"] += 1
                effects.append(Note("era_write_failed", (("error", error),)))
            case VotersPersisted(record):
                self.voters.on_persisted(record)
            case VotersFailed(error):
                self.voters.on_failed(error, now_ns)
                effects.append(Note("voters_write_failed", (("error", error),)))
            case VotersAsked(token, voters):
                effects.append(ReplyVoters(token, self.voters.ask(voters)))
            case MoveAsked(token, request):
                effects += self._asks.on_move(token, request, now_ns)
            case SegmentsDown():
                self.view.take_faults(event, now_ns)
            case Unreadable():
                self.view.hear_unreadable(now_ns)
            case StandingSaid(standing):
                self.view.standing = standing
                self.view.flaps.stand(standing.cleared)
            case HeavyUntil(until_ns):
                self.view.heavy_until_ns = until_ns
                self.view.beat_soon = True  # Renew now, by the lease that is wanted now.
            case StopAsked():
                self.view.stopping = True
                for group in self.groups.values():
                    effects += group.stop(now_ns)
                effects += self._beat(now_ns)
                return effects
            case _:
                assert_never(event)
        return effects + self.tick(now_ns=now_ns)

    def tick(self, *, now_ns: int) -> list[Effect]:
        """Time passed. Cheap; safe to call at any moment."""
        self.view.turn(now_ns)
        effects = self._change_voters(now_ns)
        for group in self.groups.values():
            effects += group.tick(now_ns)
        if self.view.beat_soon:
            self.view.beat_soon = False
            self.view.pace.soon(now_ns)
        for node, grant in self.view.pace.owed(now_ns, follows=self._follows()):
            effects.append(self.view.send(node, grant))
        if now_ns >= self.view.pace.next_ns:
            effects += self._beat(now_ns)
        self.view.ticked(now_ns, self.view.pace.next_ns)
        return effects + self._raise_era(now_ns)

    def deadline(self, *, now_ns: int) -> int:
        """When to tick at the latest. Ask when all effects are carried out."""
        first_ns = self.view.look_at_ns(now_ns, self.view.pace.next_ns)
        change_ns = self.voters.deadline()
        if change_ns is not None and change_ns > now_ns:
            first_ns = min(first_ns, change_ns)
        for group in self.groups.values():
            first_ns = min(first_ns, group.deadline(now_ns) or first_ns)
        return first_ns

    def _change_voters(self, now_ns: int) -> list[Effect]:
        switched, effects = self.voters.tick(now_ns)
        if switched:
            voters = self.view.voters
            self.view.pace.forget()
            for group in self.groups.values():
                group.acceptor.in_set = False  # What was granted is kept, and no memory now.
                effects += group.proposer.voters_changed(now_ns)
            self.view.beat_soon = True
            members = ",".join(map(str, voters.members))
            effects.append(Note("voters_changed", (("id", voters.id), ("members", members))))
        return effects

    # ---- heartbeats ---------------------------------------------------------------------------

    def _follows(self) -> bool:
        """Whether this node may beat when a holder does: it keeps no lease of its own alive."""
        proposers = [group.proposer for group in self.groups.values()]
        return self.view.pair is None and not any(p.held or p.claim for p in proposers)

    def _beat(self, now_ns: int) -> list[Effect]:
        view = self.view
        riding = view.pace.begin(now_ns, follows=self._follows())
        running = {n: group.acceptor.running_for(now_ns) for n, group in self.groups.items()}
        view.flaps.look(running, now_ns)
        current, follows = self.voters.told()
        beat = Beat(
            voters=current,
            next=follows,
            era=view.era_told(),
            votes=view.may_vote(now_ns),
            able=view.able(),
            groups=[group.beat(now_ns) for group in self.groups.values()],
            echoes=[
                (peer.node_id, peer.beat_seq, now_ns - peer.beat_ns)
                for peer in view.peers.values()
                if peer.beat is not None
            ],
        )
        messages: list[Message] = [beat, *riding]
        for group in self.groups.values():
            messages += group.repeat(now_ns)
        sent = view.send(0, *messages)
        self._beats_sent[sent.envelope.seq] = now_ns
        while len(self._beats_sent) > BEATS_SENT_MAX:
            del self._beats_sent[next(iter(self._beats_sent))]
        effects: list[Effect] = [sent]
        for group in self.groups.values():
            effects += group.grant_alone(now_ns)
        return effects + self._asks.tick(now_ns)

    def _on_beat(self, sender: int, beat: Beat, seq: int, now_ns: int) -> None:
        view = self.view
        if not view.peers[sender].take(beat, seq, now_ns):
            view.counters["beats_overtaken"] += 1
            return
        view.flaps.hear(view.peers[sender], now_ns)
        view.want_era(beat.era)
        self.voters.on_beat(beat)
        for node, echoed_seq, held_ns in beat.echoes:
            sent_ns = self._beats_sent.get(echoed_seq)
            if node == self.params.node_id and sent_ns is not None:
                view.peers[sender].saw_round_trip(now_ns - sent_ns - held_ns, now_ns)

    # ---- envelopes ----------------------------------------------------------------------------

    def _on_envelope(self, sender: int, envelope: Envelope, now_ns: int) -> list[Effect]:
        view = self.view
        if sender not in view.peers:
            view.hear_stranger(sender, envelope.session, now_ns)
            return []
        if envelope.to not in (0, self.params.node_id):
            view.counters["not_for_us"] += 1
            return []
        redrawn = view.sessions.redrawn
        verdict, soon = view.sessions.receive(sender, envelope, now_ns=now_ns)
        view.counters["sessions_redrawn"] += view.sessions.redrawn - redrawn
        view.beat_soon = view.beat_soon or soon
        view.hear_any(verdict, envelope, now_ns)
        if verdict is Verdict.HELLO:
            view.counters["unproven"] += 1
            return []
        if verdict is not Verdict.ACT:
            view.counters[verdict.value] += 1
            return []
        peer = view.peers[sender]
        effects: list[Effect] = []
        if peer.session != envelope.session:
            view.flaps.hear_anew(sender, now_ns)
            peer.forget(envelope.session)
            for group in self.groups.values():
                group.answered.pop(sender, None)  # Request numbers begin anew.
            for key in [key for key in self._awaiting_era if key[0] == sender]:
                del self._awaiting_era[key]
            effects.append(Note("peer_proven", (("peer_id", sender),)))
        peer.heard_ns = now_ns
        same, named = self._same_voters(envelope), view.voters.id
        acted_on = [m for m in envelope.messages if same or self._holds_in_any_set(m)]
        for message in acted_on:
            effects += self._on_message(sender, message, envelope.seq, now_ns)
        rival = not same and envelope.voters_id == named
        if rival or len(acted_on) < len(envelope.messages):
            view.counters["wrong_voters"] += 1
        if rival:
            self.wrong_voters_ns = now_ns
        return effects

    def _same_voters(self, envelope: Envelope) -> bool:
        return (
            envelope.voters_id == self.view.voters.id
            and envelope.voters_hash == self.view.voters_hash
        )

    def _holds_in_any_set(self, message: Message) -> bool:
        """A release says that a gate is shut for its epoch: true whoever counts the votes, and
        needed by the target of a move that follows to a new set later than the holder."""
        return isinstance(message, Beat | Release)

    def _on_message(self, sender: int, message: Message, seq: int, now_ns: int) -> list[Effect]:
        view = self.view
        match message:
            case Beat():
                self._on_beat(sender, message, seq, now_ns)
                return []
            case MoveAsk():
                return self._asks.on_ask(sender, message, now_ns)
            case MoveAnswer():
                return self._asks.on_answer(sender, message)
            case Prepare() | Propose() | Promise() | Accepted() | Nack() | Release():
                group = self.groups.get(message.group)
                if group is None:
                    view.counters["unknown_group"] += 1
                    return []
                if isinstance(message, Prepare | Propose) and (
                    epoch_era(message.epoch) > view.era or not view.era_durable
                ):
                    # Answered once the era is durable here (`_on_era`).
                    view.want_era(epoch_era(message.epoch))
                    view.counters["votes_awaiting_era"] += 1
                    self._awaiting_era[sender, message.group] = message
                    return []
                if isinstance(message, Release):
                    # Beats that were sent before it still call the sender active.
                    peer = view.peers[sender]
                    peer.beat_seq = max(peer.beat_seq, seq)
                    peer.groups.pop(message.group, None)
                return group.on_message(sender, message, now_ns)
            case _:
                assert_never(message)

    # ---- era ----------------------------------------------------------------------------------

    def _raise_era(self, now_ns: int) -> list[Effect]:
        view = self.view
        if self._persisting or now_ns < self._era_retry_ns:
            return []
        if view.era_durable and view.era_wanted <= view.era:
            return []
        self._persisting = True
        return [PersistEra(max(view.era_wanted, view.era))]

    def _on_era(self, era: int, now_ns: int) -> list[Effect]:
        view = self.view
        self._persisting = False
        view.era = max(view.era, era)
        view.era_durable = True
        self.era_error = ""
        for group in self.groups.values():
            group.proposer.era_raised(now_ns)
        effects = self._change_voters(now_ns)  # Before anything is granted in the new era.
        waiting, self._awaiting_era = self._awaiting_era, {}
        for (sender, _), message in waiting.items():
            effects += self._on_message(sender, message, -1, now_ns)
        return effects

    # ---- syncd --------------------------------------------------------------------------------

    def _on_syncd(
        self, message: SyncBeacon | PositionReply | NewEpochRequest, now_ns: int
    ) -> list[Effect]:
        match message:
            case SyncBeacon():
                self.view.take_beacon(message, now_ns)
                return []
            case PositionReply():
                group = self.groups.get(message.group)
                return [] if group is None else group.handover.on_position(message, now_ns)
            case NewEpochRequest():
                group = self.groups.get(message.group)
                return [] if group is None else group.new_epoch(message, now_ns)
            case _:
                assert_never(message)
