"""The namespaces, devices and rules of the world in `sync_spaces`. Shell."""

from __future__ import annotations

import subprocess

from hafw.errors import StateError
from hafw.flow import hafw_mark

__all__ = ["CLIENT", "GROUP", "RUN_WAIT_S", "SERVER", "VIP", "build_network", "inside", "run"]

GROUP = 1
CLIENT, SERVER, VIP = "192.0.2.10", "198.51.100.10", "198.51.100.254"
RUN_WAIT_S = 30.0

# A nat chain keeps the translation hooks there; what the node itself says to its peers is not
# tracked.
RULES = """
table inet gateway {{
  chain translate {{ type nat hook postrouting priority srcnat;
    ip saddr != 198.51.100.0/24 ip daddr 198.51.100.0/24 snat ip to 198.51.100.254; }}
  chain mark_new {{ type filter hook forward priority mangle;
    ct state new ct mark 0 ct mark set {mark:#x};
    ct state invalid counter drop;
    {labels} }}
  chain from_peers {{ type filter hook prerouting priority raw; iifname "sync*" notrack; }}
  chain to_peers {{ type filter hook output priority raw; notrack; }}
}}
"""
LABEL_RULE = "ct mark 0xffffffff ct label set 127;"
"""Never true, but with it the kernel makes room for labels, and syncd asks for those of each flow
that it says first."""
SYSCTLS = (
    "net.netfilter.nf_conntrack_tcp_loose=0",
    "net.netfilter.nf_conntrack_tcp_be_liberal=0",
    "net.netfilter.nf_conntrack_events=1",
    "net.netfilter.nf_conntrack_timestamp=1",
    "net.netfilter.nf_conntrack_acct=1",
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)


def run(*argv: str, stdin: str | None = None, timeout_s: float = RUN_WAIT_S) -> str:
    """Raises StateError with what the command said."""
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise StateError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def inside(space: str, *argv: str, stdin: str | None = None) -> str:
    return run("nsenter", f"--net=/run/netns/{space}", *argv, stdin=stdin)


def build_network(names: list[str], *, labels: bool) -> None:
    """Switch, client, server and the gateways, by the names of their namespaces."""
    switch, client, server, *gateways = names
    for name in names:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    _batch(switch, *(
        f"link {words}" for link in (0, 1) for words in
        (f"add br{link} type bridge mcast_snooping 0", f"set br{link} up")
    ))  # fmt: skip
    _batch(client, f"address add {CLIENT}/32 dev lo")
    _batch(server, f"address add {SERVER}/32 dev lo")
    for number, gateway in enumerate(gateways, 1):
        inside(gateway, "sysctl", "-qw", *SYSCTLS)
        mark = hafw_mark(GROUP, number, number)
        inside(
            gateway,
            "nft",
            "-f",
            "-",
            stdin=RULES.format(mark=mark, labels=LABEL_RULE if labels else ""),
        )
        for link in (0, 1):
            port, device = f"l{link}p{number}", f"sync{link}"
            _veth(switch, port, gateway, device)
            _batch(switch, f"link set {port} master br{link} up")
            address = f"203.0.113.{128 * link + number}/25"
            _batch(gateway, f"address add {address} dev {device}", f"link set {device} up")
        for side, (end, own) in enumerate(((client, CLIENT), (server, SERVER)), 1):
            net, device = f"10.7{number}.{side}", f"side{side}"
            _veth(end, f"gw{number}", gateway, device)
            _batch(gateway, f"address add {net}.1/24 dev {device}", f"link set {device} up",
                   f"route add {own} via {net}.2")  # fmt: skip
            _batch(end, f"address add {net}.2/24 dev gw{number}", f"link set gw{number} up")


def _veth(one: str, device: str, other: str, peer: str) -> None:
    run("ip", "link", "add", device, "netns", one, "type", "veth", "peer", peer, "netns", other)


def _batch(space: str, *commands: str) -> None:
    run("ip", "-n", space, "-batch", "-", stdin="\n".join(commands) + "\n")
