"""One sender and one follower's way in, twice: by the reference, and natively.

What the kernel is asked for, what the stream knows, and everything that is counted must be alike.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import count
from typing import cast

from hafw.human import epoch_node
from sync._codec import Arrivals, Receiver
from sync.applier import Applier
from sync.control import (
    Beacon,
    Challenge,
    ChallengeReply,
    Nack,
    decode_control,
    encode_control,
)
from sync.ctsocket import RequestSocket
from sync.delta import Delta, ExpectDestroy, ExpectUpsert, encode_delta
from sync.detour import Detour
from sync.follower import Follower, FollowerPorts
from sync.inbox import Inbox
from sync.intake import reader
from sync.native_registry import NativeRegistry
from sync.outbox import DELTAS_BYTES_MAX, Outbox
from sync.paths import Paths
from sync.reception import Reception
from sync.registry import FlowRegistry, Registry
from sync.replica import TOMBSTONES_MAX, ReplicaGroup, Superseded
from sync.roles import RoleState
from sync.snapshot_client import SnapshotClient
from sync.stream import StreamReceiver
from sync.transport import Transport
from sync.wire import MessageType, Opener, Sealer
from tests.unit.sync.receive_world import (
    GROUPS,
    HASHES,
    HOLD_S,
    KEYS,
    Kernel,
    Script,
    no_dump,
)
from tests.unit.sync.sync_flows import epoch
from tests.unit.sync.test_inbox import Wire

__all__ = ["CLUSTER", "KEYRING", "Pair", "Receiving"]

CLUSTER = 7
KEYRING = {0: bytes(range(32)), 1: bytes(range(1, 33)), 9: bytes(range(9, 41))}
BOOT = 77
EPOCHS = (epoch(1, 1), epoch(3, 1))


def sealer(session: int, key_id: int, *, sender_id: int = 1, cluster_id: int = CLUSTER) -> Sealer:
    draw = random.Random(session).randbytes
    return Sealer(
        KEYRING[key_id],
        key_id=key_id,
        cluster_id=cluster_id,
        sender_id=sender_id,
        session=session,
        draw=draw,
    )


class Receiving:
    """Node 2: everything from the datagram to the request for the kernel."""

    def __init__(self, registry: FlowRegistry) -> None:
        self.registry = registry
        self.groups = {number: ReplicaGroup(epoch=EPOCHS[0]) for number in GROUPS}
        self.kernel = Kernel(0)
        self.receiver: Receiver | None = None
        self.arrivals: Arrivals | None = None
        if isinstance(registry, NativeRegistry):
            self.receiver = Receiver(registry.table, self.groups, HOLD_S, TOMBSTONES_MAX)
            self.arrivals = Arrivals(self.receiver, cluster_id=CLUSTER)
        self.wire = Wire([1, 3])
        transport = cast(Transport, self.wire)
        own = Outbox(
            lambda: sealer(2222, 0, sender_id=2),
            lambda datagram: None,
            ring_datagrams=64,
            peers=2,
            boot=BOOT,
        )
        keys = {number: KEYRING[number] for number in (0, 1)}
        self.inbox = Inbox(
            keys, 2, CLUSTER, own, transport, boot=BOOT, read=reader(self.receiver),
            paths=Paths({1: ["sync0"], 3: ["sync0"]}, unicast=False),
            detour=Detour({}, beacon_s=0.02),
        )  # fmt: skip
        nonces = count(1)
        self.inbox.stream = StreamReceiver(draw_nonce=lambda: next(nonces).to_bytes(16, "big"))
        applier = Applier(hold_s=HOLD_S, requests=cast(RequestSocket, self.kernel))
        self.clock_ns = 0
        self.follower = Follower(
            registry=registry,
            groups=self.groups,
            roles={number: RoleState() for number in GROUPS},
            applier=applier,
            stream=self.inbox.stream,
            client=cast(SnapshotClient, None),
            ports=FollowerPorts(
                self.superseded, no_dump, lambda: self.clock_ns
            ),
            receiver=self.receiver,
        )  # fmt: skip
        self.reception = Reception(transport, self.inbox, self.follower, self.arrivals)

    def superseded(self, effect: Superseded) -> None:
        self.follower.flush(now=0.0)
        self.groups[effect.group].epoch = effect.epoch
        self.groups[effect.group].active = False

    def hear(self, datagrams: list[bytes], now: float) -> None:
        self.clock_ns = int(now * 1e9)
        if self.arrivals is None:
            for datagram in datagrams:
                for item in self.inbox.on_datagram(datagram, now=now):
                    self.follower.on_incoming(item, now=now)
        else:
            self.arrivals.feed(datagrams)
            self.reception.run(self.arrivals, now=now)
        for item in self.inbox.tick(now=now):
            self.follower.on_incoming(item, now=now)
        self.follower.flush(now=now)

    def counters(self) -> list[Counter[str]]:
        applier = self.follower._applier
        parts = (self.inbox, self.inbox.stream, self.follower, self.follower.table, applier)
        return [+part.counters for part in parts]


class Spoken(Script):
    """Without expectations: what a flow expects is looked up when its request is built, and that
    is not at one time in both."""

    def delta(self, header_epoch: int) -> Delta:
        while isinstance(delta := super().delta(header_epoch), ExpectUpsert | ExpectDestroy):
            pass
        return delta


class Pair:
    """What happens between the sender and both receivers; each method is one happening."""

    def __init__(self, seed: int) -> None:
        self.slow, self.fast = Receiving(Registry(HASHES)), Receiving(NativeRegistry(HASHES))
        self.script = Spoken(seed)
        self.rng = self.script.rng
        self.now = 1.0
        self.sessions = count(1111)
        self.key_id = 0
        self.said: list[bytes] = []
        self.ring: dict[int, bytes] = {}
        self.past: list[bytes] = []
        self.restart()

    @property
    def natively(self) -> int:
        assert self.fast.receiver is not None
        return self.fast.receiver.taken

    # -- the sender

    def restart(self) -> None:
        """A new session, which both accept."""
        self.sealer = sealer(next(self.sessions), self.key_id)
        self.seqs = Counter[MessageType]()
        self.ring.clear()
        self.greet()

    def greet(self) -> None:
        """A beacon, the challenge that it raises, and the answer."""
        for _ in range(8):
            self.now += 1.0
            self.hear([self.beacon()])
            (challenges, same) = self.slow.wire.take(), self.fast.wire.take()
            assert challenges == same
            opener = Opener(KEYRING, cluster_id=CLUSTER)
            for header, payload in map(opener.open, challenges):
                challenge = decode_control(header.type, payload)
                if isinstance(challenge, Challenge):
                    nonce = challenge.nonce
                    answer = ChallengeReply(nonce, self.sealer.session, self.position)
                    said = self.seal(MessageType.CHALLENGE_REPLY, encode_control(answer))
                    self.hear([said])
            if self.slow.inbox.stream.accepted_session(1) == self.sealer.session:
                self.hear([self.beacon()])
                return
        raise AssertionError("the session is not accepted")

    def seal(self, kind: MessageType, payload: bytes, stated: int = 0) -> bytes:
        self.seqs[kind] += 1
        datagram = self.sealer.seal(kind, self.seqs[kind], stated, payload)
        self.past.append(datagram)
        return datagram

    @property
    def position(self) -> int:
        return self.seqs[MessageType.DELTAS]

    def beacon(self) -> bytes:
        oldest = min(self.ring, default=0)
        return self.seal(
            MessageType.BEACON,
            encode_control(Beacon(self.position, 0, {}, oldest, BOOT, {}, {0: 1})),
        )

    def say(self) -> bytes:
        """A datagram of deltas: nearly always right, sometimes of another epoch, or nonsense."""
        rng, script = self.rng, self.script
        stated = EPOCHS[1] if rng.randrange(12) == 0 else self.slow.groups[1].epoch
        stated = stated if epoch_node(stated) == 1 else EPOCHS[0]
        script.special = rng.randrange(20) == 0
        script.foreign = rng.randrange(8) == 0
        deltas = b""
        for _ in range(rng.choice((1, 2, 5, 30, 70))):
            more = encode_delta(script.delta(stated), header_epoch=stated)
            if len(deltas) + len(more) <= DELTAS_BYTES_MAX:
                deltas += more
        payload = int(self.now * 1e9).to_bytes(8, "big") + deltas
        match rng.randrange(40):
            case 0:
                payload = payload[: rng.randrange(12)]
            case 1:
                payload = payload[:-1]
            case 2:
                payload += rng.randbytes(rng.randrange(1, 9))
        datagram = self.seal(MessageType.DELTAS, payload, stated)
        self.ring[self.position] = datagram
        return datagram

    # -- the way

    def hear(self, datagrams: list[bytes]) -> None:
        for start in range(0, len(datagrams), 64):
            for one in (self.slow, self.fast):
                one.hear(datagrams[start : start + 64], self.now)

    def mangled(self, datagram: bytes) -> bytes:
        """As a stranger would change it, or as another cluster would say it."""
        rng = self.rng
        at = rng.randrange(len(datagram))
        match rng.randrange(6):
            case 0:
                return datagram[:at]
            case 1:
                return datagram + rng.randbytes(rng.randrange(1, 40))
            case 2:
                session = rng.choice((5, self.sealer.session))
                other = sealer(session, rng.choice((0, 1, 9)), sender_id=rng.choice((1, 3, 4)))
                return other.seal(MessageType.DELTAS, self.position + 1, EPOCHS[0], bytes(30))
            case 3:
                other = sealer(self.sealer.session, 0, cluster_id=CLUSTER + 1)
                return other.seal(MessageType.DELTAS, self.position + 1, EPOCHS[0], bytes(30))
            case 4:
                return rng.choice(self.past)
            case _:
                flipped = datagram[at] ^ (1 << rng.randrange(8))
                return datagram[:at] + bytes((flipped,)) + datagram[at + 1 :]

    def turn(self) -> None:
        """Some datagrams over two links, with loss, copies, disorder and strangers; then what was
        asked for again."""
        rng = self.rng
        self.now += rng.choice((0.0002, 0.002, 0.02))
        arriving: list[bytes] = []
        for _ in range(rng.choice((1, 2, 12))):
            if rng.randrange(25) == 0:
                self.key_id = rng.choice((0, 1))
                self.sealer.use_key(self.key_id, KEYRING[self.key_id])
            said = self.beacon() if rng.randrange(10) == 0 else self.say()
            if rng.randrange(12) == 0:
                arriving.append(self.mangled(said))
            arriving += [said] * rng.choice((0, *(1,) * 12, 2, 2, 2))
        if rng.randrange(6) == 0:
            rng.shuffle(arriving)
        self.hear(arriving)
        if rng.randrange(40) == 0:
            self.restart()
        if rng.randrange(25) == 0:
            for one in (self.slow, self.fast):
                one.inbox.opener.accept_keys({number: KEYRING[number] for number in (0, 1)})
                one.reception.forget_keys()
        self.repair()

    def repair(self) -> None:
        asked, same = self.slow.wire.take(), self.fast.wire.take()
        assert asked == same
        opener = Opener(KEYRING, cluster_id=CLUSTER)
        for header, payload in map(opener.open, asked):
            if header.type is not MessageType.NACK:
                continue
            nack = decode_control(header.type, payload)
            assert isinstance(nack, Nack)
            wanted = [seq for first, last in nack.ranges for seq in range(first, last + 1)]
            if self.rng.randrange(4):
                self.hear([self.ring[seq] for seq in wanted if seq in self.ring])

    def compare(self) -> None:
        slow, fast = self.slow, self.fast
        assert fast.kernel.asked == slow.kernel.asked
        assert fast.counters() == slow.counters()
        assert fast.inbox.stream.view(1) == slow.inbox.stream.view(1)
        assert fast.groups == slow.groups
        assert [fast.registry.get(key) for key in KEYS] == [slow.registry.get(k) for k in KEYS]
        for number in GROUPS:
            assert fast.registry.digest(number) == slow.registry.digest(number)
        delays = [one.follower.delays.percentiles(1, self.now) for one in (slow, fast)]
        assert delays[0] == delays[1]
        for one in (slow, fast):
            one.kernel.asked.clear()
