"""What the owner says of its flows: conntrack events and dumps in, deltas out. Pure.

An event is published if its entry belongs to a group that this node holds, whatever the owner bits
of its mark say (after a takeover they still name the node before, until adoption rewrites them),
and was not made by ourselves. TCP and SCTP are published from ASSURED on: a replica in SYN_SENT
would drop the client's packets for ever, and a SYN flood replicates nothing. Other protocols are
published at once. A DESTROY goes out only for what was published.

Identity: the first publication draws the flow's incarnation. Its version is (epoch, 0), `epoch`
being the group's when the event was read; a flow that was published under an older epoch moves up
with its next delta, which is what adoption is to the peers.

What an event leaves out (the state of TCP or SCTP, the master of an expected flow, sequence
adjustment, labels on a node that sets any) and the peers need is looked up first. Expectations are
said under their master's identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from hafw.flow import (
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPS_ASSURED,
    IPS_EXPECTED,
    IPS_SEQ_ADJUST,
    TCP_STATES,
    USER_MARK_MASK,
    Expectation,
    FlowEntry,
    FlowKey,
    mark_group,
)
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import (
    Delta,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    Upsert,
    Version,
)
from sync.registry import PUBLISHED_STATUS, FlowRegistry, Record, Rich, rich_of

__all__ = ["LookUp", "PublishEffect", "Publisher", "RandomBits", "publishable"]


class RandomBits(Protocol):
    """Where incarnations come from; `random.SystemRandom` in the daemon."""

    def getrandbits(self, bits: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class LookUp:
    """The event lacks what its first delta needs: GET the entry and `publish` it."""

    key: FlowKey
    epoch: int


PublishEffect = Delta | LookUp
_FROM_ASSURED_ON = frozenset({IPPROTO_TCP, IPPROTO_SCTP})
_OVER = (TCP_STATES.index("TIME_WAIT"), TCP_STATES.index("CLOSE"))
_OPEN = TCP_STATES.index("ESTABLISHED")


def publishable(entry: FlowEntry) -> bool:
    """Is this flow worth a replica yet?"""
    return bool(entry.status & IPS_ASSURED) or entry.key.orig.proto not in _FROM_ASSURED_ON


def _stateless(entry: FlowEntry) -> bool:
    proto = entry.key.orig.proto
    return (proto == IPPROTO_TCP and entry.tcp is None) or (
        proto == IPPROTO_SCTP and entry.sctp is None
    )


def _with_known(entry: FlowEntry, known: Rich) -> FlowEntry:
    """An event carries these only when they changed, master and sequence adjustment never."""
    return replace(
        entry,
        helper=entry.helper if entry.helper is not None else known.helper,
        seqadj=entry.seqadj if entry.seqadj is not None else known.seqadj,
        master=entry.master if entry.master is not None else known.master,
        labels=entry.labels if entry.labels is not None else known.labels,
        sctp=entry.sctp if entry.sctp is not None else known.sctp,
        synproxy=entry.synproxy if entry.synproxy is not None else known.synproxy,
    )


def _lacks_seqadj(entry: FlowEntry) -> bool:
    return bool(entry.status & IPS_SEQ_ADJUST) and entry.seqadj is None


def _is_as_said(entry: FlowEntry, record: Record) -> bool:
    """Nothing that is replicated and may change has changed."""
    return (
        entry.status & PUBLISHED_STATUS == record.status
        and (entry.tcp is None or entry.tcp.state == record.tcp_state)
        and entry.mark & USER_MARK_MASK == record.user_mark
        and rich_of(entry) == record.rich
    )


def _is_reborn(entry: FlowEntry, record: Record) -> bool:
    """A TCP flow that was over and is open: nf_conntrack_proto_tcp.c takes none back; a SYN makes
    another flow of the same tuples. Its NEW is not heard (`sync.event_filter`), and the DESTROY
    of the old one may have been lost."""
    return entry.tcp is not None and entry.tcp.state <= _OPEN and record.tcp_state in _OVER


class Publisher:
    """The owner's side of the registry."""

    def __init__(self, registry: FlowRegistry, rng: RandomBits) -> None:
        self._registry = registry
        self._rng = rng
        self.labelled = False
        """This node sets labels. No event but that of the change carries them, so that each flow
        is looked up before its first word."""
        self.counters: Counter[str] = Counter()

    def on_event(self, event: CtEvent, held: Mapping[int, int]) -> list[PublishEffect]:
        """`held` is group -> epoch of the groups this node holds *now*, when it reads the event.
        Events of our own making must have been taken out by their port id."""
        entry = event.entry
        epoch = held.get(mark_group(entry.mark))
        if epoch is None:
            return []
        match event.kind:
            case EventKind.DESTROY:
                return self.destroyed(entry.key, epoch)
            case EventKind.NEW:
                # The kernel makes an entry anew: whatever had this tuple before is gone, even
                # if its DESTROY was lost.
                return [*self.destroyed(entry.key, epoch), *self.publish(entry, epoch)]
            case EventKind.UPDATE:
                return self.publish(entry, epoch)

    def publish(
        self,
        entry: FlowEntry,
        epoch: int,
        *,
        refresh: bool = False,
        looked_up: bool = False,
    ) -> list[PublishEffect]:
        """The delta, if any, that brings the peers' view of `entry` up to date. `refresh`: say it
        even if nothing changed. `looked_up`: the entry is whole, as a GET or a dump shows it."""
        if entry.labels is not None and not any(entry.labels):
            entry = replace(entry, labels=None)  # As the kernel says it, but in events.
        record = self._registry.get(entry.key)
        if record is None:
            return self._first(entry, epoch, looked_up=looked_up)
        said = entry
        if record.is_rich:
            entry = _with_known(entry, record.rich)
        stored = self._registry.hashes.contribution(entry, record.incarnation)
        if stored != record.contribution or _is_reborn(entry, record):
            # The tuple was re-used while we were not listening (overrun): a new life.
            self.counters["reused_unheard"] += 1
            entry = replace(said, helper=entry.helper)
            gone = self.destroyed(entry.key, epoch)
            return [*gone, *self._first(entry, epoch, looked_up=looked_up)]
        current = record.version.epoch == epoch
        lacking = _lacks_seqadj(entry)
        if current and not refresh and not lacking and _is_as_said(entry, record):
            return []
        if not looked_up and (lacking or _stateless(entry)):
            self.counters["lookups"] += 1
            return [LookUp(entry.key, epoch)]
        version = record.version if current else Version(epoch, 0)
        self._registry.put(entry, record.incarnation, version, record.contribution)
        self.counters["updates"] += 1
        return [Upsert(entry, record.incarnation, version, refresh and current)]

    def destroyed(self, key: FlowKey, epoch: int) -> list[PublishEffect]:
        """The flow is gone from this kernel."""
        record = self._registry.remove(key)
        if record is None:
            return []
        self.counters["destroys"] += 1
        return [Destroy(key, record.incarnation, self._at(record, epoch), record.contribution)]

    def expected(
        self, expectation: Expectation, epoch: int, *, refresh: bool = False
    ) -> list[PublishEffect]:
        """The delta, if any, for an expectation whose master is published already."""
        record = self._registry.get(expectation.master)
        if record is None or expectation.master.orig.family != expectation.expected.family:
            self.counters["expectations_unsayable"] += 1
            return []
        known = self._registry.expectations.get(expectation.key)
        news = known is None or replace(known, timeout_s=expectation.timeout_s) != expectation
        if not (news or refresh) or not self._registry.expectations.put(expectation):
            return []
        self.counters["expectations"] += 1
        version = self._at(record, epoch)
        return [ExpectUpsert(expectation, record.incarnation, version, refresh and not news)]

    def unexpected(self, key: FlowKey, epoch: int) -> list[PublishEffect]:
        """The expectation is gone from this kernel, its master is not."""
        gone = self._registry.expectations.remove(key)
        record = None if gone is None else self._registry.get(gone.master)
        if gone is None or record is None:
            return []
        self.counters["expectations_gone"] += 1
        version = self._at(record, epoch)
        return [ExpectDestroy(gone.master, gone.expected, record.incarnation, version)]

    def _first(self, entry: FlowEntry, epoch: int, *, looked_up: bool) -> list[PublishEffect]:
        if not publishable(entry):
            return []
        stateless = _stateless(entry)
        orphan = bool(entry.status & IPS_EXPECTED) and entry.master is None
        if not looked_up and (stateless or orphan or self.labelled or _lacks_seqadj(entry)):
            self.counters["lookups"] += 1
            return [LookUp(entry.key, epoch)]
        if stateless:
            return []
        incarnation = self._rng.getrandbits(32)
        version = Version(epoch, 0)
        self._registry.put(entry, incarnation, version)
        self.counters["first"] += 1
        return [Upsert(entry, incarnation, version, False)]

    @staticmethod
    def _at(record: Record, epoch: int) -> Version:
        return record.version if record.version.epoch == epoch else Version(epoch, 0)
