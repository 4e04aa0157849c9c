"""The native registry table against a dictionary, its hashes against the reference's words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hafw.flow import FlowEntry
from sync._codec import FlowTable
from sync.flowhash import FlowHash
from tests.unit.sync.flow_strategies import entries
from tests.unit.sync.flowhash_vectors import VECTORS, Vector

SECRET = bytes(range(1, 33))
FLAGS = 10
GROUPS = st.integers(1, 3)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, 2**64 - 1)
# Few segments and few homes: long runs, moves over the end of the array, and resizes.
HASHES = st.builds(
    lambda segment, high, low: segment << 54 | high << 42 | low,
    st.sampled_from([0, 1, 1023]),
    st.integers(0, 15).map(lambda n: n * 0x111) | st.sampled_from([0xFFF, 0xFFE]),
    st.integers(0, 3),
)
EPOCHS = st.integers(1, 40)
FLAG_SETS = st.integers(0, 2**FLAGS - 1)
Row = tuple[int, int, int, int, int, int, int, int, bool]
ROWS = st.tuples(
    GROUPS, st.integers(0, 2), EPOCHS, U16, U64, st.sampled_from([0, 2, 4, 6, 64, 70]),
    st.integers(-1, 10), U16, st.booleans(),
)  # fmt: skip


class TableMachine(RuleBasedStateMachine):
    """Every operation on both, and everything that can be asked after each."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FlowTable(SECRET)
        self.rows: dict[int, Row] = {}
        self.flags: dict[int, int] = {}

    @rule(h=HASHES, row=ROWS, add=st.just(0) | FLAG_SETS, clear=st.just(0) | FLAG_SETS)
    def put(self, h: int, row: Row, add: int = 0, clear: int = 0) -> None:
        assert self.table.put(h, *row, add, clear)
        old = self.rows.get(h)
        if old is not None and row[6] < 0 and row[1] == old[1]:
            row = (*row[:6], old[6], *row[7:])  # The same life; its TCP state was not said.
        if old is None or old[0] != row[0]:
            self.flags[h] = 0
        self.flags[h] = self.flags[h] & ~clear | add
        self.rows[h] = row

    @rule(first=HASHES, row=ROWS, count=st.integers(20, 60))
    def put_many(self, first: int, row: Row, count: int) -> None:
        for step in range(count):
            self.put((first & ~(0xFFF << 42)) | (step * 67 % 0x1000) << 42, row)

    @rule(h=HASHES)
    def remove(self, h: int) -> None:
        expected = self.full(h)
        assert self.table.remove(h) == expected
        self.rows.pop(h, None)
        self.flags.pop(h, None)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove_known(self, data: st.DataObject) -> None:
        self.remove(data.draw(st.sampled_from(sorted(self.rows))))

    @rule(h=HASHES, flags=FLAG_SETS)
    def set_flags(self, h: int, flags: int) -> None:
        assert self.table.set(h, flags) == (h in self.rows)
        if h in self.rows:
            self.flags[h] |= flags

    @rule(h=HASHES, flags=FLAG_SETS)
    def clear_flags(self, h: int, flags: int) -> None:
        assert self.table.clear(h, flags) == (h in self.rows)
        if h in self.rows:
            self.flags[h] &= ~flags

    @rule(
        group=GROUPS,
        flags=FLAG_SETS,
        unless=st.just(0) | FLAG_SETS,
        buckets=st.none() | st.sets(st.sampled_from([0, 1, 255])),
    )
    def set_all(self, group: int, flags: int, unless: int, buckets: set[int] | None) -> None:
        mine = [
            h
            for h, row in self.rows.items()
            if row[0] == group
            and not self.flags[h] & unless
            and (buckets is None or h >> 56 in buckets)
        ]
        found = self.table.set_all(group, flags, unless=unless, buckets=buckets)
        assert found == len(mine)
        for h in mine:
            self.flags[h] |= flags

    @rule(group=GROUPS, flags=FLAG_SETS)
    def clear_all(self, group: int, flags: int) -> None:
        self.table.clear_all(group, flags)
        for h, row in self.rows.items():
            if row[0] == group:
                self.flags[h] &= ~flags

    @rule(group=GROUPS, bit=st.integers(0, FLAGS - 1))
    def drop_flagged(self, group: int, bit: int) -> None:
        mine = [h for h, row in self.rows.items() if row[0] == group and self.flags[h] >> bit & 1]
        rich = sorted(h for h in mine if self.rows[h][8])
        count, found = self.table.drop_flagged(group, 1 << bit)
        assert (count, sorted(found)) == (len(mine), rich)
        for h in mine:
            del self.rows[h], self.flags[h]

    def full(self, h: int) -> tuple[int, int, int, int, int, int, int, int, int, bool] | None:
        row = self.rows.get(h)
        return None if row is None else (*row[:8], self.flags[h], row[8])

    @rule(h=HASHES)
    def unknown_or_not(self, h: int) -> None:
        assert (h in self.table) == (h in self.rows)

    @invariant()
    def same(self) -> None:
        assert len(self.table) == len(self.rows)
        for h in self.rows:
            assert self.table.get(h) == self.full(h)
        for group in (1, 2, 3):
            mine = [h for h, row in self.rows.items() if row[0] == group]
            assert self.table.count(group) == len(mine)
            for bit in range(FLAGS):
                flagged = sum(self.flags[h] >> bit & 1 for h in mine)
                assert self.table.count_flag(group, 1 << bit) == flagged
            digest = [[0, 0] for _ in range(256)]
            for h in mine:
                digest[h >> 56][0] = (digest[h >> 56][0] + self.rows[h][4]) % 2**64
                digest[h >> 56][1] += 1
            assert self.table.digest(group) == tuple((s, n) for s, n in digest)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def scattered(number: int) -> int:
    """The same 64 bits for the same number, as a good hash would give them."""
    x = (number * 0x9E3779B97F4A7C15 + 0x1234567) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def fill(table: FlowTable, first: int, last: int) -> None:
    for number in range(first, last):
        table.put(scattered(number), 1, number, 5, 0, number, 6, 3, 0, False)


def test_a_flow_takes_at_most_32_bytes_at_any_size_above_100_000() -> None:
    table = FlowTable(SECRET)
    fill(table, 0, 100_000)
    worst = 0.0
    for size in range(100_000, 260_000, 2_000):
        fill(table, size, size + 2_000)
        worst = max(worst, table.allocated_bytes / len(table))
    assert len(table) == 260_000
    assert worst <= 32.0


def test_an_insertion_moves_one_segment_at_most() -> None:
    table = FlowTable(SECRET)
    fill(table, 0, 100_000)
    # Allocated memory changes with each resize: by one segment's step, never by more.
    step = 28 * 16  # A tenth of some hundred slots, in buckets of eight.
    before = table.allocated_bytes
    for number in range(100_000, 110_000):
        fill(table, number, number + 1)
        assert 0 <= table.allocated_bytes - before <= step
        before = table.allocated_bytes


def test_memory_comes_back_when_flows_go() -> None:
    table = FlowTable(SECRET)
    fill(table, 0, 100_000)
    full = table.allocated_bytes
    for number in range(90_000):
        assert table.remove(scattered(number)) is not None
    assert len(table) == 10_000
    assert table.allocated_bytes < full / 4


def test_a_count_that_does_not_fit_is_refused() -> None:
    table = FlowTable(SECRET)
    with pytest.raises(OverflowError):
        table.put(1, 1, 1, 5, 0x10000, 0, 0, 0, 0, False)
    assert len(table) == 0


def test_epochs_out_of_use_make_room_for_new_ones() -> None:
    table = FlowTable(SECRET)
    for number in range(200_000):  # Three times as many as there are numbers for.
        assert table.put(number % 3, 1, 1, 1000 + number, 0, 0, 0, 0, 0, False)
    record = table.get(199_999 % 3)
    assert record is not None
    assert record[2] == 200_999


def test_epochs_in_use_are_bounded_and_what_does_not_fit_is_refused() -> None:
    table = FlowTable(SECRET)
    for number in range(0xFFFF - 1):
        assert table.put(scattered(number), 1, 1, 1 + number, 0, 0, 0, 0, 0, False)
    before = table.get(scattered(0))
    assert not table.put(scattered(0), 1, 2, 1 << 40, 0, 0, 0, 0, 0, False)
    assert not table.put(scattered(1 << 20), 1, 2, 1 << 40, 0, 0, 0, 0, 0, False)
    assert (table.get(scattered(0)), len(table)) == (before, 0xFFFF - 1)
    # Epoch 0 always has its number.
    assert table.put(scattered(1 << 20), 1, 2, 0, 0, 0, 0, 0, 0, False)


@pytest.mark.long
def test_millions_of_operations_agree_with_a_dictionary() -> None:
    table = FlowTable(SECRET)
    rows: dict[int, tuple[int, int]] = {}
    x = 1
    for step in range(5_000_000):
        x = scattered(x)
        # Up to 200,000 flows, then down to none, and again.
        limit = 200_000 * (1 + step // 250_000 % 2)
        h = scattered(x % limit)
        if x >> 40 & 3 or len(rows) < limit // 4:
            table.put(h, 1 + step % 2, step & 0xFFFFFFFF, 7, 0, x, 6, 3, 0, False)
            rows[h] = 1 + step % 2, x
        else:
            known = table.remove(h)
            mine = rows.pop(h, None)
            assert (None if known is None else (known[0], known[4])) == mine
    assert len(table) == len(rows)
    for group in (1, 2):
        digest = [[0, 0] for _ in range(256)]
        for h, (of, contribution) in rows.items():
            if of == group:
                digest[h >> 56][0] = (digest[h >> 56][0] + contribution) % 2**64
                digest[h >> 56][1] += 1
        assert table.digest(group) == tuple((s, n) for s, n in digest)
    for h, (group, contribution) in rows.items():
        record = table.get(h)
        assert record is not None
        assert (record[0], record[4]) == (group, contribution)


@pytest.mark.parametrize("vector", VECTORS)
def test_the_hashes_are_those_of_the_vectors(vector: Vector) -> None:
    table = FlowTable(vector.secret)
    assert table.hash(vector.entry.key) == vector.flow
    assert table.contribution(vector.entry, vector.incarnation) == vector.contribution


@given(st.binary(min_size=32, max_size=32), entries(), U32)
def test_the_hashes_equal_the_reference(secret: bytes, entry: FlowEntry, incarnation: int) -> None:
    table, reference = FlowTable(secret), FlowHash(secret)
    assert table.hash(entry.key) == reference.flow(entry.key)
    assert table.contribution(entry, incarnation) == reference.contribution(entry, incarnation)
