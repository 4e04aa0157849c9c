"""What a drill makes of its faults."""

from __future__ import annotations

from hafw.lab.drill_steps import fault_windows


def test_each_fault_has_the_time_until_the_next() -> None:
    assert fault_windows([10, 20], 35) == [(10, 20), (20, 35)]


def test_a_drill_that_came_to_no_fault_has_no_windows() -> None:
    assert fault_windows([], 35) == []
