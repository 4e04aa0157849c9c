"""Two to eight nodes that all send and all receive, on a fake clock and a bad network.

What is real: SendRing, Repairer, StreamReceiver, Ledger and ReplayWindow. What is modelled:
sealing (none), the loop around the cores (wakes at arrivals and deadlines), the socket's buffer
(bounded), snapshots (a reliable transfer that needs a way there and back). Each sender's state is
a dictionary of registers; each datagram sets one. A receiver that has a whole snapshot must hold
what the sender held at that position.

The seed draws the mix: nodes, links, loss, duplication, delay (and so order), ring size, restarts,
pauses, links that carry in one direction only, cuts longer than the ring, and somebody who
replays what he recorded. First all of it at once (safety), then none of it (liveness).

The checkers know nothing of the code:

* *order*: per receiver and session, seq goes up by one, or a `StreamBroken` names what is lost;
* *truth*: what is delivered is what was sent under that seq;
* *no silent hole*: a receiver without an open doubt holds the sender's registers as of its seq;
* *proof*: an accepted session was alive after its receiver began to ask; none comes back;
* *traffic*: NACKs, repairs and challenges keep to bounds in any window, and cease in the calm;
* *acknowledgement*: a sender is never told more than is applied;
* *liveness*: in the calm every receiver gets to hold what every sender holds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sync.ledger import Ledger
from sync.ring import REPAIR_HOLD_S, Repairer, SendRing
from sync.stream import (
    CHALLENGE_INTERVAL_S,
    CHALLENGE_VALID_S,
    Deliver,
    SendChallenge,
    SendNack,
    SessionAccepted,
    StreamBroken,
    StreamEffect,
    StreamReceiver,
)
from sync.wire import ReplayWindow
from tests.simulation.timeline import Timeline

BEACON_S = 0.02
REGISTERS = 6
SOCKET_DATAGRAMS_MAX = 64
SNAPSHOT_S = 0.015
TURBULENT_S, CALM_S = 0.7, 1.9
NACKS_WITHOUT_PROGRESS_MAX = 8
"""In 50 ms: after 1, 2, 4, 8, 16 and 32 ms, and what two links make of it."""


@dataclass(frozen=True)
class Cores:
    """The cores under test; a planted mistake replaces one."""

    stream: type[StreamReceiver] = StreamReceiver
    ring: type[SendRing] = SendRing
    repairer: type[Repairer] = Repairer
    acknowledges_holes: bool = False


@dataclass
class Faults:
    """Drawn from the seed."""

    loss: float
    common_loss: float
    """Before the switch: a datagram that nobody gets over that link."""
    duplicate: float
    delay_s: float
    ring: int
    restart: float
    pause: float
    cut: float
    replay: float


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


class StreamWorld(Timeline):
    """Time, the network, faults and the checkers."""

    def __init__(
        self, seed: int, *, cores: Cores | None = None, nodes: int | None = None,
        faults: Faults | None = None,
    ) -> None:  # fmt: skip
        super().__init__(seed)
        rng = self.rng
        self.cores = cores or Cores()
        self.links = rng.choice((1, 2, 2))
        drawn = Faults(
            loss=rng.choice((0.0, 0.02, 0.2)),
            common_loss=rng.choice((0.0, 0.02, 0.2)),
            duplicate=rng.choice((0.0, 0.2)),
            delay_s=rng.choice((0.0003, 0.002, 0.01)),
            ring=rng.choice((8, 64, 1024)),
            restart=rng.choice((0.0, 2.0)),
            pause=rng.choice((0.0, 2.0)),
            cut=rng.choice((0.0, 5.0)),
            replay=rng.choice((0.0, 100.0)),
        )
        self.faults = faults or drawn
        self.numbers = range(1, (nodes or rng.choice((2, 3, 3, 4, 8))) + 1)
        self.rate = rng.choice((100.0, 400.0)) / len(self.numbers)
        self.runs: dict[int, Run] = {}
        self.counts: Counter[str] = Counter()
        self.asks: dict[tuple[int, int, str], deque[float]] = {}
        self.repaired: dict[tuple[int, int], tuple[float, int]] = {}
        self.challenged: dict[tuple[int, int], deque[float]] = {}
        """(Run of the receiver, sender) -> when it asked last; any of these may be answered."""
        self.covered: dict[tuple[int, int], int] = {}
        """(Run of the receiver, session) -> up to where it was seen to hold everything."""
        self.one_way: dict[tuple[int, int, int], float] = {}
        self.recorded: deque[Datagram] = deque(maxlen=400)
        self.answers: deque[Datagram] = deque(maxlen=100)
        self.nodes = [Node(self, number) for number in self.numbers]

    def node(self, number: int) -> Node:
        return self.nodes[number - 1]

    def count(self, what: str) -> None:
        self.counts[what] += 1

    # -- the network

    def multicast(self, datagram: Datagram) -> None:
        self.count(datagram.kind)
        self.recorded.append(datagram)
        for link in range(self.links):
            if not self.calm and self.rng.random() < self.faults.common_loss:
                continue
            for number in self.numbers:
                if number != datagram.sender:
                    self._carry(link, number, datagram)

    def unicast(
        self, to: int, datagram: Datagram, *, everywhere: bool = False, attempt: int = 0
    ) -> None:
        self.count(datagram.kind)
        (self.answers if datagram.kind == "reply" else self.recorded).append(datagram)
        for link in range(self.links) if everywhere else [attempt % self.links]:
            self._carry(link, to, datagram)

    def _carry(self, link: int, to: int, datagram: Datagram) -> None:
        faults, node = self.faults, self.node(to)
        if not self._cut(link, datagram.sender, to):
            self.over_a_link(
                lambda: node.hear(datagram),
                loss=faults.loss, duplicate=faults.duplicate, delay_s=faults.delay_s,
            )  # fmt: skip

    def _cut(self, link: int, sender: int, to: int) -> bool:
        return not self.calm and self.one_way.get((link, sender, to), 0.0) > self.now

    def way(self, one: int, other: int) -> bool:
        """Is there a link that carries both ways?"""
        return any(
            not self._cut(link, one, other) and not self._cut(link, other, one)
            for link in range(self.links)
        )

    # -- the run

    def run(self) -> Counter[str]:
        for node in self.nodes:
            self._every(BEACON_S, node.beacon, node)
            self._every(0.01, node.work, node)
        self._publish_soon()
        if self.faults.replay:
            self._every(1 / self.faults.replay, self._replay)
        self._every(0.01, self._turbulence)
        self._until(TURBULENT_S)
        self.calm = True
        for node in self.nodes:
            node.paused_until = self.now
            node.resume()
        self._until(TURBULENT_S + CALM_S - 0.3)
        before = self.counts.copy()
        self._until(TURBULENT_S + CALM_S)
        self._converged()
        for kind in ("nack", "challenge", "repair"):
            self.check(self.counts[kind] == before[kind], f"{kind} in the calm")
        return self.counts

    def _until(self, end: float) -> None:
        while self.next_due(end):
            self.now, act = self.pop()
            act()
        self.now = end

    def _every(self, period_s: float, act: Callable[[], None], node: Node | None = None) -> None:
        def again() -> None:
            if node is None or self.now >= node.paused_until:
                act()
            self.at(self.now + period_s, again)

        self.at(self.now + self.rng.uniform(0, period_s), again)

    def _publish_soon(self) -> None:
        def again() -> None:
            if self.now > TURBULENT_S + 0.1:
                return
            node = self.rng.choice(self.nodes)
            if self.now >= node.paused_until:
                for _ in range(self.rng.choice((1, 1, 1, 5))):
                    node.publish()
            self.at(self.now + self.rng.expovariate(self.rate * len(self.nodes)), again)

        again()

    def _replay(self) -> None:
        """Somebody on a link sends what he has recorded, to anybody."""
        if not self.calm and self.recorded:
            datagram = self.rng.choice(self.recorded)
            to = self.rng.choice(self.numbers)
            if to != datagram.sender:
                self.node(to).hear(datagram)

    def _answer_falsely(self, node: Node, sender: int) -> None:
        """The same somebody is quicker than the sender, with an answer of long ago."""
        answers = [d for d in self.answers if d.sender == sender]
        if answers and self.faults.replay and not self.calm:
            answer = self.rng.choice(answers)
            self.at(self.now + 0.00005, lambda: node.hear(answer))

    def _turbulence(self) -> None:
        if self.calm:
            return
        rng, faults = self.rng, self.faults
        node = rng.choice(self.nodes)
        if rng.random() < faults.restart / 100:
            node.start()
        if rng.random() < faults.pause / 100 and self.now >= node.paused_until:
            node.paused_until = self.now + rng.choice((0.03, 0.2))
            self.at(node.paused_until, node.resume)
        if rng.random() < faults.cut / 100:
            peer = rng.choice(self.nodes)
            links = rng.choice((range(self.links), [rng.randrange(self.links)]))
            for link in links:
                until = self.now + rng.choice((0.02, 0.1, 0.4))
                self.one_way[link, node.number, peer.number] = until
                if rng.random() < 0.3:
                    self.one_way[link, peer.number, node.number] = until

    # -- checkers

    def on_deliver(self, node: Node, sender: int, session: int, seq: int, text: bytes) -> None:
        held = node.held.get(sender)
        self.check(
            held is not None and sender in node.accepted,
            f"node {node.number} was delivered a session of {sender} that nobody accepted",
        )
        assert held is not None
        self.check(
            session == node.stream.accepted_session(sender),
            f"node {node.number} was delivered another session of {sender}",
        )
        self.check(
            seq == held.last + 1, f"node {node.number}: seq {seq} of {sender} after {held.last}"
        )
        run = self.runs[session]
        self.check(text == run.log[seq - 1], f"node {node.number}: seq {seq} is not what was said")
        held.last = seq
        if seq > held.snapshot:
            register, _, value = text.partition(b"=")
            held.registers[int(register)] = int(value)
        if held.whole:
            self.check_whole(node, sender, session)
        self.asks.pop((node.number, sender, "nack"), None)

    def check_whole(self, node: Node, sender: int, session: int) -> None:
        held = node.held[sender]
        self.check(
            held.registers == self.runs[session].states[held.position],
            f"node {node.number} has a hole in what {sender} said up to {held.position}",
        )
        self.covered[node.run.session, session] = held.position

    def on_accepted(self, node: Node, sender: int, session: int, position: int) -> None:
        run = self.runs[session]
        asked = self.challenged.pop((node.run.session, sender), deque())
        self.check(
            bool(asked) and run.died_at >= max(asked[0], self.now - CHALLENGE_VALID_S),
            f"node {node.number} accepted a dead session of {sender}",
        )
        self.check(
            node.accepted.get(sender, -1.0) < run.born_at or sender not in node.accepted,
            f"node {node.number} accepted an older session of {sender} again",
        )
        node.accepted[sender] = run.born_at
        node.held[sender] = Held(position)
        node.fetching.pop(sender, None)
        self.asks.pop((node.number, sender, "nack"), None)

    def on_broken(self, node: Node, sender: int, session: int, first: int, last: int) -> None:
        held = node.held[sender]
        self.check(
            session == node.stream.accepted_session(sender)
            and first == held.last + 1
            and last >= first,
            f"node {node.number}: broken {first} to {last} of {sender} after {held.last}",
        )
        held.last = last
        held.whole = False
        node.fetching.pop(sender, None)
        self.count("broken")
        self.asks.pop((node.number, sender, "nack"), None)

    def on_ask(self, node: Node, sender: int, kind: str) -> None:
        """Nobody asks too often: any window, any cause."""
        if kind == "challenge":
            self._answer_falsely(node, sender)
            who = node.run.session, sender
            self.challenged.setdefault(who, deque(maxlen=4)).append(self.now)
        asks = self.asks.setdefault((node.number, sender, kind), deque())
        asks.append(self.now)
        window_s, most = {
            "nack": (0.05, NACKS_WITHOUT_PROGRESS_MAX),
            "challenge": (10 * CHALLENGE_INTERVAL_S, 12),
        }[kind]
        while asks[0] < max(self.now - window_s, node.born_at):
            asks.popleft()
        self.check(
            len(asks) <= most,
            f"node {node.number} said {len(asks)} times {kind} to {sender} in {window_s} s",
        )

    def on_repair(self, node: Node, seq: int, whom: int) -> None:
        """What went to all is not sent again within the moment."""
        self.count("repair")
        at, before = self.repaired.get((node.run.session, seq), (-1.0, 0))
        self.check(
            before not in (0, whom) or self.now - at >= REPAIR_HOLD_S * 0.999,
            f"node {node.number} repaired seq {seq} twice in {(self.now - at) * 1e3:.2f} ms",
        )
        self.repaired[node.run.session, seq] = (self.now, whom)

    def check_ack(self, node: Node, session: int, seq: int) -> None:
        self.check(
            seq <= self.covered.get((node.run.session, session), 0),
            f"node {node.number} confirms seq {seq} and has a hole before it",
        )

    def _converged(self) -> None:
        for node in self.nodes:
            for sender in self.numbers:
                if sender == node.number:
                    continue
                run, view = self.node(sender).run, node.stream.view(sender)
                self.check(
                    view is not None and view.session == run.session,
                    f"node {node.number} has not accepted the session of {sender}",
                )
                assert view is not None
                held = node.held[sender]
                self.check(
                    view.applied_seq == len(run.log) and view.gap_since is None,
                    f"node {node.number} is at {view.applied_seq} of {sender}'s {len(run.log)}",
                )
                self.check(held.whole, f"node {node.number} never got a snapshot of {sender}")
                self.check(
                    held.registers == run.states[-1],
                    f"node {node.number} holds something else than {sender}",
                )
                self.check(
                    self.node(sender).ledger.at_risk(node.number) == 0,
                    f"node {sender} does not know what {node.number} has",
                )
