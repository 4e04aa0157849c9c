"""hafwctl key: the keys of a node; replacing the sync key while it is in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hafw.cli.render import format_option, render

if TYPE_CHECKING:
    from hafw.keyring import Keyring

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


@key.command()
@click.option("--node", required=True, envvar="HAFW_NODE", help="The node to ask.")
@format_option
def show(node: str, fmt: str) -> None:
    """Which sync keys this node and its peers open and seal with.

    Keys are shown by number and fingerprint. A row for each gateway: this node's from its file,
    the others' as their sealed beacons say.
    """
    from hafw.keyring import read_keyring
    from hafw.node.rotate import syncd_status
    from hafw.node.rotation import BEACON_MS_MAX, phase
    from hafw.paths import NodePaths

    paths = NodePaths(node)
    ring = read_keyring(paths.sync_key)
    status = syncd_status(paths)
    in_use = status is not None and (status.opens_keys, status.seals_key) == (
        ring.fingerprints,
        ring.seals,
    )
    stage = phase(ring)
    if not in_use:
        stage += ", syncd is down" if status is None else ", syncd uses other keys"
    rows = [_row(node, ring.fingerprints, ring.seals, None, stage)]
    for peer in status.peers if status is not None else []:
        heard = peer.beacon_age_ms is not None and peer.beacon_age_ms <= BEACON_MS_MAX
        if heard:
            rows.append(
                _row(peer.name, peer.opens_keys, peer.seals_key, peer.seals_key_s, "heard")
            )
        else:
            rows.append(_row(peer.name, {}, None, None, "not heard"))
    click.echo(render(rows, fmt), nl=False)


def _row(
    node: str, opens: dict[int, int], seals: int | None, seals_s: float | None, state: str
) -> dict[str, Any]:
    from hafw.keyring import show_fingerprint

    return {
        "node": node,
        "opens": [f"{id_}:{show_fingerprint(value)}" for id_, value in sorted(opens.items())],
        "seals": seals,
        "seals_s": None if seals_s is None else round(seals_s),
        "state": state,
    }


@key.group()
def rotate() -> None:
    """Replace the sync key while flows are replicated.

    \b
    begin    on one gateway: make the new key
    accept   on every other gateway: take it from a copy of that one's folder
    switch   on every gateway: seal with it, once all open it
    finish   on every gateway: drop the old one, once all seal with the new one
    abort    go back one step

    Each step changes this node only, refuses what would lose replication, and can be done again
    or left for tomorrow: between the steps everything works. hafwctl key show tells where all
    gateways are.
    """


_NODE = click.option("--node", required=True, envvar="HAFW_NODE", help="The node to change.")
_WITHOUT = click.option(
    "--without",
    multiple=True,
    metavar="PEER",
    help="Leave a gateway that is not heard behind: it will be refused until it has the new key.",
)


@rotate.command()
@_NODE
def begin(node: str) -> None:
    """Make a new key. Nothing is sealed with it yet."""
    ring = _step(node, "begin")
    click.echo(
        f"Next, on every other gateway: bring the folder of {node}'s keys there over a channel "
        "you trust, and\n  hafwctl key rotate accept --node PEER --from COPY\nthen on every "
        "gateway\n  hafwctl key rotate switch --node NODE",
        err=True,
    )
    _say(node, ring)


@rotate.command()
@_NODE
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A copy of the key folder of a gateway that has the new key.",
)
def accept(node: str, source: Path) -> None:
    """Take the new key from another gateway's folder. Nothing is sealed with it yet.

    A gateway that was away while the others finished a rotation gets back in by this, too.
    """
    ring = _step(node, "accept", source=source)
    if ring.other is not None:
        click.echo("Next, once every gateway has it: hafwctl key rotate switch", err=True)
    _say(node, ring)


@rotate.command()
@_NODE
@_WITHOUT
def switch(node: str, without: tuple[str, ...]) -> None:
    """Seal with the new key. Refused unless every other gateway opens it."""
    ring = _step(node, "switch", without=without)
    click.echo("Next, once every gateway has switched: hafwctl key rotate finish", err=True)
    _say(node, ring)


@rotate.command()
@_NODE
@_WITHOUT
def finish(node: str, without: tuple[str, ...]) -> None:
    """Drop the old key. Refused unless every other gateway seals with the new one."""
    _say(node, _step(node, "finish", without=without))


@rotate.command()
@_NODE
@_WITHOUT
def abort(node: str, without: tuple[str, ...]) -> None:
    """Go back one step: from switched to accepted, from accepted to before."""
    ring = _step(node, "abort", without=without)
    if ring.other is not None:
        click.echo("Next, once no gateway seals with the new key: abort again", err=True)
    _say(node, ring)


def _step(
    node: str,
    step: Literal["begin", "accept", "switch", "finish", "abort"],
    source: Path | None = None,
    without: tuple[str, ...] = (),
) -> Keyring:
    from hafw.cli.where import require_root
    from hafw.node.rotate import rotate as do
    from hafw.paths import NodePaths

    require_root()
    return do(NodePaths(node), step, source=source, without=without)


def _say(node: str, ring: Keyring) -> None:
    from hafw.keyring import fingerprint, show_fingerprint

    opens = " and ".join(f"{k.id} ({show_fingerprint(fingerprint(k.key))})" for k in ring.keys)
    plural = "s" if len(ring.keys) > 1 else ""
    click.echo(f"{node} opens with key{plural} {opens}, seals with {ring.seals}")
