"""cluster.yaml: declared once, here. The reference page and the JSON Schema come from this.

Types, defaults, units, ranges and relations live on the models; `hafw.config.load` turns a file
into a `ClusterConfig` or a `ConfigError` with file, line, path, value and what would be right.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hafw.config.fields import (
    Address,
    Device,
    Interface,
    LinkInterface,
    Model,
    Name,
    Port,
    SegmentName,
    refuse,
)
from hafw.config.relations import cluster_problems

__all__ = [
    "LEASE_MS_MAX",
    "RESTART_WAIT_MS",
    "ClusterConfig",
    "CpuConfig",
    "DampingConfig",
    "GroupConfig",
    "LeaseConfig",
    "LinkConfig",
    "NodeConfig",
    "SegmentPort",
    "SyncConfig",
    "UpstreamConfig",
    "VoterSet",
]

RESTART_WAIT_MS = 2000
"""M: a voter that has (re)started votes for nobody for M(1+ε). A constant of the release: longer
leases are refused (DESIGN §5)."""
LEASE_MS_MAX = 1000
DRIFT = 0.01
"""ε: the bound on the relative drift of two nodes' CLOCK_BOOTTIME."""

LEASE_MULTICAST = IPv4Network("224.0.0.0/24")
"""The local network control block (RFC 5771 section 4): switches flood it always."""
SYNC_MULTICAST = IPv4Network("239.0.0.0/8")
"""Administratively scoped (RFC 2365)."""

Vip = Address


class SegmentPort(Model):
    """How a gateway sits on a segment: its device and its own addresses (required: packets leave
    with the node's own MAC and resolve neighbours with its own address)."""

    device: Device = Field(description="The physical device.")
    addresses: list[Interface] = Field(
        min_length=1, max_length=8, description="The node's own addresses."
    )

    @property
    def ipv4(self) -> IPv4Interface | None:
        return next((a for a in self.addresses if isinstance(a, IPv4Interface)), None)


class LinkConfig(Model):
    """A path between nodes that hafw itself talks over."""

    device: Device = Field(description="The device; a link has it to itself.")
    address: LinkInterface = Field(description="The node's address on the link.")


class NodeConfig(Model):
    """A member of the cluster. A gateway forwards; a witness only votes."""

    id: int = Field(ge=1, le=62, description="Node id in marks and on the wire.")
    role: Literal["gateway", "witness"] = Field(
        "gateway", description="A gateway forwards and votes; a witness only votes."
    )
    segments: dict[SegmentName, SegmentPort] = Field(
        default_factory=dict, description="Where a gateway sits; hafw speaks over these too."
    )
    links: dict[Name, LinkConfig] = Field(
        min_length=1, max_length=8, description="Paths to the other nodes, by shared names."
    )


class UpstreamConfig(Model):
    """An address on the far side of a segment that answers echo requests: a router, or a host that
    is always there. A node that it does not answer ranks below one that it does, and hands its
    group over to such a one; if nobody is answered, nothing moves."""

    address: Address = Field(description="Asked from each gateway's own address there.")
    interval_ms: int = Field(200, ge=50, le=10_000, description="Between two asks.")
    count: int = Field(
        3, ge=1, le=20, description="Asks in a row without answer that make a failure, and back."
    )


class GroupConfig(Model):
    """A virtual gateway: one VRID, one virtual MAC, its VIPs on each segment, one ACTIVE node."""

    index: int = Field(ge=1, le=15, description="Group index in the ct mark.")
    vrid: int = Field(ge=1, le=255, description="Last byte of the virtual MAC 00:00:5e:00:01:xx.")
    order: list[Name] = Field(min_length=1, max_length=62, description="Candidates, best first.")
    vips: dict[SegmentName, Annotated[list[Vip], Field(min_length=1, max_length=16)]] = Field(
        min_length=1, description="VIPs by segment, both families."
    )
    upstream: dict[SegmentName, UpstreamConfig] = Field(
        default_factory=dict, description="Checks of what lies behind a segment, by segment."
    )

    @property
    def virtual_mac(self) -> str:
        return f"00:00:5e:00:01:{self.vrid:02x}"

    def device(self, segment: str) -> str:
        """Name of the virtual MAC device (macvlan) on a segment; at most 15 characters."""
        return f"hv{self.vrid}-{segment}"


class LeaseConfig(Model):
    """Heartbeats and leases. 20/100 ms by default; 10/40 is the fast profile; 5/20 is an
    experiment."""

    heartbeat_ms: int = Field(20, ge=1, le=300, description="Between heartbeats.")
    lease_ms: int = Field(
        100, ge=5, le=LEASE_MS_MAX, description="How long a lease lasts: the outage is about this."
    )
    port: Port = Field(7410, description="UDP port of heartbeats and lease messages.")
    multicast: IPv4Address = Field(
        IPv4Address("224.0.0.141"), description="Where heartbeats go, in 224.0.0.0/24."
    )
    announce_interval_s: float = Field(
        10.0, ge=0.1, le=60, description="Slow announcement of the virtual MAC, for ever."
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.heartbeat_ms * 3 > self.lease_ms:
            raise ValueError(
                "heartbeat_ms: heartbeat_ms * 3 must be <= lease_ms "
                f"({self.heartbeat_ms} * 3 > {self.lease_ms})"
            )
        if self.multicast not in LEASE_MULTICAST:
            raise ValueError(
                f"multicast: must be in {LEASE_MULTICAST}, which switches always flood"
            )
        return self


class SyncConfig(Model):
    """ct_sync: replication of conntrack entries."""

    port: Port = Field(7411, description="UDP port of deltas and beacons.")
    snapshot_port: Port = Field(7412, description="TCP port of snapshots.")
    multicast: IPv4Address = Field(
        IPv4Address("239.192.74.11"), description="Where deltas and beacons go, in 239.0.0.0/8."
    )
    transport: Literal["auto", "unicast"] = Field(
        "auto",
        description="unicast sends no multicast; auto sends to a peer by unicast where its "
        "multicast is not heard.",
    )
    segments: list[SegmentName] | None = Field(
        None,
        max_length=8,
        description="Segments that carry replication to a peer while all links to it are cut, the "
        "best first; an empty list forbids it. Default: all.",
    )
    beacon_ms: int = Field(20, ge=5, le=1000, description="Between beacons.")
    ring_datagrams: int = Field(8192, ge=64, le=1 << 20, description="Kept for repair by NACK.")
    hold_s: int = Field(
        900, ge=60, le=86400, description="Least timeout of a replica; it dies by DESTROY."
    )
    refresh_s: int = Field(
        300, ge=10, le=43200, description="Every published flow is re-announced this often."
    )
    delay_s: int = Field(
        5, ge=1, le=3600, description="Age at which flows of `sync: delayed` rules are published."
    )
    enabled: bool = Field(True, description="false only in drills that must fail.")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.refresh_s * 2 > self.hold_s:
            raise ValueError(
                "refresh_s: refresh_s * 2 must be <= hold_s "
                f"({self.refresh_s} * 2 > {self.hold_s}), or replicas expire in between"
            )
        if self.multicast not in SYNC_MULTICAST:
            raise ValueError(f"multicast: must be in {SYNC_MULTICAST}, multicast of one site")
        return self


class RaftConfig(Model):
    """hafw-raftd: members, orders, the history of moves."""

    port: Port = Field(7413, description="UDP port of Raft, on links only.")


class CpuConfig(Model):
    """Which CPU the lease loop has and which the policy worker must keep to. An nft load is not
    preemptible and would hold a lease loop on the same CPU for tens of milliseconds."""

    lease: int | None = Field(
        None, ge=0, description="Default: the last CPU online that is not the policy's."
    )
    policy: int | None = Field(
        None, ge=0, description="Default: the first CPU online that is not the lease's."
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.lease is not None and self.lease == self.policy:
            raise ValueError("policy: lease and policy must be different CPUs")
        return self


class DampingConfig(Model):
    """A node that comes and goes ranks behind the others, and no group goes back to it, until it
    has been quiet: fit for the group without a break. Each further loss doubles the wait."""

    losses: int = Field(
        3, ge=0, le=1000, description="Losses that damp a node; 0: no node is ever damped."
    )
    quiet_s: int = Field(60, ge=1, le=86400, description="The first wait.")
    quiet_s_max: int = Field(
        3600,
        ge=1,
        le=86400,
        description="The longest wait; so long without a loss takes one away again.",
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.quiet_s > self.quiet_s_max:
            raise ValueError(
                f"quiet_s: quiet_s must be <= quiet_s_max ({self.quiet_s} > {self.quiet_s_max})"
            )
        return self


class VoterSet(Model):
    """Who votes. Named in every lease message by id and hash; voters refuse any other set."""

    id: int
    members: tuple[int, ...]

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1

    @property
    def hash(self) -> str:
        """First 16 hex digits of SHA-256 over the id and the sorted member ids."""
        text = f"{self.id}:" + ",".join(str(member) for member in sorted(self.members))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ClusterConfig(Model):
    """The whole file, the same on every node."""

    name: Name = Field(description="Cluster name; datagrams of other clusters are refused.")
    nodes: dict[Name, NodeConfig] = Field(
        min_length=1, max_length=62, description="The members, by name."
    )
    groups: dict[Name, GroupConfig] = Field(
        min_length=1, max_length=15, description="The virtual gateways, by name."
    )
    lease: LeaseConfig = Field(LeaseConfig(), description="Heartbeats and leases.")
    sync: SyncConfig = Field(SyncConfig(), description="Replication.")
    raft: RaftConfig = Field(RaftConfig(), description="Membership and assignment.")
    cpus: CpuConfig = Field(CpuConfig(), description="Which CPUs are used for what.")
    damping: DampingConfig = Field(
        DampingConfig(), description="What becomes of nodes that come and go."
    )
    quorum: Literal["majority", "two-node"] = Field(
        "majority",
        description="`two-node`: two gateways without a witness, of which one goes on alone. If "
        "all links and segments between them are cut, both forward.",
    )
    policy: str = Field("policy.yaml", description="Policy file, relative to this one.")

    @property
    def cluster_id(self) -> int:
        """32 bits of SHA-256 of the name; in every datagram's header."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")

    @property
    def voters(self) -> VoterSet:
        """The nodes of the file, until Raft holds the set."""
        return VoterSet(id=1, members=tuple(sorted(node.id for node in self.nodes.values())))

    def node_name(self, node_id: int) -> str:
        """Name of a node id; ``-`` for 0, ``node<id>`` for an id that is not in the file."""
        if node_id == 0:
            return "-"
        for name, node in self.nodes.items():
            if node.id == node_id:
                return name
        return f"node{node_id}"

    @model_validator(mode="after")
    def _relations(self) -> Self:
        # Messages begin with the dotted path they are about; the loader splits it off.
        refuse(cluster_problems(self))
        return self
