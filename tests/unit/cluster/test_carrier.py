"""Carrier loss: the parser of rtnetlink, and what the core does about a dead segment."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.carrier import LinkSeen, parse_links
from cluster.handover import POSITION_BEATS
from cluster.heartbeat import Beat, GroupBeat, Prepare, Release
from cluster.lease_types import (
    AskPosition,
    Effect,
    MoveAsked,
    ReplyMove,
    SegmentsDown,
    SetGate,
    SyncdSaid,
)
from hafw.human import make_epoch
from hafw.messages import MoveRequest, Position, PositionReply
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, VOTED, Bench, T, done, sent

UP, NO_CARRIER, DOWN = 0x11043, 0x1003, 0x1002
WHY = "segment lan: no carrier on lan0"
HERE = Position(sender_id=1, session=77, seq=500)


def link(index: int, name: str, flags: int, *, kind: int = 16, family: int = 0) -> bytes:
    """One rtnetlink message, as the kernel would write it."""
    value = name.encode() + b"\0"
    attributes = struct.pack("=HHI", 8, 13, 1000)  # IFLA_TXQLEN
    attributes += struct.pack("=HH", 4 + len(value), 3) + value + bytes(-len(value) % 4)
    body = struct.pack("=BxHiII", family, 1, index, flags, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_links_are_read_with_their_carrier() -> None:
    buffer = link(2, "lan0", UP) + link(3, "wan0", NO_CARRIER) + link(4, "x", DOWN)
    assert parse_links(buffer) == (
        [LinkSeen(2, "lan0", True), LinkSeen(3, "wan0", False), LinkSeen(4, "x", False)],
        False,
    )
    assert parse_links(link(2, "lan0", UP, kind=17)) == ([LinkSeen(2, "lan0", True, True)], False)
    assert parse_links(link(2, "lan0", UP, kind=17, family=7)) == ([], False), "a bridge port"
    assert parse_links(struct.pack("=IHHIII", 20, 3, 0, 1, 0, 0)) == ([], True)


@given(st.binary(max_size=200) | st.integers(0, 60).map(lambda n: link(2, "lan0", UP)[:n]))
def test_what_is_cut_off_does_no_harm(buffer: bytes) -> None:
    parse_links(buffer)


def lose(bench: Bench, *names: str) -> list[Effect]:
    return bench.core.handle(SegmentsDown(frozenset(names)), now_ns=bench.now)


def beats(effects: list[Effect]) -> list[GroupBeat]:
    return [beat.groups[0] for beat in sent(effects, Beat)]


def holder() -> tuple[Bench, int]:
    bench = Bench()
    bench.hold()
    bench.renew()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    return bench, held.epoch


def test_holder_that_loses_a_segment_hands_over_at_once_with_its_position() -> None:
    bench, epoch = holder()
    stored = bench.core.groups[1].gate_ns
    effects = lose(bench, "lan")
    assert done(effects, SetGate)[0] == SetGate(1, 0, stored)
    assert done(effects, AskPosition) == [AskPosition(1, epoch)]
    reply = PositionReply(group=1, epoch=epoch, position=HERE)
    effects = bench.core.handle(SyncdSaid(reply), now_ns=bench.now)
    assert sent(effects, Release) == [Release(1, epoch, 2, HERE)]
    assert not bench.core.groups[1].active
    lose(bench)
    newer = make_epoch(3, 9, 2)
    effects = bench.beat(2, active=newer, holder=2) + bench.pass_time(5 * T, bench.calm)
    assert sent(bench.beat(2, active=newer, holder=2), Release) == [], "no fail-back"


def test_holder_whose_syncd_does_not_answer_hands_over_without_a_position() -> None:
    bench, epoch = holder()
    effects = lose(bench, "lan")
    assert sent(effects, Release) == []
    effects = bench.pass_time(POSITION_BEATS * HEARTBEAT, bench.calm)
    assert Release(1, epoch, 2, None) in sent(effects, Release)
    bench, epoch = holder()
    bench.core.view.beacon = None
    assert sent(lose(bench, "lan"), Release) == [Release(1, epoch, 2, None)]


def test_holder_stays_when_no_fit_peer_is_there_and_goes_when_one_comes() -> None:
    bench, epoch = holder()
    bench.beat(2, synced=False, reason=WHY)
    assert done(lose(bench, "lan"), SetGate) == []
    for _ in range(5):
        bench.beacon()
        bench.beat(2, synced=False, reason=WHY)
        bench.beat(9)
        passed = bench.pass_time(HEARTBEAT)
        bench.answer(passed)
    assert bench.core.groups[1].active
    assert done(bench.beat(2), AskPosition) == [AskPosition(1, epoch)]


def test_segment_of_no_group_moves_nothing() -> None:
    bench, _ = holder()
    effects = lose(bench, "dmz")
    assert (done(effects, SetGate), done(effects, AskPosition)) == ([], [])


def test_heartbeats_name_the_dead_segment() -> None:
    bench = Bench(2)
    bench.beacon()
    effects = lose(bench, "lan") + bench.pass_time(HEARTBEAT)
    assert [(beat.synced, beat.reason) for beat in beats(effects)][-1] == (False, WHY)
    effects = lose(bench) + bench.beacon() + bench.pass_time(HEARTBEAT)
    assert [(beat.synced, beat.reason) for beat in beats(effects)][-1] == (True, "")


def test_planned_move_to_a_node_with_a_dead_segment_is_refused_with_the_reason() -> None:
    bench, _ = holder()
    bench.beat(2, synced=False, reason=WHY)
    request = MoveRequest(group=1, target_id=2, wait_s=0)
    effects = bench.core.handle(MoveAsked("cli", request), now_ns=bench.now)
    [reply] = done(effects, ReplyMove)
    assert WHY in reply.reply.reason


@pytest.mark.parametrize(("synced", "claims"), [(True, False), (False, True)])
def test_candidate_with_a_dead_segment_claims_last(synced: bool, claims: bool) -> None:
    bench = Bench()
    lose(bench, "lan")

    def each() -> list[Effect]:
        effects = bench.beacon() + bench.beat(2, synced=synced)
        bench.synced = True
        return effects + bench.hear(
            9,
            Beat(
                3,
                bench.now > 0,
                False,
                [GroupBeat(1, 0, 0, 0, False, synced, "")],
                [],
                VOTED,
                None,
            ),
        )

    bench.pass_time(2100 * MS, each)
    assert bool(sent(bench.pass_time(8 * T, each), Prepare)) is claims
