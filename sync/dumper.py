"""A conntrack dump in a thread of its own.

The kernel walks the whole table inside system calls: a filtered dump of a large table may sit in
one of them for hundreds of milliseconds, and the beacon must not wait for that. The thread keeps
off the lease loop's CPU. It hands chunks over through a bounded queue and wakes the main loop; it
touches nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections.abc import Iterator

from hafw.errors import KernelError
from hafw.flow import Expectation, FlowEntry
from sync.ctsocket import RequestSocket
from sync.dump_chunks import Gather

__all__ = ["CHUNKS_AHEAD_MAX", "Dumper", "Waker"]

CHUNKS_AHEAD_MAX = 8
"""Chunks (one receive each, about a hundred entries, or some thousands that are gathered) read
ahead of the main loop."""


Chunk = list[FlowEntry] | bytes


class Waker:
    """An eventfd that other threads write and the main loop polls."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Dumper:
    """One dump of the entries whose ``mark & mask`` is `mark`. Poll `take` when woken."""

    def __init__(
        self,
        mark: int,
        mask: int,
        waker: Waker,
        *,
        avoid_cpu: int | None,
        raw: bool = False,
        gather: Gather | None = None,
    ) -> None:
        """`raw`: chunks are the kernel's bytes, and nobody reads them here. `gather`: so too, and
        each is many receives."""
        self._mark, self._mask = mark, mask
        self._raw = raw or gather is not None
        self._gather = gather
        self._waker = waker
        self._avoid_cpu = avoid_cpu
        self._queue: queue.Queue[Chunk | KernelError | None] = queue.Queue(CHUNKS_AHEAD_MAX)
        self._cancelled = threading.Event()
        self.done = False
        self.error: KernelError | None = None
        self.expectations: list[Expectation] = []
        """All of this kernel, read after the last entry; whole once `done` without an error."""
        self._thread = threading.Thread(target=self._run, name="dump", daemon=True)
        self._thread.start()

    def take(self) -> list[FlowEntry] | None:
        """The next chunk, or None if none is ready; then look at `done` and `error`."""
        chunk = self.take_any()
        assert not isinstance(chunk, bytes), "these are raw"
        return chunk

    def take_any(self) -> Chunk | None:
        """As `take`, raw or not."""
        if self.done:
            return None
        try:
            chunk = self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(chunk, list | bytes):
            return chunk
        self.done = True
        self.error = chunk
        return None

    @property
    def ready(self) -> bool:
        """Something can be taken."""
        return not self.done and not self._queue.empty()

    def cancel(self) -> None:
        """Stop early; the thread ends by itself."""
        self.done = True
        self._cancelled.set()

    def _run(self) -> None:
        try:
            self._keep_off()
            with RequestSocket() as requests:
                chunks: Iterator[Chunk] = (
                    requests.dump_raw(self._mark, self._mask, self._gather)
                    if self._raw
                    else requests.dump(self._mark, self._mask)
                )
                for chunk in chunks:
                    if not self._put(chunk):
                        return
                self.expectations = requests.dump_expectations()
            self._put(None)
        except KernelError as error:
            self._put(error)
        except Exception as error:  # noqa: BLE001 - whoever waits for this dump must hear its end
            code = error.errno if isinstance(error, OSError) else None
            self._put(KernelError(code or errno.EIO, "a dump", "the conntrack table", repr(error)))

    def _put(self, chunk: Chunk | KernelError | None) -> bool:
        while not self._cancelled.is_set():
            try:
                self._queue.put(chunk, timeout=0.2)
            except queue.Full:
                continue
            self._waker.wake()
            return True
        return False

    def _keep_off(self) -> None:
        cpus = os.sched_getaffinity(0) - {self._avoid_cpu}
        if cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cpus)
