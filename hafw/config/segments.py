"""Which segments may carry replication where all links to a peer are cut. Pure.

The nodes' firewalls and syncds must agree on the addresses, so both ask here. A segment is one way
of one family for all gateways on it: IPv4 where each of them has such an address there, else IPv6,
never link-local (it would need a scope). A witness is on no segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from hafw.config.model import ClusterConfig, SegmentPort

__all__ = ["SEGMENTS_MAX", "SegmentWay", "segment_ways"]

SEGMENTS_MAX = 8
"""Ways over segments of one node; of more the first are taken."""

_Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class SegmentWay:
    """A segment as one gateway sees it: its device and address there, and the peers'."""

    segment: str
    device: str
    own: _Address
    peers: dict[int, _Address]


def segment_ways(cluster: ClusterConfig, node_name: str) -> list[SegmentWay]:
    """In the order in which they are preferred."""
    node = cluster.nodes[node_name]
    allowed = cluster.sync.segments
    names = sorted(node.segments) if allowed is None else allowed
    found: list[SegmentWay] = []
    for name in names:
        ports = {n.id: n.segments[name] for n in cluster.nodes.values() if name in n.segments}
        if node.id not in ports:
            continue
        addresses = _of_one_family(ports)
        own = addresses.pop(node.id, None)
        if own is not None and addresses:
            found.append(SegmentWay(name, node.segments[name].device, own, addresses))
    return found[:SEGMENTS_MAX]


def _of_one_family(ports: dict[int, SegmentPort]) -> dict[int, _Address]:
    for version in (4, 6):
        found = {
            node_id: next(
                (a.ip for a in port.addresses if a.version == version and not a.ip.is_link_local),
                None,
            )
            for node_id, port in sorted(ports.items())
        }
        known = {node_id: address for node_id, address in found.items() if address is not None}
        if len(known) == len(ports):
            return known
    return {}
