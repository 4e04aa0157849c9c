"""hafwctl cluster voters: who votes for leases, and changing that by one voter at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hafw.cli.render import format_option, render
from hafw.cli.where import Scope, find_scope, require_root, scope_options
from hafw.errors import RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from hafw.config.model import ClusterConfig
    from hafw.messages import LeasedStatus

__all__ = ["voters"]


@click.command()
@click.option("--add", metavar="NODE", help="Let NODE, of cluster.yaml, vote from now on.")
@click.option("--remove", metavar="NODE", help="Let NODE vote no longer.")
@click.option("--force", is_flag=True, help="Even if too few of the new voters are heard.")
@scope_options
@format_option
def voters(
    add: str | None,
    remove: str | None,
    force: bool,
    node: str | None,
    config_file: Path | None,
    fmt: str,
) -> None:
    """Who votes for leases; with --add or --remove, change it by one node.

    A change comes into force once majorities of the old and of the new voters have it on disk,
    two seconds after. Until then it is shown as "next", with the nodes that have stored it. It
    cannot be taken back; the next change waits for it.
    """
    require_root()
    scope = find_scope(node, config_file)
    config = scope.config()
    asked, leased = _ask(scope)
    if add is not None or remove is not None:
        if add is not None and remove is not None:
            raise RefusedError("one node at a time: --add or --remove")
        _change(config, asked, leased, add, remove, force=force)
        _, leased = _ask(scope)
    click.echo(render(_rows(config, leased), fmt), nl=False)


def _ask(scope: Scope) -> tuple[str, LeasedStatus]:
    """The first node of the scope whose leased answers. Raises StateError."""
    from hafw.node.client import LocalClient, Unavailable

    reasons = []
    for name in scope.nodes:
        answer = LocalClient(NodePaths(name)).ask_leased()
        if not isinstance(answer, Unavailable):
            return name, answer
        reasons.append(f"{name}: {answer.reason}")
    raise StateError("; ".join(reasons))


def _change(
    config: ClusterConfig,
    asked: str,
    leased: LeasedStatus,
    add: str | None,
    remove: str | None,
    *,
    force: bool,
) -> None:
    from hafw.messages import VotersRequest
    from hafw.node.client import LocalClient, Unavailable

    name = add or remove
    assert name is not None
    current = leased.voters
    if current is None:
        raise StateError(f"{asked} runs a leased of another release")
    if name not in config.nodes:
        raise RefusedError(f"{name} is not in cluster.yaml; there are {', '.join(config.nodes)}")
    number = config.nodes[name].id
    if (number in current.members) is (add is not None):
        raise RefusedError(f"{name} {'votes' if add else 'does not vote'} already")
    members = sorted(set(current.members) ^ {number})
    if not members:
        raise RefusedError(f"{name} is the last voter")
    heard = {peer.node_id for peer in leased.peers if peer.alive} | {leased.node_id}
    if len(heard.intersection(members)) < len(members) // 2 + 1 and not force:
        raise RefusedError(
            f"{asked} hears too few of the voters that there would be: nobody could hold a group "
            "(--force if that is meant); nothing was changed"
        )
    active = {group.holder_id for group in leased.groups}
    if remove is not None and number in active and not force:
        raise RefusedError(f"{name} is ACTIVE: move its groups away first; nothing was changed")
    reply = LocalClient(NodePaths(asked)).ask_voters(VotersRequest(current.id + 1, members))
    if isinstance(reply, Unavailable):
        raise StateError(f"{reply.reason}; whether it is stored is not known")
    if reply.reason:
        raise RefusedError(f"{reply.reason}; nothing was changed")


def _rows(config: ClusterConfig, leased: LeasedStatus) -> list[dict[str, object]]:
    found = (("in force", leased.voters), ("next", leased.voters_next))
    return [
        {
            "set": voters.id,
            "state": state,
            "voters": [config.node_name(node) for node in voters.members],
            "stored_by": [config.node_name(node) for node in voters.stored_by],
            "settles_ms": voters.settles_ms,
        }
        for state, voters in found
        if voters is not None
    ]
