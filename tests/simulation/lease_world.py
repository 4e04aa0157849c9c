"""A simulated cluster of real lease cores, and what can be done to its nodes.

Modelled so as to be cruel to timing: every node's clock runs at its own rate (up to ε wrong) from
its own offset; datagrams are lost, doubled, delayed (sometimes by several leases) and partitioned
one way; a killed process leaves its gate as it was; a power cut does not. How nodes run is in
`lease_engine`, what is judged in `lease_checks`.
"""

from __future__ import annotations

from random import Random
from typing import Any

from cluster.lease import LeaseCore
from cluster.lease_types import (
    DampingParams,
    GroupParams,
    HeavyUntil,
    LeaseParams,
    MoveAsked,
    SegmentsDown,
    StandingSaid,
    StopAsked,
    SyncdSaid,
    VoterRecord,
    VotersAsked,
)
from hafw.config.model import VoterSet
from hafw.messages import MoveRequest, NewEpochRequest, Position, Standing, SyncBeacon
from tests.simulation.lease_engine import Engine, record_text
from tests.simulation.lease_node import (
    BEACON_NS,
    DRIFT_PPM,
    GROUP,
    HEARTBEAT_NS,
    LEASE_NS_MAX,
    MS,
    RESTART_WAIT_NS,
    SEGMENTS,
    UPSTREAM_NS,
    Node,
)

__all__ = ["World"]


class World(Engine):
    """Start it, disturb it, run it; raises ViolationError."""

    def __init__(self, rng: Random, **shape: Any) -> None:
        """`shape`: as of `Engine`."""
        super().__init__(rng, **shape)
        self.heartbeat_ns = HEARTBEAT_NS
        self.damping: DampingParams | None = None
        self.no_restart_wait = False
        self.loss_of_voters_unnoticed = False

    # ---- life of a node -----------------------------------------------------------------------

    def start(self, node: Node) -> None:
        if node.core is not None:
            return
        self.disturb(node.id)
        node.started_at = self.now
        node.process += 1
        node.todo.clear()
        node.inbox.clear()
        node.held_up = False
        node.paused_until = node.busy_until = self.now
        durable = not node.disk_fails
        era = node.disk_era
        if durable:
            era += 1
            node.disk_era = era
        if self.forget_era:
            era, durable, node.disk_era = 1, True, 0
        segments = SEGMENTS if node.gateway else ()
        params = LeaseParams(
            node_id=node.id,
            gateway=node.gateway,
            voters=self.founders,
            nodes=self.everybody,
            groups=tuple(
                GroupParams(lane.index, lane.order, segments, UPSTREAM_NS)
                for lane in self.lanes.values()
            ),
            heartbeat_ns=self.heartbeat_ns,
            lease_ns=node.lease_ns,
            restart_wait_ns=RESTART_WAIT_NS,
            lease_ns_max=LEASE_NS_MAX,
            beacon_ns=BEACON_NS,
            drift_ppm=DRIFT_PPM,
            two_node=self.two_node,
            damping=self.damping,
        )
        now_ns = node.local(self.now)
        seed = Random(self.rng.randrange(1 << 60))
        lost = not self.loss_of_voters_unnoticed
        record = node.record or VoterRecord(self.founders, lost=lost)
        node.core = LeaseCore(
            params, era=era, era_durable=durable, rng=seed, now_ns=now_ns, record=record
        )
        if self.no_restart_wait:
            node.core.view.votes_from_ns = now_ns
        if node.segments_down or node.unanswered:
            node.inbox.append(SegmentsDown(node.segments_down, node.unanswered))
        if self.trace is not None:
            self.say(f"node {node.id} starts, era {era}, {record_text(record)}")
        self._beacon(node, node.process)
        self.pump(node)

    def power_cut(self, node: Node) -> None:
        self.kill(node)
        node.shut()
        node.syncd_session += 1
        node.applied.clear()

    def pause(self, node: Node, duration_ns: int) -> None:
        self.disturb(node.id)
        node.paused_until = max(node.paused_until, self.now + duration_ns)
        self.say(f"node {node.id} paused for {duration_ns / MS:.0f} ms")
        self.at(node.paused_until, lambda: self.pump(node))

    def stop(self, node: Node) -> None:
        """SIGTERM."""
        if node.core is not None:
            self.disturb(node.id)
            self.say(f"node {node.id} stops")
            node.inbox.append(StopAsked())
            self.pump(node)

    def move(self, node: Node, target: int, wait_s: float, group: int = GROUP) -> None:
        if node.core is not None:
            self.lanes[group].moved_at = self.now
            self.say(f"move of {group} to {target} asked of node {node.id}")
            request = MoveRequest(group=group, target_id=target, wait_s=wait_s)
            self._event(node, node.process, MoveAsked("token", request))

    def force(self, node: Node, group: int = GROUP) -> None:
        """An operator wants the group on this node, synced or not."""
        if node.core is not None:
            lane = self.lanes[group]
            lane.moved_at = lane.forced_at = self.now
            self.say(f"move of {group} forced to node {node.id}")
            request = MoveRequest(group=group, target_id=node.id, wait_s=0, force=True)
            self._event(node, node.process, MoveAsked("token", request))

    def stand(self, node: Node, standing: Standing) -> None:
        """What Raft agreed on, as far as this node has heard of it."""
        self.disturb(node.id)
        self.stood = True
        self.say(f"node {node.id} hears {standing}")
        self._event(node, node.process, StandingSaid(standing))

    def heavy(self, node: Node, for_ns: int) -> None:
        """Somebody on this node says that it will be busy for so long; 0: no more."""
        self.say(f"node {node.id} is told of {for_ns / MS:.1f} ms of heavy work")
        until_ns = node.local(self.now) + for_ns if for_ns else 0
        self._event(node, node.process, HeavyUntil(until_ns))

    def _beacon(self, node: Node, process: int) -> None:
        """The node's syncd, as far as leased hears it."""
        if node.process != process or not node.gateway:
            return
        if node.syncd_up:
            applied = [
                Position(sender_id=sender, session=session, seq=seq)
                for (sender, session), seq in node.applied.items()
            ]
            beacon = SyncBeacon(
                synced=dict.fromkeys(self.lanes, node.synced),
                reasons={} if node.synced else dict.fromkeys(self.lanes, "behind"),
                applied=applied,
                stale_entries=0,
            )
            node.inbox.append(SyncdSaid(beacon))
            self.pump(node)
        self.at(self.now + BEACON_NS, lambda: self._beacon(node, process))

    def carrier(self, node: Node, down: frozenset[str]) -> None:
        """Exactly these segments of the node have no carrier from now on."""
        self.disturb(node.id)
        node.segments_down = down
        self.say(f"node {node.id} without carrier on {sorted(down)}")
        self._event(node, node.process, SegmentsDown(down, node.unanswered))

    def upstream(self, node: Node, silent: frozenset[tuple[int, str]]) -> None:
        """Exactly these checks of the node, (group, segment), get no answer from now on. No
        disturbance: it is no excuse for losing a lease."""
        node.unanswered, node.unanswered_at = silent, self.now
        self.say(f"node {node.id} without an answer from {sorted(silent)}")
        self._event(node, node.process, SegmentsDown(node.segments_down, silent))

    def ask_voters(self, node: Node, voters: VoterSet) -> None:
        """Somebody wants this set to follow the one in force."""
        self.say(f"node {node.id} is asked for voters {voters.id}: {voters.members}")
        self._event(node, node.process, VotersAsked("token", voters))

    def ask_epoch(self, node: Node, index: int = GROUP) -> None:
        """A restarted syncd on the holder wants a higher epoch."""
        group = node.core.groups[index] if node.core is not None else None
        if group is not None and group.proposer.held is not None:
            request = NewEpochRequest(
                group=index, held_epoch=group.proposer.held.epoch, reason="no registry"
            )
            self.say(f"node {node.id} is asked for a new epoch of {index}")
            self._event(node, node.process, SyncdSaid(request))
