"""Flap damping: who came and went too often is not preferred until quiet, and never shut out."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.cluster.lease_bench as lease_bench
from cluster.claims import Candidacy, heirs, rank
from cluster.damping import Damped, Damping
from cluster.heartbeat import Beat, GroupBeat, Propose, Release
from cluster.lease import LeaseCore
from cluster.lease_types import (
    DampingParams,
    GroupParams,
    LeaseParams,
    SegmentsDown,
    StandingSaid,
    StopAsked,
)
from cluster.view import HEARD_BEATS
from hafw.config.load import load_cluster
from hafw.config.model import VoterSet
from hafw.human import make_epoch
from hafw.messages import DampedStatus, Standing
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, START, VOTED, Bench, T, sent
from tests.unit.cluster.test_leased_status import LAB, status

S = 1000 * MS
QUIET, LONGEST, LOSSES = 60 * S, 960 * S, 3
PARAMS = DampingParams(LOSSES, QUIET, LONGEST)
EPOCH_OF_2 = make_epoch(3, 7, 2)
FLAP = "segment lan: no carrier on lan0"


def flapped(times: int, each_ns: int = S) -> tuple[Damping, int]:
    """A node that was lost so often, each time for half of `each_ns`, and is fit again."""
    damping, now = Damping(PARAMS), 0
    damping.observe(1, "", now)
    for _ in range(times):
        now += each_ns // 2
        damping.observe(1, FLAP, now)
        now += each_ns // 2
        damping.observe(1, "", now)
    return damping, now


@pytest.mark.parametrize(
    ("losses", "quiet_ns"),
    [(0, 0), (2, 0), (3, QUIET), (4, 2 * QUIET), (5, 4 * QUIET), (7, LONGEST), (90, LONGEST)],
)
def test_the_wait_doubles_with_each_loss_up_to_a_bound(losses: int, quiet_ns: int) -> None:
    damping, now = flapped(losses)
    if not quiet_ns:
        assert damping.damped(now) == {}
        return
    counted = min(losses, LOSSES + 4)
    assert damping.damped(now) == {1: Damped(counted, FLAP, quiet_ns)}
    assert damping.damped(now + quiet_ns - 1) == {1: Damped(counted, FLAP, 1)}
    assert damping.damped(now + quiet_ns) == {}


def test_quiet_halves_the_next_wait() -> None:
    for rest, expected in ((LONGEST - 1, 5), (LONGEST, 4), (2 * LONGEST, 3)):
        damping, now = flapped(4)
        damping.observe(1, FLAP, now + rest)
        assert damping.quiet_ns(expected) == QUIET << (expected - LOSSES)
        assert damping.damped(now + rest) == {1: Damped(expected, FLAP, None)}


def test_only_a_fit_node_can_be_lost() -> None:
    damping = Damping(PARAMS)
    for _ in range(9):
        damping.observe(1, "silent", 0)  # Never seen fit.
        damping.observe(1, FLAP, 0)
    damping.observe(1, "", 0)
    for _ in range(9):
        damping.observe(1, "", 0)
    assert damping.damped(0) == {}
    for _ in range(9):  # Somebody works on it.
        damping.excuse(1)
        damping.observe(1, FLAP, 0)
        damping.excuse(1)
        damping.observe(1, "", 0)
    assert damping.damped(0) == {}
    damping, now = flapped(5)
    assert damping.clear(1)
    assert not damping.clear(1)
    assert not damping.clear(2)
    assert damping.damped(now) == {}


@given(st.integers(1, int(LONGEST / S)), st.integers(100, 2000))
def test_who_flaps_for_ever_is_chosen_a_bounded_number_of_times(period_s: int, turns: int) -> None:
    """Lost while not damped: the moves that a flapping node can cause."""
    damping, now, chosen = Damping(PARAMS), 0, 0
    for _ in range(turns):
        damping.observe(1, "", now)
        now += period_s * S - 1
        chosen += not damping.damped(now)
        damping.observe(1, FLAP, now)
        now += 1
    assert chosen <= LOSSES + (LONGEST // QUIET).bit_length()


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", FLAP, "silent"]),
                          st.integers(0, 900)), max_size=80))  # fmt: skip
def test_nobody_is_damped_for_longer_than_the_longest_wait(
    events: list[tuple[int, str, int]],
) -> None:
    damping, now = Damping(PARAMS), 0
    for node, fault, pause_s in events:
        damping.observe(node, fault, now)
        now += pause_s * S
    for node in (1, 2, 3):
        damping.observe(node, "", now)
    assert set(damping.damped(now)) <= {1, 2, 3}
    assert damping.damped(now + LONGEST) == {}


@given(st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4)),
       st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4)))  # fmt: skip
def test_damping_ranks_and_never_gates(
    alive: set[int], synced: set[int], last: set[int], sound: set[int], damped: set[int]
) -> None:
    order = (3, 1, 4, 2)
    for among in (damped, set(order)):
        places = {
            node: rank(
                node, order, alive=alive | {node}, synced=synced, last=last, sound=sound,
                damped=among,
            )
            for node in order
        }  # fmt: skip
        assert None not in places.values(), "still a candidate"
        plain = {
            node: rank(node, order, alive=alive | {node}, synced=synced, last=last, sound=sound)
            for node in order
        }
        if among == set(order):
            assert places == plain, "all alike: as if nobody were"
    assert rank(1, order, alive={1}, synced=synced, last=last, damped={1}) == 0
    there = {"alive": {1, 3}, "synced": {1, 3}}
    assert rank(1, order, **there, damped={3}) == 0
    assert rank(3, order, **there, damped={3}) == 1
    assert rank(3, order, alive={1, 3}, synced={3}, damped={3}) == 0, "its flows count for more"
    assert rank(3, order, **there, sound={3}, damped={3}) == 0, "and so does what works now"


# ---- in the lease core --------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    plain = lease_bench.params

    def damping(node_id: int = 1, voters: VoterSet = lease_bench.VOTERS) -> LeaseParams:
        return replace(plain(node_id, voters), damping=PARAMS)

    monkeypatch.setattr(lease_bench, "params", damping)
    bench = Bench()
    bench.hold()
    return bench


def say(
    bench: Bench, *, holder: int = 1, carrier: bool = True, upstream: bool = True,
    damped: tuple[int, ...] = (),
) -> None:  # fmt: skip
    group = GroupBeat(
        1, 0, 0, holder, carrier, True, "" if carrier else FLAP, carrier=carrier,
        upstream=upstream, damped=list(damped),
    )  # fmt: skip
    bench.hear(2, Beat(3, True, True, [group], [], VOTED, None))


def flap(bench: Bench, times: int = LOSSES) -> None:
    for _ in range(times):
        for carrier in (True, False, True):
            say(bench, carrier=carrier)
            bench.now += HEARTBEAT
            bench.renew()


def test_a_peer_whose_cable_comes_and_goes_is_damped_and_said_so(bench: Bench) -> None:
    flap(bench, LOSSES - 1)
    assert status(bench).damped == []
    flap(bench, 1)
    [said] = status(bench).damped
    assert (said.group, said.node_id, said.losses, said.why) == (1, 2, LOSSES, FLAP)
    assert said.left_s == pytest.approx(60, abs=0.1)
    [alarm] = [alarm for alarm in status(bench).alarms if "damped" in alarm]
    assert alarm == (
        f"group 1: node 2 is damped after 3 losses ({FLAP}): not preferred, "
        "60 s of quiet are missing"
    )
    [beat] = sent(bench.renew(), Beat)
    assert beat.groups[0].damped == [2]
    assert heirs(bench.core.view, bench.core.groups[1].params, bench.now) == [2], "the only one"


def test_damped_the_only_heir_is_given_the_group_all_the_same(bench: Bench) -> None:
    flap(bench)
    say(bench)
    down = SegmentsDown(frozenset({"lan"}))
    effects = bench.core.handle(down, now_ns=bench.now)
    effects += bench.pass_time(3 * HEARTBEAT, bench.calm)
    assert sent(effects, Release)[0].to == 2


def test_what_raft_clears_is_forgotten_once(bench: Bench) -> None:
    flap(bench)
    bench.core.handle(StandingSaid(Standing({}, [], [], {2: 1})), now_ns=bench.now)
    assert status(bench).damped == []
    flap(bench)
    bench.core.handle(StandingSaid(Standing({}, [], [], {2: 1})), now_ns=bench.now)
    assert status(bench).damped != []


@pytest.mark.parametrize(
    "standing", [Standing({}, [2], []), Standing({}, [], [2])], ids=["drained", "maintenance"]
)
def test_what_a_node_does_that_somebody_works_on_counts_nothing(
    bench: Bench, standing: Standing
) -> None:
    bench.core.handle(StandingSaid(standing), now_ns=bench.now)
    flap(bench, 9)
    assert status(bench).damped == []
    bench.core.handle(StandingSaid(Standing({}, [], [])), now_ns=bench.now)
    flap(bench)
    assert status(bench).damped != []


def test_silence_counts_when_somebody_else_is_heard(bench: Bench) -> None:
    def silence(*heard: int) -> None:
        for node in (2, 9):
            bench.beat(node)
        for _ in range(2 * T // HEARTBEAT):
            bench.now += HEARTBEAT
            for node in heard:
                bench.beat(node)
            bench.core.tick(now_ns=bench.now)

    for _ in range(LOSSES):
        silence()
    assert status(bench).damped == [], "this node itself may be the deaf one"
    for _ in range(LOSSES):
        bench.now += 2 * T  # A loop that stood still has not heard what there was to hear.
        bench.beat(9)
        bench.core.tick(now_ns=bench.now)
        bench.beat(2)
    assert status(bench).damped == []
    for _ in range(LOSSES):
        silence(9)
    [said] = status(bench).damped
    assert (said.node_id, said.why) == (2, "silent on every link and segment")


def test_the_silence_of_a_node_counts_once_its_lease_is_over(bench: Bench) -> None:
    """A policy load may hold up the lease loop; a long lease is there for just that."""
    bench = Bench()  # Like the fixture's, but node 2 holds the group.
    bench.pass_time(2100 * MS, bench.calm)
    lease_ns = 10 * T

    def silent_for(silence_ns: int) -> list[DampedStatus]:
        bench.beat(2, active=EPOCH_OF_2, holder=2)
        bench.hear(2, Propose(1, EPOCH_OF_2, bench.now, lease_ns, True))
        end_ns = bench.now + silence_ns
        while bench.now < end_ns:
            bench.now += HEARTBEAT
            bench.beat(9, holder=2)
            bench.core.tick(now_ns=bench.now)
        return status(bench).damped

    for _ in range(LOSSES):
        assert silent_for(lease_ns - 2 * HEARTBEAT) == []
    for _ in range(LOSSES):
        found = silent_for(lease_ns + 2 * T)
    assert [(said.node_id, said.losses) for said in found] == [(2, LOSSES)]


def test_a_leased_that_starts_again_and_again_is_damped(bench: Bench) -> None:
    for _ in range(LOSSES):
        bench.peers[2].session += 1
        bench.peers[2].seq = 0
        bench.hear(2, mutual=False)
        say(bench)
        bench.now += HEARTBEAT
        bench.renew()
    [said] = status(bench).damped
    assert (said.node_id, said.why) == (2, "its leased started anew")


def test_all_go_by_what_each_candidate_says(bench: Bench) -> None:
    say(bench, damped=(1,))
    assert status(bench).damped == [DampedStatus(1, 1, 0, "", None, [2])]
    assert bench.core.view.flaps.damped(1, bench.now) == {1}
    [beat] = sent(bench.renew(), Beat)
    assert beat.groups[0].damped == [], "only what it has counted itself"


def test_the_word_of_a_node_that_fell_silent_no_longer_counts(bench: Bench) -> None:
    say(bench, damped=(1,))
    bench.now += HEARD_BEATS * HEARTBEAT
    assert bench.core.view.flaps.damped(1, bench.now) == {1}
    bench.now += 1
    assert bench.core.view.flaps.damped(1, bench.now) == set()


def test_its_own_cable_damps_a_node_in_its_own_eyes(bench: Bench) -> None:
    for _ in range(LOSSES):
        for names in (frozenset({"lan"}), frozenset[str]()):
            bench.core.handle(SegmentsDown(names), now_ns=bench.now)
            bench.now += HEARTBEAT
            bench.core.tick(now_ns=bench.now)
    [said] = status(bench).damped
    assert (said.node_id, said.why) == (1, FLAP)


def test_an_upstream_that_comes_and_goes_damps_like_a_cable(bench: Bench) -> None:
    for _ in range(LOSSES):
        for answers in (True, False, True):
            say(bench, upstream=answers)
            bench.now += HEARTBEAT
            bench.renew()
    [said] = status(bench).damped
    assert (said.node_id, said.losses, said.why) == (2, LOSSES, "its upstream check fails")
    for _ in range(LOSSES):
        for unanswered in (frozenset({(1, "lan")}), frozenset[tuple[int, str]]()):
            bench.core.handle(SegmentsDown(frozenset(), unanswered), now_ns=bench.now)
            bench.now += HEARTBEAT
            bench.core.tick(now_ns=bench.now)
    own = next(said for said in status(bench).damped if said.node_id == 1)
    assert (own.losses, own.why) == (LOSSES, "the upstream check of segment lan fails")


@pytest.mark.parametrize(
    ("damped", "place"), [((), 0), ((2,), 0), ((1, 2), 0), ((1,), 1)], ids=str
)
def test_a_damped_candidate_lets_the_next_one_claim_first(
    bench: Bench, damped: tuple[int, ...], place: int
) -> None:
    group = bench.core.groups[1]
    bench.core.handle(StopAsked(), now_ns=bench.now)
    bench.core.view.stopping = False  # Released: free for whoever comes first.
    bench.beat(9)
    say(bench, holder=0, damped=damped)
    candidacy = Candidacy(group.params, bench.core.view, group.acceptor)
    begun = bench.now
    while not candidacy.due(bench.now, busy=False, retry_ns=0):
        assert candidacy.at_ns is not None
        bench.now = candidacy.at_ns
    assert bench.now - begun == place * HEARTBEAT


def test_without_damping_nothing_is_counted_and_the_default_counts() -> None:
    plain = Bench()
    plain.hold()
    flap(plain, 9)
    assert status(plain).damped == []
    config = load_cluster(LAB)
    assert LeaseParams.from_config(config, "gw1").damping == DampingParams(3, 60 * S, 3600 * S)
    off = config.model_copy(update={"damping": config.damping.model_copy(update={"losses": 0})})
    assert LeaseParams.from_config(off, "gw1").damping is None


def test_of_two_heirs_the_calm_one_comes_first() -> None:
    voters = VoterSet(id=1, members=(1, 2, 3))
    core = LeaseCore(
        replace(
            lease_bench.params(1, voters), groups=(GroupParams(1, (1, 2, 3)),), damping=PARAMS
        ),
        era=3, era_durable=True, rng=Random(1), now_ns=START,
    )  # fmt: skip
    view, group = core.view, core.groups[1].params
    for node in (2, 3):
        beat = GroupBeat(1, 0, 0, 0, True, True, "", damped=[2] if node == 3 else [])
        view.peers[node].take(Beat(3, True, True, [beat], [], VOTED, None), 1, START)
        view.peers[node].heard_ns = START
    assert heirs(view, group, START) == [3, 2]
    view.standing = Standing({}, [3], [])
    assert heirs(view, group, START) == [2, 3], "who is drained comes last of all"
