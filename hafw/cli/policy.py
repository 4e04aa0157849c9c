"""hafwctl policy: load a policy file, show what is in force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hafw.cli.render import format_option, render
from hafw.cli.where import find_scope, require_root, scope_options
from hafw.errors import RefusedError, StateError
from hafw.paths import NodePaths

__all__ = ["policy"]

APPLY_S_MAX = 130.0
"""hafwd gives the policy worker 120 s."""


@click.group()
def policy() -> None:
    """The policy of this node, or of all gateways of a running lab."""


@policy.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@scope_options
@format_option
def apply(file: Path, node: str | None, config_file: Path | None, fmt: str) -> None:
    """Load FILE into the kernel: all of it or nothing, on one gateway after the other.

    Stops at the first gateway that refuses it. It is in force until another one is applied; after
    a reboot hafwd loads the file that cluster.yaml names.
    """
    require_root()
    from hafw.node import api
    from hafw.node.client import Unavailable, ask_hafwd

    scope = find_scope(node, config_file)
    roles = scope.config().nodes
    rows: list[dict[str, Any]] = []
    for name in scope.nodes:
        if name in roles and roles[name].role != "gateway":
            continue
        request = api.PolicyApply(file=str(file.resolve()))
        reply = ask_hafwd(NodePaths(name), request, APPLY_S_MAX)
        done = "; ".join(f"in force on {row['node']}" for row in rows) or "nothing was changed"
        if isinstance(reply, Unavailable):
            raise StateError(f"{name}: {reply.reason} ({done})")
        if not reply.ok:
            raise RefusedError(f"{name}: {reply.error} ({done})")
        rows.append(reply.result)
    if not rows:
        raise RefusedError("there is no gateway among the nodes named: a witness has no policy")
    click.echo(render(rows, fmt), nl=False)


@policy.command()
@scope_options
@format_option
def show(node: str | None, config_file: Path | None, fmt: str) -> None:
    """What is in force, with its hash, and why not if it is not."""
    require_root()
    from hafw.cli.status import collect

    rows = collect(find_scope(node, config_file))["policy"]
    if not rows:
        raise RefusedError("there is no gateway among the nodes asked: a witness has no policy")
    click.echo(render(rows, fmt), nl=False)
    if any(row["state"] not in ("in force", "recorded") for row in rows):
        raise RefusedError("a policy is not in force as it should be")
