"""The page of all commands in the repository is the one that the commands give."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hafw.cli.main import _COMMANDS
from hafw.cli.reference import commands, main, page
from hafw.config.reference import main as main_of_config

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


@pytest.mark.parametrize("writes", [main, main_of_config])
def test_asked_for_help_it_writes_no_file(
    writes: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for said in ("--help", "--yes"):
        assert CliRunner().invoke(writes, [said]).output.startswith("Usage:")
    assert not list(tmp_path.iterdir())
