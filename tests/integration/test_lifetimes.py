"""How long replicas live: never less than their owner's flow, and not for long after it.

The kernel says nothing when packets refresh a flow. In `make test` all timers are some seconds;
the long test has the kernel's own UDP timeouts and ten minutes of traffic.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from hafw.flow import IPPROTO_UDP, FlowEntry
from sync.ctnetlink import build_update
from tests.integration.helper_world import HelperWorld, Timers, helper_world
from tests.integration.plain_flows import Flow, OneWayUdp, TwoWayUdp
from tests.integration.syncd_world import mixed, wait_for
from tests.integration.test_flows_survive import broken, opened

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SHORT = Timers(udp_s=8, hold_s=4, refresh_s=1)


def udp(world: HelperWorld, number: int) -> list[FlowEntry]:
    """By a dump, which evicts what has expired."""
    table = world.cluster[number].table()
    return [entry for key, entry in table.items() if key.orig.proto == IPPROTO_UDP]


def steady(world: HelperWorld, flows: list[Flow], seconds: float, every_s: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert broken(flows) == {}
        time.sleep(every_s)
        assert len(udp(world, 1)) == len(flows)


def survives(timers: Timers, seconds: float, every_s: float) -> int:
    """UDP of one and of two ways, steady on its owner; how many replicas expired meanwhile."""
    with helper_world(timers=timers) as world, ExitStack() as stack:
        flows = opened(world, stack, [OneWayUdp, TwoWayUdp])
        world.replicated()
        steady(world, flows, seconds, every_s)
        missing = len(flows) - len(udp(world, 2))
        expired = missing + world.cluster[2].counter("replicas_expired")
        world.power_cut()
        if not expired:
            assert broken(flows) == {}
        return expired


def test_steady_udp_outlives_its_hold_and_then_its_owner() -> None:
    assert survives(SHORT, 2 * SHORT.hold_s, 0.3) == 0


@pytest.mark.long
def test_a_holder_whose_role_comes_and_goes_refreshes_all_the_same() -> None:
    """leased falls silent for a moment, again and again, always before a refresh is due."""
    timers = Timers(udp_s=7, hold_s=7, refresh_s=7)
    with helper_world(timers=timers) as world, ExitStack() as stack:
        flows = opened(world, stack, [OneWayUdp, TwoWayUdp])
        world.replicated()
        first, until = world.cluster[1], time.monotonic() + 2 * timers.hold_s
        while time.monotonic() < until:
            silences = first.counter("role_leased_silent")
            first.say(None)
            wait_for("silence", lambda: first.counter("role_leased_silent") > silences)  # noqa: B023
            first.hold(1, contiguous=True)
            first.wait_synced()
            assert broken(flows) == {}
            assert len(udp(world, 2)) == len(flows)
        assert world.cluster[2].counter("replicas_expired") == 0


@pytest.mark.long
def test_without_refresh_its_replicas_expire() -> None:
    assert survives(replace(SHORT, refresh_s=1000), 2 * SHORT.hold_s, 0.3) > 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_steady_udp_for_ten_minutes_survives_its_owner() -> None:
    """The kernel's own timeouts (30 and 120 s), and the least hold that may be configured."""
    assert survives(Timers(udp_s=30, hold_s=60, refresh_s=30), 600, 5.0) == 0


def test_silent_flows_of_a_dead_owner_end_as_the_kernel_ends_them() -> None:
    """Adopted by the next holder, they have the kernel's timeout and not the hold any more."""
    timers = Timers(udp_s=3, hold_s=900, refresh_s=300)
    with helper_world(timers=timers) as world, ExitStack() as stack:
        flows = opened(world, stack, [OneWayUdp, TwoWayUdp])
        world.replicated()
        before = udp(world, 2)
        assert len(before) == len(flows)
        assert min(entry.timeout_s or 0 for entry in before) > 800
        world.power_cut()
        wait_for("adopted", lambda: all(left(e) <= 3 for e in udp(world, 2)), 5)
        wait_for(lambda: f"they end: {udp(world, 2)}", lambda: not udp(world, 2), 10)


def test_replicas_of_a_dead_owner_that_nobody_follows_end_with_their_hold() -> None:
    with helper_world(timers=SHORT) as world, ExitStack() as stack:
        flows = opened(world, stack, [OneWayUdp, TwoWayUdp])
        world.replicated()
        first, second = world.cluster.gateways
        first.stop(9)
        second.follow(1, 1, lives=False)
        assert len(udp(world, 2)) == len(flows)
        wait_for(lambda: f"they end: {udp(world, 2)}", lambda: not udp(world, 2), 15)


def left(entry: FlowEntry) -> int:
    return entry.timeout_s or 0


def test_no_replica_has_less_time_than_its_owners_flow() -> None:
    """Whatever the timeout is, and also after packets have raised it in silence."""
    timers = Timers(udp_s=30, hold_s=200, refresh_s=2)
    with helper_world(timers=timers) as world:
        first, second = world.cluster.gateways
        times = (10, 150, 1_000, 432_000)
        flows = [replace(flow, timeout_s=times[n % 4]) for n, flow in enumerate(mixed(64))]
        first.put(flows)

        def none_shorter() -> bool:
            replicas, owned = second.table(), first.table()
            return len(owned) == len(flows) and all(
                # The two tables are read one after the other, the owner's last.
                key in replicas and left(replicas[key]) >= left(entry)
                for key, entry in owned.items()
            )

        wait_for("no replica is shorter", none_shorter)
        raised = [build_update(flow.key, timeout_s=5_000) for flow in flows if left(flow) < 1_000]
        assert not any(first.kernel.execute(raised))
        assert not none_shorter(), "the kernel was silent"
        wait_for("no replica is shorter after a refresh", none_shorter)
