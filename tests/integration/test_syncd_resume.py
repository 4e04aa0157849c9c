"""A snapshot whose connection breaks goes on over the next link where it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sync.snapshot_wire import CHUNKS_IN_FLIGHT
from tests.integration.syncd_world import Gateway, World, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration

FLOWS = 6_000


@contextmanager
def fetching(tmp_path: Path, *, misses: str = "") -> Iterator[World]:
    """gw1 holds the group with many flows; gw2 will fetch them slowly."""
    with syncd_world(tmp_path) as world:
        gw1, gw2 = world.gateways
        gw2.program = "tests.integration.deaf_syncd"
        gw2.environment["HAFW_TEST_CHUNK_S"] = "0.02"
        gw2.environment["HAFW_TEST_MISSES"] = misses
        flows = mixed(FLOWS)
        for start in range(0, FLOWS, 500):
            gw1.put(flows[start : start + 500])
        gw1.start()
        gw1.on_new_epoch = lambda _: gw1.hold(2, contiguous=True)
        gw1.hold(1)
        gw1.wait_synced(60)
        assert gw1.role is not None
        gw2.start()
        gw2.follow(2, 1)
        yield world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fetching(tmp_path) as world:
        yield world


def wait_middle(gateway: Gateway) -> int:
    def some() -> int:
        count = gateway.counter("snapshot_entries")
        return count if count > FLOWS // 6 else 0

    count: int = wait_for("the middle of the snapshot", some, 30)
    assert count < FLOWS // 2, "too late to be cut"
    return count


def test_a_cut_link_costs_no_more_than_what_was_in_flight(world: World) -> None:
    gw1, gw2 = world.gateways
    wait_middle(gw2)
    world.cut(0)
    asked = gw2.counter("snapshots_asked")  # More than once while gw1 was not ready.
    gw2.wait_synced(40)
    world.wait_equal(1, 2)
    assert len(gw2.table()) == FLOWS
    assert (gw2.counter("snapshots_asked"), gw2.counter("snapshots_done")) == (asked, 1)
    assert (gw2.counter("snapshots_resumed"), gw1.counter("snapshots_resumed")) == (1, 1)
    again, sent = gw1.counter("snapshot_chunks_again"), gw1.counter("snapshot_chunks_sent")
    # None at all if what was in flight had reached the other end when the link was cut: below.
    assert again <= CHUNKS_IN_FLIGHT < sent // 2
    assert gw2.counter("snapshot_entries") == FLOWS, "none was applied twice"


def test_what_was_in_flight_and_lost_is_sent_again(tmp_path: Path) -> None:
    with fetching(tmp_path, misses="flight") as world:
        gw1, gw2 = world.gateways
        gw2.wait_synced(40)
        world.wait_equal(1, 2)
        assert len(gw2.table()) == FLOWS
        assert (gw2.counter("snapshots_resumed"), gw1.counter("snapshots_resumed")) == (1, 1)
        assert gw1.counter("snapshot_chunks_again") == CHUNKS_IN_FLIGHT
        assert gw2.counter("snapshot_entries") == FLOWS, "none was applied twice"


def test_a_server_that_knows_the_request_no_more_is_asked_anew(world: World) -> None:
    gw1, gw2 = world.gateways
    wait_middle(gw2)
    world.cut(0)
    asked = gw2.counter("snapshots_asked")
    gw1.stop(signal.SIGKILL)
    gw1.start()
    gw2.wait_synced(60)
    world.wait_equal(1, 2)
    assert gw2.counter("snapshots_done") == 1
    assert gw2.counter("snapshots_asked") > asked
