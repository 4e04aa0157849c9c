"""Outage, alive, lost: the arithmetic on what a flow saw."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.lab.probe_record import (
    GAPS_MAX,
    FlowReport,
    Record,
    lost_reason,
    merge_sides,
    outage_ns,
    progressed,
)

MS = 1_000_000


def flow(**changes: Any) -> FlowReport:
    plain = FlowReport(
        flow=1, state="open", error="", local=("192.0.2.10", 4000), remote=("198.51.100.10", 7001),
        opened_ns=1, exchanges=100, octets=6400, written=0, sent=100, wrong=0, wrong_why="",
        last_ns=1000 * MS, resolution_ns=2 * MS, gaps=[],
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 20))
def test_a_record_keeps_exactly_the_gaps_above_its_resolution(
    steps: list[int], resolution: int
) -> None:
    record = Record(resolution)
    moments = [100]
    for step in steps:
        moments.append(moments[-1] + step)
    for moment in moments:
        record.right(moment, 10)
    assert record.gaps == [(a, b) for a, b in pairwise(moments) if b - a > resolution]
    assert record.exchanges == len(moments)
    assert record.octets == 10 * len(moments)
    assert record.last_ns == moments[-1]


def test_at_the_bound_short_gaps_are_forgotten_and_the_longest_stays() -> None:
    record = Record(10)
    now = 1000
    record.right(now)
    for number in range(3 * GAPS_MAX):
        now += 5000 if number == 17 else 15
        record.right(now)
    assert len(record.gaps) <= GAPS_MAX
    assert record.resolution_ns > 10
    assert max(end - start for start, end in record.gaps) == 5000


def test_only_the_first_reason_of_a_wrong_is_kept() -> None:
    record = Record(10)
    record.mark_wrong("first")
    record.mark_wrong("second")
    assert (record.wrong, record.wrong_why) == (2, "first")


@pytest.mark.parametrize(
    ("gaps", "last", "window", "expected"),
    [
        ([], 1000, (900, 1000), 0),
        ([(500, 600)], 1000, (550, 1000), 100),  # Begun before the fault: the whole gap.
        ([(500, 600)], 1000, (600, 1000), 0),  # Over when the fault came.
        ([(500, 600), (700, 900)], 1000, (450, 650), 100),  # The second is another fault's.
        ([(500, 600), (700, 900)], 1000, (450, 1000), 200),
        ([], 700, (650, 1000), 300),  # Still silent at the end.
        ([(599, 700)], 1000, (450, 600), 1),  # Of the fault at 600, whose last answer was at 599.
    ],
)
def test_outage_is_the_longest_gap_that_touches_the_window(
    gaps: list[tuple[int, int]], last: int, window: tuple[int, int], expected: int
) -> None:
    report = flow(gaps=[(a * MS, b * MS) for a, b in gaps], last_ns=last * MS)
    assert outage_ns(report, window[0] * MS, window[1] * MS) == expected * MS


def test_a_flow_that_never_answered_has_no_gap_to_measure() -> None:
    assert outage_ns(flow(last_ns=0), 0, 1000 * MS) == 0


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({"exchanges": 105}, True),
        ({"exchanges": 104}, False),
        ({"exchanges": 105, "state": "failed", "error": "ECONNRESET"}, False),
        ({"exchanges": 105, "wrong": 1, "wrong_why": "twice"}, False),
    ],
)
def test_progress_needs_enough_right_answers(changes: dict[str, Any], alive: bool) -> None:
    assert progressed(flow(), flow(**changes), exchanges=5) is alive


def test_a_stream_progressed_when_all_that_was_in_flight_has_arrived() -> None:
    before = flow(octets=1_000_000, written=2_000_000)
    assert not progressed(before, flow(exchanges=200, octets=1_999_999), exchanges=5)
    assert progressed(before, flow(exchanges=200, octets=2_000_000), exchanges=5)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (flow(exchanges=200), ""),
        (flow(), "no answer within 10 s of the fault"),
        (flow(exchanges=102, octets=7000), "stalled: 2 answers and 600 bytes within 10 s"),
        (flow(state="failed", error="ECONNRESET"), "failed: ECONNRESET"),
        (flow(state="connecting"), "connecting"),
        (flow(exchanges=200, wrong=3, wrong_why="byte 7"), "3 wrong: byte 7"),
    ],
)
def test_a_lost_flow_says_why(after: FlowReport, words: str) -> None:
    why = lost_reason(flow(), after, exchanges=5, bound_s=10)
    assert why.startswith(words) if words else why == ""


def test_both_ends_make_one_report() -> None:
    opener = flow(octets=1, exchanges=2, written=3, sent=4)
    accepter = flow(
        octets=10, exchanges=20, written=30, local=("", 0), remote=("", 0), gaps=[(1, 2)]
    )
    up = merge_sides(opener, accepter, accepter_receives=True)
    assert (up.octets, up.exchanges, up.written, up.sent, up.gaps) == (10, 20, 3, 4, [(1, 2)])
    assert up.local == opener.local
    down = merge_sides(opener, accepter, accepter_receives=False)
    assert (down.octets, down.exchanges, down.written, down.gaps) == (1, 2, 30, [])
    assert merge_sides(opener, None, accepter_receives=True) == opener


@pytest.mark.parametrize("receives", [True, False])
def test_a_fault_on_either_end_is_the_flows(receives: bool) -> None:
    good = flow()
    bad = flow(state="failed", error="ECONNRESET", wrong=1, wrong_why="byte 3")
    for opener, accepter in ((good, bad), (bad, good)):
        merged = merge_sides(opener, accepter, accepter_receives=receives)
        assert (merged.state, merged.error) == ("failed", "ECONNRESET")
        assert (merged.wrong, merged.wrong_why) == (1, "byte 3")
