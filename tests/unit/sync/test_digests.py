"""Digests: what is said, how it travels, what a follower makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.delta import DeltaError, GroupDigest, Upsert, Version, decode_deltas, encode_delta
from sync.digests import FAILURES_MAX, DigestWatch, say_digest
from sync.flowhash import BUCKETS, bucket_of
from sync.outbox import deltas_room
from sync.paths import SIZES
from sync.registry import Flag, Registry
from sync.replica import Compared, ReplicaGroup, ReplicaTable, Superseded
from tests.unit.sync.sync_flows import GROUP, HASHES, epoch, reborn, tcp, udp

E1, E2 = epoch(1, 1), epoch(2, 2)
U64 = st.integers(0, (1 << 64) - 1)
HALF = BUCKETS // 2

digests = st.integers(0, BUCKETS - 1).flatmap(
    lambda first: st.builds(
        GroupDigest,
        group=st.integers(1, 15),
        first=st.just(first),
        sums=st.lists(U64, min_size=1, max_size=min(HALF, BUCKETS - first)).map(tuple),
        version=st.builds(Version, U64, st.just(0)),
    )
)


# -- the wire


@given(digests)
def test_a_digest_survives_the_way(said: GroupDigest) -> None:
    encoded = encode_delta(said)
    assert decode_deltas(encoded) == [said]
    with_epoch = encode_delta(said, header_epoch=said.version.epoch)
    assert len(with_epoch) <= len(encoded) - 8
    assert decode_deltas(with_epoch, header_epoch=said.version.epoch) == [said]


def test_the_bytes_of_a_digest_are_pinned() -> None:
    said = GroupDigest(3, 254, (1, 0xA1B2C3D4E5F60718), Version(E1, 0))
    encoded = encode_delta(said, header_epoch=E1)
    assert encoded.hex() == "15400003fe020000000000000001a1b2c3d4e5f60718"
    assert encode_delta(said).hex() == "1d500003fe02" + E1.to_bytes(8, "big").hex() + (
        "0000000000000001a1b2c3d4e5f60718"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("4000010000", "bad_value"),
        ("400001ff02" + "00" * 16, "bad_value"),
        ("4000100001" + "00" * 8, "bad_value"),
        ("4000000001" + "00" * 8, "bad_value"),
        ("4000010081" + "00" * 8 * 129, "bad_value"),
        ("4000010001" + "00" * 7, "truncated"),
        ("4000010001" + "00" * 9, "bad_length"),
        ("4001010001" + "00" * 8, "unknown_flags"),
        ("6000010001" + "00" * 8, "unknown_flags"),
    ],
)
def test_what_no_sender_says_is_refused(body: str, reason: str) -> None:
    raw = bytes.fromhex(body)
    size = bytes([len(raw)]) if len(raw) < 128 else bytes([len(raw) & 127 | 128, len(raw) >> 7])
    with pytest.raises(DeltaError) as refused:
        decode_deltas(size + raw, header_epoch=E1)
    assert refused.value.reason == reason


def test_a_digest_without_any_epoch_is_refused() -> None:
    encoded = encode_delta(GroupDigest(1, 0, (1,), Version(E1, 0)), header_epoch=E1)
    with pytest.raises(DeltaError) as refused:
        decode_deltas(encoded)
    assert refused.value.reason == "no_epoch"


def test_what_the_holder_says_fits_datagrams_and_covers_all_buckets() -> None:
    registry = Registry(HASHES)
    for port in range(2000):
        registry.put(udp(port), port, Version(E1, 0))
    said = say_digest(registry, GROUP, E1)
    sums = [one for each in said for one in each.sums]
    assert sums == [total for total, _ in registry.digest(GROUP)]
    assert [each.first for each in said] == list(range(0, BUCKETS, len(said[0].sums)))
    for each in said:
        assert len(encode_delta(each)) <= deltas_room(SIZES[-1])


# -- a follower compares


class Bench:
    """Node 1 holds, and says all to a follower that has the same."""

    def __init__(self) -> None:
        self.holder = Registry(HASHES)
        self.registry = Registry(HASHES)
        self.group = ReplicaGroup(epoch=E1, suspect=False)
        self.table = ReplicaTable(self.registry, {GROUP: self.group})
        for port in range(300):
            for registry in (self.holder, self.registry):
                registry.put(udp(port), port, Version(E1, 0))

    def wrong(self, at: int = E1, sender: int = 1) -> set[int]:
        found: set[int] = set()
        for said in say_digest(self.holder, GROUP, at):
            for effect in self.table.on_delta(said, sender):
                assert isinstance(effect, Compared)
                found |= effect.wrong
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_equal_registries_differ_in_no_bucket(bench: Bench) -> None:
    assert bench.wrong() == set()


def test_each_kind_of_difference_shows_in_its_bucket(bench: Bench) -> None:
    bench.registry.remove(udp(1).key)
    bench.registry.put(tcp(999), 7, Version(E1, 0))
    bench.registry.put(reborn(udp(2)), 2, Version(E1, 0))
    bench.registry.put(udp(3), 77, Version(E1, 0))
    flows = (udp(1), tcp(999), udp(2), udp(3))
    assert bench.wrong() == {bucket_of(HASHES.flow(entry.key)) for entry in flows}


def test_only_the_holders_digest_of_its_epoch_counts(bench: Bench) -> None:
    bench.registry.remove(udp(1).key)
    assert bench.wrong(sender=2) == set()
    said = say_digest(bench.holder, GROUP, E2)[0]
    assert bench.table.on_delta(said, 2) == [Superseded(GROUP, E2, 2)]
    bench.group.epoch = epoch(3, 1)
    assert bench.wrong() == set(), "of an older epoch of the same node: no hole either"
    assert bench.table.on_delta(GroupDigest(9, 0, (1,), Version(E1, 0)), 1) == []


def test_a_repair_is_about_its_buckets_alone(bench: Bench) -> None:
    one, other = udp(1), udp(2)
    buckets = frozenset({bucket_of(HASHES.flow(one.key))})
    assert bucket_of(HASHES.flow(other.key)) not in buckets
    bench.registry.set(other.key, Flag.STALE)
    bench.table.await_snapshot(GROUP, buckets)
    bench.table.begin_snapshot(GROUP)
    assert bench.table.is_orphan(one, GROUP)
    assert not bench.table.is_orphan(other, GROUP)
    unknown = [tcp(port) for port in range(1, 2000)]
    assert {bucket_of(HASHES.flow(e.key)) for e in unknown if bench.table.is_orphan(e, GROUP)} == (
        buckets
    )
    bench.table.on_snapshot_entry(Upsert(one, 1, Version(E1, 0), True), GROUP)
    assert bench.group.repaired == 0, "it was there"
    bench.registry.remove(one.key)
    bench.table.on_snapshot_entry(Upsert(one, 1, Version(E1, 0), True), GROUP)
    bench.table.end_snapshot(GROUP)
    known = len(bench.registry)
    bench.table.snapshot_swept(GROUP)
    swept = known - len(bench.registry)
    assert bench.group.repaired == 1 + swept
    assert bench.registry.count_flag(GROUP, Flag.STALE) == 1, "that only a full one clears"


# -- what follows


def compare(watch: DigestWatch, wrong: set[int], *, seq: int, now: float = 0.0) -> None:
    for first in (0, HALF):
        half = {bucket for bucket in wrong if first <= bucket < first + HALF}
        watch.compared(first, HALF, half, seq=seq, now=now)


def test_clean_needs_all_buckets() -> None:
    watch = DigestWatch()
    watch.compared(0, HALF, set(), seq=1, now=1.0)
    assert watch.clean_at is None
    watch.compared(HALF, HALF, set(), seq=1, now=1.0)
    assert watch.clean_at == 1.0


def test_what_differs_is_known_until_the_stream_made_up_for_it() -> None:
    watch = DigestWatch()
    compare(watch, {200}, seq=2, now=2.0)
    assert (watch.clean_at, watch.differing) == (None, {200})
    assert "1 of 256 digest buckets differ from gw1" in watch.reason("gw1")
    compare(watch, set(), seq=3, now=3.0)
    assert watch.reason("gw1") == ""
    assert watch.clean_at == 3.0


def test_a_repair_waits_for_all_parts_of_the_digest() -> None:
    watch = DigestWatch()
    watch.compared(0, HALF, {1}, seq=1, now=1.0)
    assert (watch.differing, watch.to_repair) == ({1}, frozenset())
    watch.compared(HALF, HALF, {200}, seq=2, now=1.0)
    assert watch.to_repair == {1, 200}
    watch.compared(0, HALF, {1}, seq=3, now=2.0)
    assert watch.to_repair == frozenset()
    watch.begin_anew(seq=4)
    compare(watch, {7}, seq=5)
    assert watch.to_repair == {7}


def test_a_snapshot_makes_digests_before_its_end_worthless() -> None:
    watch = DigestWatch()
    watch.begin_anew(seq=10)
    compare(watch, {1, 2}, seq=10)
    assert watch.differing == set()
    compare(watch, {1, 2}, seq=11)
    assert watch.differing == {1, 2}


def test_a_repair_is_proved_by_the_next_digest() -> None:
    watch = DigestWatch()
    compare(watch, {1, 200}, seq=1)
    watch.repair_begins()
    compare(watch, {1, 2, 200}, seq=2)
    assert watch.differing == {1, 200}, "nothing is compared meanwhile"
    watch.repair_ends(frozenset({1, 200}), 5, seq=20)
    assert (watch.repairs, watch.repaired, watch.open_buckets) == (1, 5, 2)
    compare(watch, {1}, seq=20)
    assert watch.open_buckets == 2, "said before the repair's end"
    compare(watch, set(), seq=21, now=7.0)
    assert (watch.open_buckets, watch.failures, watch.clean_at) == (0, 0, 7.0)


def test_a_repair_that_was_broken_off_is_wanted_again() -> None:
    watch = DigestWatch()
    compare(watch, {1}, seq=1)
    watch.repair_begins()
    watch.repair_failed()
    assert watch.differing == {1}
    compare(watch, set(), seq=2)
    assert watch.differing == set()


def test_repairs_in_vain_end_in_an_alarm_and_a_full_snapshot() -> None:
    watch = DigestWatch()
    compare(watch, {1, 200}, seq=1)
    for attempt in range(1, FAILURES_MAX + 1):
        assert not watch.hopeless
        watch.repair_begins()
        watch.repair_ends(frozenset({1, 200}), 0, seq=10 * attempt)
        compare(watch, {200}, seq=10 * attempt + 1)
        assert watch.failures == attempt
    assert (watch.hopeless, watch.alarm, watch.in_vain) == (True, True, 1)
    watch.begin_anew(seq=100)
    assert (watch.hopeless, watch.alarm) == (False, True)
    compare(watch, set(), seq=101)
    assert not watch.alarm


def test_another_fault_elsewhere_is_no_failure() -> None:
    watch = DigestWatch()
    compare(watch, {1}, seq=1)
    watch.repair_begins()
    watch.repair_ends(frozenset({1}), 1, seq=10)
    compare(watch, {9}, seq=11)
    assert (watch.failures, watch.differing) == (0, {9})


def test_replicas_that_went_are_owned_up_to_until_the_next_clean_digest() -> None:
    watch = DigestWatch()
    watch.compared(0, HALF, set(), seq=1, now=1.0)
    watch.note_missing(3)
    watch.compared(HALF, HALF, set(), seq=1, now=1.0)
    assert watch.reason("gw1") == "3 replicas went from this kernel; comparing with gw1"
    compare(watch, set(), seq=2, now=2.0)
    assert watch.reason("gw1") == ""
