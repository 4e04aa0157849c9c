"""From a peer's datagram to the registry: natively what is next and plain, else the reference.

Without the native codec each datagram goes to `Inbox`, and what comes out to `Follower`. With it
`sync._codec.Arrivals` reads a socket, opens what is next of an accepted session and walks its
deltas into the batch; it stops at what it leaves to the reference. That datagram, or the rest of
its deltas, goes through the Python classes, and the codec goes on after it: so all is applied in
the order in which it was delivered. `StreamReceiver` stays the owner of where each session stands.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from sync.follower import Follower
from sync.inbox import Arrived, Inbox
from sync.transport import Transport, Way

if TYPE_CHECKING:
    from sync._codec import Arrivals

__all__ = ["DATAGRAMS_BY_REFERENCE", "DATAGRAMS_NATIVELY", "Reception"]

DATAGRAMS_BY_REFERENCE = 8
DATAGRAMS_NATIVELY = 16
"""At a time from one socket: of full ones about a millisecond of work."""
_WHO = struct.Struct(">12xBB2xQ8xQ")
"""Sender, key id, session and seq of a datagram (`sync.wire`)."""


class Reception:
    """Of all peers."""

    def __init__(
        self,
        transport: Transport,
        inbox: Inbox,
        follower: Follower,
        arrivals: Arrivals | None,
    ) -> None:
        self._transport = transport
        self._inbox = inbox
        self._follower = follower
        self._arrivals = arrivals
        self._copies = 0

    def read(self, sock: socket.socket, *, now: float) -> bool:
        """Some of what waits in a socket; whether more may wait. Then `Follower.flush`."""
        arrivals, way = self._arrivals, self._transport.way(sock)
        if arrivals is None:
            datagrams = self._transport.receive(sock, DATAGRAMS_BY_REFERENCE)
            for datagram in datagrams:
                self._by_reference(datagram, now, way)
            return bool(datagrams)
        try:
            count = arrivals.load(sock.fileno(), DATAGRAMS_NATIVELY)
        except OSError as error:
            self._transport.receive_failed(error)
            return False
        if count:
            self.run(arrivals, now=now, way=way)
        return count == DATAGRAMS_NATIVELY

    def run(self, arrivals: Arrivals, *, now: float, way: Way | None = None) -> None:
        """All that is loaded; it came that way."""
        while True:
            self._follower.intake.settle()
            for sender_id, session, delivered, plain in self._inbox.stream.standings():
                arrivals.stand(sender_id, session, delivered, plain)
            why = arrivals.run()
            self._hand_over(arrivals, now)
            if why == arrivals.EMPTY:
                return
            if why == arrivals.FULL:
                self._follower.intake.send()
            elif why == arrivals.REST:
                sender_id, seq, payload, epoch = arrivals.rest()
                # Its delay is measured already.
                rest = Arrived(sender_id, seq, payload, None, epoch, 0)
                self._follower.on_incoming(rest, now=now)
            else:
                datagram = arrivals.last()
                self._by_reference(datagram, now, way)
                if why == arrivals.UNKEYED:
                    self._teach(arrivals, datagram)

    def forget_keys(self) -> None:
        """The cluster has other keys now."""
        if self._arrivals is not None:
            self._arrivals.forget_keys()

    def _by_reference(self, datagram: bytes, now: float, way: Way | None) -> None:
        for item in self._inbox.on_datagram(datagram, now=now, way=way):
            self._follower.on_incoming(item, now=now)

    def _hand_over(self, arrivals: Arrivals, now: float) -> None:
        """What was done natively, to the owners of the state."""
        moved, stamps = arrivals.moved()
        for sender_id, seq in moved:
            self._inbox.stream.taken_until(sender_id, seq, now=now)
        for sender_id, sent_ns in stamps:
            self._follower.delays.arrived(sender_id, self._inbox.comparable(sender_id, sent_ns))
        if arrivals.copies != self._copies:
            self._inbox.counters["datagrams_copies"] += arrivals.copies - self._copies
            self._copies = arrivals.copies
        self._follower.note_taken()

    def _teach(self, arrivals: Arrivals, datagram: bytes) -> None:
        """The reference has opened this datagram and delivered it: its key is the session's."""
        sender_id, key_id, session, seq = _WHO.unpack_from(datagram)
        view = self._inbox.stream.view(sender_id)
        if view is None or view.session != session or view.applied_seq < seq:
            return
        key = self._inbox.opener.key_of(key_id, sender_id, session)
        if key is not None:
            arrivals.use_key(sender_id, session, key_id, key)
