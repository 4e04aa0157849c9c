"""The page of deadlines that gates read, and the folder of pins that keeps it. Shell.

A folder of one bpffs per node (`NodePaths.bpf`) keeps the gate alive beyond every daemon; a mount
namespace of one's own would let it die with its process, so it is refused. The page is written by
one `GateWriter`, the lease loop's, and read by anybody. Deadlines are absolute CLOCK_BOOTTIME
nanoseconds; `cluster.gate_program` has the layout.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster import bpf
from cluster.gate_program import (
    ACCEPT,
    ANNOUNCE,
    DROPPED_IN,
    DROPPED_OUT,
    FLAG_ALWAYS_PASS,
    FLAGS,
    GROUP_INDEX_MAX,
    HANDOVER,
    MAGIC,
    MAP_BYTES,
    SLOT_BYTES,
    VERSION,
)
from hafw.config.model import LEASE_MS_MAX
from hafw.errors import KernelError, StateError
from hafw.instance import daemon_kept_out
from hafw.paths import NodePaths

__all__ = [
    "Deadlines",
    "GateReader",
    "GateWriter",
    "check_bpffs",
    "ensure_bpffs",
    "ensure_map",
    "in_private_mount_namespace",
    "mount_bpffs",
    "pinned_map_id",
    "set_always_pass",
]

_BPFFS_MAGIC = 0xCAFE4A11
_BPFFS_MOUNT = Path("/sys/fs/bpf")
_DEADLINE_AHEAD_MS_MAX = LEASE_MS_MAX * 2
_libc = ctypes.CDLL(None, use_errno=True)


# ---- the folder ---------------------------------------------------------------------------------


def _is_bpffs(path: Path) -> bool:
    """statfs(2): f_type is the first machine word (linux/magic.h, BPF_FS_MAGIC)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int(struct.unpack_from("@l", buffer)[0]) & 0xFFFFFFFF == _BPFFS_MAGIC


def _mounts(process: str) -> set[tuple[str, str]]:
    """(mount id, mount point) of a process (proc(5), mountinfo)."""
    lines = Path("/proc", process, "mountinfo").read_text().splitlines()
    return {(fields[0], fields[4]) for fields in map(str.split, lines)}


def in_private_mount_namespace() -> bool:
    """This process shares no mount with process 1. StateError if that cannot be told."""
    # A mount belongs to one namespace and its id is unique while it lives, so one in common is
    # proof. /proc/1/ns/mnt would say it more plainly, but may not be readable even for root.
    try:
        return not _mounts("self") & _mounts("1")
    except OSError as error:
        raise StateError(
            f"cannot read the mounts of process 1: {error.strerror}; hafw needs root and /proc"
        ) from None


def _check_mount_namespace(paths: NodePaths) -> None:
    if in_private_mount_namespace():
        raise StateError(
            f"{paths.bpf}: this process has a mount namespace of its own, so gates pinned here "
            "would vanish with it and open; enter network namespaces with `nsenter --net=...` "
            "or setns, not with `ip netns exec`"
        )


def check_bpffs(paths: NodePaths) -> None:
    """The node's gate folder is there, is bpffs, and is the one everybody sees. StateError."""
    _check_mount_namespace(paths)
    if not paths.bpf.is_dir():
        raise StateError(
            f"{paths.bpf}: there is no gate for node {paths.node}; "
            f"`python -m hafw.node.setup --node {paths.node} --config FILE` makes it"
        )
    if not _is_bpffs(paths.bpf):
        raise StateError(
            f"{paths.bpf} is not on bpffs, so a gate could not outlive its process; "
            f"mount one: mount -t bpf bpf {_BPFFS_MOUNT}"
        )


def ensure_bpffs(paths: NodePaths) -> None:
    """Mount bpffs at /sys/fs/bpf if nobody has, and make the node's folder. StateError."""
    _check_mount_namespace(paths)
    if not _is_bpffs(_existing_parent(paths.bpf)):
        if not paths.bpf.is_relative_to(_BPFFS_MOUNT):
            raise StateError(f"{paths.bpf} is not on bpffs; mount -t bpf bpf there first")
        mount_bpffs()
    paths.bpf.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_bpffs(paths)


def mount_bpffs() -> bool:
    """Mount a bpffs at /sys/fs/bpf if there is none; whether it had to. It is never unmounted:
    others may pin there too, and systemd mounts it at every boot anyway. KernelError."""
    # Two mounts on one place would hide the pins below the second: look under a lock.
    with _locked("/run/lock/hafw-bpffs.lock"):
        if _is_bpffs(_BPFFS_MOUNT):
            return False
        arguments = (b"bpf", os.fsencode(_BPFFS_MOUNT), b"bpf", 0, b"mode=0700")
        if _libc.mount(*arguments) != 0:
            raise KernelError(
                ctypes.get_errno(),
                "mounting bpffs",
                str(_BPFFS_MOUNT),
                "it needs root and CONFIG_BPF_SYSCALL",
            )
        return True


def _existing_parent(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


@contextmanager
def _locked(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with bpf.closing(fd):
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


# ---- the page of deadlines ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Until when a group's virtual MACs may speak and listen; 0 or the past: shut."""

    announce_ns: int
    accept_ns: int


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Page:
    """The map's page in our memory. A 64-bit cell is one load or one store of the machine."""

    def __init__(self, fd: int, access: int) -> None:
        self._map_id = bpf.map_id(fd)
        self._memory = mmap.mmap(fd, MAP_BYTES, access=access)
        self._cells = memoryview(self._memory).cast("Q")
        if self._cells[0] != MAGIC or self._cells[1] != VERSION:
            found = f"{self._cells[0]:#x} version {self._cells[1]}"
            self.close()
            raise StateError(
                f"the pinned gate is not one of this release (found {found}); "
                "take the node down with --teardown and prepare it again"
            )

    @classmethod
    def _open(cls, paths: NodePaths, access: int) -> Self:
        check_bpffs(paths)
        try:
            # A read-only descriptor cannot be mapped shared (kernel/bpf/syscall.c,
            # bpf_map_mmap); the mapping itself is read-only.
            fd = bpf.open_pin(paths.bpf / "gate")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                raise StateError(f"{paths.bpf}/gate: no gate is pinned here") from None
            raise
        with bpf.closing(fd):
            return cls(fd, access)

    @property
    def map_id(self) -> int:
        """The kernel's number of this map: another one pinned in its place has another."""
        return self._map_id

    @staticmethod
    def _cell(group_index: int, field: int) -> int:
        assert 1 <= group_index <= GROUP_INDEX_MAX, group_index
        return (group_index * SLOT_BYTES + field) // 8

    def read(self, group_index: int) -> Deadlines:
        cells = self._cells
        return Deadlines(
            cells[self._cell(group_index, ANNOUNCE)], cells[self._cell(group_index, ACCEPT)]
        )

    def dropped(self, group_index: int) -> tuple[int, int]:
        """Frames dropped at ingress and egress since the map was made."""
        cells = self._cells
        return (
            cells[self._cell(group_index, DROPPED_IN)],
            cells[self._cell(group_index, DROPPED_OUT)],
        )

    def handed_over(self, group_index: int) -> int:
        """Frames that came in while accept was open and announce was not."""
        return self._cells[self._cell(group_index, HANDOVER)]

    @property
    def always_pass(self) -> bool:
        """A drill runs this node with programs that never drop."""
        return bool(self._cells[FLAGS // 8] & FLAG_ALWAYS_PASS)

    def close(self) -> None:
        self._cells.release()
        self._memory.close()


class GateReader(_Page):
    """Look at a node's deadlines, from any process of the machine."""

    @classmethod
    def open(cls, paths: NodePaths) -> Self:
        """StateError if there is no gate."""
        return cls._open(paths, mmap.ACCESS_READ)


class GateWriter(_Page):
    """The lease loop's hand on the gate. One a node, held under leased's lock."""

    @classmethod
    def open(cls, paths: NodePaths) -> Self:
        """StateError if there is no gate."""
        return cls._open(paths, mmap.ACCESS_WRITE)

    def store(self, group_index: int, *, announce_ns: int, accept_ns: int) -> None:
        """Set a group's deadlines: two stores of 8 bytes, no system call.

        Opening stores accept first, closing stores announce first: at no moment between does the
        node speak without listening. No lease lasts longer than a second, so a deadline further
        ahead than two is a mistake of ours and not stored.
        """
        latest_ns = _now_ns() + _DEADLINE_AHEAD_MS_MAX * 1_000_000
        assert 0 <= announce_ns <= latest_ns, announce_ns
        assert 0 <= accept_ns <= latest_ns, accept_ns
        cells = self._cells
        announce = self._cell(group_index, ANNOUNCE)
        if announce_ns < cells[announce]:
            cells[announce] = announce_ns
            cells[announce - ANNOUNCE // 8 + ACCEPT // 8] = accept_ns
        else:
            cells[announce - ANNOUNCE // 8 + ACCEPT // 8] = accept_ns
            cells[announce] = announce_ns


def ensure_map(paths: NodePaths) -> bool:
    """Make and pin the map if there is none. True if it was made. StateError, KernelError."""
    ensure_bpffs(paths)
    target = paths.bpf / "gate"
    made = not target.exists()
    if made:
        with bpf.closing(bpf.create_array("hafw_gate", MAP_BYTES)) as fd:
            with mmap.mmap(fd, MAP_BYTES, access=mmap.ACCESS_WRITE) as memory:
                struct.pack_into("=QQ", memory, 0, MAGIC, VERSION)
            bpf.pin(fd, target)
    GateReader.open(paths).close()
    return made


def pinned_map_id(paths: NodePaths) -> int | None:
    """Of the map that is pinned now; None if there is none. KernelError."""
    try:
        fd = bpf.open_pin(paths.bpf / "gate")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    with bpf.closing(fd):
        return bpf.map_id(fd)


def set_always_pass(paths: NodePaths, always_pass: bool) -> bool:
    """Say in the page whether a drill runs programs that never drop. True if that is new.

    Set before the first such program is attached, cleared after the last is gone. StateError if
    it must be changed while leased runs.
    """
    reader = GateReader.open(paths)
    same = reader.always_pass == always_pass
    reader.close()
    if same:
        return False
    with leased_kept_out(paths):
        writer = GateWriter.open(paths)
        try:
            writer._cells[FLAGS // 8] = FLAG_ALWAYS_PASS if always_pass else 0
        finally:
            writer.close()
    return True


@contextmanager
def leased_kept_out(paths: NodePaths) -> Iterator[None]:
    """For a write of somebody else's: the page belongs to who holds leased's lock. StateError if
    leased has it."""
    with daemon_kept_out(paths, "leased") as free:
        if not free:
            raise StateError(
                f"the gate of {paths.node} cannot be changed: leased is running; stop it first"
            )
        yield
