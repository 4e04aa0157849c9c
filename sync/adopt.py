"""The owner's passes over its own entries, fed by a dump. Pure.

One kind of pass serves four ends, since each means "make what the peers know equal to what the
kernel has": taking a group over (adoption), repairing an overrun, refreshing the peers' hold
timeouts, and recovering from a restart. For each entry of the dump:

* *stale TCP* is replaced by a pristine entry of its own state (DESIGN section 4, rule 1);
* a replica becomes ours: owner and chosen bits of the mark, and the normal timeout in place of
  the hold, unless an event of the flow came meanwhile, for then a packet has set it already;
* it is published if the peers do not know it so, under the group's epoch.

A dump lags behind the events: a flow that an event named since the pass began (`touched`) is left
to its events. What the registry knew and the dump did not show is looked up once more and, if it
is really gone, destroyed for the peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hafw.flow import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPS_ASSURED,
    MARK_MASK,
    TCP_FLAG_BE_LIBERAL,
    TCP_STATES,
    USER_MARK_MASK,
    FlowEntry,
    FlowKey,
    hafw_mark,
    mark_owner,
)
from hafw.human import epoch_node
from sync.ops import Adopt, KernelOp, Pristine
from sync.publish import PublishEffect, Publisher, publishable
from sync.registry import Registry
from sync.replica import ReplicaGroup

__all__ = ["TIMEOUT_SYSCTLS", "OwnPass", "PassOutput", "normal_timeout_s"]

TIMEOUT_SYSCTLS = {
    **{
        f"tcp_{state.lower()}": f"nf_conntrack_tcp_timeout_{state.lower()}"
        for state in TCP_STATES
        if state not in ("NONE", "SYN_SENT2")
    },
    "udp": "nf_conntrack_udp_timeout",
    "udp_stream": "nf_conntrack_udp_timeout_stream",
    "icmp": "nf_conntrack_icmp_timeout",
    "icmpv6": "nf_conntrack_icmpv6_timeout",
    "generic": "nf_conntrack_generic_timeout",
}
"""Kind of timeout -> file in /proc/sys/net/netfilter."""
_FALLBACK_S = 600


def normal_timeout_s(entry: FlowEntry, timeouts_s: Mapping[str, int]) -> int:
    """What the kernel gives a flow in this state when a packet refreshes it."""
    match entry.key.orig.proto:
        case proto if proto == IPPROTO_TCP:
            state = "NONE" if entry.tcp is None else TCP_STATES[entry.tcp.state]
            kind = f"tcp_{state.lower()}"
        case proto if proto == IPPROTO_UDP:
            kind = "udp_stream" if entry.status & IPS_ASSURED else "udp"
        case proto if proto == IPPROTO_ICMP:
            kind = "icmp"
        case proto if proto == IPPROTO_ICMPV6:
            kind = "icmpv6"
        case _:
            kind = "generic"
    return timeouts_s.get(kind, timeouts_s.get("generic", _FALLBACK_S))


@dataclass(frozen=True, slots=True)
class PassOutput:
    """What one chunk of the dump asks for: kernel writes first, then publications."""

    ops: list[KernelOp]
    publications: list[PublishEffect]
    again: list[FlowKey]
    """Stale flows of which an event came since: the dump may be older than a FIN, and replacing
    by it would take the FIN back. To be looked up, and given to `on_entries` as `current`."""


class OwnPass:
    """One pass over the entries of one held group."""

    def __init__(
        self,
        number: int,
        epoch: int,
        *,
        node_id: int,
        registry: Registry,
        group: ReplicaGroup,
        publisher: Publisher,
        timeouts_s: Mapping[str, int],
        liberal: set[FlowKey],
        refresh: bool,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self._node_id = node_id
        self._mark = hafw_mark(number, node_id, node_id)
        self._registry = registry
        self._group = group
        self._publisher = publisher
        self._timeouts_s = timeouts_s
        self._liberal = liberal
        self._refresh = refresh
        self._touched: set[FlowKey] = set()
        self._unseen = registry.keys(number)
        self.adopted: set[FlowKey] = set()
        """Flows given a normal timeout by their state in the dump; a later event of theirs must
        give the timeout again (the dump may have been older than a FIN)."""
        self.replacing = group.suspect or bool(group.stale)
        self.entries = 0

    def touch(self, key: FlowKey) -> None:
        """A packet's event named this flow."""
        self._touched.add(key)

    def on_entries(self, entries: list[FlowEntry], *, current: bool = False) -> PassOutput:
        ops: list[KernelOp] = []
        publications: list[PublishEffect] = []
        again: list[FlowKey] = []
        for entry in entries:
            self.entries += 1
            self._unseen.discard(entry.key)
            if not current and entry.key in self._touched and self._to_replace(entry):
                again.append(entry.key)
                continue
            ops += self._own(entry)
            if entry.key not in self._touched:
                publications += self._publisher.publish(
                    replace(entry, mark=self._own_mark(entry.mark)),
                    self.epoch,
                    refresh=self._refresh,
                    looked_up=True,
                )
        return PassOutput(ops, publications, again)

    def vanished(self) -> list[FlowKey]:
        """After the dump: known, not shown by it, not named since. To be looked up."""
        if self.replacing:
            self._group.suspect = False
            self._group.stale.clear()
        return [key for key in self._unseen if key not in self._touched and key in self._registry]

    def _own(self, entry: FlowEntry) -> list[KernelOp]:
        key, tcp = entry.key, entry.tcp
        record = self._registry.get(key)
        if self._to_replace(entry):
            self._group.stale.discard(key)
            self._liberal.add(key)
            timeout_s = normal_timeout_s(entry, self._timeouts_s)
            return [Pristine(replace(entry, mark=self._own_mark(entry.mark), timeout_s=timeout_s))]
        if tcp is not None and (tcp.flags_orig | tcp.flags_reply) & TCP_FLAG_BE_LIBERAL:
            self._liberal.add(key)
        is_replica = record is not None and epoch_node(record.version.epoch) != self._node_id
        if mark_owner(entry.mark) == self._node_id and not is_replica:
            return []
        if key in self._touched:
            return [Adopt(key, self._mark, None)]
        self.adopted.add(key)
        return [Adopt(key, self._mark, normal_timeout_s(entry, self._timeouts_s))]

    def _to_replace(self, entry: FlowEntry) -> bool:
        key, group = entry.key, self._group
        stale = key in group.stale or (group.suspect and key not in self._registry)
        return stale and key.orig.proto == IPPROTO_TCP and publishable(entry)

    def _own_mark(self, mark: int) -> int:
        return self._mark & MARK_MASK | mark & USER_MARK_MASK
