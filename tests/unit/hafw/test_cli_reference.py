"""The page of all commands in the repository is the one that the commands give."""

from __future__ import annotations

from pathlib import Path

import click

from hafw.cli.main import _COMMANDS
from hafw.cli.reference import commands, page

FILE = Path(__file__).resolve().parents[3] / "docs/reference/commands.md"


def test_the_page_is_up_to_date() -> None:
    assert FILE.read_text() == page(), "run python -m hafw.cli.reference"


def test_every_command_and_every_option_says_what_it_does() -> None:
    named = set()
    for name, command, _ in commands():
        named.add(name.split()[1])
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name}: {parameter.name}"
    assert named == set(_COMMANDS)
