"""Two gateways, a client and a switch in namespaces of their own, for the tests of the gate.

The switch holds the bridge `lan` with ports `gw1`, `gw2` and `client`; the gateways have `wan0`
and `sync0` too, ends of veths that lead nowhere. Everything is built by iproute2, so that hafw's
own netlink code is not its own witness.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.gate import GateReader, GateWriter
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.kernel import sysctl
from hafw.kernel.netns import entered
from hafw.paths import NodePaths

VRID = 7
MAC = "00:00:5e:00:01:07"
LINK_LOCAL = "fe80::200:5eff:fe00:107"
VIP4, VIP6 = "192.0.2.254", "2001:db8:1::fe"
GROUP = 3

CONFIG_TEXT = """
name: gatetest
nodes:
  gw1:
    id: 1
    segments:
      lan: {device: lan0, addresses: [192.0.2.1/24, "2001:db8:1::1/64"]}
      wan: {device: wan0, addresses: [198.51.100.1/24, "2001:db8:2::1/64"]}
    links:
      sync0: {device: sync0, address: 203.0.113.1/25}
  gw2:
    id: 2
    segments:
      lan: {device: lan0, addresses: [192.0.2.2/24, "2001:db8:1::2/64"]}
      wan: {device: wan0, addresses: [198.51.100.2/24, "2001:db8:2::2/64"]}
    links:
      sync0: {device: sync0, address: 203.0.113.2/25}
  wit:
    id: 9
    role: witness
    links:
      sync0: {device: sync0, address: 203.0.113.9/25}
groups:
  main:
    index: 3
    vrid: 7
    order: [gw1, gw2]
    vips:
      lan: [192.0.2.254, "2001:db8:1::fe"]
      wan: [198.51.100.254, "2001:db8:2::fe"]
"""


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _echo(address: str, wait_s: float) -> bool:
    """One echo request; true if it was answered in time."""
    ident = os.urandom(4)
    if ":" in address:
        family, protocol, kind, answer, skip = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, 0
    else:
        family, protocol, kind, answer, skip = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, 20
    message = bytes([kind, 0, 0, 0]) + ident
    total = sum(struct.unpack("!4H", message))
    total = (total & 0xFFFF) + (total >> 16)
    # For ICMPv6 the kernel puts its own checksum in.
    message = message[:2] + struct.pack("!H", ~total & 0xFFFF) + ident
    target = socket.getaddrinfo(address, None, family, socket.SOCK_RAW)[0][4]
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        end = time.monotonic() + wait_s
        try:
            raw.sendto(message, target)
            while (left := end - time.monotonic()) > 0:
                raw.settimeout(left)
                got = raw.recv(2048)[skip:]
                if got[0] == answer and got[4:8] == ident:
                    return True
        except OSError:  # No answer in time, or the neighbour cannot be found.
            return False
    return False


def wait_for(what: str, claim: Callable[[], bool], seconds: float = 5.0) -> None:
    """Every wait is bounded and named."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.01)


class GateNet:
    """The namespaces, by short name: sw, client, gw1, gw2."""

    def __init__(self, prefix: str, config: ClusterConfig, file: Path) -> None:
        self._prefix = prefix
        self._index = 100
        self.config = config
        self.file = file

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def command(self, name: str, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}", *argv]

    def run(self, name: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, *argv), check=check, capture_output=True, text=True, timeout=30
        )

    def ip(self, name: str, words: str) -> str:
        return self.run(name, "ip", *words.split()).stdout

    def ping(self, address: str, *, count: int = 1, wait_s: float = 0.2) -> bool:
        """ICMP echo from the client; true if any answer came."""
        with self.inside("client"):
            return any(_echo(address, wait_s) for _ in range(count))

    def forget_neighbours(self) -> None:
        for family in ("-4", "-6"):
            self.run("client", "ip", family, "neigh", "flush", "dev", "eth0", check=False)

    def neighbour(self, address: str) -> str:
        """The client's entry, e.g. ``192.0.2.254 dev eth0 lladdr ... REACHABLE``; or empty."""
        return self.ip("client", f"neigh show to {address} dev eth0").strip()

    def port_of(self, mac: str) -> str:
        """Which switch port has learnt the MAC; empty if none."""
        for line in self.run("sw", "bridge", "fdb", "show", "br", "lan").stdout.splitlines():
            words = line.split()
            if words[0] == mac and "permanent" not in words:
                return words[2]
        return ""

    def paths(self, node: str) -> NodePaths:
        return NodePaths(node)

    def build(self) -> None:
        for name in ("sw", "client", "gw1", "gw2"):
            subprocess.run(["ip", "netns", "add", self.namespace(name)], check=True)
            self.ip(name, "link set lo up")
            # Link-locals are usable at once: nobody waits for duplicate address detection.
            with self.inside(name):
                for scope in ("all", "default"):
                    sysctl.write(f"net/ipv6/conf/{scope}/accept_dad", "0")
        self.ip("sw", "link add lan type bridge mcast_snooping 0")
        self.ip("sw", "link set lan up")
        self._cable("client", "eth0", "client")
        self.ip("client", "addr add 192.0.2.10/24 dev eth0")
        self.ip("client", "addr add 2001:db8:1::10/64 dev eth0 nodad")
        for node in ("gw1", "gw2"):
            self._cable(node, "lan0", node)
            config = self.config.nodes[node]
            for device in ("wan0", "sync0"):
                self.ip(node, f"link add {device} type veth peer name {device}p")
                self.ip(node, f"link set {device} up")
                self.ip(node, f"link set {device}p up")
            ports = [*config.segments.values()]
            for port in ports:
                for address in port.addresses:
                    tail = " nodad" if address.version == 6 else ""
                    self.ip(node, f"addr add {address} dev {port.device}{tail}")
            self.ip(node, f"addr add {config.links['sync0'].address} dev sync0")

    def _cable(self, name: str, device: str, port: str) -> None:
        peer = self.namespace("sw")
        # Equal indexes at both ends would make the carrier come up to a second late.
        self._index += 1
        self.ip(
            name,
            f"link add {device} type veth peer name {port} index {self._index} netns {peer}",
        )
        self.ip("sw", f"link set {port} master lan")
        self.ip("sw", f"link set {port} up")
        self.ip(name, f"link set {device} up")

    def destroy(self) -> None:
        for name in ("gw1", "gw2", "client", "sw"):
            subprocess.run(
                ["ip", "netns", "del", self.namespace(name)], check=False, capture_output=True
            )

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        with entered(self.namespace(name)):
            yield


class Renewal:
    """A lease loop in miniature: a thread that stores deadlines `ahead_ms` from now."""

    def __init__(self, paths: NodePaths, *, announce: bool = True, ahead_ms: int = 200) -> None:
        self._writer = GateWriter.open(paths)
        self._announce = announce
        self._ahead_ns = ahead_ms * 1_000_000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self._store()

    def _store(self) -> None:
        until = now_ns() + self._ahead_ns
        self._writer.store(GROUP, announce_ns=until if self._announce else 0, accept_ns=until)

    def __enter__(self) -> Renewal:
        self._store()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._writer.store(GROUP, announce_ns=0, accept_ns=0)
        self._writer.close()


def dropped(paths: NodePaths) -> tuple[int, int]:
    reader = GateReader.open(paths)
    try:
        return reader.dropped(GROUP)
    finally:
        reader.close()


class Sniffer:
    """Frames seen by a device of a namespace, both ways, since it was opened."""

    def __init__(self, net: GateNet, name: str, device: str) -> None:
        with net.inside(name):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.bind((device, 3))
        self._socket.setblocking(False)

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


def unique_prefix() -> str:
    return f"hafw-t-gate-{os.getpid()}"


def built_net(factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    """For a fixture of a module: the namespaces, and roots of files of its own."""
    prefix = unique_prefix()
    folder = factory.mktemp("gate")
    pins = Path("/sys/fs/bpf") / prefix
    file = folder / "cluster.yaml"
    file.write_text(CONFIG_TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAFW_BPF_ROOT", str(pins))
        patch.setenv("HAFW_RUN_ROOT", str(folder / "run"))
        net = GateNet(prefix, load_cluster(file), file)
        try:
            net.build()
            yield net
        finally:
            net.destroy()
            for pin in sorted(pins.rglob("*"), reverse=True):
                if pin.is_dir():
                    pin.rmdir()
                else:
                    pin.unlink()
            if pins.is_dir():
                pins.rmdir()
