"""hafwctl sync: how replication is, whether tables are equal now, fetching all of them again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.cli.main import EXIT_REFUSED
from hafw.cli.render import format_option, render
from hafw.cli.where import Scope, find_scope, require_root, scope_options
from hafw.errors import HafwError, RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from hafw.node.api import SyncResync, SyncVerify

__all__ = ["sync"]

Rows = list[dict[str, Any]]
RESYNC_WAIT_S = 300.0
LOOK_EVERY_S = 0.3


@click.group()
def sync() -> None:
    """Replication of flows between the gateways."""


@sync.command()
@scope_options
@format_option
@click.pass_context
def status(ctx: click.Context, node: str | None, config_file: Path | None, fmt: str) -> None:
    """Each group on each gateway: flows, in sync or why not, lag, repairs.

    Exit code 0 if every gateway could carry every group, 1 if one could not.
    """
    require_root()
    from hafw.cli.status import collect
    from hafw.node.sync_rows import sync_rows

    scope = find_scope(node, config_file)
    rows = sync_rows(collect(Scope(_gateways(scope), scope.config_file)))
    if not rows:  # Where no configuration can be read, the nodes' own words decide.
        raise _no_gateway(scope)
    click.echo(render(rows, fmt), nl=False)
    ctx.exit(0 if all(row["in_sync"] for row in rows) else EXIT_REFUSED)


@sync.command()
@scope_options
@format_option
@click.pass_context
def verify(ctx: click.Context, node: str | None, config_file: Path | None, fmt: str) -> None:
    """Compare now: each kernel's table with what syncd knows, and that with the holder's digest.

    \b
    missing     syncd knows a flow that the kernel has not
    stale       the kernel has another life of it, or windows that may be out of date
    left_over   the kernel has a flow that syncd does not know
    differing   of 256 digest buckets, those that differ from the holder's at its position seq

    Changes nothing: what digests find is repaired by itself within seconds. Exit code 0 if all is
    equal, 1 if anything differs or could not be compared.
    """
    require_root()
    scope = find_scope(node, config_file)
    gateways = _gateways(scope)
    with ThreadPoolExecutor(len(gateways)) as pool:
        parts = list(pool.map(lambda one: _verify(scope, one), gateways))
    rows = [row for part in parts for row in part]
    click.echo(render(rows, fmt), nl=False)
    ctx.exit(0 if all(row["verdict"] == "equal" for row in rows) else EXIT_REFUSED)


@sync.command()
@click.argument("target", metavar="NODE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--config",
    "config_file",
    envvar="HAFW_CONFIG",
    type=click.Path(dir_okay=False, path_type=Path),
    help="cluster.yaml, if the node's daemon cannot be asked for it.",
)
def resync(target: str, yes: bool, config_file: Path | None) -> None:
    """Fetch all flows of the groups that others hold into NODE again, and wait until it is done.

    Replication repairs itself; this is for when you do not believe it. Until it is done NODE is
    unsynced: the group does not move there while another synced gateway lives. Run it on the
    machine of NODE.
    """
    require_root()
    if not NodePaths(target).run.is_dir():
        raise StateError(f"{target} is not a node of this machine: run this command there")
    scope = find_scope(target, config_file)
    if target not in _gateways(scope):
        raise _no_gateway(Scope([target], scope.config_file))
    before = _done(scope, target)
    click.echo(
        f"{target} fetches all flows of the groups that others hold, and is unsynced until then",
        err=True,
    )
    if not yes:
        click.confirm("Fetch them?", abort=True, err=True)
    result = _resync(scope, target)
    for group, why in sorted(result["refused"].items()):
        click.echo(f"group {group} is not fetched: {why}", err=True)
    if not result["groups"]:
        raise RefusedError(f"{target} follows no group now; nothing was changed")
    _wait(scope, target, result["groups"], before)


def _gateways(scope: Scope) -> list[str]:
    """Of the scope. If the configuration cannot be read, each node is asked and says itself."""
    try:
        nodes = scope.config().nodes
    except HafwError:
        return scope.nodes
    unknown = [name for name in scope.nodes if name not in nodes]
    if unknown:
        raise StateError(f"{scope.config_file} has no node {unknown[0]}")
    found = [name for name in scope.nodes if nodes[name].role == "gateway"]
    if not found:
        raise _no_gateway(scope)
    return found


def _no_gateway(scope: Scope) -> RefusedError:
    return RefusedError(f"{', '.join(scope.nodes)} is no gateway: it holds no flows")


def _verify(scope: Scope, node: str) -> Rows:
    from hafw.node import api
    from hafw.node.client import VERIFY_S
    from hafw.node.sync_rows import unverified, verified

    try:
        result = _ask(scope, node, api.SyncVerify(), VERIFY_S)
    except HafwError as error:
        return [unverified(node, str(error))]
    return verified(node, result["groups"])


def _resync(scope: Scope, node: str) -> dict[str, Any]:
    from hafw.node import api
    from hafw.node.client import HAFWD_S

    return _ask(scope, node, api.SyncResync(), HAFWD_S)


def _ask(
    scope: Scope, node: str, request: SyncVerify | SyncResync, timeout_s: float
) -> dict[str, Any]:
    """hafwd relays to syncd; without it syncd is asked directly. Raises HafwError."""
    from hafw.messages import VerifyReply
    from hafw.node import api
    from hafw.node.client import LocalClient, Unavailable, ask_hafwd
    from hafw.node.sync_rows import resynced, verdicts

    paths = NodePaths(node)
    reply = ask_hafwd(paths, request, timeout_s + 1.0)
    if not isinstance(reply, Unavailable):
        if not reply.ok:
            raise RefusedError(f"{node}: {reply.error}")
        return reply.result
    if reply.state == "silent":
        raise StateError(f"{node}: {reply.reason}")
    client = LocalClient(paths)
    answer = client.verify() if isinstance(request, api.SyncVerify) else client.resync()
    if isinstance(answer, Unavailable):
        raise StateError(f"{node}: hafwd is down and {answer.reason}")
    if isinstance(answer, VerifyReply):
        return verdicts(scope.config(), answer)
    return resynced(scope.config(), answer)


def _counted(scope: Scope, node: str) -> tuple[int, dict[str, str]]:
    """Full snapshots fetched since syncd began, and of each group why it is not in sync."""
    from hafw.cli.status import collect

    document = collect(Scope([node], scope.config_file))
    count = next(
        (row["value"] for row in document["counters"] if row["counter"] == "snapshots_done"), 0
    )
    return count, {row["group"]: row["reason"] for row in document["sync"]}


def _done(scope: Scope, node: str) -> int:
    return _counted(scope, node)[0]


def _wait(scope: Scope, node: str, groups: list[str], before: int) -> None:
    began = time.monotonic()
    while True:
        count, reasons = _counted(scope, node)
        waiting = {group: reasons.get(group, "syncd is silent") for group in groups}
        waiting = {group: reason for group, reason in waiting.items() if reason}
        if not waiting and count >= before + len(groups):
            took_s = time.monotonic() - began
            click.echo(f"{node} has all of {', '.join(groups)} again ({took_s:.1f} s)", err=True)
            return
        if time.monotonic() - began > RESYNC_WAIT_S:
            why = "; ".join(f"group {group}: {reason}" for group, reason in waiting.items())
            raise StateError(f"{node} is not in sync after {RESYNC_WAIT_S:g} s: {why}")
        time.sleep(LOOK_EVERY_S)
