"""``hafw-syncd``: one process a gateway that keeps every peer's kernel able to take over. Shell.

What it does is in `sync.loop`; here is how it starts, and how it says that it cannot.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from pathlib import Path

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, ConfigProblem, HafwError, StateError
from hafw.instance import claim_instance
from hafw.keyring import read_keyring
from hafw.logs import configure_logs
from hafw.paths import NodePaths
from sync.loop import Syncd

__all__ = ["main"]


def _load(config_file: Path, node_name: str) -> ClusterConfig:
    config = load_cluster(config_file)
    node = config.nodes.get(node_name)
    if node is None:
        names = ", ".join(sorted(config.nodes))
        problem = ConfigProblem("nodes", f"no node is named {node_name}", hint=f"one of {names}")
        raise ConfigError(str(config_file), [problem])
    if node.role != "gateway":
        raise StateError(f"{node_name} is a {node.role}: only gateways replicate flows")
    if not config.sync.enabled:
        raise StateError(f"{config_file}: sync.enabled is false")
    return config


def _raise_descriptor_limit() -> None:
    """Strangers' connections cost a descriptor each until they are closed (`sync.snapshot`)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """``hafw-syncd --node NAME --config FILE``: in the node's network namespace, as root.
    SIGHUP: read the sync keys again."""
    parser = argparse.ArgumentParser(
        prog="hafw-syncd", description="Replicates conntrack entries. Started by hafwd."
    )
    parser.add_argument("--node", required=True, help="name of this node in the cluster file")
    parser.add_argument("--config", required=True, type=Path, help="cluster.yaml")
    arguments = parser.parse_args()
    try:
        config = _load(arguments.config, arguments.node)
        paths = NodePaths(arguments.node)
        ring = read_keyring(paths.sync_key)
        log = configure_logs("syncd", arguments.node)
        _raise_descriptor_limit()
        with claim_instance(paths, "syncd"):
            syncd = Syncd(config, arguments.node, ring, paths, log)
            signal.signal(signal.SIGTERM, syncd.stop)
            signal.signal(signal.SIGINT, syncd.stop)
            signal.signal(signal.SIGHUP, syncd.reload)
            try:
                syncd.run()
            finally:
                syncd.close()
    except HafwError as error:
        print(f"hafw-syncd: error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
