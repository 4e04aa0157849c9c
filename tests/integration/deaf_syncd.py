"""A syncd that misses something: what its digests must make up for.

``HAFW_TEST_MISSES``: it says no ``digests``; it misses the first ``destroy`` of its peers, or all
``events`` of its own kernel about flows of others, or what is in ``flight`` of a snapshot from
its chunk `LOST_FROM` on, until it asks to go on.
``HAFW_TEST_RCVBUF`` is another size of its event socket, in bytes. ``HAFW_TEST_CHUNK_S``: so long
it waits after each chunk of a snapshot.
"""

from __future__ import annotations

import os
import time

from sync import parts
from sync.ctnetlink import CtEvent
from sync.daemon import main
from sync.delta import Delta, Destroy, GroupDigest
from sync.outbox import Outbox
from sync.replica import ReplicaEffect, ReplicaTable
from sync.snapshot_client import SnapshotClient
from sync.snapshot_wire import SnapshotChunk, SnapshotReply
from sync.upkeep import Upkeep

MISSED = os.environ.get("HAFW_TEST_MISSES", "").split()
_put = Outbox.put
_on_delta = ReplicaTable.on_delta
_credit = SnapshotClient.credit
_receive = SnapshotClient.receive
_go_on = SnapshotClient.go_on
LOST_FROM = 10


def _put_but_digests(outbox: Outbox, delta: Delta) -> None:
    if not isinstance(delta, GroupDigest) or "digests" not in MISSED:
        _put(outbox, delta)


def _hear_nothing(upkeep: Upkeep, events: list[CtEvent], *, now: float) -> None:
    pass


def _on_delta_but_one(table: ReplicaTable, delta: Delta, sender_id: int) -> list[ReplicaEffect]:
    if isinstance(delta, Destroy) and "destroy" in MISSED:
        MISSED.remove("destroy")
        return []
    return _on_delta(table, delta, sender_id)


def _slow_credit(client: SnapshotClient, applied: int, *, done: bool = False) -> None:
    time.sleep(float(os.environ.get("HAFW_TEST_CHUNK_S", "0")))
    _credit(client, applied, done=done)


def _receive_until_lost(client: SnapshotClient) -> SnapshotReply | None:
    message = _receive(client)
    lost = isinstance(message, SnapshotChunk) and message.index >= LOST_FROM
    return None if lost and "flight" in MISSED else message


def _hear_again(
    client: SnapshotClient, holder_id: int, group: int, *, attempt: int, have: int
) -> bool:
    if "flight" in MISSED:
        MISSED.remove("flight")
    return _go_on(client, holder_id, group, attempt=attempt, have=have)


if __name__ == "__main__":
    parts.EVENTS_RCVBUF_BYTES = int(os.environ.get("HAFW_TEST_RCVBUF", parts.EVENTS_RCVBUF_BYTES))
    if "events" in MISSED:
        Upkeep.on_events = _hear_nothing  # type: ignore[method-assign, assignment]
    SnapshotClient.receive = _receive_until_lost  # type: ignore[method-assign, assignment]
    SnapshotClient.go_on = _hear_again  # type: ignore[method-assign, assignment]
    SnapshotClient.credit = _slow_credit  # type: ignore[method-assign, assignment]
    ReplicaTable.on_delta = _on_delta_but_one  # type: ignore[method-assign, assignment]
    Outbox.put = _put_but_digests  # type: ignore[method-assign, assignment]
    main()
