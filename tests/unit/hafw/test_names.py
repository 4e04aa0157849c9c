"""Alarms and refusals of leased name groups and nodes as cluster.yaml does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from hafw.node.names import named
from hafw.node.status_rows import build_tables
from tests.unit.hafw.test_status_rows import CONFIG, facts, leased


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "group 1: held alone, node 2 does not answer",
            "group main: held alone, gw2 does not answer",
        ),
        ("silent: nodes 1, 9", "silent: gw1, wit"),
        ("node 7 is not heard", "node 7 is not heard"),
        ("group 4: fetch", "group 4: fetch"),
        ("era 2 of set 1", "era 2 of set 1"),
    ],
)
def test_numbers_become_names(said: str, told: str) -> None:
    assert named(CONFIG, said) == told


def test_status_has_the_names() -> None:
    said = structs.replace(leased("gw1"), alarms=["group 1: held alone, node 2 does not answer"])
    tables = build_tables(CONFIG, replace(facts("gw1"), leased=said))
    assert [row["alarm"] for row in tables["alarms"] if row["source"] == "leased"] == [
        "group main: held alone, gw2 does not answer"
    ]
