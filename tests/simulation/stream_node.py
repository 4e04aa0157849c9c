"""A node of the simulated stream: a machine that may pause, and its syncd's real cores.

What it holds of each sender are registers; each datagram sets one. Snapshots are a reliable
transfer that needs a way there and back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sync.ledger import Ledger
from sync.stream import (
    Deliver,
    SendChallenge,
    SendNack,
    SessionAccepted,
    StreamBroken,
    StreamEffect,
)
from sync.wire import ReplayWindow

if TYPE_CHECKING:
    from tests.simulation.stream_world import StreamWorld

__all__ = ["Datagram", "Held", "Node", "Run"]

REGISTERS = 6
SOCKET_DATAGRAMS_MAX = 64
SNAPSHOT_S = 0.015


@dataclass
class Held:
    """What one receiver has of one sender's session."""

    last: int
    """The newest seq delivered or declared lost."""
    registers: dict[int, int] = field(default_factory=dict)
    whole: bool = False
    snapshot: int = 0
    """The snapshot's position: what was said up to it does not count any more."""

    @property
    def position(self) -> int:
        return max(self.last, self.snapshot)


@dataclass
class Run:
    """One run of a sender's syncd, as the checker remembers it."""

    session: int
    born_at: float
    died_at: float = float("inf")
    log: list[bytes] = field(default_factory=list)
    states: list[dict[int, int]] = field(default_factory=lambda: [{}])
    """The registers after each seq."""

    def set(self, register: int, value: int) -> bytes:
        self.states.append({**self.states[-1], register: value})
        self.log.append(b"%d=%d" % (register, value))
        return self.log[-1]


@dataclass(frozen=True)
class Datagram:
    """Stands for a sealed one. `seq` counts for each kind."""

    sender: int
    session: int
    kind: str
    seq: int
    body: object


class Node:
    """A machine, and the syncd that runs on it now."""

    def __init__(self, world: StreamWorld, number: int) -> None:
        self.world = world
        self.number = number
        self.paused_until = 0.0
        self.socket: deque[Datagram] = deque()
        self.born_at = 0.0
        self.run = Run(0, 0.0)
        self.start()

    def start(self) -> None:
        world, rng = self.world, self.world.rng
        self.run.died_at = world.now
        self.run = Run(rng.getrandbits(63), world.now)
        world.runs[self.run.session] = self.run
        self.born_at = world.now
        self.ring = world.cores.ring(world.faults.ring)
        self.repairer = world.cores.repairer(self.ring, peers=len(world.numbers) - 1)
        self.ledger = Ledger(world.faults.ring, 0)
        self.stream = world.cores.stream(draw_nonce=lambda: rng.randbytes(16), spread=rng.random)
        self.said: Counter[str] = Counter()
        self.windows: dict[tuple[int, int, str], ReplayWindow] = {}
        self.held: dict[int, Held] = {}
        self.fetching: dict[int, tuple[int, float]] = {}
        self.asked_at: dict[int, float] = {}
        self.accepted: dict[int, float] = {}
        self.confirmed: dict[int, tuple[int, int]] = {}
        self.socket.clear()

    # -- sending

    def datagram(self, kind: str, body: object) -> Datagram:
        self.said[kind] += 1
        return Datagram(self.number, self.run.session, kind, self.said[kind], body)

    def publish(self) -> None:
        rng = self.world.rng
        text = self.run.set(rng.randrange(REGISTERS), rng.getrandbits(32))
        seq = self.ring.high_water + 1
        self.ring.push(seq, text)
        self.ledger.sent(seq, seq, now=self.world.now)
        self.world.multicast(Datagram(self.number, self.run.session, "deltas", seq, text))

    def beacon(self) -> None:
        acks = {}
        for peer in self.world.numbers:
            view = self.stream.view(peer)
            if view is None:
                continue
            if self.held[peer].whole or self.world.cores.acknowledges_holes:
                self.confirmed[peer] = view.session, view.applied_seq
            session, seq = self.confirmed.get(peer, (0, 0))
            acks[peer] = (view.session, seq if session == view.session else 0)
            self.world.check_ack(self, view.session, acks[peer][1])
        marks = (self.ring.high_water, self.ring.low_water, acks)
        self.world.multicast(self.datagram("beacon", marks))

    # -- receiving

    def hear(self, datagram: Datagram) -> None:
        if self.world.now < self.paused_until:
            if len(self.socket) < SOCKET_DATAGRAMS_MAX:
                self.socket.append(datagram)
            return
        self.take(datagram)
        self.wake()

    def resume(self) -> None:
        while self.socket and self.world.now >= self.paused_until:
            self.take(self.socket.popleft())
        self.wake()

    def wake(self) -> None:
        """After whatever happened: what is due now, and when to come back."""
        if self.world.now < self.paused_until:
            return
        self.on_effects(self.stream.tick(now=self.world.now))
        deadline = self.stream.deadline()
        if deadline is not None:
            self.world.at(max(deadline, self.world.now + 1e-4), self.wake)

    def take(self, datagram: Datagram) -> None:
        """The rules of `sync.inbox`."""
        now, sender, session = self.world.now, datagram.sender, datagram.session
        body = datagram.body
        accepted = self.stream.accepted_session(sender) == session
        match datagram.kind:
            case "deltas":
                assert isinstance(body, bytes)
                self.on_effects(
                    self.stream.on_datagram(sender, session, datagram.seq, body, now=now)
                )
            case "beacon":
                if accepted and not self.fresh(datagram):
                    return
                assert isinstance(body, tuple)
                high, low, acks = body
                if accepted:
                    self.on_ack(sender, acks)
                self.on_effects(self.stream.on_beacon(sender, session, high, low, now=now))
            case "challenge":
                reply = (body, self.ring.high_water)
                self.world.unicast(sender, self.datagram("reply", reply), everywhere=True)
            case "reply":
                assert isinstance(body, tuple)
                nonce, position = body
                self.on_effects(
                    self.stream.on_challenge_reply(sender, session, nonce, position, now=now)
                )
            case "nack":
                assert isinstance(body, tuple)
                stated, ranges = body
                if accepted and stated == self.run.session and self.fresh(datagram):
                    self.repair(sender, ranges, datagram.seq)

    def fresh(self, datagram: Datagram) -> bool:
        key = (datagram.sender, datagram.session, datagram.kind)
        return self.windows.setdefault(key, ReplayWindow(1024)).accept(datagram.seq)

    def repair(self, peer: int, ranges: tuple[tuple[int, int], ...], seq: int) -> None:
        repair = self.repairer.answer(peer, ranges, now=self.world.now)
        for wanted in repair.seqs:
            text = self.ring.get(wanted)
            assert text is not None, wanted
            self.world.on_repair(self, wanted, 0 if repair.to_all else peer)
            again = Datagram(self.number, self.run.session, "deltas", wanted, text)
            if repair.to_all:
                self.world.multicast(again)
            else:
                self.world.unicast(peer, again, attempt=seq // self.world.links)

    def on_ack(self, peer: int, acks: dict[int, tuple[int, int]]) -> None:
        session, seq = acks.get(self.number, (0, 0))
        if session == self.run.session:
            self.ledger.on_ack(peer, seq, 0.0, now=self.world.now)

    def on_effects(self, effects: list[StreamEffect]) -> None:
        world = self.world
        for effect in effects:
            match effect:
                case Deliver(sender, session, seq, text):
                    world.on_deliver(self, sender, session, seq, text)
                case SendChallenge(sender, nonce):
                    world.on_ask(self, sender, "challenge")
                    world.unicast(sender, self.datagram("challenge", nonce), everywhere=True)
                case SendNack(sender, session, ranges, attempt):
                    world.on_ask(self, sender, "nack")
                    nack = self.datagram("nack", (session, ranges))
                    world.unicast(sender, nack, attempt=attempt)
                case SessionAccepted(sender, session, position):
                    world.on_accepted(self, sender, session, position)
                case StreamBroken(sender, session, first, last):
                    world.on_broken(self, sender, session, first, last)

    # -- snapshots

    def work(self) -> None:
        """Ask for what is not whole; what was asked for arrives after a while."""
        now = self.world.now
        if now < self.paused_until:
            return
        for sender, held in self.held.items():
            session = self.stream.accepted_session(sender)
            if held.whole or session is None or not self.world.way(self.number, sender):
                continue
            if sender in self.fetching and now - self.fetching[sender][1] < 0.1:
                continue
            peer = self.world.node(sender)
            if peer.run.session != session or now < peer.paused_until:
                continue
            began = peer.ring.high_water
            self.fetching[sender] = began, now
            self.world.at(now + SNAPSHOT_S, self.finish(sender, session, began, now))

    def finish(self, sender: int, session: int, began: int, asked_at: float) -> Callable[[], None]:
        run, mine = self.world.runs[session], self.run

        def done() -> None:
            if self.run is not mine or self.fetching.get(sender) != (began, asked_at):
                return
            del self.fetching[sender]
            view = self.stream.view(sender)
            if view is None or view.session != session or not self.world.way(self.number, sender):
                return
            held = self.held[sender]
            held.whole, held.snapshot = True, max(began, held.last)
            held.registers = dict(run.states[held.snapshot])
            self.world.check_whole(self, sender, session)

        return done
