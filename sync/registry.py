"""The registry: what this node knows of every replicated flow beyond what its kernel holds.

One `Record` a flow, owned or replica: its incarnation (which life of the tuple it is), its
ownership version, the contribution that its DESTROY must match, and what was last said of it.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from hafw.flow import (
    IPS_ASSURED,
    IPS_SEEN_REPLY,
    IPS_SEQ_ADJUST,
    USER_MARK_MASK,
    FlowEntry,
    FlowKey,
    SeqAdj,
    TcpState,
    Tuple,
    mark_group,
)
from sync.delta import Version, contribution
from sync.expect_table import ExpectTable

__all__ = ["PUBLISHED_STATUS", "Record", "Registry", "mutable_of"]

PUBLISHED_STATUS = IPS_SEEN_REPLY | IPS_ASSURED | IPS_SEQ_ADJUST
"""The status bits whose change is worth a delta."""

Mutable = tuple[int, int, int, tuple[SeqAdj, SeqAdj] | None]
"""What may change in a flow's life and is replicated: status bits, TCP state, user's mark bits,
sequence adjustment."""


def mutable_of(entry: FlowEntry) -> Mutable:
    state = -1 if entry.tcp is None else entry.tcp.state
    return entry.status & PUBLISHED_STATUS, state, entry.mark & USER_MARK_MASK, entry.seqadj


@dataclass(slots=True)
class Record:
    """One flow. `mark` is the whole ct mark as last seen; `tcp` the last TCP state known."""

    group: int
    incarnation: int
    version: Version
    contribution: int
    mutable: Mutable
    tcp: TcpState | None
    helper: str | None
    master: Tuple | None = None

    @property
    def seqadj(self) -> tuple[SeqAdj, SeqAdj] | None:
        return self.mutable[3]


class Registry:
    """Records by flow key, counted by group."""

    def __init__(self) -> None:
        self._records: dict[FlowKey, Record] = {}
        self._keys: dict[int, set[FlowKey]] = {}
        self._tcp_states: dict[TcpState, TcpState] = {}
        self.expectations = ExpectTable()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: FlowKey) -> bool:
        return key in self._records

    def get(self, key: FlowKey) -> Record | None:
        return self._records.get(key)

    def count(self, group: int) -> int:
        return len(self._keys.get(group, ()))

    def keys(self, group: int) -> set[FlowKey]:
        """The flows of a group: a copy, made without hashing them again."""
        return self._keys.get(group, set()).copy()

    def put(
        self, entry: FlowEntry, incarnation: int, version: Version, stored: int | None = None
    ) -> Record:
        """Remember a flow's new life, or its state as of `version`; `stored` is its contribution
        if that is known already."""
        key, group = entry.key, mark_group(entry.mark)
        old = self._records.get(key)
        if old is not None and old.group != group:
            self._keys[old.group].discard(key)
        if old is not None and old.incarnation != incarnation:
            self.expectations.remove_master(key)
        record = Record(
            group,
            incarnation,
            version,
            contribution(entry, incarnation) if stored is None else stored,
            mutable_of(entry),
            self.shared(entry.tcp),
            entry.helper,
            entry.master,
        )
        self._records[key] = record
        if old is None or old.group != group:
            self._keys.setdefault(group, set()).add(key)
        return record

    def remove(self, key: FlowKey) -> Record | None:
        record = self._records.pop(key, None)
        if record is not None:
            self._keys[record.group].discard(key)
            self.expectations.remove_master(key)
        return record

    def shared(self, tcp: TcpState | None) -> TcpState | None:
        """One object for all flows in an equal TCP state: there are few, and flows are many."""
        if tcp is None:
            return None
        if len(self._tcp_states) > 4096:
            self._tcp_states.clear()
        return self._tcp_states.setdefault(tcp, tcp)
