"""One gateway of the simulated replication: a kernel that survives, and a syncd of real cores.

What the wires carry, who holds the group and what happens when is the world's
(`tests.simulation.sync_world`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hafw.flow import FlowKey
from hafw.messages import RoleChange
from sync.adopt import OwnPass
from sync.delta import Delta, Destroy, Upsert, decode_deltas, encode_deltas
from sync.digests import DigestWatch, say_digest
from sync.flowhash import FlowHash, bucket_of
from sync.ops import KernelOp, Remove
from sync.publish import LookUp, PublishEffect, publishable
from sync.registry import Flag
from sync.replica import Compared, Hole, ReplicaGroup, Superseded
from sync.ring import Repairer, SendRing
from sync.roles import BecomeStale, Follow, RoleEffect, StartHolding, StopHolding
from sync.stream import (
    Deliver,
    SendChallenge,
    SendNack,
    SessionAccepted,
    StreamBroken,
    StreamEffect,
)
from tests.simulation.sync_kernel import FakeKernel

if TYPE_CHECKING:
    from tests.simulation.sync_world import SimWorld

__all__ = ["GROUP", "HASHES", "Node"]

GROUP = 1
HASHES = FlowHash(bytes(range(1, 33)))
SNAPSHOT_CHUNK = 3


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


class Node(FakeKernel):
    """One gateway: a kernel that survives, and a syncd that may restart."""

    def __init__(self, world: SimWorld, number: int) -> None:
        super().__init__(world)
        self.number = number
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
