"""Flows that come and go when nobody speaks for them, and replicas that a kernel drops itself."""

from __future__ import annotations

import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from hafw.messages import RoleChange, SyncPassStatus
from sync.ctnetlink import build_update
from tests.integration.syncd_world import Gateway, World, epoch, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration


def test_flows_that_end_between_two_leases_of_a_node_end_on_the_peer(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    flows = mixed(40)
    gw1.put(flows)
    pair.wait_equal(1, 2)
    gw1.say(RoleChange(1, False, epoch(1, 1), 0, False))
    wait_for("gw1 holds nothing", lambda: (s := gw1.status()) and not s.groups[0].active)
    gw1.delete(flows[:25])
    time.sleep(0.3)
    pair.lead(1, 2, contiguous=True)
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 15
    assert gw1.counter("vanished") == 25


def test_flows_that_lose_their_mark_to_somebody_else_are_told_of(tmp_path: Path) -> None:
    with syncd_world(tmp_path) as world:
        gw1, flows = world[1], mixed(20)
        gw1.program = "tests.integration.forgetful_syncd"
        gw1.environment["HAFW_TEST_REFRESH_S"] = "1"
        world.start()
        world.lead(1, 1)
        gw1.put(flows)
        world.wait_equal(1, 2)
        wait_for("a refresh", lambda: gw1.counter("passes_refresh"))
        assert alarms(gw1) == []
        unmarked = [build_update(entry.key, mark=(5, 0xFFFFFFFF)) for entry in flows[:3]]
        assert not any(gw1.kernel.execute(unmarked))
        (alarm,) = wait_for("an alarm", lambda: alarms(gw1))  # Until the next refresh.
        # (Fewer if a refresh was under way.)
        assert re.match("group main: [1-3] flows left it unheard", alarm)
        assert "without a mask" in alarm
        wait_for("no alarm", lambda: not alarms(gw1))


def test_a_refresh_of_a_large_table_is_through_in_a_third_of_the_hold(tmp_path: Path) -> None:
    with syncd_world(tmp_path, 1) as world:
        gw1 = world[1]
        gw1.program = "tests.integration.forgetful_syncd"
        gw1.environment.update(
            HAFW_TEST_HOLD_S="6", HAFW_TEST_REFRESH_S="2", HAFW_TEST_REFRESH_PER_S="20"
        )
        world.start()
        world.lead(1, 1)
        gw1.wait_synced()
        gw1.put(mixed(200))

        def refreshed() -> SyncPassStatus | None:
            status = gw1.status()
            own_pass = None if status is None else status.groups[0].own_pass
            if own_pass is None or own_pass.kind != "refresh" or own_pass.running:
                return None
            return own_pass if own_pass.done >= 200 else None

        assert wait_for("a refresh of all", refreshed).per_s > 60


def alarms(gateway: Gateway) -> list[str]:
    status = gateway.status()
    assert status is not None
    return status.alarms


def test_replicas_that_the_kernel_drops_by_itself_come_back(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    flows = mixed(20)
    gw1.put(flows)
    pair.wait_equal(1, 2)

    def expired(count: int) -> bool:
        gw2.table()  # A dump collects what has expired; otherwise it takes up to a minute.
        return gw2.counter("replicas_expired") >= count

    for gone in (10, 20):
        shorter = [build_update(entry.key, timeout_s=1) for entry in flows[:10]]
        assert not any(gw2.kernel.execute(shorter))
        wait_for(f"{gone} expired", partial(expired, gone))
        pair.wait_equal(1, 2)
        gw2.wait_synced()
    assert len(gw2.table()) == 20
    assert gw2.counter("snapshots_done") <= 5, "not one for each replica"


def test_what_the_holder_had_sent_is_applied_before_its_successor_speaks(pair: World) -> None:
    """The deltas and the new role wait together; once the new epoch counts, the old one's
    deltas do not."""
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(20))
    pair.wait_equal(1, 2)
    gw2.signal(signal.SIGSTOP)
    late = mixed(60, first=40)
    gw1.put(late)
    gw1.ask_position()
    time.sleep(0.1)
    gw1.stop(signal.SIGKILL)
    gw2.hold(2)
    gw2.signal(signal.SIGCONT)
    wait_for("gw2 holds", lambda: gw2.counter("updates") >= 20)
    gw2.wait_synced()
    assert len(gw2.table()) == 80
