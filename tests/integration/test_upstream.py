"""Echo requests of the upstream check, between two namespaces."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.upstream import UpstreamPlan
from cluster.upstream_io import UpstreamSockets
from hafw.kernel.netns import entered

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]
NODE, FAR = f"hafw-t-up-n{os.getpid()}", f"hafw-t-up-f{os.getpid()}"
FAR4, FAR6 = "192.0.2.10", "2001:db8:1::10"
EACH_NS = 50_000_000
WAIT_S = 10.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def wire() -> None:
    ip("-n", FAR, "link", "add", "far0", "type", "veth", "peer", "name", "lan0", "netns", NODE)
    for space, device, four, six in (
        (FAR, "far0", f"{FAR4}/24", f"{FAR6}/64"),
        (NODE, "lan0", "192.0.2.1/24", "2001:db8:1::1/64"),
    ):
        ip("-n", space, "addr", "add", four, "dev", device)
        ip("-n", space, "addr", "add", six, "dev", device, "nodad")
        ip("-n", space, "link", "set", device, "up")


@pytest.fixture
def segment() -> Iterator[None]:
    for space in (NODE, FAR):
        ip("netns", "add", space)
    try:
        wire()
        yield
    finally:
        for space in (NODE, FAR):
            ip("netns", "del", space)


def mute(on: bool) -> None:
    """The far side is there and does not answer."""
    for family, name in (("ipv4", "icmp_echo_ignore_all"), ("ipv6", "icmp/echo_ignore_all")):
        command = f"echo {int(on)} > /proc/sys/net/{family}/{name}"
        subprocess.run(["ip", "netns", "exec", FAR, "sh", "-c", command], check=True)


def run_until(
    sockets: UpstreamSockets, wanted: Callable[[frozenset[tuple[int, str]]], bool]
) -> None:
    begun = time.monotonic()
    while True:
        now_ns = time.monotonic_ns()
        if wanted(sockets.turn(now_ns)):
            return
        assert time.monotonic() - begun < WAIT_S, "not in time"
        time.sleep(EACH_NS / 1e9 / 4)


@pytest.mark.parametrize("address", [FAR4, FAR6])
@pytest.mark.usefixtures("segment")
def test_silence_is_seen_and_its_end_and_a_new_device_is_taken(address: str) -> None:
    plan = UpstreamPlan(1, "lan", "lan0", address, EACH_NS, 3)
    with entered(NODE):
        sockets = UpstreamSockets([plan], time.monotonic_ns())
        for _ in range(40):
            assert sockets.turn(time.monotonic_ns()) == frozenset(), "it answers"
            time.sleep(EACH_NS / 1e9 / 4)
        mute(True)
        run_until(sockets, lambda failing: failing == frozenset({(1, "lan")}))
        mute(False)
        run_until(sockets, lambda failing: not failing)
        ip("-n", FAR, "link", "del", "far0")
        run_until(sockets, lambda failing: bool(failing))
        wire()
        run_until(sockets, lambda failing: not failing)
        assert len(sockets.descriptors()) == 1
        sockets.close()
        assert sockets.descriptors() == []


@pytest.mark.usefixtures("segment")
def test_the_address_on_another_segment_is_no_answer() -> None:
    plan = UpstreamPlan(1, "lan", "lo", FAR4, EACH_NS, 2)
    with entered(NODE):
        sockets = UpstreamSockets([plan], time.monotonic_ns())
        run_until(sockets, lambda failing: bool(failing))
        sockets.close()
