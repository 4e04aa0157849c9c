"""A SYN flood of 100,000 from spoofed sources: it replicates nothing and harms nothing.

The sources are translated like any other, the server answers each SYN, and nobody answers that:
the entries come as far as SYN_RECV.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from hafw.kernel.netns import entered
from sync.standing import SILENT_S
from tests.integration.ct_spaces import inside
from tests.integration.helper_world import FAMILY, OUTSIDE, HelperWorld, helper_world, listener
from tests.integration.plain_flows import Flow, IdleTcp, Ping, TwoWayUdp
from tests.integration.syncd_world import Gateway
from tests.integration.test_flows_survive import broken

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SYNS = 50_000
"""Of each family."""
NEIGHBOURS = {4: "192.0.2.128/25", 6: "2001:db8:1::5:0/112"}


def syns(version: int, count: int) -> Iterator[bytes]:
    """Whole packets, source address and port ever others."""
    first = ip_address(NEIGHBOURS[version].split("/")[0])
    target = ip_address(OUTSIDE[version]).packed
    for number in range(count):
        source = (first + 1 + number % 100).packed
        port = 1024 + number
        tcp = struct.pack(">HHIIBBHHH", port, 8080, number, 0, 0x50, 0x02, 64_000, 0, 0)
        words = source + target + struct.pack(">HH", 6, len(tcp)) + tcp
        total = sum(struct.unpack(f">{len(words) // 2}H", words))
        total = (total & 0xFFFF) + (total >> 16)
        check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        tcp = tcp[:16] + struct.pack(">H", check) + tcp[18:]
        if version == 6:
            yield struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + source + target + tcp
        else:
            head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0)
            yield head + source + target + tcp


def flood(space: str, version: int) -> None:
    with entered(space):
        raw = socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        for packet in syns(version, SYNS):
            raw.sendto(packet, (OUTSIDE[version], 0))


def prepare(world: HelperWorld, stack: ExitStack) -> None:
    """All of the inside is translated, and has a way back; the server listens."""
    for version in (4, 6):
        door = listener(world.outside, version, OUTSIDE[version], 8080, socket.SOCK_STREAM)
        stack.enter_context(door)
        for gateway in world.cluster.gateways:
            number = gateway.number
            via = f"10.7{number}.1.2" if version == 4 else f"fd77:{number}1::2"
            route = (NEIGHBOURS[version], "via", via)
            inside(gateway.space, "ip", f"-{version}", "route", "add", *route)
    for gateway in world.cluster.gateways:
        for rule in (
            "ip saddr 192.0.2.0/24 snat ip to 198.51.100.254",
            "ip6 saddr 2001:db8:1::/64 snat ip6 to 2001:db8:2::fe",
        ):
            inside(gateway.space, "nft", f"add rule inet helpers post {rule}")


def tracked(world: HelperWorld, number: int) -> int:
    return int(inside(world.cluster[number].space, "conntrack", "-C"))


@contextmanager
def flooding(world: HelperWorld) -> Iterator[threading.Thread]:
    def run() -> None:
        for version in (4, 6):
            flood(world.inside, version)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)


def test_a_syn_flood_replicates_nothing_and_harms_nothing() -> None:
    with helper_world() as world, ExitStack() as stack:
        one, other = world.cluster.gateways
        flows: list[Flow] = [
            kind(world, stack, "snat", version)
            for kind in (IdleTcp, TwoWayUdp, Ping)
            for version in (4, 6)
        ]
        prepare(world, stack)
        world.replicated()
        before = tracked(world, 2)
        said = deltas(one)
        for gateway in (one, other):
            gateway.beacons, gateway.heard_at = [], [time.monotonic()]
        rounds = 0
        with flooding(world) as thread:
            while thread.is_alive():
                assert broken(flows) == {}, "during the flood"
                rounds += 1
        assert rounds
        assert tracked(world, 1) > 2 * SYNS, "the flood came through"
        assert tracked(world, 2) == before
        # A UDP flow says once more that it has become a stream.
        assert deltas(one) - said <= len(flows)
        for gateway in (one, other):
            assert all(beacon.synced[1] for beacon in gateway.beacons)
            gaps = zip(gateway.heard_at, gateway.heard_at[1:], strict=False)
            assert max(after - heard for heard, after in gaps) < SILENT_S
        assert one.counter("event_overruns") == 0
        world.refuse_new(2)
        world.power_cut()
        assert broken(flows) == {}
        assert tracked(world, 2) <= before


def deltas(gateway: Gateway) -> int:
    """About flows, said by it. (Digests are said every second, flood or not.)"""
    status = gateway.status()
    assert status is not None
    counters = status.counters
    return sum(counters.get(name, 0) for name in ("first", "updates", "destroys"))
