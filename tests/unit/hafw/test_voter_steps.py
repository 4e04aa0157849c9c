"""Which step of the voter set hafwd asks for, when, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from cluster.agreed import (
    Command,
    Configure,
    DropVoter,
    Join,
    Leave,
    Member,
    SetMemberState,
    SetVotes,
    State,
    hash_token,
)
from cluster.assignment import AddToken, apply, find_member, outsiders
from hafw.messages import LeasedStatus, VoterSetStatus, VotersRequest
from hafw.node.raft_rows import member_rows, target_problem
from hafw.node.status_rows import build_tables
from hafw.node.survival import survival_rows
from hafw.node.verdict import find_problems
from hafw.node.voters import (
    SETTLED_S,
    VoterKeeper,
    change_problem,
    change_words,
    spare_words,
    voters_notes,
)
from tests.unit.hafw.test_status_rows import ASSIGNMENT, CONFIG, facts, leased, raft

ALL = (1, 2, 9)
FOUNDED, _ = apply(State(), Configure(ASSIGNMENT.members, ASSIGNMENT.groups, ASSIGNMENT.voters))


def agreed(*commands: Command) -> State:
    state = FOUNDED
    for command in commands:
        state, refusal = apply(state, command)
        assert refusal == ""
    return state


def acting(*members: int, silent: tuple[int, ...] = (), number: int = 4) -> LeasedStatus:
    """leased of gw1 acts in this set; peers outside of it do not vote."""
    status = leased("gw1", active=True)
    peers = [
        structs.replace(
            p, alive=p.node_id not in silent, votes=p.node_id in members, voters_id=number
        )
        for p in status.peers
    ]
    voters = VoterSetStatus(number, list(members), list(members))
    return structs.replace(status, peers=peers, voters=voters, may_vote=1 in members)


def member(state: State, name: str) -> Member:
    found = find_member(state, name)
    assert found is not None
    return found


def test_founders_are_to_vote_and_later_members_once_they_joined() -> None:
    assert {m.votes for m in FOUNDED.members} == {"yes"}
    later = Member("gw3", 3, "gateway", {})
    with_gw3 = Configure((*FOUNDED.members, later), FOUNDED.groups, FOUNDED.voters)
    state, _ = apply(FOUNDED, with_gw3)
    assert member(state, "gw3").votes == ""
    assert VoterKeeper().observe(acting(*ALL), state, leads=True, now=0.0) is None
    state, _ = apply(state, AddToken(hash_token("t"), 60.0, 0.0))
    state, refusal = apply(state, Join("gw3", hash_token("t"), 1.0))
    assert (refusal, member(state, "gw3").votes) == ("", "yes")
    state, _ = apply(state, with_gw3)
    assert member(state, "gw3").votes == "yes"
    assert "is a member already" in apply(state, Join("gw3", hash_token("t"), 1.0))[1]


def test_who_leaves_is_taken_out_and_who_joins_again_is_added() -> None:
    keeper = VoterKeeper()
    assert keeper.observe(acting(*ALL), FOUNDED, leads=True, now=0.0) is None
    left = agreed(Leave("gw2"))
    assert keeper.observe(acting(*ALL), left, leads=False, now=0.0) is None
    assert keeper.observe(acting(*ALL), left, leads=True, now=0.0) == VotersRequest(5, [1, 9])
    assert keeper.observe(acting(1, 9), left, leads=True, now=1.0) is None
    assert member(agreed(Leave("gw2", votes=True)), "gw2").votes == "yes"


def test_a_node_is_added_when_it_has_been_heard_for_a_while() -> None:
    keeper = VoterKeeper()
    silent = acting(1, 9, silent=(2,))
    assert keeper.observe(silent, FOUNDED, leads=True, now=0.0) is None
    assert keeper.observe(acting(1, 9), FOUNDED, leads=True, now=1.0) is None
    late = 1.0 + SETTLED_S
    assert keeper.observe(acting(1, 9), FOUNDED, leads=True, now=late - 0.1) is None
    request = keeper.observe(acting(1, 9), FOUNDED, leads=True, now=late)
    assert request == VotersRequest(5, [1, 2, 9])
    stranger = acting(1, 9)
    stranger = structs.replace(
        stranger, peers=[structs.replace(peer, voters_id=1) for peer in stranger.peers]
    )
    assert "does not know set 4 yet" in change_problem(stranger, member(FOUNDED, "gw2"), add=True)


def test_nothing_is_asked_for_while_a_change_is_under_way() -> None:
    status = structs.replace(acting(*ALL), voters_next=VoterSetStatus(5, [1, 9], [1], 1500.0))
    state = agreed(Leave("gw2"))
    assert VoterKeeper().observe(status, state, leads=True, now=0.0) is None
    assert change_words(status, member(state, "gw2")) == "leaves with set 5, stored so far"
    assert voters_notes(CONFIG, status) == [
        "voter set 5 (gw1, wit) follows, stored by gw1: in force in 1.5 s"
    ]


def test_what_would_leave_no_majority_waits_with_an_alarm_unless_forced() -> None:
    keeper, status = VoterKeeper(), acting(*ALL, silent=(9,))
    state = agreed(SetVotes("gw2", "no"))
    assert keeper.observe(status, state, leads=True, now=0.0) is None
    assert keeper.alarms(1.0) == []
    assert keeper.observe(status, state, leads=True, now=10.0) is None
    [alarm] = keeper.alarms(10.0)
    assert "gw2 is to leave: only 1 of the 2 voters" in alarm
    forced = agreed(SetVotes("gw2", "no", forced=True))
    assert keeper.observe(status, forced, leads=True, now=11.0) == VotersRequest(5, [1, 9])
    assert keeper.alarms(11.0) == []


def test_a_step_that_the_voters_in_force_cannot_put_into_force_is_not_forced_either() -> None:
    status = acting(2, 7, 9, silent=(9,))
    status = structs.replace(status, may_vote=False, groups=[])
    joins = structs.replace(member(FOUNDED, "gw1"), forced=True)
    assert "only 1 of the 3 voters of set 4" in change_problem(status, joins, add=True)
    behind = acting(*ALL)
    peers = [structs.replace(p, voters_id=3) for p in behind.peers]
    behind = structs.replace(behind, peers=peers, groups=[])
    leaves = structs.replace(member(FOUNDED, "gw2"), forced=True)
    assert "only 1 of the 3 voters of set 4" in change_problem(behind, leaves, add=False)


def test_a_newcomer_knows_no_voters_and_asks_for_none() -> None:
    new = acting(*ALL, number=0)
    left = agreed(Leave("gw2"))
    assert VoterKeeper().observe(new, left, leads=True, now=0.0) is None
    assert "knows no voters yet" in change_problem(new, member(left, "gw2"), add=False)
    assert {row["votes"] for row in member_rows(raft("gw1"), new)} == {False}


def test_a_holder_is_not_taken_out() -> None:
    state = agreed(SetVotes("gw1", "no"))
    problem = change_problem(acting(*ALL), member(state, "gw1"), add=False)
    assert problem == "gw1 is ACTIVE: its groups move away first"


def test_a_single_voter_is_left_by_force_alone_and_two_are_said_to_be_few() -> None:
    status = structs.replace(acting(1, 9), groups=[])
    problem = change_problem(status, member(agreed(SetVotes("wit", "no")), "wit"), add=False)
    assert problem == "a single voter would be left: its loss would leave nobody ACTIVE"
    forced = member(agreed(SetVotes("wit", "no", forced=True)), "wit")
    assert change_problem(status, forced, add=False) == ""
    assert spare_words([1, 2, 9]) == ""
    assert "the loss of either leaves nobody ACTIVE" in spare_words([1, 9])


def test_nothing_is_moved_to_who_rests_or_is_not_to_vote() -> None:
    assert target_problem(FOUNDED, "gw2") == ""
    drained = agreed(SetMemberState("gw2", "draining"))
    assert target_problem(drained, "gw2").startswith("gw2 is being drained: first hafwctl node")
    assert target_problem(drained, "gw2", force=True) == ""
    resting = agreed(SetMemberState("gw2", "maintenance"))
    assert "is in maintenance" in target_problem(resting, "gw2", force=True)
    removed = agreed(SetVotes("gw2", "no"))
    assert target_problem(removed, "gw2").endswith("first hafwctl cluster voters --add gw2")


def test_one_is_added_before_another_is_taken_out() -> None:
    keeper, state = VoterKeeper(), agreed(SetVotes("wit", "no"))
    keeper.observe(acting(1, 9), state, leads=True, now=0.0)
    request = keeper.observe(acting(1, 9), state, leads=True, now=SETTLED_S)
    assert request == VotersRequest(5, [1, 2, 9])


@pytest.mark.parametrize("last", ["gw1", "wit"])
def test_somebody_is_always_to_vote(last: str) -> None:
    others = [m.name for m in FOUNDED.members if m.name != last]
    state = agreed(*(SetVotes(name, "no") for name in others))
    assert apply(state, SetVotes(last, "no"))[1] == f"{last} is the last that votes"


def test_members_and_status_say_who_votes_by_the_set_in_force() -> None:
    rows = {row["member"]: row for row in member_rows(raft("gw1"), acting(1, 9))}
    assert {name: row["votes"] for name, row in rows.items()} == {
        "gw1": True, "gw2": False, "wit": True,
    }  # fmt: skip
    reason = "this node does not vote: set 4 is gw2, wit"
    assert voters_notes(CONFIG, acting(2, 9)) == [reason]
    facts_out = replace(facts("gw1", active=True), leased=acting(2, 9))
    problems = [row["problem"] for row in find_problems(build_tables(CONFIG, facts_out))]
    assert reason in problems
    assert "cannot vote" not in problems
    survives = survival_rows(CONFIG, "gw1", acting(1, 9))
    [loss] = [row for row in survives if (row["kind"], row["losing"]) == ("node", "wit")]
    assert (loss["survives"], loss["why"]) == (False, "no quorum: gw1 of 2 voters would vote")


def test_a_voter_that_the_file_no_longer_has_is_shown_and_can_be_taken_out() -> None:
    keeper, four = VoterKeeper(), acting(1, 2, 3, 9)
    rows = {row["member"]: row for row in member_rows(raft("gw1"), four)}
    assert (rows["node3"]["votes"], rows["node3"]["state"]) == (True, "not in cluster.yaml")
    told = build_tables(CONFIG, replace(facts("gw1"), leased=four))
    assert told["lease"][0]["voters"] == ["gw1", "gw2", "node3", "wit"]
    assert keeper.observe(four, FOUNDED, leads=True, now=0.0) is None

    state = agreed(DropVoter(3))
    assert keeper.observe(four, state, leads=True, now=0.0) == VotersRequest(5, [1, 2, 9])
    assert change_words(four, outsiders(state)[0]) == "to be taken out"
    assert keeper.observe(acting(1, 2, 9), state, leads=True, now=1.0) is None
    assert apply(FOUNDED, DropVoter(2))[1] == "node 2 is the member gw2"
    back = Configure((*state.members, Member("gw3", 3, "gateway", {})), state.groups, state.voters)
    assert outsiders(apply(state, back)[0]) == []


def test_it_is_lost_already_when_another_node_is_lost() -> None:
    survives = survival_rows(CONFIG, "gw1", acting(1, 2, 3, 9))
    [loss] = [row for row in survives if (row["kind"], row["losing"]) == ("node", "wit")]
    assert (loss["survives"], loss["why"]) == (False, "no quorum: gw1, gw2 of 4 voters would vote")


def test_nothing_is_changed_without_a_majority_of_the_set_in_force() -> None:
    """{gw1, gw2} of which gw2 is dead: a step that were stored now would block all others."""
    status = acting(1, 2, silent=(2,))
    state = agreed(SetVotes("gw2", "no", forced=True))
    problem = change_problem(status, member(state, "gw2"), add=False)
    assert problem == (
        "only 1 of the 2 voters of set 4 are heard and vote, and 2 are needed to change it"
    )


def test_a_node_of_the_file_that_does_not_vote_is_a_note_on_the_others() -> None:
    assert voters_notes(CONFIG, acting(1, 2)) == [
        "in cluster.yaml and not in voter set 4: wit (hafwctl node join there, or hafwctl cluster "
        "voters --add)"
    ]
