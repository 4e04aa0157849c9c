"""The voter set changes by hafwctl, in a running cluster: nobody loses a lease by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hafw.lab.lab import Lab
from hafw.node.voters import spare_words
from tests.integration.commands import hafwctl
from tests.integration.running import Running, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(lab_alone: None) -> Running:
    lab = Lab()
    lab.up()
    lab.wait_ready(30)
    return Running(lab)


def told(*arguments: str) -> str:
    """What a command that is carried out says, on both outputs."""
    done = hafwctl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refusal(*arguments: str) -> str:
    done = hafwctl(*arguments)
    assert done.returncode == 1, done.stdout
    return done.stderr


def sets(node: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(told("cluster", "voters", "--node", node, "--json"))
    return rows


def in_force(cluster: Running, *voters: str) -> None:
    """Every node acts in the set of these voters, and none is on its way."""
    wanted = sorted(cluster.lab.config.nodes[name].id for name in voters)
    for node in cluster.lab.config.nodes:
        wait_for(
            f"{node} acts in the set {voters}",
            lambda node=node: (  # type: ignore[misc]
                (leased := cluster.leased(node)).voters is not None
                and leased.voters.members == wanted
                and leased.voters_next is None
            ),
        )


@contextmanager
def held_throughout(cluster: Running) -> Iterator[str]:
    """One node has the group all the time, under one epoch: its gate never shuts."""
    active = cluster.active()
    epoch = cluster.epoch(active)
    lost = cluster.leased(active).counters.get("leases_lost", 0)
    yield active
    assert cluster.holders() == [active]
    assert cluster.epoch(active) == epoch
    assert cluster.leased(active).counters.get("leases_lost", 0) == lost


def members(node: str) -> dict[str, dict[str, Any]]:
    rows = json.loads(told("cluster", "members", "--node", node, "--json"))
    return {row["member"]: row for row in rows}


def test_a_backup_leaves_and_joins_again_and_its_vote_with_it(cluster: Running) -> None:
    with held_throughout(cluster) as active:
        backup = cluster.backup()
        rest = [node for node in cluster.lab.config.nodes if node != backup]
        number = sets(active)[0]["set"]
        assert f"{active} is ACTIVE" in refusal("cluster", "voters", "--remove", active)
        assert f"{backup} votes already" in refusal("cluster", "voters", "--add", backup)
        assert "is ACTIVE" in refusal("node", "leave", "--node", active, "--yes")

        said = told("node", "leave", "--node", backup, "--yes").splitlines()
        assert said == [
            f"{backup} leaves the cluster; it comes back by a token alone",
            f"{backup} has left",
            f"{backup} no longer votes: voter set {number + 1} is in force",
            spare_words([1, 2]),
        ]
        in_force(cluster, *rest)
        assert not cluster.leased(backup).may_vote
        row = members(active)[backup]
        assert (row["state"], row["votes"], row["voting"]) == ("left", False, "")
        notes = json.loads(hafwctl("status", "--node", backup, "--json").stdout)["notes"]
        assert any("this node does not vote" in note["note"] for note in notes)

        token = hafwctl("cluster", "token", "--node", active).stdout.strip()
        said = told("node", "join", "--node", backup, token).splitlines()
        assert said == [
            f"{backup} is a member of the cluster, online",
            f"{backup} votes: voter set {number + 2} is in force",
        ]
        in_force(cluster, *cluster.lab.config.nodes)
        assert members(active)[backup]["votes"] is True


def test_a_broken_witness_is_replaced(cluster: Running) -> None:
    with held_throughout(cluster) as active:
        paths = cluster.lab.paths("wit")
        cluster.lab.power_off("wit")
        wait_for(
            "the witness is not heard",
            lambda: not any(p.alive for p in cluster.leased(active).peers if p.node_id == 9),
        )
        said = refusal("cluster", "voters", "--node", active, "--remove", cluster.backup())
        assert "only 1 of the 2 voters that there would be are heard and vote" in said
        told("cluster", "voters", "--node", active, "--remove", "wit")
        assert "wit is not heard" in refusal("cluster", "voters", "--node", active, "--add", "wit")
        shutil.rmtree(paths.lib)  # Another machine, installed anew.
        cluster.lab.start("wit")
        wait_for(
            "the new witness is heard",
            lambda: any(p.alive and p.era for p in cluster.leased(active).peers if p.node_id == 9),
            20,
        )
        told("cluster", "voters", "--node", active, "--add", "wit")
        in_force(cluster, *cluster.lab.config.nodes)
        wait_for("the new witness votes", lambda: cluster.leased("wit").may_vote)
