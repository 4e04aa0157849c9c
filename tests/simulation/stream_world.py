"""Two to eight nodes that all send and all receive, on a fake clock and a bad network.

What is real: SendRing, Repairer, StreamReceiver, Ledger and ReplayWindow. What is modelled:
sealing (none), the loop around the cores (wakes at arrivals and deadlines), the socket's buffer
(bounded), snapshots (a reliable transfer that needs a way there and back). Each sender's state is
a dictionary of registers; each datagram sets one. A receiver that has a whole snapshot must hold
what the sender held at that position.

The seed draws the mix: nodes, links, loss, duplication, delay (and so order), ring size, restarts,
pauses, links that carry in one direction only, cuts longer than the ring, and somebody who
replays what he recorded. First all of it at once (safety), then none of it (liveness).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from sync.ring import Repairer, SendRing
from sync.stream import StreamReceiver
from tests.simulation.stream_checks import StreamChecks
from tests.simulation.stream_node import Datagram, Node

__all__ = ["BEACON_S", "Cores", "Faults", "StreamWorld"]

BEACON_S = 0.02
TURBULENT_S, CALM_S = 0.7, 1.9


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


class StreamWorld(StreamChecks):
    """Time, the network and faults."""

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
        self.one_way: dict[tuple[int, int, int], float] = {}
        self.recorded: deque[Datagram] = deque(maxlen=400)
        self.answers: deque[Datagram] = deque(maxlen=100)
        self.nodes = [Node(self, number) for number in self.numbers]

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

    def on_ask(self, node: Node, sender: int, kind: str) -> None:
        if kind == "challenge":
            self._answer_falsely(node, sender)
        super().on_ask(node, sender, kind)

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
