"""hafw-leased: the real-time loop that holds leases and opens the kernel gate. Shell.

No policy here: wait for input or the deadline, call `LeaseCore`, carry out its effects in order.

Two readings of the clock carry the safety of the lease and must stay where they are:

- `now_ns` for an envelope is read **after** it was received. A voter's grant counts from it; read
  earlier it could date from before the request was sent, and end before the holder's deadline.
- `now_ns` is read **before** the core is called and anything is sent. A holder's deadline counts
  from it, so however late the datagrams leave, no voter's grant can be older.

`select`, not `epoll`: epoll.poll rounds its timeout up to a millisecond.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import msgspec

from cluster.announce import Announcer, announced_ports
from cluster.carrier import CarrierWatch
from cluster.clock_rate import ClockRate
from cluster.disk_writer import DiskWriter
from cluster.gate import GateWriter, attached
from cluster.gate_watch import GateWatch
from cluster.heartbeat import Codec, DatagramError, derive_key
from cluster.lease import LeaseCore
from cluster.lease_types import (
    Announce,
    Arrived,
    AskPosition,
    Effect,
    LeaseParams,
    Note,
    PersistEra,
    PersistVoters,
    ReplyMove,
    ReplyVoters,
    SegmentsDown,
    Send,
    SetGate,
    StopAsked,
    TellSyncd,
    Unreadable,
)
from cluster.leased_io import LinkSockets, LocalSocket, Recent, plan_paths
from cluster.leased_status import GateFacts, leased_status
from cluster.local_events import awaits_syncd, local_event
from cluster.meters import DelayMeter, FirstCopy, LinkMeter
from cluster.realtime import Collector, Punctuality, make_realtime, read_clocks
from cluster.refusals import LEASED, Refusals
from cluster.standing import read_standing
from cluster.upstream import plan_checks
from cluster.upstream_io import UpstreamSockets
from hafw.config.model import ClusterConfig
from hafw.cpus import lease_cpu, usable_cpus
from hafw.daemon_main import daemon_main
from hafw.errors import StateError
from hafw.instance import claim_instance
from hafw.keyring import read_key
from hafw.logs import configure_logs
from hafw.messages import (
    LeasedStatus,
    PositionRequest,
    StatusRequest,
    VotersReply,
    decode_leased,
    encode,
)
from hafw.paths import NodePaths

if TYPE_CHECKING:
    import structlog

__all__ = ["Leased", "main", "now_boottime_ns"]


def now_boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Leased:
    """One node's lease loop."""

    def __init__(
        self, config: ClusterConfig, node_name: str, log: structlog.stdlib.BoundLogger
    ) -> None:
        """Everything that can be refused is refused here. Raises HafwError."""
        self._config = config
        self._paths = NodePaths(node_name)
        self._log = log
        self._cpu = lease_cpu(config.cpus, usable_cpus())
        node = config.nodes[node_name]
        key = derive_key(read_key(self._paths.lease_key), cluster_id=config.cluster_id)
        self._codec = Codec(key, cluster_id=config.cluster_id, node_id=node.id)
        self._gate: GateWriter | None = None
        self._gate_watch: GateWatch | None = None
        if node.role == "gateway":
            self._gate = self._open_gate(node_name)
            devices = [
                (group.index, port.ifname)
                for name, group in config.groups.items()
                for port in announced_ports(config, name, node_name)
            ]
            self._gate_watch = GateWatch(self._paths, self._gate, devices)
        self._announcers = {
            group.index: Announcer(announced_ports(config, name, node_name))
            for name, group in config.groups.items()
        }
        self._has_syncd = node.role == "gateway"
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._disk = DiskWriter(self._paths, self._wake_out, config)
        self._core = self._make_core(node_name)
        counters = self._core.view.counters
        self._links = LinkSockets(
            plan_paths(config, node_name),
            multicast=str(config.lease.multicast),
            port=config.lease.port,
            counters=counters,
        )
        self._carrier = CarrierWatch({s: port.device for s, port in node.segments.items()})
        self._upstream = UpstreamSockets(plan_checks(config, node_name), now_boottime_ns())
        self._faults = SegmentsDown(frozenset())
        self._local = LocalSocket(self._paths.leased_socket, counters)
        self._syncd = str(self._paths.syncd_socket)
        self._own_readers = (self._wake_in.fileno(), self._carrier.socket.fileno())
        lease, sync = config.lease, config.sync
        # A gateway's beacons may wait for its heartbeat only where that is no slower than they.
        self._local_waits = self._has_syncd and lease.heartbeat_ms <= sync.beacon_ms
        self._link_meter = LinkMeter((p.name, p.peers) for p in self._links.peers_of())
        self._delay = DelayMeter()
        self._recent = Recent()
        self._refusals = Refusals(LEASED)
        self._stopping = False
        self._punctuality = Punctuality(realtime=False)
        self._clock_rate = ClockRate(*read_clocks())

    def _open_gate(self, node_name: str) -> GateWriter:
        gate = GateWriter.open(self._paths)  # StateError: no bpffs, private mount, no map.
        for name, group in self._config.groups.items():
            for port in announced_ports(self._config, name, node_name):
                if not attached(self._paths, port.ifname):
                    raise StateError(
                        f"{port.ifname} of group {name} (index {group.index}) is missing or its "
                        f"gate is not attached; prepare the node first (hafwd does it at start)"
                    )
        return gate

    def _make_core(self, node_name: str) -> LeaseCore:
        if (disk := self._disk).wrong:
            self._log.error("voters_file_lost", reason=disk.wrong)
        if error := disk.begin():
            self._log.error("era_write_failed", path=str(self._paths.era), error=error)
        return LeaseCore(
            LeaseParams.from_config(self._config, node_name),
            era=disk.era,
            era_durable=not error,
            rng=random.SystemRandom(),
            now_ns=now_boottime_ns(),
            standing=read_standing(self._paths.standing),
            record=disk.record,
        )

    # ---- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM or SIGINT. StateError, after giving the leases up, if the gate is gone."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        self._punctuality = make_realtime(self._cpu)
        self._note(
            "started",
            era=self._core.view.era,
            realtime=self._punctuality.realtime,
            refused=list(self._punctuality.refused),
        )
        collector = Collector(now_boottime_ns())
        try:
            self._take_carrier()
            wrong = ""
            while not self._stopping and not wrong:
                wrong = self._turn(collector)
            self._do(self._core.handle(StopAsked(), now_ns=now_boottime_ns()))
            self._note("stopped", reason=wrong)
        finally:
            self.close()
        if wrong:
            raise StateError(wrong)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._local.close()
        self._carrier.close()
        self._links.close()
        self._upstream.close()
        for announcer in self._announcers.values():
            announcer.close()
        if self._gate is not None:
            self._gate.close()
        self._wake_in.close()
        self._wake_out.close()

    def _turn(self, collector: Collector) -> str:
        """Returns why there must not be another; usually nothing."""
        now_ns = now_boottime_ns()
        self._links.check(now_ns)
        deadline_ns = self._core.deadline(now_ns=now_ns)
        readers = [*self._own_readers, *self._links.descriptors(), *self._upstream.descriptors()]
        local = self._local.socket.fileno()
        if not self._local_waits or awaits_syncd(self._core.groups.values()):
            readers.append(local)
        ready, _, _ = select.select(readers, [], [], max(0, deadline_ns - now_ns) / 1e9)
        if self._local_waits or local in ready:
            self._take_local()
        if ready:
            self._take_datagrams(ready)
            wake, carrier = self._own_readers
            if wake in ready:
                self._take_wakeups()
            if carrier in ready or self._carrier.behind:
                self._take_carrier()
        now_ns = now_boottime_ns()
        self._take_upstream(now_ns)
        if now_ns >= deadline_ns:
            self._delay.add(now_ns - deadline_ns, now_ns)
            self._do(self._core.tick(now_ns=now_ns))
            collector.maybe(now_ns)
            self._clock_rate.observe(*read_clocks())
        return "" if self._gate_watch is None else self._gate_watch.look(now_ns)

    def _take_datagrams(self, ready: Iterable[int]) -> None:
        counters, find, again = self._core.view.counters, self._recent.find, self._link_meter.again
        datagrams = self._links.receive(ready)
        now_ns = now_boottime_ns()
        for datagram, path in datagrams:
            first = find(datagram)
            if first is not None:  # Most are: nothing but the path's own facts is taken of them.
                again(first, path, now_ns)
                continue
            now_ns = now_boottime_ns()  # After receiving: see the module's text.
            try:
                sender, envelope = self._codec.open(datagram)
            except DatagramError as error:
                counters[error.reason] += 1
                if self._links.from_a_node(path, error.reason):
                    self._do(self._core.handle(Unreadable(), now_ns=now_ns))
            else:
                self._do(self._core.handle(Arrived(sender, envelope), now_ns=now_ns))
                first = FirstCopy(sender, now_ns, self._core.view.round_trip_told(sender, now_ns))
                self._recent.add(datagram, first)
                self._link_meter.first(first, path)
            for reason, count in self._refusals.to_say(counters, now_ns):
                # Whom it names as its sender nobody need believe.
                self._note(
                    "datagram_refused", reason=reason, count=count, path=path,
                    named=datagram[3] if len(datagram) > 3 else 0,
                )  # fmt: skip

    def _take_local(self) -> None:
        askers: list[str] = []
        for datagram, sender in self._local.receive():
            try:
                message = decode_leased(datagram)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._core.view.counters["local_malformed"] += 1
                continue
            now_ns = now_boottime_ns()
            event = local_event(message, sender, now_ns)
            if event is not None:
                self._do(self._core.handle(event, now_ns=now_ns))
            elif isinstance(message, StatusRequest):
                askers.append(sender)
            else:
                self._core.view.counters["local_unexpected"] += 1
        if askers:  # One status a turn for all: a flood of questions must not hold the loop.
            status = encode(self._status(now_boottime_ns()))
            for asker in askers:
                self._local.send(status, asker)

    def _take_wakeups(self) -> None:
        try:
            self._wake_in.recv(4096)
        except BlockingIOError:
            return
        for event in self._disk.finished():
            self._do(self._core.handle(event, now_ns=now_boottime_ns()))

    def _take_carrier(self) -> None:
        down = self._carrier.take()
        if down is not None:
            self._note("segments_down", names=sorted(down))
            self._faults = SegmentsDown(down, self._faults.unanswered)
            self._do(self._core.handle(self._faults, now_ns=now_boottime_ns()))

    def _take_upstream(self, now_ns: int) -> None:
        """What is due is asked at the next turn: nothing wakes the loop for it."""
        unanswered = self._upstream.turn(now_ns)
        if unanswered != self._faults.unanswered:
            names = sorted({segment for _, segment in unanswered})
            self._note("upstream_unanswered", segments=names)
            self._faults = SegmentsDown(self._faults.names, unanswered)
            self._do(self._core.handle(self._faults, now_ns=now_ns))

    def _on_signal(self, _signum: int, _frame: object) -> None:
        self._stopping = True

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, envelope):
                    self._links.send(self._codec.seal(envelope), to)
                case SetGate(group, announce_ns, accept_ns):
                    if self._gate is not None:
                        self._gate.store(group, announce_ns=announce_ns, accept_ns=accept_ns)
                case Announce(group):
                    self._announcers[group].announce()
                case PersistEra(era):
                    self._disk.write_era(era)
                case PersistVoters(record):
                    self._disk.write_voters(record)
                case TellSyncd(message):
                    if self._has_syncd:
                        self._local.send(encode(message), self._syncd)
                case AskPosition(group, epoch):
                    question = encode(PositionRequest(group=group, epoch=epoch))
                    self._local.send(question, self._syncd)
                case ReplyMove(token, reply):
                    self._local.send(encode(reply), token)
                case ReplyVoters(token, reason):
                    self._local.send(encode(VotersReply(reason=reason)), token)
                case Note(event, facts):
                    self._note(event, **dict(facts))
                case _:
                    assert_never(effect)

    def _note(self, event: str, **facts: object) -> None:
        try:
            self._log.info(event, **facts)
        except OSError:
            self._core.view.counters["log_errors"] += 1  # A full disk must not end a lease.

    def _status(self, now_ns: int) -> LeasedStatus:
        gate = self._gate

        def facts(group: int) -> GateFacts:
            assert gate is not None
            deadlines = gate.read(group)
            dropped_in, dropped_out = gate.dropped(group)
            return deadlines.announce_ns, deadlines.accept_ns, dropped_in, dropped_out

        return leased_status(
            self._core,
            now_ns=now_ns,
            pid=os.getpid(),
            realtime=self._punctuality.realtime,
            machine_alarms=[*self._punctuality.alarms, *self._clock_rate.alarms()],
            delay=self._delay.read(now_ns),
            links=self._link_meter,
            gate=None if gate is None else facts,
        )


def _run(config: ClusterConfig, name: str, _: Path) -> None:
    log = configure_logs("leased", name)
    with claim_instance(NodePaths(name), "leased"):
        Leased(config, name, log).run()


def main() -> None:
    """``hafw-leased --node NAME --config FILE``: in the node's network namespace, as root."""
    daemon_main("hafw-leased", "The lease loop of one node. Started by hafwd.", _run)


if __name__ == "__main__":
    main()
