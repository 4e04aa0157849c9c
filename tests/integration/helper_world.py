"""Two gateways with real policies of nft, real syncds, and hosts on both sides. Any of the two
gateways carries the packets; a move is two routes, and the words of leased.

    inside 192.0.2.10 -- gw1, gw2 (VIP 198.51.100.254) -- outside 198.51.100.10
    inside 2001:db8:1::1234:10      2001:db8:2::fe        outside 2001:db8:2::10

From the inside all is translated to the VIP; ports 21, 69, 5060 (helpers), 8080 (TCP) and 9000
(UDP) of the VIP lead inside. The
addresses of both families differ in length, so that every rewritten payload moves the sequence.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hafw.flow import hafw_mark
from hafw.kernel.netns import entered
from sync.expecting import AGAIN_S
from sync.native import CODEC_VARIABLE
from tests.integration.ct_spaces import inside, run, spaces
from tests.integration.syncd_world import Gateway, World, syncd_world, wait_for

INSIDE = {4: "192.0.2.10", 6: "2001:db8:1::1234:10"}
OUTSIDE = {4: "198.51.100.10", 6: "2001:db8:2::10"}
VIP = {4: "198.51.100.254", 6: "2001:db8:2::fe"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
WAIT_S = 3.0

RULES = """
table inet helpers {
  ct helper ftp { type "ftp" protocol tcp; }
  ct helper tftp { type "tftp" protocol udp; }
  ct helper sip { type "sip" protocol udp; }
  ct helper sip_tcp { type "sip" protocol tcp; }
  chain choose {
    type filter hook prerouting priority mangle;
    iifname "sync*" accept
    ct mark and 0xffff0000 == 0 ct state new ct mark set %(mark)#x
    ct state new tcp dport 21 ct helper set "ftp"
    ct state new udp dport 69 ct helper set "tftp"
    ct state new udp dport 5060 ct helper set "sip"
    ct state new tcp dport 5060 ct helper set "sip_tcp"
    ct state related meta l4proto udp ct helper "sip" @th,64,3 2 ct helper set "sip"
  }
  chain pre {
    type nat hook prerouting priority dstnat;
    ip daddr 198.51.100.254 th dport { 21, 69, 5060, 8080, 9000 } dnat ip to 192.0.2.10
    ip6 daddr 2001:db8:2::fe th dport { 21, 69, 5060, 8080, 9000 } dnat ip6 to 2001:db8:1::1234:10
  }
  chain post {
    type nat hook postrouting priority srcnat;
    ip saddr 192.0.2.10 snat ip to 198.51.100.254
    ip6 saddr 2001:db8:1::1234:10 snat ip6 to 2001:db8:2::fe
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state invalid counter drop
    ct state { established, related } accept
    iifname "sync*" drop
    ct state new tcp dport { 21, 5060, 8080 } accept
    ct state new udp dport { 69, 5060, 9000 } accept
    ct state new icmp type echo-request accept
    ct state new icmpv6 type echo-request accept
  }
}
"""


@dataclass(frozen=True)
class Timers:
    """The kernel's timeout of UDP flows, replied or not, and `sync.hold_s` and `refresh_s`, which
    may be less here than a configuration allows."""

    udp_s: int
    hold_s: int
    refresh_s: int

    def set(self, gateway: Gateway) -> None:
        for name in ("udp_timeout", "udp_timeout_stream"):
            sysctl = f"net.netfilter.nf_conntrack_{name}={self.udp_s}"
            inside(gateway.space, "sysctl", "-qw", sysctl)
        gateway.program = "tests.integration.forgetful_syncd"
        gateway.environment["HAFW_TEST_HOLD_S"] = str(self.hold_s)
        gateway.environment["HAFW_TEST_REFRESH_S"] = str(self.refresh_s)


@dataclass(frozen=True)
class HelperWorld:
    """`carry` and the moves; `cluster` holds the gateways."""

    cluster: World
    inside: str
    outside: str

    def carry(self, number: int) -> None:
        """By a rule in front of another. A replaced route would for a moment leave its sockets on
        `blackhole_netdev` with its MTU of 68, and commands cut in two are nothing to a helper."""
        for end in (self.inside, self.outside):
            for flag in ("-4", "-6"):
                verb = "add" if number == 2 else "del"
                inside(end, "ip", flag, "rule", verb, "pref", "100", "lookup", "102")

    def power_cut(self) -> None:
        """gw1 is gone, with its syncd; gw2 takes over."""
        self.cluster[1].stop(signal.SIGKILL)
        self.carry(2)
        self.cluster.lead(2, 2)

    def back_after_power_cut(self) -> None:
        """gw1 starts again beside what its kernel had at the cut, follows, and gets the group."""
        self.cluster[1].start()
        self.cluster[1].follow(2, 2)
        self.cluster[1].wait_synced()
        self.replicated(2)
        self.move(1, 3)

    def move(self, number: int, counter: int) -> None:
        """Both live: the other holds the group and carries the packets."""
        self.carry(number)
        self.cluster.lead(number, counter)
        for gateway in self.cluster.gateways:
            gateway.wait_synced()

    def refuse_new(self, number: int) -> None:
        """From now on this gateway forwards what it has an entry for, and nothing else."""
        rule = "insert rule inet helpers forward ct status & confirmed == 0 counter drop"
        inside(self.cluster[number].space, "nft", rule)

    def replicated(self, holder_number: int = 1) -> None:
        """All that was published has been applied."""
        time.sleep(max(AGAIN_S) + 0.03)  # The holder looks masters up once more.
        holder, other = self.cluster[holder_number], self.cluster[3 - holder_number]
        position = holder.ask_position().position

        def applied() -> bool:
            beacon = other.beacons[-1] if other.beacons else None
            return beacon is not None and any(
                (p.sender_id, p.session) == (position.sender_id, position.session)
                and p.seq >= position.seq
                for p in beacon.applied
            )

        wait_for("all is applied", applied)


def listener(space: str, version: int, address: str, port: int, kind: int) -> socket.socket:
    with entered(space):
        sock = socket.socket(FAMILY[version], kind)
    sock.settimeout(WAIT_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen(4)
    return sock


def dial(space: str, version: int, address: str, port: int) -> socket.socket:
    with entered(space):
        sock = socket.socket(FAMILY[version], socket.SOCK_STREAM)
    sock.settimeout(WAIT_S)
    try:
        sock.connect((address, port))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def helper_world(
    *, forgets: str = "", strict_replicas: bool = False, timers: Timers | None = None
) -> Iterator[HelperWorld]:
    """Both syncds run, gw1 holds and carries. `forgets`: what its syncd does not say;
    `strict_replicas`: the other's does not make its replicas liberal."""
    with (
        # Names of sockets are short: pytest's own folders are not.
        TemporaryDirectory(prefix="hafw-t-") as folder,
        syncd_world(Path(folder)) as cluster,
        spaces("inside", "outside") as (near, far),
    ):
        for space, host in ((near, INSIDE), (far, OUTSIDE)):
            for address in host.values():
                length = 128 if ":" in address else 32
                inside(space, "ip", "address", "add", f"{address}/{length}", "dev", "lo")
        for gateway in cluster.gateways:
            space, number = gateway.space, gateway.number
            for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
                inside(space, "sysctl", "-qw", f"net.{name}=1")
            _join(near, space, number, 1, INSIDE, OUTSIDE)
            _join(far, space, number, 2, OUTSIDE, VIP)
            rules = RULES % {"mark": hafw_mark(1, number, number)}
            inside(space, "nft", "-f", "-", stdin=rules)
        world = HelperWorld(cluster, near, far)
        if forgets:
            cluster[1].program = "tests.integration.forgetful_syncd"
            cluster[1].environment["HAFW_TEST_FORGETS"] = forgets
        if strict_replicas:
            cluster[2].program = "tests.integration.forgetful_syncd"
            cluster[2].environment |= {"HAFW_TEST_STRICT": "1", CODEC_VARIABLE: "reference"}
        if timers is not None:
            for gateway in cluster.gateways:
                timers.set(gateway)
        cluster.start()
        cluster.lead(1, 1)
        for gateway in cluster.gateways:
            gateway.wait_synced()
        yield world


def _join(
    end: str,
    gateway: str,
    number: int,
    side: int,
    owned: dict[int, str],
    others: dict[int, str],
) -> None:
    name, peer = f"gw{number}", f"side{side}"
    run("ip", "link", "add", name, "netns", end, "type", "veth", "peer", peer, "netns", gateway)
    for space, device, host in ((gateway, peer, 1), (end, name, 2)):
        for path in (f"net.ipv4.conf.{device}.rp_filter", "net.ipv4.conf.all.rp_filter"):
            inside(space, "sysctl", "-qw", f"{path}=0")
        inside(space, "sysctl", "-qw", f"net.ipv6.conf.{device}.accept_dad=0")
        inside(space, "ip", "address", "add", f"10.7{number}.{side}.{host}/24", "dev", device)
        six = f"fd77:{number}{side}::{host}/64"
        inside(space, "ip", "address", "add", six, "dev", device, "nodad")
        inside(space, "ip", "link", "set", device, "up")
    for version, address in owned.items():
        via = f"10.7{number}.{side}.2" if version == 4 else f"fd77:{number}{side}::2"
        inside(gateway, "ip", f"-{version}", "route", "add", address, "via", via)
        flag, table = f"-{version}", f"10{number}"
        back = f"10.7{number}.{side}.1" if version == 4 else f"fd77:{number}{side}::1"
        route = (others[version], "via", back, "src", address, "table", table)
        inside(end, "ip", flag, "route", "add", *route)
        if number == 1:
            inside(end, "ip", flag, "rule", "add", "pref", "200", "lookup", table)
