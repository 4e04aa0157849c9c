"""Clusters of syncd's real cores on a fake clock, network and kernel.

What is real: SendRing, StreamReceiver, Registry, Publisher, OwnPass, ReplicaTable, Roles and the
delta codec. What is modelled: sealing (none), the kernel (a dictionary), leased (an oracle that
hands the group on and tells the nodes late), snapshots (a reliable channel, chunk by chunk, read
from the kernel at the time of the chunk), the process around the cores.

The checker knows nothing of the code:

* *exactly once, in order*: per receiver and session, delivered sequence numbers only grow;
* *no mistaken death*: a DESTROY ends only the life of the tuple that it was meant for;
* *no stale word*: no kernel write comes from a delta of an older epoch than the node knows;
* *identity*: what a node keeps of a flow is of the life that the delta was about; one incarnation
  never has two translations; a life that ended does not come back within the epoch that ended it;
* *windows*: who forwards again after another did has no entry with windows from before;
* *convergence*: when the faults stop, every node's kernel holds exactly the holder's flows worth a
  replica, each in its newest state, and no entry whose windows were learnt before another node
  held the group;
* *digests*: when all is calm they are equal, and nothing is repaired any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hafw.flow import (
    AF_INET,
    IPPROTO_TCP,
    IPPROTO_UDP,
    FlowEntry,
    FlowKey,
    TcpState,
    Tuple,
    hafw_mark,
    inverse,
    mark_group,
)
from hafw.human import make_epoch
from hafw.messages import RoleChange
from sync.adopt import OwnPass
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import Delta, Destroy, Upsert, decode_deltas, encode_deltas
from sync.digests import DigestWatch, say_digest
from sync.flowhash import FlowHash, bucket_of
from sync.ops import (
    Adopt,
    Create,
    KernelOp,
    MakeStrict,
    Pristine,
    Remove,
    Replace,
    SetTimeout,
    Update,
)
from sync.publish import LookUp, PublishEffect, Publisher, publishable
from sync.registry import Flag, Registry
from sync.replica import Compared, Hole, ReplicaGroup, ReplicaTable, Superseded
from sync.ring import Repairer, SendRing
from sync.roles import BecomeStale, Follow, RoleEffect, Roles, StartHolding, StopHolding
from sync.stream import (
    Deliver,
    SendChallenge,
    SendNack,
    SessionAccepted,
    StreamBroken,
    StreamEffect,
    StreamReceiver,
)
from tests.simulation.timeline import Timeline

GROUP = 1
HASHES = FlowHash(bytes(range(1, 33)))
BEACON_S = 0.02
DIGEST_S = 0.1
SETTLED_S = 2.0
"""Into the calm: from then on nothing may be left to repair."""
TICK_S = 0.004
SNAPSHOT_CHUNK = 3
ASSURED, OPENING = 0x0E, 0x08
TIME_WAIT = 7


@dataclass(frozen=True)
class Cores:
    """The cores under test; a planted mistake replaces one."""

    stream: type[StreamReceiver] = StreamReceiver
    table: type[ReplicaTable] = ReplicaTable
    publisher: type[Publisher] = Publisher
    registry: type[Registry] = Registry
    roles: type[Roles] = Roles
    digests: bool = True


@dataclass
class Faults:
    """Drawn from the seed."""

    loss: float
    duplicate: float
    delay_s: float
    ring: int
    restart: float
    hand_on: float
    vanish: float
    """Replicas that a kernel drops by itself."""
    overrun: float
    """Events that the holder never hears, and knows that there were some."""
    away: float
    """A node hears nobody, its own leased included, while others hold the group in turn."""


@dataclass
class Held:
    """An entry of the fake kernel. `learnt`: the epoch under which this node last forwarded it,
    0 while pristine."""

    entry: FlowEntry
    learnt: int


@dataclass
class Snapshot:
    """One transfer, as its client sees it."""

    holder: int
    session: int
    seq: int
    todo: list[FlowKey] = field(default_factory=list)
    buckets: frozenset[int] | None = None
    transit: list[tuple[float, Upsert]] = field(default_factory=list)
    """What the holder has read, and when it arrives."""


class Node:
    """One gateway: a kernel that survives, and a syncd that may restart."""

    def __init__(self, world: SimWorld, number: int) -> None:
        self.world = world
        self.number = number
        self.kernel: dict[FlowKey, Held] = {}
        self.events: list[CtEvent] = []
        self.away_until = 0.0
        self.start()

    def start(self) -> None:
        rng = self.world.rng
        self.session = rng.getrandbits(63)
        self.ring = SendRing(self.world.faults.ring)
        self.repairer = Repairer(self.ring, peers=self.world.count - 1)
        self.registry = self.world.cores.registry(HASHES)
        self.watch = DigestWatch()
        self.group = ReplicaGroup()
        self.roles = self.world.cores.roles(self.number, [GROUP])
        self.table = self.world.cores.table(self.registry, {GROUP: self.group})
        self.publisher = self.world.cores.publisher(self.registry, rng)
        self.stream = self.world.cores.stream(
            draw_nonce=lambda: rng.randbytes(16), spread=rng.random
        )
        self.ready = False
        self.source: tuple[int, int, int] | None = None
        self.snapshot: Snapshot | None = None
        self.liberal: set[FlowKey] = set()
        self.wants_epoch = False
        self.buried: dict[int, int] = {}
        """Contribution of a life that the stream ended -> the epoch in which it did."""
        self.delivered: dict[tuple[int, int], int] = {}
        self.events.clear()

    # -- the kernel

    def happen(self, kind: EventKind, entry: FlowEntry) -> None:
        """A packet changes the table; syncd will read the event."""
        if kind is EventKind.DESTROY:
            del self.kernel[entry.key]
        else:
            self.kernel[entry.key] = Held(entry, self.world.epoch)
        self.events.append(CtEvent(kind, entry, 0))

    def write(self, ops: list[KernelOp]) -> None:
        for op in ops:
            match op:
                case Create(entry) | Replace(entry) | Pristine(entry):
                    there = self.kernel.get(entry.key)
                    if isinstance(op, Create) and there is not None:
                        there.entry = entry  # EEXIST: the same flow is updated in place.
                    else:
                        self.kernel[entry.key] = Held(entry, 0)
                case Update(entry):
                    held = self.kernel.get(entry.key)
                    if held is None or held.entry.reply != entry.reply:
                        self.kernel[entry.key] = Held(entry, 0)
                    else:
                        held.entry = entry
                case Remove(key):
                    self.kernel.pop(key, None)
                case Adopt(key, mark):
                    if key in self.kernel:
                        self.kernel[key].entry = replace(self.kernel[key].entry, mark=mark)
                case SetTimeout() | MakeStrict():
                    pass

    # -- roles

    def hear_role(self, message: RoleChange) -> None:
        self.carry_out(self.roles.on_role_change(message, now=self.world.now))

    def carry_out(self, effects: list[RoleEffect]) -> None:
        state = self.roles.states[GROUP]
        self.group.epoch, self.group.active = state.epoch, state.active
        for effect in effects:
            match effect:
                case StartHolding(_, epoch, contiguous, first):
                    self.end_snapshot()
                    self.source = None
                    self.ready = False
                    if first and any(publishable(h.entry) for h in self.kernel.values()):
                        if contiguous:
                            self.group.suspect = False
                        self.wants_epoch = True
                    else:
                        self.take(epoch)
                case StopHolding():
                    self.ready = False
                case BecomeStale():
                    self.end_snapshot()
                    self.source = None
                    self.table.mark_stale(GROUP)
                case Follow():
                    self.end_snapshot()

    def take(self, epoch: int) -> None:
        """The dump is taken at once here; that it lags is tested on `OwnPass` itself."""
        self.read_events()
        own = OwnPass(
            GROUP, epoch, node_id=self.number, registry=self.registry, group=self.group,
            publisher=self.publisher, timeouts_s={}, liberal=self.liberal.add, refresh=False,
        )  # fmt: skip
        output = own.on_entries([held.entry for held in self.kernel.values()])
        self.write(output.ops)
        if epoch == self.world.epoch:
            # Else it has not heard yet that it holds anew, or no more.
            self.world.check_windows(self)
            for held in self.kernel.values():
                held.learnt = epoch  # Packets flow here now.
        self.publish(output.publications)
        own.finish()
        self.registry.drop_flagged(GROUP, Flag.UNPASSED)
        self.group.suspect = False
        self.ready = True
        self.wants_epoch = False

    # -- sending

    def read_events(self) -> None:
        events, self.events = self.events, []
        held = self.roles.held()
        for event in events:
            self.publish(self.publisher.on_event(event, held))

    def lose_events(self) -> None:
        """ENOBUFS: what waits is lost, and a pass repairs it."""
        state = self.roles.states[GROUP]
        if self.events and state.active and self.ready:
            self.events.clear()
            self.take(state.epoch)

    def lose_a_replica(self) -> None:
        """It expires; its event is heard."""
        if not self.roles.states[GROUP].active and not self.roles.states[GROUP].dirty:
            for key in sorted(self.kernel, key=str)[:1]:
                del self.kernel[key]
                if self.registry.remove(key) is not None:
                    self.watch.note_missing()

    def say_digest(self) -> None:
        state = self.roles.states[GROUP]
        if state.active and self.ready and self.world.cores.digests:
            self.publish([*say_digest(self.registry, GROUP, state.epoch)])

    def publish(self, effects: list[PublishEffect]) -> None:
        deltas = [effect for effect in effects if not isinstance(effect, LookUp)]
        for effect in effects:
            if isinstance(effect, LookUp) and effect.key in self.kernel:
                entry = self.kernel[effect.key].entry
                self.publish(self.publisher.publish(entry, effect.epoch))
        for delta in deltas:
            seq = self.ring.high_water + 1
            self.world.check_translation(delta)
            body = encode_deltas([delta])
            self.ring.push(seq, body)
            for peer in self.world.nodes:
                if peer is not self:
                    self.world.carry(self.say(peer, self.session, seq, body), self, peer)

    def say(self, peer: Node, session: int, seq: int, body: bytes) -> Callable[[], None]:
        number = self.number
        return lambda: peer.on_effects(
            peer.stream.on_datagram(number, session, seq, body, now=self.world.now)
        )

    def beacon(self) -> None:
        marks = (self.number, self.session, self.ring.high_water, self.ring.low_water)
        for peer in self.world.nodes:
            if peer is not self:
                self.world.carry(self.show(peer, *marks), self, peer)

    def show(
        self, peer: Node, number: int, session: int, high: int, low: int
    ) -> Callable[[], None]:
        return lambda: peer.on_effects(
            peer.stream.on_beacon(number, session, high, low, now=self.world.now)
        )

    # -- receiving

    def on_effects(self, effects: list[StreamEffect]) -> None:
        for effect in effects:
            match effect:
                case Deliver(sender_id, session, seq, body):
                    last = self.delivered.get((sender_id, session), 0)
                    self.world.check(seq > last, f"gw{self.number}: seq {seq} after {last}")
                    self.delivered[sender_id, session] = seq
                    for delta in decode_deltas(body):
                        self.on_delta(delta, sender_id, seq)
                case SendChallenge(sender_id, nonce):
                    peer = self.world.node(sender_id)
                    self.world.carry(self.challenge(peer, nonce), self, peer)
                case SendNack(sender_id, session, ranges):
                    peer = self.world.node(sender_id)
                    self.world.carry(self.nack(peer, session, ranges), self, peer)
                case SessionAccepted(sender_id) | StreamBroken(sender_id):
                    if self.source is not None and self.source[0] == sender_id:
                        self.source = None
                    if self.snapshot is not None and self.snapshot.holder == sender_id:
                        self.end_snapshot()

    def challenge(self, sender: Node, nonce: bytes) -> Callable[[], None]:
        def ask() -> None:
            session, seq = sender.session, sender.ring.high_water

            def answer() -> None:
                self.on_effects(
                    self.stream.on_challenge_reply(
                        sender.number, session, nonce, seq, now=self.world.now
                    )
                )

            self.world.carry(answer, sender, self)

        return ask

    def nack(
        self, sender: Node, session: int, ranges: tuple[tuple[int, int], ...]
    ) -> Callable[[], None]:
        def ask() -> None:
            if session != sender.session:
                return
            repair = sender.repairer.answer(self.number, ranges, now=self.world.now)
            for seq in repair.seqs:
                body = sender.ring.get(seq)
                assert body is not None, seq
                for peer in self.world.nodes if repair.to_all else [self]:
                    if peer is not sender:
                        self.world.carry(sender.say(peer, session, seq, body), sender, peer)

        return ask

    def on_delta(self, delta: Delta, sender_id: int, seq: int) -> None:
        effects = self.table.on_delta(delta, sender_id)
        if effects and isinstance(effects[0], Superseded):
            one = effects[0]
            self.carry_out(self.roles.on_superseded(one.group, one.epoch, one.holder_id))
            effects = self.table.on_delta(delta, sender_id)
        if isinstance(delta, Destroy) and delta.version.epoch >= self.group.epoch:
            self.buried[delta.contribution] = delta.version.epoch
        if effects and isinstance(effects[0], Hole) and self.source and seq > self.source[2]:
            self.source = None
        ops: list[KernelOp] = []
        for effect in effects:
            if isinstance(effect, Compared):
                self.on_compared(effect, seq)
            elif not isinstance(effect, Superseded | Hole):
                ops.append(effect)
        if ops:
            known = self.roles.states[GROUP].epoch
            self.world.check(
                delta.version.epoch >= known,
                f"gw{self.number} applied a delta of epoch {delta.version.epoch} at {known}",
            )
        if isinstance(delta, Destroy) and ops and delta.key in self.kernel:
            entry = self.kernel[delta.key].entry
            self.world.check(
                HASHES.contribution(entry, delta.incarnation) == delta.contribution,
                f"gw{self.number} ended another life of {delta.key}",
            )
        self.write(ops)
        if isinstance(delta, Upsert) and ops:
            self.world.check_life(self, delta)

    def on_compared(self, result: Compared, seq: int) -> None:
        if self.source is not None:
            watch, now = self.watch, self.world.now
            watch.compared(result.first, result.count, set(result.wrong), seq=seq, now=now)
            if watch.hopeless:
                self.source = None

    # -- snapshots

    def end_snapshot(self) -> None:
        if self.snapshot is not None:
            self.table.abort_snapshot(GROUP)
            self.watch.repair_failed()
            self.snapshot = None

    def work(self) -> None:
        """One slice of a snapshot, or the next request."""
        state = self.roles.states[GROUP]
        holder = self.world.node(state.holder_id) if state.holder_id else None
        if holder is None or holder is self or state.active:
            return
        session = self.stream.accepted_session(holder.number)
        if session is None or session != holder.session:
            return
        if self.snapshot is None:
            done = self.source is not None and self.source[:2] == (holder.number, session)
            stale = self.registry.count_flag(GROUP, Flag.STALE)
            buckets: frozenset[int] | None = None
            if done and not self.group.suspect and not stale:
                buckets = self.watch.to_repair
                if not buckets:
                    return
            theirs = holder.roles.states[GROUP]
            if not holder.ready or not theirs.active or theirs.epoch < state.epoch:
                return
            self.table.await_snapshot(GROUP, buckets)
            if buckets is not None:
                self.watch.repair_begins()
            self.table.begin_snapshot(GROUP)
            high, todo = holder.ring.high_water, list(holder.kernel)
            self.snapshot = Snapshot(holder.number, session, high, todo, buckets)
            return
        if not holder.ready or holder.session != self.snapshot.session:
            self.end_snapshot()
            return
        self.step(self.snapshot, holder)

    def step(self, snapshot: Snapshot, holder: Node) -> None:
        chunk = [snapshot.todo.pop() for _ in range(min(SNAPSHOT_CHUNK, len(snapshot.todo)))]
        for key in chunk:
            held, record = holder.kernel.get(key), holder.registry.get(key)
            if held is None or record is None:
                continue
            if HASHES.contribution(held.entry, record.incarnation) != record.contribution:
                continue  # Its events are not read yet.
            meant = snapshot.buckets
            if meant is not None and bucket_of(HASHES.flow(key)) not in meant:
                continue
            late = self.world.rng.uniform(0.0, 0.0 if self.world.calm else 0.03)
            delta = Upsert(held.entry, record.incarnation, record.version, True)
            snapshot.transit.append((self.world.now + late, delta))
        while snapshot.transit and snapshot.transit[0][0] <= self.world.now:
            delta = snapshot.transit.pop(0)[1]
            ops = self.table.on_snapshot_entry(delta, GROUP)
            self.write(ops)
            if ops:
                self.world.check_life(self, delta)
        if snapshot.todo or snapshot.transit:
            return
        self.write(self.table.end_snapshot(GROUP))
        for held in list(self.kernel.values()):
            if self.table.is_orphan(held.entry, GROUP):
                self.write([Remove(held.entry.key)])
        self.table.snapshot_swept(GROUP)
        high = holder.ring.high_water
        if snapshot.buckets is None:
            self.watch.begin_anew(seq=high)
            self.source = (snapshot.holder, snapshot.session, snapshot.seq)
        else:
            self.watch.repair_ends(snapshot.buckets, self.group.repaired, seq=high)
        self.snapshot = None


class SimWorld(Timeline):
    """Time, the network, the lease's oracle, traffic, faults and the checker."""

    def __init__(self, seed: int, *, cores: Cores | None = None, nodes: int = 3) -> None:
        super().__init__(seed)
        self.cores = cores or Cores()
        rng = self.rng
        self.faults = Faults(
            loss=rng.choice((0.0, 0.1, 0.3)),
            duplicate=rng.choice((0.0, 0.2)),
            delay_s=rng.choice((0.0005, 0.005, 0.03)),
            ring=rng.choice((8, 64, 1024)),
            restart=rng.choice((0.0, 0.002)),
            hand_on=rng.choice((0.0, 0.003)),
            vanish=rng.choice((0.0, 0.01)),
            overrun=rng.choice((0.0, 0.01)),
            away=rng.choice((0.0, 0.003)),
        )
        self.counter = 1
        self.holder = 1
        self.epoch = make_epoch(1, 1, 1)
        self.contiguous = self.told = False
        self.holders = [(self.epoch, self.holder)]
        self.translations: dict[tuple[FlowKey, int], Tuple] = {}
        self.count = nodes
        self.nodes = [Node(self, number) for number in range(1, nodes + 1)]
        self.known_since: dict[int, float] = {}

    def node(self, number: int) -> Node:
        return self.nodes[number - 1]

    # -- the network

    def carry(self, arrive: Callable[[], None], sender: Node, to: Node) -> None:
        """Over both links."""
        faults = self.faults
        if not self.calm and self.now < max(sender.away_until, to.away_until):
            return
        for _ in range(2):
            self.over_a_link(
                arrive, loss=faults.loss, duplicate=faults.duplicate, delay_s=faults.delay_s
            )

    # -- the run

    def run(self, turbulent_s: float = 1.5, calm_s: float = 3.0) -> None:
        end = turbulent_s + calm_s
        next_beacon = next_role = next_digest = 0.0
        settled: list[int] = []
        while self.now < end:
            if not self.calm and self.now >= turbulent_s:
                self.calm = True
            while self.next_due(self.now):
                self.pop()[1]()
            if not self.calm:
                self._turbulence()
            if self.now >= next_role:
                next_role = self.now + 0.05
                self._tell_roles()
            for node in self.nodes:
                node.read_events()
                node.on_effects(node.stream.tick(now=self.now))
                node.work()
                if self.now >= next_beacon:
                    node.beacon()
            if self.now >= next_beacon:
                next_beacon = self.now + BEACON_S
            if self.now >= next_digest:
                next_digest = self.now + DIGEST_S
                for node in self.nodes:
                    node.say_digest()
            if not settled and self.now >= turbulent_s + SETTLED_S:
                settled = [node.watch.repairs for node in self.nodes]
            self._serve_new_epochs()
            self.now += TICK_S
        self._converged()
        self._digests_agree(settled)

    def _tell_roles(self) -> None:
        for node in self.nodes:
            if not self.calm and (self.now < node.away_until or self.rng.random() < 0.3):
                continue  # Late by one more beat.
            active = node.number == self.holder
            self.told = self.told or active
            node.hear_role(
                RoleChange(GROUP, active, self.epoch, self.holder, active and self.contiguous)
            )

    def _serve_new_epochs(self) -> None:
        node = self.node(self.holder)
        if node.wants_epoch:
            self._claim(self.holder)

    def _claim(self, number: int) -> None:
        # cluster/proposer.py: an epoch that was never opened is no reason to call the next one
        # contiguous, unless it was contiguous itself.
        self.contiguous = number == self.holder and (self.contiguous or self.told)
        self.told = False
        self.counter += 1
        self.holder = number
        self.epoch = make_epoch(1, self.counter, number)
        self.holders.append((self.epoch, number))

    def _send_away(self, node: Node) -> None:
        """Others hold the group meanwhile, the one after the other, and perhaps it again."""
        node.away_until = self.now + self.rng.choice((0.1, 0.3))
        others = [other.number for other in self.nodes if other is not node]
        self._claim(self.rng.choice(others))
        then = self.rng.choice((*others, node.number))
        self.at(self.now + 0.09, lambda: self._claim(then))

    def _turbulence(self) -> None:
        rng, faults = self.rng, self.faults
        if rng.random() < faults.restart:
            rng.choice(self.nodes).start()
        if rng.random() < faults.hand_on:
            self._claim(rng.choice(self.nodes).number)
        if rng.random() < faults.away:
            self._send_away(rng.choice(self.nodes))
        if rng.random() < faults.vanish:
            rng.choice(self.nodes).lose_a_replica()
        holder = self.node(self.holder)
        if not holder.roles.states[GROUP].active:
            return
        if rng.random() < faults.overrun:
            self._traffic(holder)
            holder.lose_events()
        for _ in range(rng.randrange(4)):
            self._traffic(holder)

    def _traffic(self, holder: Node) -> None:
        rng = self.rng
        number = rng.randrange(24)
        proto = IPPROTO_TCP if number & 1 else IPPROTO_UDP
        orig = Tuple(AF_INET, proto, bytes([192, 0, 2, 9]), bytes([198, 51, 100, 1]), number, 80)
        key = FlowKey(0, orig)
        held = holder.kernel.get(key)
        if held is None:
            holder.happen(EventKind.NEW, self._born(key, holder))
        elif held.entry.tcp is not None and held.entry.tcp.state >= TIME_WAIT:
            # nf_conntrack_proto_tcp.c: a SYN in TIME_WAIT starts afresh.
            holder.happen(EventKind.DESTROY, held.entry)
            born = self._born(key, holder)
            holder.happen(EventKind.NEW, born)
            if rng.random() < 0.5 and born.tcp is not None:
                opened = replace(born, status=ASSURED, tcp=replace(born.tcp, state=3))
                holder.happen(EventKind.UPDATE, opened)
        elif rng.random() < 0.3:
            holder.happen(EventKind.DESTROY, held.entry)
        else:
            entry = held.entry
            tcp = entry.tcp
            if tcp is not None:
                tcp = replace(tcp, state=max(3, min(tcp.state + rng.randrange(2), 8)))
            holder.happen(EventKind.UPDATE, replace(entry, status=ASSURED, tcp=tcp))

    def _born(self, key: FlowKey, holder: Node) -> FlowEntry:
        """Each life of a tuple has another translation: mixing two lives up shows."""
        port = self.rng.getrandbits(16)
        reply = replace(inverse(key.orig), dst=bytes([198, 51, 100, 254]), dport=port)
        tcp = TcpState(1, 0x23, 0, 7, 7) if key.orig.proto == IPPROTO_TCP else None
        mark = hafw_mark(GROUP, holder.number, holder.number)
        return FlowEntry(key, reply, OPENING, 60, mark, tcp)

    # -- the checker

    def check_life(self, node: Node, delta: Upsert) -> None:
        """What `node` has just been told and wrote."""
        record = node.registry.get(delta.entry.key)
        life = HASHES.contribution(delta.entry, delta.incarnation)
        self.check(
            record is not None
            and (record.incarnation, record.contribution) == (delta.incarnation, life),
            f"gw{node.number} keeps another life of {delta.entry.key} than it was told of",
        )
        self.check(
            node.buried.get(life, 0) < delta.version.epoch,
            f"gw{node.number} revives {delta.entry.key}",
        )

    def check_translation(self, delta: Delta) -> None:
        if isinstance(delta, Upsert):
            said = delta.entry.key, delta.incarnation
            known = self.translations.setdefault(said, delta.entry.reply)
            self.check(
                known == delta.entry.reply, f"{delta.entry.key} has two translations in one life"
            )

    def check_windows(self, node: Node) -> None:
        """`node` begins to forward: what it has learnt of a flow's windows is still true."""
        for held in node.kernel.values():
            if held.learnt and held.entry.tcp is not None and publishable(held.entry):
                between = [who for epoch, who in self.holders if epoch > held.learnt]
                self.check(
                    all(who == node.number for who in between),
                    f"gw{node.number} forwards {held.entry.key} again with its windows of before",
                )

    def _converged(self) -> None:
        holder = self.node(self.holder)
        wanted = _view(holder)
        for node in self.nodes:
            have = _view(node)
            if have != wanted:
                missing = [str(key) for key in wanted.keys() - have]
                extra = [str(key) for key in have.keys() - wanted]
                differ = [str(k) for k in wanted.keys() & have.keys() if wanted[k] != have[k]]
                self.check(
                    False,
                    f"gw{node.number} against holder gw{holder.number}: missing {missing}, "
                    f"extra {extra}, differing {differ}",
                )
            if node is holder:
                continue
            for held in node.kernel.values():
                self.check(
                    held.learnt == 0 or not publishable(held.entry),
                    f"gw{node.number} holds {held.entry.key} with windows of epoch {held.learnt}",
                )

    def _digests_agree(self, settled: list[int]) -> None:
        for node, repairs in zip(self.nodes, settled, strict=True):
            if node.number == self.holder or not self.cores.digests:
                continue
            watch = node.watch
            self.check(
                watch.repairs == repairs and not watch.open_buckets,
                f"gw{node.number} repairs what is equal: {watch.repairs - repairs} times, "
                f"{watch.open_buckets} buckets open",
            )
            clean_at = watch.clean_at
            self.check(
                clean_at is not None and clean_at > self.now - 5 * DIGEST_S,
                f"gw{node.number}: digests not equal since {clean_at}",
            )


def _view(node: Node) -> dict[FlowKey, object]:
    return {
        key: (held.entry.reply, held.entry.status, held.entry.tcp and held.entry.tcp.state)
        for key, held in node.kernel.items()
        if publishable(held.entry) and mark_group(held.entry.mark) == GROUP
    }
