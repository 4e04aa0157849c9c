"""How the daemons of a node that hafwd starts begin: arguments, cluster file, errors. Shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, ConfigProblem, HafwError

__all__ = ["daemon_main"]


def daemon_main(
    program: str, description: str, run: Callable[[ClusterConfig, str, Path], None]
) -> None:
    """``PROGRAM --node NAME --config FILE``: `run` with the checked configuration, the name of a
    node that is in it, and the file. Exits with 1 and one line on stderr by a HafwError."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--node", required=True, help="name of this node in the cluster file")
    parser.add_argument("--config", required=True, type=Path, help="cluster.yaml")
    arguments = parser.parse_args()
    try:
        config = load_cluster(arguments.config)
        if arguments.node not in config.nodes:
            names = ", ".join(sorted(config.nodes))
            problem = ConfigProblem("nodes", f"no node is named {arguments.node}", hint=names)
            raise ConfigError(str(arguments.config), [problem])
        run(config, arguments.node, arguments.config)
    except HafwError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"{program}: error: {line}\n")
        sys.exit(1)
