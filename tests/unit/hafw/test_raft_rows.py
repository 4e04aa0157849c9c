"""Raft in status and in hafwctl cluster; what a node reports to the history."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from cluster.assignment import (
    DampedNode,
    Move,
    RecordDamped,
    RecordMove,
    SetGroup,
    SetMemberState,
    State,
    apply,
    encode,
)
from hafw.human import make_epoch
from hafw.messages import DampedStatus, MoveReply
from hafw.node.raft_relay import newly_damped, planned_move, unrecorded
from hafw.node.raft_rows import assigned_node, history_rows, member_rows, raft_row
from tests.unit.hafw.test_status_rows import ASSIGNMENT, CONFIG, EPOCH, leased, raft

NEXT = make_epoch(3, 18, 2)


def with_state(node: str, state: State, *, read_only: bool = False) -> Any:
    return structs.replace(raft(node), state=encode(state), read_only=read_only)


def took(node: str, epoch: int, *, silent: int = 0) -> Any:
    status = leased(node, active=True, holder=node)
    return structs.replace(
        status,
        groups=[structs.replace(status.groups[0], epoch=epoch)],
        peers=[structs.replace(p, alive=p.node_id != silent) for p in status.peers],
    )


def test_the_row_says_who_leads_and_whether_anything_can_be_changed() -> None:
    row = raft_row(CONFIG, "gw1", raft("gw1"))
    assert (row["leader"], row["role"], row["read_only"]) == ("gw2", "follower", False)
    assert (row["connected"], row["peers"], row["moves"]) == (2, 2, 1)
    nobody = structs.replace(raft("gw1"), leader_id=0, read_only=True)
    row = raft_row(CONFIG, "gw1", nobody)
    assert (row["leader"], row["read_only"]) == ("-", True)


def test_the_assigned_node_stands_beside_the_holder() -> None:
    """No fail-back: who took it keeps it. With preemption the best of the order; a node that is
    drained is nobody's choice."""
    assert assigned_node(None, "main") is None
    moved, refusal = apply(ASSIGNMENT, RecordMove(Move("main", NEXT, 1, 2, 1.0, "why")))
    assert refusal == ""
    assert assigned_node(with_state("gw1", moved), "main") == "gw2"
    preempting, _ = apply(moved, SetGroup("main", True))
    assert assigned_node(with_state("gw1", preempting), "main") == "gw1"
    drained, _ = apply(moved, SetMemberState("gw2", "draining"))
    assert assigned_node(with_state("gw1", drained), "main") == "gw1"


def test_a_take_is_reported_once_by_the_node_that_took_it() -> None:
    assert unrecorded(CONFIG, leased("gw1", active=True), raft("gw1")) == []
    assert unrecorded(CONFIG, leased("gw2"), raft("gw2")) == []
    (report,) = unrecorded(CONFIG, took("gw2", NEXT, silent=1), raft("gw2"), now_s=5.0)
    assert report.move == Move("main", NEXT, 1, 2, 5.0, "gw1 is silent on every link and segment")
    state, refusal = apply(ASSIGNMENT, report)
    assert refusal == ""
    assert unrecorded(CONFIG, took("gw2", NEXT), with_state("gw2", state)) == []


def test_why_is_what_this_node_hears() -> None:
    (alive,) = unrecorded(CONFIG, took("gw2", NEXT), raft("gw2"))
    assert alive.move.why == "gw1 let it go and is alive"
    (anew,) = unrecorded(CONFIG, took("gw1", NEXT), raft("gw1"))
    assert anew.move.why == "claimed anew by its holder"
    empty = with_state("gw1", structs.replace(ASSIGNMENT, history=()))
    (first,) = unrecorded(CONFIG, took("gw1", NEXT), empty)
    assert (first.move.from_id, first.move.why) == (0, "nobody is known to have held it before")


def test_nothing_is_reported_while_raft_is_read_only() -> None:
    read_only = with_state("gw2", ASSIGNMENT, read_only=True)
    assert unrecorded(CONFIG, took("gw2", NEXT), read_only) == []


def test_a_planned_move_replaces_the_guess_and_says_who_asked() -> None:
    (guess,) = unrecorded(CONFIG, took("gw2", NEXT), raft("gw2"))
    state, _ = apply(ASSIGNMENT, guess)
    planned = planned_move(
        CONFIG, state, MoveReply(True, True, NEXT, ""), group="main", target="gw2",
        why="planned: hafwctl group move on gw1", now_s=6.0,
    )  # fmt: skip
    state, refusal = apply(state, planned)
    assert refusal == ""
    rows = history_rows(CONFIG, state)
    assert [(row["from"], row["to"], row["planned"]) for row in rows] == [
        ("gw2", "gw1", False), ("gw1", "gw2", True),
    ]  # fmt: skip
    assert rows[-1]["why"] == "planned: hafwctl group move on gw1"
    assert rows[-1]["when"] == "1970-01-01T00:00:06+00:00"
    assert apply(state, guess)[1] != "", "a guess never replaces what was planned"
    assert EPOCH < NEXT


def test_members_say_how_they_are_heard() -> None:
    rows = member_rows(raft("gw1"), leased("gw1"))
    assert [(row["member"], row["raft"]) for row in rows] == [
        ("gw1", "follower"), ("gw2", "leader"), ("wit", "-"),
    ]  # fmt: skip
    assert all(row["in_raft"] and row["in_lease"] for row in rows)
    assert [row["in_lease"] for row in member_rows(raft("gw1"), None)] == [None] * 3


def test_the_holder_reports_who_is_damped_once_for_each_loss() -> None:
    at = DampedStatus(1, 2, 3, "silent", 60.0, [])
    holder = structs.replace(leased("gw1", active=True, holder="gw1"), damped=[at])
    [report] = newly_damped(CONFIG, holder, [], now_s=5.0)
    assert report == RecordDamped(DampedNode("main", 2, 3, 5.0, "silent"))
    assert newly_damped(CONFIG, holder, [at]) == []
    assert newly_damped(CONFIG, holder, [structs.replace(at, losses=2)]) != []
    assert newly_damped(CONFIG, structs.replace(leased("gw1"), damped=[at]), []) == []
    told = structs.replace(at, losses=0, told_by=[2])
    assert newly_damped(CONFIG, structs.replace(holder, damped=[told]), []) == []
    state, refusal = apply(ASSIGNMENT, RecordDamped(DampedNode("main", 2, 3, 2e9, "silent")))
    assert refusal == ""
    row = history_rows(CONFIG, state)[-1]
    assert (row["group"], row["from"], row["to"]) == ("main", "gw2", "-")
    assert row["why"] == "damped after 3 losses: silent"
