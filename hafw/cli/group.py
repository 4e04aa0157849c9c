"""hafwctl group: what can be done with a virtual gateway by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.cli.where import Scope, find_scope, require_root, scope_options
from hafw.errors import HafwError, RefusedError, StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
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
    # The holder's leased if it is on this machine; any other forwards the wish to the holder's.
    asked = holder if NodePaths(holder).run.is_dir() else scope.nodes[0]
    click.echo(_what_moves(document, name, holder, target, rows[0]), err=True)
    if not yes:
        click.confirm("Move it?", abort=True, err=True)
    result = _ask_for_move(scope, asked, name, target, wait_s)
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
    scope: Scope, asked: str, name: str, target: str, wait_s: float
) -> dict[str, Any]:
    from hafw.node import api
    from hafw.node.client import MOVE_MARGIN_S, Unavailable, ask_hafwd

    reply = ask_hafwd(
        NodePaths(asked),
        api.Move(group=name, target=target, wait_s=wait_s),
        wait_s + MOVE_MARGIN_S + 1.0,
    )
    if isinstance(reply, Unavailable):
        if reply.state == "silent":
            raise StateError(f"{asked}: {reply.reason}; whether the group moves is not known")
        return _ask_leased(scope, asked, name, target, wait_s)
    if not reply.ok:
        raise RefusedError(reply.error)
    return reply.result


def _ask_leased(scope: Scope, asked: str, name: str, target: str, wait_s: float) -> dict[str, Any]:
    """hafwd only relays: without it leased is asked directly."""
    from hafw.human import format_epoch
    from hafw.messages import MoveRequest
    from hafw.node.client import LocalClient, Unavailable

    config = scope.config()
    answer = LocalClient(NodePaths(asked)).move(
        MoveRequest(
            group=config.groups[name].index, target_id=config.nodes[target].id, wait_s=wait_s
        )
    )
    if isinstance(answer, Unavailable):
        raise StateError(f"{asked}: hafwd is down and {answer.reason}")
    return {
        "moved": answer.moved,
        "released": answer.released,
        "epoch": format_epoch(answer.epoch),
        "reason": answer.reason,
    }
