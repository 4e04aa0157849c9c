"""A segment without carrier: told at once by rtnetlink, and acted on by a running cluster."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator

import pytest

from cluster.carrier import CarrierWatch
from hafw.kernel.netns import entered
from hafw.lab.lab import Lab
from hafw.lab.probe_record import lost_reason, outage_ns
from hafw.lab.probes import ProbeSet, lab_addresses, plan_probes
from tests.integration.running import Running, boottime_ns, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]
SPACE = f"hafw-t-carrier-{os.getpid()}"


def ip(space: str, words: str) -> None:
    subprocess.run(["ip", "-n", space, *words.split()], check=True, capture_output=True)


@pytest.fixture
def space() -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        ip(SPACE, "link add lan0 index 70 type veth peer name far index 71")
        ip(SPACE, "link set far up")
        ip(SPACE, "link set lan0 up")
        yield SPACE
    finally:
        subprocess.run(["ip", "netns", "del", SPACE], check=False)


def next_of(watch: CarrierWatch) -> frozenset[str]:
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        select.select([watch.socket], [], [], 0.1)
        down = watch.take()
        if down is not None:
            return down
    raise AssertionError("nothing is told")


def test_every_way_to_lose_a_device_and_to_get_it_back(space: str) -> None:
    with entered(space):
        watch = CarrierWatch({"lan": "lan0", "wan": "none0"})
        missing = frozenset({"wan"})
        assert watch.take() == missing
        for lose, mend in (
            ("link set far down", "link set far up"),
            ("link set lan0 down", "link set lan0 up"),
            ("link set lan0 name other", "link set other name lan0"),
        ):
            ip(space, lose)
            assert next_of(watch) == frozenset({"lan", "wan"}), lose
            ip(space, mend)
            assert next_of(watch) == missing, mend
        ip(space, "link del lan0")
        assert next_of(watch) == frozenset({"lan", "wan"})
        watch.close()


def test_lost_messages_are_made_up_for(space: str) -> None:
    with entered(space):
        watch = CarrierWatch({"lan": "lan0"})
        assert watch.take() == frozenset()
        for _ in range(400):  # More than its buffer holds.
            ip(space, "link set lan0 mtu 1400")
            ip(space, "link set lan0 mtu 1500")
        ip(space, "link set far down")
        assert next_of(watch) == frozenset({"lan"})
        watch.close()


@pytest.fixture(scope="module")
def cluster(shared_lab: Lab) -> Running:
    return Running(shared_lab)


def test_group_leaves_a_node_without_carrier_and_its_flows_go_on(cluster: Running) -> None:
    lab, node, other = cluster.lab, cluster.active(), cluster.backup()
    addresses = lab_addresses(lab.config)
    kinds = frozenset({"snat icmp", "snat tcp-echo"})
    probes = ProbeSet(
        lambda host, argv, options: lab.spawn(host, argv, **options),
        addresses,
        plan_probes(addresses, octets_s=1_000_000, kinds=kinds),
    )
    try:
        probes.start()
        time.sleep(2)
        before, begun_ns = probes.snapshot(), boottime_ns()
        ip("hafw-sw", f"link set {node}-lan0 down")
        wait_for("the other is ACTIVE", lambda: cluster.holders() == [other], 1.0)
        why = f"segment lan: no carrier on {lab.config.nodes[node].segments['lan'].device}"
        assert any(why in alarm for alarm in cluster.leased(node).alarms)
        wait_for(  # Its next heartbeat.
            "the other knows why",
            lambda: any(why in peer.reasons.values() for peer in cluster.leased(other).peers),
            1.0,
        )
        time.sleep(2)
        after = probes.snapshot()
        for probe in probes.probes:
            flow = probe.spec.flow
            reason = lost_reason(before.flows[flow], after.flows[flow], exchanges=5, bound_s=2)
            assert not reason, f"{probe.name}: {reason}"
            outage_ms = outage_ns(after.flows[flow], begun_ns, after.taken_ns) / 1e6
            assert outage_ms < 1000, f"{probe.name}: {outage_ms:.0f} ms"
        ip("hafw-sw", f"link set {node}-lan0 up")
        time.sleep(1)
        assert cluster.holders() == [other], "no fail-back"
    finally:
        ip("hafw-sw", f"link set {node}-lan0 up")
        probes.close()


def test_holder_stays_when_no_node_has_carrier(cluster: Running) -> None:
    cluster.heal()
    node, epoch = cluster.active(), cluster.epoch(cluster.active())
    try:
        for gateway in (cluster.backup(), node):
            ip("hafw-sw", f"link set {gateway}-lan0 down")
            time.sleep(0.3)
        time.sleep(1)
        assert cluster.holders() == [node]
        assert cluster.epoch(node) == epoch
    finally:
        for gateway in (cluster.backup(), node):
            ip("hafw-sw", f"link set {gateway}-lan0 up")
