"""A clock that is slewed too fast is an alarm while it is."""

from __future__ import annotations

import pytest

from cluster.clock_rate import SPAN_NS, ClockRate

START = 7 * 10**15
RAW = 3 * 10**15


def watched(error: float) -> ClockRate:
    rate = ClockRate(START, RAW)
    for tenth in range(1, 11):
        raw_ns = tenth * SPAN_NS // 10
        rate.observe(START + round(raw_ns * (1 + error)), RAW + raw_ns)
    return rate


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (0.0, ""),
        (0.0005, ""),  # What NTP does without a step of the tick.
        (-0.0049, ""),
        (0.0051, "0.5% too fast"),
        (0.083, "8.3% too fast"),  # chrony's default.
        (-0.083, "8.3% too slow"),
        (30.0, ""),  # Suspended for five minutes.
    ],
)
def test_rate_error(error: float, said: str) -> None:
    alarms = watched(error).alarms()
    assert len(alarms) == bool(said)
    assert all(said in alarm and "maxslewrate 5000" in alarm for alarm in alarms)


def test_alarm_ends_with_a_span_that_is_right() -> None:
    rate = watched(0.05)
    at_boottime, at_raw = START + round(SPAN_NS * 1.05), RAW + SPAN_NS
    rate.observe(at_boottime + SPAN_NS - 1, at_raw + SPAN_NS - 1)
    assert rate.alarms()
    rate.observe(at_boottime + SPAN_NS, at_raw + SPAN_NS)
    assert rate.alarms() == []


def test_nothing_is_said_before_a_span_is_over() -> None:
    rate = ClockRate(START, RAW)
    rate.observe(START + SPAN_NS, RAW + SPAN_NS - 1)
    assert rate.alarms() == []
