"""The follower's end of a snapshot: one DEALER, one group at a time, another link at each retry.

It only carries messages; `sync.follower` applies them and says when to give up.
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable

import msgspec
import zmq

from hafw.keyring import Keyring
from sync.curve import curve_keys
from sync.snapshot_wire import (
    HANDSHAKE_MS,
    SnapshotCredit,
    SnapshotReply,
    SnapshotRequest,
    decode_reply,
    encode_snapshot,
)
from sync.sockets import is_ipv6, literal

__all__ = ["SnapshotClient"]

REPLY_BYTES_MAX = 256 << 10
"""Of one frame. A chunk is one receive of a dump, 32 kB at most, and a delta is shorter than the
kernel's message of its entry."""


class SnapshotClient:
    """At most one request is open."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        ring: Keyring,
        *,
        node_id: int,
        ways_to: Callable[[int], list[tuple[str, str, str]]],
        port: int,
        seals: Callable[[int], int | None],
    ) -> None:
        """`ways_to` tells the ways to a peer: name, own address, the peer's. `seals` tells
        which key a peer seals with, None if that is not known."""
        self._context = context
        self._ring = ring
        self._seals = seals
        self._node_id = node_id
        self._ways_to = ways_to
        self._port = port
        self._socket: zmq.Socket[bytes] | None = None
        self._address, self._key = "", b""
        self._request = 0
        self.counters: Counter[str] = Counter()

    @property
    def socket(self) -> zmq.Socket[bytes] | None:
        return self._socket

    @property
    def request(self) -> int:
        """Number of the newest request; answers to older ones are not for anybody."""
        return self._request

    def ask(
        self,
        holder_id: int,
        group: int,
        *,
        attempt: int,
        buckets: frozenset[int] | None = None,
        failures: int = 0,
    ) -> bool:
        """Ask for the group, or for some buckets of it after so many repairs in vain, over link
        `attempt`; an open connection of that link serves again.
        False if there is no socket to be had (counted)."""
        self._request += 1
        if not self._open(holder_id, attempt):
            return False
        self.counters["snapshots_asked"] += 1
        if buckets is not None:
            self.counters["repairs_asked"] += 1
        numbers = bytes(sorted(buckets or ()))
        self._send(SnapshotRequest(self._request, self._node_id, group, numbers, failures))
        return True

    def go_on(self, holder_id: int, group: int, *, attempt: int, have: int) -> bool:
        """Ask to go on with the open request at chunk `have`, over link `attempt`. As `ask`."""
        self.close()
        if not self._open(holder_id, attempt):
            return False
        self.counters["snapshots_resumed"] += 1
        self._send(SnapshotRequest(self._request, self._node_id, group, have=have))
        return True

    def _open(self, holder_id: int, attempt: int) -> bool:
        ways = self._ways_to(holder_id)
        _, own, address = ways[attempt % len(ways)]
        key_id = self._seals(holder_id)
        known = (None if key_id is None else self._ring.get(key_id)) or self._ring.sealing
        if self._socket is None or (self._address, self._key) != (address, known.key):
            self.close()
            try:
                self._connect(own, address, known.key)
            except zmq.ZMQError as error:
                name = errno.errorcode.get(error.errno or 0, error.errno)
                self.counters[f"snapshot_connect_{name}"] += 1
                self.close()
                return False
        return True

    def _connect(self, own: str, address: str, key: bytes) -> None:
        sock = self._context.socket(zmq.DEALER)
        self._socket, self._address, self._key = sock, address, key
        pair = curve_keys(key, "client")
        sock.linger = 0
        sock.rcvhwm = 256
        sock.setsockopt(zmq.MAXMSGSIZE, REPLY_BYTES_MAX)
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        sock.curve_serverkey = curve_keys(key, "server").public
        sock.curve_publickey = pair.public
        sock.curve_secretkey = pair.secret
        sock.setsockopt(zmq.IPV6, is_ipv6(address))
        # From its own address of that way: it is what the peer's firewall lets in.
        sock.connect(f"tcp://{literal(own)}:0;{literal(address)}:{self._port}")

    def use_keys(self, ring: Keyring) -> None:
        """For connections to come."""
        self._ring = ring

    def credit(self, applied: int, *, done: bool = False) -> None:
        self._send(SnapshotCredit(self._request, applied, done))

    def receive(self) -> SnapshotReply | None:
        """The next answer to the open request, or None."""
        while self._socket is not None:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                message = decode_reply(frames[-1])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.counters["snapshot_malformed"] += 1
                continue
            if message.request == self._request:
                return message
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: SnapshotRequest | SnapshotCredit) -> None:
        if self._socket is not None:
            with contextlib.suppress(zmq.Again):
                self._socket.send(encode_snapshot(message), zmq.NOBLOCK)
