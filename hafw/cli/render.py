"""Rows of keys and values for people (`pretty`), for shell (`tsv`) and for programs (`json`).

One function for every command. JSON carries the rows as they are; tsv has a header line and one
line a row; pretty aligns columns, with rich on a terminal and as plain text elsewhere. None is
``-``, True ``yes``: colour never says anything alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["FORMATS", "Row", "format_option", "render", "render_tables"]

FORMATS = ("pretty", "tsv", "json")

Row = Mapping[str, Any]

_BAD_WORDS = frozenset(("down", "silent", "gone", "failed", "missing", "unknown", "no"))
_GOOD_WORDS = frozenset(("up", "yes", "ACTIVE", "open", "in force"))


def format_option(function: Any) -> Any:
    """``--format`` and its short form ``--json``."""
    function = click.option("--json", "fmt", flag_value="json", help="The same as --format json.")(
        function
    )
    return click.option(
        "--format",
        "fmt",
        type=click.Choice(FORMATS),
        default="pretty",
        show_default=True,
        help="For people, for shells or for programs.",
    )(function)


def render(
    rows: Sequence[Row], fmt: str, *, columns: Sequence[str] | None = None, title: str = ""
) -> str:
    """Text that ends with a newline; `columns` chooses and orders (default: the keys of the
    first row)."""
    if fmt == "json":
        return json.dumps([dict(row) for row in rows], indent=2) + "\n"
    names = list(columns) if columns is not None else (list(rows[0]) if rows else [])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    if fmt == "tsv":
        return "".join("\t".join(line) + "\n" for line in [names, *cells])
    heads = [name.replace("_", " ") for name in names]
    if sys.stdout.isatty():
        return _rich(title, heads, cells)
    return _plain(title, heads, cells)


def render_tables(tables: Mapping[str, Sequence[Row]], fmt: str) -> str:
    """Several tables: an object of lists in json, a first column ``table`` in tsv."""
    if fmt == "json":
        return json.dumps(tables, indent=2) + "\n"
    if fmt == "tsv":
        lines = []
        for name, rows in tables.items():
            for row in rows:
                pairs = [f"{key}={_cell(value)}" for key, value in row.items()]
                lines.append("\t".join([name, *pairs]) + "\n")
        return "".join(lines)
    return "\n".join(
        render(rows, fmt, title=name.replace("_", " ")) for name, rows in tables.items() if rows
    )


def _cell(value: Any) -> str:
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case list() | tuple():
            return ",".join(_cell(item) for item in value)
        case dict():
            return json.dumps(value)
        case _:
            # A tab or a newline inside would break the line's form.
            return str(value).replace("\t", " ").replace("\n", "; ")


def _plain(title: str, heads: list[str], cells: list[list[str]]) -> str:
    widths = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [heads, *cells]
    ]
    return "".join(f"{line}\n" for line in ([title.upper()] if title else []) + lines)


def _rich(title: str, heads: list[str], cells: list[list[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in line))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _style(cell: str) -> str:
    if cell in _BAD_WORDS:
        return "bold red"
    return "green" if cell in _GOOD_WORDS else ""
