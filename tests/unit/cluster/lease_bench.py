"""One lease core among peers that a test plays by hand: envelopes in, effects out."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from cluster.heartbeat import (
    Accepted,
    Beat,
    Envelope,
    GroupBeat,
    Heard,
    Message,
    Prepare,
    Promise,
    Propose,
    Voters,
)
from cluster.lease import LeaseCore
from cluster.lease_types import Arrived, Effect, GroupParams, LeaseParams, Send, SyncdSaid
from hafw.config.model import VoterSet
from hafw.messages import Position, SyncBeacon

MS = 1_000_000
VOTERS = VoterSet(id=1, members=(1, 2, 9))
VOTED = Voters(VOTERS.id, VOTERS.members)
T = 100 * MS
HEARTBEAT = 20 * MS
USABLE = 99 * MS
"""T(1-ε)."""
KEPT = 101 * MS
"""T(1+ε)."""
START = 50_000 * MS
WORSE = 260 * MS
"""How long a peer's upstream check must be better: 200 ms and three heartbeats."""
E = TypeVar("E")
M = TypeVar("M")


def params(node_id: int = 1, voters: VoterSet = VOTERS) -> LeaseParams:
    return LeaseParams(
        node_id=node_id,
        gateway=node_id != 9,
        voters=voters,
        groups=(GroupParams(1, (1, 2), (("lan", "lan0"),), upstream_ns=WORSE),),
        heartbeat_ns=HEARTBEAT,
        lease_ns=T,
    )


class Peer:
    """A peer's session as the test plays it."""

    def __init__(self, node_id: int, session: int, voters: VoterSet = VOTERS) -> None:
        self.node_id = node_id
        self.session = session
        self.voters = voters
        self.seq = 0

    def envelope(self, *messages: Message, heard: list[Heard], to: int = 0) -> Envelope:
        self.seq += 1
        return Envelope(
            session=self.session,
            seq=self.seq,
            to=to,
            voters_id=self.voters.id,
            voters_hash=self.voters.hash,
            heard=heard,
            messages=list(messages),
        )


class Bench:
    """The core of one node, its clock, and peers 2 (or 1) and 9."""

    def __init__(self, node_id: int = 1, *, era: int = 3, era_durable: bool = True) -> None:
        self.now = START
        self.core = LeaseCore(
            params(node_id), era=era, era_durable=era_durable, rng=Random(1), now_ns=self.now
        )
        self.own = node_id
        self.peers = {n: Peer(n, 1000 + n) for n in VOTERS.members if n != node_id}
        self.synced = True
        self.applied: list[Position] = []
        self.epochs = dict.fromkeys(self.peers, 0)

    def hear(self, node: int, *messages: Message, mutual: bool = True) -> list[Effect]:
        heard = [Heard(self.own, self.core.view.sessions.own, mutual)]
        envelope = self.peers[node].envelope(*messages, heard=heard)
        return self.core.handle(Arrived(node, envelope), now_ns=self.now)

    def beat(
        self,
        node: int,
        *,
        active: int = 0,
        holder: int = 0,
        synced: bool = True,
        era: int = 3,
        able: bool = True,
        reason: str = "",
        upstream: bool = True,
    ) -> list[Effect]:
        gateway = node != 9
        votes = self.now >= START + 2020 * MS  # They all started together.
        group = GroupBeat(
            group=1,
            promised=self.epochs[node],
            active=active,
            holder=holder,
            synced=gateway and synced,
            synced_seen=self.synced or synced,
            reason=reason,
            upstream=upstream,
        )
        return self.hear(node, Beat(era, votes, gateway and able, [group], [], VOTED, None))

    def beacon(self) -> list[Effect]:
        beacon = SyncBeacon(
            synced={1: self.synced},
            reasons={} if self.synced else {1: "behind"},
            applied=self.applied,
            stale_entries=0,
        )
        return self.core.handle(SyncdSaid(beacon), now_ns=self.now)

    def pass_time(
        self, duration_ns: int, each: Callable[[], list[Effect]] | None = None
    ) -> list[Effect]:
        """Tick at every deadline; `each` heartbeat do what the peers and syncd would do."""
        effects: list[Effect] = []
        until = self.now + duration_ns
        next_each = self.now
        while True:
            due = self.core.deadline(now_ns=self.now)
            if each is not None:
                due = min(due, next_each)
            if due > until:
                break
            self.now = max(self.now, due)
            if each is not None and self.now >= next_each:
                next_each = self.now + HEARTBEAT
                effects += each()
            effects += self.core.tick(now_ns=self.now)
        self.now = until
        return effects

    def calm(self) -> list[Effect]:
        """One heartbeat's worth of peers that are alive, and of syncd."""
        effects = self.beacon()
        for node in self.peers:
            effects += self.beat(node)
        return effects

    def calm_with(self, *, synced: bool) -> Callable[[], list[Effect]]:
        """Like `calm`, with what peer gateways say of their syncd."""

        def each() -> list[Effect]:
            effects = self.beacon()
            for node in self.peers:
                effects += self.beat(node, synced=synced)
            return effects

        return each

    def answer(self, effects: list[Effect], voter: int = 9) -> list[Effect]:
        """Let one voter grant everything asked of it, to the end."""
        done: list[Effect] = []
        while True:
            asks = [m for m in messages(effects) if isinstance(m, Prepare | Propose)]
            if not asks:
                return done
            effects = []
            for ask in asks:
                self.epochs[voter] = max(self.epochs[voter], ask.epoch)
                reply: Message
                if isinstance(ask, Prepare):
                    reply = Promise(1, ask.epoch, 3, 0, 0, False, True)
                else:
                    reply = Accepted(1, ask.epoch, ask.request)
                effects += self.hear(voter, reply)
            done += effects

    def hold(self) -> list[Effect]:
        """From the start to ACTIVE, with voter 9's grant."""
        effects = self.pass_time(2100 * MS, self.calm)
        done = self.answer(effects)
        if not self.core.groups[1].active:
            effects = self.pass_time(T, self.calm)
            done = self.answer(effects)
        assert self.core.groups[1].active
        return done

    def renew(self) -> list[Effect]:
        """A heartbeat in which voter 9 grants the renewal."""
        effects = self.calm()
        effects += self.pass_time(HEARTBEAT)
        return effects + self.answer(effects)


def messages(effects: list[Effect]) -> list[Message]:
    """Everything sent, in order."""
    return [m for effect in effects if isinstance(effect, Send) for m in effect.envelope.messages]


def sent(effects: list[Effect], kind: type[M]) -> list[M]:
    return [message for message in messages(effects) if isinstance(message, kind)]


def done(effects: list[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]
