"""What the main loop waits for. Shell.

Two waits in one. While nothing but events of plain flows comes, the native event reader waits,
publishes and sends by itself, turn after turn, and no Python runs. Everything else that becomes
readable ends that, and a poll over all sockets tells the loop what it is.

A ZeroMQ socket has messages or not by its own account; its descriptor only tells of news since
one last asked. So it is asked first, each time, and only then its descriptor is waited for.
"""

from __future__ import annotations

import math
import time

import zmq

from sync.event_reader import EventReader
from sync.parts import Parts

__all__ = ["Waiting"]


class Waiting:
    """The sockets of one syncd."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._reader: EventReader = parts.reader
        self._poller = zmq.Poller()
        self._polled: tuple[object, ...] = ()
        self._others: list[int] = []
        """The descriptors of all but the event socket."""

    def ready(self, until: float) -> set[object]:
        """What is readable, once something is or it is `until`: descriptors and ZeroMQ sockets.
        Raises Overrun and KernelError, as reading events does."""
        self._watch()
        left = until - time.monotonic()
        if left > 0 and self._reader.waits:
            ready = self._poller.poll(0)
            if not any(one != self._parts.events.fileno() for one, _ in ready):
                self._reader.wait(self._others, until)
                left = 0.0
        # Rounded up: a millisecond late is harmless, a busy loop is not.
        return {one for one, _ in self._poller.poll(max(0, math.ceil(left * 1e3)))}

    def _watch(self) -> None:
        parts = self._parts
        wanted: tuple[object, ...] = (
            parts.bus.socket,
            parts.events,
            parts.waker,
            *parts.transport.sockets(),
            *parts.server.sockets,
            *((parts.client.socket,) if parts.client.socket is not None else ()),
        )
        if wanted == self._polled:
            return
        self._poller = zmq.Poller()
        self._others = []
        for one in wanted:
            # What is no ZeroMQ socket is polled by its descriptor.
            by_itself = isinstance(one, zmq.Socket)
            number: int = one.FD if by_itself else one.fileno()  # type: ignore[attr-defined]
            self._poller.register(one if by_itself else number, zmq.POLLIN)
            if one is not parts.events:
                self._others.append(number)
        self._polled = wanted
