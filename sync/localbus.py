"""syncd's Unix datagram socket: leased, hafwd and hafwctl of the same node."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress

import msgspec

from hafw.messages import (
    DATAGRAM_BYTES_MAX,
    LeasedMessage,
    SyncdMessage,
    decode_syncd,
    encode,
)
from hafw.paths import NodePaths

__all__ = ["LocalBus"]

RECEIVE_MAX = 32


class LocalBus:
    """Bound to `paths.syncd_socket`; speaks to `paths.leased_socket`. The caller holds syncd's
    lock, so a socket file that is there already is a dead process'."""

    def __init__(self, paths: NodePaths) -> None:
        self._path = paths.syncd_socket
        self._leased = str(paths.leased_socket)
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        with suppress(FileNotFoundError):
            self._path.unlink()
        self.socket.bind(str(self._path))
        self._path.chmod(0o600)
        self.counters: Counter[str] = Counter()

    def receive(self) -> list[tuple[SyncdMessage, str]]:
        """Messages and their senders' addresses; what cannot be decoded is counted."""
        messages: list[tuple[SyncdMessage, str]] = []
        for _ in range(RECEIVE_MAX):
            try:
                datagram, sender = self.socket.recvfrom(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                break
            try:
                message = decode_syncd(datagram)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.counters["local_malformed"] += 1
                continue
            messages.append((message, sender if isinstance(sender, str) else ""))
        return messages

    def to_leased(self, message: LeasedMessage) -> None:
        """Leased may be down or starting: everything it needs is said again."""
        self._send(encode(message), self._leased)

    def answer(self, message: LeasedMessage | SyncdMessage, address: str) -> None:
        if address:
            self._send(encode(message), address)

    def close(self) -> None:
        self.socket.close()
        with suppress(FileNotFoundError):
            self._path.unlink()

    def _send(self, datagram: bytes, address: str) -> None:
        try:
            self.socket.sendto(datagram, address)
        except OSError:
            self.counters["local_unsent"] += 1
