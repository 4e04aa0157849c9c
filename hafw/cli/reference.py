"""The reference page of hafwctl's commands, from the commands themselves.

``python -m hafw.cli.reference`` writes docs/reference/commands.md; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from hafw.cli.main import cli

__all__ = ["commands", "page"]

WIDTH = 100
HEAD = """\
# `hafwctl`

Generated from the commands (`python -m hafw.cli.reference`); do not edit. In a checkout the
command is `.venv/bin/hafwctl`. `--node` can be given as HAFW_NODE in the environment, `--config`
as HAFW_CONFIG. Results go to standard output, words to standard error. Exit codes: 0 fine, 1
refused or unhealthy, 2 wrong usage.
"""


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command that does something, by its whole name, in the order of ``--help``."""
    # As long a line as the page has, wherever it is generated.
    top = click.Context(
        cli,
        info_name="hafwctl",
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **cli.context_settings,
    )
    yield from _below(cli, top)


def _below(
    group: click.Group, ctx: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None, name
        inner = click.Context(command, parent=ctx, info_name=name)
        if isinstance(command, click.Group):
            yield from _below(command, inner)
        else:
            yield inner.command_path, command, inner


def page() -> str:
    found = list(commands())
    lines = [HEAD, "| command | what |", "| --- | --- |"]
    lines += [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {command.get_short_help_str(WIDTH)} |"
        for name, command, _ in found
    ]
    for name, _, ctx in found:
        lines += ["", f"## {name}", "", "```", ctx.get_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("file", type=Path, default=Path("docs/reference/commands.md"))
def main(file: Path) -> None:
    """Write the page of all commands to FILE."""
    file.write_text(page())


if __name__ == "__main__":
    main()
