"""hafwctl key: the keys of a node; replacing the sync key while it is in use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hafw.cli.render import format_option, render

if TYPE_CHECKING:
    from hafw.keyring import Keyring
    from hafw.paths import NodePaths

__all__ = ["key"]


@click.group()
def key() -> None:
    """The keys of a node. Every node of a cluster has the same ones."""


@key.command()
@click.option(
    "--node", required=True, envvar="HAFW_NODE", help="The node whose keys to make (or HAFW_NODE)."
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Copy the keys from this folder (another node's, brought over safely).",
)
@click.option("--witness", is_flag=True, help="A witness: lease and raft key.")
@click.option("--force", is_flag=True, help="Replace existing keys.")
@click.option("--missing", is_flag=True, help="Only those that are not there yet.")
def init(node: str, source: Path | None, witness: bool, force: bool, missing: bool) -> None:
    """Make the keys of a node, or copy those of another.

    The first node makes them. Every other one gets the same files: bring the folder
    /etc/hafw/NODE of the first over a channel you trust, and name it with --from. A witness gets
    the lease key and the raft key, and never the sync key.
    """
    from hafw.errors import RefusedError
    from hafw.node.keys import init_keys
    from hafw.paths import NodePaths

    if not witness and _is_witness(node):
        raise RefusedError(
            f"{node} is a witness: it must never have the sync key; add --witness. "
            "Nothing was changed"
        )
    role: Literal["gateway", "witness"] = "witness" if witness else "gateway"
    made = init_keys(NodePaths(node), role=role, source=source, force=force, missing=missing)
    for path in made:
        click.echo(path)


@key.command()
@click.option("--node", required=True, envvar="HAFW_NODE", help="The node to ask (or HAFW_NODE).")
@format_option
def show(node: str, fmt: str) -> None:
    """Which sync keys this node and its peers open and seal with.

    A row for each gateway: this node's from its file, the others' as their sealed beacons say.

    \b
    opens      NUMBER:FINGERPRINT of each key; the fingerprint tells keys apart and nothing else
    seals      the number of the key it seals with
    seals_s    for how long, as heard here
    state      rest: no rotation. accepted: it opens a new key. switched: it seals with it.
               not heard: nothing is known of it now. another key N: two rotations were begun
    """
    from hafw.keyring import read_keyring
    from hafw.node.rotate import syncd_status
    from hafw.node.rotation import conflicts, peers_of, phase, step_of
    from hafw.paths import NodePaths

    paths = NodePaths(node)
    _require_sync_key(paths)
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
    for peer in [] if status is None else peers_of(status):
        if not peer.heard:
            rows.append(_row(peer.name, {}, None, None, "not heard"))
            continue
        opens = dict(peer.opens or {})
        words = [step_of(opens, peer.seals)]
        words += [f"another key {key_id}" for _, key_id, _ in conflicts(ring.fingerprints, [peer])]
        rows.append(_row(peer.name, opens, peer.seals, peer.seals_s, ", ".join(words)))
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


def _is_witness(node: str) -> bool:
    """As the node's configuration says, if there is one here to read."""
    from hafw.cli.where import find_scope
    from hafw.errors import HafwError

    named = os.environ.get("HAFW_CONFIG")
    try:
        found = find_scope(node, Path(named) if named else None).config().nodes.get(node)
    except HafwError:
        return False
    return found is not None and found.role == "witness"


def _require_sync_key(paths: NodePaths) -> None:
    """Raises RefusedError or StateError where making a key would be the wrong advice."""
    from hafw.errors import RefusedError, StateError

    if _is_witness(paths.node):
        raise RefusedError(
            f"{paths.node} is a witness: it has no sync key, and must never get one"
        )
    if _is_missing(paths.etc):
        raise StateError(
            f"no keys of {paths.node} are on this machine ({paths.etc} does not exist): run this "
            f"on the machine of {paths.node}, or make its keys first (hafwctl key init --help)"
        )
    if _is_missing(paths.sync_key) and not _is_missing(paths.lease_key):
        raise StateError(
            f"{paths.etc} has a lease key and no sync key: these are the keys of a witness, which "
            "must never get one. If it is a gateway, copy another gateway's: hafwctl key init "
            f"--node {paths.node} --from COPY --force"
        )


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # Whoever opens it says why.
        return False
    return False


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
    gateways are. Every step wants --node, or HAFW_NODE in the environment.
    """


_NODE = click.option(
    "--node", required=True, envvar="HAFW_NODE", help="The node to change (or HAFW_NODE)."
)
_WITHOUT = click.option(
    "--without",
    multiple=True,
    metavar="PEER",
    help="Leave a gateway that was not heard for 3 s behind: it will be refused until it has the "
    "new key. Refused while it is heard.",
)


@rotate.command()
@_NODE
def begin(node: str) -> None:
    """Make a new key. Nothing is sealed with it yet.

    Refused while another gateway is heard to have a rotation under way.
    """
    _say(node, _step(node, "begin"))
    click.echo(
        f"Next, on every other gateway: bring the folder of {node}'s keys there over a channel "
        "you trust, and\n  hafwctl key rotate accept --node PEER --from COPY\nthen on every "
        "gateway\n  hafwctl key rotate switch --node NODE",
        err=True,
    )


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
    _say(node, ring)
    if ring.other is not None:
        _next("once every gateway has it, on each", "switch")


@rotate.command()
@_NODE
@_WITHOUT
def switch(node: str, without: tuple[str, ...]) -> None:
    """Seal with the new key. Refused unless every other gateway opens it."""
    _say(node, _step(node, "switch", without=without))
    _next("once every gateway has switched, on each", "finish")


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
    _say(node, ring)
    if ring.other is not None:
        _next("once no gateway seals with the new key, on each", "abort")


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
    paths = NodePaths(node)
    _require_sync_key(paths)
    return do(paths, step, source=source, without=without)


def _say(node: str, ring: Keyring) -> None:
    from hafw.keyring import show_keys

    plural = "s" if len(ring.keys) > 1 else ""
    opens = show_keys(ring.fingerprints)
    click.echo(f"{node} opens with key{plural} {opens}, seals with {ring.seals}")


def _next(when: str, step: str) -> None:
    """After the result, so that both are in this order where both go to one file."""
    click.echo(f"Next, {when}: hafwctl key rotate {step} --node NODE", err=True)
