"""Build a lab and remove it: the steps in their order, and what survives an interruption.

`build` writes the state (incomplete) before it touches anything, so that `remove_all` knows what
to look for whatever moment the builder was killed at. The caller holds the lab's lock.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from cluster.gate_page import mount_bpffs
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import StateError
from hafw.instance import write_atomically
from hafw.lab import files, labd, machine, topology, wipe
from hafw.lab.files import LabState, lab_folder
from hafw.lab.inside import kill_all_in, namespace_inode, namespace_path
from hafw.lab.lab_clock import make_clocks
from hafw.lab.recipe import default_config_file
from hafw.lab.topology import Topology, namespace_of
from hafw.node.keys import init_keys
from hafw.paths import NodePaths

__all__ = ["build", "remove_all"]

LABD_START_WAIT_S = 10.0
LABD_STOP_WAIT_S = labd.STOP_WAIT_S + 3.0


def build(
    wanted: LabState, plan: Topology, config: ClusterConfig, document: str,
    policy: str | None,
) -> None:  # fmt: skip
    """Raises HafwError; what was made until then is left for `remove_all`."""
    lab_folder().mkdir(mode=0o755, parents=True, exist_ok=True)
    state = replace(wanted, conntrack_max_before=machine.low_conntrack_max())
    files.write_state(state)  # first of all, so that `remove_all` knows what to look for
    if state.conntrack_max_before is not None:
        machine.raise_conntrack_max()
    mount_bpffs()
    topology.build(plan)
    _write(lab_folder() / "cluster.yaml", document)
    if policy is not None:
        _write(lab_folder() / "policy.yaml", policy)
    keys_of: Path | None = None
    for name, node in sorted(config.nodes.items(), key=lambda item: item[1].role):
        paths = NodePaths(name)
        files.claim_node_folders(paths)  # gateways come first: a witness has no sync key
        init_keys(paths, role=node.role, source=keys_of)
        keys_of = keys_of or paths.etc
    if not state.bare:
        make_clocks(list(config.nodes))
    inodes = {name: namespace_inode(name) or 0 for name in plan.namespaces}
    state = replace(state, namespaces=inodes)
    files.write_state(state)
    if not state.bare:
        _start_labd(state)
    files.write_state(replace(state, complete=True))


def _start_labd(state: LabState) -> None:
    environment = {k: v for k, v in os.environ.items() if k != labd.GATE_ALWAYS_PASS}
    if "gate" in state.without:
        environment[labd.GATE_ALWAYS_PASS] = "1"
    log_file = lab_folder() / "labd.log"
    with log_file.open("ab") as log:
        starter = subprocess.run(
            [sys.executable, "-m", "hafw.lab.labd",
             "--config", str(lab_folder() / "cluster.yaml"), *state.nodes],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/",
            timeout=LABD_START_WAIT_S, check=False,
        )  # fmt: skip
    deadline = time.monotonic() + LABD_START_WAIT_S
    while starter.returncode == 0 and time.monotonic() < deadline:
        if labd.running_labd() is not None:
            return
        time.sleep(0.01)
    tail = log_file.read_text(errors="replace").strip().splitlines()[-1:]
    raise StateError(f"labd did not start: {' '.join(tail) or 'it wrote nothing'}")


def remove_all(source: Path) -> bool:
    """Remove whatever there is of a lab; False if there was nothing."""
    state = files.read_state()
    nodes, plan = _what_to_remove(state, source)
    present = [name for name in plan if namespace_path(name).exists()]
    if state is None and not present and not nodes and not lab_folder().exists():
        return False
    _stop_labd()
    kill_all_in(present)
    for node in nodes:
        if namespace_inode(namespace_of(node)) is not None:
            wipe.remove_vmac_devices(namespace_of(node))  # before their gates' pins
        machine.unmount_tmpfs(NodePaths(node).lib)
        files.remove_node_folders(node)
    topology.remove_namespaces(tuple(present))
    if state is not None and state.conntrack_max_before is not None:
        machine.restore_conntrack_max(state.conntrack_max_before)
    shutil.rmtree(lab_folder(), ignore_errors=True)
    if lab_folder().exists():
        raise StateError(f"cannot remove {lab_folder()}")
    return True


def _stop_labd() -> None:
    pid = labd.running_labd()
    if pid is None:
        return
    deadline = time.monotonic() + LABD_STOP_WAIT_S
    number = signal.SIGTERM
    while labd.running_labd() == pid:
        try:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        if time.monotonic() > deadline + 2:
            raise StateError(f"labd (pid {pid}) does not end, not even by SIGKILL")
        time.sleep(0.02)


def _what_to_remove(state: LabState | None, source: Path) -> tuple[list[str], list[str]]:
    """Nodes and namespaces. Without a state only what is marked as the lab's, or has the
    name of a lab's namespace, counts: a real node may have the name of one of the nodes."""
    hosts = {topology.CLIENT, topology.SERVER, topology.SWITCH}
    if state is not None:
        nodes = list(state.nodes)
        return nodes, sorted(namespace_of(name) for name in hosts.union(nodes))
    configured = list(load_cluster(default_config_file()).nodes)
    if source != default_config_file():
        configured += list(load_cluster(source).nodes)
    nodes = [
        name
        for name in dict.fromkeys(configured)
        if files.is_marked(name) or namespace_path(namespace_of(name)).exists()
    ]
    return nodes, sorted(namespace_of(name) for name in hosts.union(configured))


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), mode=0o644)
