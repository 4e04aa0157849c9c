"""The replication stream: order, loss, repair and the proof that a sender's session is alive.

Theory of operation. A *session* is one run of one node's syncd, named by 8 random bytes. Its
datagrams carry ``seq`` = 1, 2, 3, ... and reach a receiver over several links, so that they come
twice, late, out of order, or not at all. Invariants of `StreamReceiver`:

* nothing of a session is delivered before the session is *accepted*: its sender has answered a
  fresh random challenge, so a recording of an earlier run can never be accepted;
* within an accepted session, datagrams are delivered exactly once and in order of seq, except
  across a `StreamBroken`, which says that some are lost for good and a snapshot is needed;
* one session a sender: accepting another retires the one before, for ever.

::

    unknown --heard--> challenged --reply--> accepted --another accepted--> retired
                         ^   |                  |
                         +---+ every 50 ms      +-- gap --1 ms--> NACK, 2, 4 .. 64 ms --> broken

A gap is seen by a later datagram or by the high-water mark in the sender's beacon; a sender's
ring (`sync.ring`) answers NACKs with the identical ciphertext. Of several receivers that miss the
same datagram, the first to ask gets it for all. Pure: `now` in seconds, randomness injected.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = [
    "CHALLENGE_INTERVAL_S",
    "NACK_ATTEMPTS_MAX",
    "NACK_FIRST_S",
    "NACK_RANGES_MAX",
    "NACK_SPREAD_S",
    "REORDER_DATAGRAMS_MAX",
    "Deliver",
    "SendChallenge",
    "SendNack",
    "SessionAccepted",
    "StreamBroken",
    "StreamEffect",
    "StreamReceiver",
    "StreamView",
]

CHALLENGE_INTERVAL_S = 0.05
"""At most one challenge a sender in this time, however many datagrams ask for one, and however
soon they are answered; after a few tries in vain it doubles, up to a second."""
CHALLENGE_VALID_S = 2.0
"""An answer that comes later than this does not count: it may have been held back."""
NACK_FIRST_S = 0.001
"""Grace for a datagram that is only late on one of the links."""
NACK_SPREAD_S = 0.002
"""With more than two nodes the first NACK waits up to this much longer, each for a time of its
own: the repair that one of them asks for goes to all, and those that hear it need not ask."""
NACK_BACKOFF_S_MAX = 0.064
NACK_ATTEMPTS_MAX = 14
"""NACKs without any progress before the gap is given up (about 0.6 s)."""
NACK_RANGES_MAX = 64
REORDER_DATAGRAMS_MAX = 4096
"""Datagrams held behind a gap; at the bound the gap is given up."""
RETIRED_SESSIONS_MAX = 64


@dataclass(frozen=True, slots=True)
class Deliver:
    """The next datagram of an accepted session, exactly once, in order."""

    sender_id: int
    session: int
    seq: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SendChallenge:
    """Ask a sender, by unicast, to prove its session."""

    sender_id: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class SendNack:
    """Ask a sender, by unicast, for lost datagrams. `attempt` chooses the link."""

    sender_id: int
    session: int
    ranges: tuple[tuple[int, int], ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class SessionAccepted:
    """The session is alive; deliveries begin after `position`. A snapshot must follow."""

    sender_id: int
    session: int
    position: int


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """Datagrams `first` to `last` are lost for good; deliveries go on after them."""

    sender_id: int
    session: int
    first: int
    last: int
    reason: str


StreamEffect = Deliver | SendChallenge | SendNack | SessionAccepted | StreamBroken


@dataclass(frozen=True, slots=True)
class StreamView:
    """What is known of one sender, for status and for the judgement "synced"."""

    session: int
    applied_seq: int
    high_water: int
    heard_at: float
    gap_since: float | None


@dataclass(slots=True)
class _Session:
    session: int
    delivered: int
    high_water: int
    heard_at: float
    buffered: dict[int, bytes] = field(default_factory=dict)
    low_water: int = 1
    gap_since: float | None = None
    nack_at: float | None = None
    attempt: int = 0


@dataclass(slots=True)
class _Proof:
    """An open challenge. It names no session: the sender answers with the one it lives in, so
    a flood of replayed sessions cannot keep the live one from being asked."""

    nonces: dict[bytes, float]
    """Nonce -> when it was sent; answers to the last few count, for `CHALLENGE_VALID_S`."""
    attempt: int
    next_at: float


class StreamReceiver:
    """The receiving end of every peer's stream. Feed it authenticated datagrams only."""

    def __init__(
        self, *, draw_nonce: Callable[[], bytes], spread: Callable[[], float] = lambda: 0.0
    ) -> None:
        """`spread` draws from 0 to 1: this receiver's share of `NACK_SPREAD_S`."""
        self._draw_nonce = draw_nonce
        self._spread = spread
        self._accepted: dict[int, _Session] = {}
        self._proofs: dict[int, _Proof] = {}
        self._asked_at: dict[int, float] = {}
        self._answered: dict[int, bytes] = {}
        self._retired: dict[int, OrderedDict[int, None]] = {}
        self.counters: Counter[str] = Counter()

    # -- views

    def accepted_session(self, sender_id: int) -> int | None:
        session = self._accepted.get(sender_id)
        return None if session is None else session.session

    def view(self, sender_id: int) -> StreamView | None:
        s = self._accepted.get(sender_id)
        if s is None:
            return None
        return StreamView(s.session, s.delivered, s.high_water, s.heard_at, s.gap_since)

    def standings(self) -> list[tuple[int, int, int, bool]]:
        """(sender, session, delivered, plain) of each accepted session; plain: nothing of it is
        missing, so that the next datagram alone can be delivered, and `taken_until` said."""
        return [
            (sender_id, s.session, s.delivered, s.gap_since is None and not s.buffered)
            for sender_id, s in self._accepted.items()
        ]

    def taken_until(self, sender_id: int, seq: int, *, now: float) -> None:
        """All up to `seq` was delivered in order, without this class, of a session that was
        plain: as if it had come through `on_datagram`."""
        s = self._accepted[sender_id]
        assert s.gap_since is None, s
        assert not s.buffered, s
        assert seq > s.delivered, (seq, s)
        s.delivered = seq
        s.high_water = max(s.high_water, seq)
        s.heard_at = now

    # -- input

    def on_datagram(
        self, sender_id: int, session: int, seq: int, body: bytes, *, now: float
    ) -> list[StreamEffect]:
        """A DELTAS datagram."""
        s = self._accepted.get(sender_id)
        if s is None or s.session != session:
            self.counters["deltas_unaccepted_session"] += 1
            return self._challenge(sender_id, session, now)
        s.heard_at = now
        if seq <= s.delivered or seq in s.buffered:
            self.counters["datagrams_duplicate"] += 1
            return []
        s.high_water = max(s.high_water, seq)
        if seq == s.delivered + 1 and not s.buffered:
            s.delivered = seq
            if s.gap_since is not None:
                self._progressed(s, now)
            return [Deliver(sender_id, session, seq, body)]
        s.buffered[seq] = body
        effects = self._advance(sender_id, s, now)
        if len(s.buffered) > REORDER_DATAGRAMS_MAX:
            effects += self._give_up(sender_id, s, "reorder buffer full", now)
        return effects

    def on_beacon(
        self, sender_id: int, session: int, high_water: int, low_water: int, *, now: float
    ) -> list[StreamEffect]:
        """The sender's marks: all it has sent, and the oldest it can still repair."""
        s = self._accepted.get(sender_id)
        if s is None or s.session != session:
            return self._challenge(sender_id, session, now)
        s.heard_at = now
        s.high_water = max(s.high_water, high_water)
        s.low_water = max(s.low_water, low_water)
        if s.delivered + 1 < s.low_water and (s.delivered + 1) not in s.buffered:
            return self._give_up(sender_id, s, "beyond the sender's ring", now)
        self._watch_gap(s, now)
        return []

    def on_sign(self, sender_id: int, session: int, *, now: float) -> list[StreamEffect]:
        """Some other datagram of this session: if it is not accepted, its sender is asked."""
        s = self._accepted.get(sender_id)
        if s is None or s.session != session:
            return self._challenge(sender_id, session, now)
        return []

    def on_challenge_reply(
        self, sender_id: int, session: int, nonce: bytes, position: int, *, now: float
    ) -> list[StreamEffect]:
        """The answer to our challenge, sealed under the session's own key."""
        proof = self._proofs.get(sender_id)
        sent_at = None if proof is None else proof.nonces.get(nonce)
        if sent_at is None and self._answered.get(sender_id) == nonce:
            return []  # The same answer over another link.
        if sent_at is None or now - sent_at > CHALLENGE_VALID_S:
            self.counters["challenge_replies_refused"] += 1
            return []
        del self._proofs[sender_id]
        self._answered[sender_id] = nonce
        old = self._accepted.get(sender_id)
        if old is not None and old.session == session:
            # Somebody replayed another session of this sender: it lives in the known one.
            return []
        if old is not None:
            self._retire(sender_id, old.session)
        self._accepted[sender_id] = _Session(session, position, position, now)
        self.counters["sessions_accepted"] += 1
        return [SessionAccepted(sender_id, session, position)]

    # -- time

    def deadline(self) -> float | None:
        """When `tick` is next due, or None."""
        times = [s.nack_at for s in self._accepted.values() if s.nack_at is not None]
        return min(times, default=None)

    def tick(self, *, now: float) -> list[StreamEffect]:
        effects: list[StreamEffect] = []
        for sender_id in sorted(self._accepted):
            s = self._accepted[sender_id]
            if s.nack_at is None or s.nack_at > now:
                continue
            if s.attempt >= NACK_ATTEMPTS_MAX:
                effects += self._give_up(sender_id, s, "no answer to NACKs", now)
                continue
            ranges = self._missing(s)
            effects.append(SendNack(sender_id, s.session, ranges, s.attempt))
            self.counters["nacks_sent"] += 1
            backoff = NACK_FIRST_S * (2 << s.attempt)
            s.attempt += 1
            s.nack_at = now + min(backoff, NACK_BACKOFF_S_MAX)
        return effects

    # -- inside

    def _challenge(self, sender_id: int, session: int, now: float) -> list[StreamEffect]:
        retired = self._retired.get(sender_id)
        if retired is not None and session in retired:
            self.counters["datagrams_retired_session"] += 1
            return []
        proof = self._proofs.get(sender_id)
        next_at = self._asked_at.get(sender_id, -1.0) + CHALLENGE_INTERVAL_S
        if now < (next_at if proof is None else proof.next_at):
            return []
        attempt = 0 if proof is None else proof.attempt + 1
        nonce = self._draw_nonce()
        nonces = {} if proof is None else dict(list(proof.nonces.items())[-3:])
        nonces[nonce] = now
        wait = min(CHALLENGE_INTERVAL_S * (1 << min(max(attempt - 4, 0), 5)), 1.0)
        self._proofs[sender_id] = _Proof(nonces, attempt, now + wait)
        self._asked_at[sender_id] = now
        self.counters["challenges_sent"] += 1
        return [SendChallenge(sender_id, nonce)]

    def _retire(self, sender_id: int, session: int) -> None:
        retired = self._retired.setdefault(sender_id, OrderedDict())
        retired[session] = None
        while len(retired) > RETIRED_SESSIONS_MAX:
            retired.popitem(last=False)  # It would only be challenged again, never accepted.

    def _advance(self, sender_id: int, s: _Session, now: float) -> list[StreamEffect]:
        """Deliver what is contiguous now, then watch or clear the gap."""
        effects: list[StreamEffect] = []
        while (body := s.buffered.pop(s.delivered + 1, None)) is not None:
            s.delivered += 1
            effects.append(Deliver(sender_id, s.session, s.delivered, body))
        if effects:
            self._progressed(s, now)
        else:
            self._watch_gap(s, now)
        return effects

    def _progressed(self, s: _Session, now: float) -> None:
        s.gap_since = s.nack_at = None
        s.attempt = 0
        self._watch_gap(s, now)

    def _watch_gap(self, s: _Session, now: float) -> None:
        if s.delivered >= s.high_water:
            s.gap_since = s.nack_at = None
            s.attempt = 0
        elif s.gap_since is None:
            self.counters["gaps"] += 1
            s.gap_since = now
            s.nack_at = now + NACK_FIRST_S + NACK_SPREAD_S * self._spread()
            s.attempt = 0

    def _missing(self, s: _Session) -> tuple[tuple[int, int], ...]:
        ranges: list[tuple[int, int]] = []
        first = s.delivered + 1
        for seq in [*sorted(s.buffered), s.high_water + 1]:
            if seq > first:
                ranges.append((first, seq - 1))
                if len(ranges) == NACK_RANGES_MAX:
                    break
            first = seq + 1
        return tuple(ranges)

    def _give_up(self, sender_id: int, s: _Session, reason: str, now: float) -> list[StreamEffect]:
        first = s.delivered + 1
        # Resume at the first datagram at hand, or at the first that can still be repaired.
        resume = min(s.buffered, default=s.high_water + 1)
        if s.low_water > first:
            resume = min(resume, s.low_water)
        assert resume > first, (resume, first)
        s.delivered = resume - 1
        s.high_water = max(s.high_water, s.delivered)
        self.counters["streams_broken"] += 1
        effects: list[StreamEffect] = [
            StreamBroken(sender_id, s.session, first, resume - 1, reason)
        ]
        self._progressed(s, now)
        return effects + self._advance(sender_id, s, now)
