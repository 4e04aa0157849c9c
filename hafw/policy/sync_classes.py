"""`sync: delayed | never` of a rule: which flows syncd does not see, or not yet. Part of table
hafw_policy. Pure.

The class is the ct mark's place for a group: syncd, its dumps and snapshots look for flows by
group, and 0 there is "not replicated", as for the node's own flows. So such a flow can not be
half-replicated, and syncd knows nothing of classes. The group is taken away at the end of the
first packet's way, because translation asks for it (`hafw.policy.nat`); and the flow is silent
(`hafw.policy.event_masks`), until it is given back.

======================= ====================================================================
sync_never              accepts `never`; first packet: `hafw.flow.NEVER_MARK` beside the group
sync_delayed            accepts `delayed`; first packet: the group is kept once more in the
                        place of the owner chosen, and the flow is in the set delayed4 (6)
                        for `sync.delay_s`
sync_ungrouped (110)    postrouting after translation: the group goes
sync_ready              called by chain forward for flows that wait: once a packet finds its
                        flow no longer in the set, the mark is what it would have been from
                        the start, which is the event that syncd hears
======================= ====================================================================

TCP and UDP alone can wait: other flows of a delayed rule are published at once, and so is every
flow while the set is full. A waiting flow is looked up with each of its packets in the original
direction (a TCP flow once it is assured, and not at its end); others meet one comparison of the
mark. The sets are keyed by what the packet says in chain forward (destination translated, source
not yet), because nft 1.0.6 has no name for the type of `ct id` in JSON.
"""

from __future__ import annotations

from hafw.flow import (
    CHOSEN_SHIFT,
    GROUP_MASK,
    GROUP_SHIFT,
    MARK_MASK,
    NEVER_MARK,
    OWNER_MASK,
    USER_MARK_MASK,
    delayed_mark,
    hafw_mark,
)
from hafw.policy.event_masks import ESTABLISHED_EVENTS
from hafw.policy.expressions import (
    ACCEPT,
    Expression,
    TableWriter,
    ct,
    ct_mark_is,
    ct_status_lacks,
    event_set,
    family_is,
    goto,
    in_set,
    jump,
    mark_set,
    meta,
    one_of,
    set_add,
    tcp_flags,
)
from hafw.policy.site import Site

__all__ = ["DELAYED_SETS", "WAITING_MAX", "accept_as", "class_chains"]

NEVER, DELAYED, READY, UNGROUPED = "sync_never", "sync_delayed", "sync_ready", "sync_ungrouped"
DELAYED_SETS = {4: "delayed4", 6: "delayed6"}
WAITING_MAX = 131_072
"""Flows of a family in the set; what does not fit is published at once."""
_KEY_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
_RETURN: Expression = {"return": None}


def accept_as(sync: str) -> Expression:
    """The verdict of an accepting rule of chain forward."""
    return ACCEPT if sync == "always" else goto({"never": NEVER, "delayed": DELAYED}[sync])


def class_chains(table: TableWriter, site: Site) -> None:
    """Before any rule of chain forward."""
    given = {rule.sync for rule in site.policy.rules}
    given |= {dnat.sync for dnat in site.policy.nat.dnat}
    used = given - {"always"}
    _ready(table, site, delayed="delayed" in used)
    if not used:
        return
    grouped = ct_mark_is(GROUP_MASK, 0, "!=")
    table.base_chain(UNGROUPED, "postrouting", 110)
    no_owner = ct_mark_is(OWNER_MASK, 0)
    table.rule(UNGROUPED, no_owner, grouped, mark_set(0xFFFFFFFF & ~GROUP_MASK, 0))
    if "never" in used:
        table.chain(NEVER)
        keep = GROUP_MASK | USER_MARK_MASK
        table.rule(NEVER, grouped, event_set(), mark_set(keep, NEVER_MARK))
        table.rule(NEVER, ACCEPT)
    if "delayed" in used:
        _delayed(table, site)


def _delayed(table: TableWriter, site: Site) -> None:
    for family, name in DELAYED_SETS.items():
        address = _KEY_TYPES[family]
        of = ["inet_proto", address, address, "inet_service", "inet_service"]
        table.set(name, of, [], flags=["timeout"], size=WAITING_MAX)
    table.chain(DELAYED)
    _wait(table, site)
    table.rule(DELAYED, ACCEPT)


def _ready(table: TableWriter, site: Site, *, delayed: bool) -> None:
    """Without a delayed rule, too: flows may be waiting since a policy that had one."""
    table.chain(READY)
    waiting = [ct_mark_is(MARK_MASK & ~(0xF << CHOSEN_SHIFT), 0), ct_mark_is(MARK_MASK, 0, "!=")]
    table.rule("forward", *waiting, jump(READY))
    table.rule(READY, ct("direction", "reply"), _RETURN)
    table.rule(READY, tcp_flags(("fin", "rst"), (), "!="), _RETURN)
    table.rule(READY, meta("l4proto", "tcp"), ct_status_lacks("assured"), _RETURN)
    if delayed:
        for family, name in DELAYED_SETS.items():
            table.rule(READY, family_is(family), in_set(_key(family), name), _RETURN)
    for group in site.groups.values():
        mark = hafw_mark(group.index, site.node.id, site.node.id)
        table.rule(
            READY,
            ct_mark_is(MARK_MASK, delayed_mark(group.index)),
            event_set(*ESTABLISHED_EVENTS),
            mark_set(USER_MARK_MASK, mark),
        )


def _wait(table: TableWriter, site: Site) -> None:
    keep = GROUP_MASK | USER_MARK_MASK
    for group in site.groups.values():
        of_group = ct_mark_is(GROUP_MASK, group.index << GROUP_SHIFT)
        for family, name in DELAYED_SETS.items():
            table.rule(
                DELAYED,
                of_group,
                family_is(family),
                meta("l4proto", one_of(["tcp", "udp"])),
                # A full set ends the rule here.
                set_add(_key(family), name, timeout_s=site.cluster.sync.delay_s),
                event_set(),
                mark_set(keep, delayed_mark(group.index)),
            )


def _key(family: int) -> Expression:
    protocol = "ip" if family == 4 else "ip6"
    fields = [(protocol, "saddr"), (protocol, "daddr"), ("th", "sport"), ("th", "dport")]
    parts = [{"payload": {"protocol": of, "field": field}} for of, field in fields]
    return {"concat": [{"meta": {"key": "l4proto"}}, *parts]}
