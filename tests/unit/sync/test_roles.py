"""Who holds a group, and what follows when that changes."""

from __future__ import annotations

import pytest

from hafw.messages import RoleChange
from sync.roles import (
    LEASED_SILENT_S,
    BecomeStale,
    Follow,
    RoleEffect,
    Roles,
    StartHolding,
    StopHolding,
)
from tests.unit.sync.sync_flows import GROUP, epoch

ME, PEER = 1, 2


@pytest.fixture
def roles() -> Roles:
    return Roles(ME, [GROUP])


def hold(
    roles: Roles, counter: int, *, contiguous: bool = False, now: float = 0
) -> list[RoleEffect]:
    message = RoleChange(GROUP, True, epoch(counter, ME), ME, contiguous)
    return roles.on_role_change(message, now=now)


def follow(roles: Roles, counter: int, holder: int = PEER, node: int = PEER) -> list[RoleEffect]:
    return roles.on_role_change(
        RoleChange(GROUP, False, epoch(counter, node), holder, False), now=0
    )


def test_a_first_hold_is_told_apart_and_repeats_are_nothing(roles: Roles) -> None:
    assert hold(roles, 1) == [StartHolding(GROUP, epoch(1, ME), False, True)]
    assert hold(roles, 1) == []
    assert roles.held() == {GROUP: epoch(1, ME)}


def test_follow_then_take_over(roles: Roles) -> None:
    assert follow(roles, 1) == [Follow(GROUP, PEER, epoch(1, PEER))]
    assert follow(roles, 1) == []
    assert follow(roles, 1, holder=0) == [], "the holder died"
    assert roles.states[GROUP].last_holder_id == PEER
    assert hold(roles, 2) == [StartHolding(GROUP, epoch(2, ME), False, False)]


def test_another_holder_makes_the_entries_stale_once(roles: Roles) -> None:
    hold(roles, 1)
    assert follow(roles, 2) == [
        StopHolding(GROUP),
        BecomeStale(GROUP),
        Follow(GROUP, PEER, epoch(2, PEER)),
    ]
    assert follow(roles, 3) == [Follow(GROUP, PEER, epoch(3, PEER))]


def test_a_lost_lease_that_nobody_took_makes_nothing_stale(roles: Roles) -> None:
    hold(roles, 1)
    assert follow(roles, 1, holder=0, node=ME) == [StopHolding(GROUP)]
    assert hold(roles, 2, contiguous=True) == [StartHolding(GROUP, epoch(2, ME), True, False)]


def test_a_hold_of_another_that_was_never_seen_makes_stale(roles: Roles) -> None:
    hold(roles, 1)
    assert hold(roles, 3) == [
        BecomeStale(GROUP),
        StartHolding(GROUP, epoch(3, ME), False, False),
    ]


def test_a_peers_newer_word_ends_the_hold_before_leased_does(roles: Roles) -> None:
    hold(roles, 1)
    assert roles.on_superseded(GROUP, epoch(2, PEER), PEER) == [
        StopHolding(GROUP),
        BecomeStale(GROUP),
        Follow(GROUP, PEER, epoch(2, PEER)),
    ]
    assert hold(roles, 1) == [], "leased is behind"
    assert roles.held() == {}
    assert roles.counters["role_old_epoch"] == 1
    assert roles.on_superseded(GROUP, epoch(2, PEER), PEER) == []


def test_a_peer_that_knows_a_newer_epoch_is_believed_before_leased_knows(roles: Roles) -> None:
    """Links are back after a cut: this node held the group last, as far as it knows."""
    hold(roles, 1)
    follow(roles, 1, holder=0, node=ME)
    assert roles.on_told({GROUP: epoch(1, ME), 9: epoch(9, PEER)}) == []
    stale = [BecomeStale(GROUP), Follow(GROUP, PEER, epoch(2, PEER))]
    assert roles.on_told({GROUP: epoch(2, PEER)}) == stale
    state = roles.states[GROUP]
    assert (state.last_holder_id, state.holder_id) == (PEER, 0), "it may have died since"
    assert roles.on_told({GROUP: epoch(2, PEER)}) == []
    assert follow(roles, 1, holder=0, node=ME) == [], "leased is behind"
    assert follow(roles, 2) == []
    assert state.holder_id == PEER


def test_nobody_is_told_of_its_own_epoch_or_before_leased_spoke(roles: Roles) -> None:
    assert roles.on_told({GROUP: epoch(2, PEER)}) == []
    hold(roles, 3)
    assert roles.on_told({GROUP: epoch(4, ME)}) == []
    assert roles.held() == {GROUP: epoch(3, ME)}
    assert roles.on_told({GROUP: epoch(4, PEER)})[0] == StopHolding(GROUP)


def test_a_silent_leased_ends_the_hold_and_the_same_epoch_resumes_it(roles: Roles) -> None:
    hold(roles, 1, now=10.0)
    assert roles.tick(now=10.0 + LEASED_SILENT_S) == []
    assert roles.tick(now=10.1 + LEASED_SILENT_S) == [StopHolding(GROUP)]
    assert hold(roles, 1, now=12.0) == [StartHolding(GROUP, epoch(1, ME), True, False)]


def test_an_unknown_group_is_counted(roles: Roles) -> None:
    message = RoleChange(9, True, epoch(1, ME), ME, False)
    assert roles.on_role_change(message, now=0) == []
    assert roles.counters["role_unknown_group"] == 1
