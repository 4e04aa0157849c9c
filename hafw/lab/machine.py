"""What the lab needs of the machine: root, tools, the root mount namespace, a bpffs, room."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from hafw.errors import KernelError, RefusedError, StateError

__all__ = [
    "BPFFS",
    "ensure_bpffs",
    "in_private_mount_namespace",
    "low_conntrack_max",
    "raise_conntrack_max",
    "require_machine",
    "restore_conntrack_max",
]

BPFFS = Path("/sys/fs/bpf")
TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "nft": "nftables"}
CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
CONNTRACK_MAX_NEED = 262_144
"""The most entries a drill makes in one namespace, with room. Each namespace counts for itself,
but the limit is the machine's. Buckets are left alone: their number is a trade of memory."""


def require_machine() -> None:
    """Raises RefusedError or StateError with everything that is missing."""
    if os.geteuid() != 0:
        raise RefusedError(
            "the lab needs root: it makes network namespaces, devices and BPF programs. "
            "Nothing was changed; run it with sudo"
        )
    missing = [
        f"{tool} (package {package})" for tool, package in TOOLS.items() if not shutil.which(tool)
    ]
    if missing:
        raise StateError(f"the lab needs {', '.join(missing)} in PATH; install what is missing")
    if in_private_mount_namespace():
        raise RefusedError(
            "this process runs in a mount namespace of its own: what it pins in bpffs would "
            "vanish with it, and with the pins the gates (which opens them). Run hafwctl outside "
            "`ip netns exec`, `unshare -m` and services with PrivateMounts"
        )


def in_private_mount_namespace() -> bool:
    """This process does not share process 1's mounts. Told by the id of the root mount, which is
    unique on the machine; /proc/1/ns/mnt may be closed even to root (a container's seccomp or
    an LSM), mountinfo is not."""
    try:
        return _root_mount_id("self") != _root_mount_id("1")
    except OSError as error:
        raise StateError(
            f"cannot compare mount namespaces with process 1: {error.filename}: {error.strerror}"
        ) from None


def _root_mount_id(process: str) -> int | None:
    for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == "/":
            return int(fields[0])
    return None


def ensure_bpffs() -> bool:
    """Mount a bpffs on /sys/fs/bpf if there is none; whether it had to. It is never unmounted:
    others may pin there too, and systemd mounts it at every boot anyway."""
    kinds = [
        fields[fields.index("-") + 1]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if (fields := line.split())[4] == str(BPFFS)
    ]
    if kinds and kinds[-1] == "bpf":
        return False
    if not BPFFS.is_dir():
        raise KernelError(
            errno.ENOENT, "the mount of bpffs", str(BPFFS), "this kernel has no BPF file system"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        raise KernelError(ctypes.get_errno(), "the mount of bpffs", str(BPFFS))
    return True


def low_conntrack_max() -> int | None:
    """nf_conntrack_max of the machine if it is below `CONNTRACK_MAX_NEED`, else None."""
    try:
        value = int(CONNTRACK_MAX.read_text())
    except FileNotFoundError:
        raise StateError(
            f"{CONNTRACK_MAX} is missing: this kernel has no connection tracking "
            "(modprobe nf_conntrack)"
        ) from None
    return value if value < CONNTRACK_MAX_NEED else None


def raise_conntrack_max() -> None:
    try:
        CONNTRACK_MAX.write_text(str(CONNTRACK_MAX_NEED))
    except OSError as error:
        raise KernelError(error.errno or 0, "sysctl", "nf_conntrack_max") from None


def restore_conntrack_max(before: int) -> None:
    """Set nf_conntrack_max back, unless somebody has changed it since."""
    try:
        if int(CONNTRACK_MAX.read_text()) == CONNTRACK_MAX_NEED:
            CONNTRACK_MAX.write_text(str(before))
    except OSError as error:
        raise KernelError(error.errno or 0, "sysctl", "nf_conntrack_max") from None
