"""The owner's passes over its own entries, fed by a dump. Pure.

One kind of pass serves four ends, since each means "make what the peers know equal to what the
kernel has": taking a group over (adoption), repairing an overrun, refreshing the peers' hold
timeouts, and recovering from a restart. For each entry of the dump:

* *stale TCP* is replaced by a pristine entry of its own state (DESIGN section 4, rule 1);
* a replica becomes ours: owner and chosen bits of the mark, and the normal timeout in place of
  the hold, unless an event of the flow came meanwhile, for then a packet has set it already;
* it is published if the peers do not know it so, under the group's epoch.

A dump lags behind the events: a flow that an event named since the pass began (PASSED_BY, or dead
by its DESTROY) is left to its events. What the registry knew when the pass began and neither the
dump nor an event has shown (UNPASSED) has vanished, once the event queue is empty too: its DESTROY
was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hafw.flow import (
    IPPROTO_GRE,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    IPS_ASSURED,
    MARK_MASK,
    SCTP_STATES,
    TCP_FLAG_BE_LIBERAL,
    TCP_STATES,
    USER_MARK_MASK,
    FlowEntry,
    FlowKey,
    hafw_mark,
    mark_owner,
)
from hafw.human import epoch_node
from sync.ctnetlink import CtEvent, EventKind
from sync.ops import Adopt, KernelOp, Pristine
from sync.publish import PublishEffect, Publisher, publishable
from sync.registry import Flag, FlowRegistry, Record
from sync.replica import ReplicaGroup

__all__ = [
    "DEAD_MAX",
    "SIP_TIMEOUT",
    "TIMEOUT_SYSCTLS",
    "OwnPass",
    "PassOutput",
    "is_liberal",
    "normal_timeout_s",
]

DEAD_MAX = 1 << 20
"""Deaths during one pass that are remembered; after more it must begin again."""

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
    **{
        f"sctp_{state.lower()}": f"nf_conntrack_sctp_timeout_{state.lower()}"
        for state in SCTP_STATES
        if state != "NONE"
    },
    "generic": "nf_conntrack_generic_timeout",
}
"""Kind of timeout -> file in /proc/sys/net/netfilter."""
SIP_TIMEOUT = "/sys/module/nf_conntrack_sip/parameters/sip_timeout"
"""The kind ``sip``: what its helper gives a UDP flow with each of its packets."""
_FALLBACK_S = 600
_SCTP_ESTABLISHED = SCTP_STATES.index("ESTABLISHED")


def normal_timeout_s(
    entry: FlowEntry, timeouts_s: Mapping[str, int], *, tcp_state: int = -1
) -> int:
    """What the kernel gives a flow in this state when a packet refreshes it; `tcp_state` is the
    last one known, for an entry that does not say it."""
    match entry.key.orig.proto:
        case proto if proto == IPPROTO_TCP:
            state = tcp_state if entry.tcp is None else entry.tcp.state
            kind = f"tcp_{TCP_STATES[max(state, 0)].lower()}"
        case proto if proto == IPPROTO_UDP and entry.helper == "sip":
            kind = "sip"
        case proto if proto in (IPPROTO_UDP, IPPROTO_UDPLITE):
            kind = "udp_stream" if entry.status & IPS_ASSURED else "udp"
        case proto if proto == IPPROTO_ICMP:
            kind = "icmp"
        case proto if proto == IPPROTO_ICMPV6:
            kind = "icmpv6"
        case proto if proto == IPPROTO_SCTP:
            state = _SCTP_ESTABLISHED if entry.sctp is None else entry.sctp.state
            kind = f"sctp_{SCTP_STATES[state].lower()}"
        case _:
            kind = "generic"
    return timeouts_s.get(kind, timeouts_s.get("generic", _FALLBACK_S))


def is_liberal(entry: FlowEntry) -> bool:
    tcp = entry.tcp
    return tcp is not None and bool((tcp.flags_orig | tcp.flags_reply) & TCP_FLAG_BE_LIBERAL)


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
        registry: FlowRegistry,
        group: ReplicaGroup,
        publisher: Publisher,
        timeouts_s: Mapping[str, int],
        liberal: Callable[[FlowKey], None],
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
        self._dead: set[int] = set()
        registry.clear_all(number, Flag.PASSED_BY)
        registry.set_all(number, Flag.UNPASSED)
        self.replacing = group.suspect or registry.count_flag(number, Flag.STALE) > 0
        self.entries = 0
        self.adopted = 0

    def touch(self, event: CtEvent) -> bool:
        """A packet's event named this flow, and has been published. False if the pass cannot
        remember it: begin another."""
        key = event.entry.key
        if self._registry.set(key, Flag.PASSED_BY):
            self._registry.clear(key, Flag.UNPASSED)
        if event.kind is EventKind.DESTROY and publishable(event.entry):
            # What was never worth a replica is not said anyway.
            return self.bury(self._registry.hashes.flow(key))
        return True

    def bury(self, flow: int) -> bool:
        """The flow of this hash is gone; the dump may still show it. False as `touch`."""
        if len(self._dead) >= DEAD_MAX:
            return False
        self._dead.add(flow)
        return True

    def on_entries(self, entries: list[FlowEntry], *, current: bool = False) -> PassOutput:
        ops: list[KernelOp] = []
        publications: list[PublishEffect] = []
        again: list[FlowKey] = []
        for entry in entries:
            self.entries += 1
            key = entry.key
            record = self._registry.get(key)
            if record is None and self._dead and self._registry.hashes.flow(key) in self._dead:
                continue
            touched = record is not None and bool(record.flags & Flag.PASSED_BY)
            replaces = self._to_replace(entry, record)
            if touched and replaces and not current:
                again.append(key)
                continue
            adopt = None if replaces else self._own(entry, record, touched=touched)
            if replaces:
                ops.append(self._pristine(entry))
            elif adopt is not None:
                ops.append(adopt)
            if not touched:
                publications += self._publisher.publish(
                    replace(entry, mark=self._own_mark(entry.mark)),
                    self.epoch,
                    refresh=self._refresh,
                    looked_up=True,
                )
                self._registry.clear(key, Flag.UNPASSED)
            if adopt is not None and adopt.timeout_s is not None:
                # By its state in the dump, which may be older than a FIN.
                self._registry.set(key, Flag.ADOPTED)
                self.adopted += 1
            if replaces or is_liberal(entry):
                self._liberal(key)
        return PassOutput(ops, publications, again)

    def finish(self) -> None:
        """The dump is through, and all it asked for is done. What is UNPASSED once the event
        queue is empty has vanished."""
        if self.replacing:
            self._group.suspect = False
            self._registry.clear_all(self.number, Flag.STALE)
        self._registry.clear_all(self.number, Flag.PASSED_BY)

    def _pristine(self, entry: FlowEntry) -> Pristine:
        self._registry.clear(entry.key, Flag.STALE)
        timeout_s = normal_timeout_s(entry, self._timeouts_s)
        return Pristine(replace(entry, mark=self._own_mark(entry.mark), timeout_s=timeout_s))

    def _own(self, entry: FlowEntry, record: Record | None, *, touched: bool) -> Adopt | None:
        is_replica = record is not None and epoch_node(record.version.epoch) != self._node_id
        if mark_owner(entry.mark) == self._node_id and not is_replica:
            return None
        fixed = entry.key.orig.proto == IPPROTO_GRE  # EPERM; `sync.ctnetlink_build` says why.
        timeout_s = None if touched or fixed else normal_timeout_s(entry, self._timeouts_s)
        return Adopt(entry.key, self._mark, timeout_s)

    def _to_replace(self, entry: FlowEntry, record: Record | None) -> bool:
        stale = self._group.suspect if record is None else bool(record.flags & Flag.STALE)
        return stale and entry.key.orig.proto == IPPROTO_TCP and publishable(entry)

    def _own_mark(self, mark: int) -> int:
        return self._mark & MARK_MASK | mark & USER_MARK_MASK
