"""The checkers of the lease simulation: what may never be, judged by what leaves the nodes.

They look at gate stores in true time, at epochs that are logged with a lease that was won, and at
releases on the wire. They know nothing of how the core decides.
"""

from __future__ import annotations

from random import Random

from cluster.asks import FORCE_MS
from cluster.heartbeat import Envelope, Release
from cluster.lease_types import VoterRecord
from hafw.config.model import VoterSet
from hafw.human import epoch_era, format_epoch
from hafw.messages import Position
from tests.simulation.lease_node import (
    CALM_NS,
    DRIFT_PPM,
    GROUP,
    LEASE_NS,
    MS,
    NOT_WON,
    RESTART_WAIT_NS,
    SECOND_GROUP,
    UPSTREAM_NS,
    Given,
    Lane,
    Network,
    Node,
    Owed,
    ViolationError,
)

__all__ = ["Judged"]

FIRST_SET = 3


class Judged:
    """Nodes, the network between them, and what was seen of both."""

    def __init__(
        self,
        rng: Random,
        *,
        gateways: tuple[int, ...],
        witnesses: tuple[int, ...],
        spares: tuple[int, ...] = (),
        groups: int = 1,
    ) -> None:
        """`spares`: of them, those that are no voters at first. `groups`: one, or two with the
        gateways in opposite orders."""
        self.rng = rng
        self.now = 0
        self.network = Network()
        self.network_disturbed_at = 0
        self.gateways = gateways
        self.everybody = tuple(sorted((*gateways, *witnesses)))
        founders = tuple(node for node in self.everybody if node not in spares)
        self.founders = VoterSet(id=FIRST_SET, members=founders)
        self.asked_sets: dict[int, VoterSet] = {}
        """The voter sets that were wanted, by number."""
        orders = (gateways, gateways[::-1])[:groups]
        self.lanes = {
            index: Lane(index, order)
            for index, order in zip((GROUP, SECOND_GROUP), orders, strict=False)
        }
        self.nodes = {
            node: Node(
                node,
                tuple(self.lanes),
                gateway=node in gateways,
                ppm=rng.choice((-DRIFT_PPM, DRIFT_PPM, rng.randrange(-DRIFT_PPM, DRIFT_PPM))),
                offset_ns=rng.randrange(10**15),
            )
            for node in self.everybody
        }
        for node in self.nodes.values():
            node.record = VoterRecord(self.founders)
            if node.id in spares:  # Its cluster.yaml names all nodes, itself too.
                file = VoterSet(id=FIRST_SET, members=self.everybody)
                node.record = VoterRecord.newcomer(file)
        self.eras_lost = False
        """Whether an era file was lost: epochs may then go back, leases may not overlap."""
        self.two_node = False
        self.stood = False
        """Whether what Raft agreed on was said to anybody."""
        self.trace: list[str] | None = None

    @property
    def takeovers(self) -> list[tuple[int, int, int]]:
        """Of all groups: (true time, node, epoch)."""
        return [one for lane in self.lanes.values() for one in lane.takeovers]

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now / MS:10.3f}  {text}")

    def disturb(self, *nodes: int) -> None:
        for node in nodes:
            self.nodes[node].disturbed_at = self.now

    # ---- what is so ---------------------------------------------------------------------------

    def announces(self, node: Node, group: int = GROUP) -> bool:
        return node.true(node.gates[group].announce_ns) > self.now

    def accepts(self, node: Node, group: int) -> bool:
        return node.true(node.gates[group].accept_ns) > self.now

    def served_by(self, nodes: list[int]) -> bool:
        """Whether each group has an ACTIVE node among `nodes`."""
        return all(
            any(self.announces(self.nodes[node], group) for node in nodes) for group in self.lanes
        )

    def sets_in_play(self) -> list[VoterSet]:
        """The sets that nodes act in or may come to act in, those apart that are superseded by
        one two above: nobody may have to rest on them."""
        found = {}
        for node in self.nodes.values():
            acting = node.core.view.voters if node.core is not None else None
            record = node.record
            for voters in (acting, *((record.current, record.next) if record else ())):
                if voters is not None:
                    found[voters.id, voters.members] = voters
        in_force = [node.core.view.voters.id for node in self.nodes.values() if node.core]
        in_force += [node.record.current.id for node in self.nodes.values() if node.record]
        return [voters for (number, _), voters in found.items() if number >= max(in_force) - 1]

    def are_majority(self, nodes: list[int]) -> bool:
        """Whether those of `nodes` that may vote are a majority of every set in play."""
        voting = {node for node in nodes if self._remembers(self.nodes[node])}
        return all(
            len(voting.intersection(voters.members)) >= voters.majority
            for voters in self.sets_in_play()
        )

    def voters_settled(self) -> bool:
        """Everybody acts in one set, and has no other one stored."""
        cores = [node.core for node in self.nodes.values() if node.core is not None]
        sets = {core.view.voters.members for core in cores}
        return len(sets) == 1 and all(core.voters.next is None for core in cores)

    def in_all_sets(self, node: int) -> bool:
        return all(node in voters.members for voters in self.sets_in_play())

    @staticmethod
    def _remembers(node: Node) -> bool:
        return node.record is not None and not node.record.lost

    # ---- checkers -----------------------------------------------------------------------------

    def note_release(self, node: Node, envelope: Envelope) -> bool:
        """`node` sends it. Whether a release to somebody is in it."""
        found = False
        for message in envelope.messages:
            if type(message) is Release and message.to:
                found = True
                if self.announces(node, message.group):
                    raise ViolationError(f"node {node.id} released with announce open")
                gate = node.gates[message.group]
                if gate.given_to != message.to:
                    self._check_gift(node, message)
                gate.given_to = message.to
                if message.position is not None and not self.two_node:  # There it may ask nobody.
                    self._note_given(node, message.position, message)
        return found

    def _note_given(self, node: Node, position: Position, release: Release) -> None:
        heir, kept_until = self.nodes[release.to], node.true(node.gates[release.group].accept_ns)
        heir.given[release.group] = Given(release.epoch, position, kept_until, heir.process)

    def note_owed(self, sender: int, peer: Node, envelope: Envelope) -> None:
        """`peer` hears it."""
        settled = self.now - 4 * LEASE_NS
        if peer.core is None:
            return
        for message in envelope.messages:
            if (
                type(message) is Release
                and message.to == peer.id
                and message.position is not None
                and not peer.inbox  # Else it might be read after what opens the gate.
                and max(peer.started_at, self.nodes[sender].started_at) < settled
            ):
                owed = Owed(message.epoch, message.position, self.now, peer.process)
                peer.owed[message.group] = owed

    def store(
        self,
        node: Node,
        group: int,
        announce_ns: int,
        accept_ns: int,
        won: dict[int, tuple[int, bool]],
    ) -> None:
        """`node` stores deadlines in the gate. `won`: epoch and contiguity of what it won now."""
        gate, lane = node.gates[group], self.lanes[group]
        epoch, contiguous = won.get(group, (0, False)) if won is not NOT_WON else (0, False)
        if announce_ns == 0 and accept_ns and gate.announce_ns:
            gate.shut_at = self.now
        if announce_ns:
            gate.given_to = 0
        gate.announce_ns, gate.accept_ns = announce_ns, accept_ns
        if self.trace is not None:
            self._say_store(node, group, epoch)
        if epoch:
            self._check_contiguous(node, lane, epoch, contiguous)
        if self.announces(node, group):
            self._check_exclusive(node, group)
            if epoch:
                self._check_epoch(node, lane, epoch)
                self._check_position(node, lane)
                self._check_synced(node, lane)
                lane.top_epoch, lane.holder = max(epoch, lane.top_epoch), node.id
                lane.takeovers.append((self.now, node.id, epoch))

    def _say_store(self, node: Node, group: int, epoch: int) -> None:
        gate = node.gates[group]
        self.say(
            f"node {node.id} gate {group}:"
            f" announce {(node.true(gate.announce_ns) - self.now) / MS:.1f} ms,"
            f" accept {(node.true(gate.accept_ns) - self.now) / MS:.1f} ms, {format_epoch(epoch)}"
            if gate.announce_ns
            else f"node {node.id} gate {group} shut"
        )

    def _check_exclusive(self, node: Node, group: int) -> None:
        for other in self.nodes.values():
            if other is node:
                continue
            if self.announces(other, group):
                raise ViolationError(f"nodes {node.id} and {other.id} both announce {group}")
            if self.accepts(other, group):
                gate = other.gates[group]
                if not gate.given_to:
                    raise ViolationError(f"nodes {node.id} and {other.id} both accept, unplanned")
                # Never renewed: what is left is within one lease of when announce was shut.
                if other.true(gate.accept_ns) > gate.shut_at + other.lease_ns * 51 // 50:
                    raise ViolationError(f"node {other.id} accepts for longer than one lease")

    def _check_contiguous(self, node: Node, lane: Lane, epoch: int, contiguous: bool) -> None:
        """Who calls its lease contiguous has won the one before, too, if perhaps too late."""
        last_epoch, last = lane.won_last
        if contiguous and epoch > last_epoch and last != node.id and not self.eras_lost:
            raise ViolationError(f"node {node.id} calls its lease contiguous, after node {last}")
        lane.won_last = max(lane.won_last, (epoch, node.id))

    def _check_epoch(self, node: Node, lane: Lane, epoch: int) -> None:
        """Each opening has an epoch of its own, above all before."""
        if epoch <= lane.top_epoch and not self.eras_lost:
            raise ViolationError(
                f"node {node.id} opened under {format_epoch(epoch)} after "
                f"{format_epoch(lane.top_epoch)} of node {lane.holder}"
            )

    def _check_position(self, node: Node, lane: Lane) -> None:
        """The target of a planned move opens once it applied the old holder's stream up to the
        release, unless it has waited for three leases in vain."""
        given = node.given.pop(lane.index, None)
        if given and given.epoch == lane.top_epoch and given.process == node.process:
            position = given.position
            applied = node.applied.get((position.sender_id, position.session), 0)
            if self.now < given.kept_until and applied < position.seq:
                raise ViolationError(f"node {node.id} opened without {position} of its voters")
        owed = node.owed.pop(lane.index, None)
        if owed is None or owed.epoch != lane.top_epoch or owed.process != node.process:
            return
        position = owed.position
        applied = node.applied.get((position.sender_id, position.session), 0)
        if self.now < owed.told_at + 3 * LEASE_NS and applied < position.seq:
            raise ViolationError(f"node {node.id} opened before it applied {position}")

    def _check_gift(self, node: Node, release: Release) -> None:
        """Who gives a group away by itself does not give it to a node whose far side has been
        silent for long, too, or two nodes with dead upstreams would hand it to and fro."""
        group, calm_from = release.group, self.now - CALM_NS
        target, lane = self.nodes[release.to], self.lanes[group]
        if (
            lane.moved_at  # Who was asked for a move may begin it long after.
            or node.segments_down
            or not node.syncd_up
            or max(target.unanswered_at, target.disturbed_at, node.disturbed_at) > calm_from
            or self.network_disturbed_at > calm_from
        ):
            return
        if any(index == group for index, _ in target.unanswered):
            raise ViolationError(f"node {node.id} gave {group} to {target.id}, no better off")

    def look(self) -> None:
        """Ask at every instant that matters."""
        self.check_kept()
        self.check_better()

    def check_kept(self) -> None:
        """A lease may not end while its holder and a majority are well, nor for a move that waits.

        Judged only if they, and the network between all, have been undisturbed for long, and
        nobody has shut its gate to hand the group over. A slow disk is no excuse, nor is what
        happens to the other nodes' processes. A voter that was still silent when the lease was
        won must be able to carry it on if disks are quick: a new claim needs its era, and eras
        need disks. So does one that had not written its era then.
        """
        calm_from, network = self.now - CALM_NS, self.network
        lost = []
        for lane in self.lanes.values():
            if any(self.announces(node, lane.index) for node in self.nodes.values()):
                lane.lost_in = None
                continue
            in_play = frozenset(voters.id for voters in self.sets_in_play())
            lane.lost_in = lane.lost_in or in_play
            if in_play <= lane.lost_in:  # A set that came later could not have kept it.
                lost.append(lane)
        if self.network_disturbed_at > calm_from or network.loss or network.slow or network.cut:
            return
        for lane in lost:
            gates = [node.gates[lane.index] for node in self.nodes.values()]
            if not any(gate.shut_at > calm_from for gate in gates):
                self._check_lost(lane, calm_from)

    def _check_lost(self, lane: Lane, calm_from: int) -> None:
        """Nobody holds the group."""
        won_at, era = lane.takeovers[-1][0] if lane.takeovers else 0, epoch_era(lane.top_epoch)
        quick = all(
            node.disk_ns <= 50 * MS and node.disk_slow_until < self.now
            for node in self.nodes.values()
        )
        if not quick and self.asked_sets:
            return  # Who cannot store the next voter set in time is left behind in the old one.
        calm = [
            node.id
            for node in self.nodes.values()
            if node.core is not None
            and max(node.disturbed_at, node.unanswered_at) < calm_from
            and (quick or (node.started_at + RESTART_WAIT_NS < won_at and node.disk_era >= era))
            and not (node.late or node.disk_fails or node.disk_hangs or node.unanswered)
        ]
        if lane.holder in calm and self.in_all_sets(lane.holder) and self.are_majority(calm):
            raise ViolationError(f"node {lane.holder} lost its lease, and {calm} are well")

    def check_better(self) -> None:
        """A holder whose far side is silent gives the group to a node whose far side answers.

        Judged only if all nodes and the network have been undisturbed for long, and longer than
        the checks of two nodes may differ.
        """
        calm_from, network = self.now - CALM_NS - UPSTREAM_NS, self.network
        if self.network_disturbed_at > calm_from or network.loss or network.slow or network.cut:
            return
        if self.stood or not any(node.unanswered for node in self.nodes.values()):
            return  # Somebody may be in maintenance; or nobody is worse off.
        for node in self.nodes.values():
            if (
                node.core is None
                or max(node.disturbed_at, node.unanswered_at) > calm_from
                or node.segments_down
                or node.late
                or not (node.syncd_up and self._remembers(node))
                or node.disk_fails
                or node.disk_hangs
            ):
                return
        for lane in self.lanes.values():
            silent = {
                n
                for n in lane.order
                if any(at == lane.index for at, _ in self.nodes[n].unanswered)
            }
            fit = [
                n
                for n in lane.order
                if n not in silent and self.nodes[n].synced and self.in_all_sets(n)
            ]
            holder = self.nodes.get(lane.holder)
            if (
                not lane.moved_at
                and fit
                and holder is not None
                and holder.id in silent
                and self.announces(holder, lane.index)
            ):
                raise ViolationError(f"node {holder.id} keeps {lane.index}, {fit} are better off")

    def _check_synced(self, node: Node, lane: Lane) -> None:
        """An unsynced node may not take a group that a synced one could have taken.

        Judged only where nobody can argue: this node, the synced one and enough voters for a
        majority, the network between them and what their syncds say, have been undisturbed for
        as long as the rule gives a synced candidate, and a restart's wait.
        """
        calm_from = self.now - CALM_NS
        if node.synced or node.id == lane.holder or self.network_disturbed_at > calm_from:
            return
        if lane.forced_at > calm_from - FORCE_MS * MS:
            return
        cut = {end for pair in self.network.cut for end in pair}  # Cut for longer than that.
        calm = [
            other.id
            for other in self.nodes.values()
            if other.core is not None
            and other.disturbed_at < calm_from
            and other.id not in cut
            and not other.disk_hangs
        ]
        better = [
            n for n in calm if n in self.gateways and self.nodes[n].synced and self.in_all_sets(n)
        ]
        if node.id in calm and better and self.are_majority(calm):
            raise ViolationError(f"unsynced node {node.id} claimed although {better} is synced")
