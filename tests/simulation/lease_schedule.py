"""Schedules of faults for the lease simulation: the seed draws the mix.

Replay one with its trace, as a failure prints it:
    python -m tests.simulation.lease_schedule --seed N [--focus FOCUS] [--mistake MISTAKE]
Count the schedules that each planted mistake takes, at most N:
    python -m tests.simulation.lease_schedule --table N
Run N schedules from a seed on, on one CPU, and say what they found:
    python -m tests.simulation.lease_schedule --seed SEED --many N
"""

from __future__ import annotations

from random import Random

from cluster.lease_types import DampingParams
from hafw.messages import Standing
from tests.simulation.lease_mistakes import (
    FOCUS,
    FOCUS_PACE,
    GROUPS_FOCUS,
    MISTAKES,
    VOTER_FOCUS,
    WIRE_FOCUS,
    planted,
)
from tests.simulation.lease_node import (
    HEARTBEAT_NS,
    LEASE_NS,
    LEASE_NS_MAX,
    MS,
    RESTART_WAIT_NS,
    ViolationError,
)
from tests.simulation.lease_voter_faults import VoterFaults
from tests.simulation.lease_world import World
from tests.simulation.runs import Simulation

__all__ = ["HEAL_BOUND_NS", "HELD_LEASES", "LEASE", "Schedule"]

HEAL_BOUND_NS = 2 * RESTART_WAIT_NS + 20 * LEASE_NS
"""Somebody must be ACTIVE this long after everything was mended: M, the five leases an unsynced
candidate is patient for, one for each before it, and as much again for duels and what
was still on its way."""
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
    "moves_crossing",
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
    "upstream",
    "voters_lost",
)
"""Kinds of faults: methods of `Schedule`. Each schedule draws four."""
GROUPS_SHARE = 0.1
HEAVY_SHARE = 0.1
WIRE_SHARE = 0.1
"""Of all schedules: those with two groups, those in which nodes have heavy work (drawn apart, so
that the others are what they were), and those whose datagrams are sealed and opened."""
DAMPING = DampingParams(losses=2, quiet_ns=2 * LEASE_NS, quiet_ns_max=8 * LEASE_NS)
"""Of every other schedule, so that nodes are damped in so short a time."""
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 2), (9,)),
    ((1, 2), (9,)),
    ((1, 2), (9,)),
    ((1, 2, 3), ()),
    ((1, 2, 3), ()),
    ((1, 2, 3), (9,)),
    ((1, 2, 3), (9, 10)),
)


class Schedule(VoterFaults):
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
        self.world = World(
            rng,
            gateways=gateways,
            witnesses=witnesses,
            spares=spares,
            groups=1 + (rng.random() < GROUPS_SHARE or focus in GROUPS_FOCUS),
            on_the_wire=rng.random() < WIRE_SHARE or focus in WIRE_FOCUS,
        )
        self.world.damping = rng.choice((None, DAMPING))
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
        if Random(f"heavy {seed}").random() < HEAVY_SHARE:
            self.kinds.append(self._heavy)
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
        world.every(HEARTBEAT_NS // 5, until, world.look)
        world.run(until)
        well, nodes = self._mend(), world.nodes.values()
        if not world.are_majority(well) or not any(
            world.in_all_sets(node) for node in well if node in world.gateways
        ):
            return world  # Too few may vote, or carry the group, in a set that may come.
        held = 0
        while held < HELD_LEASES:
            if world.now >= until + HEAL_BOUND_NS:
                raise ViolationError(f"nobody is ACTIVE and stays so, although {well} are well")
            world.run(world.now + LEASE_NS)
            held = held + 1 if world.served_by(well) else 0
        if well == sorted(world.nodes) and all(map(self._has_file, nodes)):
            self._change_ends()
        return world

    def _change_ends(self) -> None:
        """With all nodes well no change of the voters stays under way, whatever they stored."""
        world = self.world
        until = world.now + HEAL_BOUND_NS
        while not world.voters_settled():
            if world.now >= until:
                raise ViolationError("a change of the voters does not end, although all are well")
            world.run(world.now + LEASE_NS)

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
            if node.unanswered and rng.random() < 0.5:
                world.upstream(node, frozenset())
            node.disk_ns = MS
            world.start(node)
            world.pump(node)
            world.start(node)  # A stop may have been waiting in its inbox.
        return well


LEASE = Simulation("lease_schedule", Schedule, planted, MISTAKES, FOCUS)

if __name__ == "__main__":
    LEASE.main()
