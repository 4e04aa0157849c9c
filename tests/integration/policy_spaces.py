"""One gateway between a client and a server, by plain ip commands: what a policy meets.

    client 192.0.2.10, .20, 2001:db8:1::10, ::20     server 198.51.100.10, 2001:db8:2::10
       eth0 --- lan0 (gateway .1) hv1-lan (VIP .254, ::fe)
                wan0 (gateway .1) hv1-wan (VIP .254, ::fe) --- eth0

No gate and no daemon: the virtual MAC devices are simply up. The server has no route to the LAN.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hafw.kernel.netns import entered
from hafw.kernel.nftables import Nftables
from hafw.policy.apply import PolicyResult, apply_policy

LAB = Path(__file__).resolve().parents[2] / "hafw/lab"
VIP_WAN = {4: "198.51.100.254", 6: "2001:db8:2::fe"}
SERVER = {4: "198.51.100.10", 6: "2001:db8:2::10"}
CLIENT = {4: "192.0.2.10", 6: "2001:db8:1::10"}
INNER = {4: "192.0.2.20", 6: "2001:db8:1::20"}
OWN_LAN = {4: "192.0.2.1", 6: "2001:db8:1::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
WAIT_S = 3.0
SILENCE_S = 0.5
"""How long nothing must come for it to count as nothing."""

_PREFIX = f"hafw-t-pol-{os.getpid()}"
_SETTINGS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.netfilter.nf_conntrack_tcp_loose": 0,
    "net.netfilter.nf_conntrack_tcp_be_liberal": 0,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
}


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


class Site:
    """The three namespaces, and what tests ask of them."""

    def __init__(self, run_root: Path) -> None:
        self.client, self.gateway, self.server = (f"{_PREFIX}-{n}" for n in "cgs")
        self.run_root = run_root
        self.cluster = LAB / "cluster.yaml"
        self._open: list[Any] = []

    def ip(self, space: str, text: str) -> None:
        run("ip", "-n", space, *text.split())

    def nft(self, text: str) -> str:
        return run("ip", "netns", "exec", self.gateway, "nft", *text.split())

    def counter(self, name: str, table: str = "hafw_cluster") -> int:
        text = self.nft(f"list counter inet {table} {name}")
        return int(re.search(r"packets (\d+)", text)[1])  # type: ignore[index]

    def flows(self, *filters: str) -> list[str]:
        """Lines of ``conntrack -L`` for both families."""
        found: list[str] = []
        for family in ("ipv4", "ipv6"):
            argv = ("conntrack", "-L", "-f", family, "-o", "extended", *filters)
            found += run("ip", "netns", "exec", self.gateway, *argv).splitlines()
        return found

    def apply(self, policy: Path | str | None = None, **options: Any) -> PolicyResult:
        """The real worker, in the gateway's namespace, as node gw1."""
        if isinstance(policy, str):
            file = self.run_root / "policy.yaml"
            file.write_text(policy)
            policy = file
        with entered(self.gateway):
            return apply_policy(self.cluster, "gw1", policy, **options)

    def listing(self) -> list[dict[str, Any]]:
        from hafw.policy.loaded import list_tables

        with entered(self.gateway), Nftables() as nft:
            return list_tables(nft)

    def socket(self, space: str, family: int, kind: int, at: str = "", port: int = 0) -> Any:
        with entered(space):
            made = socket.socket(FAMILY[family], kind)
        self._open.append(made)
        made.settimeout(WAIT_S)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if at or port:
            made.bind((at or ("0.0.0.0" if family == 4 else "::"), port))
        return made

    def listen(self, space: str, family: int, port: int, at: str = "") -> Any:
        made = self.socket(space, family, socket.SOCK_STREAM, at, port)
        made.listen(4)
        return made

    def ping(self, space: str, family: int, address: str, wait_s: float) -> bool:
        """Whether one echo request is answered (Linux ping socket: icmp(7))."""
        protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
        with entered(space):
            made = socket.socket(FAMILY[family], socket.SOCK_DGRAM, protocol)
        made.settimeout(wait_s)
        echo = 8 if family == 4 else 128
        with made:
            made.sendto(struct.pack("!BBHHH", echo, 0, 0, 0, 1) + b"hafw", (address, 0))
            with suppress(TimeoutError):
                return made.recv(64)[8:] == b"hafw"
        return False

    def accept(self, listener: Any) -> tuple[Any, str]:
        """The stream, and the address that the other side has for us."""
        made, source = listener.accept()
        self._open.append(made)
        made.settimeout(WAIT_S)
        return made, str(source[0])

    def close_sockets(self) -> None:
        for made in self._open:
            made.close()
        self._open.clear()

    def connect(self, space: str, family: int, address: str, port: int) -> Any:
        made = self.socket(space, family, socket.SOCK_STREAM)
        made.connect((address, port))
        return made


def _sysctl(space: str, key: str, value: int | str) -> None:
    with entered(space):
        Path("/proc/sys", key.replace(".", "/")).write_text(str(value))


def _build(site: Site) -> None:
    for space in (site.client, site.gateway, site.server):
        run("ip", "netns", "add", space)
        _sysctl(space, "net.ipv6.conf.all.accept_dad", 0)
        _sysctl(space, "net.ipv6.conf.default.accept_dad", 0)
        site.ip(space, "link set lo up")
    _sysctl(site.client, "net.ipv4.ping_group_range", "0 0")
    for key, value in _SETTINGS.items():
        _sysctl(site.gateway, key, value)
    for space, device, net, host in (
        (site.client, "lan0", "192.0.2", "2001:db8:1"),
        (site.server, "wan0", "198.51.100", "2001:db8:2"),
    ):
        gate = site.gateway
        site.ip(gate, f"link add {device} type veth peer name eth0 netns {space}")
        site.ip(space, "link set eth0 up")
        site.ip(space, f"addr add {net}.10/24 dev eth0")
        site.ip(space, f"addr add {host}::10/64 dev eth0 nodad")
        site.ip(gate, f"link set {device} up")
        site.ip(gate, f"addr add {net}.1/24 dev {device}")
        site.ip(gate, f"addr add {host}::1/64 dev {device} nodad")
        virtual = f"hv1-{device[:-1]}"
        site.ip(gate, f"link add {virtual} link {device} type macvlan mode private")
        site.ip(gate, f"link set {virtual} address 00:00:5e:00:01:01 addrgenmode none")
        site.ip(gate, f"link set {virtual} up")
        site.ip(gate, f"addr add {net}.254/32 dev {virtual}")
        site.ip(gate, f"addr add {host}::fe/128 dev {virtual} nodad")
        site.ip(gate, f"addr add fe80::200:5eff:fe00:101/64 dev {virtual} nodad")
    site.ip(site.client, "addr add 192.0.2.20/24 dev eth0")
    site.ip(site.client, "addr add 2001:db8:1::20/64 dev eth0 nodad")
    site.ip(site.client, "route add default via 192.0.2.254 src 192.0.2.10")
    site.ip(site.client, "-6 route add default via 2001:db8:1::fe src 2001:db8:1::10")


@contextmanager
def policy_site(run_root: Path) -> Iterator[Site]:
    site = Site(run_root)
    try:
        _build(site)
        yield site
    finally:
        for space in (site.client, site.gateway, site.server):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, timeout=30)


def silent(listener: Any) -> bool:
    """Nothing comes to this socket for `SILENCE_S`."""
    listener.settimeout(SILENCE_S)
    with suppress(TimeoutError):
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(2048)
        return False
    return True


def tcp_segment(family: int, src: str, dst: str, sport: int, dport: int, flags: int) -> bytes:
    """A bare TCP header with a checksum (RFC 9293, section 3.1)."""
    header = struct.pack("!HHIIBBHHH", sport, dport, 7, 9, 5 << 4, flags, 8192, 0, 0)
    ends = socket.inet_pton(FAMILY[family], src) + socket.inet_pton(FAMILY[family], dst)
    if family == 4:
        pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header))
    else:
        pseudo = ends + struct.pack("!II", len(header), socket.IPPROTO_TCP)
    total = sum(struct.unpack(f"!{len(pseudo + header) // 2}H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]
