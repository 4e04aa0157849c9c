"""Carries what the kernel says of its flows to the holder, the follower and the stream. Shell.

With the native codec the pump takes what is plain from the socket to encoded deltas by itself and
stops at what is not: that one event goes to the Python classes, and the pump goes on after it. So
everything is said in the order in which the kernel said it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hafw.errors import KernelError
from sync.ctnetlink import CtEvent, parse_mixed_events
from sync.ctsocket import EventSocket, Overrun
from sync.holder import Holder
from sync.outbox import Outbox
from sync.publish import Publisher
from sync.upkeep import Upkeep

if TYPE_CHECKING:
    from sync._codec import EventPump

__all__ = ["EVENTS_PER_TURN", "EventReader"]

EVENTS_PER_TURN = 128
PLAIN_PER_EVENT = 8
"""So many events by the pump take less time than one in Python."""


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
    ) -> None:
        self._events = events
        self._holder = holder
        self._upkeep = upkeep
        self._outbox = outbox
        self._publisher = publisher
        self._pump = pump
        self._echoes = 0

    def read(self) -> bool:
        """One slice; True if more may wait. Raises Overrun, which holder and upkeep know by then,
        and KernelError."""
        try:
            more = self._slice() if self._pump is None else self._pump_slice(self._pump)
        except Overrun:
            self._holder.on_overrun()
            self._upkeep.on_overrun(now=time.monotonic())
            raise
        if not more:
            self._holder.on_drained()
        return more

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

    def _pump_slice(self, pump: EventPump) -> bool:
        others: list[CtEvent] = []
        try:
            return self._pump_through(pump, others)
        finally:
            self._pass_on(others)

    def _pump_through(self, pump: EventPump, others: list[CtEvent]) -> bool:
        left = EVENTS_PER_TURN * PLAIN_PER_EVENT
        while left > 0:
            why, done, left_over = self._pump_once(pump, left)
            left -= done
            if why == pump.RAW:
                assert isinstance(left_over, bytes), left_over
                events = parse_mixed_events(left_over)
                others += self._holder.on_events(events, now=time.monotonic())
                left -= PLAIN_PER_EVENT - 1
            elif why == pump.EMPTY:
                return False
            elif why == pump.OVERRUN:
                self._events.overruns += 1
                raise Overrun(self._events.overruns)
            elif why == pump.ERROR:
                assert isinstance(left_over, int), left_over
                raise KernelError(left_over, "reading events", "the conntrack event socket")
        return True

    def _pump_once(self, pump: EventPump, limit: int) -> tuple[int, int, bytes | int | None]:
        """Why it stopped, after how many events, and what it left."""
        held = self._holder.held
        pump.hold(
            {number: one.epoch for number, one in held.items()},
            [number for number, one in held.items() if one.own_pass is not None],
        )
        pump.look_up_first(self._publisher.labelled)
        why, done, left_over, runs, counts, deaths = pump.drain(self._events.fileno(), limit)
        if pump.echoes != self._echoes:
            self._holder.counters["echoes_heard"] += pump.echoes - self._echoes
            self._echoes = pump.echoes
        for name, by in zip(("first", "updates", "destroys"), counts, strict=True):
            self._publisher.counters[name] += by
        for epoch, deltas, count in runs:
            self._outbox.put_encoded(epoch, deltas, count)
        self._bury(deaths)
        return why, done, left_over

    def _bury(self, deaths: list[tuple[int, int]]) -> None:
        """The passes under way must not take these flows for living."""
        for number, flow in deaths:
            held = self._holder.held[number]
            if held.own_pass is not None and not held.own_pass.bury(flow):
                self._holder.counters["passes_too_many_deaths"] += 1
                held.pass_again()
