"""Clusters of syncd's real cores on a fake clock, network and kernel.

What is real: SendRing, StreamReceiver, Registry, Publisher, OwnPass, ReplicaTable, Roles and the
delta codec. What is modelled: sealing (none), the kernel (a dictionary), leased (an oracle that
hands the group on and tells the nodes late), snapshots (a reliable channel, chunk by chunk, read
from the kernel at the time of the chunk), the process around the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
)
from hafw.human import make_epoch
from hafw.messages import RoleChange
from sync.ctnetlink import EventKind
from sync.publish import Publisher
from sync.registry import Registry
from sync.replica import ReplicaTable
from sync.roles import Roles
from sync.stream import StreamReceiver
from tests.simulation.sync_checks import DIGEST_S, SyncChecks
from tests.simulation.sync_node import GROUP, Node

__all__ = ["Cores", "SimWorld"]

BEACON_S = 0.02
SETTLED_S = 2.0
"""Into the calm: from then on nothing may be left to repair."""
TICK_S = 0.004
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


class SimWorld(SyncChecks):
    """Time, the network, the lease's oracle, traffic and faults."""

    def __init__(self, seed: int, *, cores: Cores | None = None, nodes: int = 3) -> None:
        self.cores = cores or Cores()
        super().__init__(seed, digests=self.cores.digests)
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
        self.epoch = make_epoch(1, 1, 1)
        self.contiguous = self.told = False
        self.holders = [(self.epoch, self.holder)]
        self.count = nodes
        self.nodes = [Node(self, number) for number in range(1, nodes + 1)]
        self.known_since: dict[int, float] = {}

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
