"""Datagrams taken natively end as by the reference: in kernel, registry, stream and counters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sync.reception_world import Pair


def run(seed: int, turns: int) -> Pair:
    pair = Pair(seed)
    for _ in range(turns):
        pair.turn()
        pair.compare()
    return pair


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_any_course_of_datagrams_ends_alike(seed: int) -> None:
    run(seed, 12)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_course_ends_alike_and_is_mostly_native(seed: int) -> None:
    pair = run(seed, 120)
    counters = pair.fast.inbox.counters
    # Otherwise it would compare the reference with itself, or with nothing.
    assert pair.natively > pair.fast.follower.counters["deltas_received"] // 3 > 100
    assert counters["datagrams_copies"]
    assert counters["refused_bad_tag"]
    assert counters["refused_truncated"]
    assert pair.fast.inbox.stream.counters["gaps"]
    assert pair.fast.inbox.stream.counters["sessions_accepted"] > 1
