"""hafwctl group: what can be done with a virtual gateway by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.cli.where import Scope, find_scope, require_root, scope_options
from hafw.errors import HafwError, RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from cluster.agreed import Command, Member
    from hafw.node.status_rows import Document

__all__ = ["group"]


@click.group()
def group() -> None:
    """Groups: a virtual gateway each, with one ACTIVE node."""


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("target", metavar="NODE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 60),
    default=0.0,
    metavar="SECONDS",
    help="Wait this long for NODE to be synced, instead of refusing at once.",
)
@scope_options
def move(
    name: str, target: str, yes: bool, wait_s: float, node: str | None, config_file: Path | None
) -> None:
    """Hand GROUP over to NODE, established flows and all.

    Says what will move and asks. Refused, and nothing changed, if NODE is not synced. First
    packets of new flows wait some milliseconds, until NODE has taken over.
    """
    require_root()
    from hafw.cli.status import collect

    scope = find_scope(node, config_file)
    document = collect(scope)
    rows = [row for row in document["groups"] if row["group"] == name]
    if not rows:
        known = ", ".join(dict.fromkeys(row["group"] for row in document["groups"]))
        raise RefusedError(f"no group is named {name}; there are {known}")
    holder = _holder(name, rows)
    if holder == target:
        click.echo(f"group {name} is already ACTIVE on {target}; nothing to move", err=True)
        return
    _require_candidate(scope, name, target)
    _require_fit(scope, rows[0], name, target, wait_s)
    # The holder's leased if it is on this machine; any other forwards the wish to the holder's.
    asked = holder if NodePaths(holder).run.is_dir() else scope.nodes[0]
    click.echo(_what_moves(document, name, holder, target, rows[0]), err=True)
    if not yes:
        click.confirm("Move it?", abort=True, err=True)
    _report(name, target, _ask_for_move(scope, asked, name, target, wait_s))


@group.command("force-active")
@click.argument("name", metavar="GROUP")
@click.argument("target", metavar="NODE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@scope_options
def force_active(
    name: str, target: str, yes: bool, node: str | None, config_file: Path | None
) -> None:
    """Make NODE ACTIVE for GROUP although it is not synced, not the best, or being drained.

    Run it on NODE. Overrides: sync state of NODE and of the holder (flows without a replica on
    NODE are lost), the group's order, a drain. Never overrides: the votes of a majority, the
    running lease of a node that is not heard, maintenance. So there are never two.
    """
    require_root()
    scope = find_scope(node, config_file)
    if not NodePaths(target).run.is_dir():
        raise StateError(f"a group is forced to {target} on {target} itself: run this there")
    _require_candidate(scope, name, target)
    _require_state(scope, target, force=True)
    click.echo(
        f"group {name} goes to {target} whether or not it is synced: flows of which it has no "
        "replica are lost. Not overridden: a majority must vote for it, so that there are never "
        "two ACTIVE nodes",
        err=True,
    )
    if not yes:
        click.confirm("Force it?", abort=True, err=True)
    _report(name, target, _ask_for_move(scope, target, name, target, 0.0, force=True))


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("nodes", metavar="NODE...", nargs=-1)
@click.option("--reset", is_flag=True, help="cluster.yaml's order again.")
@scope_options
def order(
    name: str, nodes: tuple[str, ...], reset: bool, node: str | None, config_file: Path | None
) -> None:
    """Who comes first for GROUP: all its candidates, best first.

    Kept by Raft, through restarts, until cluster.yaml's own order of the group changes. Moves
    nothing by itself, unless the group has `preempt`.
    """
    from cluster.agreed import SetOrder

    if reset == bool(nodes):
        raise click.UsageError("name all candidates, or --reset")
    _agree(node, config_file, SetOrder(name, nodes))
    what = "that of cluster.yaml" if reset else ", ".join(nodes)
    click.echo(f"the order of group {name} is {what}: hafwctl cluster groups", err=True)


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("wanted", metavar="on|off", type=click.Choice(["on", "off"]))
@click.option(
    "--after",
    "after_s",
    type=click.FloatRange(1, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the better node must have been fit without a break.",
)
@scope_options
def preempt(
    name: str, wanted: str, after_s: float, node: str | None, config_file: Path | None
) -> None:
    """Whether GROUP goes back to a better node of its order by itself. Off unless set.

    The move back is a planned one: nothing is lost, and it is not made while the better node is
    not synced.
    """
    from cluster.agreed import SetGroup

    _agree(node, config_file, SetGroup(name, wanted == "on", after_s))
    delay = f", after {after_s:g} s" if wanted == "on" else ""
    click.echo(f"preempt of group {name} is {wanted}{delay}: hafwctl cluster groups", err=True)


def _agree(node: str | None, config_file: Path | None, command: Command) -> None:
    """Raises RefusedError, StateError."""
    require_root()
    from hafw.cli.raft_asking import ask_raft, propose

    asked, _ = ask_raft(find_scope(node, config_file))
    propose(asked, command)


def _report(name: str, target: str, result: dict[str, Any]) -> None:
    """Raises RefusedError if the group is not on its target."""
    if not result["moved"]:
        after = (
            "the lease was given up, and somebody claims it by rank"
            if result["released"]
            else "nothing was changed"
        )
        raise RefusedError(f"group {name} was not moved: {result['reason']}; {after}")
    click.echo(f"group {name} is ACTIVE on {target} with epoch {result['epoch']}", err=True)


def _require_candidate(scope: Scope, name: str, target: str) -> None:
    """Before anything is announced. If the configuration cannot be read, hafwd will tell."""
    try:
        config = scope.config()
    except HafwError:
        return
    order = config.groups[name].order if name in config.groups else []
    if order and target not in order:
        raise RefusedError(
            f"{target} is no candidate for group {name}; candidates are {', '.join(order)}"
        )


def _require_state(scope: Scope, target: str, *, force: bool) -> Member | None:
    """By what is agreed on of the target. Without Raft nothing speaks against it."""
    from cluster.agreed import decode_state
    from cluster.assignment import find_member
    from hafw.cli.raft_asking import ask_raft
    from hafw.node.raft_rows import target_problem

    try:
        _, raft = ask_raft(scope)
    except StateError:
        return None
    state = decode_state(raft.state)
    problem = target_problem(state, target, force=force)
    if problem:
        raise RefusedError(f"{problem}; nothing was changed")
    return find_member(state, target)


def _require_fit(scope: Scope, row: dict[str, Any], name: str, target: str, wait_s: float) -> None:
    """Before anything is announced, as far as it can be known here; the holder decides."""
    from hafw.node.client import LocalClient, Unavailable
    from hafw.node.mover import fit_problem

    member = _require_state(scope, target, force=False)
    holder = row["holder"]
    leased = LocalClient(NodePaths(str(holder))).ask_leased() if holder else None
    if member is None or wait_s or leased is None or isinstance(leased, Unavailable):
        return
    problem = fit_problem(leased, scope.config().groups[name].index, member)
    if problem:
        raise RefusedError(f"group {name} stays where it is: {problem}; nothing was changed")


def _holder(name: str, rows: list[dict[str, Any]]) -> str:
    """The node whose gate is open, else the one that the nodes' leased name. RefusedError."""
    active = [row["node"] for row in rows if row["gate"] == "open" or row["role"] == "ACTIVE"]
    named = [row["holder"] for row in rows if row["holder"] not in (None, "-")]
    candidates = list(dict.fromkeys(active or named))
    if len(candidates) != 1:
        who = " and ".join(candidates) or "nobody"
        raise RefusedError(f"group {name} is held by {who}: see hafwctl status")
    return str(candidates[0])


def _what_moves(
    document: Document, name: str, holder: str, target: str, row: dict[str, Any]
) -> str:
    owned = next(
        (r["owned"] for r in document["sync"] if r["node"] == holder and r["group"] == name), None
    )
    flows = "its flows" if owned is None else f"its {owned} flows"
    return (
        f"group {name} (VRID {row['vrid']}: {', '.join(row['vips'])}) with {flows} moves "
        f"from {holder} to {target}"
    )


def _ask_for_move(
    scope: Scope, asked: str, name: str, target: str, wait_s: float, *, force: bool = False
) -> dict[str, Any]:
    from hafw.node import api
    from hafw.node.client import MOVE_MARGIN_S, Unavailable, ask_hafwd

    reply = ask_hafwd(
        NodePaths(asked),
        api.Move(group=name, target=target, wait_s=wait_s, force=force),
        wait_s + MOVE_MARGIN_S + 1.0,
    )
    if isinstance(reply, Unavailable):
        if reply.state == "silent":
            raise StateError(f"{asked}: {reply.reason}; whether the group moves is not known")
        return _ask_leased(scope, asked, name, target, wait_s, force=force)
    if not reply.ok:
        raise RefusedError(reply.error)
    return reply.result


def _ask_leased(
    scope: Scope, asked: str, name: str, target: str, wait_s: float, *, force: bool
) -> dict[str, Any]:
    """hafwd only relays: without it leased is asked directly."""
    from hafw.human import format_epoch
    from hafw.messages import MoveRequest
    from hafw.node.client import LocalClient, Unavailable
    from hafw.node.names import named

    config = scope.config()
    answer = LocalClient(NodePaths(asked)).move(
        MoveRequest(
            group=config.groups[name].index,
            target_id=config.nodes[target].id,
            wait_s=wait_s,
            force=force,
        )
    )
    if isinstance(answer, Unavailable):
        raise StateError(f"{asked}: hafwd is down and {answer.reason}")
    return {
        "moved": answer.moved,
        "released": answer.released,
        "epoch": format_epoch(answer.epoch),
        "reason": named(config, answer.reason),
    }
