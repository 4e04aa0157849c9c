"""Table hafw_policy, NAT part. Pure.

Both nat chains are always there, even if empty: without one the kernel would not translate the
packets of replicas (the NAT hooks come with the first nat chain of the namespace).

A source is translated to the VIP of the *group that the flow came by*, told by the ct mark that
hafw_cluster has set: the answer must come back to the same virtual MAC. A flow without a group's
mark is the node's own and is not translated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hafw.config.model import GroupConfig
from hafw.flow import GROUP_MASK, GROUP_SHIFT
from hafw.policy.expressions import (
    Expression,
    TableWriter,
    address_in,
    count,
    ct_mark_is,
    family_is,
    iifname,
    oifname,
    ports_in,
)
from hafw.policy.filter import zone_set
from hafw.policy.model import Dnat, Masquerade, Snat
from hafw.policy.site import Ip, Net, Site

__all__ = ["nat_part"]


def nat_part(table: TableWriter, site: Site) -> None:
    """The chains and their rules."""
    table.base_chain("nat_prerouting", "prerouting", -100, of="nat")
    table.base_chain("nat_postrouting", "postrouting", 100, of="nat")
    for number, dnat in enumerate(site.policy.nat.dnat):
        comment = _comment(f"nat.dnat.{number}", dnat.comment)
        for group in site.groups.values():
            for segment in dnat.on:
                if segment in group.vips and segment in site.segments:
                    _dnat(table, site, dnat, group, segment, comment)
    for number, snat in enumerate(site.policy.nat.snat):
        _source(table, site, snat, _comment(f"nat.snat.{number}", snat.comment))
    for number, masquerade in enumerate(site.policy.nat.masquerade):
        comment = _comment(f"nat.masquerade.{number}", masquerade.comment)
        _source(table, site, masquerade, comment)


def _comment(path: str, comment: str | None) -> str:
    return f"{path}: {comment}" if comment else path


def _protocol(family: int) -> str:
    return "ip" if family == 4 else "ip6"


def _dnat(
    table: TableWriter, site: Site, dnat: Dnat, group: GroupConfig, segment: str, comment: str
) -> None:
    for target in dnat.to:
        family = target.address.version
        vips = [
            vip for vip in site.vips(group, segment, family) if dnat.vip is None or vip in dnat.vip
        ]
        to_vip = address_in("daddr", vips, family)
        sources = None if dnat.source is None else address_in("saddr", dnat.source, family)
        if to_vip is None:
            continue
        made: dict[str, object] = {"family": _protocol(family), "addr": str(target.address)}
        if target.port is not None:
            made["port"] = target.port
        for protocol in dnat.protocol:
            table.rule(
                "nat_prerouting",
                iifname(group.device(segment)),
                sources,
                to_vip,
                ports_in(protocol, "dport", dnat.ports),
                count(),
                {"dnat": made},
                comment=comment,
            )


def _source(table: TableWriter, site: Site, rule: Masquerade, comment: str) -> None:
    for zone in rule.from_:
        for way in rule.to:
            for segment in site.zone_segments(way):
                for match, family, address in _addresses(site, rule, segment):
                    sources = _limit("saddr", rule.source, family)
                    destinations = _limit("daddr", rule.destination, family)
                    if sources is None or destinations is None:
                        continue
                    table.rule(
                        "nat_postrouting",
                        iifname(f"@{zone_set(zone, 'in')}"),
                        oifname(site.device(segment)),
                        family_is(family),
                        match,
                        *sources,
                        *destinations,
                        count(),
                        {"snat": {"family": _protocol(family), "addr": str(address)}},
                        comment=comment,
                    )


def _limit(field: str, networks: Sequence[Net] | None, family: int) -> list[Expression] | None:
    """No condition for no list; None if the list has nothing of the family."""
    if networks is None:
        return []
    match = address_in(field, networks, family)
    return None if match is None else [match]


def _addresses(site: Site, rule: Masquerade, segment: str) -> Iterator[tuple[Expression, int, Ip]]:
    """(which flows, family, new source): a VIP only for flows of its own group."""
    for group in site.groups.values():
        of_group = ct_mark_is(GROUP_MASK, group.index << GROUP_SHIFT)
        for family in (4, 6):
            vips = site.vips(group, segment, family)
            if isinstance(rule, Snat):
                chosen = [a for a in rule.address if a.version == family]
                elsewhere = [
                    vip for g in site.groups.values() for s in g.vips for vip in g.vips[s]
                ]
                chosen = [a for a in chosen if a in vips or a not in elsewhere]
            else:
                chosen = vips[:1]
            for address in chosen:
                yield of_group, family, address
