"""Leases and wishes together: whatever nodes are like and whatever is wanted, groups come to rest.

Real lease cores, and the real `Mover` of each gateway. leased moves a group for its own reasons,
hafwd for an operator's: both together come to an end, on the best node.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from cluster.agreed import Group, Member, MemberState, State
from cluster.lease_types import DampingParams
from cluster.leased_status import leased_status
from cluster.meters import LinkMeter
from cluster.standing import standing_of
from hafw.messages import LeasedStatus, LoopDelay
from hafw.node.mover import Mover
from tests.simulation.lease_node import GROUP, LEASE_NS, RESTART_WAIT_NS, Node
from tests.simulation.lease_world import World
from tests.unit.hafw.test_status_rows import CONFIG

WITNESS = 9
WAN = frozenset({(GROUP, "wan")})
LOOKS = 40
QUIET_LOOKS = 15
"""The last looks of hafwd, in which nothing may move. From look to look it is four leases; a
silent syncd is waited for some ten looks."""
PREEMPT_AFTER_S = 5.0
DAMPING = DampingParams(losses=2, quiet_ns=10**15, quiet_ns_max=10**15)
STATES: tuple[MemberState, ...] = ("online", "online", "online", "draining", "maintenance")
SEEDS = 40
SEEDS_LONG = 3_000


@dataclass(slots=True)
class Health:
    """Of one gateway; it does not change."""

    dead: bool = False
    carrier: bool = True
    upstream: bool = True
    synced: bool = True
    damped: bool = False
    state: MemberState = "online"

    @property
    def able(self) -> bool:
        return self.carrier and self.synced and not self.dead and self.state != "maintenance"


def status_of(node: Node, now: int) -> LeasedStatus:
    assert node.core is not None
    return leased_status(
        node.core, now_ns=node.local(now), pid=1, realtime=True, delay=LoopDelay(0.0, 0.0, 0.0),
        links=LinkMeter([]), gate=None,
    )  # fmt: skip


class Moves:
    """A world in which every gateway's hafwd looks, and moves what its mover wants moved."""

    def __init__(self, seed: int, gateways: tuple[int, ...]) -> None:
        self.world = World(Random(seed), gateways=gateways, witnesses=(WITNESS,))
        self.world.damping = DAMPING
        for node in self.world.nodes.values():
            self.world.start(node)
        self.world.run(4 * RESTART_WAIT_NS)
        self.movers = {node: Mover(CONFIG, f"gw{node}") for node in gateways}
        self.look = 0

    def holders(self) -> list[int]:
        return [node.id for node in self.world.nodes.values() if self.world.announces(node)]

    def become(self, health: dict[int, Health], *, preempt: bool) -> None:
        """From now on nodes are like this, and this is wanted."""
        world = self.world
        for node, at in health.items():
            for _ in range(DAMPING.losses if at.damped else 0):
                for silent in (WAN, frozenset[tuple[int, str]]()):
                    world.upstream(world.nodes[node], silent)
                    world.run(world.now + LEASE_NS // 4)
        world.run(world.now + 8 * LEASE_NS)
        for node, at in health.items():
            if not at.synced and world.announces(world.nodes[node]):
                world.nodes[node].syncd_up = False  # An ACTIVE node has what there is.
            world.nodes[node].synced = at.synced
        world.run(world.now + 4 * LEASE_NS)  # Else it might be given a group meanwhile.
        for node, at in health.items():
            world.carrier(world.nodes[node], frozenset() if at.carrier else frozenset({"lan"}))
            world.upstream(world.nodes[node], frozenset() if at.upstream else WAN)
            if at.dead:
                world.power_cut(world.nodes[node])
        members = [Member(f"gw{n}", n, "gateway", {}, at.state) for n, at in health.items()]
        members.append(Member("wit", WITNESS, "witness", {}))
        order = tuple(f"gw{node}" for node in health)
        group = Group("main", GROUP, order, preempt, PREEMPT_AFTER_S)
        self.state = State(members=tuple(members), groups=(group,))
        for one in world.nodes.values():
            world.stand(one, standing_of(self.state))

    def run(self, looks: int) -> int:
        """Takeovers in this time."""
        before = len(self.world.takeovers)
        for _ in range(looks):
            self.world.run(self.world.now + 4 * LEASE_NS)
            self.look += 1
            for node, mover in self.movers.items():
                if self.world.nodes[node].core is not None:
                    self._move(node, mover)
        return len(self.world.takeovers) - before

    def _move(self, node: int, mover: Mover) -> None:
        world, now = self.world, float(self.look)
        for wish in mover.observe(status_of(world.nodes[node], world.now), self.state, now=now):
            answered = len(world.replies)
            world.move(world.nodes[node], int(wish.target.removeprefix("gw")), 0)
            world.run(world.now + 6 * LEASE_NS)
            [reply] = world.replies[answered:]
            if reply.moved:
                mover.done(wish.group, now=now)
            else:
                mover.refused(wish.group, reply.reason, now=now, released=reply.released)


def draw(rng: Random) -> dict[int, Health]:
    gateways = rng.choice(((1, 2), (1, 2, 3)))
    drawn = {
        node: Health(
            carrier=rng.random() < 0.8,
            upstream=rng.random() < 0.6,
            synced=rng.random() < 0.8,
            damped=rng.random() < 0.3,
            state=rng.choice(STATES),
        )
        for node in gateways
    }
    if rng.random() < 0.2:
        drawn[rng.choice(gateways)].dead = True  # The others are a majority.
    return drawn


def check_best(holder: int, health: dict[int, Health], *, preempt: bool) -> None:
    """No node that comes before it should have the group instead."""
    online = [node for node, at in health.items() if at.able and at.state == "online"]
    sound = [node for node in online if health[node].upstream]
    well = [node for node in sound if not health[node].damped]
    if sound:
        assert holder in sound
        if preempt and well:
            assert list(health).index(holder) <= list(health).index(well[0])
    elif online:
        assert holder in online
    elif health[holder].state != "maintenance" and any(at.able for at in health.values()):
        assert health[holder].able


def check_at_rest(seed: int) -> None:
    rng = Random(f"moves {seed}")
    health, preempt = draw(rng), rng.random() < 0.5
    moves = Moves(seed, tuple(health))
    if rng.random() < 0.5:
        moves.world.move(moves.world.nodes[moves.holders()[0]], rng.choice(list(health)), 0)
        moves.world.run(moves.world.now + 8 * LEASE_NS)
    moves.become(health, preempt=preempt)
    assert moves.run(LOOKS - QUIET_LOOKS) <= len(health), health
    assert moves.run(QUIET_LOOKS) == 0, health
    if any(at.able for at in health.values()):
        [holder] = moves.holders()
        check_best(holder, health, preempt=preempt)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_is_wanted_of_whatever_nodes_a_group_comes_to_rest(seed: int) -> None:
    check_at_rest(seed)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_groups_come_to_rest_in_many_more_worlds() -> None:
    for seed in range(SEEDS, SEEDS_LONG):
        check_at_rest(seed)


@pytest.mark.parametrize(
    ("health", "preempt", "moves", "holder"),
    [
        pytest.param({1: Health(state="draining"), 2: Health(upstream=False)}, False, 1, 2),
        pytest.param({1: Health(upstream=False), 2: Health()}, True, 1, 2),
        pytest.param({1: Health(upstream=False, state="draining"), 2: Health()}, False, 1, 2),
    ],
    ids=["drained-to-silent-upstream", "better-with-silent-upstream", "drained-silent"],
)
def test_leased_and_hafwd_do_not_undo_each_other(
    health: dict[int, Health], preempt: bool, moves: int, holder: int
) -> None:
    world = Moves(1, (1, 2))
    assert world.holders() == [1]
    world.become(health, preempt=preempt)
    assert world.run(LOOKS) == moves
    assert world.holders() == [holder]
