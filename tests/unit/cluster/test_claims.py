"""Who claims first, and how long an unsynced candidate waits."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from msgspec import structs

from cluster.claims import DESPAIR_LEASES, UNSYNCED_LEASES, Candidacy, Patience, heirs, rank
from cluster.heartbeat import Beat, GroupBeat, Voters
from cluster.lease import LeaseCore
from cluster.lease_types import GroupParams
from cluster.view import COUNTER_MAX
from hafw.config.model import VoterSet
from hafw.human import make_epoch
from hafw.messages import Standing, SyncBeacon
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, START, VOTED, Bench, T, params, sent

ORDER = (1, 2, 3)
WAIT = UNSYNCED_LEASES * T


@pytest.mark.parametrize(
    ("node", "alive", "synced", "place"),
    [
        (1, {2, 3}, {1, 2, 3}, 0),
        (2, {1, 3}, {1, 2, 3}, 1),
        (2, {3}, {2, 3}, 0),  # The first is gone.
        (1, {2, 3}, {2, 3}, 2),  # Synced ones first, in the group's order among themselves.
        (3, {1, 2}, {3}, 0),
        (2, {1, 3}, set(), 1),
        (3, set(), set(), 0),  # It counts itself as alive.
        (9, {1, 2}, {1, 2}, None),  # Not a candidate.
    ],
)
def test_rank(node: int, alive: set[int], synced: set[int], place: int | None) -> None:
    assert rank(node, ORDER, alive=alive, synced=synced) == place


def test_patience_counts_only_without_a_break() -> None:
    patience = Patience(500)
    assert not patience.ripe(0)
    patience.observe(True, 100)
    patience.observe(True, 400)
    assert patience.ripe_ns() == 600
    assert not patience.ripe(599)
    assert patience.ripe(600)
    patience.observe(False, 601)
    assert not patience.ripe(700)
    patience.observe(True, 800)
    assert patience.ripe_ns() == 1300


@pytest.mark.parametrize(
    ("node", "synced", "last", "place"),
    [
        (1, {1, 2, 3}, {1}, 2),  # Drained: behind all others that are synced.
        (2, {1, 2, 3}, {1}, 0),
        (1, {1}, {1}, 0),  # The flows count for more than the drain.
        (1, {1, 2, 3}, {1, 2, 3}, 0),
        (2, set(), {1}, 0),
    ],
)
def test_a_drained_node_ranks_behind_those_that_keep_the_flows(
    node: int, synced: set[int], last: set[int], place: int
) -> None:
    assert rank(node, ORDER, alive={1, 2, 3}, synced=synced, last=last) == place


# ---- when to claim ------------------------------------------------------------------------------


class Free:
    """Node 2, second of the group's order. Nobody holds the group; peers say what a test says."""

    def __init__(self, *, synced: bool = True) -> None:
        core = LeaseCore(params(2), era=3, era_durable=True, rng=Random(1), now_ns=START)
        self.now = START + 3000 * MS
        self.view = core.view
        self.voter = core.groups[1].acceptor
        self.candidacy = Candidacy(core.groups[1].params, core.view, self.voter)
        self.synced = synced
        seen = GroupBeat(1, 0, 0, 0, synced, synced, "")
        self.said = {1: seen, 9: structs.replace(seen, synced=False)}
        self.voters = {1: VOTED, 9: VOTED}

    def say(self, *nodes: int, **changes: Any) -> None:
        for node in nodes or (1, 9):
            self.said[node] = structs.replace(self.said[node], **changes)

    def listen(self) -> None:
        """Everybody who says something is heard now."""
        for node, said in self.said.items():
            peer = self.view.peers[node]
            beat = Beat(3, True, node != 9, [said], [], self.voters[node], None)
            peer.take(beat, self.now, self.now)
            peer.heard_ns = self.now
        beacon = SyncBeacon(
            synced={1: self.synced}, reasons={}, applied=[], stale_entries=0
        )  # fmt: skip
        self.view.take_beacon(beacon, self.now)

    def claims_after(self, bound_ns: int = 2 * WAIT) -> int | None:
        """None: not within the bound."""
        begun = self.now
        while self.now <= begun + bound_ns:
            self.listen()
            if self.candidacy.due(self.now, busy=False, retry_ns=0):
                return self.now - begun
            self.now += MS
        return None


def test_the_second_in_order_gives_the_first_a_heartbeat() -> None:
    assert Free().claims_after() == HEARTBEAT


def test_who_was_given_the_group_or_held_it_or_is_forced_claims_at_once() -> None:
    given = Free()
    given.voter.released, given.voter.released_to = True, 2
    assert given.claims_after() == 0
    restarted = Free()
    restarted.say(9, holder=2)
    assert restarted.claims_after() == 0, "voters count a lease of the process before"
    forced = Free()
    forced.candidacy.force(forced.now + 1)
    assert forced.claims_after() == 0


def test_whose_upstream_fails_is_not_waited_for() -> None:
    free = Free()
    free.say(1, upstream=False)
    assert free.claims_after() == 0


def test_nobody_claims_without_a_majority_that_acts_in_the_same_set() -> None:
    free = Free()
    free.voters = dict.fromkeys((1, 9), Voters(VOTED.id + 1, VOTED.members))
    assert free.claims_after() is None
    free.voters[9] = VOTED
    assert free.claims_after() == HEARTBEAT


def test_an_unsynced_node_gives_each_before_it_a_lease_and_not_for_ever() -> None:
    """Theirs may begin later than its own, by more than a heartbeat."""
    assert Free(synced=False).claims_after() == WAIT + T
    first = Free(synced=False)
    first.say(1, upstream=False)
    assert first.claims_after() == WAIT
    alone = Free(synced=False)
    del alone.said[1]
    assert alone.claims_after() == WAIT
    despairing = Free(synced=False)
    despairing.say(1, synced=True)
    despairing.say(9, synced_seen=True)
    assert despairing.claims_after(2 * DESPAIR_LEASES * T) == DESPAIR_LEASES * T


def test_an_unsynced_node_waits_for_as_long_as_a_majority_knows_of_nobody() -> None:
    for voters, silent, says in (
        (VOTED, False, {1: {"holder": 1}, 9: {"holder": 1}}),
        (Voters(VOTED.id + 1, VOTED.members), False, {9: {"synced_seen": True}}),
        (VOTED, True, {9: {"synced_seen": True}}),
    ):
        free = Free(synced=False)
        free.voters[1] = voters
        for node, changes in says.items():
            free.say(node, **changes)
        if silent:
            free.listen()
            free.now += 10 * HEARTBEAT
            del free.said[1]
        assert free.claims_after() is None, says
        free.voters[1] = VOTED
        free.say(9, holder=0, synced_seen=False)
        assert free.claims_after() == WAIT + T * (not silent), "it begins anew"


def test_the_wait_does_not_begin_while_somebody_is_active_or_the_own_voter_counts_a_lease() -> (
    None
):
    free = Free(synced=False)
    free.say(active=make_epoch(3, 7, 1))
    assert free.claims_after() is None
    free.say(active=0)
    assert free.claims_after() == WAIT + T
    free = Free(synced=False)
    del free.said[1]  # It held the group, and died.
    free.voter.holder, free.voter.until_ns = 1, free.now + 2 * WAIT
    assert free.claims_after(2 * WAIT) is None
    waited = free.claims_after()
    assert waited is not None
    assert free.now - free.voter.until_ns == WAIT


def test_heirs_are_drained_last_and_sound_before_calm() -> None:
    group = GroupParams(1, (1, 2, 3))
    voters = VoterSet(id=1, members=(1, 2, 3))
    core = LeaseCore(
        replace(params(1, voters), groups=(group,)),
        era=3, era_durable=True, rng=Random(1), now_ns=START,
    )  # fmt: skip

    def hear(seq: int, *, sound: int) -> None:
        for node in (2, 3):
            said = GroupBeat(1, 0, 0, 0, True, True, "", upstream=node == sound)
            peer = core.view.peers[node]
            peer.take(Beat(3, True, True, [said], [], VOTED, None), seq, START)
            peer.heard_ns = START

    hear(1, sound=2)
    assert heirs(core.view, group, START) == [2, 3]
    hear(2, sound=3)
    assert heirs(core.view, group, START) == [3, 2]
    core.view.standing = Standing({}, [3], [])
    assert heirs(core.view, group, START) == [2, 3]


def test_after_the_last_epoch_of_an_era_comes_the_next_era() -> None:
    free = Free()
    free.say(9, promised=make_epoch(3, COUNTER_MAX - 1, 9))
    free.listen()
    assert free.view.next_epoch(1, 0) == make_epoch(3, COUNTER_MAX, 2)
    free.say(9, promised=make_epoch(3, COUNTER_MAX, 9))
    free.now += 1
    free.listen()
    assert free.view.next_epoch(1, 0) is None, "not before the era is on disk"
    assert free.view.era_wanted == 4


def test_a_change_of_sync_is_told_before_the_next_heartbeat() -> None:
    bench = Bench()
    while not sent(bench.pass_time(MS), Beat):
        pass
    bench.pass_time(HEARTBEAT // 2)
    assert sent(bench.beacon(), Beat), "the first"
    bench.pass_time(HEARTBEAT // 2)
    assert sent(bench.beacon(), Beat) == [], "the same again"
    bench.synced = False
    [beat] = sent(bench.beacon(), Beat)
    assert not beat.groups[0].synced
