"""What the kernel sends of a dump: receive by receive, or many of them at once. Shell."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterator

from sync.ctnetlink import dump_errno

__all__ = [
    "DUMP_BUFFER_BYTES",
    "DUMP_TIMEOUT_S",
    "GATHERED_BYTES",
    "Gather",
    "by_receive",
    "gathered",
]

DUMP_BUFFER_BYTES = 64 << 10
"""The kernel fills at most 32 kB a receive (netlink_dump in af_netlink.c)."""
DUMP_TIMEOUT_S = 5.0
GATHERED_BYTES = 1 << 20
"""Some three thousand entries."""

Gather = Callable[[int, int], tuple[bytes, int | None]]
"""`sync._codec.receive_dump`."""


def by_receive(sock: socket.socket) -> Iterator[tuple[bytes, int | None]]:
    """A piece and, in the last one, the errno with which the dump ended. Raises OSError and
    MalformedMessageError."""
    while True:
        chunk = sock.recv(DUMP_BUFFER_BYTES)
        yield chunk, dump_errno(chunk)


def gathered(sock: socket.socket, gather: Gather) -> Iterator[tuple[bytes, int | None]]:
    """As `by_receive`, in pieces of up to `GATHERED_BYTES`: between two of them a busy interpreter
    keeps a thread waiting for its lock, for milliseconds each time."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        chunk, error = gather(sock.fileno(), GATHERED_BYTES)
        if chunk:
            yield chunk, error
        elif not poll.poll(DUMP_TIMEOUT_S * 1e3):
            raise TimeoutError(errno.ETIMEDOUT, "nothing more comes of a dump")
