"""Everything that reads bytes of a peer or of the kernel, in Python."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sync.control import decode_control
from sync.ctnetlink import (
    MalformedMessageError,
    build_create,
    build_expect_create,
    parse_dump,
    parse_errors,
    parse_mixed_events,
)
from sync.delta import DeltaError, ExpectUpsert, Upsert, decode_deltas, encode_deltas
from sync.snapshot_wire import decode_reply
from sync.wire import MessageType, Opener, WireError
from tests.fuzz.mutation import Target

__all__ = ["CLUSTER_ID", "MASTER", "TARGETS"]

CLUSTER_ID = 7
MASTER = bytes(range(32))
CONTROLS = [kind for kind in MessageType if kind is not MessageType.DELTAS]


def datagram(data: bytes) -> None:
    opener = Opener({0: MASTER}, cluster_id=CLUSTER_ID, senders={1, 2})
    try:
        opener.open(data)
    except WireError:
        return


def control(data: bytes) -> None:
    for kind in CONTROLS:
        try:
            decode_control(kind, data)
        except WireError:
            continue


def delta(data: bytes) -> None:
    try:
        deltas = decode_deltas(data, header_epoch=1)
    except DeltaError:
        return
    assert decode_deltas(encode_deltas(deltas, header_epoch=1), header_epoch=1) == deltas
    for one in deltas:
        if isinstance(one, Upsert):
            build_create(one.entry, with_master=True)
        elif isinstance(one, ExpectUpsert):
            build_expect_create(one.expectation)


def snapshot(data: bytes) -> None:
    try:
        decode_reply(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return


def message(data: bytes) -> None:
    readers: tuple[Callable[[bytes], object], ...] = (parse_mixed_events, parse_dump, parse_errors)
    for read in readers:
        try:
            read(data)
        except MalformedMessageError:
            continue


TARGETS: dict[str, Target] = {
    "datagram": datagram,
    "control": control,
    "delta": delta,
    "snapshot": snapshot,
    "message": message,
}
