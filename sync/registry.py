"""The registry: what this node knows of every replicated flow beyond what its kernel holds.

One record a flow, owned or replica: its incarnation (which life of the tuple it is), its ownership
version, the contribution that its DESTROY must match, and what was last said of it. No tuples are
kept: a record is found by the flow's 64-bit hash, so that nobody can ask for the flows of a group;
who needs their tuples reads them from a dump of the kernel. What a pass or a snapshot has still to
do is kept as *flags* on the records: set for all of a group, cleared one by one, counted, and the
records that still have one dropped at the end.

`FlowRegistry` is the interface; `Registry` is the reference for it, one Python object a flow. What
few flows have (`Rich`) and expectations are Python objects in any implementation. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from hafw.flow import (
    IPS_ASSURED,
    IPS_SEEN_REPLY,
    IPS_SEQ_ADJUST,
    USER_MARK_MASK,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    Tuple,
    mark_group,
)
from sync.delta import Version
from sync.expect_table import ExpectTable
from sync.flowhash import BUCKETS, FlowHash, bucket_of

__all__ = [
    "PLAIN",
    "PUBLISHED_STATUS",
    "Digest",
    "Flag",
    "FlowRegistry",
    "Record",
    "Registry",
    "Rich",
    "rich_of",
]

PUBLISHED_STATUS = IPS_SEEN_REPLY | IPS_ASSURED | IPS_SEQ_ADJUST
"""The status bits whose change is worth a delta, and all that is kept."""

Digest = tuple[tuple[int, int], ...]
"""Of a group: for each bucket the sum of the contributions mod 2^64, and the count of flows."""


class Flag(IntEnum):
    """Bits of `Record.flags`. Plain integers (an IntFlag is slow): combine them with ``|``."""

    STALE = 1 << 0
    """Its windows in this kernel may be out of date."""
    UNSEEN = 1 << 1
    """Known before the snapshot under way, which has not named it yet; nor has the stream."""
    TOUCHED = 1 << 2
    """A live delta named it since a snapshot was asked for."""
    UNPASSED = 1 << 3
    """Known before our pass under way; neither its dump nor an event has shown it yet."""
    PASSED_BY = 1 << 4
    """An event named it since our pass began: the dump may be older."""
    ADOPTED = 1 << 5
    """Given a timeout by its state in a dump; a later event of it must give one again."""
    LIBERAL = 1 << 6
    """Ours, and its windows are still to be learnt."""
    UNVERIFIED = 1 << 7
    """Known when a verification began, and not shown by its dumps yet."""


@dataclass(frozen=True, slots=True)
class Rich:
    """What few flows have."""

    helper: str | None = None
    master: Tuple | None = None
    seqadj: tuple[SeqAdj, SeqAdj] | None = None
    labels: bytes | None = None
    """None also where all are zero."""
    sctp: SctpState | None = None
    synproxy: SynProxy | None = None


PLAIN = Rich()
"""Of every flow that is not rich: this one object."""


@dataclass(slots=True)
class Record:
    """One flow, as of the moment it was asked for: who holds one does not change it."""

    group: int
    incarnation: int
    version: Version
    contribution: int
    status: int
    """Its `PUBLISHED_STATUS` bits."""
    tcp_state: int
    """-1 if none is known."""
    user_mark: int
    """The low 16 bits of its mark."""
    flags: int
    rich: Rich

    @property
    def is_rich(self) -> bool:
        return self.rich is not PLAIN

    @property
    def helper(self) -> str | None:
        return self.rich.helper

    @property
    def master(self) -> Tuple | None:
        return self.rich.master

    @property
    def seqadj(self) -> tuple[SeqAdj, SeqAdj] | None:
        return self.rich.seqadj


def rich_of(entry: FlowEntry) -> Rich:
    """One shared object if the flow has none of it."""
    labels = entry.labels if entry.labels is not None and any(entry.labels) else None
    if (
        entry.helper is None
        and entry.master is None
        and entry.seqadj is None
        and labels is None
        and entry.sctp is None
        and entry.synproxy is None
    ):
        return PLAIN
    return Rich(entry.helper, entry.master, entry.seqadj, labels, entry.sctp, entry.synproxy)


class FlowRegistry(Protocol):
    """What syncd asks of its registry. `flag` and `flags` are bits of `Flag`, one or several."""

    hashes: FlowHash
    expectations: ExpectTable
    """A master that goes, or begins another life, takes its expectations along."""

    def __len__(self) -> int: ...

    def __contains__(self, key: FlowKey) -> bool: ...

    def get(self, key: FlowKey) -> Record | None: ...

    def count(self, group: int) -> int: ...

    def put(
        self,
        entry: FlowEntry,
        incarnation: int,
        version: Version,
        stored: int | None = None,
        *,
        add: int = 0,
        clear: int = 0,
    ) -> None:
        """Remember a flow's new life, or its state as of `version`; `stored` is its contribution
        if that is known already. Of a flow that was known in this group the flags stay, but for
        those of `clear`; those of `add` are set on any. An entry that does not say its TCP state
        leaves the one known of the same incarnation."""

    def remove(self, key: FlowKey) -> Record | None: ...

    def set(self, key: FlowKey, flags: int) -> bool:
        """False if the flow is not known."""

    def clear(self, key: FlowKey, flags: int) -> bool:
        """False if the flow is not known."""

    def set_all(
        self,
        group: int,
        flags: int,
        *,
        unless: int = 0,
        buckets: Collection[int] | None = None,
    ) -> int:
        """On all flows of the group, or of some buckets of it, that have none of the `unless`
        bits; the count of these flows."""

    def clear_all(self, group: int, flags: int) -> None: ...

    def count_flag(self, group: int, flag: int) -> int:
        """Flows of the group with this one flag."""

    def drop_flagged(self, group: int, flag: int) -> int:
        """Remove all flows of the group with this one flag; how many."""

    def digest(self, group: int) -> Digest: ...


class Registry:
    """The reference."""

    def __init__(self, hashes: FlowHash) -> None:
        self.hashes = hashes
        self.expectations = ExpectTable()
        self._groups: dict[int, dict[int, Record]] = {}
        self._group_of: dict[int, int] = {}
        self._flagged: dict[tuple[int, int], int] = {}
        self._sums: dict[int, list[int]] = {}
        self._counts: dict[int, list[int]] = {}
        self._newest: tuple[FlowKey | None, int] = None, 0

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, key: FlowKey) -> bool:
        return self._flow(key) in self._group_of

    def get(self, key: FlowKey) -> Record | None:
        return self._get(self._flow(key))

    def _flow(self, key: FlowKey) -> int:
        """Its hash; one event asks for the same flow several times."""
        if self._newest[0] is not key:
            self._newest = key, self.hashes.flow(key)
        return self._newest[1]

    def _get(self, flow: int) -> Record | None:
        group = self._group_of.get(flow)
        return None if group is None else self._groups[group][flow]

    def count(self, group: int) -> int:
        return len(self._groups.get(group, ()))

    def put(
        self,
        entry: FlowEntry,
        incarnation: int,
        version: Version,
        stored: int | None = None,
        *,
        add: int = 0,
        clear: int = 0,
    ) -> None:
        flow, group = self._flow(entry.key), mark_group(entry.mark)
        old = self._get(flow)
        flags, tcp_state = add, -1 if entry.tcp is None else entry.tcp.state
        if old is not None:
            if old.group == group:
                flags |= old.flags & ~clear
            if old.incarnation != incarnation:
                self.expectations.remove_master(entry.key)
            elif entry.tcp is None:
                tcp_state = old.tcp_state
            self._count_out(flow, old)
            if old.group != group:
                del self._groups[old.group][flow]
        if group not in self._groups:
            self._add_group(group)
        record = Record(
            group,
            incarnation,
            version,
            self.hashes.contribution(entry, incarnation) if stored is None else stored,
            entry.status & PUBLISHED_STATUS,
            tcp_state,
            entry.mark & USER_MARK_MASK,
            flags,
            rich_of(entry),
        )
        self._group_of[flow] = group
        self._groups[group][flow] = record
        bucket = bucket_of(flow)
        self._sums[group][bucket] += record.contribution
        self._counts[group][bucket] += 1
        if flags:
            self._count_flags(group, flags, 1)

    def _add_group(self, group: int) -> None:
        self._groups[group] = {}
        self._sums[group], self._counts[group] = [0] * BUCKETS, [0] * BUCKETS

    def remove(self, key: FlowKey) -> Record | None:
        flow = self._flow(key)
        record = self._get(flow)
        if record is not None:
            self._take_out(flow, record)
            self.expectations.remove_master(key)
        return record

    def _take_out(self, flow: int, record: Record) -> None:
        del self._group_of[flow]
        del self._groups[record.group][flow]
        self._count_out(flow, record)

    def _count_out(self, flow: int, record: Record) -> None:
        group, bucket = record.group, bucket_of(flow)
        self._sums[group][bucket] -= record.contribution
        self._counts[group][bucket] -= 1
        if record.flags:
            self._count_flags(group, record.flags, -1)

    def digest(self, group: int) -> Digest:
        if group not in self._groups:
            return ((0, 0),) * BUCKETS
        sums = (one & 0xFFFF_FFFF_FFFF_FFFF for one in self._sums[group])
        return tuple(zip(sums, self._counts[group], strict=True))

    # -- flags

    def set(self, key: FlowKey, flags: int) -> bool:
        record = self.get(key)
        if record is None:
            return False
        new = flags & ~record.flags
        if new:
            self._count_flags(record.group, new, 1)
            record.flags |= new
        return True

    def clear(self, key: FlowKey, flags: int) -> bool:
        record = self.get(key)
        if record is None:
            return False
        old = flags & record.flags
        if old:
            self._count_flags(record.group, old, -1)
            record.flags ^= old
        return True

    def set_all(
        self,
        group: int,
        flags: int,
        *,
        unless: int = 0,
        buckets: Collection[int] | None = None,
    ) -> int:
        meant = [
            record
            for flow, record in self._groups.get(group, {}).items()
            if not record.flags & unless and (buckets is None or bucket_of(flow) in buckets)
        ]
        for flag in Flag:
            if flags & flag:
                new = sum(not record.flags & flag for record in meant)
                self._flagged[group, flag] = self.count_flag(group, flag) + new
        for record in meant:
            record.flags |= flags
        return len(meant)

    def clear_all(self, group: int, flags: int) -> None:
        flags = sum(flag for flag in Flag if flags & flag and self.count_flag(group, flag))
        if not flags:
            return
        for record in self._groups[group].values():
            record.flags &= ~flags
        for flag in Flag:
            if flags & flag:
                self._flagged[group, flag] = 0

    def count_flag(self, group: int, flag: int) -> int:
        return self._flagged.get((group, flag), 0)

    def drop_flagged(self, group: int, flag: int) -> int:
        if not self.count_flag(group, flag):
            return 0
        gone = [
            (flow, record) for flow, record in self._groups[group].items() if record.flags & flag
        ]
        for flow, record in gone:
            self._take_out(flow, record)
        for master in self.expectations.masters():
            if master not in self:
                self.expectations.remove_master(master)
        return len(gone)

    def _count_flags(self, group: int, flags: int, by: int) -> None:
        while flags:
            flag = flags & -flags
            flags ^= flag
            self._flagged[group, flag] = self._flagged.get((group, flag), 0) + by
