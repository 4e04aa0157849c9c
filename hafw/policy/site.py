"""A cluster as one gateway's ruleset sees it: devices, VIPs, peers, networks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hafw.config.model import ClusterConfig, GroupConfig, NodeConfig
from hafw.config.segments import segment_ways
from hafw.errors import RefusedError
from hafw.policy.model import Policy

__all__ = ["Ip", "Net", "Peers", "Site", "virtual_link_local"]

Ip = IPv4Address | IPv6Address
Net = IPv4Network | IPv6Network


def virtual_link_local(vrid: int) -> IPv6Address:
    """fe80::200:5eff:fe00:1VV, the modified EUI-64 of 00:00:5e:00:01:VV."""
    return IPv6Address(f"fe80::200:5eff:fe00:1{vrid:02x}")


@dataclass(frozen=True, slots=True)
class Peers:
    """Who may speak hafw's protocols to this node on one of its devices."""

    device: str
    own: tuple[Ip, ...]
    others: tuple[Ip, ...]


class Site:
    """Raises RefusedError for a node that has no ruleset."""

    def __init__(self, policy: Policy, cluster: ClusterConfig, node_name: str) -> None:
        if node_name not in cluster.nodes:
            known = ", ".join(cluster.nodes)
            raise RefusedError(f"no node is named {node_name}; the cluster has {known}")
        self.name = node_name
        self.node: NodeConfig = cluster.nodes[node_name]
        if self.node.role != "gateway":
            raise RefusedError(f"{node_name} is a {self.node.role}: only gateways have a policy")
        self.cluster = cluster
        self.policy = policy
        self.groups: dict[str, GroupConfig] = {
            name: group for name, group in cluster.groups.items() if node_name in group.order
        }

    @property
    def segments(self) -> list[str]:
        return list(self.node.segments)

    def device(self, segment: str) -> str:
        """Where packets to a segment leave, and where the node's own packets come in."""
        return self.node.segments[segment].device

    def virtual_devices(self, segment: str) -> list[str]:
        """The virtual MAC devices of this node's groups on a segment: forwarded packets come in
        by these."""
        return [g.device(segment) for g in self.groups.values() if segment in g.vips]

    def zone_segments(self, zone: str) -> list[str]:
        """`any` is every segment of the node. A segment the node does not have is left out."""
        if zone == "any":
            return self.segments
        return [s for s in self.policy.zones[zone] if s in self.node.segments]

    def vips(self, group: GroupConfig, segment: str, family: int) -> list[Ip]:
        return [vip for vip in group.vips.get(segment, []) if vip.version == family]

    def all_vips(self, family: int) -> list[Ip]:
        """Every VIP of this node's groups, the virtual link-local addresses included."""
        found: list[Ip] = [
            vip
            for group in self.groups.values()
            for segment in group.vips
            for vip in self.vips(group, segment, family)
        ]
        if family == 6:
            found += [virtual_link_local(group.vrid) for group in self.groups.values()]
        return sorted(set(found), key=int)

    def networks(self, segment: str) -> list[Net]:
        """The networks of a segment, without link-local ones."""
        return [
            address.network
            for address in self.node.segments[segment].addresses
            if not address.ip.is_link_local
        ]

    def replicas(self) -> list[Peers]:
        """The other gateways by link: who replicates with this node."""
        return self._linked(frozenset({"gateway"}))

    def stand_ins(self) -> list[Peers]:
        """The other gateways by segment, where one may carry replication while links are cut."""
        return [
            Peers(way.device, (way.own,), tuple(way.peers.values()))
            for way in segment_ways(self.cluster, self.name)
        ]

    def peers(self) -> list[Peers]:
        """By device: links first, then segments, which heartbeats go over too."""
        found = self._linked(frozenset({"gateway", "witness"}))
        for segment, port in self.node.segments.items():
            own = [address.ip for address in port.addresses]
            others_on = [
                address.ip
                for name, node in self.cluster.nodes.items()
                if name != self.name and segment in node.segments
                for address in node.segments[segment].addresses
            ]
            found.append(Peers(port.device, tuple(own), tuple(others_on)))
        return found

    def _linked(self, roles: frozenset[str]) -> list[Peers]:
        found: list[Peers] = []
        for link, config in self.node.links.items():
            others = [
                node.links[link].address.ip
                for name, node in self.cluster.nodes.items()
                if name != self.name and link in node.links and node.role in roles
            ]
            found.append(Peers(config.device, (config.address.ip,), tuple(others)))
        return found
