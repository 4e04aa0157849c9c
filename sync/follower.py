"""The follower's side of syncd: deltas and snapshots into the kernel.

A snapshot of a group is wanted whenever what this kernel holds of it is not known to be what its
holder has: the holder (or the run of its syncd) is another than that of the last finished
snapshot, datagrams were lost for good, entries are stale or unknown, or replicas were deleted by
somebody else. One is fetched at a time::

    idle --ask--> asked --head--> receiving --end--> sweeping --dump done--> idle (done)
      ^                                                                        |
      +---- refused, no progress for 3 s, stream broken, role changed ---------+ (again, later,
                                                                     over the next link)
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hafw.errors import KernelError
from hafw.flow import mark_group
from sync.applier import Applier
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import Delta, DeltaError
from sync.dumper import Dumper
from sync.fetch import Fetch, Phase, Source
from sync.inbox import Arrived, Incoming
from sync.intake import Intake
from sync.ledger import DelayWindow
from sync.ops import KernelOp, Remove
from sync.registry import Flag, FlowRegistry
from sync.replica import Hole, ReplicaGroup, ReplicaTable, Superseded
from sync.roles import RoleState
from sync.snapshot import (
    SnapshotChunk,
    SnapshotEnd,
    SnapshotHead,
    SnapshotRefused,
    SnapshotReply,
)
from sync.snapshot_client import SnapshotClient
from sync.stream import SessionAccepted, StreamBroken, StreamReceiver

if TYPE_CHECKING:
    from sync._codec import Receiver

__all__ = ["Follower", "FollowerPorts"]

NO_PROGRESS_S = 3.0
RETRY_S = 0.1
RETRY_S_MAX = 2.0
TABLE_FULL_RETRY_S = 5.0
TABLE_FULL_ERRNOS = frozenset({errno.ENOMEM, errno.ENFILE, errno.ENOSPC, errno.ENOBUFS})
"""ctnetlink says ENOMEM when nf_conntrack_alloc finds the table full."""
DROPPED_RETRY_S = 5.0
"""Between two snapshots wanted because replicas went from this kernel: they may go on going."""


@dataclass(frozen=True, slots=True)
class FollowerPorts:
    """What the follower needs of the process around it. `superseded` must have told the roles
    (and so `ReplicaGroup.epoch`) when it returns."""

    superseded: Callable[[Superseded], None]
    start_dump: Callable[[int], Dumper]
    clock_ns: Callable[[], int]


class Follower:
    """Everything syncd does for the groups that others hold."""

    def __init__(
        self,
        *,
        registry: FlowRegistry,
        groups: dict[int, ReplicaGroup],
        roles: dict[int, RoleState],
        applier: Applier,
        stream: StreamReceiver,
        client: SnapshotClient,
        ports: FollowerPorts,
        receiver: Receiver | None = None,
    ) -> None:
        self._registry = registry
        self._groups = groups
        self._roles = roles
        self._applier = applier
        self._stream = stream
        self._client = client
        self._ports = ports
        self.table = ReplicaTable(registry, groups)
        self._intake = Intake(self.table, applier, receiver)
        self.sources: dict[int, Source] = {}
        """Group -> its last finished snapshot, as long as nothing spoilt it."""
        self.delays: dict[int, DelayWindow] = {}
        self.table_full_until: dict[int, float] = {}
        self.refusals: dict[int, str] = {}
        """Group -> errno name, since its last whole snapshot, if it is not a full table's."""
        self._fetch: Fetch | None = None
        self._attempts: Counter[int] = Counter()
        self._links: Counter[int] = Counter()
        """Holder -> the link to ask it over: one that works is kept, one that does not is left."""
        self.unanswered: Counter[int] = Counter()
        """Holder -> requests in a row to which it said nothing at all."""
        self._retry_at: dict[int, float] = {}
        self._dropped: set[int] = set()
        """Groups of which replicas went without our doing since the last request."""
        self._dropped_retry_at: dict[int, float] = {}
        self._stamps: list[tuple[int, int]] = []
        self.counters: Counter[str] = Counter()

    # -- the stream

    def on_incoming(self, item: Incoming, *, now: float) -> None:
        """Collects kernel operations; `flush` carries them out."""
        match item:
            case Arrived():
                self.counters["deltas_received"] += self._intake.live(
                    item.payload, item.deltas, item.epoch, item.sender_id,
                    lambda delta: self._on_delta(delta, item),
                )  # fmt: skip
                if item.delay_from_ns:
                    self._stamps.append((item.sender_id, item.delay_from_ns))
            case SessionAccepted(sender_id):
                self._spoil(sender_id, now)
            case StreamBroken(sender_id):
                self.counters["stream_broken"] += 1
                self._spoil(sender_id, now)

    def flush(self, *, now: float) -> None:
        """Apply what was collected; then the stream's position is the applied position."""
        if self._intake.flush():
            for key, code in self._applier.take_refused().items():
                record = self._registry.get(key)
                if record is not None and not self._groups[record.group].active:
                    self.counters["replicas_refused"] += 1
                    if code in TABLE_FULL_ERRNOS:
                        self.table_full_until[record.group] = now + TABLE_FULL_RETRY_S
                        self.sources.pop(record.group, None)
                    else:
                        self.refusals[record.group] = errno.errorcode.get(code, str(code))
                        self._lost(record.group)
                    self.table.forget(key)
        if self._stamps:
            now_ns = self._ports.clock_ns()
            for sender_id, sent_ns in self._stamps:
                window = self.delays.setdefault(sender_id, DelayWindow())
                window.add((now_ns - sent_ns) / 1e6, now)
            self._stamps.clear()

    def _on_delta(self, delta: Delta, item: Arrived) -> None:
        effects = self.table.on_delta(delta, item.sender_id)
        if effects and isinstance(effects[0], Superseded):
            self._ports.superseded(effects[0])
            effects = self.table.on_delta(delta, item.sender_id)
        for effect in effects:
            match effect:
                case Hole(group):
                    source = self.sources.get(group)
                    if source is not None and item.seq > source.seq:
                        del self.sources[group]
                case Superseded():
                    raise AssertionError("the roles did not learn the epoch")
                case _:
                    self._intake.ask(effect)

    def _spoil(self, sender_id: int, now: float) -> None:
        """What we have of this sender is not whole any more."""
        for group in [g for g, source in self.sources.items() if source.holder_id == sender_id]:
            del self.sources[group]
        if self._fetch is not None and self._fetch.holder_id == sender_id:
            self._abort("stream_changed", now)

    # -- events of groups that are not held

    def on_events(self, events: list[CtEvent]) -> None:
        """A replica that goes without our doing leaves a hole."""
        for event in events:
            key = event.entry.key
            record = self._registry.get(key)
            if event.kind is not EventKind.DESTROY or record is None:
                continue
            if self._roles[record.group].dirty:
                continue  # Ours until another holds: our next pass tells the peers it is gone.
            try:
                if self._applier.get(key) is not None:
                    continue  # It was made again since.
            except KernelError:
                continue
            self.table.forget(key)
            self.counters["replicas_deleted_by_others" if event.pid else "replicas_expired"] += 1
            self._lost(record.group)

    def _lost(self, group: int) -> None:
        """A replica is not here: another snapshot, but not at once again and again."""
        self.sources.pop(group, None)
        self._dropped.add(group)
        if self._fetch is not None and self._fetch.group == group:
            self._fetch.spoilt = True  # It may have gone after the snapshot brought it.

    # -- roles

    def on_held(self, group: int, *, now: float) -> None:
        """This node holds the group now: nobody else's snapshot counts."""
        if self._fetch is not None and self._fetch.group == group:
            self._abort("held_here", now)
        self.sources.pop(group, None)
        self.table_full_until.pop(group, None)
        self.refusals.pop(group, None)

    def on_stale(self, group: int, *, now: float) -> int:
        """The count of the group's flows, all stale now."""
        if self._fetch is not None and self._fetch.group == group:
            self._abort("became_stale", now)
        self.sources.pop(group, None)
        count = self.table.mark_stale(group)
        self.counters["entries_gone_stale"] += count
        return count

    def on_follow(self, group: int, holder_id: int, *, now: float) -> None:
        fetch = self._fetch
        if fetch is not None and fetch.group == group and fetch.holder_id != holder_id:
            self._abort("other_holder", now)
        self._retry_at.pop(group, None)
        self._dropped.discard(group)

    # -- snapshots

    @property
    def busy(self) -> bool:
        sweep = None if self._fetch is None else self._fetch.sweep
        return sweep is not None and (sweep.ready or sweep.done)

    def whole(self, sender_id: int) -> bool:
        """Is everything here that this sender has said of the groups it holds?"""
        return not any(
            state.holder_id == sender_id and self.wants_snapshot(group)
            for group, state in self._roles.items()
        )

    def phase(self, group: int) -> Phase:
        fetch = self._fetch
        return fetch.phase if fetch is not None and fetch.group == group else Phase.IDLE

    def wants_snapshot(self, group: int) -> bool:
        state = self._roles[group]
        holder_id = state.holder_id
        session = self._stream.accepted_session(holder_id) if holder_id else None
        if state.active or session is None:
            return False
        replica = self._groups[group]
        source = self.sources.get(group)
        return (
            source is None
            or (source.holder_id, source.session) != (holder_id, session)
            or replica.suspect
            or self._registry.count_flag(group, Flag.STALE) > 0
        )

    def work(self, *, now: float) -> None:
        """One slice: a message of the server, a chunk of the sweep, or the next request."""
        fetch = self._fetch
        if fetch is None:
            self._ask_next(now)
            return
        if fetch.phase is Phase.SWEEPING:
            self._sweep(fetch, now)
        else:
            message = self._client.receive()
            if message is not None:
                self._on_reply(fetch, message, now)
        if self._fetch is fetch and now - fetch.progress_at > NO_PROGRESS_S:
            self._abort("no_progress", now)

    def close(self) -> None:
        if self._fetch is not None and self._fetch.sweep is not None:
            self._fetch.sweep.cancel()
        self._client.close()

    def _ask_next(self, now: float) -> None:
        for group in sorted(self._groups):
            blocked_until = max(
                self._retry_at.get(group, 0.0), self.table_full_until.get(group, 0.0)
            )
            if group in self._dropped:
                blocked_until = max(blocked_until, self._dropped_retry_at.get(group, 0.0))
            if now < blocked_until or not self.wants_snapshot(group):
                continue
            if group in self._dropped:
                self._dropped.discard(group)
                self._dropped_retry_at[group] = now + DROPPED_RETRY_S
            holder_id = self._roles[group].holder_id
            session = self._stream.accepted_session(holder_id)
            assert session is not None
            self.table_full_until.pop(group, None)
            self.table.await_snapshot(group)
            self._fetch = Fetch(group, holder_id, session, Phase.ASKED, now)
            if not self._client.ask(holder_id, group, attempt=self._links[holder_id]):
                self._abort("no_socket", now)
            return

    def _on_reply(self, fetch: Fetch, message: SnapshotReply, now: float) -> None:
        fetch.progress_at = now
        self.unanswered[fetch.holder_id] = 0
        match message:
            case SnapshotRefused():
                self._abort("refused", now, next_link=False)
            case SnapshotHead():
                known = self._groups[fetch.group].epoch
                if (message.node_id, message.session) != (fetch.holder_id, fetch.session):
                    self._abort("other_session", now)
                elif message.epoch < known:
                    self._abort("older_epoch", now)
                else:
                    self.table.begin_snapshot(fetch.group)
                    fetch.head, fetch.phase = message, Phase.RECEIVING
            case SnapshotChunk():
                self._on_chunk(fetch, message, now)
            case SnapshotEnd():
                if fetch.head is None or message.chunks != fetch.chunks:
                    self._abort("chunks_missing", now)
                    return
                self.flush(now=now)
                self._applier.apply(self.table.end_snapshot(fetch.group))
                fetch.phase = Phase.SWEEPING
                fetch.sweep = self._ports.start_dump(fetch.group)
                self._client.close()

    def _on_chunk(self, fetch: Fetch, chunk: SnapshotChunk, now: float) -> None:
        if fetch.head is None or chunk.index != fetch.chunks:
            self._abort("chunk_out_of_turn", now)
            return
        try:
            deltas = self._intake.read(chunk.deltas, fetch.head.epoch)
        except DeltaError as error:
            self.counters[f"quarantined_{error.reason}"] += 1
            self._abort("chunk_undecodable", now)
            return
        self.counters["snapshot_entries"] += self._intake.snapshot(
            chunk.deltas, deltas, fetch.head.epoch, fetch.group
        )
        self.flush(now=now)
        fetch.chunks += 1
        self._client.credit(fetch.chunks)

    def _sweep(self, fetch: Fetch, now: float) -> None:
        """Delete what the kernel has of the group and nobody knows."""
        assert fetch.sweep is not None
        assert fetch.head is not None
        chunk = fetch.sweep.take()
        if chunk is not None:
            fetch.progress_at = now
            self.flush(now=now)
            orphans: list[KernelOp] = [
                Remove(entry.key)
                for entry in chunk
                if mark_group(entry.mark) == fetch.group
                and self.table.is_orphan(entry, fetch.group)
            ]
            self.counters["orphans_deleted"] += len(orphans)
            self._applier.apply(orphans)
        elif fetch.sweep.done:
            if fetch.sweep.error is not None:
                self._abort("sweep_failed", now)
                return
            found = fetch.sweep.expectations
            self.flush(now=now)
            self._applier.apply(self.table.expected_orphans(found, fetch.group))
            if self._groups[fetch.group].dead_unknown:
                self.counters["snapshot_too_many_deaths"] += 1
                fetch.spoilt = True
            self.table.snapshot_swept(fetch.group)
            if fetch.group not in self.table_full_until and not fetch.spoilt:
                self.sources[fetch.group] = Source(fetch.holder_id, fetch.session, fetch.head.seq)
                self.refusals.pop(fetch.group, None)
            self._attempts[fetch.group] = 0
            self.counters["snapshots_done"] += 1
            self._fetch = None

    def _abort(self, reason: str, now: float, *, next_link: bool = True) -> None:
        fetch = self._fetch
        assert fetch is not None
        if fetch.sweep is not None:
            fetch.sweep.cancel()
        if next_link:
            self._client.close()
        self.table.abort_snapshot(fetch.group)
        self._fetch = None
        self.counters[f"snapshot_aborted_{reason}"] += 1
        if next_link:
            self._attempts[fetch.group] += 1
        if reason == "no_progress":
            self._links[fetch.holder_id] += 1
            self.unanswered[fetch.holder_id] += fetch.phase is Phase.ASKED
        wait = RETRY_S * (1 << min(self._attempts[fetch.group], 5)) if next_link else RETRY_S
        self._retry_at[fetch.group] = now + min(wait, RETRY_S_MAX)
