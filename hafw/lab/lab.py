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

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig, LeaseConfig
from hafw.errors import ConfigError, ConfigProblem, RefusedError, StateError
from hafw.instance import running_pid, write_atomically
from hafw.lab import files, labd, machine, topology, wipe
from hafw.lab.files import LabState, hold_file, lab_folder
from hafw.lab.inside import (
    kill_all_in,
    namespace_inode,
    namespace_path,
    processes_in,
)
from hafw.lab.ready import not_ready
from hafw.lab.silence import Direction, FaultTime, Switch
from hafw.lab.topology import Topology, namespace_of
from hafw.node.keys import init_keys
from hafw.paths import NodePaths

__all__ = ["DAEMONS", "FEATURES", "Lab", "default_config_file"]

DAEMONS = ("hafwd", "leased", "syncd")
FEATURES = frozenset({"sync", "gate"})
"""What a lab can be built without, for drills that must fail."""
LABD_START_WAIT_S = 10.0
LABD_STOP_WAIT_S = labd.STOP_WAIT_S + 3.0
READY_POLL_S = 0.05


def default_config_file() -> Path:
    """The cluster that DESIGN §9 describes."""
    return Path(__file__).with_name("cluster.yaml")


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
        found = topology.verify(self.topology)
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
        document = _render_config(self.source, config, wanted)
        policy = None if bare else _read_policy(self.source, config)
        if not bare:
            labd.hafwd_script()
        with files.exclusive("lab up"):
            present = self.state()
            if present is not None and present.complete and not self.problems():
                if present.asked_for() == wanted.asked_for():
                    return False
                raise RefusedError(
                    f"a lab is up already, {_describe(present)}, not {_describe(wanted)}; "
                    "nothing was changed: `hafwctl lab down` first"
                )
            self._remove_all()
            files.require_node_folders_free(list(config.nodes))
            try:
                self._build(wanted, plan, config, document, policy)
            except BaseException:
                self._remove_all()
                raise
        return True

    def _build(
        self, wanted: LabState, plan: Topology, config: ClusterConfig, document: str,
        policy: str | None,
    ) -> None:  # fmt: skip
        lab_folder().mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write_state(wanted)  # first of all, so that `down` knows what to look for
        before = machine.raise_conntrack_max()
        state = replace(wanted, conntrack_max_before=before)
        files.write_state(state)
        machine.ensure_bpffs()
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
        inodes = {name: namespace_inode(name) or 0 for name in plan.namespaces}
        state = replace(state, namespaces=inodes)
        files.write_state(state)
        if not state.bare:
            self._start_labd(state)
        files.write_state(replace(state, complete=True))

    def _start_labd(self, state: LabState) -> None:
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

    def down(self) -> bool:
        """Remove the lab and everything it made, in whatever state it is. False if there was
        nothing. A bpffs that `up` had to mount stays."""
        machine.require_machine()
        with files.exclusive("lab down"):
            return self._remove_all()

    def _remove_all(self) -> bool:
        state = self.state()
        nodes, plan = self._what_to_remove(state)
        present = [name for name in plan if namespace_path(name).exists()]
        if state is None and not present and not nodes and not lab_folder().exists():
            return False
        self._switch.close()
        _stop_labd()
        inodes = {inode for name in present if (inode := namespace_inode(name)) is not None}
        kill_all_in(inodes)
        for node in nodes:
            if namespace_inode(namespace_of(node)) is not None:
                wipe.remove_vmac_devices(namespace_of(node))  # before their gates' pins
            files.remove_node_folders(node)
        topology.remove_namespaces(tuple(present))
        if state is not None and state.conntrack_max_before is not None:
            machine.restore_conntrack_max(state.conntrack_max_before)
        shutil.rmtree(lab_folder(), ignore_errors=True)
        if lab_folder().exists():
            raise StateError(f"cannot remove {lab_folder()}")
        return True

    def _what_to_remove(self, state: LabState | None) -> tuple[list[str], list[str]]:
        """Nodes and namespaces. Without a state only what is marked as the lab's, or has the
        name of a lab's namespace, counts: a real node may have the name of one of the nodes."""
        hosts = {topology.CLIENT, topology.SERVER, topology.SWITCH}
        if state is not None:
            nodes = list(state.nodes)
            return nodes, sorted(namespace_of(name) for name in hosts.union(nodes))
        configured = list(load_cluster(default_config_file()).nodes)
        if self.source != default_config_file():
            configured += list(load_cluster(self.source).nodes)
        nodes = [
            name
            for name in dict.fromkeys(configured)
            if files.is_marked(name) or namespace_path(namespace_of(name)).exists()
        ]
        return nodes, sorted(namespace_of(name) for name in hosts.union(configured))

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
        """Power on: labd starts hafwd within 50 ms."""
        self.release(node)

    def power_off(self, node: str) -> None:
        """What a power cut takes, beyond `silence`: all processes of the node (SIGKILL), its
        conntrack and neighbour tables, our nft tables, virtual MAC devices, pins and run folder.
        Era and keys are on disk and stay. The node is held until `start`."""
        paths = self.paths(node)
        self.hold(node)
        namespace = namespace_of(node)
        inode = namespace_inode(namespace)
        if inode is None:
            raise StateError(f"there is no namespace {namespace}; is the lab up?")
        kill_all_in({inode})
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
            expected = DAEMONS if node.role == "gateway" else ("hafwd", "leased")
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


# ---- parts without a lab ------------------------------------------------------------------------


def _describe(state: LabState) -> str:
    words = ["bare" if state.bare else "with daemons"]
    if state.heartbeat_ms is not None or state.lease_ms is not None:
        heartbeat, lease = state.heartbeat_ms or "default", state.lease_ms or "default"
        words.append(f"heartbeat {heartbeat} / lease {lease} ms")
    words += [f"without {feature}" for feature in state.without]
    return f"{', '.join(words)}, from {state.source}"


def _render_config(source: Path, config: ClusterConfig, wanted: LabState) -> str:
    """The lab's cluster.yaml: the source with what was asked for, comments kept."""
    lease = {
        key: value
        for key, value in (("heartbeat_ms", wanted.heartbeat_ms), ("lease_ms", wanted.lease_ms))
        if value is not None
    }
    try:
        LeaseConfig.model_validate({**config.lease.model_dump(), **lease})
    except ValidationError as error:
        raise ConfigError(
            str(source),
            [
                ConfigProblem("lease", "as overridden: " + e["msg"].removeprefix("Value error, "))
                for e in error.errors()
            ],
        ) from None
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 200
    document = yaml.load(source.read_text())
    for section, values in (
        ("lease", lease),
        ("sync", {"enabled": False} if "sync" in wanted.without else {}),
    ):
        if values:
            document.setdefault(section, {}).update(values)
    document["policy"] = "policy.yaml"
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _read_policy(source: Path, config: ClusterConfig) -> str:
    file = source.parent / config.policy
    try:
        return file.read_text()
    except OSError as error:
        raise ConfigError(
            str(source),
            [
                ConfigProblem(
                    "policy", f"cannot read {file}: {error.strerror}", value=config.policy
                )
            ],
        ) from None


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), mode=0o644)


def _in_namespace(pid: int, inode: int | None) -> bool:
    try:
        return inode is not None and os.stat(f"/proc/{pid}/ns/net").st_ino == inode
    except OSError:
        return False


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
