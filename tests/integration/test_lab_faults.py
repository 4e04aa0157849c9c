"""Silence drops every frame both ways, at once, and leaves the switch's table as it was; a power
cut takes all of a node's kernel state and nothing of its disk."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hafw.errors import StateError
from hafw.lab.files import hold_file
from hafw.lab.inside import call_in, namespace_inode
from hafw.lab.lab import Lab
from hafw.paths import NodePaths

pytestmark = [pytest.mark.integration, pytest.mark.alone]

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ETHERTYPES = {"IPv4": IPV4, "ARP": ARP, "IPv6": IPV6}
BROADCAST = "ff:ff:ff:ff:ff:ff"
MULTICAST = {IPV4: "01:00:5e:00:00:8d", ARP: BROADCAST, IPV6: "33:33:00:00:00:01"}
MACS = {
    "gw1": {"lan0": "02:68:61:66:01:01", "sync0": "02:68:61:66:01:03"},
    "gw2": {"lan0": "02:68:61:66:02:01", "sync0": "02:68:61:66:02:03"},
    "client": {"lan0": "02:68:61:66:c1:01"},
}
ARRIVAL_S = 0.5
ABSENCE_S = 0.1
"""Frames cross a veth and a bridge in microseconds."""


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def crosses(
    source: str, target: str, device: str, ethertype: int, mac: str, wait_s: float
) -> bool:
    """A frame sent by one host's device arrives at another's."""

    def opened(host: str) -> socket.socket:
        def make() -> socket.socket:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
            raw.bind((device, ethertype))
            return raw

        return call_in(f"hafw-{host}", make)

    content = os.urandom(46)
    frame = packed(mac) + packed(MACS[source][device]) + struct.pack("!H", ethertype) + content
    with ExitStack() as stack:
        sender, receiver = (stack.enter_context(opened(host)) for host in (source, target))
        sender.send(frame)
        deadline = time.monotonic() + wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            receiver.settimeout(left_s)
            try:
                if receiver.recv(2048)[14:] == content:
                    return True
            except TimeoutError:
                break
    return False


def fdb_ports(bridge: str, mac: str) -> list[str]:
    """Where the switch has learnt a MAC."""
    told = subprocess.run(
        ["nsenter", "--net=/run/netns/hafw-sw", "bridge", "fdb", "show", "br", bridge],
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    return [
        line.split()[2]
        for line in told.stdout.splitlines()
        if line.startswith(mac) and "permanent" not in line
    ]


@pytest.fixture
def lab(bare_lab: Lab) -> Iterator[Lab]:
    yield bare_lab
    bare_lab.heal_all()


@pytest.mark.parametrize("name", sorted(ETHERTYPES))
@pytest.mark.parametrize("cast", ["unicast", "multicast"])
def test_silence_drops_both_ways_and_heal_restores(lab: Lab, name: str, cast: str) -> None:
    ethertype = ETHERTYPES[name]
    ways = [("gw1", "client", "lan0"), ("client", "gw1", "lan0"), ("gw2", "gw1", "sync0")]

    def mac(target: str, device: str) -> str:
        return MACS[target][device] if cast == "unicast" else MULTICAST[ethertype]

    for source, target, device in ways:
        assert crosses(source, target, device, ethertype, mac(target, device), ARRIVAL_S)
    lab.silence("gw1")
    for source, target, device in ways:
        assert not crosses(source, target, device, ethertype, mac(target, device), ABSENCE_S)
    # Everybody else goes on.
    assert crosses("client", "gw2", "lan0", ethertype, mac("gw2", "lan0"), ARRIVAL_S)
    lab.heal("gw1")
    for source, target, device in ways:
        assert crosses(source, target, device, ethertype, mac(target, device), ARRIVAL_S)


def test_the_switch_still_points_at_the_silent_node(lab: Lab) -> None:
    mac = MACS["gw1"]["lan0"]
    assert crosses("gw1", "client", "lan0", IPV4, MACS["client"]["lan0"], ARRIVAL_S)
    assert fdb_ports("lan", mac) == ["gw1-lan0"]
    lab.silence("gw1")
    assert fdb_ports("lan", mac) == ["gw1-lan0"]
    # Not flooded either: a frame to the silent node reaches nobody else.
    assert not crosses_to_other(mac)
    links = lab.status()["hosts"]["gw1"]["links"]
    assert all(link["carrier"] for link in links.values())
    assert all(lab.status()["bridges"]["lan"].values())


def crosses_to_other(mac: str) -> bool:
    return crosses("client", "gw2", "lan0", IPV4, mac, ABSENCE_S)


def test_silence_is_fast_and_says_when(lab: Lab) -> None:
    took_ms = []
    for _ in range(5):
        begun_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        fault = lab.fault("gw1")
        ended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert begun_ns <= fault.before_ns <= fault.after_ns <= ended_ns
        took_ms.append((ended_ns - begun_ns) / 1e6)
        lab.heal("gw1")
    assert min(took_ms) < 10, took_ms


def test_silence_twice_and_heal_twice(lab: Lab) -> None:
    lab.silence("gw1")
    lab.silence("gw1")
    lab.silence("wit")
    assert lab.silenced() == {"gw1", "wit"}
    lab.heal("gw1")
    lab.heal("gw1")
    assert lab.silenced() == {"wit"}
    assert crosses("gw1", "client", "lan0", IPV4, MACS["client"]["lan0"], ARRIVAL_S)


def test_one_link_and_one_direction(lab: Lab) -> None:
    lab.silence("gw1", devices=["sync0"], direction="from")
    assert not crosses("gw1", "gw2", "sync0", IPV4, MACS["gw2"]["sync0"], ABSENCE_S)
    assert crosses("gw2", "gw1", "sync0", IPV4, MACS["gw1"]["sync0"], ARRIVAL_S)
    assert crosses("gw1", "gw2", "lan0", IPV4, MACS["gw2"]["lan0"], ARRIVAL_S)
    lab.silence("gw1", devices=["sync0"], direction="to")  # replaces the other
    assert crosses("gw1", "gw2", "sync0", IPV4, MACS["gw2"]["sync0"], ARRIVAL_S)
    assert not crosses("gw2", "gw1", "sync0", IPV4, MACS["gw1"]["sync0"], ABSENCE_S)


def test_faults_of_what_is_not_there(lab: Lab) -> None:
    with pytest.raises(StateError, match="gw1 has no device eth7"):
        lab.silence("gw1", devices=["eth7"])
    with pytest.raises(StateError, match="no host gw9"):
        lab.silence("gw9")
    assert lab.silenced() == frozenset()


def test_a_second_process_sees_and_heals(lab: Lab) -> None:
    lab.silence("gw2")
    other = Lab()
    assert other.silenced() == {"gw2"}
    other.heal("gw2")
    other.close()
    assert lab.silenced() == frozenset()


def spawned(lab: Lab, node: str, count: int) -> list[subprocess.Popen[bytes]]:
    """Sleepers that have arrived in the node's namespace."""
    processes = [lab.spawn(node, ["sleep", "600"]) for _ in range(count)]
    deadline = time.monotonic() + 5
    while len(lab.all_pids(node)) < count:
        assert time.monotonic() < deadline, "sleepers did not reach the namespace"
        time.sleep(0.005)
    return processes


def inside(lab: Lab, node: str, *argv: str) -> str:
    done = subprocess.run(
        [*lab.nsenter(node), *argv], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout


def test_power_off_takes_kernel_state_and_leaves_the_disk(lab: Lab) -> None:
    paths = NodePaths("gw1")
    processes = spawned(lab, "gw1", 3)
    processes[1].send_signal(signal.SIGSTOP)  # a stopped process dies of a power cut as well
    inside(lab, "gw1", "ip", "link", "add", "hv1-lan", "link", "lan0", "type", "macvlan")
    inside(lab, "gw1", "nft", "add table inet hafw_policy; add table inet hafw_state")
    inside(lab, "gw1", "nft", "add table ip docker")
    inside(
        lab, "gw1", "conntrack", "-I", "-s", "192.0.2.10", "-d", "198.51.100.10", "-p", "tcp",
        "--sport", "1", "--dport", "2", "--state", "ESTABLISHED", "-t", "300",
    )  # fmt: skip
    assert "192.0.2.10" in inside(lab, "gw1", "conntrack", "-L")
    paths.bpf.mkdir(parents=True, exist_ok=True)
    paths.run.mkdir(parents=True, exist_ok=True)
    (paths.run / "hafwd.sock").touch()
    paths.era.write_text("3\n")
    try:
        lab.power_off("gw1")
        assert [process.wait(5) for process in processes] == [-signal.SIGKILL] * 3
        assert lab.all_pids("gw1") == []
        assert "hv1-lan" not in inside(lab, "gw1", "ip", "link")
        assert inside(lab, "gw1", "nft", "list", "tables").split() == ["table", "ip", "docker"]
        assert inside(lab, "gw1", "conntrack", "-L") == ""
        assert not paths.bpf.exists()
        assert not paths.run.exists()
        assert paths.era.read_text() == "3\n"
        assert paths.lease_key.exists()
        assert hold_file("gw1").exists()
        assert lab.problems() == []  # a node without power is no fault of the lab
    finally:
        inside(lab, "gw1", "nft", "delete table ip docker")
    lab.start("gw1")
    assert not hold_file("gw1").exists()


def test_spawn_enters_the_network_and_keeps_the_mounts(lab: Lab) -> None:
    script = "readlink /proc/self/ns/net /proc/self/ns/mnt; echo $HAFW_NODE $HAFW_CONFIG"
    process = lab.spawn("hafw-gw2", ["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=10)
    network, mounts, variables = output.splitlines()
    assert network == f"net:[{namespace_inode('hafw-gw2')}]"
    assert mounts == os.readlink("/proc/self/ns/mnt")
    assert variables == "gw2 /run/hafw/lab/cluster.yaml"


def test_spawn_where_nothing_is(lab: Lab) -> None:
    with pytest.raises(StateError, match="no host gw9"):
        lab.spawn("gw9", ["true"])
