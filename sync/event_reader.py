"""Carries what the kernel says of its flows to the holder, the follower and the stream. Shell.

With the native codec the pump takes what is plain from the socket to encoded deltas by itself and
stops at what is not: that one event goes to the Python classes, and the pump goes on after it. So
everything is said in the order in which the kernel said it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hafw.errors import KernelError
from sync.ctnetlink import CtEvent, parse_mixed_events
from sync.ctsocket import EventSocket, Overrun
from sync.holder import Holder
from sync.outbox import Outbox, deltas_room
from sync.publish import Publisher
from sync.upkeep import Upkeep

if TYPE_CHECKING:
    from sync._codec import Drained, EventPump
    from sync.native_outbox import NativeOutbox

__all__ = ["EVENTS_PER_TURN", "EventReader"]

EVENTS_PER_TURN = 128
PLAIN_PER_EVENT = 8
"""So many events by the pump take less time than one in Python."""
BURST_PAUSE_S = 100e-6
"""In a stream of events, what comes within this time is said together."""


class EventReader:
    """Reads the event socket in bounded slices."""

    def __init__(
        self,
        events: EventSocket,
        *,
        holder: Holder,
        upkeep: Upkeep,
        outbox: Outbox,
        publisher: Publisher,
        pump: EventPump | None,
        sent: NativeOutbox | None = None,
    ) -> None:
        """`sent`: the outbox, if the pump is to send by itself."""
        self._events = events
        self._holder = holder
        self._upkeep = upkeep
        self._outbox = outbox
        self._publisher = publisher
        self._pump = pump
        self._sent = sent
        self._echoes = 0
        if pump is not None and sent is not None:
            pump.connect(sent.sender)

    def read(self) -> bool:
        """One slice; True if more may wait. Raises Overrun, which holder and upkeep know by then,
        and KernelError."""
        try:
            more = self._slice() if self._pump is None else self._pump_slice(self._pump)
        except Overrun:
            self._on_overrun()
            raise
        if not more:
            self._holder.on_drained()
        return more

    def fit(self, datagram_bytes: int) -> None:
        """Datagrams to come are no larger."""
        self._outbox.fit(datagram_bytes)
        if self._pump is not None:
            self._pump.room = deltas_room(datagram_bytes)

    def _on_overrun(self) -> None:
        self._holder.on_overrun()
        self._upkeep.on_overrun(now=time.monotonic())

    def _slice(self) -> bool:
        events = self._events.drain_all(EVENTS_PER_TURN)
        others = self._holder.on_events(events, now=time.monotonic()) if events else []
        self._pass_on(others)
        return len(events) >= EVENTS_PER_TURN

    def _pass_on(self, others: list[CtEvent]) -> None:
        """The events of flows that are not held here, all of a slice at once: what becomes of
        replicas is judged together."""
        if others:
            self._upkeep.on_events(others, now=time.monotonic())

    @property
    def pending(self) -> bool:
        """Was more received than was read? The socket does not tell."""
        return self._pump is not None and self._pump.pending > 0

    @property
    def waits(self) -> bool:
        """May `wait` be asked? A pass wants to know of each death, and when the queue is empty."""
        held = self._holder.held.values()
        return self._sent is not None and all(one.own_pass is None for one in held)

    def wait(self, others: Sequence[int], until: float) -> None:
        """Say what comes, as it comes, until one of these descriptors is readable or it is
        `until`; no more than a slice, and `read` goes on with what is left. Raises as `read`."""
        pump = self._pump
        assert pump is not None
        passed_on: list[CtEvent] = []
        self._hold(pump)
        try:
            self._after(
                pump,
                pump.turns(
                    self._events.fileno(), others, until, BURST_PAUSE_S,
                    EVENTS_PER_TURN * PLAIN_PER_EVENT,
                ),
                passed_on,
            )  # fmt: skip
        except Overrun:
            self._on_overrun()
            raise
        finally:
            self._pass_on(passed_on)

    def _pump_slice(self, pump: EventPump) -> bool:
        others: list[CtEvent] = []
        try:
            return self._pump_through(pump, others)
        finally:
            self._pass_on(others)

    def _pump_through(self, pump: EventPump, others: list[CtEvent]) -> bool:
        left = EVENTS_PER_TURN * PLAIN_PER_EVENT
        while left > 0:
            self._hold(pump)
            drained = pump.drain(self._events.fileno(), left)
            why, done = drained[:2]
            self._after(pump, drained, others)
            left -= done
            if why == pump.RAW:
                left -= PLAIN_PER_EVENT - 1
            elif why == pump.EMPTY:
                return False
        return True

    def _hold(self, pump: EventPump) -> None:
        held = self._holder.held
        pump.hold(
            {number: one.epoch for number, one in held.items()},
            [number for number, one in held.items() if one.own_pass is not None],
        )
        pump.look_up_first(self._publisher.labelled)
        if self._sent is not None:
            self._sent.sender.published = self._publisher.counters["first"]

    def _after(self, pump: EventPump, drained: Drained, others: list[CtEvent]) -> None:
        """Account for what the pump did, and do what it left."""
        why, _, left_over, runs, counts, deaths = drained
        if pump.echoes != self._echoes:
            self._holder.counters["echoes_heard"] += pump.echoes - self._echoes
            self._echoes = pump.echoes
        if any(counts):
            for name, by in zip(("first", "updates", "destroys"), counts, strict=True):
                self._publisher.counters[name] += by
        for epoch, deltas, count in runs:
            self._outbox.put_encoded(epoch, deltas, count)
        if self._sent is not None:
            self._sent.note_failures()
        self._bury(deaths)
        if why == pump.RAW:
            assert isinstance(left_over, bytes), left_over
            others += self._holder.on_events(parse_mixed_events(left_over), now=time.monotonic())
        elif why == pump.OVERRUN:
            self._events.overruns += 1
            raise Overrun(self._events.overruns)
        elif why == pump.ERROR:
            assert isinstance(left_over, int), left_over
            raise KernelError(left_over, "reading events", "the conntrack event socket")

    def _bury(self, deaths: list[tuple[int, int]]) -> None:
        """The passes under way must not take these flows for living."""
        for number, flow in deaths:
            held = self._holder.held[number]
            if held.own_pass is not None and not held.own_pass.bury(flow):
                self._holder.counters["passes_too_many_deaths"] += 1
                held.pass_again()
