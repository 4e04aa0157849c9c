"""``hafw-syncd``: one process a gateway that keeps every peer's kernel able to take over. Shell.

What it does is in `sync.loop`; here is how it starts, and how it says that it cannot.
"""

from __future__ import annotations

import resource
import signal
from pathlib import Path

from hafw.config.model import ClusterConfig
from hafw.daemon_main import daemon_main
from hafw.errors import StateError
from hafw.instance import claim_instance
from hafw.keyring import read_keyring
from hafw.logs import configure_logs
from hafw.paths import NodePaths
from sync.loop import Syncd

__all__ = ["main"]


def _raise_descriptor_limit() -> None:
    """Strangers' connections cost a descriptor each until they are closed (`sync.snapshot`)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(config: ClusterConfig, name: str, file: Path) -> None:
    if (role := config.nodes[name].role) != "gateway":
        raise StateError(f"{name} is a {role}: only gateways replicate flows")
    if not config.sync.enabled:
        raise StateError(f"{file}: sync.enabled is false")
    paths = NodePaths(name)
    ring = read_keyring(paths.sync_key)
    log = configure_logs("syncd", name)
    _raise_descriptor_limit()
    with claim_instance(paths, "syncd"):
        syncd = Syncd(config, name, ring, paths, log)
        signal.signal(signal.SIGTERM, syncd.stop)
        signal.signal(signal.SIGINT, syncd.stop)
        signal.signal(signal.SIGHUP, syncd.reload)
        try:
            syncd.run()
        finally:
            syncd.close()


def main() -> None:
    """``hafw-syncd --node NAME --config FILE``: in the node's network namespace, as root.
    SIGHUP: read the sync keys again."""
    daemon_main("hafw-syncd", "Replicates conntrack entries. Started by hafwd.", _run)


if __name__ == "__main__":
    main()
