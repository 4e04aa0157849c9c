"""A simulated cluster of real lease cores: fake clocks, network, disks, gates and syncds.

Modelled so as to be cruel to timing: every node's clock runs at its own rate (up to ε wrong) from
its own offset; datagrams are lost, doubled, delayed (sometimes by several leases) and partitioned
one way; a node is single-threaded, so a pause or a slow effect holds up everything behind it, the
gate store included; a killed process leaves its gate as it was; a power cut does not.

Checkers look only at what left the nodes: gate stores in true time, epochs told to syncd,
releases on the wire. They know nothing of how the core decides.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from cluster.asks import FORCE_MS
from cluster.heartbeat import Envelope, Release
from cluster.lease import LeaseCore
from cluster.lease_types import (
    Announce,
    Arrived,
    AskPosition,
    Effect,
    EraFailed,
    EraPersisted,
    Event,
    GroupParams,
    LeaseParams,
    MoveAsked,
    Note,
    PersistEra,
    PersistVoters,
    ReplyMove,
    ReplyVoters,
    SegmentsDown,
    Send,
    SetGate,
    StandingSaid,
    StopAsked,
    SyncdSaid,
    TellSyncd,
    VoterRecord,
    VotersAsked,
    VotersFailed,
    VotersPersisted,
)
from hafw.config.model import VoterSet
from hafw.human import format_epoch
from hafw.messages import (
    MoveReply,
    MoveRequest,
    NewEpochRequest,
    Position,
    PositionReply,
    Standing,
    SyncBeacon,
)

MS = 1_000_000
PPM = 1_000_000
GROUP = 1
SEGMENTS = (("lan", "lan0"), ("wan", "wan0"))
HEARTBEAT_NS = 25 * MS
LEASE_NS = 80 * MS
LEASE_NS_MAX = 100 * MS
RESTART_WAIT_NS = 120 * MS
BEACON_NS = 50 * MS
DRIFT_PPM = 10_000
FIRST_SET = 3


NOT_WON = (0, False)


class ViolationError(AssertionError):
    """A checker found what may never be."""


def _won(effects: list[Effect]) -> tuple[int, bool]:
    """Epoch and contiguity of the lease that these effects open; 0: none."""
    for effect in effects:
        if type(effect) is Note and effect.event == "lease_won":
            facts = dict(effect.facts)
            return int(facts["epoch"]), bool(facts["contiguous"])
    return NOT_WON


@dataclass(slots=True)
class Network:
    least_ns: int = 100_000
    """A datagram takes this long, or up to six times as long."""
    loss: float = 0.0
    double: float = 0.0
    slow: float = 0.0
    slow_ns: int = 0
    cut: set[tuple[int, int]] = field(default_factory=set)
    """(from, to) pairs that lose everything."""


@dataclass(slots=True)
class Gate:
    """Deadlines in the node's own clock, as the kernel keeps them."""

    announce_ns: int = 0
    accept_ns: int = 0
    shut_at: int = 0
    """True time when announce was last shut with accept left open."""
    given_to: int = 0
    """Whom the lease was released to since."""


class Node:
    """A machine: clock, disk and gate live longer than its lease process."""

    def __init__(self, node_id: int, *, gateway: bool, ppm: int, offset_ns: int) -> None:
        self.id = node_id
        self.gateway = gateway
        self.ppm = ppm
        self.offset_ns = offset_ns
        self.disk_era = 0
        self.disk_fails = False
        self.disk_ns = MS
        self.disk_least_ns = 0
        self.disk_slow_until = 0
        self.disk_hangs = False
        self.gate = Gate()
        self.core: LeaseCore | None = None
        self.process = 0
        self.inbox: deque[Event] = deque()
        self.todo: deque[tuple[Effect, int, tuple[int, bool]]] = deque()
        """Effects not done yet, the local time they were decided at, the epoch then won."""
        self.paused_until = 0
        self.busy_until = 0
        self.wake_at = -1
        self.late = 0.0
        self.late_ns = 0
        self.held_up = False
        self.syncd_up = True
        self.synced = True
        self.syncd_session = 1
        self.published = 0
        self.applied: dict[tuple[int, int], int] = {}
        self.disturbed_at = 0
        self.started_at = 0
        self.lease_ns = LEASE_NS
        self.segments_down: frozenset[str] = frozenset()
        self.owed: tuple[int, Position, int, int] | None = None
        """A release to this node that reached its process: epoch, position, when, process."""
        self.record: VoterRecord | None = None
        """The voters file; None: it is gone."""

    def local(self, t: int) -> int:
        return self.offset_ns + t + t * self.ppm // PPM

    def true(self, local_ns: int) -> int:
        """The last true instant before a deadline of this clock passes."""
        since = local_ns - self.offset_ns
        return since * PPM // (PPM + self.ppm)


def _record_text(record: VoterRecord) -> str:
    follows = record.next
    text = f"voters {record.current.id}: {record.current.members}"
    text += "" if follows is None else f", next {follows.id}: {follows.members}"
    return text + (", lost" if record.lost else "")


class World:
    """Runs nodes until a moment; raises ViolationError."""

    def __init__(
        self,
        rng: Random,
        *,
        gateways: tuple[int, ...],
        witnesses: tuple[int, ...],
        spares: tuple[int, ...] = (),
    ) -> None:
        """`spares`: of them, those that are no voters at first."""
        self.rng = rng
        self.now = 0
        self.network = Network()
        self.network_disturbed_at = 0
        self.moved_at = 0
        self.forced_at = -(10**18)
        self.gateways = gateways
        self.everybody = tuple(sorted((*gateways, *witnesses)))
        founders = tuple(node for node in self.everybody if node not in spares)
        self.founders = VoterSet(id=FIRST_SET, members=founders)
        self.asked_sets: dict[int, VoterSet] = {}
        """The voter sets that were wanted, by number."""
        self.nodes = {
            node: Node(
                node,
                gateway=node in gateways,
                ppm=rng.choice((-DRIFT_PPM, DRIFT_PPM, rng.randrange(-DRIFT_PPM, DRIFT_PPM))),
                offset_ns=rng.randrange(10**15),
            )
            for node in self.everybody
        }
        self.heartbeat_ns = HEARTBEAT_NS
        self.two_node = False
        for each in self.nodes.values():
            each.record = VoterRecord(self.founders)
        self.relative_deadlines = False
        self.forget_era = False
        self.era_told_early = False
        self.eras_lost = False
        """Whether an era file was lost: epochs may then go back, leases may not overlap."""
        self.no_restart_wait = False
        self.voters_told_early = False
        self.loss_of_voters_unnoticed = False
        self.replies: list[MoveReply] = []
        self.takeovers: list[tuple[int, int, int]] = []
        """(true time, node, epoch) of every new epoch under which a gate opened."""
        self.top_epoch = 0
        self.trace: list[str] | None = None
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._holder = 0
        self._won_last = (0, 0)

    # ---- machinery ----------------------------------------------------------------------------

    def at(self, t: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(t, self.now), next(self._count), action))

    def every(self, step: int, until: int, action: Callable[[], None]) -> None:
        for t in range(self.now + step, until, step):
            self.at(t, action)

    def run(self, until: int, stop: Callable[[], bool] | None = None) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
            if stop is not None and stop():
                return
        self.now = until

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now / MS:10.3f}  {text}")

    def disturb(self, *nodes: int) -> None:
        for node in nodes:
            self.nodes[node].disturbed_at = self.now

    # ---- life of a node -----------------------------------------------------------------------

    def start(self, node: Node) -> None:
        if node.core is not None:
            return
        self.disturb(node.id)
        node.started_at = self.now
        node.process += 1
        node.todo.clear()
        node.inbox.clear()
        node.held_up = False
        node.paused_until = node.busy_until = self.now
        durable = not node.disk_fails
        era = node.disk_era
        if durable:
            era += 1
            node.disk_era = era
        if self.forget_era:
            era, durable, node.disk_era = 1, True, 0
        params = LeaseParams(
            node_id=node.id,
            gateway=node.gateway,
            voters=self.founders,
            nodes=self.everybody,
            groups=(GroupParams(GROUP, self.gateways, SEGMENTS if node.gateway else ()),),
            heartbeat_ns=self.heartbeat_ns,
            lease_ns=node.lease_ns,
            restart_wait_ns=RESTART_WAIT_NS,
            lease_ns_max=LEASE_NS_MAX,
            beacon_ns=BEACON_NS,
            drift_ppm=DRIFT_PPM,
            two_node=self.two_node,
        )
        now_ns = node.local(self.now)
        seed = Random(self.rng.randrange(1 << 60))
        lost = not self.loss_of_voters_unnoticed
        record = node.record or VoterRecord(self.founders, lost=lost)
        node.core = LeaseCore(
            params, era=era, era_durable=durable, rng=seed, now_ns=now_ns, record=record
        )
        if self.no_restart_wait:
            node.core.view.votes_from_ns = now_ns
        if node.segments_down:
            node.inbox.append(SegmentsDown(node.segments_down))
        if self.trace is not None:
            self.say(f"node {node.id} starts, era {era}, {_record_text(record)}")
        self._beacon(node, node.process)
        self.pump(node)

    def kill(self, node: Node) -> None:
        """SIGKILL of the lease process: the kernel's gate stays."""
        self.disturb(node.id)
        node.core = None
        node.process += 1
        self.say(f"node {node.id} killed")

    def power_cut(self, node: Node) -> None:
        self.kill(node)
        node.gate = Gate()
        node.syncd_session += 1
        node.applied.clear()

    def pause(self, node: Node, duration_ns: int) -> None:
        self.disturb(node.id)
        node.paused_until = max(node.paused_until, self.now + duration_ns)
        self.say(f"node {node.id} paused for {duration_ns / MS:.0f} ms")
        self.at(node.paused_until, lambda: self.pump(node))

    def stop(self, node: Node) -> None:
        """SIGTERM."""
        if node.core is not None:
            self.disturb(node.id)
            self.say(f"node {node.id} stops")
            node.inbox.append(StopAsked())
            self.pump(node)

    def move(self, node: Node, target: int, wait_s: float) -> None:
        if node.core is not None:
            self.moved_at = self.now
            self.say(f"move to {target} asked of node {node.id}")
            request = MoveRequest(group=GROUP, target_id=target, wait_s=wait_s)
            node.inbox.append(MoveAsked("token", request))
            self.pump(node)

    def force(self, node: Node) -> None:
        """An operator wants the group on this node, synced or not."""
        if node.core is not None:
            self.moved_at = self.forced_at = self.now
            self.say(f"move forced to node {node.id}")
            request = MoveRequest(group=GROUP, target_id=node.id, wait_s=0, force=True)
            self._event(node, node.process, MoveAsked("token", request))

    def stand(self, node: Node, standing: Standing) -> None:
        """What Raft agreed on, as far as this node has heard of it."""
        self.disturb(node.id)
        self.say(f"node {node.id} hears {standing}")
        self._event(node, node.process, StandingSaid(standing))

    def _beacon(self, node: Node, process: int) -> None:
        """The node's syncd, as far as leased hears it."""
        if node.process != process or not node.gateway:
            return
        if node.syncd_up:
            applied = [
                Position(sender_id=sender, session=session, seq=seq)
                for (sender, session), seq in node.applied.items()
            ]
            beacon = SyncBeacon(
                synced={GROUP: node.synced},
                reasons={} if node.synced else {GROUP: "behind"},
                applied=applied,
                stale_entries=0,
            )
            node.inbox.append(SyncdSaid(beacon))
            self.pump(node)
        self.at(self.now + BEACON_NS, lambda: self._beacon(node, process))

    def carrier(self, node: Node, down: frozenset[str]) -> None:
        """Exactly these segments of the node have no carrier from now on."""
        self.disturb(node.id)
        node.segments_down = down
        self.say(f"node {node.id} without carrier on {sorted(down)}")
        self._event(node, node.process, SegmentsDown(down))

    def ask_voters(self, node: Node, voters: VoterSet) -> None:
        """Somebody wants this set to follow the one in force."""
        self.say(f"node {node.id} is asked for voters {voters.id}: {voters.members}")
        self._event(node, node.process, VotersAsked("token", voters))

    def ask_epoch(self, node: Node) -> None:
        """A restarted syncd on the holder wants a higher epoch."""
        group = node.core.groups[GROUP] if node.core is not None else None
        if group is not None and group.proposer.held is not None:
            request = NewEpochRequest(
                group=GROUP, held_epoch=group.proposer.held.epoch, reason="no registry"
            )
            self.say(f"node {node.id} is asked for a new epoch")
            self._event(node, node.process, SyncdSaid(request))

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
        wake_at = max(self.now, node.true(deadline_ns) + 1)
        if self.now < node.wake_at <= wake_at:
            return
        node.wake_at = wake_at
        process = node.process

        def wake() -> None:
            if node.process == process and node.wake_at == wake_at:
                node.wake_at = -1
                self.pump(node)

        self.at(wake_at, wake)

    # ---- effects ------------------------------------------------------------------------------

    def _do(self, node: Node, effect: Effect, decided_ns: int, won: tuple[int, bool]) -> None:
        process = node.process
        match effect:
            case Send(to, envelope):
                self._note_release(node, envelope)
                for peer in self.nodes.values():
                    if peer is not node and to in (0, peer.id):
                        self._transmit(node, peer, envelope)
            case SetGate(_, announce_ns, accept_ns):
                if self.relative_deadlines:
                    shift_ns = node.local(self.now) - decided_ns
                    announce_ns += shift_ns if announce_ns else 0
                    accept_ns += shift_ns if accept_ns else 0
                self._store(node, announce_ns, accept_ns, won)
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
            self.say(f"node {node.id} has stored {_record_text(record)}")
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

    def _transmit(self, node: Node, peer: Node, envelope: Envelope) -> None:
        network, rng = self.network, self.rng
        copies = 2 if network.double and rng.random() < network.double else 1
        for _ in range(copies):
            if (node.id, peer.id) in network.cut or (network.loss and rng.random() < network.loss):
                continue
            delay_ns = network.least_ns + int(rng.random() * 5 * network.least_ns)
            if network.slow and rng.random() < network.slow:
                delay_ns += rng.randrange(network.slow_ns)
            self.at(self.now + delay_ns, lambda: self._deliver(node.id, peer, envelope))

    def _deliver(self, sender: int, peer: Node, envelope: Envelope) -> None:
        if peer.core is not None:
            settled = self.now - 4 * LEASE_NS
            for message in envelope.messages:
                if (
                    type(message) is Release
                    and message.to == peer.id
                    and message.position is not None
                    and not peer.inbox  # Else it might be read after what opens the gate.
                    and max(peer.started_at, self.nodes[sender].started_at) < settled
                ):
                    peer.owed = (message.epoch, message.position, self.now, peer.process)
            # The socket of a paused process keeps filling; the clock is read after receiving.
            peer.inbox.append(Arrived(sender, envelope))
            self.pump(peer)

    # ---- checkers -----------------------------------------------------------------------------

    def sets_in_play(self) -> list[VoterSet]:
        """The sets that nodes act in or may come to act in, those apart that are superseded by
        one two above: nobody may have to rest on them."""
        found = {}
        for node in self.nodes.values():
            acting = node.core.view.voters if node.core is not None else None
            record = node.record
            for voters in (acting, *((record.current, record.next) if record else ())):
                if voters is not None:
                    found[voters.id, voters.members] = voters
        in_force = [node.core.view.voters.id for node in self.nodes.values() if node.core]
        in_force += [node.record.current.id for node in self.nodes.values() if node.record]
        return [voters for (number, _), voters in found.items() if number >= max(in_force) - 1]

    def are_majority(self, nodes: list[int]) -> bool:
        """Whether those of `nodes` that may vote are a majority of every set in play."""
        voting = {node for node in nodes if self._remembers(self.nodes[node])}
        return all(
            len(voting.intersection(voters.members)) >= voters.majority
            for voters in self.sets_in_play()
        )

    def in_all_sets(self, node: int) -> bool:
        return all(node in voters.members for voters in self.sets_in_play())

    @staticmethod
    def _remembers(node: Node) -> bool:
        return node.record is not None and not node.record.lost

    def _note_release(self, node: Node, envelope: Envelope) -> None:
        for message in envelope.messages:
            if isinstance(message, Release) and message.to:
                if self.announces(node):
                    raise ViolationError(f"node {node.id} released with announce open")
                node.gate.given_to = message.to

    def announces(self, node: Node) -> bool:
        return node.true(node.gate.announce_ns) > self.now

    def accepts(self, node: Node) -> bool:
        return node.true(node.gate.accept_ns) > self.now

    def _store(self, node: Node, announce_ns: int, accept_ns: int, won: tuple[int, bool]) -> None:
        gate = node.gate
        epoch, contiguous = won
        if announce_ns == 0 and accept_ns and gate.announce_ns:
            gate.shut_at = self.now
        if announce_ns:
            gate.given_to = 0
        gate.announce_ns, gate.accept_ns = announce_ns, accept_ns
        if self.trace is not None:
            self.say(
                f"node {node.id} gate: announce {(node.true(announce_ns) - self.now) / MS:.1f} ms,"
                f" accept {(node.true(accept_ns) - self.now) / MS:.1f} ms, {format_epoch(epoch)}"
                if announce_ns
                else f"node {node.id} gate shut"
            )
        if epoch:
            self._check_contiguous(node, epoch, contiguous)
        if self.announces(node):
            self._check_exclusive(node)
            if epoch:
                self._check_epoch(node, epoch)
                self._check_position(node)
                self._check_synced(node)
                self.top_epoch, self._holder = max(epoch, self.top_epoch), node.id
                self.takeovers.append((self.now, node.id, epoch))

    def _check_exclusive(self, node: Node) -> None:
        for other in self.nodes.values():
            if other is node:
                continue
            if self.announces(other):
                raise ViolationError(f"nodes {node.id} and {other.id} both announce")
            if self.accepts(other):
                if not other.gate.given_to:
                    raise ViolationError(f"nodes {node.id} and {other.id} both accept, unplanned")
                # Never renewed: what is left is within one lease of when announce was shut.
                if (
                    other.true(other.gate.accept_ns)
                    > other.gate.shut_at + other.lease_ns * 51 // 50
                ):
                    raise ViolationError(f"node {other.id} accepts for longer than one lease")

    def _check_contiguous(self, node: Node, epoch: int, contiguous: bool) -> None:
        """Who calls its lease contiguous has won the one before, too, if perhaps too late."""
        last_epoch, last = self._won_last
        if contiguous and epoch > last_epoch and last != node.id and not self.eras_lost:
            raise ViolationError(f"node {node.id} calls its lease contiguous, after node {last}")
        self._won_last = max(self._won_last, (epoch, node.id))

    def _check_epoch(self, node: Node, epoch: int) -> None:
        """Each opening has an epoch of its own, above all before."""
        if epoch <= self.top_epoch and not self.eras_lost:
            raise ViolationError(
                f"node {node.id} opened under {format_epoch(epoch)} after "
                f"{format_epoch(self.top_epoch)} of node {self._holder}"
            )

    def _check_position(self, node: Node) -> None:
        """The target of a planned move opens once it applied the old holder's stream up to the
        release, unless it has waited for three leases in vain."""
        owed, node.owed = node.owed, None
        if owed is None or owed[0] != self.top_epoch or owed[3] != node.process:
            return
        _, position, told_at, _ = owed
        applied = node.applied.get((position.sender_id, position.session), 0)
        if self.now < told_at + 3 * LEASE_NS and applied < position.seq:
            raise ViolationError(f"node {node.id} opened before it applied {position}")

    def check_kept(self) -> None:
        """A lease may not end while its holder and a majority are well.

        Judged only if they, and the network between all, have been undisturbed for long. A slow
        disk is no excuse, nor is what happens to the other nodes' processes. A voter that started
        after the lease was won must be able to carry it on if disks are quick: a new claim needs
        its era, and eras need disks.
        """
        calm_from = self.now - 8 * LEASE_NS - RESTART_WAIT_NS
        network = self.network
        if (
            max(self.network_disturbed_at, self.moved_at) > calm_from
            or network.loss
            or network.slow
            or network.cut
            or any(self.announces(node) for node in self.nodes.values())
        ):
            return
        won_at = self.takeovers[-1][0] if self.takeovers else 0
        quick = all(
            node.disk_ns <= 50 * MS and node.disk_slow_until < self.now
            for node in self.nodes.values()
        )
        calm = [
            node.id
            for node in self.nodes.values()
            if node.core is not None
            and node.disturbed_at < calm_from
            and (quick or node.started_at < won_at)
            and not (node.late or node.disk_fails or node.disk_hangs)
        ]
        if self._holder in calm and self.in_all_sets(self._holder) and self.are_majority(calm):
            raise ViolationError(f"node {self._holder} lost its lease, and {calm} are well")

    def _check_synced(self, node: Node) -> None:
        """An unsynced node may not take a group that a synced one could have taken.

        Judged only where nobody can argue: this node, the synced one and enough voters for a
        majority, the network between them and what their syncds say, have been undisturbed for
        as long as the rule gives a synced candidate, and a restart's wait.
        """
        calm_from = self.now - 8 * LEASE_NS - RESTART_WAIT_NS
        if node.synced or node.id == self._holder or self.network_disturbed_at > calm_from:
            return
        if self.forced_at > calm_from - FORCE_MS * MS:
            return
        cut = {end for pair in self.network.cut for end in pair}  # Cut for longer than that.
        calm = [
            other.id
            for other in self.nodes.values()
            if other.core is not None
            and other.disturbed_at < calm_from
            and other.id not in cut
            and not other.disk_hangs
        ]
        better = [
            n for n in calm if n in self.gateways and self.nodes[n].synced and self.in_all_sets(n)
        ]
        if node.id in calm and better and self.are_majority(calm):
            raise ViolationError(f"unsynced node {node.id} claimed although {better} is synced")
