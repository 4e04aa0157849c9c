"""The judges against a real kernel: each lands with the mistakes that it must catch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import bpf
from cluster.gate import Hook
from cluster.gate_program import program_bytes, program_name
from hafw.cpus import lease_cpu, usable_cpus
from hafw.lab.judges import LOOK_GAP_NS_MAX, FrameVerdict, GateVerdict, MoveWindow
from hafw.lab.probe_frames import TEST_MAC
from hafw.lab.probe_judges import FrameJudge, GateJudge
from hafw.lab.probe_loop import now_ns
from hafw.lab.probes import Addresses
from hafw.node.setup import prepare_node, teardown_node
from tests.integration.gate_env import CONFIG_TEXT, GROUP, GateNet, Renewal, built_net

pytestmark = [pytest.mark.integration, pytest.mark.alone]
DEVICE = "hv7-wan"
HOLD_CPU = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
begun = time.monotonic()
while time.monotonic() - begun < 0.2:
    pass
print((time.monotonic() - begun) * 1e3)
"""
LOOK_S = 0.35
"""Long enough for three looks at the devices."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    yield from built_net(tmp_path_factory)


@pytest.fixture
def nodes(net: GateNet) -> Iterator[GateNet]:
    for node in ("gw1", "gw2"):
        with net.inside(node):
            prepare_node(net.config, node)
    yield net
    for node in ("gw1", "gw2"):
        with net.inside(node):
            teardown_node(net.config, node)


@pytest.fixture
def judge(nodes: GateNet) -> Iterator[GateJudge]:
    judge = GateJudge(nodes.file, "main", nodes.namespace(""))
    time.sleep(LOOK_S)
    judge.take()
    yield judge
    judge.close()


def verdict(judge: GateJudge, moves: list[MoveWindow] | None = None) -> GateVerdict:
    return judge.take().verdict(moves or [])


def test_shut_gates_and_one_holder_after_the_other_are_clean(
    nodes: GateNet, judge: GateJudge
) -> None:
    start_ns = now_ns()
    with Renewal(nodes.paths("gw1")):
        time.sleep(LOOK_S)
    second_ns = now_ns()
    with Renewal(nodes.paths("gw2")):
        time.sleep(LOOK_S)
    over_ns = now_ns()
    record = judge.take()
    found = record.verdict([])
    assert found.clean, found
    assert found.unguarded_ms == 0
    assert found.samples > 300
    takeover_ns = record.takeover_ns(start_ns, "gw1")
    assert takeover_ns is not None
    assert second_ns < takeover_ns < over_ns


def test_a_busy_cpu_does_not_blind_the_judge_of_the_gates(
    nodes: GateNet, judge: GateJudge
) -> None:
    """As the kernel holds it: whoever wakes there waits, and nobody is interrupted."""
    cpu = lease_cpu(nodes.config.cpus, usable_cpus())
    argv = [sys.executable, "-c", HOLD_CPU, str(cpu)]
    held = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert held.returncode == 0, held.stderr
    held_ms = float(held.stdout)
    assert held_ms >= 200
    assert verdict(judge).sample_gap_max_ms < held_ms / 2


def test_two_holders_at_once_are_dual(nodes: GateNet, judge: GateJudge) -> None:
    start_ns = now_ns()
    with Renewal(nodes.paths("gw1")), Renewal(nodes.paths("gw2")):
        time.sleep(0.2)
    found = verdict(judge)
    assert 190 < found.dual_ms < (now_ns() - start_ns) / 1e6
    assert found.spans


def test_accepting_twice_is_dual_unless_it_was_commanded(nodes: GateNet, judge: GateJudge) -> None:
    for commanded in (False, True):
        start_ns = now_ns()
        with Renewal(nodes.paths("gw1"), announce=False), Renewal(nodes.paths("gw2")):
            time.sleep(0.05)
        moves = [MoveWindow(start_ns, now_ns(), 200_000_000)] if commanded else []
        found = verdict(judge, moves)
        assert (found.dual_ms == 0) is commanded
        assert (found.allowed_ms > 0) is commanded


def test_programs_that_always_pass_are_no_gate(nodes: GateNet, judge: GateJudge) -> None:
    for node in ("gw1", "gw2"):
        with nodes.inside(node):
            teardown_node(nodes.config, node)
            prepare_node(nodes.config, node, gate_always_pass=True)
    time.sleep(LOOK_S)
    record = judge.take()
    assert record.verdict([]).dual_ms > 100
    assert "is not the gate" in record.devices.reasons["gw2"]


def test_a_program_that_only_has_the_gates_name_is_no_gate(
    nodes: GateNet, judge: GateJudge
) -> None:
    paths = nodes.paths("gw2")
    with nodes.inside("gw2"), bpf.closing(bpf.open_pin(paths.bpf / "gate")) as page:
        code = program_bytes(Hook.IN, GROUP, page, always_pass=True)
        name = program_name(Hook.IN, GROUP, always_pass=False)
        pin = paths.bpf / f"prog-{GROUP}-in"
        pin.unlink()
        with bpf.closing(bpf.load_program(name, code)) as program:
            bpf.pin(program, pin)
            for device in ("hv7-lan", DEVICE):
                link_pin = paths.bpf / f"link-{device}-in"
                link_pin.unlink()
                ifindex = socket.if_nametoindex(device)
                with bpf.closing(bpf.tcx_attach(program, ifindex, Hook.IN.value, device)) as link:
                    bpf.pin(link, link_pin)
    with Renewal(nodes.paths("gw1")):
        time.sleep(LOOK_S)
    record = judge.take()
    assert record.verdict([]).dual_ms > 100
    assert "hook in is not the gate" in record.devices.reasons["gw2"]


def test_a_device_that_lost_a_program_is_open_until_it_is_down(
    nodes: GateNet, judge: GateJudge
) -> None:
    (nodes.paths("gw2").bpf / f"link-{DEVICE}-out").unlink()
    with Renewal(nodes.paths("gw1")):
        time.sleep(LOOK_S)
        record = judge.take()
        assert record.verdict([]).dual_ms > 100
        assert "no program on hook out" in record.devices.reasons["gw2"]
        nodes.ip("gw2", f"link set {DEVICE} down")
        time.sleep(0.15)
        judge.take()
        time.sleep(LOOK_S)
    found = verdict(judge)
    assert found.clean, found
    assert found.unguarded_ms == 0


def test_processes_that_do_not_look_do_not_acquit(nodes: GateNet, judge: GateJudge) -> None:
    """Stopped for longer than their bounds, and nothing wrong was to be seen."""
    for pid in judge.pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(LOOK_GAP_NS_MAX / 1e9 + 0.1)
    for pid in judge.pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(LOOK_S)
    found = verdict(judge)
    assert found.dual_ms == 0
    assert not found.clean
    assert "no sample of the gates was taken for" in found.problem
    assert "nobody looked at the devices for" in found.problem
    time.sleep(LOOK_S)
    assert verdict(judge).problem == "", "the gap was judged already"


def test_a_wiped_node_is_shut_and_followed_when_it_returns(
    nodes: GateNet, judge: GateJudge
) -> None:
    with Renewal(nodes.paths("gw1"), ahead_ms=1000):
        time.sleep(0.05)
    with nodes.inside("gw1"):
        teardown_node(nodes.config, "gw1")
    gone_ns = now_ns()
    with Renewal(nodes.paths("gw2")):
        time.sleep(0.1)
    with nodes.inside("gw1"):
        prepare_node(nodes.config, "gw1")
    time.sleep(0.05)
    with Renewal(nodes.paths("gw1")):
        time.sleep(0.1)
    record = judge.take()
    found = record.verdict([])
    assert found.clean, found
    back_ns = record.takeover_ns(gone_ns, "gw2")
    assert back_ns is not None, "the new page of gw1 was not found"


# ---- judge (b) --------------------------------------------------------------------------------

FRAMES_PREFIX = f"hafw-t-drill-{os.getpid()}"
VIRTUAL_MAC = "00:00:5e:00:01:07"
SERVER_MAC = "02:00:00:00:00:aa"
PLACES = (
    Addresses(4, "192.0.2.10", "198.51.100.10", "", ""),
    Addresses(6, "2001:db8:1::10", "2001:db8:2::10", "", ""),
)


def ip(namespace: str, words: str) -> str:
    argv = ["ip", "-n", f"{FRAMES_PREFIX}-{namespace}", *words.split()]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout


def sysctl(namespace: str, key: str, value: int) -> None:
    argv = [
        "ip",
        "netns",
        "exec",
        f"{FRAMES_PREFIX}-{namespace}",
        "sysctl",
        "-qw",
        f"{key}={value}",
    ]
    subprocess.run(argv, check=True, timeout=10)


def forward(node: str, on: bool) -> None:
    sysctl(node, "net.ipv4.ip_forward", int(on))
    sysctl(node, "net.ipv6.conf.all.forwarding", int(on))


@pytest.fixture(scope="module")
def switch() -> Iterator[str]:
    """Two plain routers that both have the virtual MAC, on two bridges."""
    names = ("sw", "gw1", "gw2")
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", f"{FRAMES_PREFIX}-{name}"], check=True)
        for segment in ("lan", "wan"):
            ip("sw", f"link add {segment} type bridge mcast_snooping 0")
            ip("sw", f"link set {segment} up")
        index = 100
        for number, node in enumerate(("gw1", "gw2"), 1):
            sysctl(node, "net.ipv6.conf.default.accept_dad", 0)
            for segment, prefixes in (
                ("lan", ("192.0.2", "2001:db8:1::")),
                ("wan", ("198.51.100", "2001:db8:2::")),
            ):
                index += 1
                port, device = f"{node}-{segment}0", f"{segment}0"
                ip(
                    "sw",
                    f"link add {port} index {index} type veth peer {device} "
                    f"netns {FRAMES_PREFIX}-{node}",
                )
                ip("sw", f"link set {port} master {segment} up")
                if segment == "lan":
                    ip(node, f"link set {device} address {VIRTUAL_MAC}")
                ip(node, f"link set {device} up")
                ip(node, f"addr add {prefixes[0]}.{number}/24 dev {device}")
                ip(node, f"addr add {prefixes[1]}{number}/64 dev {device} nodad")
            for place in PLACES:
                ip(node, f"neigh add {place.server} lladdr {SERVER_MAC} dev wan0 nud permanent")
        yield f"{FRAMES_PREFIX}-sw"
    finally:
        for name in names:
            if Path(f"/run/netns/{FRAMES_PREFIX}-{name}").exists():
                subprocess.run(["ip", "netns", "del", f"{FRAMES_PREFIX}-{name}"], check=True)


@pytest.fixture
def frame_judge(switch: str, tmp_path: Path) -> Iterator[FrameJudge]:
    file = tmp_path / "cluster.yaml"
    file.write_text(CONFIG_TEXT)
    judge = FrameJudge(file, PLACES, switch)
    yield judge
    judge.close()


def watch(judge: FrameJudge, *, gw1: bool, gw2: bool) -> FrameVerdict:
    forward("gw1", gw1)
    forward("gw2", gw2)
    time.sleep(0.05)
    judge.take()
    time.sleep(0.3)
    return judge.verdict([])


@pytest.mark.parametrize(("gw1", "gw2"), [(True, False), (False, True)])
def test_one_forwarder_is_clean(frame_judge: FrameJudge, gw1: bool, gw2: bool) -> None:
    found = watch(frame_judge, gw1=gw1, gw2=gw2)
    assert found.clean, found
    assert found.forwarded["gw1" if gw1 else "gw2"] > 0.9 * found.injected
    assert found.forwarded["gw2" if gw1 else "gw1"] == 0
    assert found.injected > 200


def test_two_forwarders_are_dual(frame_judge: FrameJudge) -> None:
    found = watch(frame_judge, gw1=True, gw2=True)
    assert found.dual_ms > 0.9 * found.injected
    assert not found.problem


def test_nobody_forwarding_blinds_the_judge_and_is_said(frame_judge: FrameJudge) -> None:
    found = watch(frame_judge, gw1=False, gw2=False)
    assert not found.clean
    assert found.problem == "only 0% of the injected frames were forwarded by anybody"


def test_the_switch_learns_nothing_from_injected_frames(
    switch: str, frame_judge: FrameJudge
) -> None:
    watch(frame_judge, gw1=True, gw2=False)
    argv = ["nsenter", f"--net=/run/netns/{switch}", "bridge", "fdb", "show"]
    learnt = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout
    assert TEST_MAC.hex(":") not in learnt
