"""What is at risk, and how long it took: by what the peers say."""

from __future__ import annotations

import pytest

from sync.ledger import DELAY_WINDOW_S, Ledger

GW2, GW3 = 2, 3


def ledger(size: int = 8, before: int = 100) -> Ledger:
    """Four datagrams: 1 new flow, 2 more, none, 3 more."""
    book = Ledger(size, before)
    for seq, published in enumerate((101, 103, 103, 106), 1):
        book.sent(seq, published, now=seq / 10)
    return book


def test_a_flow_is_at_risk_until_the_peer_has_it() -> None:
    book = ledger()
    assert book.at_risk(GW2) == 6, "it never spoke of this session"
    risks = []
    for seq in (0, 1, 2, 3, 4):
        book.on_ack(GW2, seq, 0.0, now=1.0)
        risks.append(book.at_risk(GW2))
    assert risks == [6, 5, 3, 3, 0]
    assert book.at_risk(GW3) == 6, "each peer for itself"


def test_an_older_or_impossible_word_changes_nothing() -> None:
    book = ledger()
    book.on_ack(GW2, 2, 0.0, now=1.0)
    book.on_ack(GW2, 1, 0.0, now=1.0)
    book.on_ack(GW2, 99, 0.0, now=1.0)
    assert book.acked(GW2) == 2
    assert book.at_risk(GW2) == 3


def test_what_left_the_ring_is_a_lower_bound() -> None:
    book = ledger(size=2)
    assert book.at_risk(GW2) == 3, "datagram 4 is all that is known to be missing"
    book.on_ack(GW2, 1, 0.0, now=1.0)
    assert book.at_risk(GW2) == 3
    book.on_ack(GW2, 4, 0.0, now=1.0)
    assert book.at_risk(GW2) == 0
    book.sent(5, 107, now=1.0)
    assert book.at_risk(GW2) == 1


def test_the_wait_for_the_beacon_is_no_delay() -> None:
    book = ledger()
    book.on_ack(GW2, 4, 0.019, now=0.42)
    p50, p99 = book.delays[GW2].percentiles(0.42)
    assert p50 == p99 == pytest.approx(1.0)
    assert book.delays[GW2].percentiles(0.42 + DELAY_WINDOW_S + 0.1) == (None, None)


def test_percentiles_are_those_of_the_samples() -> None:
    book = Ledger(256, 0)
    for seq in range(1, 101):
        book.sent(seq, 0, now=0.0)
        book.on_ack(GW2, seq, 0.0, now=seq / 1000)
    p50, p99 = book.delays[GW2].percentiles(1.0)
    assert p50 == pytest.approx(51)
    assert p99 == pytest.approx(100)
