"""hafw's own packets between nodes: who may send which of them where. Pure.

====================== =================== ================================================
heartbeats              UDP `lease.port`    links and segments: sets `peers4`, `peers6`
deltas and beacons      UDP `sync.port`     between gateways: links (set `links4`), segments
                                            (`segments4`, `segments6`)
snapshots               TCP                 as deltas
Raft                    UDP `raft.port`     links: set `peers4`, to a link's address
====================== =================== ================================================

A segment is shared with strangers, and any of them can take a peer's address there. So nothing is
let in from a segment but what is authenticated, to one port each: heartbeats, and replication from
the address that stands in where links are cut (`hafw.config.segments`; the port of snapshots is
open only then). An answer of a snapshot server may not open a connection: else its port as a
source would reach every service of the node.
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
    """Sets of (device, address): `peers` send heartbeats, `links` and `segments` replicate."""
    kinds = (("peers", site.peers()), ("links", site.replicas()), ("segments", site.stand_ins()))
    for name, found in kinds:
        for family, of in ((4, "ipv4_addr"), (6, "ipv6_addr")):
            pairs = [
                {"concat": [peers.device, str(address)]}
                for peers in found
                for address in peers.others
                if address.version == family
            ]
            if name != "links" or family == 4:  # A link's address is IPv4.
                table.set(f"{name}{family}", ["ifname", of], pairs)


def arriving(site: Site) -> list[Matches]:
    """Conditions of what peers send to this node. Addressed to it: what is to be forwarded is
    tracked, whatever its ports."""
    return [*_datagrams(site), *(matches for pair in _snapshots(site) for matches in pair)]


def _datagrams(site: Site) -> list[Matches]:
    lease, sync = site.cluster.lease, site.cluster.sync
    found: list[Matches] = []
    for family in (4, 6):
        own = _own(site.peers())
        to_us = address_in("daddr", [*own, lease.multicast], family)
        if to_us is not None:
            heartbeat = payload("udp", "dport", lease.port)
            found.append([peer(family, "in"), to_us, heartbeat])
    delta = payload("udp", "dport", sync.port)
    found += [[*way, delta] for way in (_linked(site, [sync.multicast]), *_over_segments(site))]
    raft = payload("udp", "dport", site.cluster.raft.port)
    for link in site.node.links.values():  # No witness is in `links4`.
        to_link = payload("ip", "daddr", str(link.address.ip))
        found.append([iifname(link.device), peer(4, "in"), to_link, raft])
    return found


def _snapshots(site: Site) -> list[tuple[Matches, Matches]]:
    """Conditions of what asks our snapshot server and of what answers our client, by way."""
    port = site.cluster.sync.snapshot_port
    return [
        (
            [*way, payload("tcp", "dport", port)],
            [*way, payload("tcp", "sport", port), syn("!=")],
        )
        for way in (_linked(site), *_over_segments(site))
    ]


def _over_segments(site: Site) -> list[Matches]:
    """From a gateway's address on a segment that may stand in, to ours."""
    own = _own(site.stand_ins())
    found = []
    for family in (4, 6):
        to_us = address_in("daddr", own, family)
        if to_us is not None:
            found.append([peer(family, "in", "segments"), to_us])
    return found


def leaving(site: Site) -> list[Matches]:
    """Conditions of what this node sends to its peers."""
    lease, sync = site.cluster.lease, site.cluster.sync
    heartbeat = payload("udp", "dport", lease.port)
    delta = payload("udp", "dport", sync.port)
    raft = payload("udp", "dport", site.cluster.raft.port)
    found: list[Matches] = [
        [peer(4, "out"), heartbeat],
        [peer(6, "out"), heartbeat],
        [payload("ip", "daddr", str(lease.multicast)), heartbeat],
        [payload("ip", "daddr", str(sync.multicast)), delta],
        [peer(4, "out"), raft],
    ]
    for family, of in ((4, "links"), (4, "segments"), (6, "segments")):
        way = peer(family, "out", of)
        found += [
            [way, delta],
            [way, payload("tcp", "dport", sync.snapshot_port)],
            [way, payload("tcp", "sport", sync.snapshot_port)],
        ]
    return found


def accept_own(table: TableWriter, site: Site) -> None:
    """Rules of chain input. New snapshot connections are bounded, each peer for itself: what is
    over the limit meets the rules."""
    snapshots = _snapshots(site)
    for matches in (*_datagrams(site), *(answers for _, answers in snapshots)):
        table.rule("input", *matches, ACCEPT)
    for asked, _ in snapshots:
        table.rule("input", *asked, syn("!="), ACCEPT)
    port = payload("tcp", "dport", site.cluster.sync.snapshot_port)
    for way in (*site.replicas(), *site.stand_ins()):
        for address in way.others:
            protocol = "ip" if address.version == 4 else "ip6"
            to_us = payload(protocol, "daddr", str(way.own[0]))
            source = [iifname(way.device), payload(protocol, "saddr", str(address))]
            table.rule("input", *source, to_us, port, syn(), SNAPSHOT_LIMIT, ACCEPT)


def _own(found: Sequence[Peers]) -> list[Ip]:
    return [address for peers in found for address in peers.own]


def _linked(site: Site, groups: Sequence[Ip] = ()) -> Matches:
    """From a gateway's link address, to ours or to a multicast group."""
    to_us = address_in("daddr", [*_own(site.replicas()), *groups], 4)
    assert to_us is not None, "a node has at least one link"
    return [peer(4, "in", "links"), to_us]
