"""hafwctl node: what it says of a change that was made by half."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec import structs

from cluster.agreed import Command, SetMemberState, encode
from cluster.assignment import apply
from hafw.cli import node as module
from hafw.cli.main import cli
from hafw.errors import RefusedError
from hafw.node.raft_client import RaftClient
from hafw.raft_messages import ProposeReply, RaftStatus
from tests.unit.hafw.test_status_rows import ASSIGNMENT, raft

LAB = Path(__file__).resolve().parents[3] / "hafw/lab/cluster.yaml"


def test_maintenance_that_is_refused_halfway_says_that_the_node_stays_drained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [ASSIGNMENT]

    def propose(_client: RaftClient, command: Command) -> ProposeReply:
        if isinstance(command, SetMemberState) and command.state == "maintenance":
            return ProposeReply(
                False, "no gateway but gw1 is online: nobody could take its groups"
            )
        after, refusal = apply(states[-1], command)
        states.append(after)
        return ProposeReply(not refusal, refusal)

    def status(_client: RaftClient) -> RaftStatus:
        return structs.replace(raft("gw1"), state=encode(states[-1]))

    monkeypatch.setattr(RaftClient, "propose", propose)
    monkeypatch.setattr(RaftClient, "status", status)
    monkeypatch.setattr(module, "require_root", lambda: None)
    monkeypatch.setattr(module, "_holders", lambda _scope: {"main": "gw2"})
    where = ["--node", "gw1", "--config", str(LAB)]
    done = CliRunner().invoke(cli, ["node", "maintenance", "gw1", "--yes", *where])
    assert isinstance(done.exception, RefusedError)
    assert str(done.exception) == (
        "no gateway but gw1 is online: nobody could take its groups; gw1 stays drained, until: "
        "hafwctl node online gw1"
    )
    assert {m.name: m.state for m in states[-1].members}["gw1"] == "draining"
