"""Work inside another network namespace, and know who else does.

`call_in` runs a function in a thread that has entered the namespace: the mount namespace stays
the caller's, so bpffs and /run are the same everywhere, and the caller's own thread never moves.
The processes of a namespace are found by the inode of ``/proc/PID/ns/net``: names and pid files
can lie, that cannot.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from hafw.errors import KernelError, StateError
from hafw.kernel import netns

__all__ = [
    "call_in",
    "create_namespace",
    "enter",
    "kill_all_in",
    "namespace_inode",
    "namespace_path",
    "processes_in",
    "read_cmdline",
]

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_SHARED = 1 << 20
KILL_WAIT_S = 5.0
"""How long SIGKILLed processes may take to disappear before that is an error."""

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def namespace_path(namespace: str) -> Path:
    return netns.path_of(namespace)


def namespace_inode(namespace: str) -> int | None:
    """The namespace's inode in nsfs; None if there is no such namespace.

    A plain file left by an interrupted creation is no namespace: its device is not nsfs's.
    """
    try:
        status = namespace_path(namespace).stat()
    except OSError:
        return None
    return status.st_ino if status.st_dev == Path("/proc/self/ns/net").stat().st_dev else None


def enter(namespace: str) -> None:
    """Move the *calling thread* into a namespace of the lab. For threads made for that."""
    try:
        netns.enter(namespace)
    except StateError:
        raise StateError(
            f"there is no network namespace {namespace}; is the lab up? (`hafwctl lab up`)"
        ) from None


class _Call(threading.Thread, Generic[T]):
    def __init__(self, namespace: str, function: Callable[[], T]) -> None:
        super().__init__(name=f"in-{namespace}", daemon=True)
        self._namespace = namespace
        self._function = function
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            enter(self._namespace)
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  # the caller's thread raises it
            self.error = error


def call_in(namespace: str, function: Callable[[], T]) -> T:
    """Run a function in a thread of its own inside a namespace; its result or its exception.

    Also serves callers whose thread runs an asyncio loop, where pyroute2's sync API fails.
    """
    call = _Call(namespace, function)
    call.start()
    call.join()
    if call.error is not None:
        raise call.error
    return call.result  # type: ignore[return-value]  # None only if T is None


def create_namespace(namespace: str) -> None:
    """Make a named network namespace, in the way and the place of `ip netns add`.

    Raises StateError if the name exists, KernelError.
    """
    path = namespace_path(namespace)
    thread = _Creation(path)
    thread.start()
    thread.join()
    if thread.error is not None:
        raise thread.error


class _Creation(threading.Thread):
    def __init__(self, path: Path) -> None:
        super().__init__(name=f"make-{path.name}", daemon=True)
        self._path = path
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._create()
        except (KernelError, StateError) as error:  # handed to the caller's thread
            self.error = error

    def _create(self) -> None:
        where = os.fsencode(netns.NETNS_DIR)
        netns.NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
        # iproute2's ip/ipnetns.c, netns_add: the folder is a shared mount of its own, so that an
        # unmount reaches every mount namespace that has a copy.
        if _libc.mount(b"", where, b"none", MS_SHARED | MS_REC, None) != 0:
            self._mount(where, where, MS_BIND | MS_REC)
            self._mount(b"", where, MS_SHARED | MS_REC)
        try:
            os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0))
        except FileExistsError:
            raise StateError(f"{self._path} exists already; `hafwctl lab down` first") from None
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise KernelError(ctypes.get_errno(), "unshare", self._path.name, "root is needed")
        self._mount(b"/proc/thread-self/ns/net", os.fsencode(self._path), MS_BIND)

    @staticmethod
    def _mount(source: bytes, target: bytes, flags: int) -> None:
        if _libc.mount(source, target, b"none", flags, None) != 0:
            raise KernelError(ctypes.get_errno(), "mount", os.fsdecode(target))


def read_cmdline(pid: int) -> list[str]:
    """Arguments of a process; empty if it is gone or a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0") if part]


def processes_in(inodes: set[int]) -> list[int]:
    """Ids of all processes, other than the caller, whose network namespace is one of these."""
    found = []
    own = os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == own:
            continue
        try:
            inode = os.stat(f"/proc/{entry}/ns/net").st_ino
        except OSError:
            continue  # it ended, or is a zombie, which has no namespace any more
        if inode in inodes:
            found.append(int(entry))
    return sorted(found)


def _entering(namespaces: Collection[str]) -> list[int]:
    """Processes that are `nsenter` on its way into one of these."""
    options = {f"--net={namespace_path(name)}" for name in namespaces}
    return [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit()
        and (words := read_cmdline(int(entry)))
        and words[0].rpartition("/")[2] == "nsenter"
        and options.intersection(words[1:2])
    ]


def kill_all_in(namespaces: Collection[str]) -> int:
    """SIGKILL every process in these namespaces until none is left; how many there were.

    Two looks in a row must find nobody: a parent may start a child between a look and its
    signal, and a process that is just about to enter is not inside yet. Raises StateError if
    something outlives `KILL_WAIT_S` (a process stuck in the kernel).
    """
    inodes = {inode for name in namespaces if (inode := namespace_inode(name)) is not None}
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_WAIT_S
    empty_looks = 0
    while empty_looks < 2:
        pids = {*processes_in(inodes), *_entering(namespaces)}
        if pids and time.monotonic() > deadline:
            words = "; ".join(f"{pid} ({' '.join(read_cmdline(pid)[:3])})" for pid in pids)
            raise StateError(f"processes survived SIGKILL for {KILL_WAIT_S:g} s: {words}")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        empty_looks = 0 if pids else empty_looks + 1
        time.sleep(0.005)
    return len(killed)
