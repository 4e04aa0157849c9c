"""raftd's Unix socket: one question a connection. Shell.

Bound before privileges are dropped, in a folder that only root may enter. At most
`CONNECTIONS_MAX` at a time; who does not ask within `ASK_S` is cut off.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import msgspec

from hafw.raft_messages import PACKET_BYTES_MAX, RaftMessage, decode_raft, encode_raft

__all__ = ["Connection", "LocalServer"]

CONNECTIONS_MAX = 16
ASK_S = 2.0
ANSWER_S = 5.0


class Connection:
    """One asker. `answer` once; an asker that went away is none of our business."""

    def __init__(self, opened: socket.socket, until: float) -> None:
        self.socket = opened
        self.until = until
        self.asked = False
        self.closed = False

    def answer(self, message: RaftMessage) -> None:
        if not self.closed:
            with suppress(OSError):
                self.socket.send(encode_raft(message))
            self.close()

    def close(self) -> None:
        self.socket.close()
        self.closed = True


class LocalServer:
    def __init__(self, path: Path, counters: Counter[str]) -> None:
        """The caller holds raftd's lock, so a file that is there is a dead process'."""
        self._counters = counters
        self._connections: list[Connection] = []
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        with suppress(FileNotFoundError):
            path.unlink()
        self.socket.bind(str(path))
        path.chmod(0o600)
        self.socket.listen(CONNECTIONS_MAX)

    def sockets(self) -> list[socket.socket]:
        return [self.socket, *(c.socket for c in self._connections if not c.asked)]

    def receive(self, now: float) -> list[tuple[Connection, RaftMessage]]:
        """New questions."""
        self._accept(now)
        found = []
        for connection in self._connections:
            if connection.asked or connection.closed:
                continue
            try:
                packet = connection.socket.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                if now > connection.until:
                    connection.close()
                continue
            except OSError:
                connection.close()
                continue
            try:
                found.append((connection, decode_raft(packet)))
                connection.asked, connection.until = True, now + ANSWER_S
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                if packet:
                    self._counters["local_malformed"] += 1
                connection.close()
        for connection in self._connections:
            if now > connection.until:
                connection.close()
        self._connections = [c for c in self._connections if not c.closed]
        return found

    def _accept(self, now: float) -> None:
        while True:
            try:
                opened, _ = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                self._counters["local_accept_errors"] += 1
                return
            opened.setblocking(False)
            if len(self._connections) >= CONNECTIONS_MAX:
                self._counters["local_busy"] += 1
                opened.close()
                continue
            self._connections.append(Connection(opened, now + ASK_S))

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.socket.close()
