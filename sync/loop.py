"""The main loop of hafw-syncd. Shell.

One loop, bounded turns. Each turn takes, in this order and each within a bound: words of leased
(who holds what), datagrams of peers, conntrack events, snapshot traffic, one slice of a pass. The
beacon is looked at between all of them, because leased takes three missed beacons for "unsynced".
Long walks through the conntrack table run in threads (`sync.dumper`).

The decisions are elsewhere: `sync.roles` who holds, `sync.publish` and `sync.adopt` what is said,
`sync.stream` and `sync.replica` what counts, `sync.standing` whether this node is synced.
"""

from __future__ import annotations

import gc
import socket
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from hafw.config.model import ClusterConfig
from hafw.human import format_epoch
from hafw.keyring import Keyring
from hafw.messages import (
    Position,
    PositionReply,
    PositionRequest,
    ResyncReply,
    ResyncRequest,
    RoleChange,
    StatusRequest,
    SyncBeacon,
    SyncdMessage,
    SyncdStatus,
    VerifyReply,
    VerifyRequest,
)
from hafw.paths import NodePaths
from sync.ctsocket import Overrun
from sync.parts import Parts
from sync.replica import Superseded
from sync.report import Reporter
from sync.roles import BecomeStale, Follow, RoleEffect, StartHolding, StopHolding
from sync.waiting import Waiting

if TYPE_CHECKING:
    import structlog

__all__ = ["Syncd"]

RECEIVE_SLICE_S = 0.004
BACKLOG_S_MAX = 0.02
"""A NACK waits this long for the sockets to run empty."""
DRAIN_BEFORE_HOLDING_S = 0.1
"""Before this node speaks for a group, what its holder had sent is applied, at most so long."""
DRAIN_POSITION_S = 0.02
IDLE_S_MAX = 0.1
COLLECT_OBJECTS_MAX = 20_000
"""Objects since the last collection that may be looked through within a turn."""
JUDGE_EVERY_S = 0.001  # Whether this node is synced is judged anew no more often.
APPLIED_NEWS_S = 0.005
"""A new applied position is told to leased at once, but not more often than this."""


class Syncd:
    """One run of the daemon: construct, `run`, `close`."""

    def __init__(
        self,
        config: ClusterConfig,
        node_name: str,
        ring: Keyring,
        paths: NodePaths,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._config = config
        self._log = log
        self._node_id = config.nodes[node_name].id
        self._names = {group.index: name for name, group in config.groups.items()}
        parts = Parts(config, node_name, ring, paths, superseded=self._on_superseded)
        self._parts = parts
        self._bus = parts.bus
        self._events = parts.events
        self._reader = parts.reader
        self._transport = parts.transport
        self._outbox = parts.outbox
        self._inbox = parts.inbox
        self._roles = parts.roles
        self._groups = parts.groups
        self._holder = parts.holder
        self._follower = parts.follower
        self._server = parts.server
        self._reporter = Reporter(config, self._node_id, parts)
        self._stopping = self._reloading = False
        self._key_problem = ""
        self._counters: Counter[str] = Counter()
        self._server_problems: list[str] = []
        self._waiting = Waiting(parts)
        self._read_from = 0
        self._beacon_s = config.sync.beacon_ms / 1e3
        self._beacon_at = 0.0
        self._told: SyncBeacon | None = None
        self._told_at = self._judged_at = 0.0
        self._second_at = 0.0
        self._reasons: dict[int, str] = {}

    # -- life

    def stop(self, *_: object) -> None:
        """Signal handler: end after this turn."""
        self._stopping = True

    def reload(self, *_: object) -> None:
        """Signal handler: read the keys again, in the next turn."""
        self._reloading = True
        self._parts.waker.wake()

    def run(self) -> None:
        self._log.info("syncd_started", session=f"{self._outbox.session:016x}")
        # Hundreds of thousands of records make a full collection take half a second, and the
        # beacon must not wait for it. Records have no cycles; references are counted.
        gc.collect()
        gc.freeze()
        gc.disable()
        sys.setswitchinterval(0.001)  # A dump's thread must not hold the beacon up.
        while not self._stopping:
            self._turn()
        self._log.info("syncd_stopped")

    def close(self) -> None:
        self._parts.close()

    def _turn(self) -> None:
        # Only what has something to say is asked: at many turns a second asking is what costs.
        ready = self._wait()
        if self._parts.waker.fileno() in ready:
            self._parts.waker.clear()
        if self._reloading:
            self._reload_keys()
        self._beacons()
        for message, sender in self._bus.receive() if self._bus.socket.fileno() in ready else ():
            self._on_local(message, sender)
        heard = [sock for sock in self._transport.sockets() if sock.fileno() in ready]
        self._receive(heard, time.monotonic() + RECEIVE_SLICE_S)
        self._beacons()
        if self._events.fileno() in ready or self._reader.pending:
            self._read_events()
        else:
            self._holder.on_drained()
        self._outbox.flush()
        self._beacons()
        now = time.monotonic()
        if not ready.isdisjoint(self._server.sockets):
            self._server.on_readable(now=now)
        self._server.work(now=now)
        self._follower.work(now=now)
        self._beacons()
        self._holder.work(now=time.monotonic())
        self._parts.verifier.work(now=time.monotonic())
        self._outbox.flush()
        self._every_second()

    def _wait(self) -> set[object]:
        """Until something is to be done. What is readable."""
        try:
            return self._waiting.ready(self._wait_until(time.monotonic()))
        except Overrun:
            self._log.warning("event_overrun")
            return {self._events.fileno()}

    def _wait_until(self, now: float) -> float:
        parts = (self._server, self._follower, self._parts.verifier)
        if any(part.busy for part in parts) or self._holder.busy(now=now):
            return now
        times = [now + IDLE_S_MAX, self._beacon_at]
        times += [t for t in (self._inbox.deadline(), self._holder.next_at()) if t is not None]
        return min(times)

    def _reload_keys(self) -> None:
        self._reloading = False
        self._key_problem = self._parts.reload_keys()
        if self._key_problem:
            self._log.error("keys_refused", reason=self._key_problem)
        else:
            ring = self._parts.ring
            self._log.info("keys_loaded", seals=ring.seals, opens=sorted(ring.by_id))

    # -- leased and hafwd

    def _on_local(self, message: SyncdMessage, sender: str) -> None:
        match message:
            case RoleChange():
                now = time.monotonic()
                state = self._roles.states.get(message.group)
                if message.active and state is not None and not state.active:
                    self._drain_peers()
                self._on_roles(self._roles.on_role_change(message, now=now))
            case PositionRequest(group, epoch):
                self._read_all_events(DRAIN_POSITION_S)
                self._outbox.flush()
                position = Position(self._node_id, self._outbox.session, self._outbox.position)
                self._bus.answer(PositionReply(group, epoch, position), sender)
            case StatusRequest():
                self._bus.answer(self._status(), sender)
            case VerifyRequest():
                self._parts.verifier.ask(sender)
            case ResyncRequest():
                self._bus.answer(self._parts.resync(now=time.monotonic()), sender)
            case SyncdStatus() | VerifyReply() | ResyncReply():
                self._counters["local_unexpected"] += 1
            case _:
                assert_never(message)

    def _on_superseded(self, effect: Superseded) -> None:
        self._follower.flush(now=time.monotonic())
        self._on_roles(self._roles.on_superseded(effect.group, effect.epoch, effect.holder_id))

    def _on_roles(self, effects: list[RoleEffect]) -> None:
        for number, state in self._roles.states.items():
            group = self._groups[number]
            group.epoch, group.active = state.epoch, state.active
        now = time.monotonic()
        for effect in effects:
            name = self._names[effect.group]
            match effect:
                case StartHolding():
                    clean = effect.first and self._parts.clean_epochs.was_clean(
                        effect.group, effect.epoch
                    )
                    effect = replace(effect, contiguous=effect.contiguous or clean)
                    self._log.info(
                        "group_held",
                        group=name,
                        epoch=format_epoch(effect.epoch),
                        contiguous=effect.contiguous,
                        known_flows=self._parts.registry.count(effect.group),
                    )
                    self._parts.read_timeouts()
                    self._follower.on_held(effect.group, now=now)
                    self._holder.start(effect, now=now)
                case StopHolding(group=number):
                    self._log.info("group_released", group=name)
                    # What was read while holding goes out; what waits in the socket does not.
                    self._outbox.flush()
                    self._holder.stop(number)
                    self._server.cancel_group(number)
                case BecomeStale(group=number):
                    flows = self._follower.on_stale(number, now=now)
                    self._log.info("group_stale", group=name, flows=flows)
                case Follow(group=number, holder_id=holder_id, epoch=epoch):
                    holder = self._config.node_name(holder_id)
                    self._log.info(
                        "group_followed", group=name, holder=holder, epoch=format_epoch(epoch)
                    )
                    self._follower.on_follow(number, holder_id, now=now)
                case _:
                    assert_never(effect)

    # -- peers

    def _receive(self, sockets: list[socket.socket], until: float) -> bool:
        """Datagrams, round robin over the sockets; True if some may be left at `until`."""
        now = time.monotonic()
        found = True
        while found and sockets:
            found = False
            for _ in range(len(sockets)):
                self._read_from = (self._read_from + 1) % len(sockets)
                more = self._parts.reception.read(sockets[self._read_from], now=now)
                found = found or more
            now = time.monotonic()
            if now >= until:
                break
        # What seems to be missing may wait in a socket; a peer need not be asked for that.
        due = self._inbox.deadline()
        if due is not None and (not found or now > due + BACKLOG_S_MAX):
            for item in self._inbox.tick(now=now):
                self._follower.on_incoming(item, now=now)
        self._follower.flush(now=now)
        self._inbox.note_applied(self._parts.whole, now=time.monotonic())
        return found

    def _drain_peers(self) -> None:
        """Before this node speaks for a group: apply what its holder had sent."""
        until = time.monotonic() + DRAIN_BEFORE_HOLDING_S
        sockets = self._transport.sockets()
        while self._receive(sockets, time.monotonic() + RECEIVE_SLICE_S):
            self._beacons()
            if time.monotonic() >= until:
                self._counters["drain_before_holding_cut"] += 1
                return

    # -- the kernel

    def _read_events(self) -> bool:
        """True if more may wait."""
        try:
            return self._reader.read()
        except Overrun:
            self._log.warning("event_overrun")
            return True

    def _read_all_events(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._read_events():
            if time.monotonic() >= until:
                self._counters["position_drain_cut"] += 1
                return

    # -- clocks

    def _beacons(self) -> None:
        """The peers' beacon and leased's, when due; leased's also when something changed."""
        now = time.monotonic()
        due = now >= self._beacon_at
        if due:
            self._beacon_at = max(self._beacon_at + self._beacon_s, now + self._beacon_s / 2)
            self._outbox.flush()
            epochs = {n: s.epoch for n, s in self._roles.states.items() if s.epoch}
            self._parts.prober.work(now=now)
            self._outbox.beacon(
                epochs,
                self._inbox.acks(now=now),
                self._parts.ring.fingerprints,
                self._parts.detour.deaf,
            )
            self._on_roles(self._roles.tick(now=now))
        elif self._parts.detour.pressing:
            self._parts.prober.detour(now=now)
        if not due and now - self._judged_at < JUDGE_EVERY_S:
            return
        self._judged_at = now
        if effects := self._roles.on_told(self._inbox.epochs):
            self._on_roles(effects)
        news = self._reporter.beacon(now=now)
        told = self._told
        changed = told is None or (news.synced, news.reasons) != (told.synced, told.reasons)
        moved = told is not None and news.applied != told.applied
        if due or changed or (moved and now - self._told_at >= APPLIED_NEWS_S):
            self._told, self._told_at = news, now
            self._bus.to_leased(news)
        if changed:
            self._log_standing(news)

    def _log_standing(self, news: SyncBeacon) -> None:
        for number, synced in news.synced.items():
            reason = news.reasons.get(number, "")
            if self._reasons.get(number) == reason:
                continue
            before = self._reasons.get(number)
            self._reasons[number] = reason
            if synced:
                self._log.info("synced", group=self._names[number])
            elif before in (None, ""):
                self._log.info("unsynced", group=self._names[number], reason=reason)

    def _every_second(self) -> None:
        now = time.monotonic()
        if now < self._second_at:
            return
        self._second_at = now + 1.0
        self._transport.refresh(now=now)
        self._server_problems = self._server.bind()
        # What little garbage has cycles (tracebacks) goes while it is little.
        if gc.get_count()[0] < COLLECT_OBJECTS_MAX:
            gc.collect(0)
        else:
            gc.freeze()

    # -- status

    def _status(self) -> SyncdStatus:
        counters = self._counters.copy()
        for part in self._parts.counters():
            counters.update(part)
        alarms = [self._key_problem] if self._key_problem else []
        alarms += [*self._parts.problems, *self._transport.problems(), *self._server_problems]
        alarms += self._parts.prober.alarms(now=time.monotonic())
        return self._reporter.status(
            session=self._outbox.session,
            seq=self._outbox.position,
            counters=dict(sorted(counters.items())),
            alarms=alarms,
            ring=self._parts.ring,
            now=time.monotonic(),
        )
