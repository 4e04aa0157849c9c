"""The agents' event loop: epoll for descriptors and a timerfd for the 1 ms tick.

Not `selectors`: its epoll rounds timeouts up to whole milliseconds, and its select costs as much
as a probe packet at these rates. One thread; handlers are called with the event mask.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["TICK_NS", "Loop", "become_realtime", "now_ns"]

TICK_NS = 1_000_000
_RT_PRIORITY = 1
_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)

Handler = Callable[[int], None]
Tick = Callable[[int], None]


def now_ns() -> int:
    """CLOCK_BOOTTIME: one clock for all namespaces of the machine, and the gates' own."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def become_realtime(keep_to: int | None = None) -> None:
    """For judges: the lowest real-time priority; what is not allowed is left out."""
    with suppress(OSError):
        if keep_to is not None:
            os.sched_setaffinity(0, {keep_to})
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_RT_PRIORITY))


class Loop:
    """Runs until `stop`. Notes how late ticks came: a late probe is not an outage."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._ticks: list[Tick] = []
        self._running = False
        self.late_ns_max = 0
        self._timer = _timerfd(TICK_NS)
        self._last_tick_ns = 0
        self.watch(self._timer, self._on_timer)

    def watch(self, fd: int, handler: Handler, *, write: bool = False) -> None:
        """Call `handler` when `fd` is readable (and, with `write`, writable)."""
        mask = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self._handlers:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def every_tick(self, tick: Tick) -> None:
        self._ticks.append(tick)

    def run(self) -> None:
        self._running = True
        while self._running:
            for fd, mask in self._epoll.poll():
                handler = self._handlers.get(fd)
                if handler is not None:  # Forgotten by a handler of the same batch.
                    handler(mask)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._epoll.close()
        os.close(self._timer)

    def _on_timer(self, _mask: int) -> None:
        os.read(self._timer, 8)
        now = now_ns()
        if self._last_tick_ns:
            self.late_ns_max = max(self.late_ns_max, now - self._last_tick_ns - TICK_NS)
        self._last_tick_ns = now
        for tick in self._ticks:
            tick(now)


def _timerfd(interval_ns: int) -> int:
    """A periodic timer descriptor; Python has no os.timerfd_create before 3.13."""
    fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    seconds, rest = divmod(interval_ns, 1_000_000_000)
    # struct itimerspec: interval, then the first expiry.
    value = struct.pack("@llll", seconds, rest, seconds, rest)
    if _libc.timerfd_settime(fd, 0, value, None) < 0:
        error = ctypes.get_errno()
        os.close(fd)
        raise OSError(error, "timerfd_settime")
    return fd
