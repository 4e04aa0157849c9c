"""Kinds of faults that a schedule of the lease simulation draws from, one method each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from cluster.proposer import Phase
from hafw.messages import Standing
from tests.simulation.lease_node import (
    GROUP,
    LEASE_NS,
    MS,
    RESTART_WAIT_NS,
    SEGMENTS,
    UPSTREAM_NS,
    Node,
)
from tests.simulation.lease_world import World

__all__ = ["Faults"]


class Faults:
    """What may happen to the nodes of a world, and to the network between them."""

    rng: Random
    world: World
    mended: bool

    # ---- fault kinds --------------------------------------------------------------------------

    def _any(self) -> Node:
        return self.rng.choice(list(self.world.nodes.values()))

    def _group(self) -> int:
        return self.rng.choice(list(self.world.lanes)) if len(self.world.lanes) > 1 else GROUP

    def _holder_or_any(self, group: int = 0) -> Node:
        world, group = self.world, group or self._group()
        holders = [node for node in world.nodes.values() if world.announces(node, group)]
        return holders[0] if holders and self.rng.random() < 0.6 else self._any()

    def _later(self, most_ns: int, action: Callable[[], None]) -> None:
        self.world.at(self.world.now + self.rng.randrange(1, most_ns), action)

    def _pause(self) -> None:
        node = self._holder_or_any()
        self.world.pause(node, self.rng.randrange(5 * MS, 4 * LEASE_NS))

    def _heavy(self) -> None:
        """Work that may be told of, and then hold the node up, and may be over early."""
        node = self._holder_or_any()
        self.world.heavy(node, self.rng.randrange(1, 8 * LEASE_NS))
        if self.rng.random() < 0.3:
            self._later(LEASE_NS, lambda: self.world.pause(node, self.rng.randrange(LEASE_NS)))
        if self.rng.random() < 0.5:
            self._later(4 * LEASE_NS, lambda: self.world.heavy(node, 0))

    def _heavy_and_unheard(self) -> None:
        """Heavy work begins as nobody hears any more what the holder asks for; it hears what was
        granted before."""
        world, holder = self.world, self._holder_or_any()
        others = (node for node in world.nodes if node != holder.id)
        self._cut_for({(holder.id, node) for node in others}, 4 * LEASE_NS)
        world.heavy(holder, 4 * LEASE_NS)

    def _kill(self) -> None:
        node = self._holder_or_any()
        self.world.kill(node)
        self._later(4 * LEASE_NS, lambda: self.world.start(node))

    def _quick_restart(self) -> None:
        node = self._any()
        self.world.kill(node)
        self._later(20 * MS, lambda: self.world.start(node))

    def _kill_then_stop(self) -> None:
        """The process dies, the next one is stopped while it claims: the old gate is open."""
        world, node = self.world, self._holder_or_any()
        world.kill(node)
        world.at(world.now + self.rng.randrange(3 * MS), lambda: world.start(node))
        until = world.now + LEASE_NS

        def stop_while_proposing() -> None:
            if self.mended:
                return
            groups = node.core.groups.values() if node.core is not None else ()
            claims = [group.proposer.claim for group in groups]
            if any(claim is not None and claim.phase is Phase.PROPOSE for claim in claims):
                world.stop(node)
            elif world.now < until:
                world.at(world.now + MS // 10, stop_while_proposing)

        stop_while_proposing()
        self._later(6 * LEASE_NS, lambda: world.start(node))

    def _deaf(self) -> None:
        """A gateway is heard and hears nobody."""
        deaf = self.rng.choice(self.world.gateways)
        self._cut({(node, deaf) for node in self.world.nodes if node != deaf})

    def _lose_voters_in_turn(self) -> None:
        """One voter restarts, and long after it is back another one is lost."""
        world, holder = self.world, self._holder_or_any()
        others = [node for node in world.nodes.values() if node is not holder]
        first, second = self.rng.sample(others, 2)
        world.kill(first)
        world.start(first)

        def lose() -> None:
            if not self.mended:
                world.power_cut(second)
                self._later(8 * LEASE_NS, lambda: world.start(second))

        world.at(world.now + RESTART_WAIT_NS + 10 * LEASE_NS, lose)

    def _slow_disk_and_restart(self) -> None:
        """The holder's disk takes several leases for an era that a restart elsewhere raised."""
        holder = self._holder_or_any()
        holder.disk_least_ns = 300 * MS
        holder.disk_slow_until = self.world.now + 6 * LEASE_NS + 800 * MS
        others = [node for node in self.world.nodes.values() if node is not holder]
        node = self.rng.choice(others)
        self.world.kill(node)
        self._later(LEASE_NS, lambda: self.world.start(node))

        def heal() -> None:
            holder.disk_least_ns = 0

        self.world.at(self.world.now + 6 * LEASE_NS, heal)

    def _power_cut(self) -> None:
        node = self._holder_or_any()
        self.world.power_cut(node)
        self._later(8 * LEASE_NS, lambda: self.world.start(node))

    def _clean_stop(self) -> None:
        node = self._holder_or_any()
        self.world.stop(node)
        self._later(4 * LEASE_NS, lambda: self.world.start(node))

    def _all_restart(self) -> None:
        for node in self.world.nodes.values():
            self.world.power_cut(node)
            self._later(LEASE_NS, lambda node=node: self.world.start(node))  # type: ignore[misc]

    def _cut(self, pairs: set[tuple[int, int]]) -> None:
        self._cut_for(pairs, self.rng.randrange(1, 8 * LEASE_NS))

    def _cut_for(self, pairs: set[tuple[int, int]], for_ns: int) -> None:
        world = self.world
        world.network_disturbed_at = world.now
        cut = world.network.cut
        cut |= pairs
        world.say(f"cut {sorted(pairs)}")

        def heal() -> None:
            world.network_disturbed_at = world.now
            cut.difference_update(pairs)  # What stays cut for good is another set.
            world.say(f"healed {sorted(pairs)}")

        world.at(world.now + for_ns, heal)

    def _cut_one_way(self) -> None:
        a, b = self.rng.sample(sorted(self.world.nodes), 2)
        self._cut({(a, b)})

    def _isolate(self) -> None:
        nodes = sorted(self.world.nodes)
        side = set(self.rng.sample(nodes, self.rng.randrange(1, len(nodes))))
        both = self.rng.random() < 0.7
        self._cut({(a, b) for a in nodes for b in nodes if a in side and b not in side})
        if both:
            self._cut({(b, a) for a in nodes for b in nodes if a in side and b not in side})

    def _isolate_holder(self) -> None:
        holder = self._holder_or_any().id
        others = [node for node in self.world.nodes if node != holder]
        self._cut({(holder, node) for node in others} | {(node, holder) for node in others})

    def _slow_network(self) -> None:
        world = self.world
        world.network_disturbed_at = world.now
        world.network.slow, slow_ms = self.rng.choice(
            ((0.02, 100), (0.02, 400), (0.3, 30), (0.3, 100), (0.3, 400), (1.0, 10), (1.0, 30))
        )
        world.network.slow_ns = slow_ms * MS

        def heal() -> None:
            world.network_disturbed_at = world.now + world.network.slow_ns
            world.network.slow = 0.0

        self._later(8 * LEASE_NS, heal)

    def _late_effects(self) -> None:
        node = self._holder_or_any()
        self.world.disturb(node.id)
        node.late = self.rng.choice((0.01, 0.2))
        node.late_ns = self.rng.choice((2, 20, 150)) * MS

        def heal() -> None:
            self.world.disturb(node.id)
            node.late = 0.0

        self._later(6 * LEASE_NS, heal)

    def _carrier(self) -> None:
        """A gateway loses a segment, or several do, and get it back."""
        world = self.world
        for node in {self._holder_or_any().id, self.rng.choice(world.gateways)}:
            if world.nodes[node].gateway:
                down = frozenset(self.rng.sample(("lan", "wan"), self.rng.randrange(1, 3)))
                world.carrier(world.nodes[node], down)
                self._later(
                    6 * LEASE_NS,
                    lambda node=world.nodes[node]: world.carrier(node, frozenset()),  # type: ignore[misc]
                )

    def _carrier_as_it_opens(self) -> None:
        """Whoever opens next loses a segment soon after, perhaps before it has said so."""
        world, until = self.world, self.world.now + 4 * LEASE_NS
        lane = world.lanes[self._group()]
        already = len(lane.takeovers)

        def look() -> None:
            if self.mended:
                return
            if len(lane.takeovers) > already:
                node = world.nodes[lane.takeovers[-1][1]]
                world.carrier(node, frozenset(("wan",)))
                self._later(6 * LEASE_NS, lambda: world.carrier(node, frozenset()))
            elif world.now < until:
                world.at(world.now + MS // 10, look)

        look()

    def _force(self) -> None:
        node = self.world.nodes[self.rng.choice(self.world.gateways)]
        if self.rng.random() < 0.5:
            node.synced = False
            self.world.disturb(node.id)
        self.world.force(node, self._group())

    def _standing(self) -> None:
        """Nodes are drained, in maintenance, ordered anew; not all hear of it, or the same."""
        gateways = self.world.gateways
        for node in self.world.nodes.values():
            if self.rng.random() < 0.7:
                order = self.rng.sample(gateways, len(gateways))
                last = [n for n in gateways if self.rng.random() < 0.3]
                out = [n for n in gateways if self.rng.random() < 0.2]
                orders = dict.fromkeys(self.world.lanes, order)
                self.world.stand(node, Standing(orders, last, out))

    def _new_epoch(self) -> None:
        group = self._group()
        self.world.ask_epoch(self._holder_or_any(group), group)

    def _era_lost(self) -> None:
        """A voter's era file is removed while it is down; the others know the era."""
        world, node = self.world, self._any()
        world.kill(node)
        node.disk_era = 0
        world.eras_lost = True
        self._later(4 * LEASE_NS, lambda: world.start(node))

    def _crash_while_writing(self) -> None:
        """Every disk is slow; a node learns of a higher era from a restart, and dies soon."""
        world = self.world
        for node in world.nodes.values():
            node.disk_ns = 400 * MS
        first = self._any()
        world.kill(first)
        world.start(first)
        for node in self.rng.sample(list(world.nodes.values()), 2):
            self._later(RESTART_WAIT_NS + 60 * MS, lambda node=node: self._crash(node))  # type: ignore[misc]
            self._later(RESTART_WAIT_NS + 180 * MS, lambda node=node: world.start(node))  # type: ignore[misc]

    def _crash(self, node: Node) -> None:
        if not self.mended:
            self.world.kill(node)

    def _syncd_silent(self) -> None:
        node = self._holder_or_any()
        self.world.disturb(node.id)
        node.syncd_up = False

        def heal() -> None:
            self.world.disturb(node.id)
            node.syncd_up = True

        self._later(10 * LEASE_NS, heal)

    def _unsynced(self) -> None:
        node = self.world.nodes[self.rng.choice(self.world.gateways)]
        self.world.disturb(node.id)
        node.synced = not node.synced
        self.world.say(f"node {node.id} synced: {node.synced}")

    def _move(self) -> None:
        group, wait_s = self._group(), self.rng.choice((0, 0.3))
        target = self.rng.choice(self.world.gateways)
        self.world.move(self._holder_or_any(group), target, wait_s, group)

    def _moves_crossing(self) -> None:
        """Each group is moved away from its holder, all at once."""
        for group in self.world.lanes:
            holder = self._holder_or_any(group)
            targets = [node for node in self.world.gateways if node != holder.id]
            self.world.move(holder, self.rng.choice(targets), 0.3, group)

    def _upstream(self) -> None:
        """The far side of a segment answers one gateway no longer, or nobody; it comes back after
        a while, comes and goes, or stays away."""
        world, rng, segment = self.world, self.rng, self.rng.choice(SEGMENTS)[0]
        groups = rng.choice((tuple(world.lanes), (self._group(),)))
        silent = frozenset((group, segment) for group in groups)
        checked = [node for node in world.nodes.values() if node.gateway]
        if rng.random() < 0.6:
            checked = [rng.choice((self._holder_or_any(groups[0]), rng.choice(checked)))]
        turns, gap_ns = rng.choice(((1, 0), (2, 6 * LEASE_NS), (6, 2 * LEASE_NS)))
        at = world.now
        for turn in range(turns):
            for node in checked:
                # Each asks by itself: what one has noticed, the other has not yet.
                world.at(
                    at + rng.randrange(UPSTREAM_NS // 3),
                    partial(self._answers, node, frozenset() if turn % 2 else silent),
                )
            at += rng.randrange(gap_ns + 1)

    def _answers(self, node: Node, silent: frozenset[tuple[int, str]]) -> None:
        if not self.mended and node.gateway:
            self.world.upstream(node, silent)

    def _disk(self) -> None:
        node = self._any()
        self.world.disturb(node.id)
        node.disk_ns = self.rng.choice((1, 50, 300)) * MS
        node.disk_fails = self.rng.random() < 0.3

        def heal() -> None:
            self.world.disturb(node.id)
            node.disk_fails = False

        self._later(6 * LEASE_NS, heal)
