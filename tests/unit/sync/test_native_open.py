"""Datagrams taken natively end as by the reference: in kernel, registry, stream and counters."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafw.flow import hafw_mark
from sync.delta import Upsert, Version, encode_delta
from sync.fetch import Source
from sync.wire import MessageType
from tests.unit.sync.reception_world import EPOCHS, Pair
from tests.unit.sync.sync_flows import udp


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


@pytest.mark.parametrize(
    ("code", "stays"), [(errno.EEXIST, True), (errno.EINVAL, False)], ids=["clash", "other"]
)
def test_a_clash_is_left_to_the_digest(code: int, *, stays: bool) -> None:
    """A tuple that another flow has for now is no reason to fetch the whole group again."""
    pair = Pair(1)
    for one in (pair.slow, pair.fast):
        one.kernel.code = code
        one.follower.sources[1] = Source(1, pair.sealer.session, 0)
    entry = replace(udp(1), mark=hafw_mark(1, 1, 1))
    payload = encode_delta(Upsert(entry, 7, Version(EPOCHS[0], 0)), header_epoch=EPOCHS[0])
    pair.hear([pair.seal(MessageType.DELTAS, bytes(8) + payload, EPOCHS[0])])
    for one in (pair.slow, pair.fast):
        assert one.follower.counters["replicas_refused"] == 1
        assert one.registry.get(entry.key) is None
        assert (1 in one.follower.sources) == stays
        watch = one.follower.upkeep.watches[1]
        assert watch.missing == stays
        # The node is unsynced either way, until the holder's digest or snapshot says otherwise.
        assert bool(watch.reason("gw1")) == stays
