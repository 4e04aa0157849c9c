"""hafwctl cluster, hafwctl node: what the cluster has agreed on by Raft, and who belongs to it."""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hafw.cli.render import format_option, render
from hafw.cli.where import Scope, find_scope, require_root, scope_options
from hafw.errors import RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from cluster.assignment import Command
    from hafw.raft_messages import RaftStatus

__all__ = ["cluster", "node"]

TOKEN_MINUTES_MAX = 7 * 24 * 60


@click.group()
def cluster() -> None:
    """Members, history of moves, join tokens: what the nodes have agreed on."""


@click.group()
def node() -> None:
    """This node as a member of the cluster."""


@cluster.command()
@scope_options
@format_option
def members(node: str | None, config_file: Path | None, fmt: str) -> None:
    """Who belongs to the cluster, in which state, and who is heard."""
    require_root()
    from hafw.node.client import LocalClient, Unavailable
    from hafw.node.raft_rows import member_rows

    asked, status = _ask(find_scope(node, config_file))
    leased = LocalClient(NodePaths(asked)).ask_leased()
    rows = member_rows(status, None if isinstance(leased, Unavailable) else leased)
    click.echo(render(rows, fmt), nl=False)
    _warn(status)


@cluster.command()
@click.option("--group", help="Only this group.")
@click.option("--last", type=click.IntRange(1), help="Only so many of the newest.")
@scope_options
@format_option
def history(
    group: str | None, last: int | None, node: str | None, config_file: Path | None, fmt: str
) -> None:
    """Which node took which group when, and why. Oldest first; the newest 200 are kept.

    Every reason but that of a planned move is what the taker heard at that moment.
    """
    require_root()
    from cluster.assignment import decode_state
    from hafw.node.raft_rows import history_rows

    scope = find_scope(node, config_file)
    _, status = _ask(scope)
    rows = history_rows(scope.config(), decode_state(status.state))
    rows = [row for row in rows if group in (None, row["group"])]
    click.echo(render(rows if last is None else rows[-last:], fmt), nl=False)
    _warn(status)


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
    asked, _ = _ask(find_scope(node, config_file))
    _propose(asked, AddToken(hash_token(made), round(now + 60 * minutes), round(now)))
    click.echo(made)
    click.echo(f"good for one hafwctl node join within {minutes} minutes", err=True)


@node.command()
@click.argument("given", metavar="TOKEN")
@scope_options
def join(given: str, node: str | None, config_file: Path | None) -> None:
    """Be a member again after `leave`, with a TOKEN of hafwctl cluster token ("-": from stdin)."""
    require_root()
    from cluster.assignment import Join, hash_token

    name = _own(find_scope(node, config_file))
    text = sys.stdin.readline().strip() if given == "-" else given
    _propose(name, Join(name, hash_token(text), round(time.time())))
    click.echo(f"{name} is a member of the cluster, online", err=True)


@node.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@scope_options
def leave(yes: bool, node: str | None, config_file: Path | None) -> None:
    """No longer be assigned anything. To come back takes a token.

    Refused while this node is ACTIVE for a group (move it away first) and for the last gateway
    that is online. The node goes on voting until it is taken out of cluster.yaml.
    """
    require_root()
    from cluster.assignment import Leave
    from hafw.node.client import LocalClient, Unavailable

    name = _own(find_scope(node, config_file))
    leased = LocalClient(NodePaths(name)).ask_leased()
    if not isinstance(leased, Unavailable) and any(group.active for group in leased.groups):
        raise RefusedError(
            f"{name} is ACTIVE: move its groups away first, with hafwctl group move; "
            "nothing was changed"
        )
    click.echo(f"{name} leaves the cluster; it comes back by a token alone", err=True)
    if not yes:
        click.confirm("Leave?", abort=True, err=True)
    _propose(name, Leave(name))
    click.echo(f"{name} has left", err=True)


# ---- asking -------------------------------------------------------------------------------------


def _ask(scope: Scope) -> tuple[str, RaftStatus]:
    """The first node of the scope whose raftd answers; one that is not read-only, if there is
    one. Raises StateError."""
    from hafw.node.client import Unavailable
    from hafw.node.raft_client import RaftClient

    found: list[tuple[str, RaftStatus]] = []
    reasons = []
    for name in scope.nodes:
        answer = RaftClient(NodePaths(name)).status()
        if isinstance(answer, Unavailable):
            reasons.append(answer.reason)
        else:
            found.append((name, answer))
    if not found:
        raise StateError("; ".join(reasons))
    return next((pair for pair in found if not pair[1].read_only), found[0])


def _own(scope: Scope) -> str:
    if len(scope.nodes) != 1:
        raise StateError(f"there are the nodes {', '.join(scope.nodes)}: name one with --node")
    return scope.nodes[0]


def _propose(name: str, command: Command) -> None:
    """Raises StateError if raftd cannot be asked, RefusedError if the cluster refuses."""
    from hafw.node.client import Unavailable
    from hafw.node.raft_client import RaftClient

    answer = RaftClient(NodePaths(name)).propose(command)
    if isinstance(answer, Unavailable):
        doubt = "" if answer.state == "down" else "; whether it is done is not known"
        raise StateError(answer.reason + doubt)
    if not answer.ok:
        end = "nothing was changed" if answer.known else "whether it is done is not known"
        raise RefusedError(f"{answer.reason}; {end}")


def _warn(status: RaftStatus) -> None:
    for alarm in status.alarms:
        click.echo(f"hafwctl: {alarm}", err=True)
