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

from sync.applier import Applier
from sync.delays import Delays
from sync.delta import Delta, DeltaError
from sync.dumper import Dumper
from sync.fetch import Fetch, Phase, Source
from sync.inbox import Arrived, Incoming
from sync.intake import Intake
from sync.patience import TABLE_FULL_ERRNOS, Patience
from sync.registry import Flag, FlowRegistry
from sync.replica import Compared, Hole, ReplicaGroup, ReplicaTable, Superseded
from sync.roles import RoleState
from sync.snapshot_client import SnapshotClient
from sync.snapshot_wire import (
    SnapshotChunk,
    SnapshotEnd,
    SnapshotHead,
    SnapshotRefused,
    SnapshotReply,
)
from sync.stream import SessionAccepted, StreamBroken, StreamReceiver
from sync.upkeep import Upkeep

if TYPE_CHECKING:
    from sync._codec import Receiver

__all__ = ["Follower", "FollowerPorts"]

NO_PROGRESS_S = 3.0


@dataclass(frozen=True, slots=True)
class FollowerPorts:
    """What the follower needs of the process around it. `superseded` must have told the roles
    (and so `ReplicaGroup.epoch`) when it returns."""

    superseded: Callable[[Superseded], None]
    start_sweep: Callable[[int], Dumper]
    """Its chunks are as `Intake.sweep` takes them."""
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
        self.intake = Intake(self.table, applier, receiver)
        self.upkeep = Upkeep(
            registry, roles, applier,
            start_dump=ports.start_sweep, pass_over=self.intake.pass_over,
            is_whole=lambda group: group in self.sources,
        )  # fmt: skip
        self.sources: dict[int, Source] = {}
        """Group -> its last finished snapshot, as long as nothing spoilt it."""
        self.delays = Delays()
        self.refusals: dict[int, str] = {}
        """Group -> errno name, since its last whole snapshot, if it is not a full table's."""
        self._fetch: Fetch | None = None
        self.patience = Patience()
        self.counters: Counter[str] = Counter()

    # -- the stream

    def on_incoming(self, item: Incoming, *, now: float) -> None:
        """Collects kernel operations; `flush` carries them out."""
        match item:
            case Arrived():
                self.counters["deltas_received"] += self.intake.live(
                    item.payload, item.deltas, item.epoch, item.sender_id,
                    lambda delta: self._on_delta(delta, item, now),
                )  # fmt: skip
                self.delays.arrived(item.sender_id, item.delay_from_ns)
            case SessionAccepted(sender_id):
                self._spoil(sender_id, now)
            case StreamBroken(sender_id):
                self.counters["stream_broken"] += 1
                self._spoil(sender_id, now)

    def note_taken(self) -> None:
        """Live deltas were taken natively."""
        self.counters["deltas_received"] += self.intake.note_taken()

    def flush(self, *, now: float) -> None:
        """Apply what was collected; then the stream's position is the applied position."""
        if self.intake.flush():
            for key, code in self._applier.take_refused().items():
                record = self._registry.get(key)
                if record is not None and not self._groups[record.group].active:
                    self.counters["replicas_refused"] += 1
                    if code == errno.EEXIST and record.group in self.sources:
                        # Another flow has one of its tuples, for now: the next digest asks again.
                        self.upkeep.watches[record.group].note_missing()
                    elif code in TABLE_FULL_ERRNOS:
                        self.patience.table_full(record.group, now=now)
                        self.sources.pop(record.group, None)
                    else:
                        self.refusals[record.group] = errno.errorcode.get(code, str(code))
                        self._lost(record.group)
                    self.table.forget(key)
        self.delays.applied(self._ports.clock_ns(), now=now)

    def _on_delta(self, delta: Delta, item: Arrived, now: float) -> None:
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
                case Compared(group):
                    self._on_compared(effect, item.seq, now)
                case Superseded():
                    raise AssertionError("the roles did not learn the epoch")
                case _:
                    self.intake.ask(effect)

    def _on_compared(self, result: Compared, seq: int, now: float) -> None:
        if result.group not in self.sources:
            return
        watch = self.upkeep.watches[result.group]
        hopeless = watch.hopeless
        watch.compared(result.first, result.count, set(result.wrong), seq=seq, now=now)
        if watch.hopeless and not hopeless:
            del self.sources[result.group]  # Counted by the watch.

    def _spoil(self, sender_id: int, now: float) -> None:
        """What we have of this sender is not whole any more."""
        for group in [g for g, source in self.sources.items() if source.holder_id == sender_id]:
            del self.sources[group]
        if self._fetch is not None and self._fetch.holder_id == sender_id:
            self._abort("stream_changed", now)

    def _lost(self, group: int) -> None:
        """A replica was refused: another snapshot, but not at once again and again."""
        self.sources.pop(group, None)
        self.patience.replicas_refused(group)
        if self._fetch is not None and self._fetch.group == group:
            self._fetch.spoilt = True  # It may have gone after the snapshot brought it.

    # -- roles

    def on_held(self, group: int, *, now: float) -> None:
        """This node holds the group now: nobody else's snapshot counts."""
        if self._fetch is not None and self._fetch.group == group:
            self._abort("held_here", now)
        self.upkeep.stop(group)
        self.sources.pop(group, None)
        self.patience.held(group)
        self.refusals.pop(group, None)

    def on_stale(self, group: int, *, now: float) -> int:
        """The count of the group's flows, all stale now."""
        if self._fetch is not None and self._fetch.group == group:
            self._abort("became_stale", now)
        self.upkeep.stop(group)
        self.sources.pop(group, None)
        count = self.table.mark_stale(group)
        self.counters["entries_gone_stale"] += count
        return count

    def on_follow(self, group: int, holder_id: int, *, now: float) -> None:
        fetch = self._fetch
        if fetch is not None and fetch.group == group and fetch.holder_id != holder_id:
            self._abort("other_holder", now)
        self.patience.other_holder(group)

    def fetch_anew(self, group: int, *, now: float) -> None:
        """Somebody wants a full snapshot of a group that another node holds."""
        if self._fetch is not None and self._fetch.group == group:
            self._abort("by_hand", now, next_link=False)
        self.sources.pop(group, None)

    # -- snapshots

    @property
    def busy(self) -> bool:
        sweep = None if self._fetch is None else self._fetch.sweep
        return self.upkeep.busy or (sweep is not None and (sweep.ready or sweep.done))

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
        self.upkeep.work(now=now)
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
            self._no_progress(fetch, now)

    def _no_progress(self, fetch: Fetch, now: float) -> None:
        """The connection is broken: go on over the next link, or begin anew later."""
        holder_id, group = fetch.holder_id, fetch.group
        if fetch.may_resume():
            self.patience.links[holder_id] += 1
            link, fetch.progress_at = self.patience.links[holder_id], now
            if self._client.go_on(holder_id, group, attempt=link, have=fetch.chunks):
                return
        self._abort("no_progress", now)

    def close(self) -> None:
        self.upkeep.close()
        if self._fetch is not None and self._fetch.sweep is not None:
            self._fetch.sweep.cancel()
        self._client.close()

    def _ask_next(self, now: float) -> None:
        for group in sorted(self._groups):
            whole = self.wants_snapshot(group)
            watch = self.upkeep.watches[group]
            buckets = None if whole else self._to_repair(group)
            if not (whole or buckets) or not self.patience.may_ask(group, now=now):
                continue
            holder_id = self._roles[group].holder_id
            session = self._stream.accepted_session(holder_id)
            assert session is not None
            self.patience.asked(group, now=now)
            if buckets is None:
                self.upkeep.stop(group)
            else:
                watch.repair_begins()
            self.table.await_snapshot(group, buckets)
            self._fetch = Fetch(group, holder_id, session, Phase.ASKED, now, buckets=buckets)
            if not self._client.ask(
                holder_id, group, attempt=self.patience.links[holder_id], buckets=buckets,
                failures=watch.failures,
            ):  # fmt: skip
                self._abort("no_socket", now)
            return

    def _to_repair(self, group: int) -> frozenset[int]:
        """Buckets that differ from what the holder of this snapshot has."""
        source, state = self.sources.get(group), self._roles[group]
        if source is None or state.active or source.holder_id != state.holder_id:
            return frozenset()
        return self.upkeep.watches[group].to_repair

    def _on_reply(self, fetch: Fetch, message: SnapshotReply, now: float) -> None:
        fetch.progress_at = now
        self.patience.answered(fetch.holder_id)
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
                fetch.end_seq = message.seq
                fetch.phase = Phase.SWEEPING
                fetch.sweep = self._ports.start_sweep(fetch.group)
                self._client.credit(fetch.chunks, done=True)
                self._client.close()

    def _on_chunk(self, fetch: Fetch, chunk: SnapshotChunk, now: float) -> None:
        if fetch.head is None or chunk.index != fetch.chunks:
            self._abort("chunk_out_of_turn", now)
            return
        try:
            deltas = self.intake.read(chunk.deltas, fetch.head.epoch)
        except DeltaError as error:
            self.counters[f"quarantined_{error.reason}"] += 1
            self._abort("chunk_undecodable", now)
            return
        self.counters["snapshot_entries"] += self.intake.snapshot(
            chunk.deltas, deltas, fetch.head.epoch, fetch.group
        )
        self.flush(now=now)
        fetch.chunks += 1
        fetch.resumed = 0
        self._client.credit(fetch.chunks)

    def _sweep(self, fetch: Fetch, now: float) -> None:
        """Delete what the kernel has of the group and nobody knows."""
        assert fetch.sweep is not None
        assert fetch.head is not None
        chunk = fetch.sweep.take_any()
        if chunk is not None:
            fetch.progress_at = now
            self.flush(now=now)
            self.counters["orphans_deleted"] += self.intake.sweep(chunk, fetch.group)
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
            self._done(fetch, fetch.head)

    def _done(self, fetch: Fetch, head: SnapshotHead) -> None:
        watch, group = self.upkeep.watches[fetch.group], fetch.group
        if fetch.buckets is not None:
            watch.repair_ends(fetch.buckets, self._groups[group].repaired, seq=fetch.end_seq)
            self.counters["repairs_done"] += 1
        else:
            watch.begin_anew(seq=fetch.end_seq)
            if group not in self.patience.table_full_until and not fetch.spoilt:
                self.sources[group] = Source(fetch.holder_id, fetch.session, head.seq)
                self.refusals.pop(group, None)
            self.counters["snapshots_done"] += 1
        self.patience.done(group)
        self._fetch = None

    def _abort(self, reason: str, now: float, *, next_link: bool = True) -> None:
        fetch = self._fetch
        assert fetch is not None
        if fetch.sweep is not None:
            fetch.sweep.cancel()
        if next_link:
            self._client.close()
        self.table.abort_snapshot(fetch.group)
        self.upkeep.watches[fetch.group].repair_failed()
        self._fetch = None
        self.counters[f"snapshot_aborted_{reason}"] += 1
        if next_link:
            self.patience.failed(fetch.group, now=now)
        else:
            self.patience.refused_by_server(fetch.group, now=now)
        if reason == "no_progress":
            asked = fetch.phase is Phase.ASKED
            self.patience.no_progress(fetch.holder_id, unanswered=asked)
