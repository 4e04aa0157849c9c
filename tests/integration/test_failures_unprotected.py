"""Rows of docs/operating/failures.md in labs that are built without what protects the flows: these
rows must fail. A module of its own, as the rows themselves share the lab that others use, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hafw.lab.lab import Lab
from tests.integration.test_failures import run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.long,
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def lab_without_sync(lab_alone: None) -> Iterator[Lab]:
    lab = Lab()
    lab.down()
    lab.up(without=frozenset({"sync"}))
    lab.wait_ready(30)
    yield lab
    lab.down()


@pytest.mark.parametrize(
    ("drill", "variant"),
    [
        ("carrier", "wan"), ("one-way", "from-active"), ("one-way", "to-active"),
        ("witness", "slow"), ("restart-all", ""),
    ],
)  # fmt: skip
def test_without_sync_a_row_with_a_takeover_loses_flows(
    lab_without_sync: Lab, drill: str, variant: str
) -> None:
    result = run(lab_without_sync, drill, variant)
    assert not result.passed
    assert any("tcp" in probe.name for probe in result.probes if probe.lost)
    assert result.gate is not None
    assert result.gate.dual_ms == 0


def test_where_no_segment_may_carry_deltas_the_flows_of_a_cut_are_lost(lab_alone: None) -> None:
    lab = Lab()
    lab.down()
    lab.up(without=frozenset({"segments"}))
    try:
        lab.wait_ready(30)
        result = run(lab, "sync-links-power", "")
    finally:
        lab.down()
    assert any("deltas ran over a segment" in reason for reason in result.reasons), result.reasons
    assert any("tcp" in probe.name for probe in result.probes if probe.lost)
    assert result.gate is not None
    assert result.gate.dual_ms == 0
