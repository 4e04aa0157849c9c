"""The checkers of the stream simulation. They know nothing of the code:

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

from sync.ring import REPAIR_HOLD_S
from sync.stream import CHALLENGE_INTERVAL_S, CHALLENGE_VALID_S
from tests.simulation.stream_node import Held, Node, Run
from tests.simulation.timeline import Timeline

__all__ = ["StreamChecks"]

NACKS_WITHOUT_PROGRESS_MAX = 8
"""In 50 ms: after 1, 2, 4, 8, 16 and 32 ms, and what two links make of it."""


class StreamChecks(Timeline):
    """What was said, asked and confirmed, by whom and when."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.numbers = range(0)
        self.nodes: list[Node] = []
        self.runs: dict[int, Run] = {}
        self.counts: Counter[str] = Counter()
        self.asks: dict[tuple[int, int, str], deque[float]] = {}
        self.repaired: dict[tuple[int, int], tuple[float, int]] = {}
        self.challenged: dict[tuple[int, int], deque[float]] = {}
        """(Run of the receiver, sender) -> when it asked last; any of these may be answered."""
        self.covered: dict[tuple[int, int], int] = {}
        """(Run of the receiver, session) -> up to where it was seen to hold everything."""

    def node(self, number: int) -> Node:
        return self.nodes[number - 1]

    def count(self, what: str) -> None:
        self.counts[what] += 1

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
