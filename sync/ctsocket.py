"""The shell around ctnetlink: one socket to hear events, one to make requests.

Both live in the network namespace in which they were opened. The kernel works through a
request inside the sending system call, so all errors of a batch are in the receive queue when the
call returns: no acknowledgements are asked for, and silence is success.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hafw.errors import KernelError
from hafw.flow import Expectation, FlowEntry, FlowKey
from sync.ctnetlink import (
    CtEvent,
    ExpectEvent,
    build_dump,
    build_expect_dump,
    build_expect_get,
    build_get,
    is_delete_of_one,
    is_expect_delete_of_one,
    parse_dump,
    parse_errors,
    parse_expect_dump,
    parse_mixed_events,
)
from sync.dump_chunks import DUMP_BUFFER_BYTES, DUMP_TIMEOUT_S, Gather, by_receive, gathered
from sync.event_filter import event_filter
from sync.sockets import attach_filter

if TYPE_CHECKING:
    from sync._codec import Batch

__all__ = [
    "BATCH_MESSAGES_MAX",
    "CONNTRACK_GROUPS",
    "EXPECTATION_GROUPS",
    "RCVBUF_BYTES",
    "EventSocket",
    "Overrun",
    "RequestSocket",
]

RCVBUF_BYTES = 16 << 20
BATCH_MESSAGES_MAX = 128
"""Messages in one system call; a longer list is sent in several. Their errors fit the buffer."""
CONNTRACK_GROUPS = (1, 2, 3)
"""NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY."""
EXPECTATION_GROUPS = (4, 5, 6)
"""NFNLGRP_CONNTRACK_EXP_NEW, _UPDATE, _DESTROY."""

_NETLINK_NETFILTER = 12
_SO_RCVBUFFORCE = 33
_SIOCGSKNS = 0x894C
_CLONE_NEWNET = 0x40000000
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_MESSAGE_BYTES_MAX = 16 << 10  # No event is nearly as long; recv() would cut a longer one.
_EVENT_BUFFER_BYTES = 256 << 10
_CT_DELETE, _EXP_DELETE = 0x0102, 0x0202
_libc = ctypes.CDLL(None, use_errno=True)


class Overrun(KernelError):  # noqa: N818 - the kernel's word for it, and not a failure
    """Events were lost: the receive buffer was full. What is known of the table is not whole."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(
            errno.ENOBUFS,
            "delivery of events",
            "the conntrack event socket",
            f"overrun number {count}; the table must be dumped again",
        )


def _open(groups: Sequence[int], rcvbuf_bytes: int) -> socket.socket:
    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
    except OSError as error:
        raise KernelError(error.errno or 0, "a socket", "NETLINK_NETFILTER") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, rcvbuf_bytes)
        sock.bind((0, sum(1 << (group - 1) for group in groups)))
    except OSError as error:
        sock.close()
        raise KernelError(
            error.errno or 0, "a conntrack socket", "NETLINK_NETFILTER", "it needs CAP_NET_ADMIN"
        ) from error
    return sock


@contextmanager
def _namespace_of(sock: socket.socket) -> Iterator[None]:
    """Be in the network namespace of `sock`. In a daemon one is always there; a program that
    entered it only to open `sock` must not dump another table without a word."""
    theirs = home = -1
    try:
        theirs = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if theirs >= 0:
            os.close(theirs)
        raise KernelError(
            error.errno or 0, "a descriptor", "the network namespace of a conntrack socket"
        ) from error
    try:
        elsewhere = os.fstat(theirs).st_ino != os.fstat(home).st_ino
        if elsewhere:
            _setns(theirs)
        try:
            yield
        finally:
            if elsewhere:
                _setns(home)
    finally:
        os.close(theirs)
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise KernelError(code, "setns", "the network namespace of a conntrack socket")


class _Socket:
    """What both sockets share."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.port_id: int = sock.getsockname()[0]
        """Our netlink port id: `CtEvent.pid` of what we asked for."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class EventSocket(_Socket):
    """Hears the conntrack events of this network namespace. Non-blocking."""

    def __init__(
        self, *, rcvbuf_bytes: int = RCVBUF_BYTES, groups: Sequence[int] = CONNTRACK_GROUPS
    ) -> None:
        super().__init__(_open(groups, rcvbuf_bytes))
        self._sock.setblocking(False)
        self._view = memoryview(bytearray(_EVENT_BUFFER_BYTES))
        self.overruns = 0
        self._overrun_pending = False

    def attach_filter(self, own_port: int) -> None:
        """From now on neither the echo of what the socket of this port asks for, nor what can
        never be published, is queued (`sync.event_filter`). Raises KernelError."""
        program = event_filter(own_port)
        try:
            attach_filter(self._sock, program)
        except OSError as error:
            raise KernelError(
                error.errno or 0, "attaching a filter", "the conntrack event socket"
            ) from error

    def drain(self, limit: int) -> list[CtEvent]:
        """`drain_all` without the events of expectations."""
        return [event for event in self.drain_all(limit) if isinstance(event, CtEvent)]

    def drain_all(self, limit: int) -> list[CtEvent | ExpectEvent]:
        """Up to `limit` waiting events, oldest first; empty if none wait.

        Raises Overrun, after the events that were read before it have been returned.
        """
        if self._overrun_pending:
            self._overrun_pending = False
            raise Overrun(self.overruns)
        view, recv_into = self._view, self._sock.recv_into
        filled, room = 0, len(view) - _MESSAGE_BYTES_MAX
        events: list[CtEvent | ExpectEvent] = []
        for _ in range(limit):  # One message a datagram: events are not batched.
            if filled > room:
                events += parse_mixed_events(view[:filled])
                filled = 0
            try:
                filled += recv_into(view[filled:])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        error.errno or 0, "reading events", "the conntrack event socket"
                    ) from error
                self.overruns += 1
                if not (filled or events):
                    raise Overrun(self.overruns) from error
                self._overrun_pending = True
                break
        if filled:
            events += parse_mixed_events(view[:filled])
        return events


class RequestSocket(_Socket):
    """Makes requests. Not safe for two threads; a dump runs on a socket of its own."""

    def __init__(self, *, rcvbuf_bytes: int = 1 << 20) -> None:
        super().__init__(_open((), rcvbuf_bytes))
        # Errors then carry the header of the request, not all of it.
        self._sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sock.setblocking(False)
        self._buffer = bytearray(DUMP_BUFFER_BYTES)
        self._seq = 1

    def execute(self, messages: Sequence[bytes]) -> list[int]:
        """One errno a message, 0 for success; later messages are tried whatever became of earlier
        ones. The sequence numbers in `messages` are replaced. Raises KernelError only if the
        socket itself fails: then it is not known which requests were done."""
        results: list[int] = []
        for start in range(0, len(messages), BATCH_MESSAGES_MAX):
            results += self._batch(messages[start : start + BATCH_MESSAGES_MAX])
        return results

    def execute_batch(self, batch: Batch) -> list[tuple[int, int]]:
        """As `execute`, what the native codec has collected: (index, errno) of each refusal."""
        try:
            return batch.send(self._sock.fileno(), self._next(batch.messages))
        except OSError as error:
            raise KernelError(
                error.errno or 0, "a batch of requests", "the conntrack socket"
            ) from error

    def get(self, key: FlowKey) -> FlowEntry | None:
        """The entry of `key` as it is now. Raises KernelError for any refusal but ENOENT."""
        self._send(build_get(key, seq=self._next(1)))
        entry: FlowEntry | None = None
        for received in self._replies():
            part = parse_dump(received)
            if part.errno not in (None, 0, errno.ENOENT):
                raise KernelError(part.errno or 0, "a lookup", f"flow {key}")
            entry = part.entries[0] if part.entries else entry
        return entry

    def dump(self, mark: int | None = None, mask: int | None = None) -> Iterator[list[FlowEntry]]:
        """All entries, or those whose ``mark & mask`` equals `mark`, in chunks of one receive.

        Runs on a socket of its own, so anything may be done between two chunks. Entries that
        change during the dump may be seen before or after; one that lives throughout is not
        missed, and may come twice. Raises KernelError if the dump breaks off.
        """
        for received in self._walk(build_dump(seq=1, mark=mark, mask=mask)):
            part = parse_dump(received)
            if part.entries:
                yield part.entries
            if part.errno:
                raise KernelError(part.errno, "a dump", "the conntrack table")
            if part.errno is not None:
                return

    def dump_raw(self, mark: int, mask: int, gather: Gather | None = None) -> Iterator[bytes]:
        """As `dump`, what the kernel sends: a receive each, or as much as `gather` takes."""
        with self._dumping(build_dump(seq=1, mark=mark, mask=mask)) as sock:
            for chunk, error in gathered(sock, gather) if gather else by_receive(sock):
                yield chunk
                if error:
                    raise KernelError(error, "a dump", "the conntrack table")
                if error is not None:
                    return

    def get_expectation(self, key: FlowKey) -> Expectation | None:
        """The expectation of this tuple as it is now. Raises KernelError as `get`."""
        self._send(build_expect_get(key, seq=self._next(1)))
        found: Expectation | None = None
        for received in self._replies():
            part = parse_expect_dump(received)
            if part.errno not in (None, 0, errno.ENOENT):
                raise KernelError(part.errno or 0, "a lookup", f"expectation {key}")
            found = part.expectations[0] if part.expectations else found
        return found

    def dump_expectations(self) -> list[Expectation]:
        """All expectations (the kernel bounds them: nf_conntrack_expect_max). Raises as `dump`."""
        found: list[Expectation] = []
        for received in self._walk(build_expect_dump(seq=1)):
            part = parse_expect_dump(received)
            found += part.expectations
            if part.errno:
                raise KernelError(part.errno, "a dump", "the expectation table")
            if part.errno is not None:
                break
        return found

    def _walk(self, request: bytes) -> Iterator[memoryview]:
        """The receives of a dump; the caller stops at its end."""
        with self._dumping(request) as sock:
            buffer = bytearray(DUMP_BUFFER_BYTES)
            view = memoryview(buffer)
            while True:
                yield view[: sock.recv_into(buffer)]

    @contextmanager
    def _dumping(self, request: bytes) -> Iterator[socket.socket]:
        """A socket of its own on which a dump has begun; what fails in here is a KernelError."""
        with _namespace_of(self._sock):
            sock = _open((), RCVBUF_BYTES)
        try:
            sock.settimeout(DUMP_TIMEOUT_S)
            sock.send(request)
            yield sock
        except OSError as error:
            raise KernelError(
                error.errno or errno.ETIMEDOUT, "a dump", "the conntrack table"
            ) from error
        finally:
            sock.close()

    def _next(self, count: int) -> int:
        first = self._seq
        self._seq = (self._seq + count) & 0x7FFFFFFF
        return first

    def _batch(self, messages: Sequence[bytes]) -> list[int]:
        first = self._next(len(messages))
        joined = bytearray()
        for index, message in enumerate(messages):
            length, kind = struct.unpack_from("=IH", message)
            assert length == len(message) and length % 4 == 0, message  # noqa: PT018
            # The last barrier: such a message would flush the whole table.
            assert kind != _CT_DELETE or is_delete_of_one(message), message
            assert kind != _EXP_DELETE or is_expect_delete_of_one(message), message
            at = len(joined)
            joined += message
            struct.pack_into("=I", joined, at + 8, first + index)
        self._send(joined)
        results = [0] * len(messages)
        for received in self._replies():
            for sequence, code in parse_errors(received):
                if 0 <= sequence - first < len(results):
                    results[sequence - first] = code
        return results

    def _send(self, message: bytes | bytearray) -> None:
        try:
            self._sock.send(message)
        except OSError as error:
            raise KernelError(
                error.errno or 0, "a batch of requests", "the conntrack socket"
            ) from error

    def _replies(self) -> Iterator[memoryview]:
        view = memoryview(self._buffer)
        while True:
            try:
                received = self._sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                raise KernelError(
                    error.errno or 0, "the answers to a batch", "the conntrack socket"
                ) from error
            yield view[:received]
