"""Table hafw_policy, filter part: who may send what where. Pure.

====================== ========================================================================
prerouting (-140)       conntrack helpers for first packets (after conntrack, before NAT)
forward (0)             policy drop: what goes on, the rules, what dnat let in
input (0)               policy drop: what a gateway needs, then the rules to `self`
output (0)              policy accept: what a gateway needs, then the rules from `self`
====================== ========================================================================

The chains of replication classes are in `hafw.policy.sync_classes`.

First packets to the node itself that are `invalid` may still meet an accepting rule, unless they
are for a VIP (hafw_cluster dropped those): else the first load would cut every ssh session that
conntrack had not seen begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hafw.policy.expressions import (
    ACCEPT,
    DROP,
    LOG_PREFIX_BYTES_MAX,
    Expression,
    TableWriter,
    address_in,
    count,
    ct,
    ct_state,
    cut_bytes,
    iifname,
    meta,
    oifname,
    one_of,
    payload,
    payload_bits,
    ports_in,
)
from hafw.policy.model import HELPER_PROTOCOLS, Dnat, Rule, Service
from hafw.policy.own_protocols import accept_own, peer_sets
from hafw.policy.services import BUILT_IN
from hafw.policy.site import Site
from hafw.policy.sync_classes import accept_as, class_chains

__all__ = ["COUNTERS", "filter_part", "zone_set"]

COUNTERS = {
    "forward_refused": "first packets that no rule accepts, to be forwarded",
    "input_refused": "packets to the node that no rule accepts",
    "vip_refused": "packets to a VIP that nothing translates and no rule accepts",
}
"""Named counters of the table and what each counts."""

_ND = ["nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert"]
_MLD = ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"]
_ICMP_ERRORS = ["destination-unreachable", "time-exceeded", "parameter-problem"]
_ICMPV6_ERRORS = [
    "destination-unreachable",
    "packet-too-big",
    "time-exceeded",
    "parameter-problem",
]
_LOG_RATE: Expression = {"limit": {"rate": 10, "per": "second", "burst": 20}}
_TRANSPORTS = ("tcp", "udp", "sctp")


def zone_set(zone: str, way: str) -> str:
    """Name of the set of devices by which a zone's packets come (`in`) or leave (`out`)."""
    return f"zone_{zone}_{way}"


def filter_part(table: TableWriter, site: Site) -> None:
    """Sets, helper objects, chains and rules, in evaluation order."""
    for name in COUNTERS:
        table.counter(name)
    for family, of in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        table.set(f"vips{family}", of, [str(vip) for vip in site.all_vips(family)])
    peer_sets(table, site)
    for zone in ["any", *site.policy.zones]:
        segments = site.zone_segments(zone)
        leaving = [site.device(segment) for segment in segments]
        virtual = [device for s in segments for device in site.virtual_devices(s)]
        table.set(zone_set(zone, "in"), "ifname", [*leaving, *virtual])
        table.set(zone_set(zone, "out"), "ifname", leaving)
    table.base_chain("prerouting", "prerouting", -140)
    table.base_chain("forward", "forward", 0, policy="drop")
    table.base_chain("input", "input", 0, policy="drop")
    table.base_chain("output", "output", 0)
    _helpers(table, site)
    class_chains(table, site)
    _before_rules(table, site)
    for number, rule in enumerate(site.policy.rules):
        _rule(table, site, number, rule)
    for number, dnat in enumerate(site.policy.nat.dnat):
        _accept_translated(table, site, number, dnat)
    table.rule("forward", count("forward_refused"))
    table.rule("input", payload("ip", "daddr", "@vips4"), count("vip_refused"), DROP)
    table.rule("input", payload("ip6", "daddr", "@vips6"), count("vip_refused"), DROP)
    table.rule("input", count("input_refused"))


def _helpers(table: TableWriter, site: Site) -> None:
    if "sip" in site.policy.helpers:
        table.rule("prerouting", ct_state("established"), ACCEPT)
        _sip_signalling(table)
    if site.policy.helpers:
        table.rule("prerouting", ct_state("established", "related"), ACCEPT)
    for helper, ports in site.policy.helpers.items():
        for protocol in HELPER_PROTOCOLS[helper]:
            name = f"{helper}_{protocol}"
            table.helper(name, helper, protocol)
            table.rule(
                "prerouting",
                ct_state("new"),
                iifname(f"@{zone_set('any', 'in')}"),
                ports_in(protocol, "dport", ports),
                {"ct helper": name},
                comment=f"helpers.{helper}",
            )


def _sip_signalling(table: TableWriter) -> None:
    """A call to a telephone that has registered is expected, and must be looked into as well. The
    kernel says so in its own expectations; one that ctnetlink made (a replica's) cannot, and then
    these rules do. `ct helper` is that of the master. Media are expected too: RTP begins with the
    bits 10, a SIP request with a capital letter."""
    for protocol in HELPER_PROTOCOLS["sip"]:
        table.rule(
            "prerouting",
            ct_state("related"),
            meta("l4proto", protocol),
            ct("helper", "sip"),
            payload_bits("th", 64, 3, 0b010) if protocol == "udp" else None,
            {"ct helper": f"sip_{protocol}"},
            comment="helpers.sip: signalling of an expected flow",
        )


def _before_rules(table: TableWriter, site: Site) -> None:
    known = ct_state("established", "related")
    table.rule("forward", known, ACCEPT)
    table.rule("forward", ct_state("invalid"), DROP)
    table.rule("input", iifname("lo"), ACCEPT)
    table.rule("output", oifname("lo"), ACCEPT)
    table.rule("input", known, ACCEPT)
    table.rule("output", known, ACCEPT)
    table.rule("output", ct_state("untracked"), ACCEPT, comment="hafw's own, and ND")
    accept_own(table, site)
    hop = payload("ip6", "hoplimit", 255)
    table.rule("input", hop, payload("icmpv6", "type", one_of(_ND)), ACCEPT)
    table.rule("input", payload("icmpv6", "type", one_of(_MLD)), ACCEPT)
    # Errors about hafw's own untracked packets are not `related`; snapshots need them for PMTU.
    table.rule("input", payload("icmp", "type", one_of(_ICMP_ERRORS)), ACCEPT)
    table.rule("input", payload("icmpv6", "type", one_of(_ICMPV6_ERRORS)), ACCEPT)
    table.rule("input", meta("l4proto", "igmp"), ACCEPT)
    for family in (4, 6):
        if sources := address_in("saddr", site.policy.ssh_from, family):
            not_vip = payload("ip" if family == 4 else "ip6", "daddr", f"@vips{family}", "!=")
            table.rule("input", sources, not_vip, payload("tcp", "dport", 22), ACCEPT)


def _rule(table: TableWriter, site: Site, number: int, rule: Rule) -> None:
    comment = f"rules.{number}" + (f": {rule.comment}" if rule.comment else "")
    ingress = [zone for zone in rule.from_ if zone != "self"]
    egress = [zone for zone in rule.to if zone != "self"]
    ways: list[tuple[str, list[Expression]]] = []
    if ingress and egress:
        ways.append(("forward", [*_by(site, ingress, "in"), *_by(site, egress, "out")]))
    if ingress and "self" in rule.to:
        ways.append(("input", _by(site, ingress, "in")))
    if "self" in rule.from_ and egress:
        ways.append(("output", _by(site, egress, "out")))
    for chain, way in ways:
        for family, matches in rule_matches(site, rule):
            expressions = [*way, *matches, *rule.nft]
            if rule.log:
                prefix = cut_bytes(f"hafw {rule.comment or comment}", LOG_PREFIX_BYTES_MAX - 1)
                log: Expression = {"log": {"prefix": f"{prefix} "}}
                table.rule(chain, *expressions, _LOG_RATE, log, comment=comment)
            if rule.action == "reject" and chain == "input":
                _no_reject_to_vips(table, family, expressions, rule, comment)
            _verdict(table, chain, expressions, rule, comment)


def _by(site: Site, zones: Sequence[str], way: str) -> list[Expression]:
    """Devices of some zones: a named set for one, an anonymous one for several."""
    match = iifname if way == "in" else oifname
    if len(zones) == 1 or "any" in zones:
        zone = "any" if "any" in zones else zones[0]
        return [match(f"@{zone_set(zone, way)}")]
    segments = [segment for zone in zones for segment in site.zone_segments(zone)]
    devices = [site.device(segment) for segment in segments]
    if way == "in":
        devices += [d for segment in segments for d in site.virtual_devices(segment)]
    return [match(one_of(sorted(set(devices))))]


def _no_reject_to_vips(
    table: TableWriter, family: int | None, matches: list[Expression], rule: Rule, comment: str
) -> None:
    """A VIP must not answer for a flow whose entry is still on its way."""
    counter = count() if rule.counter else None
    for number, protocol in ((4, "ip"), (6, "ip6")):
        if family in (None, number):
            to_vip = payload(protocol, "daddr", f"@vips{number}")
            table.rule("input", *matches, to_vip, counter, DROP, comment=comment)


def _verdict(
    table: TableWriter, chain: str, matches: list[Expression], rule: Rule, comment: str
) -> None:
    counter = count() if rule.counter else None
    if rule.action == "accept":
        verdict = accept_as(rule.sync) if chain == "forward" else ACCEPT
        table.rule(chain, *matches, counter, verdict, comment=comment)
    elif rule.action == "drop":
        table.rule(chain, *matches, counter, DROP, comment=comment)
    else:
        protocol = _protocol_of(matches)
        if protocol in (None, "tcp"):
            tcp = meta("l4proto", "tcp") if protocol is None else None
            table.rule(chain, *matches, tcp, counter, _REJECT_TCP, comment=comment)
        if protocol != "tcp":
            table.rule(chain, *matches, counter, _REJECT, comment=comment)


def _protocol_of(matches: list[Expression]) -> str | None:
    """The protocol that the conditions imply; None if they leave it open."""
    for part in matches:
        left = part.get("match", {}).get("left", {})
        name = left.get("payload", {}).get("protocol")
        if name in (*_TRANSPORTS, "icmp", "icmpv6"):
            return str(name)
        if left.get("meta", {}).get("key") == "l4proto":
            return "other"  # Services give whole protocols; none of them is TCP.
    return None


_REJECT_TCP: Expression = {"reject": {"type": "tcp reset"}}
_REJECT: Expression = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}


def rule_matches(site: Site, rule: Rule) -> Iterator[tuple[int | None, list[Expression]]]:
    """The address and service conditions of a rule, one list for each nft rule it takes, and the
    family they imply (None: both)."""
    for family, addresses in _addresses(rule):
        for service_family, service in _services(site, rule):
            if family is None or service_family is None or family == service_family:
                yield family or service_family, [*addresses, *service]


def _addresses(rule: Rule) -> Iterator[tuple[int | None, list[Expression]]]:
    if rule.source is None and rule.destination is None:
        yield None, []
        return
    for family in (4, 6):
        matches: list[Expression] = []
        for field, networks in (("saddr", rule.source), ("daddr", rule.destination)):
            if networks is None:
                continue
            match = address_in(field, networks, family)
            if match is None:
                break
            matches.append(match)
        else:
            yield family, matches


def _services(site: Site, rule: Rule) -> Iterator[tuple[int | None, list[Expression]]]:
    if rule.services is None:
        yield None, []
        return
    found = [_service(site, name) for name in rule.services]
    for protocol in _TRANSPORTS:
        ports = [p for service in found for p in getattr(service, protocol)]
        if ports:
            yield None, [ports_in(protocol, "dport", ports)]
    for family, protocol in ((4, "icmp"), (6, "icmpv6")):
        types: list[Any] = sorted({t for service in found for t in getattr(service, protocol)})
        if types:
            yield family, [payload(protocol, "type", one_of(types))]
    protocols = sorted({p for service in found for p in service.protocols})
    if protocols:
        yield None, [meta("l4proto", one_of(protocols))]


def _service(site: Site, name: str) -> Service:
    own = site.policy.services.get(name)
    return own if own is not None else Service.model_validate(BUILT_IN[name])


def _accept_translated(table: TableWriter, site: Site, number: int, dnat: Dnat) -> None:
    """After the rules: a rule may drop some sources of a translated service first."""
    comment = f"nat.dnat.{number}" + (f": {dnat.comment}" if dnat.comment else "")
    ways = [d for s in dnat.on if s in site.segments for d in site.virtual_devices(s)]
    if not ways:
        return
    for target in dnat.to:
        family = target.address.version
        sources = None if dnat.source is None else address_in("saddr", dnat.source, family)
        ports = dnat.ports if target.port is None else [(target.port, target.port)]
        for protocol in dnat.protocol:
            table.rule(
                "forward",
                iifname(one_of(sorted(ways))),
                ct("status", "dnat", "in"),
                sources,
                address_in("daddr", [target.address], family),
                ports_in(protocol, "dport", ports),
                count(),
                accept_as(dnat.sync),
                comment=comment,
            )
