"""What a sender sends again, to whom, and how often."""

from __future__ import annotations

import pytest

from sync.ring import (
    REPAIR_DATAGRAMS_MAX,
    REPAIR_HOLD_S,
    REPAIR_MEMORY_S,
    REPAIRS_BURST,
    REPAIRS_PER_S_MAX,
    SHARED_GAP_MAX,
    Repair,
    Repairer,
    SendRing,
)

GW2, GW3 = 2, 3


def filled(size: int, count: int) -> SendRing:
    ring = SendRing(size)
    for seq in range(1, count + 1):
        ring.push(seq, b"%d" % seq)
    return ring


def repairer(size: int = 64, count: int = 40, peers: int = 2) -> Repairer:
    return Repairer(filled(size, count), peers=peers)


def test_the_ring_keeps_the_newest() -> None:
    ring = SendRing(4)
    assert (ring.low_water, ring.high_water) == (1, 0)
    ring = filled(4, 10)
    assert (ring.low_water, ring.high_water) == (7, 10)
    assert [ring.get(seq) for seq in (0, 6, 7, 10, 11)] == [None, None, b"7", b"10", None]


def test_only_what_is_in_the_ring_is_answered() -> None:
    answer = repairer(4, 10)
    assert answer.answer(GW2, [(5, 8), (10, 99)], now=1.0).seqs == [7, 8, 10]
    assert answer.counters["repairs_beyond_ring"] == 2
    assert answer.answer(GW2, [(1, 3), (11, 20), (0, 0)], now=2.0).seqs == []
    assert answer.counters["repairs_beyond_ring"] == 5


def test_one_nack_gets_a_bounded_answer_and_the_next_one_the_rest() -> None:
    answer = repairer(1024, 1000)
    size = REPAIR_DATAGRAMS_MAX
    assert answer.answer(GW2, [(1, 999)], now=1.0).seqs == list(range(1, size + 1))
    # The first ones are still on their way.
    assert answer.answer(GW2, [(4, 999)], now=1.0).seqs == list(range(size + 1, 2 * size + 1))


@pytest.mark.parametrize(("peers", "to_all"), [(1, False), (2, True), (7, True)])
def test_a_short_gap_is_repaired_for_all(peers: int, to_all: bool) -> None:
    answer = repairer(peers=peers)
    assert answer.answer(GW2, [(3, 4)], now=1.0) == Repair([3, 4], to_all)


def test_a_long_gap_is_repaired_for_the_one_who_has_it() -> None:
    answer = repairer(1024, 1000)
    assert answer.answer(GW2, [(1, SHARED_GAP_MAX)], now=1.0).to_all
    assert not answer.answer(GW2, [(101, 101 + SHARED_GAP_MAX)], now=1.0).to_all


def test_what_went_to_all_a_moment_ago_is_not_sent_again() -> None:
    answer = repairer()
    answer.answer(GW2, [(3, 4)], now=1.0)
    assert answer.answer(GW3, [(3, 5)], now=1.0 + REPAIR_HOLD_S * 0.9).seqs == [5]
    assert answer.counters["repairs_suppressed"] == 2
    assert answer.answer(GW3, [(3, 4)], now=1.0 + REPAIR_HOLD_S * 1.1).seqs == [3, 4]


def test_what_went_to_another_alone_is_sent() -> None:
    answer = repairer(1024, 1000)
    gap = [(1, 100)]
    assert len(answer.answer(GW2, gap, now=1.0).seqs) == 100
    assert answer.answer(GW2, gap, now=1.0).seqs == []
    assert len(answer.answer(GW3, gap, now=1.0).seqs) == 100


def test_all_repairs_together_keep_to_a_rate() -> None:
    answer = repairer(1 << 17, 1 << 17, peers=7)
    sent = 0
    now = 10.0
    while now < 10.5:
        for peer in range(2, 9):
            # What comes after the last answer: all of it has arrived.
            first = sent + 1
            sent += len(answer.answer(peer, [(first, first + 4000)], now=now).seqs)
        now += 0.002
    assert sent <= REPAIRS_BURST + 0.5 * REPAIRS_PER_S_MAX
    assert sent > 0.45 * REPAIRS_PER_S_MAX
    assert answer.counters["repairs_rate_limited"] > 0


def test_the_memory_of_repairs_is_bounded_by_the_rate() -> None:
    answer = repairer(4096, 4000)
    for step in range(2000):
        answer.answer(GW2, [(step, step + 99)], now=1.0 + step / 100)
    assert len(answer._sent) <= 99 + REPAIR_MEMORY_S * 100


def over_a_full_link(answer: Repairer, count: int) -> tuple[int, float]:
    """All of `count` datagrams are repaired over a link that carries 200 a second and drops the
    rest, a receiver asking every 2 ms: how many repairs were sent, and how long it took."""
    missing, room, sent, now = set(range(1, count + 1)), 4.0, 0, 1.0
    while missing:
        assert now < 60, len(missing)
        room = min(room + 0.4, 4.0)
        for seq in answer.answer(GW2, [(seq, seq) for seq in sorted(missing)], now=now).seqs:
            sent += 1
            if room >= 1:
                room -= 1
                missing.discard(seq)
        now += 0.002
    return sent, now - 1


def test_a_full_link_is_not_filled_with_repairs() -> None:
    sent, took = over_a_full_link(repairer(1024, 1000, peers=1), 600)
    assert took < 6, "twice what the link needs for them"
    assert sent < 10 * 600


def test_after_a_full_link_the_rate_is_soon_the_greatest_again() -> None:
    answer = repairer(1 << 15, 1 << 15, peers=1)
    over_a_full_link(answer, 600)
    sent = 0
    for step in range(500):
        first = 1000 + sent
        sent += len(answer.answer(GW2, [(first, first + 4000)], now=70 + step / 1000).seqs)
    assert sent > 0.5 * 0.5 * REPAIRS_PER_S_MAX
