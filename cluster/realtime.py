"""Make this process' loop punctual: scheduling class, CPU, memory, garbage. Shell.

An nft load holds every thread on its CPU for tens of milliseconds, SCHED_FIFO or not, so the
lease loop has a CPU of its own choosing (DESIGN §5). What the machine does not allow is left out;
`status` says whether the loop is real-time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from dataclasses import dataclass

__all__ = ["Collector", "Punctuality", "be_ordinary", "make_realtime", "read_clocks"]

FIFO_PRIORITY = 20
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_THREAD_STACK_BYTES = 512 * 1024
_YOUNG_NS = 1_000_000_000
_MIDDLE_NS = 60_000_000_000


@dataclass(frozen=True, slots=True)
class Punctuality:
    """What the machine allowed. `refused` is ``what: why``; `alarms` are those of them without
    which a busy machine makes the loop late, as sentences."""

    realtime: bool
    refused: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


def make_realtime(cpu: int) -> Punctuality:
    """Bind this thread to `cpu`, lock memory, take SCHED_FIFO; what is refused is left out."""
    refused: list[str] = []
    alarms: list[str] = []
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        refused.append(f"CPU {cpu}: {error.strerror}")
        alarms.append(
            f"the lease loop cannot be bound to CPU {cpu} ({error.strerror}): policy loads may "
            "hold it up"
        )
    threading.stack_size(_THREAD_STACK_BYTES)  # Locked memory: 8 MB a thread would be wasteful.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        why = os.strerror(ctypes.get_errno())
        refused.append(f"mlockall: {why}")
        alarms.append(
            f"the memory of the lease loop is not locked (mlockall: {why}): paging may hold it "
            "up; it needs CAP_IPC_LOCK"
        )
    realtime = True
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as error:
        realtime = False
        refused.append(f"SCHED_FIFO: {error.strerror}")
        alarms.append(
            f"the lease loop is not real-time (SCHED_FIFO: {error.strerror}): other processes "
            "may hold it up; it needs CAP_SYS_NICE"
        )
    return Punctuality(realtime, tuple(refused), tuple(alarms))


def be_ordinary() -> None:
    """For a helper thread of a real-time process: it waits for disks and must not hold the CPU."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def read_clocks() -> tuple[int, int]:
    """CLOCK_BOOTTIME, which leases are counted by, and CLOCK_MONOTONIC_RAW, which nobody slews."""
    boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return boottime_ns, time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


class Collector:
    """Garbage collection when we choose: young objects each second, the middle generation each
    minute, the frozen start-up state never. The loop makes hardly any cycles."""

    def __init__(self, now_ns: int) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._young_ns = now_ns + _YOUNG_NS
        self._middle_ns = now_ns + _MIDDLE_NS

    def maybe(self, now_ns: int) -> None:
        """To be called right after a heartbeat went out: there is time until the next."""
        if now_ns >= self._middle_ns:
            self._middle_ns = now_ns + _MIDDLE_NS
            gc.collect(1)
        elif now_ns >= self._young_ns:
            self._young_ns = now_ns + _YOUNG_NS
            gc.collect(0)
