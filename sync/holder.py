"""The holder's side of syncd: events out, passes over the own table, liberal flows made strict.

Work comes in slices (`work`), one chunk of a dump or a few look-ups each, so that the beacon and
the receive side go on between them. What a pass does is in `sync.adopt`; when one is wanted:

========== ==========================================================================
take       the group was taken over: adopt, say all, find lost, also what has lost its mark
repair     events were lost (ENOBUFS), or not read because leased was silent for a while
refresh    every `sync.refresh_s`, for the hold timeouts of the replicas
recover    this process began on the ACTIVE node: look whether there is anything to
           recover, ask leased for a new epoch (the peers know the flows by other
           incarnations), then take
========== ==========================================================================
"""

from __future__ import annotations

import errno
from collections import Counter

from hafw.config.model import ClusterConfig
from hafw.errors import KernelError
from hafw.flow import GROUP_SHIFT, FlowEntry, mark_group
from hafw.messages import NewEpochRequest, SyncPassStatus
from sync.adopt import OwnPass, PassOutput, normal_timeout_s
from sync.applier import Applier
from sync.ctnetlink import CtEvent, EventKind, ExpectEvent
from sync.digests import say_digest
from sync.expecting import Expecting
from sync.held import Held, HolderPorts
from sync.labels import LabelWatch
from sync.liberal import LiberalFlows
from sync.ops import SetTimeout
from sync.outbox import Outbox
from sync.progress import PassProgress
from sync.publish import LookUp, PublishEffect, Publisher, publishable
from sync.registry import Flag, FlowRegistry
from sync.replica import ReplicaGroup
from sync.roles import StartHolding

__all__ = ["GROUP_MASK", "Holder", "HolderPorts"]

GROUP_MASK = 0xF << GROUP_SHIFT
TAKE_ENTRIES_PER_S = 20_000
REFRESH_ENTRIES_PER_S = 5_000
CHUNKS_PER_SLICE = 2
"""A chunk is about a hundred entries, and they take about 2 ms."""
PACE_DEBT_S = 0.05
NEW_EPOCH_RETRY_S = 0.3
NEW_EPOCH_WAIT_S = 2.0
"""Without a new epoch after this long the flows are said again under the old one."""
DUMP_RETRY_S = 0.5
ADOPTED_WATCH_S = 5.0
DIGEST_S = 1.0
PASS_FLAGS = Flag.UNPASSED | Flag.PASSED_BY | Flag.ADOPTED


class Holder:
    """Everything syncd does for the groups this node holds."""

    def __init__(
        self,
        config: ClusterConfig,
        node_id: int,
        *,
        registry: FlowRegistry,
        groups: dict[int, ReplicaGroup],
        publisher: Publisher,
        applier: Applier,
        outbox: Outbox,
        timeouts_s: dict[str, int],
        ports: HolderPorts,
    ) -> None:
        self._refresh_s, self._hold_s = config.sync.refresh_s, config.sync.hold_s
        self._node_id = node_id
        self._registry = registry
        self._groups = groups
        self._publisher = publisher
        self._applier = applier
        self._outbox = outbox
        self._timeouts_s = timeouts_s
        self._ports = ports
        self.held: dict[int, Held] = {}
        self._before: dict[int, Held] = {}  # What was held, until it is held again.
        self._drained = True
        self._drains = 0
        self._labels = LabelWatch(applier.probe_labels)
        self.expecting = Expecting(registry, applier, publisher, self._publish)
        self.counters: Counter[str] = Counter()

    # -- roles

    def start(self, effect: StartHolding, *, now: float) -> None:
        old, before = self.held.pop(effect.group, None), self._before.pop(effect.group, None)
        liberal = LiberalFlows(self._registry, effect.group, self._ports.strict)
        if old is not None:
            old.cancel()
            liberal = old.liberal
        held = Held(effect.epoch, liberal, refresh_at=now + self._refresh_s)
        self.held[effect.group] = held
        if effect.first:
            held.recovering = True
            held.scan = self._ports.start_dump(effect.group)
            if effect.contiguous:
                # Nobody else has forwarded since: what the kernel holds is not stale.
                self._groups[effect.group].suspect = False
        elif effect.contiguous and before and before.ready and before.epoch == effect.epoch:
            self.counters["roles_resumed"] += 1
            held.resume(before)
        else:
            held.recovering = old is not None and old.recovering
            held.want_take = True

    def stop(self, group: int) -> None:
        held = self.held.pop(group, None)
        if held is not None:
            held.cancel()
            self._registry.clear_all(group, PASS_FLAGS | Flag.LIBERAL)
            self._before[group] = held

    def close(self) -> None:
        for group in list(self.held):
            self.stop(group)

    def ready_epoch(self, group: int) -> int | None:
        """The epoch under which a snapshot may be served, or None."""
        held = self.held.get(group)
        return held.epoch if held is not None and held.ready else None

    def doubt(self, group: int) -> None:
        """A peer's repair did not help: is our own registry as our kernel?"""
        held = self.held.get(group)
        if held is not None and held.own_pass is None:
            self.counters["passes_in_doubt"] += 1
            held.want_repair = True

    def liberal_count(self, group: int) -> int:
        held = self.held.get(group)
        return 0 if held is None else len(held.liberal)

    def progress(self, group: int, *, now: float) -> SyncPassStatus | None:
        held = self.held.get(group)
        progress = None if held is None else held.progress
        return None if progress is None else progress.facts(now=now)

    def trouble(self, group: int) -> tuple[bool, bool, bool]:
        """(overrun not repaired, replacing own stale entries, recovering)."""
        held = self.held.get(group)
        if held is None:
            return False, False, False
        replica = self._groups[group]
        replacing = held.want_take or (held.own_pass is not None and held.own_pass.replacing)
        stale = replica.suspect or self._registry.count_flag(group, Flag.STALE) > 0
        return held.overrun, replacing and stale, held.recovering

    # -- events

    def on_events(self, events: list[CtEvent | ExpectEvent], *, now: float) -> list[CtEvent]:
        """Publish what is ours; the events of groups that are not held come back."""
        epochs = self._epochs()
        others: list[CtEvent] = []
        timeouts: list[SetTimeout] = []
        for event in events:
            if isinstance(event, ExpectEvent):
                self.expecting.on_event(event, epochs, now=now)
                continue
            if event.pid == self._applier.port_id:
                self.counters["echoes_heard"] += 1  # `sync.event_filter` is not there.
                continue
            key = event.entry.key
            held = self.held.get(mark_group(event.entry.mark))
            if held is None:
                others.append(event)
                continue
            self._publish(self._publisher.on_event(event, epochs))
            if event.kind is EventKind.DESTROY:
                held.liberal.gone(key)
            elif held.adopted_until:
                record = self._registry.get(key)
                if record is not None and record.flags & Flag.ADOPTED:
                    timeout_s = normal_timeout_s(
                        event.entry, self._timeouts_s, tcp_state=record.tcp_state
                    )
                    timeouts.append(SetTimeout(key, timeout_s))
            if held.own_pass is not None and not held.own_pass.touch(event):
                self.counters["passes_too_many_deaths"] += 1
                held.pass_again()
        if timeouts:
            self._applier.apply(timeouts)
        return others

    def on_drained(self) -> None:
        """The event socket was empty: what is dumped from now on is not older than any event."""
        self._drained = True
        self._drains += 1

    def on_overrun(self) -> None:
        """Events were lost. The kernel goes on dropping until the queue is empty, and what still
        waits in it is older than the loss, so the repairing dump must not begin before."""
        self.counters["event_overruns"] += 1
        self._drained = False
        for held in self.held.values():
            held.overrun = held.want_repair = True
            if held.own_pass is not None:
                held.pass_again()  # It may have missed events too.

    # -- time and work

    def next_at(self) -> float | None:
        """When `work` has something to do again, if nothing wakes the loop."""
        times = [time for held in self.held.values() for time in held.times(NEW_EPOCH_RETRY_S)]
        return min((*times, *self.expecting.times()), default=None)

    def busy(self, *, now: float) -> bool:
        """Is there work that should not wait for an event?"""
        return bool(self.held) and (
            self.expecting.busy or any(held.busy(now=now) for held in self.held.values())
        )

    def work(self, *, now: float) -> None:
        """One slice for each held group."""
        if self.held:
            self._publisher.labelled = self._labels.node_sets_any(now=now)
        for group, held in list(self.held.items()):
            if held.scan is not None:
                if now >= held.retry_at:
                    self._scan(group, held, now)
            elif held.epoch_wait_until is not None:
                self._await_epoch(group, held, now)
            elif held.own_pass is not None:
                self._step(group, held, now)
            else:
                if now >= held.refresh_at:
                    held.want_refresh = True
                wanted = held.want_take or held.want_repair or held.want_refresh
                if wanted and self._drained and now >= held.retry_at:
                    self._begin(group, held, now)
            held.liberal.work(self._applier, self._ports.start_gathered, now=now)
            if 0 < held.adopted_until < now and held.own_pass is None:
                held.adopted_until = 0.0
                self._registry.clear_all(group, Flag.ADOPTED)
            if held.ready and now >= held.digest_at:
                held.digest_at = now + DIGEST_S
                for said in say_digest(self._registry, group, held.epoch):
                    self._outbox.put(said)
        self.expecting.work(self._epochs(), now=now)

    def _epochs(self) -> dict[int, int]:
        return {group: held.epoch for group, held in self.held.items()}

    def _scan(self, group: int, held: Held, now: float) -> None:
        assert held.scan is not None
        chunk = held.scan.take()
        found = chunk is not None and any(publishable(entry) for entry in chunk)
        if not found and not held.scan.done:
            return
        if held.scan.error is not None:
            held.scan = self._ports.start_dump(group)
            held.retry_at = now + DUMP_RETRY_S
            return
        held.scan.cancel()
        held.scan = None
        if found:
            self.counters["recoveries"] += 1
            held.epoch_wait_until = now + NEW_EPOCH_WAIT_S
            self._await_epoch(group, held, now)
        else:
            held.recovering = False
            held.want_take = True

    def _await_epoch(self, group: int, held: Held, now: float) -> None:
        """`start` replaces this state when leased has a new epoch."""
        assert held.epoch_wait_until is not None
        if now >= held.epoch_wait_until:
            self.counters["recoveries_without_new_epoch"] += 1
            held.epoch_wait_until = None
            held.want_take = True
        elif held.epoch_asked_at is None or now - held.epoch_asked_at >= NEW_EPOCH_RETRY_S:
            held.epoch_asked_at = now
            reason = "syncd restarted on the ACTIVE node and has no registry"
            self._ports.send_to_leased(NewEpochRequest(group, held.epoch, reason))

    def _begin(self, group: int, held: Held, now: float) -> None:
        # A take-over says all, also under an epoch in which all was said: the pause before it may
        # have swallowed a refresh.
        held.says_all = held.want_refresh or held.want_take
        kind = "take" if held.want_take else "repair" if held.want_repair else "refresh"
        held.progress = PassProgress(kind, self._registry.count(group), now)
        held.own_pass = OwnPass(
            group,
            held.epoch,
            node_id=self._node_id,
            registry=self._registry,
            group=self._groups[group],
            publisher=self._publisher,
            timeouts_s=self._timeouts_s,
            liberal=held.liberal.add,
            refresh=held.says_all,
        )
        held.dump = self._ports.start_dump(group)
        held.want_take = held.want_repair = held.want_refresh = False
        self.counters["passes_refresh" if kind == "refresh" else "passes_take"] += 1

    def _step(self, group: int, held: Held, now: float) -> None:
        """A few chunks, at the pass's pace."""
        assert held.own_pass is not None
        if held.dump is None:
            self._end(group, held, now)
            return
        leisurely = held.ready and not held.overrun
        rate = float(REFRESH_ENTRIES_PER_S if leisurely else TAKE_ENTRIES_PER_S)
        if held.progress is not None:  # Replicas of a large table must not expire meanwhile.
            rate = max(rate, 3 * held.progress.total / self._hold_s)
        for _ in range(CHUNKS_PER_SLICE):
            if now < held.next_chunk_at:
                return
            chunk = held.dump.take()
            if chunk is None:
                break
            if held.everywhere:
                chunk = [entry for entry in chunk if self._is_stray(entry, group)]
                held.strays += len(chunk)
            adopted = held.own_pass.adopted
            output = held.own_pass.on_entries(chunk)
            self._carry_out(output)
            if output.again:
                current = [e for key in output.again if (e := self._applier.look_up(key))]
                self._carry_out(held.own_pass.on_entries(current, current=True))
            # A turn that came late may catch up a little.
            held.next_chunk_at = max(held.next_chunk_at, now - PACE_DEBT_S) + len(chunk) / rate
            if held.progress is not None:
                held.progress.note(len(chunk), held.own_pass.adopted - adopted)
            held.adopted_until = now + ADOPTED_WATCH_S
        if not held.dump.done:
            return
        if held.dump.error is not None:
            self.counters["passes_failed"] += 1
            held.pass_again()
            held.retry_at = now + DUMP_RETRY_S
            return
        self.expecting.on_pass(group, held.dump.expectations)
        held.dump = None
        held.drains_wanted = self._drains + 1

    def _end(self, group: int, held: Held, now: float) -> None:
        """The dump is through: when no event waits, what nothing has shown has vanished."""
        assert held.own_pass is not None
        if self._drains < held.drains_wanted:
            return
        taken = held.progress is not None and held.progress.kind == "take"
        if taken and not held.everywhere and self._registry.count_flag(group, Flag.UNPASSED):
            # Gone, or without the mark by which the dump chose.
            held.everywhere, held.dump = True, self._ports.start_everywhere()
            return
        held.own_pass.finish()
        held.own_pass, held.everywhere = None, False
        # Their keys are not known: the next digest tells the peers.
        vanished = self._registry.drop_flagged(group, Flag.UNPASSED)
        self.counters["vanished"] += vanished
        if held.progress is not None and held.progress.kind == "refresh":
            held.unheard, held.strays = vanished, 0
        self._finish(group, held, now)

    def _is_stray(self, entry: FlowEntry, group: int) -> bool:
        """A flow of the group by the registry, but not by its mark."""
        known = None if mark_group(entry.mark) == group else self._registry.get(entry.key)
        return known is not None and known.group == group and bool(known.flags & Flag.UNPASSED)

    def _carry_out(self, output: PassOutput) -> None:
        self._applier.apply(output.ops)
        self._publish(output.publications)

    def _finish(self, group: int, held: Held, now: float) -> None:
        held.ready = True
        held.recovering = False
        if held.progress is not None:
            held.progress.end(now=now)
        held.overrun = held.want_repair
        if held.says_all:
            began_at = now if held.progress is None else held.progress.began_at
            held.refresh_at = max(began_at + self._refresh_s, now + self._refresh_s / 4)
        held.digest_at = now
        self._groups[group].suspect = False
        self._ports.note_clean(group, held.epoch)

    # -- publications

    def _publish(self, effects: list[PublishEffect]) -> None:
        for effect in effects:
            if not isinstance(effect, LookUp):
                self.expecting.watch(effect)
                self._outbox.put(effect)
                continue
            try:
                entry = self._applier.get(effect.key)
            except KernelError as error:
                self.counters[f"lookup_{errno.errorcode.get(error.errno, error.errno)}"] += 1
                continue
            if entry is not None:
                self._publish(self._publisher.publish(entry, effect.epoch, looked_up=True))
