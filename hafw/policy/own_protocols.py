"""hafw's own packets between nodes: who may send which of them where. Pure.

====================== =================== ================================================
heartbeats              UDP `lease.port`    links and segments: sets `peers4`, `peers6`
deltas and beacons      UDP `sync.port`     links, between gateways: set `links4`
snapshots               TCP                 links, between gateways: set `links4`
Raft                    UDP `raft.port`     links: set `peers4`, to a link's address
====================== =================== ================================================

A segment is shared with strangers, and any of them can take a peer's address there. So nothing
but a heartbeat (authenticated, to one port) is let in from a segment, and an answer of a snapshot
server may not open a connection: else its port as a source would reach every service of the node.
"""

from __future__ import annotations

from collections.abc import Sequence

from hafw.policy.expressions import (
    ACCEPT,
    Expression,
    Ip,
    TableWriter,
    address_in,
    iifname,
    payload,
    peer,
    syn,
)
from hafw.policy.site import Peers, Site

__all__ = ["SNAPSHOT_LIMIT", "accept_own", "arriving", "leaving", "peer_sets"]

SNAPSHOT_LIMIT: Expression = {"limit": {"rate": 4, "per": "second", "burst": 16}}
"""New snapshot connections from one peer on one link. A gateway needs one at a time; what asks
for more would hold as many descriptors as ZeroMQ waits for handshakes (30 s each)."""

Matches = list[Expression]


def peer_sets(table: TableWriter, site: Site) -> None:
    """Sets of (device, address): `peers` send heartbeats, `links` replicate."""
    for name, found in (("peers", site.peers()), ("links", site.replicas())):
        for family, of in ((4, "ipv4_addr"), (6, "ipv6_addr")):
            pairs = [
                {"concat": [peers.device, str(address)]}
                for peers in found
                for address in peers.others
                if address.version == family
            ]
            if name == "peers" or family == 4:  # A link's address is IPv4.
                table.set(f"{name}{family}", ["ifname", of], pairs)


def arriving(site: Site) -> list[Matches]:
    """Conditions of what peers send to this node. Addressed to it: what is to be forwarded is
    tracked, whatever its ports."""
    lease, sync = site.cluster.lease, site.cluster.sync
    found: list[Matches] = []
    for family in (4, 6):
        own = _own(site.peers())
        to_us = address_in("daddr", [*own, lease.multicast], family)
        if to_us is not None:
            heartbeat = payload("udp", "dport", lease.port)
            found.append([peer(family, "in"), to_us, heartbeat])
    found.append(
        [*_linked(site, [sync.multicast]), payload("udp", "dport", sync.port)],
    )
    raft = payload("udp", "dport", site.cluster.raft.port)
    for link in site.node.links.values():  # No witness is in `links4`.
        to_link = payload("ip", "daddr", str(link.address.ip))
        found.append([iifname(link.device), peer(4, "in"), to_link, raft])
    found.append([*_linked(site), payload("tcp", "dport", sync.snapshot_port)])
    found.append([*_linked(site), payload("tcp", "sport", sync.snapshot_port), syn("!=")])
    return found


def leaving(site: Site) -> list[Matches]:
    """Conditions of what this node sends to its peers."""
    lease, sync = site.cluster.lease, site.cluster.sync
    heartbeat = payload("udp", "dport", lease.port)
    delta = payload("udp", "dport", sync.port)
    link = peer(4, "out", "links")
    raft = payload("udp", "dport", site.cluster.raft.port)
    return [
        [peer(4, "out"), heartbeat],
        [peer(6, "out"), heartbeat],
        [payload("ip", "daddr", str(lease.multicast)), heartbeat],
        [link, delta],
        [payload("ip", "daddr", str(sync.multicast)), delta],
        [peer(4, "out"), raft],
        [link, payload("tcp", "dport", sync.snapshot_port)],
        [link, payload("tcp", "sport", sync.snapshot_port)],
    ]


def accept_own(table: TableWriter, site: Site) -> None:
    """Rules of chain input. New snapshot connections are bounded, each peer for itself: what is
    over the limit meets the rules, and no zone has a link."""
    *others, asked, answers = arriving(site)
    for matches in (*others, answers):
        table.rule("input", *matches, ACCEPT)
    table.rule("input", *asked, syn("!="), ACCEPT)
    for link in site.replicas():
        for address in link.others:
            source = [iifname(link.device), payload("ip", "saddr", str(address))]
            table.rule("input", *source, *asked[1:], syn(), SNAPSHOT_LIMIT, ACCEPT)


def _own(found: Sequence[Peers]) -> list[Ip]:
    return [address for peers in found for address in peers.own]


def _linked(site: Site, groups: Sequence[Ip] = ()) -> Matches:
    """From a gateway's link address, to ours or to a multicast group."""
    to_us = address_in("daddr", [*_own(site.replicas()), *groups], 4)
    assert to_us is not None, "a node has at least one link"
    return [peer(4, "in", "links"), to_us]
