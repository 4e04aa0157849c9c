"""Who gets a slot of the snapshot server. Real sockets that nobody connects to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import zmq

from hafw.keyring import Keyring, RingKey
from sync.dumper import Dumper
from sync.flowhash import FlowHash
from sync.registry import Registry
from sync.snapshot import JOBS_MAX, SILENT_GIVES_WAY_S, Serving, SnapshotServer
from sync.snapshot_wire import (
    SnapshotCredit,
    SnapshotHead,
    SnapshotRefused,
    SnapshotReply,
    SnapshotRequest,
)
from tests.unit.sync.sync_flows import GROUP

RING = Keyring((RingKey(0, bytes(32)),), 0, bytes(32))


class Idle:
    """A dump that shows nothing yet."""

    ready = done = False
    error = None
    cancelled = 0

    def cancel(self) -> None:
        Idle.cancelled += 1

    def take_any(self) -> None:
        return None


class Server(SnapshotServer):
    """Its answers are kept, by node."""

    said: dict[bytes, SnapshotReply]

    def _send(self, identity: bytes, message: SnapshotReply) -> bool:
        self.said[identity] = message
        return True

    def ask(self, node_id: int, *, now: float) -> SnapshotReply:
        self._begin(bytes([node_id]), SnapshotRequest(1, node_id, GROUP), now)
        return self.said[bytes([node_id])]


@pytest.fixture
def server() -> Iterator[Server]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Server(
        context, RING, node_id=99, addresses=[], port=7412,
        registry=Registry(FlowHash(bytes(32))),
        serving=Serving(
            lambda group: (1, 1, 1), lambda group: cast(Dumper, Idle()), lambda: 1,
            lambda group: None,
        ),
    )  # fmt: skip
    made.said = {}
    try:
        yield made
    finally:
        made.close()
        context.destroy(linger=0)


def test_one_that_says_nothing_makes_room_and_no_other(server: Server) -> None:
    for node_id in range(1, JOBS_MAX + 1):
        assert isinstance(server.ask(node_id, now=0.0), SnapshotHead)
    later = SILENT_GIVES_WAY_S - 0.1
    assert isinstance(server.ask(50, now=later), SnapshotRefused)
    for node_id in range(1, JOBS_MAX):
        server._on_credit(bytes([node_id]), SnapshotCredit(1, 0), later)
    assert isinstance(server.ask(50, now=SILENT_GIVES_WAY_S), SnapshotHead)
    assert server.counters["snapshot_silent_gave_way"] == 1
    assert isinstance(server.ask(51, now=SILENT_GIVES_WAY_S), SnapshotRefused), "the rest is busy"
    assert isinstance(server.ask(51, now=SILENT_GIVES_WAY_S + later), SnapshotHead)
