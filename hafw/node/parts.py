"""Everything outside itself that hafwd starts or asks, in one table.

The table exists so that hafwd can be tried as a whole with other programs in its place; each
entry's default is the real thing. Imports are late: pyroute2 alone costs 150 ms.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hafw.config.model import ClusterConfig
from hafw.errors import StateError

__all__ = ["POLICY_TABLES", "Parts", "Role", "policy_in_kernel", "real_parts"]

Role = Literal["gateway", "witness"]
POLICY_TABLES = ("hafw_policy", "hafw_state", "hafw_cluster")


@dataclass(frozen=True, slots=True)
class Parts:
    """`children`, `setup` and `policy` are command lines without ``--node N --config FILE``."""

    children: Mapping[str, tuple[str, ...]]
    """By daemon: leased, syncd, raftd."""
    setup: tuple[str, ...]
    policy: tuple[str, ...]
    missing_features: Callable[[Role], list[str]]
    """What this kernel and process lack for a node of that role."""
    check_node: Callable[[ClusterConfig, str, bool], tuple[list[str], list[str]]]
    """What is wrong with devices, gate and sysctls, and what with the system's interfaces; called
    in a thread. True: the gate is to pass always (a drill)."""
    policy_in_kernel: Callable[[], bool]
    """Whether our tables are loaded. Raises KernelError."""
    set_forwarding: Callable[[bool], None]
    """Raises KernelError."""


def real_parts() -> Parts:
    """Raises StateError if a console script is missing."""
    return Parts(
        children={
            "leased": (_script("hafw-leased"),),
            "syncd": (_script("hafw-syncd"),),
            "raftd": (_script("hafw-raftd"),),
        },
        setup=(sys.executable, "-m", "hafw.node.setup"),
        policy=(sys.executable, "-m", "hafw.policy.worker"),
        missing_features=_missing_features,
        check_node=_check_node,
        policy_in_kernel=policy_in_kernel,
        set_forwarding=_set_forwarding,
    )


def _script(name: str) -> str:
    """The console script of the environment that hafwd itself runs in, else that of PATH."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise StateError(f"{name} is neither beside {sys.executable} nor in PATH: install hafw")
    return found


def _missing_features(role: Role) -> list[str]:
    from hafw.kernel.features import missing_features

    return missing_features(role)


def _check_node(
    config: ClusterConfig, node: str, gate_always_pass: bool
) -> tuple[list[str], list[str]]:
    from hafw.node.setup import find_problems

    return find_problems(config, node, gate_always_pass=gate_always_pass)


def policy_in_kernel() -> bool:
    """All our tables, in the calling thread's network namespace. Raises KernelError."""
    from hafw.kernel.nft_tables import inet_table_exists

    return all(inet_table_exists(name) for name in POLICY_TABLES)


def _set_forwarding(on: bool) -> None:
    from hafw.kernel import sysctl

    if on:
        sysctl.enable_forwarding()
        return
    sysctl.disable_forwarding()
