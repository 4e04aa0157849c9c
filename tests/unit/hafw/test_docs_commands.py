"""Every `hafwctl` line that the pages show at a node's prompt is a command as it is today."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from hafw.cli.main import cli

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/operating").glob("*.md"))]
LINE = re.compile(r"^\w+# (?:.* )?hafwctl (.+?)(?: +(?:&&|\||>).*)?$", re.MULTILINE)
SHOWN = [(page, line) for page in PAGES for line in LINE.findall(page.read_text())]


def parse(arguments: list[str]) -> None:
    """As far as click would go before it calls the command."""
    command: click.Command = cli
    context = click.Context(cli, info_name="hafwctl")
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments[0])
        assert found is not None, arguments
        command, arguments = found, arguments[1:]
        context = click.Context(command, parent=context)
    command.make_context("hafwctl", arguments, parent=context.parent)


@pytest.mark.parametrize(
    ("page", "line"), SHOWN, ids=[f"{page.name}: {line}" for page, line in SHOWN]
)
def test_what_a_page_shows_is_a_command(
    page: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, *_: value)  # Files of a node.
    parse(shlex.split(line, comments=True))


def test_there_are_such_lines_and_a_wrong_one_is_found() -> None:
    assert len(SHOWN) > 30
    with pytest.raises(click.UsageError):
        parse(["cluster", "voters", "--ad", "wit"])
    with pytest.raises(AssertionError):
        parse(["cluster", "voter"])
