"""Asking the Raft of a node from the command line. Imported by the commands that need it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from hafw.errors import RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from cluster.agreed import Command
    from hafw.cli.where import Scope
    from hafw.raft_messages import RaftStatus

__all__ = ["ask_raft", "own_node", "propose", "warn"]

POLL_S = 0.1


def ask_raft(scope: Scope, *, within_s: float = 0.0) -> tuple[str, RaftStatus]:
    """The first node of the scope whose raftd answers; one that is not read-only, if there is
    one, or comes to be one within that time: of a node that was just started, or beside an
    election. Raises StateError."""
    deadline = time.monotonic() + within_s
    told = False
    while True:
        late = time.monotonic() >= deadline
        try:
            name, status = _ask_once(scope)
        except StateError as error:
            if late:
                raise
            if not told:
                click.echo(f"{error}; waiting for it", err=True)
            told = True
        else:
            if late or not status.read_only:
                return name, status
        time.sleep(POLL_S)


def _ask_once(scope: Scope) -> tuple[str, RaftStatus]:
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


def own_node(scope: Scope) -> str:
    if len(scope.nodes) != 1:
        raise StateError(f"there are the nodes {', '.join(scope.nodes)}: name one with --node")
    return scope.nodes[0]


def propose(name: str, command: Command) -> None:
    """Have the cluster agree, through a change of Raft's leader too.

    Raises StateError if raftd cannot be asked, RefusedError if the cluster refuses."""
    from hafw.node.client import Unavailable
    from hafw.node.raft_client import RaftClient

    answer = RaftClient(NodePaths(name)).agree(command)
    if isinstance(answer, Unavailable):
        doubt = "" if answer.state == "down" else "; whether it is done is not known"
        raise StateError(answer.reason + doubt)
    if not answer.ok:
        end = "nothing was changed" if answer.known else "whether it is done is not known"
        raise RefusedError(f"{answer.reason}; {end}")


def warn(status: RaftStatus) -> None:
    for alarm in status.alarms:
        click.echo(f"hafwctl: {alarm}", err=True)
