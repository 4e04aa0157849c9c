"""What must agree between the parts of cluster.yaml. Pure: a configuration in, problems out.

Each problem is ``dotted.path: what is wrong``. All of them are found, not only the first: a person
mends a file once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hafw.config.model import ClusterConfig, NodeConfig

__all__ = ["RELATIONS", "cluster_problems"]

RELATIONS = (
    "`lease.heartbeat_ms` * 3 <= `lease.lease_ms`: two heartbeats may be lost.",
    "`sync.refresh_s` * 2 <= `sync.hold_s`: a replica outlives one missed announcement.",
    "`damping.quiet_s` <= `damping.quiet_s_max`.",
    "`lease.port`, `sync.port` and `raft.port` differ; `cpus.lease` and `cpus.policy` differ.",
    "Node ids, group indexes and VRIDs are used once.",
    "A gateway has segments, a witness has none.",
    "A device is used once in a node; the networks of a node's segments do not overlap.",
    "`quorum: two-node` takes exactly two nodes, both gateways, and `lease.heartbeat_ms` * 4 <= "
    "`lease.lease_ms`.",
    "An address is used once, with the prefix length of its network.",
    "Links, and segments, of one name are one network on every node.",
    "Any two nodes have a link of one name.",
    "`sync.segments` names segments of the gateways, each once.",
    "A group's candidates are gateways with all of its segments, each listed once.",
    "A gateway has an IPv4 address of its own where its group has an IPv4 VIP.",
    "A VIP is nobody's own address, is used once, and is a unicast address that is not "
    "link-local: the IPv6 virtual link-local address is made by hafw.",
    "An upstream check is on a segment of the group, asks nobody of the cluster, and every "
    "candidate has an own address of its family there.",
)
"""What `cluster_problems` and the models check, for the reference page."""


def cluster_problems(cluster: ClusterConfig) -> list[str]:
    """Empty if the parts agree."""
    return [
        *_ports(cluster),
        *_quorum(cluster),
        *_nodes(cluster),
        *_shared_networks(cluster),
        *_own_addresses(cluster),
        *_links_in_common(cluster),
        *_sync_segments(cluster),
        *_groups(cluster),
        *_vips(cluster),
        *_upstream(cluster),
    ]


def _ports(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.lease.port == cluster.sync.port:
        yield f"sync.port: {cluster.sync.port} is already lease.port"
    for key, port in (("lease.port", cluster.lease.port), ("sync.port", cluster.sync.port)):
        if cluster.raft.port == port:
            yield f"raft.port: {port} is already {key}"


def _quorum(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.quorum != "two-node":
        return
    witnesses = [name for name, node in cluster.nodes.items() if node.role == "witness"]
    if witnesses:
        yield (
            f"quorum: two-node is for two gateways without a witness, and {witnesses[0]} is one: "
            "leave it out, a majority is safer"
        )
    elif len(cluster.nodes) != 2:
        yield (
            f"quorum: two-node takes exactly two gateways, and there are {len(cluster.nodes)}: "
            "leave it out"
        )
    beat_ms, lease_ms = cluster.lease.heartbeat_ms, cluster.lease.lease_ms
    if beat_ms * 4 > lease_ms:
        yield (
            "lease.heartbeat_ms: with quorum: two-node heartbeat_ms * 4 must be <= lease_ms "
            f"({beat_ms} * 4 > {lease_ms}), or a late heartbeat looks like a dead peer"
        )


def _nodes(cluster: ClusterConfig) -> Iterator[str]:
    ids: dict[int, str] = {}
    for name, node in cluster.nodes.items():
        if node.id in ids:
            yield f"nodes.{name}.id: {node.id} is already the id of {ids[node.id]}"
        ids.setdefault(node.id, name)
        if node.role == "witness" and node.segments:
            yield f"nodes.{name}.segments: a witness has no segments"
        if node.role == "gateway" and not node.segments:
            yield f"nodes.{name}.segments: a gateway needs at least one segment"
        devices: dict[str, str] = {}
        for path, device in _devices(name, node):
            if device in devices:
                yield f"{path}.device: {device} is already the device of {devices[device]}"
            devices.setdefault(device, path)
        for (one, a), (other, b) in combinations(node.segments.items(), 2):
            for x in a.addresses:
                for y in b.addresses:
                    if x.version == y.version and x.network.overlaps(y.network):
                        yield (
                            f"nodes.{name}.segments.{other}.addresses: {y.network} overlaps "
                            f"{x.network} of segment {one}"
                        )


def _devices(name: str, node: NodeConfig) -> Iterator[tuple[str, str]]:
    for segment, port in node.segments.items():
        yield f"nodes.{name}.segments.{segment}", port.device
    for link, config in node.links.items():
        yield f"nodes.{name}.links.{link}", config.device


def _interfaces(
    cluster: ClusterConfig,
) -> Iterator[tuple[str, str, str, IPv4Interface | IPv6Interface]]:
    """(path, kind:name, node, interface) of every own address."""
    for name, node in cluster.nodes.items():
        for segment, port in node.segments.items():
            for address in port.addresses:
                path = f"nodes.{name}.segments.{segment}.addresses"
                yield path, f"segment {segment}", name, address
        for link, config in node.links.items():
            yield f"nodes.{name}.links.{link}.address", f"link {link}", name, config.address


def _own_addresses(cluster: ClusterConfig) -> Iterator[str]:
    owners: dict[str, str] = {}
    for path, place, name, interface in _interfaces(cluster):
        if interface.ip.is_link_local:
            continue
        if interface.network.prefixlen == interface.max_prefixlen:
            yield (
                f"{path}: {interface} has no network: its peers could not be reached; give the "
                "prefix length of the segment or link"
            )
        address = str(interface.ip)
        if address in owners:
            yield f"{path}: {address} is already an address of {owners[address]}"
        owners.setdefault(address, f"{name} ({place})")


def _shared_networks(cluster: ClusterConfig) -> Iterator[str]:
    """What has one name on several nodes is one network."""
    first: dict[tuple[str, int], tuple[str, set[str]]] = {}
    found: dict[tuple[str, str, int], tuple[str, set[str]]] = {}
    for path, place, name, interface in _interfaces(cluster):
        if not interface.ip.is_link_local:
            entry = found.setdefault((place, name, interface.version), (path, set()))
            entry[1].add(str(interface.network))
    for (place, name, version), (path, networks) in found.items():
        known = first.setdefault((place, version), (name, networks))
        if networks != known[1]:
            yield (
                f"{path}: {place} is {', '.join(sorted(networks))} here, but "
                f"{', '.join(sorted(known[1]))} on {known[0]}"
            )


def _links_in_common(cluster: ClusterConfig) -> Iterator[str]:
    for (one, a), (other, b) in combinations(cluster.nodes.items(), 2):
        if not a.links.keys() & b.links.keys():
            yield (
                f"nodes.{other}.links: no link has the same name as one of {one} "
                f"({', '.join(a.links)}), so the two could not talk"
            )


def _sync_segments(cluster: ClusterConfig) -> Iterator[str]:
    known = sorted({name for node in cluster.nodes.values() for name in node.segments})
    there = ", ".join(known)
    named = cluster.sync.segments or []
    for place, name in enumerate(named):
        if name not in known:
            yield f"sync.segments.{place}: no segment is named {name}; there are {there}"
        elif name in named[:place]:
            yield f"sync.segments.{place}: {name} is listed twice"


def _groups(cluster: ClusterConfig) -> Iterator[str]:
    seen: dict[tuple[str, int], str] = {}
    for name, group in cluster.groups.items():
        for key, number in (("index", group.index), ("vrid", group.vrid)):
            if (key, number) in seen:
                yield f"groups.{name}.{key}: {number} is already used by {seen[key, number]}"
            seen.setdefault((key, number), name)
        for place, candidate in enumerate(group.order):
            if candidate in group.order[:place]:
                yield f"groups.{name}.order: {candidate} is listed twice"
            elif candidate not in cluster.nodes:
                yield f"groups.{name}.order.{place}: no node is named {candidate}"
            elif cluster.nodes[candidate].role != "gateway":
                yield f"groups.{name}.order.{place}: {candidate} is not a gateway"


def _vips(cluster: ClusterConfig) -> Iterator[str]:
    own = {str(entry[3].ip): f"{entry[2]} ({entry[1]})" for entry in _interfaces(cluster)}
    seen: dict[str, str] = {}
    for name, group in cluster.groups.items():
        members = [(n, cluster.nodes[n]) for n in group.order if n in cluster.nodes]
        for segment, vips in group.vips.items():
            path = f"groups.{name}.vips.{segment}"
            for member, node in members:
                port = node.segments.get(segment)
                if port is None and node.role == "gateway":
                    yield f"{path}: {member} has no segment {segment}"
                elif port is not None and port.ipv4 is None and _has_ipv4(vips):
                    yield f"{path}: {member} needs an IPv4 address of its own on {segment}"
            for place, vip in enumerate(vips):
                address = str(vip)
                if vip.is_multicast or vip.is_unspecified or vip.is_loopback:
                    yield f"{path}.{place}: {address} cannot be a VIP"
                elif vip.is_link_local and vip.version == 6:
                    yield f"{path}.{place}: the virtual link-local address is made by hafw"
                elif address in own:
                    yield f"{path}.{place}: {address} is an own address of {own[address]}"
                elif address in seen:
                    yield f"{path}.{place}: {address} is already a VIP of {seen[address]}"
                seen.setdefault(address, f"{name} on {segment}")


def _upstream(cluster: ClusterConfig) -> Iterator[str]:
    own = {str(entry[3].ip): f"an own address of {entry[2]}" for entry in _interfaces(cluster)}
    for name, group in cluster.groups.items():
        vips = {str(vip) for found in group.vips.values() for vip in found}
        for segment, check in group.upstream.items():
            path = f"groups.{name}.upstream.{segment}"
            if segment not in group.vips:
                yield f"{path}: the group has no VIP on segment {segment}"
                continue
            address = str(check.address)
            if address in own or address in vips:
                what = own.get(address, "a VIP of the group")
                yield f"{path}.address: {address} is {what}: it says nothing of the far side"
            for member in group.order:
                port = (
                    cluster.nodes[member].segments.get(segment)
                    if member in cluster.nodes
                    else None
                )
                if port is not None and all(
                    at.version != check.address.version for at in port.addresses
                ):
                    yield (
                        f"{path}.address: {member} has no IPv{check.address.version} address of "
                        f"its own on {segment} to ask from"
                    )


def _has_ipv4(vips: Sequence[object]) -> bool:
    return any(isinstance(vip, IPv4Address) for vip in vips)
