"""From two nodes without a witness to a majority and back, by the book (two-nodes.md), with the
files of each step; and a voter that is not in cluster.yaml."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.disk_writer import DiskWriter
from cluster.lease_types import VoterRecord
from cluster.leased_status import leased_status
from cluster.meters import DelayMeter, LinkMeter
from cluster.voters_file import write_voters
from hafw.config.model import ClusterConfig, VoterSet
from hafw.errors import StateError
from hafw.messages import LeasedStatus
from hafw.node.survival import survival_rows
from hafw.paths import NodePaths
from tests.simulation.lease_node import LEASE_NS, RESTART_WAIT_NS, Node
from tests.simulation.lease_world import World
from tests.simulation.pair_world import PairWorld
from tests.unit.hafw.test_status_rows import CONFIG

NAMES = {1: "gw1", 2: "gw2", 9: "wit"}
SETTLED_NS = 6 * RESTART_WAIT_NS


@pytest.fixture
def wake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("HAFW_LIB_ROOT", str(tmp_path))
    heard, wake = socket.socketpair()
    with heard, wake:
        yield wake


def read(node: int, wake: socket.socket, quorum: str, *members: int) -> VoterRecord:
    """What leased starts with, by this cluster.yaml; its files are as it leaves them."""
    file = SimpleNamespace(quorum=quorum, voters=VoterSet(id=1, members=members))
    writer = DiskWriter(NodePaths(NAMES[node]), wake, cast(ClusterConfig, file))
    assert writer.begin() == ""
    return writer.record


def keep(world: World) -> None:
    """The voters files as the cores have had them written."""
    for node in world.nodes.values():
        assert node.record is not None
        write_voters(NodePaths(NAMES[node.id]).voters, node.record)


def change(world: World, *members: int) -> None:
    """What `hafwctl cluster voters` has done, from set to set."""
    node = active(world)
    assert node.core is not None
    number = node.core.view.voters.id + 1
    world.ask_voters(node, VoterSet(id=number, members=members))
    world.run(world.now + SETTLED_NS)
    for each in world.nodes.values():
        assert each.core is not None
        assert each.core.view.voters == VoterSet(id=number, members=members)


def active(world: World) -> Node:
    [node] = [node for node in world.nodes.values() if world.announces(node)]
    return node


def told(world: World) -> LeasedStatus:
    node = active(world)
    assert node.core is not None
    now_ns = node.local(world.now)
    peers = [peer for peer in world.nodes if peer != node.id]
    return leased_status(
        node.core,
        now_ns=now_ns,
        pid=1,
        realtime=True,
        delay=DelayMeter().read(now_ns),
        links=LinkMeter([(path, peers) for path in ("sync0", "sync1")]),
        gate=None,
    )


def survives(world: World, lost: int) -> bool:
    """As status tells it."""
    rows = survival_rows(CONFIG, NAMES[active(world).id], told(world))
    return next(bool(row["survives"]) for row in rows if row["losing"] == NAMES[lost])


def lose(world: World, node: int) -> list[int]:
    """Who is ACTIVE then."""
    world.power_cut(world.nodes[node])
    world.run(world.now + 30 * LEASE_NS)
    return [node.id for node in world.nodes.values() if world.announces(node)]


def majority(wake: socket.socket) -> World:
    world = World(Random(1), gateways=(1, 2), witnesses=(9,))
    for node in world.nodes.values():
        node.record = read(node.id, wake, "majority", 1, 2, 9)
        world.start(node)
    world.run(SETTLED_NS)
    return world


def pair(wake: socket.socket) -> PairWorld:
    for node in (1, 2):
        assert read(node, wake, "two-node", 1, 2).current.members == (1, 2)
    world = PairWorld(Random(1))
    for each in world.nodes.values():
        world.start(each)
    world.run(SETTLED_NS)
    return world


def test_two_nodes_get_a_witness_and_give_it_back(wake: socket.socket) -> None:
    pair(wake)

    world = majority(wake)
    holder = active(world).id
    other = 3 - holder
    assert not survives(world, other), "until the witness has joined there are two voters"
    change(world, 1, 2, 9)
    assert survives(world, other)
    assert lose(world, other) == [holder]

    keep(world)
    for node in (1, 2):
        with pytest.raises(StateError, match=r"voter set \d is nodes 1, 2, 9"):
            read(node, wake, "two-node", 1, 2)
    world.start(world.nodes[other])
    world.run(world.now + SETTLED_NS)
    change(world, 1, 2)
    assert not survives(world, other)
    keep(world)

    two = pair(wake)
    holder = active(two).id
    assert survives(two, 3 - holder)
    assert lose(two, 3 - holder) == [holder]


def test_a_gateway_lost_before_the_witness_has_joined_is_no_surprise(wake: socket.socket) -> None:
    pair(wake)
    world = majority(wake)
    holder = active(world).id
    assert not survives(world, 3 - holder)
    assert lose(world, 3 - holder) == []


def test_a_voter_that_is_not_in_the_file_is_an_alarm_and_a_loss() -> None:
    """gw3 left cluster.yaml before it left the voters."""
    world = World(Random(1), gateways=(1, 2), witnesses=(9,))
    for node in world.nodes.values():
        node.record = VoterRecord(VoterSet(id=3, members=(1, 2, 3, 9)))
        world.start(node)
    world.run(SETTLED_NS)
    [alarm] = [alarm for alarm in told(world).alarms if "cluster.yaml" in alarm]
    assert alarm.startswith("node 3 is in voter set 3 and not in cluster.yaml")
    assert "hafwctl cluster voters --remove node3" in alarm
    assert not survives(world, 9)
    change(world, 1, 2, 9)
    assert told(world).alarms == []
    assert survives(world, 9)
    holder = active(world).id
    assert lose(world, 9) == [holder]
