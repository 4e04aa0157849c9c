"""Long leases around heavy work: asked of the voters, bounded, and over when the work is."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

import tests.unit.cluster.lease_bench as lease_bench
from cluster.heartbeat import Beat, Propose, Release
from cluster.lease_types import HeavyUntil, MoveAsked, SetGate
from cluster.local_events import local_event
from hafw.messages import HEAVY_S_MAX, HeavyWork, LeasedStatus, MoveRequest
from hafw.node import heavy
from hafw.node.client import Unavailable
from hafw.node.heavy import REPEAT_S, heavy_work, holds_long
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, Bench, T, done, sent
from tests.unit.cluster.test_leased_status import status

LONG = 1000 * MS
USABLE_LONG = 990 * MS
S = 1000 * MS


def busy(bench: Bench, for_ns: int = S) -> None:
    bench.core.handle(HeavyUntil(bench.now + for_ns), now_ns=bench.now)


def renewed(bench: Bench) -> tuple[list[int], int]:
    """The leases asked for in a heartbeat, and how long the gate is open after it."""
    effects = bench.renew()
    asked = [ask.lease_ns for ask in sent(effects, Propose)]
    return asked, bench.core.groups[1].gate_ns - bench.now


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.hold()
    bench.now += HEARTBEAT
    bench.renew()
    return bench


def test_a_holder_renews_by_the_longest_lease_and_its_own_voter_counts_it(bench: Bench) -> None:
    busy(bench)
    bench.now += HEARTBEAT
    renewed(bench)
    bench.now += HEARTBEAT
    asked, left = renewed(bench)
    assert set(asked) == {LONG}
    assert USABLE_LONG - 2 * HEARTBEAT <= left <= USABLE_LONG
    voter = bench.core.groups[1].acceptor
    assert voter.until_ns - bench.now > bench.core.groups[1].gate_ns - bench.now
    assert status(bench).lease_ms == 1000
    assert 0.9 < status(bench).heavy_left_s < 1


def test_the_long_lease_is_asked_for_at_once_not_with_the_next_heartbeat(bench: Bench) -> None:
    while not sent(bench.pass_time(MS), Beat):
        pass
    bench.pass_time(HEARTBEAT // 2)
    begun = bench.core.handle(HeavyUntil(bench.now + S), now_ns=bench.now)
    assert {ask.lease_ns for ask in sent(begun, Propose)} == {LONG}
    bench.pass_time(HEARTBEAT // 2)
    over = bench.core.handle(HeavyUntil(0), now_ns=bench.now)
    assert {ask.lease_ns for ask in sent(over, Propose)} == {T}


def test_what_was_granted_runs_out_once_the_work_is_done(bench: Bench) -> None:
    busy(bench)
    for _ in range(3):
        bench.now += HEARTBEAT
        renewed(bench)
    bench.core.handle(HeavyUntil(0), now_ns=bench.now)
    begun, lefts = bench.now, []
    while bench.now < begun + 2 * S:
        bench.now += HEARTBEAT
        asked, left = renewed(bench)
        assert set(asked) == {T}
        lefts.append(left)
    assert min(lefts) > 0, "held all the time"
    assert lefts[0] > S // 2
    assert max(lefts[-20:]) <= T
    assert status(bench).lease_ms == T // MS
    assert status(bench).heavy_left_s == 0


def test_it_ends_by_itself_and_a_claim_is_never_long(bench: Bench) -> None:
    busy(bench, 3 * HEARTBEAT)
    bench.now += 4 * HEARTBEAT
    bench.core.tick(now_ns=bench.now)
    assert set(renewed(bench)[0]) == {T}
    fresh = Bench()
    fresh.core.handle(HeavyUntil(fresh.now + 60 * S), now_ns=fresh.now)
    claims: list[int] = []
    for _ in range(200):
        effects = fresh.pass_time(HEARTBEAT, fresh.calm)
        claims += [ask.lease_ns for ask in sent(effects, Propose) if not ask.opened]
        effects = fresh.answer(effects)
        claims += [ask.lease_ns for ask in sent(effects, Propose) if not ask.opened]
        if fresh.core.groups[1].active:
            break
    assert fresh.core.groups[1].active
    assert set(claims) == {T}


def test_a_move_leaves_accept_open_for_a_usual_lease_only(bench: Bench) -> None:
    busy(bench)
    for _ in range(3):
        bench.now += HEARTBEAT
        renewed(bench)
    ask = MoveAsked("me", MoveRequest(group=1, target_id=2, wait_s=0.0))
    shut = done(bench.core.handle(ask, now_ns=bench.now), SetGate)[0]
    assert shut.announce_ns == 0
    assert shut.accept_ns == bench.now + lease_bench.USABLE


@pytest.mark.parametrize("over", [False, True])
def test_a_deaf_holder_gives_up_for_as_long_as_voters_may_count_a_long_lease(
    bench: Bench, over: bool
) -> None:
    """They may have granted a long ask, and count it though the work is over soon."""
    busy(bench, 20 * S)
    asked = sent(bench.pass_time(HEARTBEAT), Propose)
    assert {ask.lease_ns for ask in asked} == {LONG}
    if over:
        bench.core.handle(HeavyUntil(0), now_ns=bench.now)
    while bench.core.groups[1].proposer.held is not None:
        bench.pass_time(MS)
    assert sent(bench.pass_time(2 * HEARTBEAT), Release), "at once"
    bench.pass_time(LONG - 3 * HEARTBEAT)
    assert sent(bench.pass_time(HEARTBEAT), Release), "until the last voter has let it go"
    bench.pass_time(3 * HEARTBEAT)
    assert sent(bench.pass_time(2 * S), Release) == []


def test_the_word_on_the_socket_is_bounded() -> None:
    assert local_event(HeavyWork(2.5), "", 7) == HeavyUntil(7 + 2500 * MS)


class Leased:
    """Grants the long lease after a few looks."""

    def __init__(self, bench: Bench, *, looks: int = 3, there: bool = True) -> None:
        self.told: list[float] = []
        self.looks, self.there = looks, there
        group = structs.replace(status(bench).groups[0], active=True, lease_left_ms=80.0)
        self.status = structs.replace(status(bench), groups=[group], lease_ms=1000.0)

    def tell_heavy_work(self, for_s: float) -> bool:
        self.told.append(for_s)
        return self.there

    async def ask_leased_async(self, timeout_s: float = 1.0) -> LeasedStatus | Unavailable:
        assert self.there
        self.looks -= 1
        if self.looks > 0:
            return self.status
        group = structs.replace(self.status.groups[0], lease_left_ms=950.0)
        return structs.replace(self.status, groups=[group])


def test_the_work_begins_with_the_lease_and_ends_it(bench: Bench) -> None:
    async def work(leased: Leased) -> None:
        async with heavy_work(leased):
            assert leased.told == [HEAVY_S_MAX]
            assert leased.looks == 0
            raise ValueError("the load failed")

    leased = Leased(bench)
    with pytest.raises(ValueError, match="the load failed"):
        asyncio.run(work(leased))
    assert leased.told == [HEAVY_S_MAX, 0.0]
    assert 0 < REPEAT_S < HEAVY_S_MAX / 2


def test_the_word_is_repeated_while_the_work_lasts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(leased: Leased) -> None:
        async with heavy_work(leased):
            for _ in range(9):
                await asyncio.sleep(0)
        told = list(leased.told)
        await asyncio.sleep(0)
        assert leased.told == told, "and not a moment longer"

    monkeypatch.setattr(heavy, "REPEAT_S", 0.0)
    leased = Leased(bench)
    asyncio.run(work(leased))
    assert leased.told[:4] == [HEAVY_S_MAX] * 4
    assert leased.told[-1] == 0.0


def test_the_work_begins_without_a_lease_that_voters_do_not_grant(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(leased: Leased) -> bool:
        async with heavy_work(leased):
            return True

    monkeypatch.setattr(heavy, "AGREED_S_MAX", 0.0)
    leased = Leased(bench, looks=10_000)
    assert asyncio.run(work(leased))
    assert 0 < leased.looks < 10_000, "it has looked"
    assert leased.told == [HEAVY_S_MAX, 0.0]


def test_without_a_leased_nothing_is_waited_for(bench: Bench) -> None:
    async def work(leased: Leased) -> None:
        async with heavy_work(leased):
            pass

    asyncio.run(work(Leased(bench, there=False)))


def test_who_holds_nothing_need_not_wait(bench: Bench) -> None:
    held = Leased(bench).status
    assert not holds_long(held)
    assert holds_long(
        structs.replace(held, groups=[structs.replace(held.groups[0], active=False)])
    )
    assert holds_long(structs.replace(held, lease_ms=100.0)), "two nodes never ask for more"


def test_work_that_is_cancelled_while_it_waits_asks_for_nothing_longer(bench: Bench) -> None:
    async def cancelled(leased: Leased) -> None:
        async def work() -> None:
            async with heavy_work(leased):
                pytest.fail("the lease is not there yet")

        task = asyncio.create_task(work())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    leased = Leased(bench, looks=10_000)
    asyncio.run(cancelled(leased))
    assert leased.told == [HEAVY_S_MAX, 0.0]
