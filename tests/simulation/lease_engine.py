"""The loop of the simulated nodes: events at true times, one thread a node, effects carried out.

A node is single-threaded, so a pause or a slow effect holds up everything behind it, the gate
store included. Datagrams are the very objects that the cores made, or (`Node.codec`) what the
codec of the daemons makes of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from random import Random

from cluster.heartbeat import Codec, Envelope, derive_key
from cluster.lease_types import (
    Announce,
    Arrived,
    AskPosition,
    Effect,
    EraFailed,
    EraPersisted,
    Event,
    Note,
    PersistEra,
    PersistVoters,
    ReplyMove,
    ReplyVoters,
    Send,
    SetGate,
    StopAsked,
    SyncdSaid,
    TellSyncd,
    VoterRecord,
    VotersFailed,
    VotersPersisted,
)
from hafw.messages import MoveReply, Position, PositionReply
from tests.simulation.lease_checks import Judged
from tests.simulation.lease_node import MS, NOT_WON, PPM, Node, ViolationError

__all__ = ["Engine", "record_text"]

Sent = tuple[Envelope, bool, bytes]
"""What was said, whether a release to somebody is in it, and the datagram, if any is made."""
Won = dict[int, tuple[int, bool]]
CLUSTER_ID = 7
KEY = derive_key(b"simulated", cluster_id=CLUSTER_ID)


def _won(effects: list[Effect]) -> Won:
    """By group, epoch and contiguity of the lease that these effects open."""
    won = NOT_WON
    for effect in effects:
        if type(effect) is Note and effect.event == "lease_won":
            facts = dict(effect.facts)
            won = {**won, int(facts["group"]): (int(facts["epoch"]), bool(facts["contiguous"]))}
    return won


def record_text(record: VoterRecord) -> str:
    follows = record.next
    text = f"voters {record.current.id}: {record.current.members}"
    text += "" if follows is None else f", next {follows.id}: {follows.members}"
    return text + (", lost" if record.lost else "")


class Engine(Judged):
    """Runs nodes until a moment; raises ViolationError."""

    def __init__(
        self,
        rng: Random,
        *,
        gateways: tuple[int, ...],
        witnesses: tuple[int, ...],
        spares: tuple[int, ...] = (),
        groups: int = 1,
        on_the_wire: bool = False,
    ) -> None:
        """`on_the_wire`: datagrams are sealed and opened, as they are between daemons."""
        super().__init__(rng, gateways=gateways, witnesses=witnesses, spares=spares, groups=groups)
        if on_the_wire:
            for node in self.nodes.values():
                node.codec = Codec(KEY, cluster_id=CLUSTER_ID, node_id=node.id)
        self.relative_deadlines = False
        self.forget_era = False
        self.era_told_early = False
        self.voters_told_early = False
        self.replies: list[MoveReply] = []
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._count = 0

    # ---- time ---------------------------------------------------------------------------------

    def at(self, t: int, action: Callable[[], object]) -> None:
        self._count += 1
        now = self.now
        heapq.heappush(self._events, (max(now, t), self._count, action))

    def every(self, step: int, until: int, action: Callable[[], object]) -> None:
        for t in range(self.now + step, until, step):
            self.at(t, action)

    def run(self, until: int) -> None:
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            self.now, _, action = pop(events)
            action()
        self.now = until

    # ---- the only thread of a node ------------------------------------------------------------

    def pump(self, node: Node) -> None:
        """Run the node's only thread as far as this instant allows."""
        core, now = node.core, self.now
        if core is None or now < node.paused_until or now < node.busy_until:
            return
        todo, inbox = node.todo, node.inbox
        local_ns = node.offset_ns + now + now * node.ppm // PPM
        while True:
            while todo:
                if node.late and not node.held_up and self.rng.random() < node.late:
                    node.held_up = True  # This effect will be done late, once.
                    node.busy_until = now + self.rng.randrange(1, node.late_ns)
                    self.disturb(node.id)
                    self._resume_later(node, node.process)
                    return
                node.held_up = False
                self._do(node, *todo.popleft())
            if inbox:
                event = inbox.popleft()
                effects = core.handle(event, now_ns=local_ns)
                if type(event) is StopAsked:
                    self._finish(node, effects)
                    return
            else:
                deadline_ns = core.deadline(now_ns=local_ns)
                if deadline_ns > local_ns:
                    break
                effects = core.tick(now_ns=local_ns)
            if effects:
                won = _won(effects)
                if node.late:
                    todo.extend((effect, local_ns, won) for effect in effects)
                else:
                    for effect in effects:
                        self._do(node, effect, local_ns, won)
        self._wake(node, deadline_ns)

    def _resume_later(self, node: Node, process: int) -> None:
        def resume() -> None:
            if node.process == process:
                self.pump(node)

        self.at(node.busy_until, resume)

    def _finish(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            self._do(node, effect, node.local(self.now), NOT_WON)
        self.kill(node)

    def _wake(self, node: Node, deadline_ns: int) -> None:
        now = self.now
        wake_at = (deadline_ns - node.offset_ns) * PPM // (PPM + node.ppm) + 1  # `Node.true`
        if wake_at < now:
            wake_at = now
        if now < node.wake_at <= wake_at:
            return
        node.wake_at = wake_at
        process = node.process

        def wake() -> None:
            if node.process == process and node.wake_at == wake_at:
                node.wake_at = -1
                self.pump(node)

        self.at(wake_at, wake)

    def kill(self, node: Node) -> None:
        """SIGKILL of the lease process: the kernel's gate stays."""
        self.disturb(node.id)
        node.core = None
        node.process += 1
        self.say(f"node {node.id} killed")

    # ---- effects ------------------------------------------------------------------------------

    def _do(self, node: Node, effect: Effect, decided_ns: int, won: Won) -> None:
        process = node.process
        match effect:
            case Send(to, envelope):
                releases = self.note_release(node, envelope)
                datagram = node.codec.seal(envelope) if node.codec is not None else b""
                for peer in self.nodes.values():
                    if peer is not node and (to == 0 or to == peer.id):
                        self._transmit(node, peer, (envelope, releases, datagram))
            case SetGate(group, announce_ns, accept_ns):
                if self.relative_deadlines:
                    shift_ns = node.local(self.now) - decided_ns
                    announce_ns += shift_ns if announce_ns else 0
                    accept_ns += shift_ns if accept_ns else 0
                self.store(node, group, announce_ns, accept_ns, won)
            case PersistEra(era):
                if self.era_told_early:
                    self._event(node, process, EraPersisted(era))
                self.at(
                    self.now + node.disk_least_ns + self.rng.randrange(node.disk_ns) + 1,
                    lambda: self._persisted(node, process, era),
                )
            case PersistVoters(record):
                if self.voters_told_early:
                    self._event(node, process, VotersPersisted(record))
                self.at(
                    self.now + node.disk_least_ns + self.rng.randrange(node.disk_ns) + 1,
                    lambda: self._voters_written(node, process, record),
                )
            case AskPosition(group, asked):
                if node.syncd_up:
                    node.published += 1
                    here = Position(
                        sender_id=node.id, session=node.syncd_session, seq=node.published
                    )
                    reply = PositionReply(group=group, epoch=asked, position=here)
                    delay_ns = self.rng.randrange(1, 10 * MS)
                    self.at(
                        self.now + delay_ns, lambda: self._event(node, process, SyncdSaid(reply))
                    )
                    self._replicate(node)
            case ReplyMove(_, reply_move):
                self.replies.append(reply_move)
                self.say(f"move answered by node {node.id}: {reply_move}")
            case Note(event, facts):
                self.say(f"node {node.id} {event} {dict(facts)}")
            case ReplyVoters(_, reason):
                self.say(f"node {node.id} answers: {reason or 'stored'}")
            case TellSyncd() | Announce():
                pass

    def _event(self, node: Node, process: int, event: Event) -> None:
        if node.process == process and node.core is not None:
            node.inbox.append(event)
            self.pump(node)

    def _persisted(self, node: Node, process: int, era: int) -> None:
        if node.process != process or node.disk_hangs:
            return
        if node.disk_fails:
            self._event(node, process, EraFailed(era, "disk full"))
            return
        if not self.forget_era:
            node.disk_era = max(node.disk_era, era)
        if not self.era_told_early:
            self._event(node, process, EraPersisted(era))

    def _voters_written(self, node: Node, process: int, record: VoterRecord) -> None:
        if node.process != process or node.disk_hangs:
            return
        if node.disk_fails:
            self._event(node, process, VotersFailed("disk full"))
            return
        node.record = record
        if self.trace is not None:
            self.say(f"node {node.id} has stored {record_text(record)}")
        if not self.voters_told_early:
            self._event(node, process, VotersPersisted(record))

    def _replicate(self, node: Node) -> None:
        key, seq = (node.id, node.syncd_session), node.published
        for peer in self.nodes.values():
            if peer is node or not peer.gateway or (node.id, peer.id) in self.network.cut:
                continue

            def apply(peer: Node = peer) -> None:
                if peer.syncd_up:
                    peer.applied[key] = max(seq, peer.applied.get(key, 0))

            self.at(self.now + self.rng.randrange(1, 40 * MS), apply)

    def _transmit(self, node: Node, peer: Node, sent: Sent) -> None:
        network, rng = self.network, self.rng
        copies = 2 if network.double and rng.random() < network.double else 1
        for _ in range(copies):
            if (node.id, peer.id) in network.cut or (network.loss and rng.random() < network.loss):
                continue
            delay_ns = network.least_ns + int(rng.random() * 5 * network.least_ns)
            if network.slow and rng.random() < network.slow:
                delay_ns += rng.randrange(network.slow_ns)
            self.at(self.now + delay_ns, partial(self._deliver, node.id, peer, sent))

    def _deliver(self, sender: int, peer: Node, sent: Sent) -> None:
        if peer.core is None:
            return
        envelope, releases, datagram = sent
        if releases:
            self.note_owed(sender, peer, envelope)
        if peer.codec is not None:
            told, heard = peer.codec.open(datagram)
            if (told, heard) != (sender, envelope):
                raise ViolationError(f"node {sender} said {envelope}, heard was {told}: {heard}")
            envelope = heard
        # The socket of a paused process keeps filling; the clock is read after receiving.
        peer.inbox.append(Arrived(sender, envelope))
        self.pump(peer)
