"""Make a node's machine ready: sysctls, virtual MAC devices behind their gate, VIPs. Shell.

Runs in the node's network namespace and the machine's mount namespace, as a worker process of
hafwd (pyroute2's synchronous API) or by hand::

    python -m hafw.node.setup --node gw1 --config cluster.yaml [--check | --teardown]

Setting up is idempotent: what is right is left alone, so a running ACTIVE node loses no packet.
What is not, `cluster.vmac.plan` says in an order that never leaves a device up without its gate.
Forwarding is not switched on here but after a policy is loaded (`enable_forwarding`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

from cluster import gate
from cluster.bpf import closing
from cluster.vmac import (
    AddAddress,
    Attach,
    Create,
    Delete,
    DeviceState,
    ForgetDevice,
    ForgetGroup,
    Found,
    Raise,
    RemoveAddress,
    SetDown,
    Step,
    VirtualDevice,
    is_own_device,
    plan,
    virtual_devices,
)
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig, NodeConfig
from hafw.errors import HafwError, StateError
from hafw.instance import ensure_run_folder, running_pid
from hafw.kernel import sysctl
from hafw.kernel.features import missing_features
from hafw.kernel.links import Links
from hafw.node.interfaces import interface_problems, require_free_names, require_interfaces
from hafw.paths import NodePaths

__all__ = ["check_node", "find_problems", "main", "prepare_node", "teardown_node"]


def prepare_node(
    config: ClusterConfig, node_name: str, *, gate_always_pass: bool = False
) -> list[str]:
    """Bring the node to what the configuration says; returns what was changed, in words.

    `gate_always_pass` attaches programs that never drop: for drills that must fail. Raises
    StateError (missing interface, kernel feature, private mount namespace) and KernelError; what
    was not reached then is down or missing, never open.
    """
    node = _node(config, node_name)
    missing = missing_features(node.role)
    if missing:
        raise StateError("; ".join(missing))
    paths = NodePaths(node_name)
    with Links() as links, _lock(paths):
        devices = links.devices()
        require_interfaces(node_name, node, devices)
        if node.role == "witness":
            return []
        wanted = virtual_devices(config, node_name)
        require_free_names(node_name, wanted, devices)
        changes = [f"set {s.key} = {s.value}" for s in sysctl.apply(_sysctls(node))]
        if gate.ensure_map(paths):
            changes.append("pinned a shut gate")
        if gate_always_pass and gate.set_always_pass(paths, True):
            changes.append("UNSAFE: the gate never drops from now on (drill)")
        found = _found(paths, wanted, devices, always_pass=gate_always_pass)
        steps, deferred = _without_leased_s(paths, plan(wanted, found))
        changes += [_carry_out(step, links, paths, gate_always_pass) for step in steps]
        for device in wanted:
            settings = sysctl.device_sysctls(sysctl.VIRTUAL, device.name)
            changes += [f"set {s.key} = {s.value}" for s in sysctl.apply(settings)]
        found = _found(paths, wanted, links.devices(), always_pass=gate_always_pass)
        left = [step for step in plan(wanted, found) if step not in deferred]
        if left:
            raise StateError(
                f"node {node_name} is not as it was just set up: "
                + "; ".join(_problem(step) for step in left)
                + "; another program changes the same devices"
            )
        if not gate_always_pass and gate.set_always_pass(paths, False):
            changes.append("the gate drops again")
    return changes + [f"left for later: {_problem(s)}: leased is running" for s in deferred]


def teardown_node(config: ClusterConfig, node_name: str) -> list[str]:
    """Take away the virtual MAC devices, then the pins; returns what was removed, in words.

    Devices first: a device without its pins would be open. StateError while leased runs: it would
    go on renewing a lease into a gate that nobody asks.
    """
    _node(config, node_name)
    paths = NodePaths(node_name)
    pid = running_pid(paths, "leased")
    if pid is not None:
        raise StateError(
            f"node {node_name} cannot be taken down: hafw-leased is running (pid {pid}); stop "
            "hafwd, which stops it, first"
        )
    names = {device.name for device in virtual_devices(config, node_name)}
    with Links() as links, _lock(paths):
        own = [
            device
            for device in links.devices()
            if is_own_device(device) or (device.name in names and device.kind == "macvlan")
        ]
        for device in own:
            links.set_up(device.name, up=False)
        for device in own:
            links.delete(device.name)
        changes = [f"removed {device.name}" for device in own]
        if paths.bpf.is_dir():
            gate.check_bpffs(paths)
            gate.forget_all(paths)
            changes.append(f"removed {paths.bpf}")
    return changes


def check_node(
    config: ClusterConfig, node_name: str, *, gate_always_pass: bool = False
) -> list[str]:
    """What is not as it must be, one sentence each; empty if the node is right. Changes nothing.

    Raises StateError for a node that the file does not have.
    """
    mendable, others = find_problems(config, node_name, gate_always_pass=gate_always_pass)
    return others + mendable


def find_problems(
    config: ClusterConfig, node_name: str, *, gate_always_pass: bool = False
) -> tuple[list[str], list[str]]:
    """Those that `prepare_node` mends (or says why it cannot), and those that are the system's or
    the operator's to mend: a down interface, a missing address. Otherwise like `check_node`."""
    node = _node(config, node_name)
    paths = NodePaths(node_name)
    with Links() as links:
        devices = links.devices()
    wanted = virtual_devices(config, node_name)
    try:
        require_interfaces(node_name, node, devices)
        require_free_names(node_name, wanted, devices)
    except StateError as error:
        return [str(error)], []
    others = interface_problems(node_name, node, devices)
    problems: list[str] = []
    if node.role == "witness":
        return problems, others
    try:
        reader = gate.GateReader.open(paths)
        if reader.always_pass and not gate_always_pass:
            problems.append("the gate never drops: a drill left it so; prepare the node again")
        reader.close()
    except HafwError as error:
        problems.append(str(error))
    found = _found(paths, wanted, devices, always_pass=gate_always_pass)
    steps, _ = _without_leased_s(paths, plan(wanted, found))
    missing = {step.device.name for step in steps if isinstance(step, Create)}
    problems += [text for text in map(_problem, steps) if text]
    settings = _sysctls(node)
    for device in wanted:
        if device.name not in missing:
            settings += sysctl.device_sysctls(sysctl.VIRTUAL, device.name)
    try:
        problems += [
            f"{s.key} is {sysctl.read(s.key)} and must be {s.value}: {s.why}"
            for s in sysctl.differences(settings)
        ]
    except HafwError as error:
        problems.append(str(error))
    return problems, others


# ---- parts --------------------------------------------------------------------------------------


def _node(config: ClusterConfig, node_name: str) -> NodeConfig:
    node = config.nodes.get(node_name)
    if node is None:
        known = ", ".join(sorted(config.nodes))
        raise StateError(f"there is no node {node_name} in the configuration; it has: {known}")
    return node


@contextmanager
def _lock(paths: NodePaths) -> Iterator[None]:
    """One set-up of a node at a time; the second waits."""
    ensure_run_folder(paths)
    fd = os.open(paths.lock("setup"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with closing(fd):
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _without_leased_s(paths: NodePaths, steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """Steps for now, and those that leased leaves no room for: only the holder of its lock writes
    the gate's page. The group's devices are gone either way."""
    writes: list[Step] = [step for step in steps if isinstance(step, ForgetGroup)]
    if not writes or running_pid(paths, "leased") is None:
        return steps, []
    return [step for step in steps if step not in writes], writes


def _sysctls(node: NodeConfig) -> list[sysctl.Sysctl]:
    settings = list(sysctl.GATEWAY)
    for device in sorted({port.device for port in node.segments.values()}):
        settings += sysctl.device_sysctls(sysctl.PHYSICAL, device)
    return settings


def _found(
    paths: NodePaths,
    wanted: list[VirtualDevice],
    devices: list[DeviceState],
    *,
    always_pass: bool,
) -> Found:
    state = gate.HookState.ALWAYS_PASS if always_pass else gate.HookState.GATE
    current = {
        index: gate.programs_current(paths, index, always_pass=always_pass)
        for index in gate.pinned_groups(paths)
    }
    return Found(
        devices=tuple(devices),
        parents={device.name: device.ifindex for device in devices},
        gated=frozenset(
            device.name
            for device in wanted
            if current.get(device.group_index)
            and all(
                gate.hook_state(paths, device.group_index, device.name, hook) is state
                for hook in gate.Hook
            )
        ),
        pinned_devices=tuple(gate.pinned_devices(paths)),
        pinned_groups=tuple(gate.pinned_groups(paths)),
    )


def _carry_out(step: Step, links: Links, paths: NodePaths, always_pass: bool) -> str:
    match step:
        case SetDown(name, reason):
            links.set_up(name, up=False)
            return f"took {name} down: {reason}"
        case Delete(name, reason):
            links.delete(name)
            return f"removed {name}: {reason}"
        case ForgetDevice(name):
            gate.forget_device(paths, name)
            return f"removed the pins of {name}"
        case Create(device):
            links.create(device, links.ifindex(device.parent))
            return f"created {device.name} on {device.parent} with {device.mac}"
        case Attach(device):
            # While the device is down: once it is up, the kernel gives it a link-local itself.
            sysctl.apply(sysctl.device_sysctls(sysctl.VIRTUAL, device.name))
            ifindex = links.ifindex(device.name)
            gate.attach(paths, device.group_index, device.name, ifindex, always_pass=always_pass)
            return f"attached the gate to {device.name}"
        case Raise(device):
            if not gate.attached(paths, device.name, enforcing=not always_pass):
                raise StateError(
                    f"{device.name}: the gate is not on both hooks after it was attached; "
                    "the device stays down"
                )
            links.set_up(device.name, up=True)
            return f"took {device.name} up"
        case RemoveAddress(name, address):
            links.remove_address(name, address)
            return f"removed {address} from {name}"
        case AddAddress(name, address):
            links.add_address(name, address)
            return f"added {address} to {name}"
        case ForgetGroup(index):
            gate.forget_group(paths, index)
            return f"shut and removed the gate of group {index}"
        case _:
            assert_never(step)


def _problem(step: Step) -> str:
    """The step a repair would take, as a fault; empty if another step of the plan says it."""
    match step:
        case SetDown(name, reason) | Delete(name, reason):
            return f"{name}: {reason}"
        case ForgetDevice(name):
            return f"{name} is gone or not configured, its pins are still there"
        case Create(device):
            return f"{device.name} is missing (group {device.group}, segment {device.segment})"
        case Attach(device):
            return f"{device.name}: the gate is not on both hooks"
        case Raise(device):
            return f"{device.name} is not up"
        case RemoveAddress(name, address):
            return f"{name} has {address}, which is not configured or not usable"
        case AddAddress(name, address):
            return f"{name} lacks {address}"
        case ForgetGroup(index):
            return f"group {index} is not configured, its gate is still there"
        case _:
            assert_never(step)


def main(argv: list[str] | None = None) -> int:
    """``python -m hafw.node.setup``. One JSON object on stdout; exit 0, or 1 with one line on
    stderr."""
    parser = argparse.ArgumentParser(prog="hafw.node.setup", description="Prepare a node.")
    parser.add_argument("--node", required=True)
    parser.add_argument("--config", required=True, type=Path)
    verb = parser.add_mutually_exclusive_group()
    verb.add_argument("--teardown", action="store_true", help="remove devices, then pins")
    verb.add_argument("--check", action="store_true", help="say what is wrong, change nothing")
    parser.add_argument(
        "--gate-always-pass", action="store_true", help="UNSAFE: a gate that never drops (drills)"
    )
    options = parser.parse_args(argv)
    try:
        config = load_cluster(options.config)
        if options.check:
            problems = check_node(config, options.node, gate_always_pass=options.gate_always_pass)
            return _answer(ok=not problems, problems=problems)
        if options.teardown:
            return _answer(ok=True, changes=teardown_node(config, options.node))
        changes = prepare_node(config, options.node, gate_always_pass=options.gate_always_pass)
        return _answer(ok=True, changes=changes)
    except HafwError as error:
        text = str(error).replace("\n", "; ")
        sys.stderr.write(f"hafw.node.setup: error: {text}\n")
        return 1


def _answer(*, ok: bool, **fields: list[str]) -> int:
    sys.stdout.write(json.dumps({"ok": ok, **fields}) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
