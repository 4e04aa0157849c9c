"""Kinds of faults about the voter set: changes of it, and files that are old or lost."""

from __future__ import annotations

from cluster.lease_types import NEWCOMER, VoterRecord
from hafw.config.model import VoterSet
from tests.simulation.lease_checks import FIRST_SET
from tests.simulation.lease_faults import Faults
from tests.simulation.lease_node import HEARTBEAT_NS, LEASE_NS, MS, RESTART_WAIT_NS, Node

__all__ = ["VoterFaults"]


class VoterFaults(Faults):
    """Added to what else may happen."""

    def _stale_voters(self) -> None:
        """One node comes back with last year's cluster.yaml: three voters instead of five."""
        world = self.world
        if len(world.founders.members) != 5 or world.asked_sets:
            return  # It was switched off two changes ago, and there has been no other since.
        world.asked_sets[FIRST_SET] = world.founders
        node = world.nodes[1]
        world.power_cut(node)
        others = sorted(set(world.nodes) - {1})
        old = (1, self.rng.choice(others[:2]), others[-1])
        node.record = VoterRecord(VoterSet(id=FIRST_SET - 2, members=old))
        node.disk_least_ns = 300 * MS  # It hears of the sets since, and takes long to store them.
        node.disk_slow_until = world.now + 2_000 * MS
        world.start(node)

    def _another_set(self, voters: VoterSet) -> VoterSet:
        """One that may follow: a voter more or less, with a gateway among them."""
        world, rng = self.world, self.rng
        while True:
            node = rng.choice(world.everybody)
            members = set(voters.members) ^ {node}
            if len(members) > 1 and members.intersection(world.gateways):
                return VoterSet(id=voters.id + 1, members=tuple(sorted(members)))

    def _change_voters(self) -> None:
        """A voter more or less is wanted; asked of one node, or of several."""
        world, rng = self.world, self.rng
        for node in rng.sample(list(world.nodes.values()), rng.randrange(1, 3)):
            if node.core is None or self.mended:
                continue
            voters = node.core.view.voters
            follows = world.asked_sets.get(voters.id + 1)
            if follows is None:
                follows = world.asked_sets[voters.id + 1] = self._another_set(voters)
            world.ask_voters(node, follows)

    def _change_voters_twice(self) -> None:
        self._change_voters()
        for leases in (2, 3, 5):
            self.world.at(self.world.now + leases * LEASE_NS, self._change_voters)

    def _lose_and_leave_behind(self) -> None:
        self._leave_behind(lose=True)

    def _leave_behind(self, *, lose: bool = False) -> None:
        """A voter hears only one other one, or nobody, while the others change the set as fast
        as they can; then that one is cut off with it, after a crash, perhaps without its file."""
        world, rng = self.world, self.rng
        members = [n for n in self._acting_members() if world.nodes[n].core is not None]
        if len(members) < 2:
            return
        behind, other = rng.sample(members, 2)
        rest = [node for node in world.nodes if node not in (behind, other)]
        away = {(behind, node) for node in rest} | {(node, behind) for node in rest}
        if rng.random() < 0.5:
            away |= {(behind, other), (other, behind)}
        world.network_disturbed_at = world.now
        world.network.cut |= away
        world.say(f"node {behind} is left behind")
        until = world.now + rng.randrange(30 * MS, 5 * RESTART_WAIT_NS)
        for t in range(world.now, until, 4 * MS):
            world.at(t, self._change_voters)
        slowly = [] if lose else [world.nodes[behind], world.nodes[other]]
        slow = [node for node in slowly if rng.random() < 0.5]
        for node in slow:
            node.disk_ns = 400 * MS
        both = {(node, other) for node in rest} | {(other, node) for node in rest}

        def turn() -> None:
            if self.mended:
                return
            world.network.cut -= {(behind, other), (other, behind)}
            world.network.cut |= both
            world.say(f"nodes {behind} and {other} are alone")
            if lose or rng.random() < 0.6:
                world.kill(world.nodes[other])
                first = all(self._has_file(node) for node in world.nodes.values())
                if first and (lose or rng.random() < 0.5):
                    world.nodes[other].record = None
                self._later(20 * MS, lambda: world.start(world.nodes[other]))

        def heal() -> None:
            world.network_disturbed_at = world.now
            for node in slow:
                node.disk_ns = MS
            if not self.mended:
                world.network.cut -= away | both

        world.at(until, turn)
        world.at(until + RESTART_WAIT_NS + 6 * LEASE_NS, heal)

    def _slow_disk_in_a_change(self) -> None:
        """Others store the next set long before the holder does, or a voter that it needs."""
        world, node = self.world, self._holder_or_any()
        heard = [other for other in world.nodes.values() if other.core is not None]
        if node.core is None or node.core.view.voters.id == NEWCOMER:
            return
        node.disk_least_ns = 2 * RESTART_WAIT_NS
        node.disk_slow_until = world.now + 1_000 * MS
        world.ask_voters(self.rng.choice(heard), self._another_set(node.core.view.voters))

        def heal() -> None:
            node.disk_least_ns = 0

        world.at(world.now + 6 * LEASE_NS, heal)

    def _move_between_sets(self) -> None:
        """The target of a move follows to a new set later than the holder, and is told of the
        release alone: neither the voters nor its syncd hear of what went before."""
        world, rng = self.world, self.rng
        holders = [node for node in world.nodes.values() if world.announces(node)]
        voters = holders[0].core.view.voters if holders and holders[0].core is not None else None
        if voters is None or voters.id + 1 in world.asked_sets:
            return
        heirs = [n for n in world.gateways if n in voters.members and n != holders[0].id]
        if not heirs:
            return
        holder, heir = holders[0], world.nodes[rng.choice(heirs)]
        others = [node for node in world.everybody if node not in (holder.id, heir.id)]
        members = set(voters.members) ^ {rng.choice(others)}
        follows = VoterSet(id=voters.id + 1, members=tuple(sorted(members)))
        world.asked_sets[follows.id] = follows
        world.disturb(heir.id)
        heir.disk_least_ns = 2 * RESTART_WAIT_NS
        heir.disk_slow_until = world.now + 2_000 * MS
        world.ask_voters(holder, follows)

        def move() -> None:
            if self.mended:
                return
            self._cut_for({(holder.id, node) for node in others}, 2 * LEASE_NS)
            heir.syncd_up = False
            world.move(holder, heir.id, 0)
            world.at(world.now + 50 * MS, heal)

        def heal() -> None:
            world.disturb(heir.id)
            heir.syncd_up, heir.disk_least_ns = True, 0

        world.at(world.now + RESTART_WAIT_NS + 30 * MS + rng.randrange(LEASE_NS), move)

    def _acting_members(self) -> list[int]:
        cores = [node.core for node in self.world.nodes.values() if node.core is not None]
        return sorted({n for core in cores for n in core.view.voters.members})

    @staticmethod
    def _has_file(node: Node) -> bool:
        return node.record is not None and not node.record.lost

    def _rival_voters(self) -> None:
        """Two nodes are asked for different sets at once: nobody agreed on one."""
        world = self.world
        for node in self.rng.sample(list(world.nodes.values()), 2):
            if node.core is not None:
                world.ask_voters(node, self._another_set(node.core.view.voters))

    def _rival_comes_late(self) -> None:
        """A node stores a higher set than all others. One of those is alone when theirs comes
        into force, and the others hear of the rival shortly before."""
        world, rng = self.world, self.rng
        members = self._acting_members()
        if len(members) < 3 or any(world.nodes[node].core is None for node in members):
            return
        late, alone, other = (world.nodes[node] for node in rng.sample(members, 3))
        assert late.core is not None
        voters = late.core.view.voters
        sets = [self._another_set(voters), self._another_set(voters)]
        lower, higher = sorted(sets, key=lambda each: each.members)
        world.ask_voters(other, lower)
        world.ask_voters(late, higher)
        self._apart(late.id, 0, rng.randrange(2 * HEARTBEAT_NS, RESTART_WAIT_NS))
        self._apart(alone.id, HEARTBEAT_NS + rng.randrange(HEARTBEAT_NS), 4 * RESTART_WAIT_NS)

    def _apart(self, node: int, in_ns: int, for_ns: int) -> None:
        """Cut the node off from everybody else."""
        pairs = {p for n in self.world.nodes if n != node for p in ((n, node), (node, n))}
        self.world.at(self.world.now + in_ns, lambda: self._cut_for(pairs, for_ns))

    def _change_and_isolate(self) -> None:
        """Some hear of the change, and are cut off before, while or after it settles."""
        self._change_voters()
        self._later(2 * RESTART_WAIT_NS, self._isolate_unless_mended)

    def _isolate_unless_mended(self) -> None:
        if not self.mended:
            self._isolate()

    def _voters_lost(self) -> None:
        """A node's voters file is removed while it is down: once in a schedule."""
        world, node = self.world, self._any()
        if not all(self._has_file(each) for each in world.nodes.values()):
            return
        world.kill(node)
        node.record = None
        self._later(4 * LEASE_NS, lambda: world.start(node))
