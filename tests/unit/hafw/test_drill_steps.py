"""What a drill makes of its faults."""

from __future__ import annotations

import pytest

from hafw.lab.drill_steps import (
    NO_NODE,
    Step,
    Takeover,
    allowed_ms,
    dark_ns,
    fault_windows,
    gave_up,
    packets_lost,
    step_result,
)
from hafw.lab.faults import Holder
from hafw.lab.judges import Change
from hafw.lab.probe_record import FlowReport
from hafw.lab.probes import Addresses, plan_probes


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
        ("anew", AGAIN, None, ""),
        ("anew", GW2, 40, ""),
        ("anew", GW1, None, "nobody is ACTIVE in a new epoch"),
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


def test_a_commanded_step_in_which_the_lease_ran_out_is_told() -> None:
    step = Step("a move", 10, GW1, GW2, "must", commanded=True)
    results = [
        step_result(step, (10, 50), began_ns=0, taken_ns=40, outage_ms=1.0, given=given)
        for given in (True, False)
    ]
    assert [r.problem for r in results] == ["", "gw1 did not give its lease up"]


def test_a_lease_is_given_up_if_the_gate_is_shut_before_its_deadline() -> None:
    held = [Change(0, 1, 100, 100), Change(20, 21, 120, 120)]
    assert not gave_up(held, 0)
    assert gave_up([*held, Change(40, 41, 0, 120)], 30)
    assert not gave_up([*held, Change(40, 41, 0, 120)], 41), "that was before the fault"
    assert not gave_up([*held, Change(130, 131, 0, 0)], 30), "it had run out by then"


def test_how_long_packets_may_be_held_up() -> None:
    assert allowed_ms("never", None, 100, given=False) == 200
    assert allowed_ms("stays", None, 200, given=False) == 400
    assert allowed_ms("must", None, 100, given=False) == 400
    assert allowed_ms("anew", None, 100, given=False) == 400
    assert allowed_ms("must", None, 100, given=True) == 300
    assert allowed_ms("must", 10, 100, given=True) == 1000
    # The machine's own noise does not get shorter with the lease.
    assert allowed_ms("never", None, 20, given=False) == 200


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


def test_a_lost_packet_is_told_with_its_direction_and_its_moment() -> None:
    place = Addresses(4, "192.0.2.10", "198.51.100.10", "192.0.2.20", "198.51.100.254")
    plan = plan_probes((place,), octets_s=1)

    def report(flow: int, *, arrived: int, answered: int, missing: list[int]) -> FlowReport:
        return FlowReport(
            flow=flow, state="open", error="", local=("", 0), remote=("", 0), opened_ns=1,
            exchanges=answered, octets=0, written=0, sent=1000, wrong=0, wrong_why="", last_ns=1,
            resolution_ns=1, gaps=[], arrived=arrived, missing_ns=missing,
        )  # fmt: skip

    well = {
        p.spec.flow: report(p.spec.flow, arrived=1000, answered=1000, missing=[]) for p in plan
    }
    steps = [Step("move to gw2", 10_000_000, GW1, GW2, "must")]
    assert packets_lost(plan, well, steps) == []
    udp, icmp, tcp = (
        next(p.spec.flow for p in plan if p.spec.kind == kind)
        for kind in ("udp", "icmp", "tcp-echo")
    )
    ill = {
        **well,
        udp: report(udp, arrived=999, answered=997, missing=[2, 12_500_000, 13_000_000]),
        icmp: report(icmp, arrived=0, answered=999, missing=[9]),
        tcp: report(tcp, arrived=0, answered=1, missing=[]),
    }
    assert packets_lost(plan, ill, steps) == [
        "snat udp IPv4: 3 of 1000 packets lost (1 requests, 2 answers); sent before anything was "
        "done, 2.5 ms after move to gw2, 3.0 ms after move to gw2",
        "snat icmp IPv4: 1 of 1000 packets lost; sent before anything was done",
    ]
