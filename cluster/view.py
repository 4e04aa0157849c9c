"""What one node knows: its peers as heard, its own syncd, its era, and whether it may vote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cluster.damping import FlapWatch
from cluster.heartbeat import REASON_CHARS_MAX, Beat, Envelope, GroupBeat, Message, Voters
from cluster.lease_types import NEWCOMER, GroupParams, LeaseParams, Rng, SegmentsDown, Send
from cluster.pace import Pace
from cluster.pair import PairWatch
from cluster.session import SessionTable, Verdict
from hafw.config.model import VoterSet
from hafw.human import epoch_counter, epoch_era, make_epoch
from hafw.messages import Position, Standing, SyncBeacon

__all__ = ["BEACONS_STALE", "ERA_LEAP_MAX", "HEARD_BEATS", "NodeView", "PeerView"]

HEARD_BEATS = 3
"""A peer not heard for this many heartbeats does not count as a candidate or a voter."""
BEACONS_STALE = 3
"""A syncd whose beacon is older than this many intervals is silent: this node is unsynced."""
COUNTER_MAX = (1 << 32) - 1
ERA_LEAP_MAX = 1000
"""An era further than this above ours is ignored, unless a majority of voters is there: one
damaged era file must not take the eras of the whole cluster to the end of their range."""


@dataclass(slots=True)
class PeerView:
    """A peer, as its proven session says. `hold_seq`: beats sent before it are ignored."""

    node_id: int
    session: int = 0
    heard_ns: int = 0
    beat: Beat | None = None
    beat_seq: int = -1
    beat_ns: int = 0
    rtt_ns: int | None = None
    rtt_at_ns: int = 0
    groups: dict[int, GroupBeat] = field(default_factory=dict)

    def saw_round_trip(self, took_ns: int, now_ns: int) -> None:
        self.rtt_ns = max(0, took_ns)
        self.rtt_at_ns = now_ns

    def forget(self, session: int) -> None:
        """A new process of the peer: nothing its last one said holds."""
        self.session = session
        self.beat = None
        self.beat_seq = -1
        self.groups = {}

    def take(self, beat: Beat, seq: int, now_ns: int) -> bool:
        """A heartbeat; False if a later envelope was here already."""
        if seq < self.beat_seq:
            return False
        self.beat = beat
        self.beat_seq = seq
        self.beat_ns = now_ns
        self.groups = {group.group: group for group in beat.groups}
        return True


class NodeView:
    """Shared by the groups of one node. Only `LeaseCore` writes to it."""

    def __init__(
        self,
        params: LeaseParams,
        *,
        era: int,
        era_durable: bool,
        sessions: SessionTable,
        rng: Rng,
        now_ns: int,
    ) -> None:
        self.params = params
        self.rng = rng
        self.sessions = sessions
        self.counters: Counter[str] = Counter()
        self.era = era
        self.era_wanted = era if era_durable else era + 1
        self.era_durable = era_durable
        self.votes_from_ns = now_ns + params.longer(params.restart_wait_ns)
        nodes = params.nodes or params.voters.members
        self.peers = {node: PeerView(node) for node in nodes if node != params.node_id}
        """All other nodes; who of them votes is for `voters` to say."""
        self.voters_next: VoterSet | None = None  # Stored here, to follow the set in force.
        self.voters_lost = False
        """This node has lost its voters file: it does not vote."""
        self.beacon: SyncBeacon | None = None
        self.beacon_ns = now_ns
        self.twin_ns: int | None = None
        """When another process with this node's id was last heard."""
        self.segments_down: frozenset[str] = frozenset()
        self.standing = Standing({}, [], [])
        self.unanswered: frozenset[tuple[int, str]] = frozenset()
        self.stopping = False
        self.heavy_until_ns = 0
        self.beat_soon = False
        self.pace = Pace(params.heartbeat_ns, now_ns)
        self.act_in(params.voters)
        self.pair = PairWatch(params, now_ns) if params.two_node else None
        self.flaps = FlapWatch(self)
        self._request = 0
        self._heard_for_ns = HEARD_BEATS * params.heartbeat_ns

    def act_in(self, voters: VoterSet) -> None:
        """Ask, count and vote in this set from now on."""
        self.voters = voters
        self.voters_told = Voters(voters.id, voters.members)
        self.voters_hash = voters.hash
        self.majority = voters.majority
        self.is_voter = self.params.node_id in voters.members and voters.id > NEWCOMER

    def hear_stranger(self, sender: int, session: int, now_ns: int) -> None:
        """An authenticated envelope of no peer: a node this cluster.yaml does not know, our own
        datagram come back, or another machine that was given our id."""
        if sender != self.params.node_id:
            self.counters["unknown_sender"] += 1
        elif session == self.sessions.own:
            self.counters["own_echo_heard"] += 1
        else:
            self.counters["own_id_heard"] += 1
            self.twin_ns = now_ns
            if self.pair is not None:
                self.pair.doubt(now_ns)  # It may have the peer's place.

    # ---- alone with one peer ------------------------------------------------------------------

    def turn(self, now_ns: int) -> None:
        """The loop begins to work."""
        if self.pair is not None:
            late = self.pair.turn(now_ns, votes=self.may_vote(now_ns))
            self.counters["turns_too_late"] += late

    def ticked(self, now_ns: int, beat_ns: int) -> None:
        if self.pair is not None:
            self.pair.ticked(now_ns, beat_ns)

    def look_at_ns(self, now_ns: int, beat_ns: int) -> int:
        """The next heartbeat, or an earlier moment at which this node may be alone. Asked when
        all effects are done."""
        at_ns = None if self.pair is None else self.pair.wait(now_ns)
        return beat_ns if at_ns is None else min(at_ns, beat_ns)

    def hear_any(self, verdict: Verdict, envelope: Envelope, now_ns: int) -> None:
        """The other node speaks: proven or not, to be acted on or not, it lives."""
        if self.pair is not None and verdict in (Verdict.ACT, Verdict.HELLO):
            self.pair.hear(envelope, now_ns)

    def hear_unreadable(self, now_ns: int) -> None:
        if self.pair is not None:
            self.pair.doubt(now_ns)

    def alone(self, group: int, now_ns: int, *, holding: bool) -> bool:
        """Whether the own vote is enough for the group: the only peer is gone, as far as a node
        with all of the group's carriers can know."""
        return (
            self.pair is not None
            and len(self.peers) == 1
            and not self.carrier_fault(group)
            and self.pair.alone(now_ns, holding=holding)
        )

    def outranked(self, group: int, epoch: int, now_ns: int) -> bool:
        """Whether the peer is ACTIVE too, under a higher epoch: both were alone."""
        if self.pair is None or self.active_peer(group, now_ns)[1] <= epoch:
            return False
        self.counters["leases_yielded"] += 1
        return True

    def needed(self, group: int, now_ns: int, *, holding: bool) -> int:
        """Votes that are a majority now."""
        return 1 if self.alone(group, now_ns, holding=holding) else self.majority

    # ---- voting -------------------------------------------------------------------------------

    def may_vote(self, now_ns: int) -> bool:
        knows = self.era_durable and not self.voters_lost
        return knows and self.is_voter and now_ns >= self.votes_from_ns

    def able(self) -> bool:
        """Whether this node could carry a group."""
        resting = self.params.node_id in self.standing.out
        carries = self.params.gateway and self.is_voter and self.era_durable
        return carries and not (self.stopping or resting)

    def order(self, group: GroupParams) -> tuple[int, ...]:
        """The group's candidates, best first, as agreed on last."""
        agreed = tuple(self.standing.orders.get(group.index, ()))
        return agreed if sorted(agreed) == sorted(group.order) else group.order

    def voters_ready(self, group: int, now_ns: int) -> bool:
        """Whether a majority that may vote is heard."""
        ready = sum(
            1
            for node, peer in self.peers.items()
            if self.alive(node, now_ns) and self.in_set(peer) and peer.beat and peer.beat.votes
        )
        return ready + self.may_vote(now_ns) >= self.needed(group, now_ns, holding=False)

    def counts(self, node: int) -> bool:
        """Whether the vote of `node` counts in the set in force."""
        return node in self.voters.members

    def in_set(self, peer: PeerView) -> bool:
        """Whether the peer is a voter of the set in force here, and acts in it."""
        return (
            self.counts(peer.node_id)
            and peer.beat is not None
            and peer.beat.voters == self.voters_told
        )

    def era_told(self) -> int:
        """The era to name to others: 0 while ours is not durable, so that nobody learns it."""
        return self.era if self.era_durable else 0

    def credible(self, era: int) -> bool:
        """Whether an era that another node names may be learned from it."""
        told = [p.beat.era for p in self.peers.values() if p.beat and self.counts(p.node_id)]
        told.sort(reverse=True)
        # What a majority's worth of the others has reached is not one damaged file.
        reached = told[self.majority - 1] if len(told) >= self.majority else 0
        return era <= max(self.era, reached) + ERA_LEAP_MAX

    def want_era(self, era: int) -> None:
        """Learn of an era; ours follows once it is durable."""
        if era <= self.era_wanted:
            return
        if self.credible(era):
            self.era_wanted = era
        else:
            self.counters["eras_ignored"] += 1

    def next_epoch(self, group: int, floor: int) -> int | None:
        """A ballot above everything known; None until this node's own era file is high enough."""
        top = floor
        era = self.era
        for peer in self.peers.values():
            if group in peer.groups and self.credible(epoch_era(peer.groups[group].promised)):
                top = max(top, peer.groups[group].promised)
        counter = 1
        if epoch_era(top) >= era:
            era = epoch_era(top)
            counter = epoch_counter(top) + 1
            if counter > COUNTER_MAX:
                era, counter = era + 1, 1
        if era > self.era:
            self.want_era(era)
            return None
        return make_epoch(era, counter, self.params.node_id)

    def lease_asked_ns(self, now_ns: int, *, opened: bool) -> int:
        """What to ask voters for. During heavy work on its machine a holder renews by the longest
        lease. Who is alone with one peer does not: silence is weighed against the usual one."""
        if opened and now_ns < self.heavy_until_ns and self.pair is None:
            return self.params.lease_ns_max
        return self.params.lease_ns

    def next_request(self) -> int:
        self._request += 1
        return self._request

    # ---- who is there -------------------------------------------------------------------------

    def alive(self, node: int, now_ns: int) -> bool:
        """Heard, in a proven session, within `HEARD_BEATS` heartbeats."""
        if node == self.params.node_id:
            return True
        peer = self.peers.get(node)
        return peer is not None and self._heard_lately(peer, now_ns)

    def _heard_lately(self, peer: PeerView, now_ns: int) -> bool:
        return peer.beat is not None and now_ns - peer.heard_ns <= self._heard_for_ns

    def round_trip_told(self, node: int, now_ns: int) -> int | None:
        """The round trip that the peer's envelope of this very moment told; None: it told none."""
        peer = self.peers.get(node)
        return peer.rtt_ns if peer is not None and peer.rtt_at_ns == now_ns else None

    def alive_peers(self, now_ns: int) -> list[PeerView]:
        return [peer for peer in self.peers.values() if self._heard_lately(peer, now_ns)]

    def can_carry(self, node: int, now_ns: int) -> bool:
        if node == self.params.node_id:
            return self.able()
        beat = self.peers[node].beat if self.alive(node, now_ns) else None
        return beat is not None and beat.able

    def synced(self, node: int, group: int, now_ns: int) -> bool:
        """Whether `node` is there and could carry the group without losing flows."""
        if not self.can_carry(node, now_ns):
            return False
        if node == self.params.node_id:
            return self.own_fit(group, now_ns)[0]
        beat = self.peers[node].groups.get(group)
        return beat is not None and beat.synced

    def active_peer(self, group: int, now_ns: int) -> tuple[int, int]:
        """(node, epoch) of an alive peer whose gate is open as it says; (0, 0) if none is."""
        found = 0, 0
        for peer in self.peers.values():
            beat = peer.groups.get(group)
            if beat is not None and beat.active > found[1] and self._heard_lately(peer, now_ns):
                found = peer.node_id, beat.active
        return found

    # ---- own syncd ----------------------------------------------------------------------------

    def syncd_silent_ns(self, now_ns: int) -> int:
        """How long the beacon has been overdue; 0: it is in time."""
        age_ns = now_ns - self.beacon_ns
        late = self.beacon is None or age_ns > BEACONS_STALE * self.params.beacon_ns
        return max(1, age_ns) if late else 0

    def take_beacon(self, beacon: SyncBeacon, now_ns: int) -> None:
        old, self.beacon, self.beacon_ns = self.beacon, beacon, now_ns
        if old is None or old.synced != beacon.synced:
            self.beat_soon = True

    def take_faults(self, seen: SegmentsDown, now_ns: int) -> None:
        """A news of the carriers ends the peer's silence; one of the upstream checks alone does
        not, or a router that flaps would keep a node from ever being alone."""
        of_upstream_alone = seen.names == self.segments_down and seen.unanswered != self.unanswered
        self.segments_down, self.unanswered = seen.names, seen.unanswered
        self.beat_soon = True
        if self.pair is not None and not of_upstream_alone:
            self.pair.doubt(now_ns)

    def upstream_fault(self, group: int) -> str:
        """Which segment's far side does not answer this node; empty: none that is checked."""
        if not self.unanswered:
            return ""
        silent = sorted(segment for index, segment in self.unanswered if index == group)
        return "".join(f"the upstream check of segment {name} fails" for name in silent[:1])

    def sound(self, node: int, group: int, now_ns: int) -> bool:
        """Whether no upstream check of `node` fails, as far as is heard."""
        if node == self.params.node_id:
            return not self.upstream_fault(group)
        beat = self.peers[node].groups.get(group) if self.alive(node, now_ns) else None
        return beat is not None and beat.upstream

    def carrier_fault(self, group: int) -> str:
        """Which segment of the group is dead here; empty: none."""
        if not self.segments_down:
            return ""
        dead = [
            f"segment {name}: no carrier on {device}"
            for params in self.params.groups
            if params.index == group
            for name, device in params.segments
            if name in self.segments_down
        ]
        return "; ".join(dead)[:REASON_CHARS_MAX]

    def own_fit(self, group: int, now_ns: int) -> tuple[bool, str]:
        """Whether this node could carry the group well: its segments live, its syncd synced."""
        fault = self.carrier_fault(group)
        return (False, fault) if fault else self.own_sync(group, now_ns)

    def own_sync(self, group: int, now_ns: int) -> tuple[bool, str]:
        if not self.params.gateway:
            return False, "a witness"
        if self.beacon is None or self.syncd_silent_ns(now_ns):
            return False, "syncd silent"
        synced = self.beacon.synced.get(group, False)
        reason = "" if synced else self.beacon.reasons.get(group, "syncd gives no reason")
        return synced, reason[:REASON_CHARS_MAX]

    def applied(self, position: Position) -> bool:
        """Whether the own syncd applied that sender's stream up to `position`."""
        return self.beacon is not None and any(
            seen.sender_id == position.sender_id
            and seen.session == position.session
            and seen.seq >= position.seq
            for seen in self.beacon.applied
        )

    # ---- sending ------------------------------------------------------------------------------

    def send(self, to: int, *messages: Message) -> Send:
        return Send(
            to,
            Envelope(
                session=self.sessions.own,
                seq=self.sessions.next_seq(),
                to=to,
                voters_id=self.voters.id,
                voters_hash=self.voters_hash,
                heard=self.sessions.heard(),
                messages=list(messages),
            ),
        )
