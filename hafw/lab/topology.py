"""The lab's network: what is to be built (pure) and its building, checking and removal.

One namespace a node (``hafw-NODE``), ``hafw-client`` on the LAN, ``hafw-server`` on the WAN, and
``hafw-sw`` with one bridge per segment and link. Each device of a host is one end of a veth whose
other end is a bridge port ``HOST-DEVICE``::

    hafw-gw1  lan0 ---- gw1-lan0 [ lan ] client-lan0 ---- lan0  hafw-client
              wan0 ---- gw1-wan0 [ wan ] server-wan0 ---- wan0  hafw-server
              sync0 --- gw1-sync0 [ sync0 ]
              sync1 --- gw1-sync1 [ sync1 ]      hafw-sw in the middle

By the first group the client goes anywhere, by the second one to the server's 198.51.100.20, etc.

- Ports have ifindexes from `PORT_INDEX_FIRST`, hosts' devices small ones: with equal indexes at
  both ends the kernel (net/core/link_watch.c, linkwatch_urgent_event) does not treat a carrier
  event as urgent and delivers it up to 1 s late.
- Bridges flood multicast: snooping without a querier forgets members after minutes and would then
  cut the deltas' 239.x group; STP and the forward delay would hold frames back for 30 s.
- IPv6 has no duplicate address detection, which would leave addresses tentative for a second, and
  MACs and link-local addresses follow from node and device: nothing is random.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_interface,
)
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, ConfigProblem, KernelError, StateError
from hafw.lab.inside import call_in, create_namespace, namespace_inode, namespace_path

__all__ = [
    "CLIENT",
    "SERVER",
    "SWITCH",
    "Host",
    "HostPort",
    "Topology",
    "build",
    "namespace_of",
    "plan",
    "remove_namespaces",
    "verify",
]

CLIENT = "client"
SERVER = "server"
SWITCH = "sw"
RESERVED_NAMES = (CLIENT, SERVER, SWITCH, "lab")
LAN = "lan"
WAN = "wan"
CLIENT_ADDRESSES = ("192.0.2.10/24", "192.0.2.20/24", "2001:db8:1::10/64", "2001:db8:1::20/64")
SERVER_ADDRESSES = ("198.51.100.10/24", "2001:db8:2::10/64")
DEVICE = {LAN: "lan0", WAN: "wan0"}
PORT_INDEX_FIRST = 100
PORT_NAME_BYTES_MAX = 15
CARRIER_WAIT_S = 5.0
MNT_DETACH = 2
IFA_F_NODAD = 0x02
IFA_F_TENTATIVE = 0x40
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

# Quiet and deterministic hosts. Forwarding starts off: turning it on is hafw's work.
HOST_SYSCTLS = {
    "net/ipv4/ip_forward": 0,
    "net/ipv6/conf/all/forwarding": 0,
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/dad_transmits": 0,
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv6/conf/default/autoconf": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
    "net/ipv6/conf/default/use_tempaddr": 0,
    "net/ipv6/conf/default/addr_gen_mode": 0,
}
# A switch has no addresses, and its bridges must not pass through netfilter's IP hooks.
SWITCH_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": 1,
    "net/ipv6/conf/default/disable_ipv6": 1,
}
SWITCH_SYSCTLS_IF_PRESENT = {
    "net/bridge/bridge-nf-call-iptables": 0,
    "net/bridge/bridge-nf-call-ip6tables": 0,
    "net/bridge/bridge-nf-call-arptables": 0,
}

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface


def namespace_of(host: str) -> str:
    """Namespace of a node, `CLIENT`, `SERVER` or `SWITCH`."""
    return f"hafw-{host}"


@dataclass(frozen=True, slots=True)
class HostPort:
    """One device of a host and the switch port at its other end."""

    device: str
    bridge: str
    port: str
    port_index: int
    mac: str
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with devices. `routes`: (destination, next hop), "" the default."""

    name: str
    ports: tuple[HostPort, ...]
    routes: tuple[tuple[str, Address], ...] = ()

    @property
    def namespace(self) -> str:
        return namespace_of(self.name)


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that is to exist."""

    bridges: tuple[str, ...]
    hosts: tuple[Host, ...]
    namespaces: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = (namespace_of(SWITCH), *(host.namespace for host in self.hosts))
        object.__setattr__(self, "namespaces", names)

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise StateError(f"the lab has no host {name}; there are {known}")


def _problem(file: str, path: str, message: str, hint: str) -> ConfigError:
    return ConfigError(file, [ConfigProblem(path, message, hint=hint)])


def plan(config: ClusterConfig, file: str = "cluster.yaml") -> Topology:
    """The topology of a cluster. Raises ConfigError for what the lab cannot build."""
    bridges: list[str] = []
    for node in config.nodes.values():
        for name in (*node.segments, *node.links):
            if name not in bridges:
                bridges.append(name)
    for segment in (LAN, WAN):
        if not any(segment in group.vips for group in config.groups.values()):
            raise _problem(
                file, "groups", f"the lab needs a group with VIPs on segment {segment}",
                "its client sits on lan and its server on wan",
            )  # fmt: skip
    hosts: list[Host] = []
    index = PORT_INDEX_FIRST

    def port(
        host: str, number: int, device: str, bridge: str, addresses: tuple[Interface, ...]
    ) -> HostPort:
        nonlocal index
        name = f"{host}-{device}"
        if len(name) > PORT_NAME_BYTES_MAX:
            raise _problem(
                file, f"nodes.{host}", f"switch port name {name} is longer than 15 characters",
                "shorten the node's or the device's name",
            )  # fmt: skip
        index += 1
        mac = f"02:68:61:66:{number:02x}:{bridges.index(bridge) + 1:02x}"
        return HostPort(device, bridge, name, index, mac, addresses)

    for name, node in config.nodes.items():
        if name in RESERVED_NAMES:
            raise _problem(
                file, f"nodes.{name}", "the lab uses this name itself", "name the node gwN"
            )
        ports = [
            port(name, node.id, seat.device, segment, tuple(seat.addresses))
            for segment, seat in node.segments.items()
        ]
        ports += [
            port(name, node.id, link.device, link_name, (link.address,))
            for link_name, link in node.links.items()
            if link_name not in node.segments
        ]
        hosts.append(Host(name, tuple(ports)))
    vips = [group.vips[LAN] for group in config.groups.values() if LAN in group.vips]
    servers, routes = list(SERVER_ADDRESSES), [("", vip) for vip in _one_a_family(vips[0])]
    for place, others in enumerate(vips[1:], 2):
        servers += [f"198.51.100.{10 * place}/24", f"2001:db8:2::{10 * place}/64"]
        ends = {4: f"198.51.100.{10 * place}/32", 6: f"2001:db8:2::{10 * place}/128"}
        routes += [(ends[vip.version], vip) for vip in _one_a_family(others)]
    for number, name, segment, texts, ways in (
        (0xC1, CLIENT, LAN, CLIENT_ADDRESSES, tuple(routes)),
        (0xC2, SERVER, WAN, tuple(servers), ()),
    ):
        addresses = tuple(ip_interface(text) for text in texts)
        seat_port = port(name, number, DEVICE[segment], segment, addresses)
        hosts.append(Host(name, (seat_port,), ways))
    return Topology(tuple(bridges), tuple(hosts))


def _one_a_family(vips: list[Address]) -> list[Address]:
    return [vip for _, vip in sorted({vip.version: vip for vip in reversed(vips)}.items())]


# ---- building -------------------------------------------------------------------------------


def _write_sysctls(values: dict[str, int], *, if_present: bool = False) -> None:
    for key, value in values.items():
        try:
            Path("/proc/sys", key).write_text(str(value))
        except FileNotFoundError:
            if not if_present:
                raise KernelError(2, "sysctl", key, "is IPv6 switched off?") from None


def _link_index(ipr: Any, name: str) -> int:
    found = list(ipr.link_lookup(ifname=name))
    if not found:
        raise StateError(f"device {name} vanished while the lab was being built")
    return int(found[0])


def _build_switch(topology: Topology) -> None:
    _write_sysctls(SWITCH_SYSCTLS)
    _write_sysctls(SWITCH_SYSCTLS_IF_PRESENT, if_present=True)
    with IPRoute() as ipr:
        masters = {}
        for bridge in topology.bridges:
            ipr.link(
                "add", ifname=bridge, kind="bridge",
                br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0,
            )  # fmt: skip
            masters[bridge] = _link_index(ipr, bridge)
            ipr.link("set", index=masters[bridge], state="up")
        for host in topology.hosts:
            for port in host.ports:
                ipr.link(
                    "add", ifname=port.port, kind="veth", index=port.port_index,
                    peer={"ifname": port.device, "net_ns_fd": host.namespace},
                )  # fmt: skip
                ipr.link("set", index=port.port_index, master=masters[port.bridge], state="up")


def _build_host(host: Host) -> None:
    with IPRoute() as ipr:
        ipr.link("set", index=_link_index(ipr, "lo"), state="up")
        for port in host.ports:
            index = _link_index(ipr, port.device)
            ipr.link("set", index=index, address=port.mac)
            ipr.link("set", index=index, state="up")
            for address in port.addresses:
                # Without IFA_F_NODAD an IPv6 address is tentative until a kernel worker has run,
                # whatever accept_dad says, and until then is refused as a route's source.
                ipr.addr(
                    "add", index=index, address=str(address.ip), family=FAMILY[address.version],
                    prefixlen=address.network.prefixlen,
                    flags=IFA_F_NODAD if address.version == 6 else 0,
                )  # fmt: skip
        for destination, gateway in host.routes:
            # Of the addresses of one family the first is the source, also in IPv6, where the
            # kernel would otherwise choose by its own rules.
            source = next(
                str(a.ip) for p in host.ports for a in p.addresses if a.version == gateway.version
            )
            default = "0.0.0.0/0" if gateway.version == 4 else "::/0"
            ipr.route("add", dst=destination or default, gateway=str(gateway), prefsrc=source)


def build(topology: Topology) -> None:
    """Make everything, from nothing. Raises KernelError; what was made so far is left for
    `remove_namespaces`."""
    try:
        for name in topology.namespaces:
            create_namespace(name)
        for host in topology.hosts:
            call_in(host.namespace, lambda: _write_sysctls(HOST_SYSCTLS))
        call_in(namespace_of(SWITCH), lambda: _build_switch(topology))
        for host in topology.hosts:
            call_in(host.namespace, lambda host=host: _build_host(host))  # type: ignore[misc]
    except NetlinkError as error:
        raise KernelError(error.code, "a link request", "the lab's topology", str(error)) from None
    except OSError as error:
        raise KernelError(
            error.errno or 0, "the lab's topology", str(error.filename or "a namespace"),
            error.strerror,
        ) from None  # fmt: skip
    deadline = time.monotonic() + CARRIER_WAIT_S
    while problems := verify(topology):
        if time.monotonic() > deadline:
            raise StateError("the lab's links did not come up: " + "; ".join(problems))
        time.sleep(0.01)


# ---- checking -------------------------------------------------------------------------------


def _links_here() -> dict[str, dict[str, Any]]:
    with IPRoute() as ipr:
        indexes = {}
        links = {}
        for link in list(ipr.link("dump")):
            name = link.get("ifname")
            indexes[link["index"]] = name
            links[name] = {
                "index": link["index"],
                "up": link.get("state") == "up",
                "carrier": link.get("carrier") == 1,
                "mac": link.get("address"),
                "master": link.get("master"),
                "kind": (link.get("linkinfo") or {}).get("kind") if link.get("linkinfo") else None,
                "addresses": [],
                "tentative": False,
            }
        for link in links.values():
            link["master"] = indexes.get(link["master"])
        for address in list(ipr.get_addr()):
            text = f"{address.get('local') or address.get('address')}/{address['prefixlen']}"
            link = links[indexes[address["index"]]]
            link["addresses"].append(text)
            link["tentative"] |= bool((address.get("flags") or 0) & IFA_F_TENTATIVE)
        return links


def links_of(namespace: str) -> dict[str, dict[str, Any]]:
    """Devices of a namespace by name: index, up, carrier, mac, master, kind, addresses,
    tentative."""
    return call_in(namespace, _links_here)


def verify(topology: Topology) -> list[str]:
    """What is not as planned, in words; empty if all is well. What hafw adds is not looked at."""
    problems = [
        f"namespace {name} is missing"
        for name in topology.namespaces
        if namespace_inode(name) is None
    ]
    if problems:
        return problems
    switch = links_of(namespace_of(SWITCH))
    for host in topology.hosts:
        links = links_of(host.namespace)
        for port in host.ports:
            link = links.get(port.device)
            seat = switch.get(port.port)
            if link is None or seat is None:
                problems.append(f"{host.namespace}: {port.device} or its port is missing")
                continue
            if not (link["up"] and link["carrier"] and seat["up"] and seat["carrier"]):
                problems.append(f"{host.namespace}: {port.device} is down or without carrier")
            if link["tentative"]:
                problems.append(f"{host.namespace}: an address of {port.device} is tentative")
            if seat["master"] != port.bridge:
                problems.append(f"hafw-sw: {port.port} is not on bridge {port.bridge}")
            problems += [
                f"{host.namespace}: {port.device} lacks {address}"
                for address in port.addresses
                if str(address) not in link["addresses"]
            ]
    return problems


# ---- removal --------------------------------------------------------------------------------


def remove_namespaces(names: tuple[str, ...]) -> None:
    """Unmount and delete namespaces, whatever state an interrupted run left them in.

    The devices go with the last reference: end the processes first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for name in names:
        path = namespace_path(name)
        if not path.exists():
            continue
        # A name can be mounted more than once after an interruption; EINVAL says: not mounted.
        while libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
            pass
        path.unlink(missing_ok=True)
