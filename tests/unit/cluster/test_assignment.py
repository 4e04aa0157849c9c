"""The replicated state machine: deterministic, and a refusal changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.assignment import (
    DAMPED_MAX,
    HISTORY_MAX,
    TOKENS_MAX,
    AddToken,
    ClearLosses,
    Command,
    Configure,
    DampedNode,
    Group,
    Join,
    Leave,
    Member,
    Move,
    RecordDamped,
    RecordMove,
    SetGroup,
    SetMemberState,
    SetOrder,
    SetPolicy,
    State,
    Voters,
    apply,
    assigned,
    decode_command,
    decode_state,
    digest,
    encode,
    hash_token,
)

MEMBERS = (
    Member("gw1", 1, "gateway", {"sync0": "203.0.113.1"}),
    Member("gw2", 2, "gateway", {"sync0": "203.0.113.2"}),
    Member("wit", 9, "witness", {"sync0": "203.0.113.9"}),
)
FOUND = Configure(MEMBERS, (Group("main", 1, ("gw1", "gw2")),), Voters(1, (1, 2, 9), "ab"))


def after(*commands: Command) -> State:
    state = State()
    for command in (FOUND, *commands):
        state, refusal = apply(state, command)
        assert refusal == "", command
    return state


def move(epoch: int, *, planned: bool = False, group: str = "main", to: int = 2) -> RecordMove:
    return RecordMove(Move(group, epoch, 1, to, float(epoch), "why", planned))


names = st.sampled_from(["gw1", "gw2", "gw3", "wit", "main", "dmz"])
hashes = st.sampled_from(["a", "b", "c"])
times = st.floats(0, 100)
members = st.builds(
    Member, names, st.integers(1, 4), st.sampled_from(["gateway", "witness"]), st.just({})
)
commands = st.one_of(
    st.just(FOUND),
    st.builds(
        Configure,
        st.lists(members, max_size=4).map(tuple),
        st.lists(
            st.builds(Group, names, st.integers(1, 3), st.lists(names, max_size=2).map(tuple)),
            max_size=2,
        ).map(tuple),
        st.just(Voters(2, (1,), "cd")),
    ),
    st.builds(SetMemberState, names, st.sampled_from(["online", "draining", "maintenance"])),
    st.builds(SetGroup, names, st.booleans()),
    st.builds(SetOrder, names, st.lists(names, max_size=2).map(tuple)),
    st.builds(SetPolicy, st.integers(1, 5), hashes),
    st.builds(move, st.integers(0, 5), planned=st.booleans(), group=names),
    st.builds(AddToken, hashes, times, times),
    st.builds(Join, names, hashes, times),
    st.builds(Leave, names),
)


@given(st.lists(commands, max_size=30))
def test_same_commands_same_state_and_refusals_change_nothing(run: list[Command]) -> None:
    one = other = State()
    for command in run:
        before = encode(one)
        one, refusal = apply(one, command)
        # The other member has it from the wire, and its state from a dump.
        again = decode_command(encode(command))
        other, said = apply(decode_state(encode(other)), again)
        assert refusal == said
        if refusal:
            assert encode(one) == before
        assert digest(one) == digest(other)
        check(one)


def check(state: State) -> None:
    """What holds in any state."""
    assert len({m.id for m in state.members}) == len(state.members)
    assert len({m.name for m in state.members}) == len(state.members)
    known = {m.name for m in state.members}
    assert all(set(group.order) <= known for group in state.groups)
    assert len(state.history) <= HISTORY_MAX
    assert len(state.tokens) <= TOKENS_MAX
    for group in {m.group for m in state.history}:
        epochs = [m.epoch for m in state.history if m.group == group]
        assert epochs == sorted(set(epochs)), "once an epoch, in order"
    for found in state.groups:
        assert set(found.ranked) == set(found.order)
        who = assigned(state, found.name)
        if who is not None:
            assert who in found.order
            states = {m.name: m.state for m in state.members}
            best = "online" if any(states[n] == "online" for n in found.order) else "draining"
            assert states[who] == best


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (SetMemberState("gw3", "draining"), "no member gw3"),
        (SetGroup("dmz", True), "no group dmz"),
        (Leave("gw3"), "no member gw3"),
        (SetOrder("dmz", ()), "no group dmz"),
        (SetOrder("main", ("gw1",)), "each of its candidates once: gw1, gw2"),
        (SetOrder("main", ("gw2", "gw2")), "each of its candidates once"),
        (SetMemberState("wit", "draining"), "wit is a witness"),
        (Join("gw1", "a", 1.0), "member already"),
        (Join("gw3", "a", 1.0), "not in the cluster's cluster.yaml"),
        (AddToken("a", 1.0, 2.0), "expired already"),
        (Configure((MEMBERS[0], MEMBERS[0]), (), Voters(1, (), "")), "member name is used twice"),
        (Configure(MEMBERS, (Group("g", 1, ("gw7",)),), Voters(1, (), "")), "gw7 is in a group's"),
    ],
)
def test_refusals_say_why(command: Command, words: str) -> None:
    state = after()
    same, refusal = apply(state, command)
    assert words in refusal
    assert same is state


def test_the_file_changes_what_is_the_files_and_keeps_the_rest() -> None:
    state = after(SetMemberState("gw2", "draining"), SetGroup("main", True), move(5))
    grown = Configure(
        (*MEMBERS, Member("gw3", 3, "gateway", {})),
        (Group("main", 1, ("gw3", "gw2", "gw1")),),
        Voters(1, (1, 2, 3, 9), "cd"),
    )
    state, refusal = apply(state, grown)
    assert refusal == ""
    assert {m.name: m.state for m in state.members}["gw2"] == "draining"
    assert (state.groups[0].order, state.groups[0].preempt) == (("gw3", "gw2", "gw1"), True)
    assert (len(state.members), len(state.history)) == (4, 1)


def test_a_token_is_used_once_and_expires() -> None:
    token = hash_token("secret")
    state = after(Leave("gw2"), AddToken(token, 100.0, 1.0))
    assert assigned(state, "main") == "gw1"
    _, late = apply(state, Join("gw2", token, 100.0))
    assert "expired" in late
    _, wrong = apply(state, Join("gw2", hash_token("guess"), 50.0))
    assert "unknown" in wrong
    state, refusal = apply(state, Join("gw2", token, 50.0))
    assert refusal == ""
    state, refusal = apply(state, Leave("gw2"))
    assert refusal == ""
    _, again = apply(state, Join("gw2", token, 60.0))
    assert "used already, by gw2" in again


def test_tokens_are_bounded_and_the_expired_make_room() -> None:
    state = after(*(AddToken(str(n), 10.0, 0.0) for n in range(TOKENS_MAX)))
    _, full = apply(state, AddToken("more", 20.0, 0.0))
    assert "not expired yet" in full
    state, refusal = apply(state, AddToken("more", 20.0, 10.0))
    assert (refusal, len(state.tokens)) == ("", 1)


def test_the_last_gateway_that_is_online_stays() -> None:
    state = after(Leave("gw1"))
    same, refusal = apply(state, Leave("gw2"))
    assert "last gateway" in refusal
    assert same is state
    assert apply(state, Leave("wit"))[1] == ""


def test_history_is_in_order_bounded_and_planned_wins() -> None:
    state = after(move(7), move(5))
    assert [m.epoch for m in state.history] == [5, 7]
    assert apply(state, move(5))[1] != ""
    state, refusal = apply(state, move(5, planned=True))
    assert (refusal, state.history[0].planned) == ("", True)
    assert apply(state, move(5, planned=True))[1] != ""
    state = after(*(move(epoch) for epoch in range(HISTORY_MAX + 10)))
    assert [m.epoch for m in state.history][:1] == [10]
    assert len(state.history) == HISTORY_MAX


def test_a_full_history_fits_a_packet() -> None:
    """The longest texts: what raftd answers to hafwd is one packet."""
    moves = (
        RecordMove(Move("g" * 64, (1 << 62) + n, 62, 62, 1e9, "w" * 120))
        for n in range(HISTORY_MAX)
    )
    state = State()
    for command in moves:
        state, _ = apply(state, command)
    assert len(encode(state)) < 100_000


@pytest.mark.parametrize("data", [b"", b"\xc1", encode(State()), b"x" * 40000, b"\x90" * 9])
def test_what_is_no_command_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="command"):
        decode_command(data)


def test_the_last_gateway_online_is_neither_drained_nor_rested() -> None:
    state = after(SetMemberState("gw1", "draining", "new disk", 5.0))
    assert (state.members[0].why, state.members[0].since_s) == ("new disk", 5.0)
    for to in ("draining", "maintenance"):
        same, refusal = apply(state, SetMemberState("gw2", to))
        assert refusal == "no gateway but gw2 is online: nobody could take its groups"
        assert same is state
    state, _ = apply(state, SetMemberState("gw1", "online"))
    assert apply(state, SetMemberState("gw2", "maintenance"))[1] == ""


def test_an_order_set_by_hand_is_in_force_until_the_files_changes() -> None:
    state = after(SetOrder("main", ("gw2", "gw1")), SetGroup("main", True, 5.0))
    assert state.groups[0].ranked == ("gw2", "gw1")
    assert assigned(state, "main") == "gw2"
    state, _ = apply(state, FOUND)
    assert (state.groups[0].ranked, state.groups[0].preempt_after_s) == (("gw2", "gw1"), 5.0)
    plain, _ = apply(state, SetOrder("main", ()))
    assert plain.groups[0].ranked == ("gw1", "gw2")
    turned = Configure(MEMBERS, (Group("main", 1, ("gw2", "gw1")),), FOUND.voters)
    state, _ = apply(state, turned)
    assert (state.groups[0].preferred, state.groups[0].preempt) == ((), True)


def test_a_drained_node_is_assigned_nothing_while_another_is_online() -> None:
    state = after(move(5, to=1))
    assert assigned(state, "main") == "gw1"
    state, _ = apply(state, SetMemberState("gw1", "draining"))
    assert assigned(state, "main") == "gw2"


def test_what_damps_a_node_is_cleared_by_a_number_that_grows_and_stays() -> None:
    state = State(members=MEMBERS)
    for times in (1, 2):
        state, refusal = apply(state, ClearLosses("gw1"))
        assert refusal == ""
        assert [member.cleared for member in state.members] == [times, 0, 0]
    assert apply(state, ClearLosses("gw7")) == (state, "there is no member gw7")
    configured, _ = apply(state, Configure(MEMBERS, (), state.voters))
    assert [member.cleared for member in configured.members] == [2, 0, 0]


def test_that_a_node_was_damped_is_kept_once_and_the_newest_are() -> None:
    first = DampedNode("main", 1, 3, 100.0, "silent")
    state, refusal = apply(State(), RecordDamped(first))
    assert refusal == ""
    again = DampedNode("main", 1, 3, 110.0, "silent")
    assert apply(state, RecordDamped(again)) == (state, "node 1 is known to be damped")
    for losses in range(4, 4 + DAMPED_MAX):
        state, refusal = apply(state, RecordDamped(DampedNode("main", 1, losses, 110.0, "")))
        assert refusal == ""
    assert len(state.damped) == DAMPED_MAX
    assert first not in state.damped
    assert decode_state(encode(state)) == state
