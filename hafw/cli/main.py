"""hafwctl: the command line. Subcommands are imported when they are used, so that `--help` is
fast: this module imports click and nothing heavier."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from hafw.errors import HafwError

__all__ = ["EXIT_REFUSED", "EXIT_USAGE", "cli", "main"]

EXIT_REFUSED = 1
EXIT_USAGE = 2

_COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:object, the line in --help)
    "status": ("hafw.cli.status:status", "The truth about this node, or about the whole lab."),
    "timers": ("hafw.cli.timers:timers", "How long a fault lasts at worst, and why."),
    "group": ("hafw.cli.group:group", "Groups (virtual gateways): move, force, order, preempt."),
    "cluster": ("hafw.cli.cluster:cluster", "Members, history of moves, join tokens."),
    "node": ("hafw.cli.node:node", "A node as a member: drain, maintenance, online, leave, join."),
    "policy": ("hafw.cli.policy:policy", "Load a policy file, show the one in force."),
    "check": ("hafw.cli.check:check", "Check a cluster.yaml (and its policy) without loading."),
    "sync": ("hafw.cli.sync:sync", "Replication: how it is, compare it now, fetch it anew."),
    "key": ("hafw.cli.key:key", "The keys of a node: make, copy, show, rotate."),
    "lab": ("hafw.cli.lab:lab", "A whole cluster in network namespaces of this machine."),
    "drill": ("hafw.cli.drill:drill", "Faults on purpose in the lab, measured."),
}


class LazyGroup(click.Group):
    """A group whose commands are named in `_COMMANDS` and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 click's
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 click's
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"hafwctl {version('hafw')}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Two or more Linux gateways that behave as one stateful firewall.

    Exit codes: 0 fine, 1 refused or unhealthy, 2 usage.
    """


def main(argv: list[str] | None = None) -> NoReturn:
    """Console script. An error that an operator can act on is one line, never a traceback."""
    try:
        result: Any = cli.main(args=argv, prog_name="hafwctl", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("hafwctl: aborted", err=True)
        sys.exit(EXIT_REFUSED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HafwError as error:
        for line in str(error).splitlines() or [""]:
            click.echo(f"hafwctl: error: {line}", err=True)
        sys.exit(EXIT_REFUSED)
    except BrokenPipeError:
        sys.stderr.close()  # The reader (head, less) went away: nobody is left to tell.
        sys.exit(EXIT_REFUSED)
    # Without standalone mode click returns the code of ctx.exit(); a command returns None.
    sys.exit(result if isinstance(result, int) else 0)
