"""Sessions: why nothing recorded before a start can act after it.

Theory of operation
    Every process draws a random 63-bit session id and puts it, one sequence number over all links
    and the list of sessions it hears into each envelope. An entry is *mutual* once that session
    has listed this process' own id. A peer's session is **proven** by an envelope whose list holds
    this process' own id, marked mutual: it was made after the peer heard us say that we hear it.
    Before that the envelope is a hello: it is echoed and nothing else in it is acted on.

    ::

        A hello [] ----> B          B knows sA
        A <---- [A sA]   B          A hears itself echoed
        A [B sB mutual] -> B        B: sA is proven (sB could not be known before B started, and
        A <- [A sA mutual] B           mutual shows that B had heard sA). A: sB is proven.

    When a session is proven, every session of that peer first heard before it is retired for ever:
    a delayed datagram of a dead process is refused although it echoes us. Mutual is what makes
    "before" hold: a process can say it only after it heard that we hear it, so a dead one that can
    was heard before its successor had started. One that is proven late, by a datagram that was
    held back, does not unseat its successor: that was first heard after it.
    All of this is remembered for at most `SESSIONS_MAX` sessions; at the bound this node draws a
    new id of its own, which makes every old echo worthless, and forgets everything.

    Inside a session a window of `WINDOW` sequence numbers refuses what was seen or is older.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from cluster.heartbeat import Envelope, Heard

__all__ = ["ECHO_MAX", "SESSIONS_MAX", "WINDOW", "ReplayWindow", "SessionTable", "Verdict"]

WINDOW = 1024
SESSIONS_MAX = 1024
ECHO_MAX = 4
"""Sessions of one peer echoed in an envelope: the proven one and the latest others. A recorded
datagram that is replayed cannot push a live starter out of the list."""


class Verdict(Enum):
    """What to do with an authenticated envelope. The values of refusals are counter names."""

    ACT = "act"
    HELLO = "hello"
    RETIRED = "retired_session"
    REPLAYED = "replayed"


class ReplayWindow:
    """Sequence numbers seen: the highest, and a bitmap of the `WINDOW` below it."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._seen = 0

    def fresh(self, seq: int) -> bool:
        """Whether `seq` is new; it is remembered."""
        if seq > self._top:
            shift = seq - self._top
            self._seen = 1 if shift >= WINDOW else (self._seen << shift | 1) & (1 << WINDOW) - 1
            self._top = seq
            return True
        back = self._top - seq
        if back >= WINDOW or self._seen >> back & 1:
            return False
        self._seen |= 1 << back
        return True


class _Session:
    __slots__ = ("echoed_us", "heard_ns", "retired", "window")

    def __init__(self) -> None:
        self.window = ReplayWindow()
        self.heard_ns = 0
        self.echoed_us = False
        self.retired = False


class SessionTable:
    """The sessions one process knows of its peers, and its own."""

    def __init__(self, node_id: int, draw: Callable[[], int]) -> None:
        self._node_id = node_id
        self._draw = draw
        self._known: dict[int, dict[int, _Session]] = {}
        self._proven: dict[int, int] = {}
        self._count = 0
        self.own = draw()
        self.redrawn = 0
        self._seq = 0
        self._told: list[Heard] | None = None
        """What `heard` said last, while it holds and no order by age is in it."""

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def proven(self, node: int) -> int | None:
        """The session of `node` that is acted on, if any."""
        return self._proven.get(node)

    def heard(self) -> list[Heard]:
        """The list for the next envelope."""
        if self._told is not None:
            return self._told
        entries: list[Heard] = []
        ordered_by_age = False
        for node in sorted(self._known):
            live = [
                (session_id != self._proven.get(node), -session.heard_ns, session_id)
                for session_id, session in self._known[node].items()
                if not session.retired
            ]
            ordered_by_age = ordered_by_age or len(live) > 1
            entries += [
                Heard(node, session_id, self._known[node][session_id].echoed_us)
                for _, _, session_id in sorted(live)[:ECHO_MAX]
            ]
        if not ordered_by_age:
            self._told = entries
        return entries

    def receive(self, sender: int, envelope: Envelope, *, now_ns: int) -> tuple[Verdict, bool]:
        """Judge an authenticated envelope. The flag says that the peer should hear from us soon:
        something changed that it waits for."""
        sessions = self._known.get(sender, {})
        session = sessions.get(envelope.session)
        changed = session is None
        if session is None:
            if self._count >= SESSIONS_MAX:
                self._redraw()
            session = _Session()
            self._known.setdefault(sender, {})[envelope.session] = session
            self._count += 1
            self._told = None
        if session.retired:
            return Verdict.RETIRED, False
        if not session.window.fresh(envelope.seq):
            return Verdict.REPLAYED, False
        session.heard_ns = now_ns
        mutual = False
        for entry in envelope.heard:
            if entry.node == self._node_id and entry.session == self.own:
                if not session.echoed_us:
                    session.echoed_us = changed = True
                    self._told = None
                mutual = mutual or entry.mutual
        if self._proven.get(sender) == envelope.session:
            return Verdict.ACT, changed
        if not mutual:
            return Verdict.HELLO, changed
        for other_id, other in self._known[sender].items():
            if other_id == envelope.session:
                break  # What was heard first after it is no predecessor of it.
            other.retired = True
        self._proven[sender] = envelope.session
        self._told = None
        return Verdict.ACT, True

    def _redraw(self) -> None:
        self.own = self._draw()
        self.redrawn += 1
        self._known.clear()
        self._proven.clear()
        self._told = None
        self._count = 0
