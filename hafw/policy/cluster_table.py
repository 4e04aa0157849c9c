"""Table hafw_cluster: what the cluster itself needs of nftables, whatever the policy says. Pure.

====================== ========================================================================
raw_prerouting (-300)   hafw's own packets between peers are not tracked; spoofed sources drop
raw_output (-300)       hafw's own packets are not tracked
prerouting (-150)       after conntrack, before NAT, entry unconfirmed: in a hand-over no new flow;
                        the mark of a flow that comes by a virtual MAC device; which events of
                        it become messages (`hafw.policy.event_masks`)
forward (-10)           untracked, invalid, first packets that came another way than by a virtual
                        MAC device
input (-10)             to a VIP: invalid, or first by another way: dropped in silence, because a
                        stack without the entry would answer with a RST from the VIP. A flow that
                        ends here is the node's own: its mark goes back to 0 (never replicated)
output (-10)            a flow of the node's own, too: like that one it is silent
====================== ========================================================================

Every drop has a named counter. A drop here holds, whatever another table accepts.
"""

from __future__ import annotations

from hafw.flow import MARK_MASK, USER_MARK_MASK, hafw_mark
from hafw.policy.event_masks import at_ends, mask_chain, silence
from hafw.policy.expressions import (
    ACCEPT,
    DROP,
    Expression,
    TableWriter,
    address_in,
    count,
    ct,
    ct_mark_is,
    ct_not_confirmed,
    ct_state,
    iifname,
    mark_set,
    meta,
    one_of,
    payload,
)
from hafw.policy.own_protocols import arriving, leaving, peer_sets
from hafw.policy.site import Site

__all__ = [
    "COUNTERS",
    "GATE_HANDOVER_MARK",
    "TABLE",
    "cluster_table",
]

TABLE = "hafw_cluster"
GATE_HANDOVER_MARK = 0x4841
"""The skb mark of a packet let in while accept is open and announce is not; the gate program sets
it (cluster/gate.py has the same name; a test holds the two equal)."""

COUNTERS = {
    "handover": "first packets during a planned hand-over",
    "spoofed": "packets whose source belongs to another segment",
    "other_way": "first packets that came another way than by a virtual MAC device",
    "invalid": "forwarded packets that conntrack finds invalid",
    "untracked": "packets to be forwarded that are not tracked: no rule knows their flow",
    "vip_invalid": "packets to a VIP that conntrack finds invalid",
}
"""Named counters of the table and what each counts."""

NOTRACK: Expression = {"notrack": None}


def cluster_table(site: Site) -> TableWriter:
    """The table for one gateway."""
    table = TableWriter(TABLE)
    for name in COUNTERS:
        table.counter(name)
    for family, of in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        table.set(f"vips{family}", of, [str(vip) for vip in site.all_vips(family)])
    virtual = sorted({d for segment in site.segments for d in site.virtual_devices(segment)})
    table.set("virtual", "ifname", virtual)
    peer_sets(table, site)
    table.base_chain("raw_prerouting", "prerouting", -300)
    table.base_chain("raw_output", "output", -300)
    table.base_chain("prerouting", "prerouting", -150)
    table.base_chain("forward", "forward", -10)
    table.base_chain("input", "input", -10)
    table.base_chain("output", "output", -10)
    _spoofed(table, site)
    _notrack(table, site)
    _prerouting(table, site)
    _forward(table)
    _input(table)
    mask_chain(table)
    return table


def _notrack(table: TableWriter, site: Site) -> None:
    table.rule("raw_prerouting", iifname("@virtual"), ACCEPT)  # Nothing of hafw's comes that way.
    for matches in arriving(site):
        table.rule("raw_prerouting", *matches, NOTRACK)
    for matches in leaving(site):
        table.rule("raw_output", *matches, NOTRACK)


def _spoofed(table: TableWriter, site: Site) -> None:
    """A source of one segment's networks may not come in by another segment or by a link. Not by
    `fib saddr . iif`: routes are by the physical device, packets come by the virtual one."""
    links = sorted(config.device for config in site.node.links.values())
    for segment in site.segments:
        others = [
            device
            for other in site.segments
            if other != segment
            for device in (site.device(other), *site.virtual_devices(other))
        ]
        for family in (4, 6):
            sources = address_in("saddr", site.networks(segment), family)
            if sources is not None:
                ways = one_of([*others, *links])
                table.rule("raw_prerouting", iifname(ways), sources, count("spoofed"), DROP)


def _prerouting(table: TableWriter, site: Site) -> None:
    # A flow that has an entry goes on, one-way UDP (always `new`) too: only first packets wait.
    handover = [ct_state("new"), ct_not_confirmed(), meta("mark", GATE_HANDOVER_MARK)]
    table.rule("prerouting", *handover, count("handover"), DROP)
    for group in site.groups.values():
        mark = hafw_mark(group.index, site.node.id, site.node.id)
        devices = sorted(group.device(s) for s in group.vips if s in site.node.segments)
        # Only `new`: an ICMP error is `related` to a live flow and must never rewrite its mark.
        table.rule(
            "prerouting",
            ct_state("new"),
            iifname(one_of(devices)),
            ct("direction", "original"),
            ct_mark_is(MARK_MASK, 0),
            mark_set(USER_MARK_MASK, mark),
        )
    table.rule("prerouting", *at_ends())


def _forward(table: TableWriter) -> None:
    table.rule("forward", ct_state("untracked"), count("untracked"), DROP)
    table.rule("forward", ct_state("invalid"), count("invalid"), DROP)
    table.rule("forward", iifname("@virtual", "!="), ct_state("new"), count("other_way"), DROP)


def _input(table: TableWriter) -> None:
    for protocol, vips in (("ip", "@vips4"), ("ip6", "@vips6")):
        to_vip = payload(protocol, "daddr", vips)
        table.rule("input", to_vip, ct_state("invalid"), count("vip_invalid"), DROP)
        way = [iifname("lo", "!="), iifname("@virtual", "!=")]
        table.rule("input", to_vip, *way, ct_state("new"), count("other_way"), DROP)
    table.rule(
        "input", ct_state("new"), ct_mark_is(MARK_MASK, 0, "!="), mark_set(USER_MARK_MASK, 0)
    )
    for chain in ("input", "output"):
        table.rule(chain, *silence())
