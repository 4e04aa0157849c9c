"""What must agree inside policy.yaml, and between it and cluster.yaml. Pure.

Each problem is ``dotted.path: what is wrong``; all are found. `policy_problems` is part of the
model; `site_problems` needs the cluster and is asked by `hafw.policy.load` and the compiler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol

from hafw.policy.services import BUILT_IN

if TYPE_CHECKING:
    from hafw.config.fields import Address
    from hafw.config.model import ClusterConfig
    from hafw.policy.model import Dnat, Masquerade, Policy, Rule, Service, Snat

__all__ = ["RELATIONS", "families_of", "policy_problems", "site_problems"]

RELATIONS = (
    "Zones are disjoint; `any` (every segment) and `self` (the node) are built in.",
    "Zones and services that a rule names exist, declared or built in.",
    "The source, destination and services of a rule have an address family in common.",
    "The node's own packets are not translated.",
    "Only a rule that accepts forwarded packets has a class of replication (`sync`).",
    "`snat` and `dnat` have at most one address a family; never a node's own address.",
    "With a port in `to`, a dnat has a single port.",
    "Segments exist in cluster.yaml. Where masquerade leads, a group has a VIP.",
    "A dnat's VIPs are VIPs of its segments, one of each family it leads to.",
)
"""What `policy_problems` and `site_problems` check, for the reference page."""

RESERVED_ZONES = ("any", "self")


def policy_problems(policy: Policy) -> list[str]:
    """Empty if the parts agree."""
    return [*_zones(policy), *_rules(policy), *_nat(policy)]


def site_problems(policy: Policy, cluster: ClusterConfig) -> list[str]:
    """What the policy says about segments and VIPs that the cluster does not have."""
    return [*_segments(policy, cluster), *_addresses(policy, cluster)]


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


def families_of(networks: Sequence[_Versioned] | None) -> set[int]:
    """Families a list restricts to; both if there is no list."""
    if networks is None:
        return {4, 6}
    return {network.version for network in networks}


def _unknown(path: str, kind: str, name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    words = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    return f"{path}: no {kind} is named {name}; {words}"


def _zones(policy: Policy) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name, segments in policy.zones.items():
        if name in RESERVED_ZONES:
            yield f"zones.{name}: {name} is built in and cannot be declared"
        for segment in segments:
            if segment in seen:
                yield f"zones.{name}: segment {segment} is already in zone {seen[segment]}"
            seen.setdefault(segment, name)


def _rules(policy: Policy) -> Iterator[str]:
    zones = [*policy.zones, *RESERVED_ZONES]
    known_services = [*policy.services, *BUILT_IN]
    for number, rule in enumerate(policy.rules):
        path = f"rules.{number}"
        for key, names in (("from", rule.from_), ("to", rule.to)):
            for name in names:
                if name not in zones:
                    yield _unknown(f"{path}.{key}", "zone", name, zones)
        if "self" in rule.from_ and "self" in rule.to:
            yield f"{path}.to: from self to self never leaves the node"
        yield from _sync(path, rule)
        unknown = [name for name in rule.services or [] if name not in known_services]
        for name in unknown:
            yield _unknown(f"{path}.services", "service", name, known_services)
        if not unknown and not _possible_families(policy, rule):
            yield f"{path}: source, destination and services have no address family in common"


def _sync(path: str, rule: Rule) -> Iterator[str]:
    if rule.sync == "always":
        return
    if rule.action != "accept":
        yield f"{path}.sync: a rule that does not accept leaves nothing to replicate"
    elif set(rule.from_) == {"self"} or set(rule.to) == {"self"}:
        yield f"{path}.sync: flows of the node itself are never replicated"


def _possible_families(policy: Policy, rule: Rule) -> set[int]:
    families = families_of(rule.source) & families_of(rule.destination)
    if rule.services is None:
        return families
    own: set[int] = set()
    for name in rule.services:
        item = policy.services.get(name)
        own |= _service_families(item) if item else _built_in_families(BUILT_IN[name])
    return families & own


def _service_families(item: Service) -> set[int]:
    given = {name for name in type(item).model_fields if getattr(item, name)}
    return _families_of_protocols(given)


def _built_in_families(item: dict[str, list[object]]) -> set[int]:
    return _families_of_protocols(set(item))


def _families_of_protocols(given: set[str]) -> set[int]:
    if given - {"icmp", "icmpv6"}:
        return {4, 6}
    return {4 if name == "icmp" else 6 for name in given}


def _nat(policy: Policy) -> Iterator[str]:
    zones = [*policy.zones, "any"]
    rules: list[tuple[str, Masquerade]] = [
        *((f"nat.snat.{n}", rule) for n, rule in enumerate(policy.nat.snat)),
        *((f"nat.masquerade.{n}", rule) for n, rule in enumerate(policy.nat.masquerade)),
    ]
    for path, rule in rules:
        for key, names in (("from", rule.from_), ("to", rule.to)):
            for name in names:
                if name == "self":
                    yield f"{path}.{key}: the node's own packets are not translated"
                elif name not in zones:
                    yield _unknown(f"{path}.{key}", "zone", name, zones)
        if not families_of(rule.source) & families_of(rule.destination):
            yield f"{path}: source and destination have no address family in common"
    for number, snat in enumerate(policy.nat.snat):
        path = f"nat.snat.{number}.address"
        yield from _one_a_family(path, snat.address)
        possible = families_of(snat.source) & families_of(snat.destination)
        for place, address in enumerate(snat.address):
            if address.version not in possible:
                yield f"{path}.{place}: source or destination has no address of this family"
    for number, dnat in enumerate(policy.nat.dnat):
        yield from _dnat(f"nat.dnat.{number}", dnat)


def _one_a_family(path: str, addresses: Sequence[Address]) -> Iterator[str]:
    for family in (4, 6):
        if sum(address.version == family for address in addresses) > 1:
            yield f"{path}: more than one IPv{family} address"


def _dnat(path: str, dnat: Dnat) -> Iterator[str]:
    targets = [target.address for target in dnat.to]
    yield from _one_a_family(f"{path}.to", targets)
    for number, target in enumerate(dnat.to):
        if target.port is not None and (len(dnat.ports) > 1 or len(set(dnat.ports[0])) > 1):
            yield f"{path}.to.{number}: a port is given, so ports must be a single port"
        if not families_of([target.address]) & families_of(dnat.source):
            yield f"{path}.to.{number}: source has no address of this family"


def _segments(policy: Policy, cluster: ClusterConfig) -> Iterator[str]:
    known = sorted({name for node in cluster.nodes.values() for name in node.segments})
    for zone, segments in policy.zones.items():
        for segment in segments:
            if segment not in known:
                yield _unknown(f"zones.{zone}", "segment", segment, known)
    for number, dnat in enumerate(policy.nat.dnat):
        for segment in dnat.on:
            if segment not in known:
                yield _unknown(f"nat.dnat.{number}.on", "segment", segment, known)


def _segments_of(policy: Policy, zone: str, every: list[str]) -> list[str]:
    return every if zone == "any" else policy.zones.get(zone, [])


def _vips(cluster: ClusterConfig, segments: Sequence[str]) -> list[Address]:
    return [
        vip
        for group in cluster.groups.values()
        for segment in segments
        for vip in group.vips.get(segment, [])
    ]


def _addresses(policy: Policy, cluster: ClusterConfig) -> Iterator[str]:
    own = {
        str(address.ip): name
        for name, node in cluster.nodes.items()
        for port in node.segments.values()
        for address in port.addresses
    }
    every = sorted({name for node in cluster.nodes.values() for name in node.segments})
    for number, rule in enumerate(policy.nat.masquerade):
        for zone in rule.to:
            for segment in _segments_of(policy, zone, every):
                if segment in every and not _vips(cluster, [segment]):
                    yield f"nat.masquerade.{number}.to: no group has a VIP on segment {segment}"
    for number, snat in enumerate(policy.nat.snat):
        yield from _own_address(f"nat.snat.{number}.address", snat, own)
        egress = [s for zone in snat.to for s in _segments_of(policy, zone, every)]
        for place, address in enumerate(snat.address):
            if address in _vips(cluster, every) and address not in _vips(cluster, egress):
                yield f"nat.snat.{number}.address.{place}: {address} is a VIP of another segment"
    for number, dnat in enumerate(policy.nat.dnat):
        vips = _vips(cluster, dnat.on)
        for place, vip in enumerate(dnat.vip or []):
            if vip not in vips:
                known = ", ".join(str(known) for known in vips) or "none"
                yield f"nat.dnat.{number}.vip.{place}: not a VIP there; the VIPs are {known}"
        families = families_of(dnat.vip or vips)
        for place, target in enumerate(dnat.to):
            if target.address.version not in families:
                version = target.address.version
                yield f"nat.dnat.{number}.to.{place}: there is no IPv{version} VIP to translate"


def _own_address(path: str, snat: Snat, own: dict[str, str]) -> Iterator[str]:
    for place, address in enumerate(snat.address):
        if str(address) in own:
            yield (
                f"{path}.{place}: this is {own[str(address)]}'s own address and would die with "
                "it; use a VIP"
            )
