"""hafwd: the process around `hafw.node.node.Node`: arguments, start-up checks, signals.

Errors an operator can act on are lines on stderr and exit code 1. Start-up refuses, in this
order: a wrong configuration, an unknown node name, not being root, packages of different folders,
a kernel that lacks something, a second instance.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import msgspec

from hafw.config.load import load_cluster
from hafw.cpus import plan_cpus, usable_cpus
from hafw.errors import HafwError, StateError
from hafw.instance import claim_instance, write_atomically
from hafw.logs import configure_logs
from hafw.node.node import Node
from hafw.node.parts import Parts, real_parts
from hafw.paths import NodePaths

__all__ = ["check_one_folder", "main", "parse_arguments", "run_hafwd"]

UNSAFE_GATE = "HAFW_UNSAFE_GATE_ALWAYS_PASS"


def main(argv: list[str] | None = None) -> NoReturn:
    """Console script."""
    arguments = parse_arguments(argv)
    try:
        run_hafwd(arguments, real_parts())
    except HafwError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"hafwd: error: {line}\n")
        sys.exit(1)
    sys.exit(0)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hafwd", description="Brings a node of the cluster up and supervises its daemons."
    )
    parser.add_argument("--node", required=True, help="the name of this node in the file")
    parser.add_argument("--config", required=True, type=Path, help="cluster.yaml")
    parser.add_argument(
        "--stop-children-on-exit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on SIGTERM stop hafw-leased and hafw-syncd too; without it, and always after "
        "SIGKILL, they go on and the next hafwd takes them over",
    )
    return parser.parse_args(argv)


def run_hafwd(arguments: argparse.Namespace, parts: Parts) -> None:
    """Until SIGTERM or SIGINT. Raises HafwError if the node cannot be run at all."""
    config_file: Path = arguments.config.absolute()
    config = load_cluster(config_file)
    name: str = arguments.node
    if name not in config.nodes:
        known = ", ".join(config.nodes)
        raise StateError(f"{config_file}: no node is named {name}; its nodes are {known}")
    if os.geteuid() != 0:
        raise StateError(f"hafwd must run as root, not as uid {os.geteuid()}")
    check_one_folder()
    role = config.nodes[name].role
    if lacking := parts.missing_features(role):
        raise StateError("\n".join(f"cannot be a {role}: {line}" for line in lacking))
    os.umask(0o077)
    paths = NodePaths(name)
    with claim_instance(paths, "hafwd"):
        log = configure_logs("hafwd", name)
        cpus = plan_cpus(config.cpus, usable_cpus())
        os.sched_setaffinity(0, cpus.hafwd)
        # `hafwctl` on this machine finds the configuration by it.
        write_atomically(
            paths.run / "hafwd.json",
            msgspec.json.encode({"config": str(config_file), "cluster": config.name}),
            mode=0o600,
        )
        log.info("hafwd_started", config=str(config_file), role=role)
        unsafe = os.environ.get(UNSAFE_GATE, "") not in ("", "0")
        if unsafe:
            log.error("unsafe_gate_always_passes", variable=UNSAFE_GATE)

        async def run() -> None:
            node = Node(config, config_file, name, paths, parts, cpus, log, unsafe_gate=unsafe)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, node.stop, arguments.stop_children_on_exit)
            loop.add_signal_handler(signal.SIGHUP, node.reload_policy)
            await node.run()

        asyncio.run(run())
        log.info("hafwd_stopped", children_stopped=arguments.stop_children_on_exit)


def check_one_folder() -> None:
    """hafw, cluster and sync have generic names: they must come from one installation.
    Raises StateError."""
    folders: dict[str, Path] = {}
    for package in ("hafw", "cluster", "sync"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise StateError(f"the package {package} is not installed beside hafw")
        folders[package] = Path(spec.origin).resolve().parent.parent
    if len(set(folders.values())) > 1:
        where = ", ".join(f"{package} in {folder}" for package, folder in folders.items())
        raise StateError(
            f"hafw's packages come from different folders ({where}); install hafw into an "
            "environment of its own and start it by its console scripts"
        )
