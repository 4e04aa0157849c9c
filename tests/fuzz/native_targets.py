"""Everything in `sync._codec` that reads bytes: of a peer, of the kernel, of a socket.

Without any test library: the sanitized child runs these, beside a codec of its own.
"""

from __future__ import annotations

import random
import socket

from hafw.human import make_epoch
from sync import _codec
from sync.ctnetlink import MalformedMessageError
from sync.delta import DeltaError
from sync.delta_fields import read_varint
from sync.flowhash import FlowHash
from sync.native_registry import NativeRegistry
from sync.registry import Flag
from sync.replica import TOMBSTONES_MAX, ReplicaGroup
from sync.wire import MessageType, Sealer, derive_key
from tests.fuzz.mutation import Target
from tests.fuzz.targets import CLUSTER_ID, MASTER

__all__ = ["NATIVE_TARGETS"]

EPOCH = make_epoch(1, 1, 1)
PAYLOADS = "delta"
DATAGRAMS = "datagram"
MESSAGES = "message"


def reader(data: bytes) -> None:
    _codec.check_deltas(data, None)
    found = _codec.decode_deltas(data, EPOCH)
    assert _codec.check_deltas(data, EPOCH) == (found if isinstance(found, str) else None)
    for destroy, what, *_ in found if isinstance(found, list) else []:
        if destroy:
            _codec.build_delete(what)  # type: ignore[arg-type]
        else:
            _codec.build_create(what, hold_s=900)  # type: ignore[arg-type]


class Applying:
    """One registry for all inputs; sometimes a snapshot is under way."""

    def __init__(self) -> None:
        self.registry = NativeRegistry(FlowHash(bytes(range(1, 33))))
        self.groups = {number: ReplicaGroup(epoch=EPOCH) for number in range(1, 16)}
        table = self.registry.table
        self.receiver = _codec.Receiver(table, self.groups, 900, TOMBSTONES_MAX)
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        number = 1 + self.inputs // 100 % 15
        self.groups[number].suspect = bool(self.inputs & 64)
        self.groups[number].snapshot = bool(self.inputs & 128)
        if self.inputs % 500 == 0:
            self.registry.set_all(number, Flag.STALE | Flag.UNSEEN)
        if self.inputs % 5000 == 0:
            self.registry.drop_flagged(number, Flag.STALE)
        self.walk(data, number, snapshot=self.groups[number].snapshot)

    def walk(self, data: bytes, number: int, *, snapshot: bool) -> None:
        """As `Intake` does, but for what the reference would do."""
        receiver, at = self.receiver, 0
        while at < len(data):
            if snapshot:
                at = receiver.take_snapshot(data, at, EPOCH, number)
            else:
                at = receiver.take(data, at, EPOCH, 1)
            if at < len(data) and not receiver.batch.full:
                try:
                    length, start = read_varint(data, at, len(data))
                except DeltaError:
                    break
                at = start + length
            for index in range(receiver.batch.messages):
                receiver.batch.request(index)
            receiver.batch.as_messages()
            receiver.batch.clear()


class Answers:
    """The kernel's answers to a batch, on a socket that is not the kernel's."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.applying = Applying()

    def __call__(self, data: bytes) -> None:
        receiver = self.applying.receiver
        receiver.take(GOOD, 0, EPOCH, 1)
        if data:
            self.theirs.send(data[:60_000])
        receiver.batch.send(self.ours.fileno(), 1)
        receiver.batch.clear()
        self.theirs.recv(1 << 20)


class Sweeping:
    """What a dump shows, beside a registry."""

    def __init__(self) -> None:
        self.applying = Applying()

    def __call__(self, data: bytes) -> None:
        receiver, at = self.applying.receiver, 0
        receiver.take(GOOD, 0, EPOCH, 1)
        while at < len(data):
            try:
                at, _ = receiver.sweep(data, at, 1 + len(data) % 15, len(data) % 2 == 0)
            except MalformedMessageError:
                break
            for index in range(receiver.batch.messages):
                receiver.batch.request(index)
            receiver.batch.clear()
        receiver.batch.clear()


def messages(data: bytes) -> None:
    try:
        _codec.read_events(data)
    except MalformedMessageError:
        return


class Pumping:
    """The event socket, which is not the kernel's, and one datagram handed in."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.registry = NativeRegistry(FlowHash(bytes(range(1, 33))))
        self.pump = _codec.EventPump(
            self.registry.table,
            _codec.Incarnations(7),
            room=1300,
            slow_flags=Flag.ADOPTED | Flag.LIBERAL,
            passed_by=Flag.PASSED_BY,
            unpassed=Flag.UNPASSED,
            own_port=77,
        )
        self.pump.hold(dict.fromkeys(range(1, 16), EPOCH), (2,))

    def __call__(self, data: bytes) -> None:
        self.pump.feed(data)
        if data:
            self.theirs.send(data[:60_000])
            self.pump.drain(self.ours.fileno(), 64)


class Arriving:
    """A datagram as somebody says it, and a peer's own with these bytes for its payload."""

    SESSION = 5

    def __init__(self) -> None:
        self.applying = Applying()
        self.arrivals = _codec.Arrivals(self.applying.receiver, cluster_id=CLUSTER_ID)
        key = derive_key(MASTER, cluster_id=CLUSTER_ID, sender_id=1, session=self.SESSION)
        self.arrivals.use_key(1, self.SESSION, 0, key)
        self.sealer = Sealer(
            MASTER,
            key_id=0,
            cluster_id=CLUSTER_ID,
            sender_id=1,
            session=self.SESSION,
            draw=random.Random(1).randbytes,
        )
        self.seq = 0

    def __call__(self, data: bytes) -> None:
        self.hear([data, data], 0)
        self.seq += 1
        sealed = self.sealer.seal(MessageType.DELTAS, self.seq, EPOCH, data[:60_000])
        self.hear([sealed, sealed], self.seq - 1)

    def hear(self, datagrams: list[bytes], delivered: int) -> None:
        """As `Reception` does, but for what the reference would do."""
        arrivals, batch = self.arrivals, self.applying.receiver.batch
        arrivals.feed(datagrams)
        arrivals.stand(1, self.SESSION, delivered, True)
        while (why := arrivals.run()) != arrivals.EMPTY:
            arrivals.moved()
            if why == arrivals.REST:
                arrivals.rest()
            elif why in (arrivals.RAW, arrivals.UNKEYED):
                arrivals.last()
            for index in range(batch.messages):
                batch.request(index)
            batch.clear()
        arrivals.moved()


GOOD = bytes.fromhex(
    "26006806c000020ac63364019c400050a1b2c3d4000e1141000780af1ac63364fe040003772323"
)
"""A creation: IPv4, TCP with SNAT."""

NATIVE_TARGETS: dict[str, tuple[str, Target]] = {
    "native_reader": (PAYLOADS, reader),
    "native_applying": (PAYLOADS, Applying()),
    "native_answers": (MESSAGES, Answers()),
    "native_messages": (MESSAGES, messages),
    "native_sweeping": (MESSAGES, Sweeping()),
    "native_pump": (MESSAGES, Pumping()),
    "native_arriving": (DATAGRAMS, Arriving()),
    "native_opened": (PAYLOADS, Arriving()),
}
"""With the name of the corpus that each begins with."""
