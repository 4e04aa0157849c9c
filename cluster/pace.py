r"""When the next heartbeat goes out, and which answers ride in it. Pure.

Theory of operation
    A node's heartbeats are one interval apart. News brings one forward (`soon`), though never to
    less than a quarter of the interval after the last. And a node that leads no group *follows*:
    the grant of a renewal, owed to the holder at once anyway, brings forward a heartbeat that is
    due within half an interval, and rides in it. So all nodes beat when the holder does, and what
    were two datagrams over each path, two wake-ups and two answers is one::

        holder    beat + ask            beat + ask            beat + ask
        voter          \-> beat + grant      \-> beat + grant      \-> beat + grant

    Nothing waits: a grant that cannot ride goes out alone, in the turn in which it was given, and
    so does every answer to a claim, for which a gate is shut. A follower's next heartbeat is due
    a sixteenth of the interval later than usual, or its own timer would often come just before
    the holder's next ask; so it lasts that much longer, once, when the holder has died. One that
    is out of step brings its own heartbeat forward until it is due soon after an ask.
"""

from __future__ import annotations

from cluster.heartbeat import Accepted

__all__ = ["Pace"]


class Pace:
    """The heartbeats of one node, and grants that have not been sent yet."""

    def __init__(self, heartbeat_ns: int, now_ns: int) -> None:
        self.next_ns = now_ns
        self._heartbeat_ns = heartbeat_ns
        self._last_ns = now_ns - heartbeat_ns
        self._rode_ns = now_ns
        self._grants: list[tuple[int, Accepted]] = []

    def soon(self, now_ns: int) -> None:
        """There is news for all."""
        self.next_ns = min(self.next_ns, max(now_ns, self._last_ns + self._heartbeat_ns // 4))

    def grant(self, node: int, grant: Accepted) -> None:
        """A renewal was granted to `node` in this turn."""
        self._grants.append((node, grant))

    def forget(self) -> None:
        """Grants of a voter set that is not in force any more: nobody would count them."""
        self._grants.clear()

    def owed(self, now_ns: int, *, follows: bool) -> list[tuple[int, Accepted]]:
        """The grants that must go out alone, (node, grant): no heartbeat is due now, nor about to
        be that may be brought forward."""
        if not self._grants or now_ns >= self.next_ns:
            return []
        rested = now_ns - self._last_ns >= self._heartbeat_ns // 4
        if follows and rested and self.next_ns - now_ns <= self._heartbeat_ns // 2:
            self.next_ns = now_ns
            return []
        if follows and now_ns - self._rode_ns > 2 * self._heartbeat_ns:
            # Well after this ask, and so due soon after the next one.
            self.next_ns = min(self.next_ns, now_ns + 3 * self._heartbeat_ns // 8)
        alone, self._grants = self._grants, []
        return alone

    def begin(self, now_ns: int, *, follows: bool) -> list[Accepted]:
        """A heartbeat goes out now. Returns the grants that ride in it."""
        interval_ns = self._heartbeat_ns
        self._last_ns = now_ns
        self.next_ns = max(self.next_ns + interval_ns, now_ns + interval_ns // 4)
        self.next_ns = min(self.next_ns, now_ns + interval_ns)
        riding = [grant for _, grant in self._grants]
        self._grants = []
        if riding:
            self._rode_ns = now_ns
            if follows:
                self.next_ns = now_ns + interval_ns + interval_ns // 16
        return riding
