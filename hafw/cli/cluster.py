"""hafwctl cluster: what the nodes have agreed on by Raft, and who belongs to it."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import click

from hafw.cli.raft_asking import ask_raft, propose, warn
from hafw.cli.render import format_option, render
from hafw.cli.voters import voters
from hafw.cli.where import find_scope, require_root, scope_options
from hafw.paths import NodePaths

__all__ = ["cluster"]

TOKEN_MINUTES_MAX = 7 * 24 * 60


@click.group()
def cluster() -> None:
    """Members, history of moves, join tokens: what the nodes have agreed on."""


cluster.add_command(voters)


@cluster.command()
@scope_options
@format_option
def members(node: str | None, config_file: Path | None, fmt: str) -> None:
    """Who belongs to the cluster, in which state, and who is heard."""
    require_root()
    from hafw.node.client import LocalClient, Unavailable
    from hafw.node.raft_rows import member_rows

    asked, status = ask_raft(find_scope(node, config_file))
    leased = LocalClient(NodePaths(asked)).ask_leased()
    rows = member_rows(status, None if isinstance(leased, Unavailable) else leased)
    click.echo(render(rows, fmt), nl=False)
    warn(status)


@cluster.command()
@scope_options
@format_option
def groups(node: str | None, config_file: Path | None, fmt: str) -> None:
    """Each group's candidates in the order in force, and whether it falls back."""
    require_root()
    from cluster.agreed import decode_state
    from hafw.node.raft_rows import group_rows

    _, status = ask_raft(find_scope(node, config_file))
    click.echo(render(group_rows(decode_state(status.state)), fmt), nl=False)
    warn(status)


@cluster.command()
@click.option("--group", help="Only this group.")
@click.option("--last", type=click.IntRange(1), help="Only so many of the newest.")
@scope_options
@format_option
def history(
    group: str | None, last: int | None, node: str | None, config_file: Path | None, fmt: str
) -> None:
    """Which node took which group when, and why. Oldest first; the newest 200 are kept.

    Every reason but that of a planned move is what the taker heard at that moment. `when` is the
    moment of the record, by the taker's clock: a second after the move, later while Raft has no
    leader, as at a start of all.
    """
    require_root()
    from cluster.assignment import decode_state
    from hafw.node.raft_rows import history_rows

    scope = find_scope(node, config_file)
    _, status = ask_raft(scope)
    rows = history_rows(scope.config(), decode_state(status.state))
    rows = [row for row in rows if group in (None, row["group"])]
    click.echo(render(rows if last is None else rows[-last:], fmt), nl=False)
    warn(status)


@cluster.command()
@click.option(
    "--valid",
    "minutes",
    type=click.IntRange(1, TOKEN_MINUTES_MAX),
    default=60,
    show_default=True,
    metavar="MINUTES",
    help="How long it can be used.",
)
@scope_options
def token(minutes: int, node: str | None, config_file: Path | None) -> None:
    """Make a token with which one node that left can join again, once.

    It is shown here and nowhere else: the cluster keeps its hash.
    """
    require_root()
    from cluster.assignment import AddToken, hash_token

    made, now = secrets.token_urlsafe(16), time.time()
    asked, _ = ask_raft(find_scope(node, config_file))
    propose(asked, AddToken(hash_token(made), round(now + 60 * minutes), round(now)))
    click.echo(made)
    click.echo(f"good for one hafwctl node join within {minutes} minutes", err=True)
