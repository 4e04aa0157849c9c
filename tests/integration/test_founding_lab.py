"""A cluster is founded without a node that did not come, and the node is added when it does."""

from __future__ import annotations

import re
import shutil

import pytest

from hafw.lab.lab import Lab
from tests.integration.commands import hafwctl
from tests.integration.running import Running, wait_for
from tests.integration.test_voters import in_force, told

pytestmark = [
    pytest.mark.integration, pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(240),
]  # fmt: skip

GATEWAYS = ("gw1", "gw2")


def restart(lab: Lab, text: str, *nodes: str) -> None:
    """With this cluster.yaml."""
    for node in nodes:
        lab.power_off(node)
    lab.config_file.write_text(text)
    for node in nodes:
        lab.start(node)


def test_a_witness_that_did_not_come_is_left_out_and_added_later(lab_alone: None) -> None:
    lab = Lab()
    lab.up()
    lab.wait_ready(30)
    cluster = Running(lab)
    whole = lab.config_file.read_text()
    for node in lab.config.nodes:
        lab.power_off(node)
    for node in lab.config.nodes:
        shutil.rmtree(lab.paths(node).lib)  # None has ever run.
    for node in GATEWAYS:
        lab.start(node)
    for node in GATEWAYS:
        wait_for(
            f"{node} says who is missing and what to do",
            lambda node=node: any(  # type: ignore[misc]
                "(missing: wit). If one cannot come, take it out of cluster.yaml" in line
                for line in hafwctl("status", "--node", node).stdout.splitlines()
            ),
        )
    assert cluster.holders() == []

    without, count = re.subn(r"(?ms)^  wit:\n.*?(?=^\S)", "", whole)
    assert count == 1
    restart(lab, without, *GATEWAYS)
    active = cluster.active()
    for node in GATEWAYS:
        assert (found := cluster.leased(node).voters) is not None
        assert (found.id, found.members) == (1, [1, 2])

    for node in GATEWAYS:
        restart(lab, whole, node)
        cluster.active()
    lab.start("wit")
    wait_for(
        "the witness' hafw-raftd answers, and its leader's state has it",
        lambda: '"wit"' in hafwctl("cluster", "members", "--node", "wit", "--json").stdout,
        30,
    )
    active = cluster.active()
    token = hafwctl("cluster", "token", "--node", active).stdout.strip()
    said = told("node", "join", "--node", "wit", token).splitlines()
    assert "wit votes: voter set 2 is in force" in said
    in_force(cluster, *GATEWAYS, "wit")
    lab.wait_ready(30)
