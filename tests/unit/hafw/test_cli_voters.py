"""hafwctl cluster voters: which voter a name or an id means, and what is proposed for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec import structs

from cluster.agreed import Command, DropVoter, SetVotes, encode
from hafw.cli import voters as module
from hafw.cli.main import cli
from hafw.errors import HafwError
from tests.unit.hafw.test_status_rows import raft
from tests.unit.hafw.test_voter_steps import FOUNDED, acting

LAB = Path(__file__).resolve().parents[3] / "hafw/lab/cluster.yaml"


class Cluster:
    """What the daemons would answer, and what they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leased = acting(1, 2, 3, 9)
        self.proposed: list[Command] = []
        status = structs.replace(raft("gw1"), state=encode(FOUNDED))
        monkeypatch.setattr(module, "require_root", lambda: None)
        monkeypatch.setattr(module, "ask_leased", lambda _scope: ("gw1", self.leased))
        monkeypatch.setattr(module, "ask_raft", lambda _scope: ("gw1", status))
        monkeypatch.setattr(module, "propose", lambda _asked, done: self.proposed.append(done))

    def ask(self, *arguments: str) -> Result:
        where = ["--node", "gw1", "--config", str(LAB), "--wait", "0"]
        return CliRunner().invoke(cli, ["cluster", "voters", *arguments, *where])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


@pytest.mark.parametrize("name", ["3", "node3"])
def test_a_voter_that_is_not_in_the_file_is_taken_out_by_its_id(
    cluster: Cluster, name: str
) -> None:
    done = cluster.ask("--remove", name)
    assert (done.exit_code, cluster.proposed) == (0, [DropVoter(3)])
    assert "node3" in done.stdout


@pytest.mark.parametrize("name", ["2", "node2", "gw2"])
def test_an_id_of_a_member_means_the_member(cluster: Cluster, name: str) -> None:
    assert cluster.ask("--remove", name, "--force").exit_code == 0
    assert cluster.proposed == [SetVotes("gw2", "no", forced=True)]


@pytest.mark.parametrize("words", [("--remove", "node4"), ("--add", "node3"), ("--remove", "x")])
def test_who_is_neither_member_nor_voter_is_not_known(
    cluster: Cluster, words: tuple[str, str]
) -> None:
    done = cluster.ask(*words)
    assert isinstance(done.exception, HafwError)
    assert f"there is no member {words[1]}" in str(done.exception)
    assert cluster.proposed == []


def test_two_nodes_keep_their_voters_whatever_the_file_says_by_now(cluster: Cluster) -> None:
    cluster.leased = structs.replace(acting(1, 2), two_node=True)
    done = cluster.ask("--remove", "gw2")
    assert "two nodes without a witness keep their voters" in str(done.exception)
    assert cluster.proposed == []


def test_voters_of_which_nobody_votes_yet_are_not_in_force(cluster: Cluster) -> None:
    founding = structs.replace(acting(1, 2, 9).voters, id=0)  # type: ignore[type-var]
    cluster.leased = structs.replace(acting(1, 2, 9), voters=founding)
    rows = json.loads(cluster.ask("--json").stdout)
    assert [(row["set"], row["state"]) for row in rows] == [(0, "not founded")]
