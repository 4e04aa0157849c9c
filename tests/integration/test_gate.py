"""The gate in a real kernel: shut, opened by a store, shut by time, and by nothing else opened."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cluster import bpf
from cluster.announce import Announcer, announced_ports, arp_frames
from cluster.gate import GATE_HANDOVER_MARK, GateReader, GateWriter, Hook, HookState, hook_state
from cluster.gate import attached as gate_attached
from cluster.gate_program import program_bytes
from hafw.node.setup import check_node, prepare_node, teardown_node
from tests.integration.gate_env import (
    GROUP,
    LINK_LOCAL,
    MAC,
    VIP4,
    VIP6,
    GateNet,
    Renewal,
    Sniffer,
    built_net,
    dropped,
    now_ns,
    wait_for,
)

pytestmark = pytest.mark.integration
RAW_MAC = bytes.fromhex(MAC.replace(":", ""))
DEVICE = "hv7-lan"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    yield from built_net(tmp_path_factory)


@pytest.fixture
def gate(net: GateNet) -> Iterator[GateNet]:
    """gw1 prepared, shut."""
    with net.inside("gw1"):
        prepare_node(net.config, "gw1")
    net.forget_neighbours()
    yield net
    with net.inside("gw1"):
        teardown_node(net.config, "gw1")


def raw_socket(net: GateNet) -> socket.socket:
    with net.inside("gw1"):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.bind((DEVICE, 0))
    return raw


def send_to_virtual_mac(net: GateNet, count: int) -> None:
    """UDP datagrams to the VIP's port 9, straight to the virtual MAC."""
    net.ip("client", f"neigh replace {VIP4} lladdr {MAC} dev eth0 nud permanent")
    try:
        with net.inside("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for _ in range(count):
                udp.sendto(b"x", (VIP4, 9))
    finally:
        net.ip("client", f"neigh del {VIP4} dev eth0")


# ---- shut ---------------------------------------------------------------------------------------


def test_a_shut_gate_answers_nothing(gate: GateNet) -> None:
    assert gate.ping("192.0.2.1"), "the node's own address must answer, or this test is blind"
    sniffer = Sniffer(gate, "client", "eth0")
    before_in, _ = dropped(gate.paths("gw1"))
    assert not gate.ping(VIP4)
    assert not gate.ping(VIP6)
    assert not gate.ping(f"{LINK_LOCAL}%eth0")
    assert [f for f in sniffer.frames() if f[6:12] == RAW_MAC] == []
    sniffer.close()
    assert dropped(gate.paths("gw1"))[0] >= before_in + 3, "ARP and ND requests are counted"


def test_a_shut_gate_lets_no_local_sender_out(gate: GateNet) -> None:
    sniffer = Sniffer(gate, "client", "eth0")
    _, before_out = dropped(gate.paths("gw1"))
    frame = arp_frames(MAC, gate.config.groups["main"].vips["lan"][0])[0]  # type: ignore[arg-type]
    with raw_socket(gate) as raw:
        for _ in range(100):
            with pytest.raises(OSError, match="buffer space") as refused:
                raw.send(frame)
            assert refused.value.errno == errno.ENOBUFS
    with gate.inside("gw1"):
        announcer = Announcer(announced_ports(gate.config, "main", "gw1"))
        assert announcer.announce() == 0
        # Per segment: two ARP, the VIP's NA, the link-local's NA, three reports of two groups.
        assert announcer.refused == 14
        announcer.close()
        for family, group in ((socket.AF_INET, "224.0.0.1"), (socket.AF_INET6, "ff02::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as udp:
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
                # A drop may or may not be reported to a UDP sender: the frames decide.
                with suppress(OSError):
                    udp.sendto(b"x", (group, 9))
    time.sleep(0.05)
    assert [f for f in sniffer.frames() if f[6:12] == RAW_MAC] == []
    sniffer.close()
    assert dropped(gate.paths("gw1"))[1] >= before_out + 104


def test_every_frame_dropped_at_ingress_is_counted(gate: GateNet) -> None:
    before, _ = dropped(gate.paths("gw1"))
    send_to_virtual_mac(gate, 200)
    wait_for("200 drops", lambda: dropped(gate.paths("gw1"))[0] >= before + 200)
    # What is not ours on the segment (an MLD report, an ND probe) is a handful at most.
    assert dropped(gate.paths("gw1"))[0] < before + 220


# ---- opened by a store, shut by time -----------------------------------------------------------


def test_a_store_opens_and_a_store_shuts(gate: GateNet) -> None:
    with Renewal(gate.paths("gw1")):
        assert gate.ping(VIP4)
        assert gate.ping(VIP6)
        assert gate.ping(f"{LINK_LOCAL}%eth0")
        assert gate.port_of(MAC) == "gw1"
    assert not gate.ping(VIP4)
    assert not gate.ping(VIP6)


def test_the_deadline_is_exact(gate: GateNet) -> None:
    """A frame taken was sent before the deadline, one refused after it: to the nanosecond."""
    writer = GateWriter.open(gate.paths("gw1"))
    frame = RAW_MAC + RAW_MAC + b"\x88\xb5" + bytes(46)
    with raw_socket(gate) as raw:
        for ahead_ms in (3, 5, 17, 40):
            deadline = now_ns() + ahead_ms * 1_000_000
            writer.store(GROUP, announce_ns=deadline, accept_ns=deadline)
            taken = 0
            while True:
                before = now_ns()
                try:
                    raw.send(frame)
                except OSError:
                    refused_at = now_ns()
                    break
                taken += 1
                assert before < deadline, "a frame went out after the deadline"
            assert refused_at >= deadline, "a frame was refused before the deadline"
            assert taken > 0
    writer.close()


def test_a_late_store_of_an_old_deadline_opens_nothing(gate: GateNet) -> None:
    writer = GateWriter.open(gate.paths("gw1"))
    old = now_ns() - 1
    writer.store(GROUP, announce_ns=old, accept_ns=old)
    writer.close()
    assert not gate.ping(VIP4)


def test_a_deadline_too_far_ahead_is_our_mistake(gate: GateNet) -> None:
    writer = GateWriter.open(gate.paths("gw1"))
    far = now_ns() + 10_000_000_000
    with pytest.raises(AssertionError):
        writer.store(GROUP, announce_ns=0, accept_ns=far)
    with pytest.raises(AssertionError):
        writer.store(0, announce_ns=0, accept_ns=0)
    assert writer.read(GROUP).accept_ns == 0
    writer.close()


WRITER = """
import sys, time
from cluster.gate import GateWriter
from hafw.paths import NodePaths
writer = GateWriter.open(NodePaths("gw1"))
print("ready", flush=True)
while True:
    until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60_000_000
    writer.store(3, announce_ns=until, accept_ns=until)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_gate_shuts_when_its_writer_dies_or_hangs(
    gate: GateNet, number: signal.Signals
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        wait_for("open", lambda: gate.ping(VIP4))
        os.kill(writer.pid, number)
        reader = GateReader.open(gate.paths("gw1"))
        wait_for("the deadline", lambda: reader.read(GROUP).announce_ns < now_ns(), 1.0)
        reader.close()
        assert not gate.ping(VIP4)
        assert not gate.ping(VIP6)
    finally:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()


def test_announce_shut_and_accept_open_takes_packets_marks_them_and_says_nothing(
    gate: GateNet,
) -> None:
    gate.run("gw1", "nft", "add table inet t")
    gate.run("gw1", "nft", "add chain inet t c { type filter hook input priority 0 ; }")
    rule = f"udp dport 9 meta mark {GATE_HANDOVER_MARK:#x} counter"
    gate.run("gw1", "nft", f"add rule inet t c {rule}")
    gate.run("gw1", "nft", "add rule inet t c udp dport 9 meta mark 0 counter")
    reader = GateReader.open(gate.paths("gw1"))
    try:
        with Renewal(gate.paths("gw1"), announce=False):
            assert not gate.ping(VIP4), "ARP must not be answered"
            assert not gate.ping(VIP6), "ND must not be answered"
            before = reader.handed_over(GROUP)
            send_to_virtual_mac(gate, 20)
            wait_for("20 marked", lambda: reader.handed_over(GROUP) >= before + 20)
        with Renewal(gate.paths("gw1")):
            send_to_virtual_mac(gate, 10)
            chain = ["nft", "list chain inet t c"]
            wait_for("10 clean", lambda: "packets 10 " in gate.run("gw1", *chain).stdout)
        assert "packets 20 " in gate.run("gw1", *chain).stdout
    finally:
        reader.close()
        gate.run("gw1", "nft", "delete table inet t")


# ---- what others may do ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "nft flush ruleset",
        "tc qdisc add dev hv7-lan clsact",
        "tc filter del dev hv7-lan ingress",
        "ip link set hv7-lan name other",
        "ip link set hv7-lan address 02:00:00:00:00:01",
        "ip addr flush dev hv7-lan",
        "ip link set hv7-lan down",
        "ip link set lan0 down",
    ],
)
def test_a_shut_gate_stays_shut(gate: GateNet, command: str) -> None:
    gate.run("gw1", *command.split(), check=False)
    assert not gate.ping(VIP4)
    assert not gate.ping(VIP6)
    gate.ip("gw1", "link set lan0 up")
    # Taking lan0 down takes its IPv6 address along, which is not hafw's to give back.
    gate.run(
        "gw1", *["ip", "addr", "add", "2001:db8:1::1/64", "dev", "lan0", "nodad"], check=False
    )
    with gate.inside("gw1"):
        prepare_node(gate.config, "gw1")
        assert check_node(gate.config, "gw1") == []
    with Renewal(gate.paths("gw1")):
        wait_for("open after repair", lambda: gate.ping(VIP4) and gate.ping(VIP6))


def test_a_program_in_front_of_ours_is_seen_and_ours_put_in_front_again(gate: GateNet) -> None:
    paths = gate.paths("gw1")
    with gate.inside("gw1"):
        array = bpf.create_array("foreign", 4096)
        program = bpf.load_program("foreign", program_bytes(Hook.IN, 1, array, always_pass=True))
        ifindex = socket.if_nametoindex(DEVICE)
        link = bpf.tcx_attach(program, ifindex, Hook.IN.value, DEVICE)
        try:
            assert hook_state(paths, GROUP, DEVICE, Hook.IN) is HookState.SHADOWED
            assert not gate_attached(paths, DEVICE)
            assert any(DEVICE in problem for problem in check_node(gate.config, "gw1"))
            prepare_node(gate.config, "gw1")
            assert gate_attached(paths, DEVICE, enforcing=True)
            assert check_node(gate.config, "gw1") == []
        finally:
            for fd in (link, program, array):
                os.close(fd)


def test_the_drill_s_variant_passes_everything_and_is_not_taken_for_the_gate(
    gate: GateNet,
) -> None:
    paths = gate.paths("gw1")
    with gate.inside("gw1"):
        prepare_node(gate.config, "gw1", gate_always_pass=True)
        assert gate.ping(VIP4)
        assert gate_attached(paths, DEVICE)
        assert not gate_attached(paths, DEVICE, enforcing=True)
        assert check_node(gate.config, "gw1", gate_always_pass=True) == []
        assert any("never drops" in text for text in check_node(gate.config, "gw1"))
        prepare_node(gate.config, "gw1")
        assert gate_attached(paths, DEVICE, enforcing=True)
        assert check_node(gate.config, "gw1") == []
    gate.forget_neighbours()
    assert not gate.ping(VIP4)


def test_a_reader_sees_what_a_writer_stores_and_cannot_write(gate: GateNet) -> None:
    writer, reader = GateWriter.open(gate.paths("gw1")), GateReader.open(gate.paths("gw1"))
    at = now_ns()
    writer.store(GROUP, announce_ns=at, accept_ns=at + 1)
    assert (reader.read(GROUP).announce_ns, reader.read(GROUP).accept_ns) == (at, at + 1)
    with pytest.raises(TypeError, match="read-only"):
        reader._cells[0] = 0
    reader.close()
    writer.close()
