"""Namespaces for the conntrack tests, and two independent readers of what the kernel holds.

Traffic tests: a client and a server, joined by two gateways that do not know of each other. Which
one carries the packets is decided by one route at each end, so a move takes one call.

    client (192.0.2.10 .11) -- a, b -- server (198.51.100.10); the gateways own 198.51.100.254 .253
    client (2001:db8:1::10 ::11)       server (2001:db8:2::10)               2001:db8:2::fe ::fd
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hafw.flow import FlowKey
from hafw.kernel.netns import entered
from sync.ctnetlink import build_get
from tests.unit.sync.flow_strategies import read_tree

READY_S = 10.0
PREFIX = f"hafw-t-ct-{os.getpid()}"


def run(*argv: str, stdin: str | None = None) -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def inside(space: str, *argv: str, stdin: str | None = None) -> str:
    return run("ip", "netns", "exec", space, *argv, stdin=stdin)


def batch(space: str, *commands: str) -> None:
    """`ip` commands, by one process."""
    run("ip", "-n", space, "-batch", "-", stdin="\n".join(commands))


@contextmanager
def spaces(*names: str) -> Iterator[list[str]]:
    full = [f"{PREFIX}-{name}" for name in names]
    try:
        for name in full:
            run("ip", "netns", "add", name)
            settings = (
                "net.ipv4.ping_group_range=0 0",
                "net.ipv6.conf.all.accept_dad=0",
                "net.ipv6.conf.default.accept_dad=0",
            )
            inside(name, "sysctl", "-qw", *settings)
            batch(name, "link set lo up")
        yield full
    finally:
        for name in full:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)


def strict(space: str) -> None:
    """What every gateway of ours has: strict TCP, events, timestamps."""
    values = {"tcp_loose": 0, "tcp_be_liberal": 0, "events": 1, "timestamp": 1}
    settings = [f"net.netfilter.nf_conntrack_{name}={value}" for name, value in values.items()]
    inside(space, "sysctl", "-qw", *settings)


def kernel_tree(space: str, key: FlowKey) -> dict[int, Any]:
    """The raw attributes of one entry, read without the codec's parser."""
    with entered(space):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with sock:
        sock.settimeout(5)
        sock.send(build_get(key, seq=1))
        message = sock.recv(65536)
    length, kind = struct.unpack_from("=IH", message)
    assert kind == 0x100, f"no entry {key}"
    return read_tree(message[20:length])


@dataclass(frozen=True)
class Listed:
    """One line of ``conntrack -L -o extended``."""

    family: str
    proto: int
    timeout_s: int
    state: str | None
    orig: dict[str, str]
    reply: dict[str, str]
    facts: dict[str, str]
    words: frozenset[str]


def conntrack_list(space: str, family: str) -> list[Listed]:
    text = inside(space, "conntrack", "-L", "-f", family, "-o", "extended,id")
    return [_listed(line) for line in text.splitlines() if line.strip()]


def _listed(line: str) -> Listed:
    tokens = line.split()
    orig: dict[str, str] = {}
    reply: dict[str, str] = {}
    facts: dict[str, str] = {}
    for name, value in re.findall(r"([\w-]+)=(\S+)", line):
        if name in {"src", "dst", "sport", "dport", "type", "code", "id", "srckey", "dstkey"}:
            # The entry's own id comes last and a third time.
            where = orig if name not in orig else reply if name not in reply else facts
            where[name] = value
        else:
            facts[name] = value
    plain = [token for token in tokens[5:] if "=" not in token]
    state = plain[0] if plain and plain[0].isupper() and plain[0][0] != "[" else None
    words = frozenset(token.strip("[]") for token in plain if token.startswith("["))
    return Listed(tokens[0], int(tokens[3]), int(tokens[4]), state, orig, reply, facts, words)


GATEWAY_RULES = """
table inet ct_test {
  chain pre {
    type nat hook prerouting priority dstnat;
    %(nat)s ip daddr 198.51.100.253 dnat ip to 198.51.100.10
    %(nat)s ip6 daddr 2001:db8:2::fd dnat ip6 to 2001:db8:2::10
    %(nat)s ip daddr 198.51.100.254 meta l4proto { tcp, udp } dnat ip to 192.0.2.10
    %(nat)s ip6 daddr 2001:db8:2::fe meta l4proto { tcp, udp } dnat ip6 to 2001:db8:1::10
  }
  chain post {
    type nat hook postrouting priority srcnat;
    %(nat)s ip saddr 192.0.2.10 snat ip to 198.51.100.254
    %(nat)s ip6 saddr 2001:db8:1::10 snat ip6 to 2001:db8:2::fe
  }
  chain forward {
    type filter hook forward priority filter;
    ct state invalid counter drop
    %(new)s
  }
}
"""


@dataclass(frozen=True)
class World:
    """The four namespaces of a traffic test."""

    client: str
    a: str
    b: str
    server: str

    def carry(self, gateway: str) -> None:
        """From now on this gateway carries the packets, both ways."""
        number = {self.a: 1, self.b: 2}[gateway]
        near, far = [], []
        for version, family in (("-4", "10.7{}.{}.{}"), ("-6", "fd77:{}{}::{}")):
            to_server, to_client = _ENDS[version]
            way = family.format(number, 1, 1)
            near += [f"route replace {target} via {way}" for target in to_server]
            way = family.format(number, 2, 1)
            far += [f"route replace {target} via {way}" for target in to_client]
        batch(self.client, *near)
        batch(self.server, *far)


_ENDS = {
    "-4": (
        ("198.51.100.10", "198.51.100.253"),
        ("192.0.2.10", "192.0.2.11", "198.51.100.254"),
    ),
    "-6": (
        ("2001:db8:2::10", "2001:db8:2::fd"),
        ("2001:db8:1::10", "2001:db8:1::11", "2001:db8:2::fe"),
    ),
}
_ADDRESSES = {
    "client": ("192.0.2.10/32", "192.0.2.11/32", "2001:db8:1::10/128", "2001:db8:1::11/128"),
    "server": ("198.51.100.10/32", "2001:db8:2::10/128"),
}


@contextmanager
def world() -> Iterator[World]:
    with spaces("client", "a", "b", "server") as names:
        client, a, b, server = names
        for end, own in ((client, "client"), (server, "server")):
            batch(end, *(f"address add {address} dev lo" for address in _ADDRESSES[own]))
        for number, gateway in ((1, a), (2, b)):
            settings = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            inside(gateway, "sysctl", "-qw", *settings)
            strict(gateway)
            _join(client, gateway, number, 1, _ADDRESSES["client"])
            _join(server, gateway, number, 2, _ADDRESSES["server"])
        inside(a, "nft", "-f", "-", stdin=GATEWAY_RULES % {"nat": "", "new": ""})
        # b has nat hooks but no rule that translates, and takes no new flow: replicas or nothing.
        rules = GATEWAY_RULES % {"nat": "ct mark 0xffffffff", "new": "ct state new counter drop"}
        inside(b, "nft", "-f", "-", stdin=rules)
        for gateway in (a, b):
            _wait_for_neighbours(gateway)
        one = World(client, a, b, server)
        one.carry(a)
        yield one


def _wait_for_neighbours(gateway: str) -> None:
    """Links come up and link-local addresses settle within a second or so."""
    for address in sorted({text.split("/")[0] for own in _ADDRESSES.values() for text in own}):
        v6 = ":" in address
        family = socket.AF_INET6 if v6 else socket.AF_INET
        proto = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
        with entered(gateway):
            sock = socket.socket(family, socket.SOCK_DGRAM, proto)
        with sock:
            sock.settimeout(0.2)
            deadline = time.monotonic() + READY_S
            while not _answers(sock, address, 128 if v6 else 8):
                assert time.monotonic() < deadline, f"{gateway} does not reach {address}"


def _answers(sock: socket.socket, address: str, kind: int) -> bool:
    try:
        sock.sendto(struct.pack(">BBHHH", kind, 0, 0, 0, 1), (address, 0))
        return bool(sock.recv(100))
    except OSError:
        time.sleep(0.02)
        return False


def _join(end: str, gateway: str, number: int, side: int, owned: tuple[str, ...]) -> None:
    """A veth between an end and a gateway, and the gateway's routes to the end's addresses."""
    name, peer = f"gw{number}", f"side{side}"
    run("ip", "link", "add", name, "netns", end, "type", "veth", "peer", peer, "netns", gateway)
    for space, device, host in ((gateway, peer, 1), (end, name, 2)):
        settings = [f"net.ipv4.conf.{which}.rp_filter=0" for which in (device, "all")]
        inside(space, "sysctl", "-qw", *settings)
        batch(
            space,
            f"address add 10.7{number}.{side}.{host}/24 dev {device}",
            f"address add fd77:{number}{side}::{host}/64 dev {device} nodad",
            f"link set {device} up",
        )
    ways = (f"fd77:{number}{side}::2" if ":" in a else f"10.7{number}.{side}.2" for a in owned)
    routes = (f"route add {address} via {way}" for address, way in zip(owned, ways, strict=True))
    batch(gateway, *routes)
