"""What the fuzzers begin with: bytes recorded from a kernel, and what our own encoders write."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

from hafw.flow import AF_INET6, FlowEntry, FlowKey, SeqAdj, SynProxy, Tuple, inverse
from sync.control import Challenge, ChallengeReply, Control, Nack, encode_control
from sync.control import control_type as type_of
from sync.delta import ExpectUpsert, GroupDigest, encode_delta
from sync.snapshot_wire import (
    SnapshotChunk,
    SnapshotHead,
    SnapshotRefused,
    encode_snapshot,
)
from sync.wire import MessageType, Sealer
from tests.fuzz.targets import CLUSTER_ID, MASTER
from tests.unit.sync.test_ctnetlink_expect import MADE_V4, MADE_V6, V4
from tests.unit.sync.test_ctnetlink_parse import GOLDEN
from tests.unit.sync.test_delta import DESTROY, KEY, UPSERT

__all__ = ["CORPUS", "RICH"]

RICH = replace(
    UPSERT.entry, helper="ftp", labels=bytes(16), seqadj=(SeqAdj(9, -1, 2),) * 2, master=KEY.orig
)
PING6 = Tuple(AF_INET6, 58, bytes(15) + b"1", bytes(15) + b"2", 7, 128 << 8)
PING6_ENTRY = FlowEntry(
    FlowKey(5, PING6), replace(inverse(PING6), dst=bytes(15) + b"3", sport=9), 0x0E, 30
)
SYNPROXIED = replace(UPSERT.entry, synproxy=SynProxy(1, 2, 3))

DELTAS = [
    encode_delta(UPSERT, header_epoch=UPSERT.version.epoch),
    encode_delta(UPSERT),
    encode_delta(DESTROY),
    encode_delta(UPSERT) + encode_delta(DESTROY),
    encode_delta(ExpectUpsert(V4, 7, UPSERT.version)) + encode_delta(UPSERT),
    encode_delta(replace(UPSERT, entry=RICH)),
    encode_delta(replace(UPSERT, entry=PING6_ENTRY)) + encode_delta(DESTROY),
    encode_delta(replace(UPSERT, entry=SYNPROXIED)),
    encode_delta(GroupDigest(1, 254, (7, 1 << 63), UPSERT.version)),
]
REFUSAL = struct.pack("=IHHIIi", 36, 2, 0, 1, 77, -17) + struct.pack("=IHHII", 200, 0x100, 0, 1, 0)
MESSAGES = [bytes.fromhex(golden) for golden in (*GOLDEN, MADE_V4, MADE_V6)] + [REFUSAL]
SAID: list[Control] = [
    Nack(7, [(1, 5), (9, 9)]),
    Challenge(bytes(16)),
    ChallengeReply(bytes(16), 7, 9),
]
CONTROLS = [encode_control(one) for one in SAID]
SNAPSHOTS = [
    encode_snapshot(one)
    for one in (SnapshotHead(1, 2, 3, 4, 5), SnapshotRefused(1, "no"), SnapshotChunk(1, 0, b"\0"))
]


def _datagrams() -> list[bytes]:
    sealer = Sealer(
        MASTER, key_id=0, cluster_id=CLUSTER_ID, sender_id=1, session=5, draw=os.urandom
    )
    sealed = [sealer.seal(MessageType.DELTAS, 1, 9, DELTAS[0])]
    sealed += [sealer.seal(type_of(one), 1, 9, encode_control(one)) for one in SAID]
    return sealed


CORPUS: dict[str, list[bytes]] = {
    "datagram": _datagrams(),
    "control": CONTROLS,
    "delta": DELTAS,
    "snapshot": SNAPSHOTS,
    "message": MESSAGES,
}
