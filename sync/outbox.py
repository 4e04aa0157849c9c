"""The sending end: deltas -> sealed datagrams -> every link and the ring. Also the beacon.

A datagram is flushed when the next delta would not fit and at the end of each turn of the main
loop, so that no delta waits for company. Its payload is 8 bytes of CLOCK_BOOTTIME (when it was
sealed: receivers on the same kernel measure the delay by it), then the deltas.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sync.control import Ack, Beacon, Control, control_type, encode_control
from sync.delta import Delta, encode_delta
from sync.ledger import Ledger
from sync.ring import KeptDatagrams, Repairer, SendRing
from sync.wire import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    TAG_BYTES,
    MessageType,
    Seals,
)

__all__ = ["DELTAS_BYTES_MAX", "STAMP", "Outbox", "deltas_room"]

STAMP = struct.Struct(">Q")
DELTAS_BYTES_MAX = PAYLOAD_BYTES_MAX - STAMP.size
"""Of deltas in one datagram."""


def deltas_room(datagram_bytes: int) -> int:
    """Bytes of deltas in a datagram of this size."""
    assert HEADER_BYTES + TAG_BYTES + STAMP.size < datagram_bytes <= DATAGRAM_BYTES_MAX
    return datagram_bytes - HEADER_BYTES - TAG_BYTES - STAMP.size


class Outbox:
    """Everything this node says on the stream."""

    def __init__(
        self,
        new_sealer: Callable[[], Seals],
        to_all: Callable[[bytes], None],
        *,
        ring_datagrams: int,
        peers: int,
        boot: int,
        first_said: Callable[[], int] = lambda: 0,
    ) -> None:
        """`new_sealer` draws a session; `first_said` is how many flows were ever published."""
        self._new_sealer = new_sealer
        self._to_all = to_all
        self._ring_datagrams = ring_datagrams
        self._peers = peers
        self._boot = boot
        self._first_said = first_said
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._room = DELTAS_BYTES_MAX
        self._epoch = 0
        self.counters: Counter[str] = Counter()
        self.begin_session()

    def begin_session(self) -> None:
        """Be a new sender: every peer asks for proof and fetches a snapshot."""
        self.sealer = self._new_sealer()
        self._said = self._first_said()
        self.ring, self.ledger = self._begin_stream(self._said)
        self.repairer = Repairer(self.ring, peers=self._peers, counters=self.counters)
        self._repairs_from = 1
        self._control_seq: Counter[MessageType] = Counter()
        self.counters["sessions_begun"] += 1

    def _begin_stream(self, published: int) -> tuple[KeptDatagrams, Ledger]:
        self._sent = SendRing(self._ring_datagrams)
        return self._sent, Ledger(self._ring_datagrams, published)

    @property
    def session(self) -> int:
        return self.sealer.session

    @property
    def beacons_said(self) -> int:
        """The newest seq of a beacon of this session."""
        return self._control_seq[MessageType.BEACON]

    @property
    def position(self) -> int:
        """The newest seq sent. Flush first for it to cover everything published."""
        return self.ring.high_water

    def put(self, delta: Delta) -> None:
        epoch = delta.version.epoch
        self.put_encoded(epoch, encode_delta(delta, header_epoch=epoch), 1)

    def put_encoded(self, epoch: int, deltas: bytes, count: int) -> None:
        """Whole deltas of one epoch, written for a header that says it, that fit one datagram."""
        if epoch != self._epoch:
            self.flush()
            self._epoch = epoch
        if self._pending_bytes + len(deltas) > self._room:
            self.flush()
        self._pending.append(deltas)
        self._pending_bytes += len(deltas)
        self._said = self._first_said()
        self.counters["deltas_sent"] += count

    def fit(self, datagram_bytes: int) -> None:
        """Datagrams to come are no larger, but for a delta that is alone and does not fit. Those
        that were larger are not promised any more: they would be asked for again and again."""
        self.flush()
        room = deltas_room(datagram_bytes)
        if room < self._room:
            self._repairs_from = self.ring.high_water + 1
        self._room = room

    def flush(self) -> None:
        if not self._pending:
            return
        seq = self.ring.high_water + 1
        payload = b"".join(
            (STAMP.pack(time.clock_gettime_ns(time.CLOCK_BOOTTIME)), *self._pending)
        )
        self._pending.clear()
        self._pending_bytes = 0
        datagram = self.sealer.seal(MessageType.DELTAS, seq, self._epoch, payload)
        self._sent.push(seq, datagram)
        self.ledger.sent(seq, self._said, now=time.monotonic())
        self.counters["datagrams_sent"] += 1
        self.counters["bytes_sent"] += len(datagram)
        self._to_all(datagram)

    def tally(self) -> Counter[str]:
        """The counters, as of now."""
        return self.counters

    def seal(self, control: Control) -> bytes:
        """A control datagram of this session."""
        kind = control_type(control)
        self._control_seq[kind] += 1
        return self.sealer.seal(kind, self._control_seq[kind], 0, encode_control(control))

    def beacon(
        self,
        epochs: dict[int, int],
        acks: dict[int, Ack],
        keys: Mapping[int, int],
        deaf: Sequence[int] = (),
    ) -> None:
        ring = self.ring
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        low_water = max(ring.low_water, self._repairs_from)
        beacon = Beacon(
            ring.high_water, now_ns, epochs, low_water, self._boot, acks, dict(keys), list(deaf)
        )
        self._to_all(self.seal(beacon))
