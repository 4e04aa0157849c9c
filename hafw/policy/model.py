"""policy.yaml: declared once, here. The reference page and the JSON Schema come from this.

What a zone may send where, which addresses are translated, which helpers look into flows. The
policy names segments; devices, virtual MAC devices and VIPs come from cluster.yaml, so that one
policy is right on every gateway. `hafw.policy.load` reads it, `hafw.policy.compile` compiles it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hafw.config.fields import Address, Model, Name, Network, SegmentName, refuse
from hafw.policy.fields import OneOrMore, PortRange, Target
from hafw.policy.relations import policy_problems
from hafw.policy.snippets import Snippet

__all__ = [
    "HELPER_PROTOCOLS",
    "Dnat",
    "Masquerade",
    "Nat",
    "Policy",
    "Rule",
    "Service",
    "Snat",
]

COMMENT_PATTERN = r'^[^\x00-\x1f"\\]{1,100}$'

HELPER_PROTOCOLS: dict[str, tuple[str, ...]] = {
    "ftp": ("tcp",),
    "sip": ("udp", "tcp"),
    "tftp": ("udp",),
}
"""The conntrack helpers of this release and the protocols each is assigned for."""

Comment = Annotated[str, Field(pattern=COMMENT_PATTERN)]
HelperName = Literal["ftp", "sip", "tftp"]
SyncClass = Literal["always", "delayed", "never"]
Names = Annotated[list[Name], *OneOrMore]
Segments = Annotated[list[SegmentName], *OneOrMore]
Networks = Annotated[list[Network], *OneOrMore]
Ports = Annotated[list[PortRange], *OneOrMore]


class Service(Model):
    """What a service is, by protocol. All that are given belong to it."""

    tcp: list[PortRange] = Field(default=[], description="Destination ports.")
    udp: list[PortRange] = Field(default=[], description="Destination ports.")
    sctp: list[PortRange] = Field(default=[], description="Destination ports.")
    icmp: list[Name] = Field(default=[], description="ICMP types by nft's names (echo-request).")
    icmpv6: list[Name] = Field(default=[], description="ICMPv6 types by nft's names.")
    protocols: list[Literal["ah", "esp", "gre", "igmp", "ipencap", "ospf", "vrrp"]] = Field(
        default=[], description="Whole IP protocols."
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if not any(getattr(self, name) for name in type(self).model_fields):
            refuse(["a service needs at least one of tcp, udp, sctp, icmp, icmpv6, protocols"])
        return self


class Rule(Model):
    """What happens to first packets. Rules are tried in file order; the first that matches
    decides. Later packets of an accepted flow, and what is related to it, pass by themselves."""

    from_: Names = Field(
        default=["any"],
        alias="from",
        description="Zones the packet comes from; `any` is every segment, `self` the node.",
    )
    to: Names = Field(
        default=["any"],
        description="Zones it leaves to; `any` is every segment but not the node, which is "
        "`self` (its own addresses and its VIPs).",
    )
    source: Networks | None = Field(None, description="Addresses and networks, both families.")
    destination: Networks | None = Field(None, description="Addresses and networks, after dnat.")
    services: Names | None = Field(None, description="Services; all of them if left out.")
    action: Literal["accept", "drop", "reject"] = Field(
        description="`reject` answers with a TCP reset or an ICMP error; never from a VIP."
    )
    log: bool = Field(
        False, description="Log first packets to the kernel log, at most 10 a second."
    )
    counter: bool = Field(True, description="Count packets and bytes.")
    sync: SyncClass = Field(
        "always",
        description="Of accepted flows: `always` replicated, `never`, or `delayed`: once they are "
        "older than `sync.delay_s` of cluster.yaml.",
    )
    comment: Comment | None = Field(None, description="Shown in `nft list` and in error messages.")
    nft: list[Snippet] = Field(
        default=[],
        max_length=16,
        description="Further conditions, where this model ends: `match` and `limit` of "
        "libnftables-json(5).",
    )


class Masquerade(Model):
    """Translate the source to the group's VIP on the segment the packet leaves by. Never to the
    device's own address: that would die with the node."""

    from_: Names = Field(alias="from", description="Zones the packet comes from.")
    to: Names = Field(description="Zones it leaves to.")
    source: Networks | None = Field(None, description="Only these sources.")
    destination: Networks | None = Field(None, description="Only these destinations.")
    comment: Comment | None = Field(None, description="Shown in `nft list`.")


class Snat(Masquerade):
    """Translate the source to given addresses. Tried before every masquerade."""

    address: Annotated[list[Address], *OneOrMore] = Field(
        description="One a family: a VIP, or an address that is routed to one."
    )


class Dnat(Model):
    """Translate the destination of what comes to a VIP, and accept it. A rule may still drop or
    reject it first: rules are tried before."""

    on: Segments = Field(description="Segments the packet comes from.")
    vip: Annotated[list[Address], *OneOrMore] | None = Field(
        None, description="VIPs on those segments; all of them if left out."
    )
    source: Networks | None = Field(None, description="Only these sources.")
    protocol: Annotated[list[Literal["tcp", "udp", "sctp"]], *OneOrMore] = Field(
        default=["tcp"], description="Protocols of these ports."
    )
    ports: Ports = Field(description="Destination ports at the VIP.")
    to: Annotated[list[Target], *OneOrMore] = Field(
        description="One a family: address, or address:port."
    )
    sync: SyncClass = Field("always", description="As of a rule.")
    comment: Comment | None = Field(None, description="Shown in `nft list`.")


class Nat(Model):
    """Address translation."""

    snat: list[Snat] = Field(default=[], description="Tried before masquerade.")
    masquerade: list[Masquerade] = Field(default=[], description="Sources to VIPs.")
    dnat: list[Dnat] = Field(default=[], description="Destinations, from VIPs.")


class Policy(Model):
    """The whole file, the same on every node. What no rule accepts is dropped."""

    zones: dict[Name, Segments] = Field(
        min_length=1, description="Zones and their segments. `any` and `self` are built in."
    )
    services: dict[Name, Service] = Field(
        default={}, description="Services beside the built-in ones; may replace those."
    )
    rules: list[Rule] = Field(
        default=[], max_length=200_000, description="In order; what none accepts is dropped."
    )
    nat: Nat = Field(Nat(), description="Sources and destinations to translate.")
    helpers: dict[HelperName, Ports] = Field(
        default={}, description="Conntrack helpers and the destination ports they look at."
    )
    ssh_from: list[Network] = Field(
        default=[],
        description="From here the node's own addresses answer ssh (TCP port 22) on every "
        "device, whatever the rules say.",
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        refuse(policy_problems(self))
        return self
