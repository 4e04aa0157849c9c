"""The registry over the native table: 28 bytes a flow, and a Python object for few. Pure.

The table knows what every flow has. What it has no room for is in a side table: helper, master
and sequence adjustment, and a version that does not fit its numbers. Such flows, and the masters
of expectations, are marked rich, and whoever works on the table itself leaves them to this class.
"""

from __future__ import annotations

from collections.abc import Collection

from hafw.flow import USER_MARK_MASK, Expectation, FlowEntry, FlowKey, mark_group
from sync._codec import FlowTable
from sync.delta import Version
from sync.expect_table import ExpectTable
from sync.flowhash import FlowHash
from sync.registry import PLAIN, PUBLISHED_STATUS, Digest, Record, Rich, rich_of

__all__ = ["NativeRegistry"]

_COUNT_MAX = 0xFFFF
_TCP_STATE_MAX = 14
"""The kernel has 10; the slot keeps four bits, 15 for none."""


class _NativeHash(FlowHash):
    """The same hashes, computed by the table."""

    def __init__(self, secret: bytes, table: FlowTable) -> None:
        super().__init__(secret)
        self._table = table

    def flow(self, key: FlowKey) -> int:
        return self._table.hash(key)

    def contribution(self, entry: FlowEntry, incarnation: int) -> int:
        return self._table.contribution(entry, incarnation)


class _MarkedExpectations(ExpectTable):
    """Marks each master in the table, so that it does not go without its expectations."""

    def __init__(self, table: FlowTable) -> None:
        super().__init__()
        self._table = table

    def put(self, expectation: Expectation) -> bool:
        done = super().put(expectation)
        if done:
            self._table.mark_rich(expectation.master)
        return done


class NativeRegistry:
    """A `FlowRegistry`."""

    def __init__(self, hashes: FlowHash) -> None:
        self.table = FlowTable(hashes.secret)
        self.hashes: FlowHash = _NativeHash(hashes.secret, self.table)
        self.expectations: ExpectTable = _MarkedExpectations(self.table)
        self._side: dict[int, tuple[Rich, Version | None]] = {}
        self._newest: tuple[FlowKey | None, int] = None, 0

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, key: FlowKey) -> bool:
        return self._flow(key) in self.table

    def _flow(self, key: FlowKey) -> int:
        """Its hash; one event asks for the same flow several times."""
        if self._newest[0] is not key:
            self._newest = key, self.table.hash(key)
        return self._newest[1]

    def get(self, key: FlowKey) -> Record | None:
        flow = self._flow(key)
        return self._record(flow, self.table.get(flow))

    def _record(
        self,
        flow: int,
        known: tuple[int, int, int, int, int, int, int, int, int, bool] | None,
    ) -> Record | None:
        if known is None:
            return None
        group, incarnation, epoch, count, stored, status, tcp_state, mark, flags, rich = known
        more, version = self._side.get(flow, (PLAIN, None)) if rich else (PLAIN, None)
        return Record(
            group,
            incarnation,
            Version(epoch, count) if version is None else version,
            stored,
            status,
            tcp_state,
            mark,
            flags,
            more,
        )

    def count(self, group: int) -> int:
        return self.table.count(group)

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
        key, table = entry.key, self.table
        flow = self._flow(key)
        if len(self.expectations) and self.expectations.of(key):
            old = table.get(flow)
            if old is not None and old[1] != incarnation:
                self.expectations.remove_master(key)
        rich = rich_of(entry)
        expects = len(self.expectations) > 0 and bool(self.expectations.of(key))
        state = -1 if entry.tcp is None else min(entry.tcp.state, _TCP_STATE_MAX)
        if stored is None:
            stored = table.contribution(entry, incarnation)

        def put(at: Version, *, is_rich: bool) -> bool:
            return table.put(
                flow,
                mark_group(entry.mark),
                incarnation,
                at.epoch,
                at.count,
                stored,
                entry.status & PUBLISHED_STATUS,
                state,
                entry.mark & USER_MARK_MASK,
                is_rich,
                add,
                clear,
            )

        kept: Version | None = None
        if version.count > _COUNT_MAX or not put(version, is_rich=expects or rich is not PLAIN):
            kept = version
            put(Version(0, 0), is_rich=True)
        if kept is not None or rich is not PLAIN:
            self._side[flow] = rich, kept
        elif self._side:
            self._side.pop(flow, None)

    def remove(self, key: FlowKey) -> Record | None:
        flow = self._flow(key)
        record = self._record(flow, self.table.remove(flow))
        if record is not None:
            self._side.pop(flow, None)
            self.expectations.remove_master(key)
        return record

    def digest(self, group: int) -> Digest:
        return self.table.digest(group)

    # -- flags

    def set(self, key: FlowKey, flags: int) -> bool:
        return self.table.set(self._flow(key), flags)

    def clear(self, key: FlowKey, flags: int) -> bool:
        return self.table.clear(self._flow(key), flags)

    def set_all(
        self,
        group: int,
        flags: int,
        *,
        unless: int = 0,
        buckets: Collection[int] | None = None,
    ) -> int:
        return self.table.set_all(group, flags, unless=unless, buckets=buckets)

    def clear_all(self, group: int, flags: int) -> None:
        self.table.clear_all(group, flags)

    def count_flag(self, group: int, flag: int) -> int:
        return self.table.count_flag(group, flag)

    def drop_flagged(self, group: int, flag: int) -> int:
        count, rich = self.table.drop_flagged(group, flag)
        for flow in rich:
            self._side.pop(flow, None)
        for master in self.expectations.masters() if rich else ():
            if master not in self:
                self.expectations.remove_master(master)
        return count
