"""Keys and messages of snapshots."""

from __future__ import annotations

import msgspec
import pytest
from zmq.utils import z85

from sync.curve import curve_keys
from sync.snapshot_wire import (
    SnapshotChunk,
    SnapshotEnd,
    SnapshotHead,
    SnapshotRefused,
    SnapshotReply,
    SnapshotRequest,
    decode_reply,
    encode_snapshot,
)


def test_the_ends_have_different_keys_and_every_node_the_same() -> None:
    master = bytes(range(32))
    server, client = curve_keys(master, "server"), curve_keys(master, "client")
    assert server == curve_keys(master, "server")
    assert len({server.public, server.secret, client.public, client.secret}) == 4
    assert len(z85.decode(server.secret)) == 32
    assert curve_keys(bytes(32), "server") != server
    assert z85.decode(server.secret) != master


@pytest.mark.parametrize(
    "message",
    [
        SnapshotHead(1, 2, 3, 4, 5),
        SnapshotRefused(1, "no"),
        SnapshotChunk(1, 0, b"\x00\xff"),
        SnapshotEnd(1, 2, 3, 4),
    ],
)
def test_replies_survive_the_way(message: SnapshotReply) -> None:
    assert decode_reply(encode_snapshot(message)) == message


def test_what_is_no_reply_is_refused() -> None:
    for payload in (b"", b"\xc1", encode_snapshot(SnapshotRequest(1, 1, 1))):
        with pytest.raises(msgspec.DecodeError):
            decode_reply(payload)
