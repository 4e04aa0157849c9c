"""What the lab needs of the machine: root, tools, the root mount namespace, room."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.gate_page import in_private_mount_namespace
from hafw.errors import KernelError, RefusedError, StateError
from hafw.kernel.features import missing_features

__all__ = [
    "low_conntrack_max",
    "mount_tmpfs",
    "raise_conntrack_max",
    "require_machine",
    "restore_conntrack_max",
    "room_for",
    "unmount_tmpfs",
]

TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "nft": "nftables"}
CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
CONNTRACK_MAX_NEED = 262_144
"""The most entries a drill makes in one namespace, with room. Each namespace counts for itself,
but the limit is the machine's. Buckets are left alone: their number is a trade of memory."""
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


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
    if lacking := missing_features("gateway"):
        raise StateError(f"this machine cannot carry a gateway: {'; '.join(lacking)}")


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


def mount_tmpfs(folder: Path, octets: int) -> None:
    """Lay an empty disk of this size over a folder. Raises KernelError."""
    options = f"size={octets},mode=0700".encode()
    if _libc.mount(b"hafw-lab", os.fsencode(folder), b"tmpfs", 0, options):
        raise KernelError(ctypes.get_errno(), "mount", str(folder))


def unmount_tmpfs(folder: Path) -> None:
    """Take away what `mount_tmpfs` laid over a folder, if anything. Raises KernelError."""
    if os.path.ismount(folder) and _libc.umount2(os.fsencode(folder), _MNT_DETACH):
        raise KernelError(ctypes.get_errno(), "umount", str(folder))


@contextmanager
def room_for(entries: int) -> Iterator[None]:
    """At least this nf_conntrack_max while the block runs; back again unless somebody has changed
    it since. Raises KernelError."""
    try:
        before = int(CONNTRACK_MAX.read_text())
        if before < entries:
            CONNTRACK_MAX.write_text(str(entries))
        try:
            yield
        finally:
            if before < entries and int(CONNTRACK_MAX.read_text()) == entries:
                CONNTRACK_MAX.write_text(str(before))
    except OSError as error:
        raise KernelError(error.errno or 0, "sysctl", "nf_conntrack_max") from None
