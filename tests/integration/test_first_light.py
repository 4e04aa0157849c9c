"""What must hold of a running cluster whatever happens to it: the lease, the gate, the restart.

Real daemons, real kernel, in the lab. Everything is judged by the kernel's gate and by frames.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from ipaddress import ip_address
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cluster.gate import GateReader
from hafw.config.model import RESTART_WAIT_MS
from hafw.cpus import policy_cpu, usable_cpus
from hafw.human import epoch_node
from hafw.lab.inside import call_in
from hafw.lab.lab import Lab
from hafw.lab.probe_frames import build_frame
from hafw.node.client import LocalClient, Unavailable
from tests.integration.running import GROUP, LEASE_NS, Running, boottime_ns, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]
STOPPER = Path(__file__).parent / "stopper"
VIRTUAL_MAC = bytes.fromhex("00005e000101")


@pytest.fixture(scope="module")
def cluster(lab_alone: None) -> Iterator[Running]:
    lab = Lab()
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(STOPPER)
    try:
        lab.up()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    try:
        lab.wait_ready(30)
        yield Running(lab)
    finally:
        lab.down()


@pytest.fixture(autouse=True)
def healthy(cluster: Running) -> Iterator[None]:
    cluster.heal()
    yield
    for node in cluster.lab.config.nodes:
        for pid in cluster.lab.all_pids(node):
            os.kill(pid, signal.SIGCONT)


def forwarded(node: str, count: int = 200) -> int:
    """How many of `count` frames to the virtual MAC, put straight into the gateway's LAN port,
    come out of its WAN port."""

    def open_sockets() -> tuple[socket.socket, socket.socket]:
        into = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        into.bind((f"{node}-lan0", 0))
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        out.bind((f"{node}-wan0", 0))
        out.settimeout(0.2)
        return into, out

    into, out = call_in("hafw-sw", open_sockets)
    marker = os.urandom(16)
    try:
        for number in range(count):
            source, server = (
                ("192.0.2.10", "198.51.100.10")
                if number % 2
                else ("2001:db8:1::10", "2001:db8:2::10")
            )
            into.send(build_frame(VIRTUAL_MAC, source, server, marker))
            time.sleep(0.001)
        seen = 0
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                seen += marker in out.recv(2048)
            except TimeoutError:
                break
        return seen
    finally:
        into.close()
        out.close()


def watch_never_dual(cluster: Running, until: Callable[[], bool], timeout_s: float) -> None:
    """Poll both gates until the claim holds; two open announce deadlines fail the test."""
    readers = [GateReader.open(cluster.lab.paths(node)) for node in cluster.gateways]
    try:
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, "the claim did not come true in time"
            for _ in range(20):
                now = boottime_ns()
                assert sum(r.read(GROUP).announce_ns > now for r in readers) <= 1, "dual-ACTIVE"
                time.sleep(0.0005)
    finally:
        for reader in readers:
            reader.close()


@pytest.mark.parametrize(
    "step", ["before-send", "after-send", "before-core", "before-store", "after-store"]
)
def test_stop_at_each_step_of_a_renewal_never_reopens_the_gate(
    cluster: Running, step: str
) -> None:
    old, new = cluster.active(), cluster.backup()
    leased = cluster.lab.pids(old)["leased"]
    epoch = cluster.epoch(new)
    (cluster.lab.paths(old).run / "stop-at").write_text(step)

    def stopped() -> bool:
        stat = Path(f"/proc/{leased}/stat").read_text().rsplit(")", 1)[1]
        return stat.split()[0] == "T"

    wait_for(f"leased of {old} stops at {step}", stopped, 5)
    watch_never_dual(cluster, lambda: cluster.announces(new), 5)
    time.sleep(0.5)  # The takeover is over; now the old holder goes on where it stopped.
    assert not cluster.announces(old)
    os.kill(leased, signal.SIGCONT)
    end = time.monotonic() + 1.5
    watch_never_dual(cluster, lambda: time.monotonic() > end, 5)
    assert cluster.holders() == [new]
    assert cluster.epoch(new) > epoch
    assert epoch_node(cluster.epoch(new)) == cluster.lab.config.nodes[new].id


def test_a_flushed_ruleset_on_a_backup_leaves_it_silent(cluster: Running) -> None:
    backup = cluster.backup()
    code, output = cluster.run(backup, "nft", "flush", "ruleset")
    assert code == 0, output
    assert forwarded(backup) == 0
    code, output = cluster.run(
        "client", "ping", "-c", "5", "-i", "0.1", "-W", "1", "198.51.100.10"
    )
    assert code == 0, output
    assert forwarded(cluster.active()) > 150  # The same frames do pass where the lease is.
    # hafwd sees that its tables are gone and loads them again.
    wait_for(
        "the policy is back",
        lambda: "hafw_policy" in cluster.run(backup, "nft", "list", "tables")[1],
        15,
    )


def big_policy(cluster: Running, rules: int) -> str:
    """The lab's policy behind `rules` more rules."""
    document = YAML().load((cluster.lab.config_file.parent / "policy.yaml").read_text())
    document["rules"][:0] = [
        {
            "from": "lan",
            "to": "wan",
            "destination": str(ip_address("198.18.0.0") + number),
            "action": "drop",
        }
        for number in range(rules)
    ]
    text = StringIO()
    YAML().dump(document, text)
    return text.getvalue()


def renewals_during(cluster: Running, action: Callable[[], None]) -> tuple[int, int]:
    node = cluster.active()
    before = cluster.group(node)
    action()
    time.sleep(0.3)
    after = cluster.group(node)
    assert cluster.holders() == [node]
    return before.epoch, after.epoch


def test_20000_rules_by_our_own_path_do_not_cost_the_lease(
    cluster: Running, tmp_path: Path
) -> None:
    node = cluster.active()
    file = tmp_path / "policy.yaml"
    file.write_text(big_policy(cluster, 20_000))
    hafwctl = Path(sys.executable).parent / "hafwctl"

    def load() -> None:
        code, output = cluster.run(node, hafwctl, "policy", "apply", file, timeout_s=120)
        assert code == 0, output

    try:
        before, after = renewals_during(cluster, load)
        assert before == after
    finally:
        original = cluster.lab.config_file.parent / "policy.yaml"
        code, output = cluster.run(node, hafwctl, "policy", "apply", original, timeout_s=120)
        assert code == 0, output


def test_20000_rules_by_a_bare_nft_on_the_policy_cpu_do_not_cost_the_lease(
    cluster: Running, tmp_path: Path
) -> None:
    node = cluster.active()
    file = tmp_path / "rules.nft"
    lines = "".join(f"tcp dport {1 + n % 65000} counter\n" for n in range(20_000))
    file.write_text(f"table inet foreign {{\nchain c {{\n{lines}}}\n}}\n")

    def load() -> None:
        cpu = policy_cpu(cluster.lab.config.cpus, usable_cpus())
        words = ("taskset", "-c", str(cpu), "nft", "-f", file)
        code, output = cluster.run(node, *words, timeout_s=120)
        assert code == 0, output

    try:
        before, after = renewals_during(cluster, load)
        assert before == after
    finally:
        cluster.run(node, "nft", "delete", "table", "inet", "foreign", timeout_s=120)


@pytest.mark.parametrize("victim", ["active", "backup"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_power_cut_with_a_dead_syncd_moves_the_group_within_ten_leases(
    cluster: Running, victim: str, how: str
) -> None:
    old, new = cluster.active(), cluster.backup()
    node = old if victim == "active" else new
    pid = cluster.lab.pids(node)["syncd"]
    os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    if how == "stopped":
        time.sleep(0.2)  # Long enough that its beacons are stale when the cut comes.
    cut_ns = cluster.lab.silence(old)
    wait_for(f"{new} takes over", lambda: cluster.announces(new), 5)
    taken_ns = boottime_ns() - cut_ns
    if how == "stopped":
        os.kill(pid, signal.SIGCONT)
    assert taken_ns <= 10 * LEASE_NS, f"{taken_ns / 1e6:.0f} ms"


def test_death_of_the_active_node_during_the_others_snapshot(cluster: Running) -> None:
    old, new = cluster.active(), cluster.backup()
    code, output = cluster.run(
        old,
        sys.executable,
        Path(__file__).parent / "many_flows.py",
        "30000",
        timeout_s=60,
    )
    assert code == 0, output
    os.kill(cluster.lab.pids(new)["syncd"], signal.SIGKILL)

    def in_snapshot() -> bool:
        answer = LocalClient(cluster.lab.paths(new)).ask_syncd()
        if isinstance(answer, Unavailable):
            return False
        group = next((g for g in answer.groups if g.group == GROUP), None)
        return group is not None and not group.synced and 0 < group.replicas < 30_000

    wait_for("the snapshot is under way", in_snapshot, 30)
    cut_ns = cluster.lab.silence(old)
    wait_for(f"{new} takes over", lambda: cluster.announces(new), 5)
    assert boottime_ns() - cut_ns <= 10 * LEASE_NS
    for node in (old, new):
        cluster.run(node, "conntrack", "-D", "-p", "udp", "--dport", "7")


def test_cold_start_gives_an_active_node_within_the_restart_wait_plus_three_seconds(
    cluster: Running,
) -> None:
    lab = cluster.lab
    for node in lab.config.nodes:
        lab.power_off(node)
    begun = boottime_ns()
    for node in lab.config.nodes:
        lab.start(node)
    wait_for("somebody is ACTIVE", lambda: len(cluster.holders()) == 1, 30)
    took_s = (boottime_ns() - begun) / 1e9
    assert took_s <= RESTART_WAIT_MS / 1000 + 3, f"{took_s:.1f} s"
    lab.wait_ready(30)
