"""The gate as the kernel holds it: programs and links on the virtual MAC devices. Shell.

======================== ==================================================================
in `NodePaths.bpf`       what
======================== ==================================================================
gate                     the map, one page of deadlines (`cluster.gate_page`)
prog-G-in, prog-G-out    the two programs of group index G
link-DEVICE-in, -out     what holds them on a virtual MAC device
======================== ==================================================================

A link dies with its device, not with any process. Whoever raises a device reads back first that
both hooks are ours (`attached`).

Known limit: an AF_PACKET socket of root with PACKET_QDISC_BYPASS does not pass tc, so nothing at
this hook can stop it. The kernel's own ARP, ND and forwarding never take that way.
"""

from __future__ import annotations

import errno
import os
import socket
from enum import Enum
from pathlib import Path

from cluster import bpf
from cluster.gate_page import (
    Deadlines,
    GateReader,
    GateWriter,
    check_bpffs,
    ensure_bpffs,
    ensure_map,
    leased_kept_out,
    set_always_pass,
)
from cluster.gate_program import GATE_HANDOVER_MARK, Hook, program_bytes, program_name
from hafw.errors import KernelError
from hafw.paths import NodePaths

__all__ = [
    "GATE_HANDOVER_MARK",
    "Deadlines",
    "GateReader",
    "GateWriter",
    "Hook",
    "HookState",
    "attach",
    "attached",
    "check_bpffs",
    "ensure_bpffs",
    "ensure_map",
    "forget_all",
    "forget_device",
    "forget_group",
    "hook_state",
    "pinned_devices",
    "pinned_groups",
    "programs_current",
    "set_always_pass",
]


class HookState(Enum):
    """What runs first at a hook of a virtual MAC device."""

    GATE = "gate"
    ALWAYS_PASS = "always-pass"
    MISSING = "missing"
    SHADOWED = "shadowed"
    """Somebody's program runs in front of ours and may let frames by."""


def _program_pin(paths: NodePaths, group_index: int, hook: Hook) -> Path:
    return paths.bpf / f"prog-{group_index}-{hook.word}"


def _link_pin(paths: NodePaths, ifname: str, hook: Hook) -> Path:
    return paths.bpf / f"link-{ifname}-{hook.word}"


def _open_or_none(path: Path) -> int | None:
    try:
        return bpf.open_pin(path)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _program_of(paths: NodePaths, group_index: int, hook: Hook) -> bpf.ProgramInfo | None:
    """The pinned program, if it reads the pinned map."""
    fd = _open_or_none(_program_pin(paths, group_index, hook))
    gate_fd = _open_or_none(paths.bpf / "gate")
    program = None
    if fd is not None:
        with bpf.closing(fd):
            program = bpf.program_info(fd)
    if gate_fd is not None:
        with bpf.closing(gate_fd):
            gate_id = bpf.map_id(gate_fd)
        if program is not None and gate_id in program.map_ids:
            return program
    return None


def hook_state(paths: NodePaths, group_index: int, ifname: str, hook: Hook) -> HookState:
    """Read back what the kernel runs at this hook of a device of the caller's network namespace.

    GATE needs all of: the program runs first, it is the pinned one of the group, it reads the
    pinned map, and its link is pinned (a link held by a process would die with it).
    """
    try:
        ifindex = socket.if_nametoindex(ifname)
    except OSError:
        return HookState.MISSING
    program = _program_of(paths, group_index, hook)
    link_fd = _open_or_none(_link_pin(paths, ifname, hook))
    if program is None or link_fd is None:
        if link_fd is not None:
            os.close(link_fd)
        return HookState.MISSING
    with bpf.closing(link_fd):
        link = bpf.link_info(link_fd)
    chain = bpf.query_tcx(ifindex, hook.value, ifname)
    if (program.id, link.id) not in chain:
        return HookState.MISSING
    if chain[0] != (program.id, link.id):
        return HookState.SHADOWED
    if program.name == program_name(hook, group_index, always_pass=False):
        return HookState.GATE
    return HookState.ALWAYS_PASS


def attached(paths: NodePaths, ifname: str, *, enforcing: bool = False) -> bool:
    """Both hooks of the device run our program first. Looks in the caller's network namespace.

    `enforcing`: and it is the gate, not the drill's variant that never drops.
    """
    good = {HookState.GATE} if enforcing else {HookState.GATE, HookState.ALWAYS_PASS}
    return any(
        all(hook_state(paths, group_index, ifname, hook) in good for hook in Hook)
        for group_index in pinned_groups(paths)
    )


def attach(
    paths: NodePaths, group_index: int, ifname: str, ifindex: int, *, always_pass: bool = False
) -> bool:
    """Put the group's programs on both hooks of a device and pin them. True if anything changed.

    What is right is left alone, by program, link and order. KernelError if the kernel refuses.
    """
    changed = False
    want = HookState.ALWAYS_PASS if always_pass else HookState.GATE
    for hook in Hook:
        program_fd, fresh = _ensure_program(paths, group_index, hook, always_pass=always_pass)
        with bpf.closing(program_fd):
            if not fresh and hook_state(paths, group_index, ifname, hook) is want:
                continue
            changed = True
            _drop_link(_link_pin(paths, ifname, hook))
            link_fd = bpf.tcx_attach(program_fd, ifindex, hook.value, ifname)
            with bpf.closing(link_fd):
                bpf.pin(link_fd, _link_pin(paths, ifname, hook))
    return changed


def _ensure_program(
    paths: NodePaths, group_index: int, hook: Hook, *, always_pass: bool
) -> tuple[int, bool]:
    """The pinned program, replaced if it is not exactly what this release would load."""
    target = _program_pin(paths, group_index, hook)
    name = program_name(hook, group_index, always_pass=always_pass)
    with bpf.closing(bpf.open_pin(paths.bpf / "gate")) as gate_fd:
        code = program_bytes(hook, group_index, gate_fd, always_pass=always_pass)
        new_fd = bpf.load_program(name, code)
    new = bpf.program_info(new_fd)
    old_fd = _open_or_none(target)
    if old_fd is not None:
        old = bpf.program_info(old_fd)
        if (old.name, old.tag, old.map_ids) == (new.name, new.tag, new.map_ids):
            os.close(new_fd)
            return old_fd, False
        os.close(old_fd)
        target.unlink()
    bpf.pin(new_fd, target)
    return new_fd, True


def _drop_link(path: Path) -> None:
    fd = _open_or_none(path)
    if fd is None:
        return
    with bpf.closing(fd):
        # The pin may be the last hold on the link, or not: take it off the device either way.
        bpf.detach_link(fd)
    path.unlink(missing_ok=True)


def pinned_groups(paths: NodePaths) -> list[int]:
    """Group indexes with pinned programs."""
    found = {path.name.split("-")[1] for path in paths.bpf.glob("prog-*-*")}
    return sorted(int(text) for text in found if text.isdigit())


def pinned_devices(paths: NodePaths) -> list[str]:
    """Names of devices with pinned links, there or gone."""
    return sorted(
        {path.name.removeprefix("link-").rpartition("-")[0] for path in paths.bpf.glob("link-*")}
    )


def forget_device(paths: NodePaths, ifname: str) -> None:
    """Take the programs off a device and remove the pins. The device must be down or gone."""
    for hook in Hook:
        _drop_link(_link_pin(paths, ifname, hook))


def forget_group(paths: NodePaths, group_index: int) -> None:
    """Shut a group's gate and remove its programs' pins. StateError if leased runs."""
    with leased_kept_out(paths):
        writer = GateWriter.open(paths)
        try:
            writer.store(group_index, announce_ns=0, accept_ns=0)
        finally:
            writer.close()
    for hook in Hook:
        _program_pin(paths, group_index, hook).unlink(missing_ok=True)


def programs_current(paths: NodePaths, group_index: int, *, always_pass: bool) -> bool:
    """The pinned programs are exactly what this release would load."""
    for hook in Hook:
        fd = _open_or_none(_program_pin(paths, group_index, hook))
        if fd is None:
            return False
        with bpf.closing(fd):
            pinned = bpf.program_info(fd)
        gate_fd = _open_or_none(paths.bpf / "gate")
        if gate_fd is None:
            return False
        name = program_name(hook, group_index, always_pass=always_pass)
        with bpf.closing(gate_fd):
            code = program_bytes(hook, group_index, gate_fd, always_pass=always_pass)
            with bpf.closing(bpf.load_program(name, code)) as fresh_fd:
                fresh = bpf.program_info(fresh_fd)
        if (pinned.name, pinned.tag, pinned.map_ids) != (fresh.name, fresh.tag, fresh.map_ids):
            return False
    return True


def forget_all(paths: NodePaths) -> None:
    """Remove every pin and the folder. The node's virtual MAC devices must be gone."""
    for ifname in pinned_devices(paths):
        forget_device(paths, ifname)
    for pin in sorted(paths.bpf.iterdir()):
        pin.unlink()
    paths.bpf.rmdir()
