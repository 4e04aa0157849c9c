"""One renderer for people, shell and programs."""

from __future__ import annotations

import json

import pytest

from hafw.cli.render import render, render_tables

ROWS = [
    {"node": "gw1", "up": True, "rtt": 0.25, "vips": ["a", "b"], "reason": None},
    {"node": "gw2", "up": False, "rtt": 12.0, "vips": [], "reason": "tab\there\nand line"},
]


def test_json_is_the_rows() -> None:
    assert json.loads(render(ROWS, "json")) == ROWS


def test_tsv_has_a_header_and_one_line_a_row_whatever_is_inside() -> None:
    lines = render(ROWS, "tsv").splitlines()
    assert lines == [
        "node\tup\trtt\tvips\treason",
        "gw1\tyes\t0.25\ta,b\t-",
        "gw2\tno\t12\t-\ttab here; and line",
    ]


def test_pretty_aligns_columns_without_a_terminal() -> None:
    assert render(ROWS, "pretty", columns=["node", "up"], title="nodes") == (
        "NODES\nnode  up\ngw1   yes\ngw2   no\n"
    )


def test_columns_choose_and_order() -> None:
    assert render(ROWS, "tsv", columns=["up", "node"]).splitlines()[1] == "yes\tgw1"


@pytest.mark.parametrize("fmt", ["pretty", "tsv"])
def test_no_rows_are_no_error(fmt: str) -> None:
    assert render([], fmt) == "\n"


def test_tables_in_tsv_name_their_table_first() -> None:
    text = render_tables({"nodes": [{"node": "gw1", "up": True}], "empty": []}, "tsv")
    assert text == "nodes\tnode=gw1\tup=yes\n"


def test_tables_in_json_are_an_object() -> None:
    tables = {"nodes": [{"node": "gw1"}], "empty": []}
    assert json.loads(render_tables(tables, "json")) == tables
