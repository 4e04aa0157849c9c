"""Plain flows through a power cut and through there-and-back: ping, ICMP errors, UDP of one and of
two ways, idle TCP, TCP whose ACKs die in the fault. Without sync every one of them ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product

import pytest

from tests.integration.helper_world import HelperWorld, helper_world
from tests.integration.plain_flows import (
    AcksDie,
    Flow,
    IdleTcp,
    OneWayUdp,
    Ping,
    TooBig,
    TwoWayUdp,
    Unreachable,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

EVERY_FLOW: tuple[type[Flow], ...] = (
    OneWayUdp, TwoWayUdp, Unreachable, TooBig, Ping, IdleTcp, AcksDie,
)  # fmt: skip


def opened(
    world: HelperWorld, stack: ExitStack, kinds: Sequence[type[Flow]] = EVERY_FLOW
) -> list[Flow]:
    """Through SNAT and DNAT, IPv4 and IPv6; nobody forwards a new flow afterwards."""
    flows = []
    for kind, translation, version in product(kinds, ("snat", "dnat"), (4, 6)):
        if kind is Ping and translation == "dnat":
            continue  # The VIP answers by itself: no flow through the gateway.
        flows.append(kind(world, stack, translation, version))
    world.refuse_new(1)
    world.refuse_new(2)
    return flows


def broken(flows: list[Flow]) -> dict[str, str]:
    def tried(flow: Flow) -> str:
        try:
            flow.after()
        except (OSError, AssertionError) as error:
            return repr(error)
        return ""

    with ThreadPoolExecutor(len(flows)) as pool:
        found = zip(flows, pool.map(tried, flows), strict=True)
        return {flow.name: error for flow, error in found if error}


def test_every_flow_survives_a_power_cut_and_the_return_of_the_node() -> None:
    with helper_world() as world, ExitStack() as stack:
        flows = opened(world, stack)
        world.replicated()
        for flow in flows:
            flow.before_cut()
        world.power_cut()
        assert broken(flows) == {}
        for flow in flows:
            flow.after_cut()
        world.back_after_power_cut()
        assert broken(flows) == {}, "when the node is back"


class MinuteIdleTcp(IdleTcp):
    idle_s = 60.0


@pytest.mark.long
def test_tcp_that_is_silent_for_a_minute_survives_a_power_cut_in_it() -> None:
    """In `make test` the silence is a second (`IdleTcp`)."""
    with helper_world() as world, ExitStack() as stack:
        flows = opened(world, stack, [MinuteIdleTcp])
        time.sleep(20)
        world.power_cut()
        assert broken(flows) == {}


def test_every_flow_survives_there_and_back() -> None:
    kinds = [kind for kind in EVERY_FLOW if kind is not AcksDie]
    with helper_world() as world, ExitStack() as stack:
        flows = opened(world, stack, kinds)
        for counter, number in enumerate((2, 1, 2, 1), 2):
            world.replicated(3 - number)
            world.move(number, counter)
            assert broken(flows) == {}, f"at gw{number}"


def test_without_sync_every_one_of_them_ends() -> None:
    with helper_world() as world, ExitStack() as stack:
        for link in (0, 1):
            world.cluster.cut(link)
        flows = opened(world, stack)
        for flow in flows:
            flow.before_cut()
        world.power_cut()
        assert broken(flows).keys() == {flow.name for flow in flows}


@pytest.mark.long
def test_with_strict_replicas_acks_that_died_hold_the_flow_up() -> None:
    with helper_world(strict_replicas=True) as world, ExitStack() as stack:
        flows = opened(world, stack, [AcksDie, IdleTcp])
        world.replicated()
        for flow in flows:
            flow.before_cut()
        world.power_cut()
        assert broken(flows).keys() == {f.name for f in flows if isinstance(f, AcksDie)}
