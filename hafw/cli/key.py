"""hafwctl key: the keys of a node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

__all__ = ["key"]


@click.group()
def key() -> None:
    """The keys of a node. Every node of a cluster has the same ones."""


@key.command()
@click.option("--node", required=True, envvar="HAFW_NODE", help="The node whose keys to make.")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Copy the keys from this folder (another node's, brought over safely).",
)
@click.option("--witness", is_flag=True, help="A witness: the lease key only.")
@click.option("--force", is_flag=True, help="Replace existing keys.")
def init(node: str, source: Path | None, witness: bool, force: bool) -> None:
    """Make the keys of a node, or copy those of another.

    The first node makes them. Every other one gets the same files: bring the folder
    /etc/hafw/NODE of the first over a channel you trust, and name it with --from. A witness gets
    the lease key and never the sync key.
    """
    from hafw.node.keys import init_keys
    from hafw.paths import NodePaths

    role: Literal["gateway", "witness"] = "witness" if witness else "gateway"
    for path in init_keys(NodePaths(node), role=role, source=source, force=force):
        click.echo(path)
