r"""Two nodes without a witness (`quorum: two-node`): when one may decide without the other.

Theory of operation
    Two voters need both votes, so whoever is left alone would have to stop. Here a node may count
    its own vote alone while it is *alone*: its peer has been silent, on every path, for long
    enough. What that promises is less than a majority does:

    *Both nodes are ACTIVE at one time only while nothing that either says reaches the other, and
    for at most a lease and three heartbeats after something does again.* Then the one with the
    lower epoch shuts its gate at once (`NodeView.outranked`); if only one of the two hears, it is
    the one that cannot renew any more.

    ::

        heard ---- T/2 of silence ----> may hold on (renew a lease that it has)
          \------- T(1+ε) of silence -> may claim

    Silence is evidence only if it is the peer's. It begins anew

    1. with every authentic envelope, proven or not, of any session but a dead one. Only a peer
       that says it does not vote, with its gates shut, does not count: it has started less than M
       ago or cannot write, and can neither win nor keep a lease;
    2. when the own loop woke or worked longer than `late_ns` too late, or a carrier of the node
       came or went. A thawed node has a socket full of news, and one whose cables are out hears
       nothing either;
    3. for a claim, when this node began to vote, and then for two leases and two heartbeats: by
       then a peer that holds on alone has heard that this node votes, or cannot hear it.

    Why T/2 and `late_ns`: a holder that hears the other one must never take the gap between two of
    its heartbeats for silence. A claimant's gap is at most a heartbeat, `late_ns` for waking up
    and `late_ns` for getting the datagram out, and the holder may read it `late_ns` late. So
    ``heartbeat + 3 late_ns + heartbeat / 4 = T / 2``; the quarter is for the network. Hence the
    configuration's ``lease >= 4 heartbeats``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.heartbeat import Beat, Envelope

if TYPE_CHECKING:
    from cluster.lease_types import LeaseParams

__all__ = ["PairWatch"]


class PairWatch:
    """How long the peer has been silent, and whether that is the peer's silence."""

    def __init__(self, params: LeaseParams, now_ns: int) -> None:
        heartbeat_ns = params.heartbeat_ns
        self._hold_ns = params.lease_ns // 2
        self._claim_ns = params.longer(params.lease_ns)
        self._voting_ns = 2 * params.longer(params.lease_ns + heartbeat_ns)
        self.late_ns = (self._hold_ns - heartbeat_ns - heartbeat_ns // 4) // 3
        assert self.late_ns > 0, "lease >= 4 heartbeats"
        self._silent_since_ns = now_ns
        self._voting_since_ns: int | None = None
        self._due_ns = now_ns
        self._ticked_ns = now_ns
        self._turned_ns: int | None = None
        """When the loop began the work that it has not ended yet."""

    # ---- evidence -----------------------------------------------------------------------------

    def hear(self, envelope: Envelope, now_ns: int) -> None:
        """An authentic envelope of the peer that is no replay."""
        if not _bystands(envelope):
            self._silent_since_ns = now_ns

    def doubt(self, now_ns: int) -> None:
        """Silence up to now says nothing: of the own carriers, or because something was heard
        that may be the peer's."""
        self._silent_since_ns = now_ns

    def turn(self, now_ns: int, *, votes: bool) -> bool:
        """The loop begins to work. Returns whether it is too late for its silence to count."""
        late = now_ns - self._due_ns > self.late_ns or self._lingered(now_ns)
        if late:
            self._silent_since_ns = now_ns
        self._turned_ns = now_ns
        if not votes:
            self._voting_since_ns = None
        elif self._voting_since_ns is None:
            self._voting_since_ns = now_ns
        return late

    def ticked(self, now_ns: int, beat_ns: int) -> None:
        """All that was due is decided; the next heartbeat is due at `beat_ns`."""
        self._ticked_ns = now_ns
        self._due_ns = min(beat_ns, self._next_ns() or beat_ns)

    def wait(self, now_ns: int) -> int | None:
        """The work is done, effects and all. When to look again."""
        if self._lingered(now_ns):
            self._silent_since_ns = now_ns
        self._turned_ns = None
        return self._next_ns()

    # ---- answers ------------------------------------------------------------------------------

    def alone(self, now_ns: int, *, holding: bool) -> bool:
        """Whether the peer counts as gone, for a holder or for a claimant."""
        at_ns = self._hold_at_ns() if holding else self._claim_at_ns()
        return at_ns is not None and now_ns >= at_ns

    def _lingered(self, now_ns: int) -> bool:
        return self._turned_ns is not None and now_ns - self._turned_ns > self.late_ns

    def _next_ns(self) -> int | None:
        """The first moment since the last tick at which an answer changes; it may have passed."""
        times = [self._hold_at_ns(), self._claim_at_ns()]
        return min((at for at in times if at is not None and at > self._ticked_ns), default=None)

    def _hold_at_ns(self) -> int:
        return self._silent_since_ns + self._hold_ns

    def _claim_at_ns(self) -> int | None:
        if self._voting_since_ns is None:
            return None
        silent_ns = self._silent_since_ns + self._claim_ns
        return max(silent_ns, self._voting_since_ns + self._voting_ns)


def _bystands(envelope: Envelope) -> bool:
    """Whether its sender neither votes nor has a gate open, as it says."""
    messages = envelope.messages
    return bool(messages) and all(
        isinstance(message, Beat)
        and not message.votes
        and not any(group.active for group in message.groups)
        for message in messages
    )
