"""Rows of the table of faults fail without their property: the verdict, given what they deny."""

from __future__ import annotations

import re

import msgspec
import pytest

from hafw.human import make_epoch
from hafw.lab.drill_list import rows
from hafw.lab.drill_steps import UPSTREAM_T, Step, Takeover, allowed_ms, step_result
from hafw.lab.faults import Holder
from hafw.lab.report import DrillResult, judge_drill
from tests.unit.hafw.test_report import GOOD

LEASE_MS = 100
OLD, NEW, ANEW = make_epoch(1, 1, 1), make_epoch(1, 2, 2), make_epoch(2, 1, 1)
KEPT, TAKEN, RENEWED = Holder("gw1", OLD), Holder("gw2", NEW), Holder("gw1", ANEW)


def verdict(
    takeover: Takeover, after: Holder, taken_ms: float | None, outage_ms: float, *,
    given: bool | None = None, leases: float | None = None,
) -> DrillResult:  # fmt: skip
    """Of a row with one fault. `given`: its step is one in which the lease must be given up, and
    was it."""
    commanded = given is not None
    step = Step("a fault", 0, KEPT, after, takeover, commanded=commanded)
    step.within_ms = allowed_ms(takeover, leases, LEASE_MS, given=commanded)
    taken_ns = None if taken_ms is None else int(taken_ms * 1e6)
    found = step_result(
        step, (0, 20_000_000_000), began_ns=0, taken_ns=taken_ns, outage_ms=outage_ms,
        given=bool(given),
    )  # fmt: skip
    return judge_drill(msgspec.structs.replace(GOOD, steps=[found], agent_late_ms=5.0))


def test_rows_pass_with_the_worst_that_was_seen_of_them() -> None:
    for good in (
        verdict("never", KEPT, None, 27.0),
        verdict("stays", RENEWED, None, 27.0),
        verdict("must", TAKEN, 104.0, 104.0),
        verdict("must", TAKEN, 179.0, 179.0),
        verdict("anew", TAKEN, 51.0, 51.0),
        verdict("anew", RENEWED, None, 51.0),
        verdict("must", TAKEN, 11.0, 74.0, given=True),
        verdict("must", TAKEN, 970.0, 970.0, given=True, leases=UPSTREAM_T),
    ):
        assert good.reasons == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        # "Nothing moves, no packet is held up."
        (verdict("never", KEPT, None, 9000.0), "held up for 9000 ms"),
        (verdict("never", KEPT, None, 1000.0), "held up for 1000 ms"),
        (verdict("never", RENEWED, None, 5.0), "lost its lease and took it again"),
        (verdict("never", TAKEN, 90.0, 5.0), "left gw1"),
        # "The other takes over when the lease has run out."
        (verdict("must", TAKEN, 9000.0, 9500.0), "held up for 9500 ms"),
        (verdict("must", TAKEN, 500.0, 13.0), "nobody took over for 500 ms"),
        (verdict("must", TAKEN, 500.0, 500.0), "held up for 500 ms"),
        # "At once: the lease is given up and not waited for."
        (verdict("must", TAKEN, 5000.0, 5000.0, given=True), "held up for 5000 ms"),
        (verdict("must", TAKEN, 90.0, 90.0, given=False), "did not give its lease up"),
        # hafw-leased of the ACTIVE node was killed: a new epoch, in time.
        (verdict("anew", KEPT, None, 5.0), "nobody is ACTIVE in a new epoch"),
        (verdict("anew", RENEWED, None, 2500.0), "held up for 2500 ms"),
        # Its hafw-syncd, or a leased elsewhere: it stays, and nothing is held up.
        (verdict("stays", TAKEN, 3100.0, 100.0), "the group left gw1"),
        (verdict("stays", RENEWED, None, 1000.0), "held up for 1000 ms"),
    ],
)
def test_a_row_fails_without_its_property(found: DrillResult, words: str) -> None:
    assert not found.passed
    assert any(words in reason for reason in found.reasons), found.reasons


def test_each_row_says_for_how_many_leases_packets_may_be_held_up() -> None:
    silent = [
        (drill.name, row.variant)
        for drill, row in rows()
        if not re.search(r"\b\d+ T\b", row.outcome)
    ]
    assert silent == [("cold-start", "")], "there, nobody is ACTIVE before it"
