"""What a drill makes of its faults."""

from __future__ import annotations

import pytest

from hafw.lab.drill_steps import NO_NODE, Step, Takeover, dark_ns, fault_windows, step_result
from hafw.lab.faults import Holder


def test_each_fault_has_the_time_until_the_next() -> None:
    assert fault_windows([10, 20], 35) == [(10, 20), (20, 35)]


def test_a_drill_that_came_to_no_fault_has_no_windows() -> None:
    assert fault_windows([], 35) == []


GW1, GW2 = Holder("gw1", 7), Holder("gw2", 8)
AGAIN = Holder("gw1", 9)


@pytest.mark.parametrize(
    ("takeover", "after", "taken_ns", "problem"),
    [
        ("never", GW1, None, ""),
        ("never", AGAIN, None, "gw1 lost its lease and took it again"),
        ("never", GW2, None, "the group left gw1"),
        # There and back between two looks: the judge has seen the other gate open.
        ("never", GW1, 40, "the group left gw1"),
        ("stays", AGAIN, None, ""),
        ("stays", GW2, 40, "the group left gw1"),
        ("must", GW2, 40, ""),
        ("may", AGAIN, None, ""),
    ],
)
def test_what_moved_and_must_not(
    takeover: Takeover, after: Holder, taken_ns: int | None, problem: str
) -> None:
    step = Step("a fault", 10, GW1, after, takeover)
    result = step_result(step, (10, 50), began_ns=0, taken_ns=taken_ns, outage_ms=1.0)
    assert bool(result.problem) == bool(problem)
    assert problem in result.problem


def test_a_takeover_after_the_next_fault_is_that_ones() -> None:
    step = Step("a fault", 10, GW1, GW1, "never", notes=["seen"])
    result = step_result(step, (10, 50), began_ns=0, taken_ns=60, outage_ms=1.0)
    assert (result.problem, result.takeover_ms, result.note) == ("", None, "seen")


def test_only_a_cold_start_is_dark() -> None:
    cold = step_result(
        Step("power", 0, NO_NODE, GW1, "must"), (0, 10**10), began_ns=0, taken_ns=4 * 10**9,
        outage_ms=0.0,
    )  # fmt: skip
    cut = step_result(
        Step("cut", 0, GW1, GW2, "must"), (0, 10**10), began_ns=0, taken_ns=10**8, outage_ms=0.0
    )
    assert dark_ns([cut]) == 0
    assert dark_ns([cut, cold]) == 4 * 10**9
