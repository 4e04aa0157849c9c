"""Sessions: two tables that talk, and an attacker who recorded everything."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from cluster.heartbeat import Envelope
from cluster.session import (
    ECHO_MAX,
    SESSIONS_MAX,
    WINDOW,
    ReplayWindow,
    SessionTable,
    Verdict,
)


def drawing(first: int) -> Callable[[], int]:
    numbers = count(first)
    return lambda: next(numbers)


class End:
    """One process of a node."""

    def __init__(self, node_id: int, first_session: int) -> None:
        self.node_id = node_id
        self.table = SessionTable(node_id, drawing(first_session))
        self.now = 0

    def say(self) -> Envelope:
        return Envelope(self.table.own, self.table.next_seq(), 0, 1, "", self.table.heard(), [])

    def hear(self, other: End, envelope: Envelope) -> Verdict:
        self.now += 1
        return self.table.receive(other.node_id, envelope, now_ns=self.now)[0]


def introduce(a: End, b: End) -> None:
    for _ in range(2):
        b.hear(a, a.say())
        a.hear(b, b.say())
    assert b.hear(a, a.say()) is Verdict.ACT
    assert a.hear(b, b.say()) is Verdict.ACT


def test_handshake_proves_each_side_in_turn() -> None:
    a, b = End(1, 100), End(2, 200)
    assert b.hear(a, a.say()) is Verdict.HELLO  # B knows A's session,
    assert a.hear(b, b.say()) is Verdict.HELLO  # A hears itself echoed,
    assert b.hear(a, a.say()) is Verdict.ACT  # and B hears that it did: A is proven to B.
    assert a.table.proven(2) is None
    assert a.hear(b, b.say()) is Verdict.ACT
    assert (a.table.proven(2), b.table.proven(1)) == (200, 100)


def test_peer_is_told_soon_when_it_waits_for_us() -> None:
    a, b = End(1, 100), End(2, 200)
    soon = [b.table.receive(1, a.say(), now_ns=1)[1]]
    soon.append(a.table.receive(2, b.say(), now_ns=1)[1])
    soon.append(b.table.receive(1, a.say(), now_ns=2)[1])
    soon.append(a.table.receive(2, b.say(), now_ns=2)[1])
    assert soon == [True] * 4
    assert not b.table.receive(1, a.say(), now_ns=3)[1]


def test_copies_and_old_ones_are_refused() -> None:
    a, b = End(1, 100), End(2, 200)
    introduce(a, b)
    envelope = a.say()
    assert b.hear(a, envelope) is Verdict.ACT
    assert b.hear(a, envelope) is Verdict.REPLAYED


def test_everything_recorded_before_our_start_is_a_hello_at_most() -> None:
    a, old_b = End(1, 100), End(2, 200)
    recorded = [a.say()]
    old_b.hear(a, recorded[-1])
    for _ in range(5):
        a.hear(old_b, old_b.say())
        recorded.append(a.say())
        old_b.hear(a, recorded[-1])
    new_b = End(2, 201)
    assert {new_b.hear(a, envelope) for envelope in recorded} == {Verdict.HELLO}


def test_session_of_a_dead_process_is_retired_once_its_successor_is_proven() -> None:
    old_a, b = End(1, 100), End(2, 200)
    introduce(old_a, b)
    delayed = [old_a.say() for _ in range(3)]
    assert b.hear(old_a, delayed[0]) is Verdict.ACT  # Nothing tells yet that it is dead.
    introduce(End(1, 101), b)
    assert b.hear(old_a, delayed[1]) is Verdict.RETIRED
    assert b.hear(old_a, delayed[2]) is Verdict.RETIRED
    assert b.table.proven(1) == 101


def test_session_that_never_reached_us_cannot_unseat_a_proven_one() -> None:
    """It heard us and echoes us, but all it said was held back until its successor was proven."""
    b = End(2, 200)
    middle_a = End(1, 101)
    held_back = [middle_a.say()]
    for _ in range(4):
        middle_a.hear(b, b.say())
        held_back.append(middle_a.say())
    new_a = End(1, 102)
    introduce(new_a, b)
    assert {b.hear(middle_a, envelope) for envelope in held_back} == {Verdict.HELLO}
    assert b.table.proven(1) == 102
    assert b.hear(new_a, new_a.say()) is Verdict.ACT


def test_predecessor_that_is_proven_late_does_not_unseat_its_successor() -> None:
    b, old, new = End(2, 200), End(1, 100), End(1, 101)
    b.hear(old, old.say())
    old.hear(b, b.say())
    held_back = old.say()  # Mutual, and the process dies.
    assert b.hear(new, new.say()) is Verdict.HELLO
    assert b.hear(old, held_back) is Verdict.ACT
    new.hear(b, b.say())
    assert b.hear(new, new.say()) is Verdict.ACT
    assert b.hear(old, old.say()) is Verdict.RETIRED


def test_replayed_hellos_do_not_keep_a_live_starter_out() -> None:
    b, a = End(2, 200), End(1, 300)
    for session in range(50):
        b.hear(End(1, session), End(1, session).say())
        b.hear(a, a.say())
        a.hear(b, b.say())
    assert b.table.proven(1) == 300
    assert sum(entry.node == 1 for entry in b.table.heard()) <= ECHO_MAX


def test_at_the_bound_a_new_own_session_makes_all_old_echoes_worthless() -> None:
    b, a = End(2, 1_000_000), End(1, 500_000)
    introduce(a, b)
    acting = a.say()
    first_own = b.table.own
    for session in range(SESSIONS_MAX - 1):
        b.hear(End(3, session), End(3, session).say())
    assert b.table.own == first_own
    b.hear(End(3, SESSIONS_MAX), End(3, SESSIONS_MAX).say())
    assert b.table.own == first_own + 1
    assert b.table.redrawn == 1
    assert b.table.proven(1) is None
    assert b.hear(a, acting) is Verdict.HELLO  # It echoes the id that is no more.
    introduce(a, b)
    assert b.table.proven(1) == 500_000


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_window_agrees_with_a_set(seqs: list[int]) -> None:
    window, seen, top = ReplayWindow(), set[int](), -1
    for seq in seqs:
        expected = seq not in seen and seq > top - WINDOW
        assert window.fresh(seq) is expected
        seen.add(seq)
        top = max(top, seq)
