"""The stream core: transcripts of what comes in, when, and what is done about it."""

from __future__ import annotations

from itertools import count
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sync.ring import Repairer, SendRing
from sync.stream import (
    CHALLENGE_INTERVAL_S,
    CHALLENGE_VALID_S,
    NACK_ATTEMPTS_MAX,
    NACK_BACKOFF_S_MAX,
    NACK_RANGES_MAX,
    REORDER_DATAGRAMS_MAX,
    Deliver,
    SendChallenge,
    SendNack,
    SessionAccepted,
    StreamBroken,
    StreamEffect,
    StreamReceiver,
)

PEER, LIVE, OLD = 1, 0xAAAA, 0xBBBB


def receiver() -> StreamReceiver:
    numbers = count(1)
    return StreamReceiver(draw_nonce=lambda: next(numbers).to_bytes(16, "big"))


def accepted(position: int = 0) -> StreamReceiver:
    """A receiver that has accepted LIVE at `position`."""
    stream = receiver()
    (asked,) = stream.on_beacon(PEER, LIVE, position, 1, now=0.0)
    assert isinstance(asked, SendChallenge)
    assert stream.on_challenge_reply(PEER, LIVE, asked.nonce, position, now=0.0) == [
        SessionAccepted(PEER, LIVE, position)
    ]
    return stream


def seqs(effects: list[StreamEffect]) -> list[int]:
    return [effect.seq for effect in effects if isinstance(effect, Deliver)]


def hear(stream: StreamReceiver, seq: int, now: float = 0.0) -> list[StreamEffect]:
    return stream.on_datagram(PEER, LIVE, seq, b"%d" % seq, now=now)


class TestAcceptance:
    def test_nothing_is_delivered_before_the_challenge_is_answered(self) -> None:
        stream = receiver()
        first = hear(stream, 1)
        assert [type(effect) for effect in first] == [SendChallenge]
        assert hear(stream, 2) == [], "one challenge at a time"
        assert stream.counters["deltas_unaccepted_session"] == 2
        assert isinstance(first[0], SendChallenge)
        assert stream.on_challenge_reply(PEER, LIVE, first[0].nonce, 2, now=0.001) == [
            SessionAccepted(PEER, LIVE, 2)
        ]
        assert hear(stream, 2) == [], "before the position: a snapshot's business"
        assert seqs(hear(stream, 3)) == [3]

    def test_a_challenge_is_repeated_with_a_new_nonce(self) -> None:
        stream = receiver()
        (first,) = hear(stream, 1, now=0.0)
        assert hear(stream, 1, now=CHALLENGE_INTERVAL_S * 0.9) == []
        (second,) = hear(stream, 1, now=CHALLENGE_INTERVAL_S)
        assert isinstance(first, SendChallenge)
        assert isinstance(second, SendChallenge)
        assert first.nonce != second.nonce
        # An answer to the earlier one, on its way when the second went out, still counts.
        assert stream.on_challenge_reply(PEER, LIVE, first.nonce, 9, now=0.1)

    def test_an_answer_that_was_held_back_does_not_count(self) -> None:
        stream = receiver()
        (asked,) = hear(stream, 1, now=0.0)
        assert isinstance(asked, SendChallenge)
        late = CHALLENGE_VALID_S + 0.01
        assert stream.on_challenge_reply(PEER, LIVE, asked.nonce, 1, now=late) == []
        assert stream.accepted_session(PEER) is None

    def test_a_wrong_or_a_used_nonce_does_not_count(self) -> None:
        stream = receiver()
        (asked,) = hear(stream, 1)
        assert isinstance(asked, SendChallenge)
        assert stream.on_challenge_reply(PEER, OLD, bytes(16), 1, now=0.0) == []
        assert stream.on_challenge_reply(PEER, LIVE, asked.nonce, 1, now=0.0)
        assert stream.on_challenge_reply(PEER, OLD, asked.nonce, 1, now=0.0) == []
        assert stream.accepted_session(PEER) == LIVE
        assert stream.counters["challenge_replies_refused"] == 1, "a copy is no refusal"

    def test_a_replayed_session_never_replaces_the_live_one(self) -> None:
        stream = accepted()
        (asked,) = stream.on_datagram(PEER, OLD, 5, b"old", now=1.0)
        assert isinstance(asked, SendChallenge)
        # The sender answers with the session it lives in.
        assert stream.on_challenge_reply(PEER, LIVE, asked.nonce, 0, now=1.0) == []
        assert seqs(hear(stream, 1, now=1.0)) == [1]

    def test_a_new_session_retires_the_old_one_for_ever(self) -> None:
        stream = accepted()
        (asked,) = stream.on_beacon(PEER, OLD, 7, 1, now=1.0)
        assert isinstance(asked, SendChallenge)
        stream.on_challenge_reply(PEER, OLD, asked.nonce, 7, now=1.0)
        for now in (2.0, 3.0, 4.0):
            assert hear(stream, 1, now=now) == [], "no challenge either"
        assert stream.counters["datagrams_retired_session"] == 3
        assert stream.on_datagram(PEER, OLD, 8, b"", now=4.0)


class TestRepair:
    def test_a_gap_is_asked_for_after_a_moment_with_growing_patience(self) -> None:
        stream = accepted()
        assert seqs(hear(stream, 1, now=0.0)) == [1]
        assert hear(stream, 4, now=0.010) == []
        assert stream.tick(now=0.0105) == [], "it may only be late"
        assert stream.deadline() == 0.011
        assert stream.tick(now=0.011) == [SendNack(PEER, LIVE, ((2, 3),), 0)]
        waits = []
        for attempt in range(1, 9):
            due = stream.deadline()
            assert due is not None
            waits.append(round(due * 1e3))
            (nack,) = stream.tick(now=due)
            assert isinstance(nack, SendNack)
            assert nack.attempt == attempt
        steps = [b - a for a, b in zip([11, *waits], waits, strict=False)]
        assert steps == [2, 4, 8, 16, 32, 64, 64, 64]
        assert max(steps) == NACK_BACKOFF_S_MAX * 1e3
        assert seqs(hear(stream, 2, now=1.0)) == [2]
        assert seqs(hear(stream, 3, now=1.0)) == [3, 4]
        assert stream.deadline() is None

    def test_a_lost_tail_is_found_by_the_beacon(self) -> None:
        stream = accepted()
        hear(stream, 1)
        assert stream.on_beacon(PEER, LIVE, 3, 1, now=0.02) == []
        assert stream.tick(now=0.021) == [SendNack(PEER, LIVE, ((2, 3),), 0)]

    def test_copies_and_late_ones_are_dropped(self) -> None:
        stream = accepted()
        for seq in (1, 1, 3, 3, 2, 2, 1, 3):
            hear(stream, seq)
        assert stream.counters["datagrams_duplicate"] == 5

    def test_what_left_the_senders_ring_is_given_up_at_once(self) -> None:
        stream = accepted()
        hear(stream, 1)
        hear(stream, 9)
        effects = stream.on_beacon(PEER, LIVE, 12, 6, now=0.02)
        assert effects[0] == StreamBroken(PEER, LIVE, 2, 5, "beyond the sender's ring")
        assert seqs(effects) == []
        assert seqs(hear(stream, 6, now=0.03)) == [6], "the rest is still repaired"

    def test_no_answer_breaks_the_stream_and_it_goes_on(self) -> None:
        stream = accepted()
        hear(stream, 3)
        effects: list[StreamEffect] = []
        for _ in range(NACK_ATTEMPTS_MAX + 1):
            due = stream.deadline()
            assert due is not None
            effects = stream.tick(now=due)
        assert effects == [
            StreamBroken(PEER, LIVE, 1, 2, "no answer to NACKs"),
            Deliver(PEER, LIVE, 3, b"3"),
        ]
        assert stream.deadline() is None
        assert hear(stream, 1) == [], "what was given up does not come back"

    def test_the_reorder_buffer_has_a_bound(self) -> None:
        stream = accepted()
        effects: list[StreamEffect] = []
        for seq in range(2, REORDER_DATAGRAMS_MAX + 3):
            effects = hear(stream, seq)
        assert effects[0] == StreamBroken(PEER, LIVE, 1, 1, "reorder buffer full")
        assert len(seqs(effects)) == REORDER_DATAGRAMS_MAX + 1

    def test_a_nack_names_a_bounded_number_of_ranges(self) -> None:
        stream = accepted()
        for seq in range(2, 400, 2):
            hear(stream, seq)
        (nack,) = stream.tick(now=1.0)
        assert isinstance(nack, SendNack)
        assert len(nack.ranges) == NACK_RANGES_MAX


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 60), st.floats(0, 0.6), st.floats(0, 0.4), st.sampled_from((4, 16, 256)),
    st.integers(0, 2**32),
)  # fmt: skip
def test_everything_arrives_once_in_order_or_is_declared_broken(
    total: int, loss: float, doubled: float, ring_size: int, seed: int
) -> None:
    """A lossy, shuffling network with an honest sender behind a ring."""
    rng = Random(seed)
    stream, ring = accepted(), SendRing(ring_size)
    repairer = Repairer(ring, peers=1)
    now, sent = 0.0, 0
    in_flight: list[tuple[int, bytes]] = []
    got: list[int] = []
    broken: list[range] = []

    def send(seq: int, datagram: bytes) -> None:
        if rng.random() >= loss:
            in_flight.extend([(seq, datagram)] * (2 if rng.random() < doubled else 1))

    def carry_out(effects: list[StreamEffect]) -> None:
        for effect in effects:
            match effect:
                case Deliver(_, _, seq, body):
                    assert body == b"%d" % seq
                    got.append(seq)
                case StreamBroken(_, _, first, last):
                    broken.append(range(first, last + 1))
                case SendNack(_, _, ranges):
                    for wanted in repairer.answer(2, ranges, now=now).seqs:
                        send(wanted, b"%d" % wanted)
                case _:
                    raise AssertionError(effect)

    for step in range(3000):
        now += 0.005
        if sent < total and step % 2 == 0:
            sent += 1
            ring.push(sent, b"%d" % sent)
            send(sent, b"%d" % sent)
        if rng.random() >= loss:
            carry_out(stream.on_beacon(PEER, LIVE, ring.high_water, ring.low_water, now=now))
        rng.shuffle(in_flight)
        while in_flight and rng.random() < 0.8:
            seq, datagram = in_flight.pop()
            carry_out(stream.on_datagram(PEER, LIVE, seq, datagram, now=now))
        carry_out(stream.tick(now=now))
        view = stream.view(PEER)
        assert view is not None
        if sent == total and view.applied_seq == total:
            break
    assert got == sorted(set(got)), "once, in order"
    lost = {seq for one in broken for seq in one}
    assert set(got) | lost == set(range(1, total + 1)), "nothing vanishes silently"
    assert not set(got) & lost
