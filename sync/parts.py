"""The parts of one hafw-syncd and how they are joined. Shell: it opens what they need."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import zmq

from hafw.config.model import ClusterConfig
from hafw.cpus import lease_cpu, usable_cpus
from hafw.errors import KernelError, StateError
from hafw.flow import GROUP_SHIFT
from hafw.keyring import Keyring, read_keyring
from hafw.messages import ResyncReply
from hafw.paths import NodePaths
from sync import native
from sync.adopt import TIMEOUT_SYSCTLS
from sync.applier import Applier
from sync.clean_epochs import CleanEpochs
from sync.ctsocket import CONNTRACK_GROUPS, EXPECTATION_GROUPS, EventSocket
from sync.detour import Detour
from sync.dumper import Dumper, Waker
from sync.event_reader import EventReader
from sync.flowhash import FlowHash
from sync.follower import Follower, FollowerPorts
from sync.holder import GROUP_MASK, Holder, HolderPorts
from sync.inbox import Inbox
from sync.intake import reader
from sync.localbus import LocalBus
from sync.paths import Paths
from sync.prober import Prober
from sync.publish import Publisher, RandomBits
from sync.reception import Reception
from sync.replica import ReplicaGroup, Superseded
from sync.roles import Roles
from sync.snapshot import Serving, SnapshotServer
from sync.snapshot_client import SnapshotClient
from sync.transport import Transport
from sync.verify import Verifier
from sync.wire import Seals

__all__ = ["Parts"]

EVENTS_RCVBUF_BYTES = 64 << 20


class Parts:
    """Constructed once; `close` in any state."""

    def __init__(
        self,
        config: ClusterConfig,
        node_name: str,
        ring: Keyring,
        paths: NodePaths,
        *,
        superseded: Callable[[Superseded], None],
    ) -> None:
        node = config.nodes[node_name]
        self._key_file = paths.sync_key
        self._lease_cpu = lease_cpu(config.cpus, usable_cpus())
        numbers = sorted(group.index for group in config.groups.values())
        self.bus = LocalBus(paths)
        self.waker = Waker()
        # The event socket first: what changes from now on is heard.
        self.events = EventSocket(
            rcvbuf_bytes=EVENTS_RCVBUF_BYTES, groups=CONNTRACK_GROUPS + EXPECTATION_GROUPS
        )
        self.registry, random = native.make_registry(FlowHash(ring.flow_secret))
        hold_s = config.sync.hold_s
        self.applier = Applier(hold_s=hold_s, expectations_of=self.registry.expectations.of)
        self.problems = self._filter_events()
        """What went wrong at the start and is no reason not to run: alarms of the status."""
        self._open_ways(config, node_name)
        self.publisher = Publisher(self.registry, random)
        self.groups = {number: ReplicaGroup() for number in numbers}
        self._receiver = native.make_receiver(self.registry, self.groups, hold_s=hold_s)
        self._open_stream(config, node.id, ring)
        self.roles = Roles(node.id, numbers)
        self.timeouts_s: dict[str, int] = {}
        self.clean_epochs = CleanEpochs(paths)
        self.holder = Holder(
            config,
            node.id,
            registry=self.registry,
            groups=self.groups,
            publisher=self.publisher,
            applier=self.applier,
            outbox=self.outbox,
            timeouts_s=self.timeouts_s,
            ports=self._holder_ports(),
        )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._open_snapshots(config, node_name, ring)
        self.follower = Follower(
            registry=self.registry,
            groups=self.groups,
            roles=self.roles.states,
            applier=self.applier,
            stream=self.inbox.stream,
            client=self.client,
            ports=FollowerPorts(
                superseded,
                self._start_raw,
                lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            ),
            receiver=self._receiver,
        )
        arrivals = native.make_arrivals(self._receiver, cluster_id=config.cluster_id)
        self.reception = Reception(self.transport, self.inbox, self.follower, arrivals)
        self._open_reader(random)
        self.prober = Prober(
            config, self.paths, self.detour, self.transport, self.outbox, self.reader, self.server
        )
        self.verifier = Verifier(
            node.id, self.registry, self.roles.states, self.follower.upkeep.watches, self.applier,
            start_dump=self._start_dump, answer=self.bus.answer,
        )  # fmt: skip

    def _open_ways(self, config: ClusterConfig, node_name: str) -> None:
        self.transport = Transport(config, node_name)
        segments = self.transport.segments
        self.paths = Paths(
            self.transport.shared, unicast=self.transport.unicast_only, segments=segments
        )
        self.detour = Detour(segments, beacon_s=config.sync.beacon_ms / 1e3)

    def _open_reader(self, random: RandomBits) -> None:
        self.reader = EventReader(
            self.events,
            holder=self.holder,
            upkeep=self.follower.upkeep,
            outbox=self.outbox,
            publisher=self.publisher,
            pump=native.make_pump(self.registry, random, own_port=self.applier.port_id),
            sent=native.sending_by_itself(self.outbox),
        )

    def _open_stream(self, config: ClusterConfig, node_id: int, ring: Keyring) -> None:
        boot, publisher = _boot_id(), self.publisher
        self._sealing = config.cluster_id, node_id
        self.ring = ring
        self.outbox = native.make_outbox(
            self._new_sealer,
            self.transport,
            ring_datagrams=config.sync.ring_datagrams,
            boot=boot,
            first_said=lambda: publisher.counters["first"],
        )
        self.inbox = Inbox(
            ring.by_id,
            node_id,
            config.cluster_id,
            self.outbox,
            self.transport,
            boot=boot,
            paths=self.paths,
            detour=self.detour,
            read=reader(self._receiver),
        )

    def _open_snapshots(self, config: ClusterConfig, node_name: str, ring: Keyring) -> None:
        node, port = config.nodes[node_name], config.sync.snapshot_port
        self.client = SnapshotClient(
            self.context,
            ring,
            node_id=node.id,
            ways_to=self.transport.addresses_to,
            port=port,
            seals=self.inbox.peer_keys.seals,
        )
        self.server = SnapshotServer(
            self.context,
            ring,
            node_id=node.id,
            addresses=[str(link.address.ip) for _, link in sorted(node.links.items())],
            port=port,
            registry=self.registry,
            serving=Serving(
                self._serve_from,
                self._start_raw,
                self._position,
                self.holder.doubt,
                native.make_plain(self.registry),
            ),
        )

    def _new_sealer(self) -> Seals:
        cluster_id, node_id = self._sealing
        return native.make_sealer(
            self.ring.sealing.key,
            key_id=self.ring.seals,
            cluster_id=cluster_id,
            sender_id=node_id,
            session=secrets.randbits(63) | 1,
        )

    def _filter_events(self) -> list[str]:
        try:
            self.events.attach_filter(self.applier.port_id)
        except KernelError as error:
            return [f"{error}: the echo of every replica is read"]
        return []

    def whole(self, sender_id: int) -> bool:
        """Is everything here that this sender has said of the groups it holds? Not as long as
        nobody has told who holds them."""
        wants = self.follower.wants_snapshot
        return all(
            state.active
            or (state.holder_id and not (state.holder_id == sender_id and wants(group)))
            for group, state in self.roles.states.items()
        )

    def reload_keys(self) -> str:
        """Open and seal with the keys of the file from now on; nothing else changes. All or
        nothing: if the file is wrong, the keys in use stay and the answer says what it is."""
        try:
            ring = read_keyring(self._key_file)
        except StateError as error:
            return str(error)
        if ring.flow_secret != self.ring.flow_secret:
            return f"key {self._key_file} is of another cluster, or new: restart hafw-syncd"
        self.ring = ring
        self.inbox.opener.accept_keys(ring.by_id)
        self.reception.forget_keys()
        if ring.seals != self.outbox.sealer.key_id:
            self.outbox.flush()
            self.outbox.sealer.use_key(ring.seals, ring.sealing.key)
        self.server.use_keys(ring)
        self.client.use_keys(ring)
        return ""

    def counters(self) -> list[Counter[str]]:
        return [
            self.bus.counters, self.transport.counters, self.detour.counters, self.outbox.tally(),
            self.inbox.counters, self.inbox.stream.counters, self.publisher.counters,
            self.holder.counters, self.holder.expecting.counters,
            self.follower.counters, self.follower.table.counters,
            self.follower.upkeep.counters,
            self.applier.counters, self.roles.counters, self.server.counters,
            self.client.counters, self.verifier.counters,
        ]  # fmt: skip

    def close(self) -> None:
        self.verifier.close()
        self.holder.close()
        self.follower.close()
        self.server.close()
        self.context.destroy(linger=0)
        self.transport.close()
        self.events.close()
        self.applier.close()
        self.bus.close()
        self.waker.close()

    def resync(self, *, now: float) -> ResyncReply:
        """By hand: fetch anew all groups that others hold."""
        refused: dict[int, str] = {}
        for group, state in self.roles.states.items():
            if state.active:
                refused[group] = "this node holds it"
            elif self.inbox.stream.accepted_session(state.holder_id) is None:
                refused[group] = "nobody holds it whose stream is accepted here"
            else:
                self.follower.fetch_anew(group, now=now)
        return ResyncReply(sorted(self.roles.states.keys() - refused.keys()), refused)

    def read_timeouts(self) -> None:
        """What the kernel gives a flow when a packet refreshes it, as set now."""
        for kind, name in TIMEOUT_SYSCTLS.items():
            with contextlib.suppress(OSError, ValueError):
                text = Path("/proc/sys/net/netfilter", name).read_text(encoding="ascii")
                self.timeouts_s[kind] = int(text)

    def _serve_from(self, number: int) -> tuple[int, int, int] | str:
        if number not in self.groups:
            return f"no group has index {number}"
        epoch = self.holder.ready_epoch(number)
        if epoch is None:
            held = self.groups[number].active
            return "not all flows are published yet" if held else "the group is not held here"
        self.outbox.flush()
        return self.outbox.session, self.outbox.position, epoch

    def _holder_ports(self) -> HolderPorts:
        return HolderPorts(
            self._start_dump,
            lambda: Dumper(0, 0, self.waker, avoid_cpu=self._lease_cpu),
            self._start_gathered,
            self.bus.to_leased,
            self.clean_epochs.note,
            native.make_strict(self.registry),
        )

    def _position(self) -> int:
        self.outbox.flush()
        return self.outbox.position

    def _start_raw(self, number: int) -> Dumper:
        return Dumper(
            number << GROUP_SHIFT, GROUP_MASK, self.waker,
            avoid_cpu=self._lease_cpu, raw=self._receiver is not None,
        )  # fmt: skip

    def _start_gathered(self, number: int) -> Dumper:
        return Dumper(
            number << GROUP_SHIFT, GROUP_MASK, self.waker,
            avoid_cpu=self._lease_cpu, gather=native.gather(),
        )  # fmt: skip

    def _start_dump(self, number: int) -> Dumper:
        return Dumper(number << GROUP_SHIFT, GROUP_MASK, self.waker, avoid_cpu=self._lease_cpu)


def _boot_id() -> int:
    """64 bits of this kernel's boot id: equal for all nodes of a lab."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.replace("-", "")[:16], 16)
