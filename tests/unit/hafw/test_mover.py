"""Which groups a node hands over by itself, when, and why not."""

from __future__ import annotations

from itertools import pairwise

from msgspec import structs

from cluster.agreed import (
    Command,
    Group,
    Member,
    SetGroup,
    SetMemberState,
    SetOrder,
    SetVotes,
    State,
)
from cluster.assignment import apply
from hafw.messages import DampedStatus, LeasedStatus
from hafw.node.mover import BACK_SOON_S, REFUSED_S, RETURNED_S, Mover, Wish, fit_problem
from tests.unit.hafw.test_status_rows import ASSIGNMENT, CONFIG, leased

DRAINED = SetMemberState("gw1", "draining", "new disk")


def agreed(*commands: Command) -> State:
    state = ASSIGNMENT
    for command in commands:
        state, refusal = apply(state, command)
        assert refusal == ""
    return state


def holding(node: str, *, alive: bool = True, synced: bool = True) -> LeasedStatus:
    status = leased(node, active=True, holder=node)
    reasons = {} if synced else {1: "behind"}
    peers = [
        structs.replace(peer, alive=alive, synced={1: synced}, reasons=reasons)
        for peer in status.peers
    ]
    return structs.replace(status, peers=peers)


def test_a_drained_holder_hands_over_to_who_is_fit() -> None:
    mover = Mover(CONFIG, "gw1")
    assert mover.observe(holding("gw1"), agreed(), now=0.0) == []
    wish = Wish("main", "gw2", "gw1 is drained: new disk")
    assert mover.observe(holding("gw1"), agreed(DRAINED), now=1.0) == [wish]
    assert mover.observe(leased("gw1"), agreed(DRAINED), now=2.0) == []
    rested = agreed(SetMemberState("gw1", "maintenance"))
    assert mover.observe(holding("gw1"), rested, now=3.0) == [
        Wish("main", "gw2", "gw1 is in maintenance")
    ]


def test_a_holder_that_is_not_to_vote_hands_over_and_nothing_goes_to_one() -> None:
    mover, state = Mover(CONFIG, "gw1"), agreed(SetVotes("gw1", "no"))
    assert mover.observe(holding("gw1"), state, now=0.0) == [
        Wish("main", "gw2", "gw1 is not to vote")
    ]
    state = agreed(SetVotes("gw2", "no"), DRAINED)
    assert mover.observe(holding("gw1"), state, now=1.0) == []
    assert mover.stuck == {"main": "gw2 is not to vote"}


def test_only_the_holder_moves() -> None:
    mover = Mover(CONFIG, "gw2")
    assert mover.observe(leased("gw2"), agreed(DRAINED), now=0.0) == []
    assert mover.observe(holding("gw2"), agreed(DRAINED), now=1.0) == []


def test_what_cannot_leave_is_stuck_with_a_reason_until_it_can() -> None:
    mover = Mover(CONFIG, "gw1")
    assert mover.observe(holding("gw1", synced=False), agreed(DRAINED), now=0.0) == []
    assert mover.stuck == {"main": "gw2 is not synced (behind)"}
    assert mover.observe(holding("gw1", alive=False), agreed(DRAINED), now=1.0) == []
    assert mover.stuck == {"main": "gw2 is not heard"}
    assert mover.observe(holding("gw1"), agreed(DRAINED), now=2.0) != []
    mover.done("main", now=2.0)
    assert mover.stuck == {}
    mover.observe(holding("gw1", alive=False), agreed(DRAINED), now=3.0)
    mover.observe(holding("gw1", alive=False), agreed(), now=4.0)
    assert mover.stuck == {}


def test_a_refused_move_is_tried_again_later_and_later() -> None:
    mover, state = Mover(CONFIG, "gw1"), agreed(DRAINED)
    first, most = REFUSED_S
    now, tried = 0.0, []
    while now < 6 * most:
        if mover.observe(holding("gw1"), state, now=now):
            tried.append(now)
            mover.refused("main", "because", now=now)
        now += 0.5
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps[:3] == [first, 2 * first, 4 * first]
    assert max(gaps) == most
    assert mover.stuck == {"main": "because"}


def test_a_group_with_preempt_goes_back_once_the_better_node_was_fit_long_enough() -> None:
    state = agreed(SetGroup("main", True, 5.0))
    mover = Mover(CONFIG, "gw2")
    assert mover.observe(holding("gw2"), state, now=0.0) == []
    assert mover.observe(holding("gw2"), state, now=4.9) == []
    assert mover.observe(holding("gw2", synced=False), state, now=5.0) == []
    assert mover.observe(holding("gw2"), state, now=6.0) == []
    assert mover.observe(holding("gw2"), state, now=10.9) == []
    [wish] = mover.observe(holding("gw2"), state, now=11.0)
    assert (wish.target, wish.why) == ("gw1", "preempt: gw1 is better and has been fit for 5 s")
    assert mover.observe(holding("gw2"), agreed(), now=12.0) == []  # No fail-back unless set.
    turned = agreed(SetGroup("main", True, 5.0), SetOrder("main", ("gw2", "gw1")))
    assert mover.observe(holding("gw2"), turned, now=13.0) == []


def test_a_damped_node_gets_nothing_back_and_is_the_last_choice() -> None:
    state, mover = agreed(SetGroup("main", True, 5.0)), Mover(CONFIG, "gw2")
    damped = DampedStatus(1, 1, 3, "silent", 20.0, [])
    for group, ahead in ((1, False), (2, True)):
        flapped = structs.replace(holding("gw2"), damped=[structs.replace(damped, group=group)])
        mover.observe(flapped, state, now=0.0)
        assert bool(mover.observe(flapped, state, now=6.0)) == ahead
    # Drained, its node gives the group even to who is damped.
    drained = agreed(SetMemberState("gw2", "draining"))
    flapped = structs.replace(holding("gw2"), damped=[damped])
    [wish] = mover.observe(flapped, drained, now=7.0)
    assert wish.target == "gw1"


def test_a_drain_prefers_who_is_not_damped_to_who_comes_first() -> None:
    names = ("gw1", "gw2", "gw3")
    members = [Member(name, n, "gateway", {}) for n, name in enumerate(names, 1)]
    members[0] = structs.replace(members[0], state="draining")
    state = State(members=tuple(members), groups=(Group("main", 1, names, False, 5.0),))
    status = holding("gw1")
    peers = [structs.replace(status.peers[0], node_id=node) for node in (2, 3)]
    status = structs.replace(status, peers=peers)
    flapped = structs.replace(status, damped=[DampedStatus(1, 2, 3, "silent", 20.0, [])])
    for said, target in ((status, "gw2"), (flapped, "gw3")):
        assert [w.target for w in Mover(CONFIG, "gw1").observe(said, state, now=0.0)] == [target]


def test_fit_is_who_is_online_heard_and_synced() -> None:
    status = holding("gw1")
    member = Member("gw2", 2, "gateway", {})
    assert fit_problem(status, 1, member) == ""
    drained = structs.replace(member, state="draining")
    assert fit_problem(status, 1, drained) == "gw2 is being drained"
    rested = structs.replace(member, state="maintenance")
    assert fit_problem(status, 1, rested) == "gw2 is in maintenance"
    gone = structs.replace(member, state="left")
    assert fit_problem(status, 1, gone) == "gw2 is no member any more"
    assert fit_problem(status, 2, member) == "gw2 is not synced (it gives no reason)"
    assert fit_problem(status, 1, structs.replace(member, id=7)) == "gw2 is not heard"


def with_silent_upstream(status: LeasedStatus) -> LeasedStatus:
    peers = [structs.replace(peer, upstream={1: False}) for peer in status.peers]
    return structs.replace(status, peers=peers)


def test_a_preference_is_not_followed_to_a_silent_upstream_but_a_drain_is() -> None:
    state, mover = agreed(SetGroup("main", True, 5.0)), Mover(CONFIG, "gw2")
    silent = with_silent_upstream(holding("gw2"))
    for now in range(20):
        assert mover.observe(silent, state, now=now) == []
    assert mover.observe(holding("gw2"), state, now=20.0) == []
    assert mover.observe(holding("gw2"), state, now=24.9) == []  # Fit since it answers again.
    assert [wish.target for wish in mover.observe(holding("gw2"), state, now=25.0)] == ["gw1"]
    drained = agreed(SetMemberState("gw2", "draining"))
    assert [wish.target for wish in mover.observe(silent, drained, now=26.0)] == ["gw1"]


def test_a_group_that_comes_back_at_once_is_moved_again_later_and_later() -> None:
    mover, state = Mover(CONFIG, "gw1"), agreed(DRAINED)
    first, most = RETURNED_S
    now, tried = 0.0, []
    while now < 6 * most:
        if mover.observe(holding("gw1"), state, now=now):
            tried.append(now)
            mover.done("main", now=now)
            mover.observe(leased("gw1"), state, now=now + 0.5)
        now += 1.0
        if mover.stuck:
            assert mover.stuck == {"main": "it came back 1 s after it was handed over"}
    gaps = [after - before - 1.0 for before, after in pairwise(tried)]
    assert gaps[:3] == [first, 2 * first, 4 * first]
    assert max(gaps) == most
    # Another wish begins anew; what comes back late has not come back in vain.
    mover.observe(holding("gw1"), agreed(), now=now)
    assert mover.observe(holding("gw1"), state, now=now + 1.0) != []
    mover.done("main", now=now)
    assert mover.observe(holding("gw1"), state, now=now + BACK_SOON_S) != []


def test_a_target_that_does_not_take_what_it_is_given_is_not_given_it_again_and_again() -> None:
    mover, state = Mover(CONFIG, "gw1"), agreed(DRAINED)
    now, tried = 0.0, []
    while now < 3 * RETURNED_S[1]:
        if mover.observe(holding("gw1"), state, now=now):
            tried.append(now)
            mover.refused("main", "it did not take it", now=now, released=True)
            mover.observe(leased("gw1"), state, now=now)  # Nobody's, and then ours again.
        now += 0.5
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps[:2] == [RETURNED_S[0], 2 * RETURNED_S[0]]
    assert max(gaps) == RETURNED_S[1]


def test_a_pause_is_never_followed_by_a_shorter_one() -> None:
    mover, state = Mover(CONFIG, "gw1"), agreed(DRAINED)
    assert mover.observe(holding("gw1"), state, now=0.0) != []
    for _ in range(12):
        mover.refused("main", "it did not take it", now=0.0, released=True)
    most = RETURNED_S[1]
    assert mover.observe(holding("gw1"), state, now=most) != []
    mover.refused("main", "because", now=most)
    assert mover.observe(holding("gw1"), state, now=2 * most - 1) == []
    assert mover.observe(holding("gw1"), state, now=2 * most) != []


def test_a_group_that_was_away_for_a_moment_keeps_its_pause() -> None:
    mover, state = Mover(CONFIG, "gw1"), agreed(DRAINED)
    first = RETURNED_S[0]
    mover.observe(holding("gw1"), state, now=0.0)
    mover.refused("main", "it did not take it", now=0.0, released=True)
    late = first + 2 * BACK_SOON_S
    assert mover.observe(holding("gw1"), state, now=late) != []
    mover.done("main", now=late)
    assert mover.observe(leased("gw1"), state, now=late + 1) == []
    back = late + BACK_SOON_S - 1
    assert mover.observe(holding("gw1"), state, now=back) == []
    assert mover.observe(holding("gw1"), state, now=back + 2 * first - 1) == []
    assert mover.observe(holding("gw1"), state, now=back + 2 * first) != []
