"""`Lab`: a cluster in network namespaces of one machine, for people, drills and tests.

The facade over the parts: the network (`topology`), the machine (`machine`), files and lock
(`files`), the supervisor (`labd`), faults (`silence`) and what a power cut takes (`wipe`)::

    lab = Lab()
    lab.up()
    lab.wait_ready(10)
    lab.silence("gw1")            # a power cut, part one: no frame in or out
    lab.power_off("gw1")          # part two: processes and kernel state are gone
    lab.heal("gw1"); lab.start("gw1")
    lab.down()

Everything but `up` and `down` may be used from several threads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, RefusedError, StateError
from hafw.instance import running_pid
from hafw.lab import builder, files, labd, machine, topology, wipe
from hafw.lab.files import LabState, hold_file, lab_folder
from hafw.lab.inside import kill_all_in, namespace_inode, namespace_path, processes_in
from hafw.lab.ready import not_ready
from hafw.lab.recipe import FEATURES, default_config_file, describe, read_policy, render_config
from hafw.lab.silence import Direction, FaultTime, Switch
from hafw.lab.topology import Topology, namespace_of
from hafw.paths import NodePaths

__all__ = ["DAEMONS", "FEATURES", "Lab", "default_config_file"]

DAEMONS = ("hafwd", "leased", "syncd", "raftd")
READY_POLL_S = 0.05


class Lab:
    """The lab of this machine; there is at most one. Raises HafwError, never half-heartedly:
    what an interrupted or failed `up` left is removed by the next `up` or `down`."""

    def __init__(self, config_file: Path | None = None) -> None:
        self.source = (config_file or default_config_file()).resolve()
        self._switch = Switch()
        self._loaded: tuple[tuple[str, int], ClusterConfig] | None = None

    # ---- what there is ----------------------------------------------------------------------

    @property
    def config_file(self) -> Path:
        """The running lab's cluster.yaml, with its timers; the source while there is none."""
        running = lab_folder() / "cluster.yaml"
        return running if running.exists() else self.source

    @property
    def config(self) -> ClusterConfig:
        file = self.config_file
        try:
            key = (str(file), file.stat().st_mtime_ns)
        except OSError:
            key = (str(file), 0)  # the loader says what is wrong with it
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = (key, load_cluster(file))
        return self._loaded[1]

    @property
    def topology(self) -> Topology:
        return topology.plan(self.config, str(self.config_file))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All namespaces of the lab, the switch's first."""
        return self.topology.namespaces

    @property
    def gateways(self) -> tuple[str, ...]:
        return tuple(n for n, node in self.config.nodes.items() if node.role == "gateway")

    def paths(self, node: str) -> NodePaths:
        self._require_node(node)
        return NodePaths(node)

    def state(self) -> LabState | None:
        return files.read_state()

    def exists(self) -> bool:
        """A lab is up: its `up` came to its end and its namespaces are still those."""
        state = self.state()
        return (
            state is not None
            and state.complete
            and all(namespace_inode(name) == inode for name, inode in state.namespaces.items())
        )

    def problems(self) -> list[str]:
        """Why a lab that is up is broken, in words; empty if it is well. A held or dead node is
        no problem of the lab's."""
        state = self.state()
        if state is None or not state.complete:
            return ["the last `lab up` did not come to its end"]
        try:
            found = topology.verify(self.topology)
        except ConfigError as error:
            return [f"the lab's own configuration is broken: {error}"]
        found += [
            f"namespace {name} is not the one the lab made"
            for name, inode in state.namespaces.items()
            if namespace_inode(name) not in (inode, None)
        ]
        if not state.bare and labd.running_labd() is None:
            found.append("labd, the lab's supervisor, is not running")
        return found

    # ---- up and down ------------------------------------------------------------------------

    def up(
        self,
        *,
        bare: bool = False,
        heartbeat_ms: int | None = None,
        lease_ms: int | None = None,
        without: frozenset[str] = frozenset(),
    ) -> bool:
        """Build the lab and, unless `bare`, start its nodes. False if it was up already, so.

        A broken lab is removed and built anew. Raises RefusedError if one with other parameters
        is up, ConfigError, StateError, KernelError; after an error nothing is left behind.
        """
        machine.require_machine()
        if unknown := without - FEATURES:
            raise RefusedError(
                f"a lab cannot be built without {', '.join(sorted(unknown))}; "
                f"only without {', '.join(sorted(FEATURES))}"
            )
        config = load_cluster(self.source)
        plan = topology.plan(config, str(self.source))
        wanted = LabState(
            complete=False, bare=bare, heartbeat_ms=heartbeat_ms, lease_ms=lease_ms,
            without=tuple(sorted(without)), source=str(self.source), nodes=tuple(config.nodes),
        )  # fmt: skip
        document = render_config(self.source, config, wanted)
        policy = None if bare else read_policy(self.source, config)
        if not bare:
            labd.hafwd_script()
        with files.exclusive("lab up"):
            present = self.state()
            if present is not None and present.complete and not self.problems():
                if present.asked_for() == wanted.asked_for():
                    return False
                raise RefusedError(
                    f"a lab is up already, {describe(present)}, not {describe(wanted)}; "
                    "nothing was changed: `hafwctl lab down` first"
                )
            self._switch.close()
            builder.remove_all(self.source)
            files.require_node_folders_free(list(config.nodes))
            try:
                builder.build(wanted, plan, config, document, policy)
            except BaseException:
                builder.remove_all(self.source)
                raise
        return True

    def down(self) -> bool:
        """Remove the lab and everything it made, in whatever state it is. False if there was
        nothing. A bpffs that `up` had to mount stays."""
        machine.require_machine()
        with files.exclusive("lab down"):
            self._switch.close()
            return builder.remove_all(self.source)

    # ---- processes --------------------------------------------------------------------------

    def spawn(self, where: str, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        """Start a process in the namespace of a host (`gw1`, `client`, ..., or `hafw-gw1`); the
        mount namespace stays. Its environment has HAFW_NODE (nodes) and HAFW_CONFIG."""
        host = where.removeprefix("hafw-")
        command = [*self.nsenter(host), *argv]
        environment: Mapping[str, str] = popen.pop("env", os.environ)
        popen["env"] = {**environment, **self.environment(host)}
        return subprocess.Popen(command, **popen)

    def nsenter(self, host: str) -> list[str]:
        """The beginning of a command line that runs in a host's namespace. Raises StateError if
        there is none."""
        self._require_host(host)
        return ["nsenter", f"--net={namespace_path(namespace_of(host))}", "--"]

    def environment(self, host: str) -> dict[str, str]:
        """What `hafwctl` and the daemons read inside a host."""
        variables = {"HAFW_CONFIG": str(lab_folder() / "cluster.yaml")}
        if host in self.config.nodes:
            variables["HAFW_NODE"] = host
        return variables

    def pids(self, node: str) -> dict[str, int]:
        """The daemons of a node that are alive: they hold their lock and are in its namespace."""
        paths = self.paths(node)
        inode = namespace_inode(namespace_of(node))
        found = {}
        for daemon in DAEMONS:
            pid = running_pid(paths, daemon)
            if pid is not None and _in_namespace(pid, inode):
                found[daemon] = pid
        return found

    def all_pids(self, node: str) -> list[int]:
        """Every process in a node's namespace, whatever it is."""
        self._require_node(node)
        inode = namespace_inode(namespace_of(node))
        return [] if inode is None else processes_in({inode})

    def hold(self, node: str) -> None:
        """labd does not restart this node's hafwd until `release`."""
        self._require_node(node)
        hold_file(node).touch()

    def release(self, node: str) -> None:
        self._require_node(node)
        hold_file(node).unlink(missing_ok=True)

    def start(self, node: str) -> None:
        """Power on: labd starts hafwd within 50 ms. The folders of a machine that was installed
        anew meanwhile are the lab's as well, and go with it."""
        if self.exists():
            files.claim_node_folders(self.paths(node))
        self.release(node)

    def power_off(self, node: str) -> None:
        """What a power cut takes, beyond `silence`: all processes of the node (SIGKILL), its
        conntrack and neighbour tables, our nft tables, virtual MAC devices, pins and run folder.
        Era and keys are on disk and stay. The node is held until `start`."""
        paths = self.paths(node)
        self.hold(node)
        namespace = namespace_of(node)
        if namespace_inode(namespace) is None:
            raise StateError(f"there is no namespace {namespace}; is the lab up?")
        kill_all_in([namespace])
        wipe.clear_kernel_state(namespace)
        wipe.remove_pins(paths)
        shutil.rmtree(paths.run, ignore_errors=True)

    # ---- faults -----------------------------------------------------------------------------

    def silence(
        self, host: str, *, devices: Collection[str] | None = None, direction: Direction = "both"
    ) -> int:
        """Drop all frames of a host, both ways, in the switch; its ports stay up and in the
        forwarding table. `devices` (e.g. sync0) or a direction (`from` it, `to` it) make a cable
        fault of it. Replaces the host's fault, if it has one. When: CLOCK_BOOTTIME ns, just
        before it took effect."""
        return self.fault(host, devices=devices, direction=direction).before_ns

    def fault(
        self, host: str, *, devices: Collection[str] | None = None, direction: Direction = "both"
    ) -> FaultTime:
        """`silence`, with the times before and after."""
        ports = {port.device: port.port for port in self.topology.host(host).ports}
        chosen = set(ports) if devices is None else set(devices)
        if unknown := chosen - set(ports):
            raise StateError(f"{host} has no device {', '.join(sorted(unknown))}")
        return self._switch.fault(host, sorted(ports[device] for device in chosen), direction)

    def heal(self, host: str) -> int:
        """End a host's fault, if it has one. When: CLOCK_BOOTTIME ns, just after."""
        self._require_host(host)
        return self._switch.heal(host).after_ns

    def heal_all(self) -> None:
        for host in sorted(self.silenced()):
            self._switch.heal(host)

    def silenced(self) -> frozenset[str]:
        """Hosts that have a fault."""
        return self._switch.faults()

    # ---- looking ----------------------------------------------------------------------------

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every group has exactly one ACTIVE node and, unless the lab is without
        sync, every other candidate is synced. Raises StateError that says what is missing."""
        state = self.state()
        if state is None or not state.complete:
            raise StateError("there is no lab; `hafwctl lab up` first")
        if state.bare:
            raise StateError("this lab is bare: it has no daemons that could become ready")
        deadline = time.monotonic() + timeout_s
        while missing := not_ready(self.config, with_sync="sync" not in state.without):
            if time.monotonic() > deadline:
                raise StateError(
                    f"the lab is up but was not ready after {timeout_s:g} s: {'; '.join(missing)} "
                    f"(logs: {lab_folder()}/*.hafwd.log)"
                )
            time.sleep(READY_POLL_S)

    def status(self) -> dict[str, Any]:
        """The lab as it is, for `hafwctl lab status`; keys are a contract."""
        state = self.state()
        if state is None:
            return {"up": False, "problems": [], "hosts": {}, "bridges": {}}
        problems = self.problems()
        plan = self.topology
        whole = all(namespace_inode(name) is not None for name in plan.namespaces)
        silenced = self.silenced() if whole else frozenset()
        switch = topology.links_of(namespace_of(topology.SWITCH)) if whole else {}
        return {
            "up": state.complete and not problems,
            "bare": state.bare,
            "without": list(state.without),
            "source": state.source,
            "config": str(lab_folder() / "cluster.yaml"),
            "heartbeat_ms": self.config.lease.heartbeat_ms,
            "lease_ms": self.config.lease.lease_ms,
            "labd": labd.running_labd(),
            "problems": problems,
            "hosts": {
                host.name: self._host_status(host.name, host.name in silenced)
                for host in plan.hosts
            },
            "bridges": {
                bridge: {
                    name: link["up"] and link["carrier"]
                    for name, link in sorted(switch.items())
                    if link["master"] == bridge
                }
                for bridge in plan.bridges
            },
        }

    def _host_status(self, host: str, silenced: bool) -> dict[str, Any]:
        namespace = namespace_of(host)
        there = namespace_inode(namespace) is not None
        node = self.config.nodes.get(host)
        status: dict[str, Any] = {
            "namespace": namespace,
            "role": node.role if node else host,
            "silenced": silenced,
            "links": topology.links_of(namespace) if there else {},
        }
        if node is not None:
            pids = self.pids(host)
            expected = DAEMONS if node.role == "gateway" else ("hafwd", "leased", "raftd")
            status["held"] = hold_file(host).exists()
            status["processes"] = {daemon: pids.get(daemon) for daemon in expected}
        return status

    def close(self) -> None:
        """Let go of the switch's namespace; also done by `down`."""
        self._switch.close()

    def _require_node(self, node: str) -> None:
        if node not in self.config.nodes:
            raise StateError(
                f"the lab has no node {node}; there are {', '.join(self.config.nodes)}"
            )

    def _require_host(self, host: str) -> None:
        if host != topology.SWITCH:
            self.topology.host(host)
        if namespace_inode(namespace_of(host)) is None:
            raise StateError(f"there is no namespace {namespace_of(host)}; `hafwctl lab up` first")


def _in_namespace(pid: int, inode: int | None) -> bool:
    try:
        return inode is not None and os.stat(f"/proc/{pid}/ns/net").st_ino == inode
    except OSError:
        return False
