"""How clusters begin, grow and split: scripts that random schedules hardly ever reach."""

from __future__ import annotations

from random import Random

import pytest

from cluster.heartbeat import Beat
from cluster.lease_types import VoterRecord
from cluster.voters import VoterChange
from hafw.config.model import VoterSet
from tests.simulation.lease_checks import FIRST_SET
from tests.simulation.lease_node import GROUP, LEASE_NS, MS, RESTART_WAIT_NS, Node, ViolationError
from tests.simulation.lease_world import World
from tests.simulation.runs import patched

SEEDS = range(6)
SETTLE_NS = 4 * RESTART_WAIT_NS


def cut(
    world: World, some: tuple[int, ...], others: tuple[int, ...], *, back: bool = True
) -> None:
    pairs = {(one, other) for one in some for other in others}
    world.network.cut |= pairs | ({(b, a) for a, b in pairs} if back else set())


def heal(world: World, some: tuple[int, ...], others: tuple[int, ...]) -> None:
    pairs = {(one, other) for one in some for other in others}
    world.network.cut -= pairs | {(b, a) for a, b in pairs}


def pass_time(world: World, duration_ns: int) -> None:
    """At most one node is ACTIVE at any moment: the world's own checks say so."""
    world.run(world.now + duration_ns)


def in_force(world: World, *nodes: int) -> set[VoterSet]:
    return {
        node.core.view.voters
        for node in world.nodes.values()
        if node.core is not None and (not nodes or node.id in nodes)
    }


def active(world: World) -> list[int]:
    return [node.id for node in world.nodes.values() if world.announces(node)]


def ask(world: World, *members: int) -> None:
    """Node 1 is asked for the set that follows; it and its gate go on."""
    core = world.nodes[1].core
    assert core is not None
    world.ask_voters(world.nodes[1], VoterSet(id=core.view.voters.id + 1, members=members))
    pass_time(world, SETTLE_NS)


def new(world: World, node: Node, *file: int) -> None:
    """The machine is installed (anew), with these nodes in cluster.yaml."""
    if node.core is not None:
        world.power_cut(node)
    node.record = VoterRecord.newcomer(VoterSet(id=1, members=tuple(sorted(file))))
    world.start(node)


# ---- rivals -----------------------------------------------------------------------------------


def rival_meets_later_set(seed: int, disk_ms: int) -> list[int]:
    """Nodes 4 and 5 have stored another set 4 than 1, 2, 3 and 6, which put theirs into force and
    go on to set 5. Then 4 hears 1, 2 and 6 for less than a write of its disk takes, and 3 joins
    4 and 5. Who is ACTIVE then."""
    world = World(Random(seed), gateways=(1, 2, 3, 4, 5, 6), witnesses=(), spares=(5, 6))
    for node in world.nodes.values():
        world.start(node)
    pass_time(world, RESTART_WAIT_NS + 20 * LEASE_NS)
    cut(world, (1, 2, 3, 6), (4, 5))
    pass_time(world, 3 * LEASE_NS)
    cut(world, (2, 6), (3,), back=False)
    world.ask_voters(world.nodes[1], VoterSet(id=FIRST_SET + 1, members=(1, 2, 3, 4, 6)))
    world.ask_voters(world.nodes[4], VoterSet(id=FIRST_SET + 1, members=(1, 2, 3, 4, 5)))
    pass_time(world, 20 * MS)
    cut(world, (1, 2, 6), (3,), back=False)
    pass_time(world, 3 * RESTART_WAIT_NS)
    cut(world, (1, 2, 6), (3,))
    world.ask_voters(world.nodes[1], VoterSet(id=FIRST_SET + 2, members=(1, 2, 4, 6)))
    pass_time(world, 3 * RESTART_WAIT_NS)
    assert {voters.id for voters in in_force(world, 1, 2, 6)} == {FIRST_SET + 2}
    world.nodes[4].disk_least_ns = disk_ms * MS
    heal(world, (1, 2, 6), (4,))
    pass_time(world, 75 * MS)
    cut(world, (1, 2, 6), (4,))
    heal(world, (3,), (4, 5))
    for _ in range(400):
        pass_time(world, 5 * MS)
        assert len(active(world)) < 2, active(world)
    return active(world)


@pytest.mark.parametrize("disk_ms", [0, 60, 100])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rival_is_not_put_into_force_by_those_who_went_past_it(seed: int, disk_ms: int) -> None:
    assert set(rival_meets_later_set(seed, disk_ms)) <= {1, 2, 6}


def test_the_script_of_the_rival_catches_who_counts_later_sets() -> None:
    exact = VoterChange._has

    def counts_later(self: VoterChange, beat: Beat, voters: VoterSet) -> bool:
        return beat.voters.id > voters.id or exact(self, beat, voters)

    with patched(VoterChange, "_has", counts_later):
        caught = 0
        for seed in SEEDS:
            try:
                rival_meets_later_set(seed, 100)
            except (ViolationError, AssertionError):
                caught += 1
    assert caught


# ---- founding ---------------------------------------------------------------------------------

ALL = (1, 2, 9)


def fresh(seed: int, *nodes: int) -> World:
    """A cluster of which no node has run before; these start."""
    world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
    for node in nodes:
        new(world, world.nodes[node], *ALL)
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_all_at_once_is_all_it_takes(seed: int) -> None:
    world = fresh(seed, *ALL)
    world.network.loss = 0.1
    pass_time(world, RESTART_WAIT_NS + 20 * LEASE_NS)
    assert in_force(world) == {VoterSet(id=1, members=ALL)}
    assert len(active(world)) == 1


@pytest.mark.parametrize("last", [(2,), (1,), (9,), (1, 2), ALL], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_of_the_order_begins_whoever_came_first(
    seed: int, last: tuple[int, ...]
) -> None:
    world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
    for machine in world.nodes.values():
        machine.synced = False
    for some in (sorted({*ALL} - {*last}), last):
        for node in some:
            new(world, world.nodes[node], *ALL)
        pass_time(world, RESTART_WAIT_NS + 3 * LEASE_NS)
    pass_time(world, SETTLE_NS)
    assert [node for _, node, _ in world.lanes[GROUP].takeovers] == [1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_majority_alone_does_not_found(seed: int) -> None:
    world = fresh(seed, 1, 2)
    pass_time(world, SETTLE_NS)
    assert {voters.id for voters in in_force(world)} == {0}
    assert active(world) == []
    new(world, world.nodes[9], 1, 9)  # Not the same cluster.yaml.
    pass_time(world, SETTLE_NS)
    assert {voters.id for voters in in_force(world)} == {0}
    new(world, world.nodes[9], *ALL)
    pass_time(world, SETTLE_NS)
    assert in_force(world) == {VoterSet(id=1, members=ALL)}
    assert len(active(world)) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_restarts_while_founding(seed: int) -> None:
    rng = Random(seed)
    world = fresh(seed, *ALL)
    for _ in range(20):
        node = world.nodes[rng.choice(ALL)]
        node.disk_ns = rng.choice((MS, 40 * MS))
        pass_time(world, rng.randrange(60 * MS))
        world.power_cut(node)
        pass_time(world, rng.randrange(60 * MS))
        world.start(node)
    pass_time(world, SETTLE_NS)
    assert in_force(world) == {VoterSet(id=1, members=ALL)}
    assert len(active(world)) == 1


def founded_without_the_witness(seed: int, *, it_was_there: bool) -> World:
    """As cluster.md says: the two gateways wait for the witness; it is taken out of their file and
    they are restarted; it comes, with the whole file. `it_was_there`: it did found with them, and
    they lost power before they had stored that; then it went away."""
    world = fresh(seed, 1, 2)
    pass_time(world, SETTLE_NS)
    assert active(world) == []
    for node in (1, 2):
        new(world, world.nodes[node], 1, 2)
    pass_time(world, SETTLE_NS)
    assert in_force(world) == {VoterSet(id=1, members=(1, 2))}
    assert len(active(world)) == 1
    if it_was_there:
        world.nodes[9].record = VoterRecord(VoterSet(id=1, members=ALL))
        world.start(world.nodes[9])
    else:
        new(world, world.nodes[9], *ALL)
    pass_time(world, SETTLE_NS)
    return world


@pytest.mark.parametrize("it_was_there", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_did_not_come_is_left_out_and_added_when_it_does(
    seed: int, it_was_there: bool
) -> None:
    world = founded_without_the_witness(seed, it_was_there=it_was_there)
    [holder] = active(world)
    assert in_force(world, 1, 2) == {VoterSet(id=1, members=(1, 2))}
    ask(world, *ALL)
    assert active(world) == [holder]
    assert in_force(world) == {VoterSet(id=2, members=ALL)}
    world.power_cut(world.nodes[holder])
    pass_time(world, SETTLE_NS)
    assert active(world) == [3 - holder], "the witness votes"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_is_left_out_by_all_or_nobody_founds(seed: int) -> None:
    """One gateway has the file without the witness, the other has it still."""
    world = fresh(seed, 1, 2)
    pass_time(world, SETTLE_NS)
    new(world, world.nodes[1], 1, 2)
    pass_time(world, SETTLE_NS)  # (What it said before is not heard any more.)
    new(world, world.nodes[9], *ALL)
    pass_time(world, SETTLE_NS)
    assert active(world) == []
    assert {voters.id for voters in in_force(world)} == {0}
    cut(world, (1,), (2, 9))
    pass_time(world, SETTLE_NS)
    assert active(world) == []


# ---- nodes added later, and installed anew ----------------------------------------------------


def grown(seed: int) -> World:
    """One gateway; gw2 and a witness are written into cluster.yaml and started."""
    world = World(Random(seed), gateways=(1, 2), witnesses=(9,))
    new(world, world.nodes[1], 1)
    pass_time(world, SETTLE_NS)
    assert active(world) == [1]
    new(world, world.nodes[2], *ALL)
    new(world, world.nodes[9], *ALL)
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_newcomers_never_found_though_they_are_a_majority_of_their_file(seed: int) -> None:
    world = grown(seed)
    pass_time(world, SETTLE_NS)
    cut(world, (1,), (2, 9))
    pass_time(world, SETTLE_NS)
    assert active(world) == [1]
    world.power_cut(world.nodes[2])
    world.power_cut(world.nodes[9])
    new(world, world.nodes[2], *ALL)
    new(world, world.nodes[9], *ALL)
    pass_time(world, SETTLE_NS)
    assert {voters.id for voters in in_force(world, 2, 9)} == {0}
    assert active(world) == [1]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_gateway_grows_to_three_voters(seed: int) -> None:
    world = grown(seed)
    pass_time(world, SETTLE_NS)
    ask(world, 1, 9)
    ask(world, *ALL)
    assert in_force(world) == {VoterSet(id=3, members=ALL)}
    assert not any(node.core and node.core.view.voters_lost for node in world.nodes.values())
    cut(world, (1,), (2, 9))
    pass_time(world, SETTLE_NS)
    assert active(world) == [2]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_witness_is_replaced_by_one_of_another_name(seed: int) -> None:
    world = World(Random(seed), gateways=(1, 2), witnesses=(9, 10), spares=(10,))
    for node in (1, 2, 9):
        world.start(world.nodes[node])
    pass_time(world, SETTLE_NS)
    world.power_cut(world.nodes[9])
    new(world, world.nodes[10], 1, 2, 9, 10)
    pass_time(world, SETTLE_NS)
    ask(world, 1, 2, 9, 10)
    ask(world, 1, 2, 10)
    assert in_force(world) == {VoterSet(id=FIRST_SET + 2, members=(1, 2, 10))}
    world.power_cut(next(node for node in world.nodes.values() if world.announces(node)))
    pass_time(world, SETTLE_NS)
    assert len(active(world)) == 1  # The new witness votes.


@pytest.mark.parametrize("seed", SEEDS)
def test_a_voter_installed_anew_votes_in_set_1_and_in_no_later_one(seed: int) -> None:
    world = fresh(seed, *ALL)
    pass_time(world, SETTLE_NS)
    new(world, world.nodes[9], *ALL)
    pass_time(world, SETTLE_NS)
    witness = world.nodes[9].core
    assert witness is not None
    assert witness.view.voters == VoterSet(id=1, members=ALL)
    assert not witness.view.voters_lost
    ask(world, 1, 2)
    ask(world, *ALL)
    assert not witness.view.voters_lost
    new(world, world.nodes[9], *ALL)
    pass_time(world, SETTLE_NS)
    witness = world.nodes[9].core
    assert witness is not None
    assert witness.view.voters == VoterSet(id=3, members=ALL)
    assert witness.view.voters_lost
    ask(world, 1, 2)
    ask(world, *ALL)
    assert not witness.view.voters_lost
