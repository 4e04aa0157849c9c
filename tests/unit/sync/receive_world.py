"""One follower's receiving path twice, over the same input: by the reference, and natively.

The kernel is a stand-in: it keeps what it is asked, and refuses by the bytes of a request, so that
both see the same refusals as long as both ask for the same.
"""

from __future__ import annotations

import errno
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from hafw.flow import (
    AF_INET6,
    FlowEntry,
    FlowKey,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
    hafw_mark,
    inverse,
)
from hafw.human import epoch_node
from sync._codec import Batch, Receiver
from sync.applier import Applier
from sync.ctnetlink import parse_dump
from sync.ctsocket import RequestSocket
from sync.delta import (
    Delta,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    GroupDigest,
    Upsert,
    Version,
    encode_deltas,
)
from sync.dumper import Dumper
from sync.flowhash import FlowHash
from sync.intake import Intake
from sync.native_registry import NativeRegistry
from sync.ops import KernelOp
from sync.registry import Flag, FlowRegistry, Registry
from sync.replica import TOMBSTONES_MAX, Compared, Hole, ReplicaGroup, ReplicaTable, Superseded
from sync.upkeep import Upkeep
from tests.unit.sync.flow_strategies import write_attributes, write_message
from tests.unit.sync.sync_flows import epoch, tcp, udp
from tests.unit.sync.test_ctnetlink_expect import V4

HASHES = FlowHash(bytes(range(7, 39)))
HOLD_S = 900
GROUPS = (1, 2)
FLAGS = [flag for flag in Flag if flag is not Flag.PASSED_BY]
REFUSALS = (errno.EEXIST, errno.ENOENT, errno.EBUSY, errno.ENOMEM)


def no_dump(group: int) -> Dumper:
    raise AssertionError(f"nobody dumps group {group} here")


class Kernel:
    """`RequestSocket` without a socket. `refuse`: one request in so many."""

    def __init__(self, refuse: int) -> None:
        self.refuse = refuse
        self.code = 0
        """Instead: every request is answered by this."""
        self.asked: list[bytes] = []

    def execute(self, messages: Sequence[bytes]) -> list[int]:
        self.asked += messages
        return [self._answer(message) for message in messages]

    def execute_batch(self, batch: Batch) -> list[tuple[int, int]]:
        codes = self.execute(batch.as_messages())
        return [(index, code) for index, code in enumerate(codes) if code]

    def get(self, key: FlowKey) -> FlowEntry | None:
        return None

    def _answer(self, message: bytes) -> int:
        if self.code:
            return self.code
        if not self.refuse:
            return 0
        luck, which = divmod(zlib.crc32(message), len(REFUSALS))
        return 0 if luck % self.refuse else REFUSALS[which]


class World:
    """A follower without its process: `Follower._on_delta` and `flush` in short."""

    def __init__(self, registry: FlowRegistry, refuse: int) -> None:
        self.registry = registry
        self.groups = {number: ReplicaGroup() for number in GROUPS}
        self.kernel = Kernel(refuse)
        self.table = ReplicaTable(registry, self.groups)
        self.applier = Applier(
            hold_s=HOLD_S,
            requests=cast(RequestSocket, self.kernel),
            expectations_of=registry.expectations.of,
        )
        self.receiver: Receiver | None = None
        if isinstance(registry, NativeRegistry):
            self.receiver = Receiver(registry.table, self.groups, HOLD_S, TOMBSTONES_MAX)
        self.intake = Intake(self.table, self.applier, self.receiver)
        self.upkeep = Upkeep(
            registry,
            {},
            self.applier,
            start_dump=no_dump,
            pass_over=self.intake.pass_over,
            is_whole=lambda group: True,
        )
        self.seen: list[object] = []
        self.taken = 0
        self.swept = 0

    def live(self, payload: bytes, header_epoch: int, sender_id: int) -> None:
        def slow(delta: Delta) -> None:
            effects = self.table.on_delta(delta, sender_id)
            if effects and isinstance(effects[0], Superseded):
                self.seen.append(effects[0])
                self.groups[effects[0].group].epoch = effects[0].epoch
                self.groups[effects[0].group].active = False
                effects = self.table.on_delta(delta, sender_id)
            for effect in effects:
                if isinstance(effect, Hole | Superseded | Compared):
                    self.seen.append(effect)
                else:
                    self.intake.ask(effect)
            # What a flow expects is looked up as it is replaced: both must look at one time.
            self.intake.flush()

        deltas = self.intake.read(payload, header_epoch)
        self.taken += self.intake.live(payload, deltas, header_epoch, sender_id, slow)

    def snapshot(self, payload: bytes, header_epoch: int, group: int) -> None:
        deltas = self.intake.read(payload, header_epoch)
        for part in [None] if deltas is None else [[delta] for delta in deltas]:
            self.taken += self.intake.snapshot(payload, part, header_epoch, group)
            self.intake.flush()  # As in `live`.

    def sweep(self, dump: bytes, group: int) -> None:
        self.flush()
        chunk = parse_dump(dump).entries if self.receiver is None else dump
        self.swept += self.intake.sweep(chunk, group)

    def look_over(self, dump: bytes, group: int) -> None:
        """As `Upkeep` after lost events, without its end."""
        self.flush()
        chunk = parse_dump(dump).entries if self.receiver is None else dump
        self.registry.set_all(group, Flag.UNPASSED)
        self.swept += self.upkeep.look_over(chunk, group)

    def ops(self, ops: list[KernelOp]) -> None:
        self.flush()
        self.applier.apply(ops)

    def flush(self) -> None:
        self.intake.flush()
        for key in self.applier.take_refused():
            self.table.forget(key)


@dataclass
class Both:
    """Every step in both, and what must be equal after it."""

    slow: World
    fast: World

    @classmethod
    def begin(cls, *, refuse: int = 0) -> Both:
        return cls(World(Registry(HASHES), refuse), World(NativeRegistry(HASHES), refuse))

    def worlds(self) -> tuple[World, World]:
        return self.slow, self.fast

    def compare(self, keys: Sequence[FlowKey]) -> None:
        for world in self.worlds():
            world.flush()
        slow, fast = self.slow, self.fast
        if slow.kernel.refuse:
            # Repairs come after their batch, and native batches are longer.
            assert sorted(fast.kernel.asked) == sorted(slow.kernel.asked)
        assert slow.kernel.refuse or fast.kernel.asked == slow.kernel.asked
        assert (fast.seen, fast.taken, fast.swept) == (slow.seen, slow.taken, slow.swept)
        assert fast.groups == slow.groups
        assert len(fast.registry) == len(slow.registry)
        assert [fast.registry.get(key) for key in keys] == [slow.registry.get(key) for key in keys]
        for number in GROUPS:
            assert fast.registry.digest(number) == slow.registry.digest(number)
            for flag in FLAGS:
                one, two = (world.registry.count_flag(number, flag) for world in self.worlds())
                assert one == two, flag
        assert set(fast.registry.expectations.all()) == set(slow.registry.expectations.all())
        assert fast.table.counters == slow.table.counters
        assert fast.applier.counters == slow.applier.counters
        for world in self.worlds():
            world.kernel.asked.clear()


V6 = Tuple(AF_INET6, 17, bytes(15) + b"\1", bytes(15) + b"\2", 500, 53)
V6_ENTRY = FlowEntry(FlowKey(3, V6), replace(inverse(V6), dst=bytes(15) + b"\3"), 0x0E, 30)
BASE = [
    *(udp(port) for port in range(1, 6)),
    *(tcp(port) for port in range(1, 9)),
    V6_ENTRY,
    replace(tcp(40), labels=bytes(range(16))),
]
MASTERS = [tcp(50), tcp(51)]
KEYS = [entry.key for entry in (*BASE, *MASTERS)]
EPOCHS = [epoch(1, 1), epoch(2, 2), epoch(3, 1), epoch(4, 3)]


class Script:
    """A seed's input: mostly what a holder says, sometimes what it should not."""

    def __init__(self, seed: int, *, special: bool = True) -> None:
        self.rng = random.Random(seed)
        self.special = special
        self.foreign = False
        """This payload has what the native codec does not read."""
        self.lives: dict[FlowKey, tuple[FlowEntry, int]] = {}

    def one_in(self, count: int) -> bool:
        return self.special and self.rng.randrange(count) == 0

    def entry(self) -> FlowEntry:
        rng = self.rng
        entry = rng.choice(BASE)
        if self.one_in(6):
            entry = replace(rng.choice(MASTERS), helper="ftp")
        if entry.tcp is not None:
            state = TcpState(rng.randrange(1, 9), rng.randrange(256), 0x23, 7, 8)
            entry = replace(entry, tcp=None if rng.randrange(5) == 0 else state)
        if rng.randrange(6) == 0:
            reply = replace(entry.reply, dport=entry.reply.dport ^ 1)
            entry = replace(entry, reply=reply)
        if self.one_in(20):
            entry = replace(entry, seqadj=(SeqAdj(1, 2, 3), SeqAdj(0, 0, 0)))
        if self.one_in(30) and entry.key != V6_ENTRY.key:
            entry = replace(entry, master=MASTERS[0].key.orig, status=entry.status | 1)
        if self.foreign and self.one_in(10):
            entry = replace(entry, synproxy=SynProxy(4, 5, 6))
        group = 2 if self.one_in(8) else 1
        group = 3 if self.one_in(40) else group
        mark = hafw_mark(group, 1, 1) | rng.randrange(3)
        timeout = rng.choice((None, 30, 86_400))
        status = rng.choice((entry.status, 0x0A, 0x4E))
        return replace(entry, mark=mark, timeout_s=timeout, status=status & 0x7F)

    def delta(self, header_epoch: int) -> Delta:
        rng = self.rng
        stated = rng.choice(EPOCHS) if self.one_in(12) else header_epoch
        version = Version(stated, rng.randrange(3) if self.one_in(10) else 0)
        if self.foreign and self.one_in(8):
            return GroupDigest(rng.choice(GROUPS), 128, tuple(range(128)), version)
        if self.foreign and self.one_in(5):
            child = replace(V4, master=rng.choice(MASTERS).key)
            if rng.randrange(3) == 0:
                return ExpectDestroy(child.master, child.expected, 5, version)
            return ExpectUpsert(child, 5, version)
        if rng.randrange(4) == 0 and self.lives:
            key = rng.choice(sorted(self.lives, key=str))
            entry, incarnation = self.lives.pop(key)
            stored = HASHES.contribution(entry, incarnation)
            wrong = 1 if self.one_in(10) else 0
            return Destroy(key, incarnation + wrong, version, stored)
        entry = self.entry()
        known = self.lives.get(entry.key)
        incarnation = 5 if known is None or rng.randrange(4) else rng.randrange(5, 8)
        self.lives[entry.key] = entry, incarnation
        return Upsert(entry, incarnation, version, refresh=bool(rng.randrange(2)))

    def dump(self) -> bytes:
        """Entries that the kernel may show, known or not; and the end."""
        shown = [self.entry() for _ in range(self.rng.choice((0, 5, 100)))]
        messages = [write_message(0x100, 2, 0, write_attributes(entry)) for entry in shown]
        return b"".join(messages) + struct.pack("=IHHIIi", 20, 3, 2, 1, 7, 0)

    def payload(self, header_epoch: int) -> bytes:
        count = self.rng.choice((1, 3, 8, 40, 90))
        self.foreign = self.one_in(5)
        deltas = [self.delta(header_epoch) for _ in range(count)]
        return encode_deltas(deltas, header_epoch=header_epoch)


def step(both: Both, script: Script) -> None:
    """One thing happens to both."""
    rng = script.rng
    number = 2 if script.one_in(6) else 1
    header_epoch = rng.choice(EPOCHS) if script.one_in(6) else both.slow.groups[number].epoch
    header_epoch = header_epoch or EPOCHS[0]
    match rng.choice(
        ("live",) * 6 + ("snapshot",) * 3 + ("await", "begin", "end", "role", "pass")
    ):
        case "live":
            payload = script.payload(header_epoch)
            sender_id = rng.choice((1, 2, 3)) if script.one_in(8) else epoch_node(header_epoch)
            for world in both.worlds():
                world.live(payload, header_epoch, sender_id)
        case "snapshot" if both.slow.groups[number].snapshot:
            payload = script.payload(header_epoch)
            for world in both.worlds():
                world.snapshot(payload, header_epoch, number)
        case "await":
            buckets = frozenset(range(0, 256, 2)) if script.one_in(2) else None
            for world in both.worlds():
                world.table.await_snapshot(number, buckets)
        case "begin" if both.slow.groups[number].snapshot:
            for world in both.worlds():
                world.table.begin_snapshot(number)
        case "end" if both.slow.groups[number].snapshot:
            broken = rng.randrange(3) == 0
            dump = script.dump()
            for world in both.worlds():
                if broken:
                    world.table.abort_snapshot(number)
                else:
                    world.ops(world.table.end_snapshot(number))
                    world.sweep(dump, number)
                    world.table.snapshot_swept(number)
        case "pass":
            dump = script.dump()
            for world in both.worlds():
                world.look_over(dump, number)
        case "role":
            stale, active = rng.randrange(3) == 0, script.one_in(8)
            suspect = rng.randrange(2) == 0
            for world in both.worlds():
                world.groups[number].active = active
                world.groups[number].suspect = suspect
                if stale:
                    world.table.mark_stale(number)
        case _:
            return
