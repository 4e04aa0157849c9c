"""Enter a network namespace, for good or to come back, keeping the mount namespace.

``ip netns exec`` would give the process a mount namespace of its own and hide bpffs; setns(2)
with a network namespace alone does not. setns changes the calling thread only.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hafw.errors import KernelError, StateError

__all__ = ["NETNS_DIR", "enter", "entered", "inode", "path_of"]

NETNS_DIR = Path("/run/netns")
"""Where ``ip netns`` keeps named namespaces."""

_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    return NETNS_DIR / name


def inode(path: Path = Path("/proc/thread-self/ns/net")) -> int:
    """What tells one network namespace from another."""
    return path.stat().st_ino


def enter(namespace: str | Path) -> None:
    """Move the *calling thread* into a network namespace, given by name or path, for good: for
    threads made for that purpose. StateError if there is none; KernelError."""
    path = path_of(namespace) if isinstance(namespace, str) else namespace
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"network namespace {path}: {error.strerror}") from None
    try:
        _setns(target, str(path))
    finally:
        os.close(target)


@contextmanager
def entered(namespace: str | Path) -> Iterator[None]:
    """Be in a network namespace, given by name or path, and back at the end.

    StateError if there is none; KernelError without CAP_SYS_ADMIN. Sockets opened inside stay of
    the namespace.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            # Not to come home would run the rest of the program in the wrong place.
            _setns(home, "the namespace this thread came from")
    finally:
        os.close(home)


def _setns(fd: int, target: str) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise KernelError(
            ctypes.get_errno(), "entering a network namespace", target, "it needs CAP_SYS_ADMIN"
        )
