"""Schedules of faults for the lease simulation: the seed draws the mix.

Replay one with its trace, as a failure prints it:
    python -m tests.simulation.lease_schedule --seed N [--focus FOCUS] [--mistake MISTAKE]
Count the schedules that each planted mistake takes, at most N:
    python -m tests.simulation.lease_schedule --table N
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any

from cluster.acceptor import Acceptor
from cluster.claims import Candidacy
from cluster.handover import HandOver
from cluster.heartbeat import Accepted
from cluster.lease import LeaseCore
from cluster.lease_group import GroupCore
from cluster.lease_types import LeaseParams, VoterRecord
from cluster.proposer import Phase, Proposer, Request
from cluster.view import NodeView, PeerView
from cluster.voters import VoterChange
from hafw.config.model import VoterSet
from hafw.human import make_epoch
from hafw.messages import Standing
from tests.simulation.lease_world import (
    FIRST_SET,
    GROUP,
    HEARTBEAT_NS,
    LEASE_NS,
    LEASE_NS_MAX,
    MS,
    RESTART_WAIT_NS,
    Node,
    ViolationError,
    World,
)

HEAL_BOUND_NS = 2 * RESTART_WAIT_NS + 20 * LEASE_NS
"""Somebody must be ACTIVE this long after everything was mended: M, the five leases an unsynced
candidate is patient for, and as much again for duels and what was still on its way."""
HELD_LEASES = 2
"""Looks, one lease apart, at which somebody must be ACTIVE without a break."""
KINDS = (
    "all_restart",
    "carrier",
    "change_and_isolate",
    "change_voters",
    "change_voters",
    "change_voters_twice",
    "clean_stop",
    "crash_while_writing",
    "cut_one_way",
    "deaf",
    "disk",
    "era_lost",
    "force",
    "isolate",
    "isolate_holder",
    "kill",
    "kill_then_stop",
    "late_effects",
    "leave_behind",
    "lose_voters_in_turn",
    "move",
    "new_epoch",
    "pause",
    "power_cut",
    "quick_restart",
    "rival_voters",
    "slow_disk_and_restart",
    "slow_network",
    "standing",
    "stale_voters",
    "syncd_silent",
    "unsynced",
    "voters_lost",
)
"""Kinds of faults: methods of `Schedule`. Each schedule draws four."""
FOCUS: dict[str, tuple[str, ...]] = {
    "no_restart_wait": ("quick_restart", "quick_restart", "pause", "isolate", "cut_one_way"),
    "lease_from_receipt": ("slow_network", "isolate_holder"),
    "relative_deadline": ("late_effects", "pause"),
    "release_of_any_epoch": ("move", "move", "slow_network", "new_epoch"),
    "promise_forgotten": ("cut_one_way", "cut_one_way", "pause", "quick_restart"),
    "old_voters_accepted": ("leave_behind", "stale_voters"),
    "both_majorities_unasked": ("leave_behind",),
    "voters_without_wait": ("leave_behind", "change_voters"),
    "next_voters_replaced": ("rival_voters", "rival_voters", "isolate", "change_voters"),
    "anybody_votes": ("change_voters", "isolate"),
    "voters_told_early": ("leave_behind", "crash_while_writing"),
    "loss_of_voters_unnoticed": ("lose_and_leave_behind", "change_voters"),
    "restarts_while_changing": ("leave_behind", "quick_restart"),
    "unsynced_at_once": ("power_cut", "unsynced"),
    "release_after_restart": ("kill_then_stop", "kill_then_stop", "pause"),
    "renewals_of_old_era_refused": ("slow_disk_and_restart",),
    "deaf": ("deaf", "unsynced", "kill"),
    "ballot_reused": ("kill", "isolate", "new_epoch"),
    "epoch_unchecked": ("cut_one_way", "slow_network", "clean_stop", "pause", "new_epoch"),
    "era_told_early": ("crash_while_writing",),
    "opened_before_position": ("move", "move", "carrier"),
    "drift_ignored": ("isolate_holder",),
    "voter_not_rejoined": ("lose_voters_in_turn",),
    "renewed_in_hand_over": ("move", "carrier"),
}
"""Kinds of faults that together reach a mistake sooner than the whole mix does. The right code
must stand the same schedules."""
VOTER_FOCUS = frozenset(
    (
        "anybody_votes",
        "both_majorities_unasked",
        "restarts_while_changing",
        "loss_of_voters_unnoticed",
        "next_voters_replaced",
        "old_voters_accepted",
        "voters_told_early",
        "voters_without_wait",
    )
)
"""Of these, those about changes of the voter set: five nodes, up to two of them no voters yet."""
FOCUS_PACE = {
    "unsynced_at_once": (2_400 * MS, 1_100 * MS),
    "renewals_of_old_era_refused": (2_400 * MS, 1_100 * MS),
    "era_told_early": (1_500 * MS, 150 * MS),
    "drift_ignored": (2_000 * MS, 200 * MS),
    "voter_not_rejoined": (2_400 * MS, 1_100 * MS),
    "lease_from_receipt": (1_000 * MS, 120 * MS),
    "both_majorities_unasked": (2_000 * MS, 500 * MS),
    "voters_without_wait": (1_500 * MS, 300 * MS),
    "next_voters_replaced": (1_500 * MS, 100 * MS),
    "anybody_votes": (700 * MS, 60 * MS),
    "old_voters_accepted": (2_000 * MS, 500 * MS),
    "voters_told_early": (2_000 * MS, 500 * MS),
    "loss_of_voters_unnoticed": (2_000 * MS, 500 * MS),
    "restarts_while_changing": (2_000 * MS, 300 * MS),
}
"""How long the faults of a focus go on, and the mean gap between them."""
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 2), (9,)),
    ((1, 2), (9,)),
    ((1, 2), (9,)),
    ((1, 2, 3), ()),
    ((1, 2, 3), ()),
    ((1, 2, 3), (9,)),
    ((1, 2, 3), (9, 10)),
)


class Schedule:
    """Faults of one seed, drawn kind by kind, then a mended majority that must find a holder."""

    def __init__(self, seed: int, focus: str | None = None) -> None:
        """`focus`: draw only the kinds of `FOCUS`, close together."""
        self.rng = rng = Random(seed)
        gateways, witnesses = rng.choice(SHAPES)
        spares: tuple[int, ...] = ()
        if len(gateways) + len(witnesses) > 3 and rng.random() < 0.4:
            spares = (rng.choice((*gateways, *witnesses)),)
        if focus in VOTER_FOCUS:
            gateways, witnesses = SHAPES[-1]
            spares = tuple(rng.sample((*gateways, *witnesses), rng.randrange(3)))
        self.world = World(rng, gateways=gateways, witnesses=witnesses, spares=spares)
        self.world.network.loss = rng.choice((0.0, 0.0, 0.01, 0.1))
        self.world.network.least_ns = rng.choice((10_000, 100_000, 500_000))
        self.world.network.double = rng.choice((0.0, 0.1))
        if rng.random() < 0.1:
            self.world.nodes[rng.choice(gateways)].lease_ns = LEASE_NS_MAX
        self.mended = False
        self.kinds = [getattr(self, f"_{kind}") for kind in rng.choices(KINDS, k=4)]
        self.faulty_ns, self.gap_ns = rng.choices(
            ((200 * MS, 20 * MS), (400 * MS, 50 * MS), (2_000 * MS, 500 * MS)), (9, 6, 1)
        )[0]
        if focus in FOCUS:
            self.kinds = [getattr(self, f"_{kind}") for kind in FOCUS[focus]]
            self.faulty_ns, self.gap_ns = FOCUS_PACE.get(
                focus, (700 * MS, rng.choice((30, 60, 120)) * MS)
            )

    def run(self) -> World:
        """Raises ViolationError."""
        world = self.world
        for node in world.nodes.values():
            world.at(self.rng.randrange(20 * MS), lambda node=node: world.start(node))  # type: ignore[misc]
        until = RESTART_WAIT_NS + self.faulty_ns
        at = RESTART_WAIT_NS
        while (at := at + 1 + int(self.rng.expovariate(1 / self.gap_ns))) < until:
            world.at(at, self.rng.choice(self.kinds))
        world.every(HEARTBEAT_NS // 5, until, world.check_kept)
        world.run(until)
        well = self._mend()
        if not world.are_majority(well) or not any(map(world.in_all_sets, world.gateways)):
            return world  # Too few may vote, or carry the group, in a set that may come.
        held = 0
        while held < HELD_LEASES:
            if world.now >= until + HEAL_BOUND_NS:
                raise ViolationError(f"nobody is ACTIVE and stays so, although {well} are well")
            world.run(world.now + LEASE_NS)
            held = held + 1 if any(world.announces(world.nodes[n]) for n in well) else 0
        return world

    def _barely_enough(self) -> list[int]:
        """A gateway, and no more nodes than a majority of every set in play needs."""
        world, rng = self.world, self.rng
        gateways = [node for node in world.gateways if world.in_all_sets(node)]
        if not gateways:
            return sorted(world.nodes)
        first = rng.choice(gateways)
        well = [first]
        for node in rng.sample([n for n in world.nodes if n != first], len(world.nodes) - 1):
            if not world.are_majority(well):
                well.append(node)
        return sorted(well)

    def _mend(self) -> list[int]:
        """Mend all, or a majority with a gateway in it while the others are gone or cut off."""
        world, rng = self.world, self.rng
        self.mended = True
        nodes = sorted(world.nodes)
        well = nodes
        if rng.random() < 0.5:
            well = self._barely_enough()
        world.say(f"{well} are mended")
        network = world.network
        network.loss = network.slow = 0.0
        network.cut = {
            (a, b) for a in nodes for b in nodes if a != b and (a in well) != (b in well)
        }
        for node in world.nodes.values():
            if node.id not in well:
                if rng.random() < 0.5:
                    world.power_cut(node)
                continue
            node.disk_least_ns = 0
            node.disk_fails, node.late, node.syncd_up = False, 0.0, True
            if node.segments_down:
                world.carrier(node, frozenset())
            node.paused_until = node.busy_until = world.now
            world.stand(node, Standing({}, [], []))
            node.disk_ns = MS
            world.start(node)
            world.pump(node)
            world.start(node)  # A stop may have been waiting in its inbox.
        return well

    # ---- fault kinds --------------------------------------------------------------------------

    def _any(self) -> Node:
        return self.rng.choice(list(self.world.nodes.values()))

    def _holder_or_any(self) -> Node:
        holders = [node for node in self.world.nodes.values() if self.world.announces(node)]
        return holders[0] if holders and self.rng.random() < 0.6 else self._any()

    def _later(self, most_ns: int, action: Callable[[], None]) -> None:
        self.world.at(self.world.now + self.rng.randrange(1, most_ns), action)

    def _pause(self) -> None:
        node = self._holder_or_any()
        self.world.pause(node, self.rng.randrange(5 * MS, 4 * LEASE_NS))

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
            claim = node.core.groups[GROUP].proposer.claim if node.core is not None else None
            if claim is not None and claim.phase is Phase.PROPOSE:
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
        world = self.world
        world.network_disturbed_at = world.now
        cut = world.network.cut
        cut |= pairs
        world.say(f"cut {sorted(pairs)}")

        def heal() -> None:
            world.network_disturbed_at = world.now
            cut.difference_update(pairs)  # What stays cut for good is another set.
            world.say(f"healed {sorted(pairs)}")

        self._later(8 * LEASE_NS, heal)

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

    def _force(self) -> None:
        node = self.world.nodes[self.rng.choice(self.world.gateways)]
        if self.rng.random() < 0.5:
            node.synced = False
            self.world.disturb(node.id)
        self.world.force(node)

    def _standing(self) -> None:
        """Nodes are drained, in maintenance, ordered anew; not all hear of it, or the same."""
        gateways = self.world.gateways
        for node in self.world.nodes.values():
            if self.rng.random() < 0.7:
                order = self.rng.sample(gateways, len(gateways))
                last = [n for n in gateways if self.rng.random() < 0.3]
                out = [n for n in gateways if self.rng.random() < 0.2]
                self.world.stand(node, Standing({GROUP: order}, last, out))

    def _new_epoch(self) -> None:
        self.world.ask_epoch(self._holder_or_any())

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
        self.world.move(
            self._holder_or_any(), self.rng.choice(self.world.gateways), self.rng.choice((0, 0.3))
        )

    def _disk(self) -> None:
        node = self._any()
        self.world.disturb(node.id)
        node.disk_ns = self.rng.choice((1, 50, 300)) * MS
        node.disk_fails = self.rng.random() < 0.3

        def heal() -> None:
            self.world.disturb(node.id)
            node.disk_fails = False

        self._later(6 * LEASE_NS, heal)

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


# ---- planted mistakes ---------------------------------------------------------------------------


@contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _from_receipt(self: Proposer, request: Request, now_ns: int) -> int:
    return now_ns + self._view.params.shorter(LEASE_NS)


def _release_anything(self: Acceptor, sender: int, epoch: int, to: int) -> bool:
    if sender != self.holder:
        return False
    self.released, self.released_to = True, to
    return True


def _accept_blindly(self: Acceptor, sender: int, ask: Any, *, era: int, now_ns: int) -> Accepted:
    self.accepted_epoch, self.holder, self.opened = ask.epoch, sender, ask.opened
    self.released = False
    self.until_ns = now_ns + self._params.longer(ask.lease_ns)
    return Accepted(group=ask.group, epoch=ask.epoch, request=ask.request)


def _at_once(self: Candidacy, now_ns: int, free_since_ns: int, retry_ns: int) -> int:
    return max(free_since_ns, retry_ns)


def _release_while_open(self: Proposer, *, retry_ns: int) -> Any:
    claim = self.claim
    assert claim is not None
    self.claim = None
    self.retry_ns = max(self.retry_ns, retry_ns)
    return self.give_up(self.held.epoch if self.held is not None else claim.epoch)


def _release_after_restart(self: Proposer, *, retry_ns: int) -> Any:
    claim = self.claim
    assert claim is not None
    self.claim = None
    self.retry_ns = max(self.retry_ns, retry_ns)
    if claim.phase is Phase.PREPARE or self.held is not None:
        return []
    return self.give_up(claim.epoch)


def _same_epoch(self: NodeView, group: int, floor: int) -> int:
    return make_epoch(self.era, 1, self.params.node_id)


def _new_majority(self: VoterChange, follows: VoterSet, now_ns: int) -> bool:
    told = {peer.node_id for peer in self._tellers(follows, now_ns)}
    told.add(self._view.params.node_id)
    return len(told.intersection(follows.members)) >= follows.majority


def _votes_anyway(self: NodeView, now_ns: int) -> bool:
    return self.era_durable and now_ns >= self.votes_from_ns


def _in_any_set(self: NodeView, peer: PeerView) -> bool:
    return peer.node_id in self.voters.members


def _refuses_no_epoch(self: Acceptor, sender: int, epoch: int, *, era: int, now_ns: int) -> bool:
    return self.blocks(sender, now_ns) > 0


def _refuses_old_era(self: Acceptor, sender: int, epoch: int, *, era: int, now_ns: int) -> bool:
    return epoch >> 40 < era or epoch < self.promised or self.blocks(sender, now_ns) > 0


MISTAKES: dict[str, str] = {
    "no_restart_wait": "a restarted voter votes at once",
    "lease_from_receipt": "the lease counts from when the grant came, not from the request",
    "relative_deadline": "the gate takes durations instead of absolute deadlines",
    "grants_to_another": "a voter grants while its grant to another node runs",
    "era_not_persisted": "the era is the same after each start",
    "old_voters_accepted": "messages that name another voter set are acted on",
    "unsynced_at_once": "an unsynced candidate claims without patience or rank",
    "release_of_any_epoch": "a release frees a later lease of the same node",
    "promise_forgotten": "a voter accepts below what it promised and granted",
    "release_while_open": "a dropped second claim releases the lease of the open gate",
    "release_after_restart": "a restarted node releases voters its predecessor's open gate needs",
    "renewals_of_old_era_refused": "a voter that learned a higher era refuses renewals",
    "ballot_reused": "a node claims again with the ballot of its last claim",
    "epoch_unchecked": "a voter grants below what it has promised",
    "era_told_early": "an era is answered in before it is durable",
    "opened_before_position": "the target of a move opens before it applied the position",
    "drift_ignored": "holder and voters count a lease alike, as if clocks did not drift",
    "voter_not_rejoined": "a holder never claims anew for a voter that started since",
    "renewed_in_hand_over": "renewals open announce again while the position is awaited",
    "both_majorities_unasked": "a voter set comes into force by a majority of the new set alone",
    "voters_without_wait": "a voter set comes into force as soon as both majorities have it",
    "next_voters_replaced": "another next set takes the place of the one stored",
    "anybody_votes": "newcomers vote, and are counted, before their set is in force",
    "voters_told_early": "a next set is told before it is durable",
    "loss_of_voters_unnoticed": "a node without its voters file goes on with the founders",
}


@contextmanager
def planted(mistake: str | None, world: World | None = None) -> Iterator[None]:
    """The code with one mistake in it. Mistakes of the shell are made by the simulated one."""
    if world is not None:
        world.no_restart_wait = mistake == "no_restart_wait"
        world.relative_deadlines = mistake == "relative_deadline"
        world.forget_era = mistake == "era_not_persisted"
        world.era_told_early = mistake == "era_told_early"
        world.voters_told_early = mistake == "voters_told_early"
        world.loss_of_voters_unnoticed = mistake == "loss_of_voters_unnoticed"
    patches: dict[str, tuple[type, str, object]] = {
        "lease_from_receipt": (Proposer, "deadline_of", _from_receipt),
        "grants_to_another": (Acceptor, "blocks", lambda _self, _node, _now: 0),
        "old_voters_accepted": (LeaseCore, "_same_voters", lambda _self, _envelope: True),
        "unsynced_at_once": (Candidacy, "_due_ns", _at_once),
        "release_of_any_epoch": (Acceptor, "release", _release_anything),
        "promise_forgotten": (Acceptor, "propose", _accept_blindly),
        "release_after_restart": (Proposer, "drop", _release_after_restart),
        "renewals_of_old_era_refused": (Acceptor, "_refuses", _refuses_old_era),
        "release_while_open": (Proposer, "drop", _release_while_open),
        "ballot_reused": (NodeView, "next_epoch", _same_epoch),
        "epoch_unchecked": (Acceptor, "_refuses", _refuses_no_epoch),
        "opened_before_position": (NodeView, "applied", lambda _self, _position: True),
        "drift_ignored": (LeaseParams, "shorter", lambda _self, duration_ns: duration_ns),
        "voter_not_rejoined": (GroupCore, "_outbid", lambda _self, _now_ns: []),
        "both_majorities_unasked": (VoterChange, "_both_majorities", _new_majority),
        "voters_without_wait": (VoterChange, "_wait_ns", lambda _self: 0),
        "next_voters_replaced": (VoterChange, "_free", lambda _self: True),
        "anybody_votes": (NodeView, "counts", lambda _self, _node: True),
        "renewed_in_hand_over": (HandOver, "gate_frozen", property(lambda _self: False)),
    }
    with ExitStack() as stack:
        if mistake in patches:
            stack.enter_context(patched(*patches[mistake]))
        if mistake == "old_voters_accepted":
            stack.enter_context(patched(NodeView, "in_set", _in_any_set))
        if mistake == "anybody_votes":
            stack.enter_context(patched(NodeView, "may_vote", _votes_anyway))
        if mistake == "drift_ignored":
            exact = (LeaseParams, "longer", lambda _self, duration_ns: duration_ns)
            stack.enter_context(patched(*exact))
        if mistake == "release_after_restart":
            # Voters that tell a node's processes apart make it harmless.
            stack.enter_context(patched(GroupCore, "_is_another_process", lambda *_: False))
        yield


def replay_line(seed: int, mistake: str | None = None, focus: str | None = None) -> str:
    extra = f" --focus {focus}" if focus else ""
    extra += f" --mistake {mistake}" if mistake else ""
    return f"python -m tests.simulation.lease_schedule --seed {seed}{extra}"


def run_seed(seed: int, mistake: str | None = None, focus: str | None = None) -> World:
    """Run one schedule. Raises ViolationError whose text ends with the replay line."""
    schedule = Schedule(seed, focus)
    with planted(mistake, schedule.world):
        try:
            return schedule.run()
        except AssertionError as error:
            at = f"at {schedule.world.now / MS:.3f} ms"
            raise ViolationError(
                f"seed {seed} {at}: {error!r}; {replay_line(seed, mistake, focus)}"
            ) from error


def first_caught(mistake: str, focus: str | None, most: int) -> tuple[int, str]:
    """How many schedules it took, and what the checker said; (0, "") if none of `most` did."""
    for seed in range(most):
        try:
            run_seed(seed, mistake, focus)
        except ViolationError as error:
            return seed + 1, str(error)
        if seed % 100 == 0:
            gc.collect()
    return 0, ""


def table(most: int) -> Iterator[str]:
    """Lines of Markdown: every planted mistake and the schedules it took."""
    yield "| mistake | schedules | kinds of faults |"
    yield "| --- | --- | --- |"
    for mistake, sentence in sorted(MISTAKES.items()):
        took, _ = first_caught(mistake, mistake if mistake in FOCUS else None, most)
        kinds = ", ".join(sorted(set(FOCUS.get(mistake, ("all",)))))
        yield f"| `{mistake}`: {sentence} | {took or f'not in {most}'} | {kinds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay one schedule of the lease simulation.")
    parser.add_argument("--table", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mistake", choices=sorted(MISTAKES))
    parser.add_argument("--focus", choices=sorted(FOCUS))
    arguments = parser.parse_args()
    if arguments.table:
        gc.disable()
        for line in table(arguments.table):
            sys.stdout.write(f"{line}\n")
        return
    schedule = Schedule(arguments.seed, arguments.focus)
    schedule.world.trace = []
    try:
        with planted(arguments.mistake, schedule.world):
            schedule.run()
    finally:
        sys.stdout.write("\n".join([*schedule.world.trace, ""]))
    sys.stderr.write("nothing wrong\n")


if __name__ == "__main__":
    main()
