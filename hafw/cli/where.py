"""Which nodes a command is about, and where their configuration is.

In this order: ``--node`` or HAFW_NODE; beside a running lab all of its nodes; on a machine with
one node that one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hafw.errors import StateError
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from hafw.config.model import ClusterConfig

__all__ = ["Scope", "find_scope", "require_root", "scope_options", "wait_option"]

DEFAULT_CONFIG = Path("/etc/hafw/cluster.yaml")


@dataclass(frozen=True, slots=True)
class Scope:
    """`config_file` is read only when a daemon cannot be asked: status must work beside a file
    that somebody is breaking just now."""

    nodes: list[str]
    config_file: Path

    def config(self) -> ClusterConfig:
        """Raises ConfigError."""
        from hafw.config.load import load_cluster

        return load_cluster(self.config_file)

    def cluster_name(self) -> str:
        """As the running hafwd knows it, else from the file. Raises ConfigError."""
        for node in self.nodes:
            name = _hafwd_record(NodePaths(node)).get("cluster")
            if isinstance(name, str):
                return name
        return self.config().name


def wait_option(default_s: float, help_text: str) -> Callable[..., Any]:
    """``--wait``, as `wait_s`; 0 does not wait."""
    return click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(0, 600),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help=help_text,
    )


def scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--node`` and ``--config`` for a command."""
    command = click.option(
        "--config",
        "config_file",
        envvar="HAFW_CONFIG",
        type=click.Path(dir_okay=False, path_type=Path),
        help="cluster.yaml, if the node's daemon cannot be asked for it.",
    )(command)
    return click.option("--node", envvar="HAFW_NODE", help="Only this node (also HAFW_NODE).")(
        command
    )


def find_scope(node: str | None, config_file: Path | None) -> Scope:
    """Raises StateError if it is not clear which node is meant."""
    run_root = NodePaths("lab").run.parent
    lab_file = run_root / "lab" / "cluster.yaml"
    if node is not None:
        return Scope([node], config_file or _config_of(node, lab_file))
    if lab_file.exists():
        scope = Scope([], config_file or lab_file)
        return Scope(list(scope.config().nodes), scope.config_file)
    found = sorted(path.parent.name for path in run_root.glob("*/hafwd.lock"))
    if len(found) == 1:
        return Scope(found, config_file or _config_of(found[0], lab_file))
    if not found:
        raise StateError(
            f"no node of hafw was started on this machine ({run_root} has none), and no lab "
            "runs; name one with --node"
        )
    raise StateError(f"this machine has the nodes {', '.join(found)}: name one with --node")


def _config_of(node: str, lab_file: Path) -> Path:
    named = _hafwd_record(NodePaths(node)).get("config")
    if isinstance(named, str):
        return Path(named)
    return lab_file if lab_file.exists() else DEFAULT_CONFIG


def _hafwd_record(paths: NodePaths) -> dict[str, Any]:
    """What the last hafwd of the node wrote about itself; empty if there was none."""
    try:
        record = json.loads((paths.run / "hafwd.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def require_root() -> None:
    """Raises StateError: the daemons' sockets lie where only root may go."""
    if os.geteuid() != 0:
        raise StateError(f"only root may talk to the daemons (uid is {os.geteuid()})")
