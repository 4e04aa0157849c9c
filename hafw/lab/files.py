"""The lab's files: its folder, its lock, its state, and the nodes' folders that it makes.

============================ ===============================================================
/run/hafw/lab.lock            flock around `up` and `down`
/run/hafw/lab/state.json      what was asked for, and whether `up` came to its end
/run/hafw/lab/cluster.yaml    the nodes' configuration, timers overridden if asked for
/run/hafw/lab/policy.yaml     their policy
/run/hafw/lab/labd.{pid,log}  the supervisor
/run/hafw/lab/NODE.hold       labd leaves this node alone
/run/hafw/lab/NODE.hafwd.log  what a node's hafwd wrote
/run/hafw/lab/NODE.clock      its wall clock (`hafw.lab.lab_clock`), with clock_step.so
============================ ===============================================================

/etc/hafw/NODE and /var/lib/hafw/NODE get the file `MARKER`: only what carries it is ever removed,
so a lab never touches the keys of a real node that happens to have the same name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hafw.errors import RefusedError, StateError
from hafw.instance import write_atomically
from hafw.paths import NodePaths

__all__ = [
    "MARKER",
    "LabState",
    "claim_node_folders",
    "exclusive",
    "hold_file",
    "is_marked",
    "lab_folder",
    "read_state",
    "remove_node_folders",
    "require_node_folders_free",
    "run_root",
    "write_state",
]

MARKER = ".made-by-hafwctl-lab"


def run_root() -> Path:
    """/run/hafw."""
    return NodePaths("lab").run.parent


def lab_folder() -> Path:
    """/run/hafw/lab."""
    return run_root() / "lab"


def hold_file(node: str) -> Path:
    return lab_folder() / f"{node}.hold"


@dataclass(frozen=True, slots=True)
class LabState:
    """What a lab was asked to be. `complete`: its `up` came to its end."""

    complete: bool
    bare: bool
    heartbeat_ms: int | None
    lease_ms: int | None
    without: tuple[str, ...]
    source: str
    """The cluster file it was made from."""
    nodes: tuple[str, ...]
    namespaces: dict[str, int] = field(default_factory=dict)
    """Inodes, so that a namespace made anew by somebody else is not taken for ours."""
    conntrack_max_before: int | None = None
    """nf_conntrack_max of the machine, if the lab raised it."""

    def asked_for(self) -> tuple[object, ...]:
        """What must agree for a second `up` to be the same."""
        return (self.bare, self.heartbeat_ms, self.lease_ms, self.without, self.source)


def write_state(state: LabState) -> None:
    text = json.dumps(asdict(state), indent=1) + "\n"
    write_atomically(lab_folder() / "state.json", text.encode(), mode=0o644)


def read_state() -> LabState | None:
    """None if there is no lab, or its state was lost by a crash: both mean, down first."""
    try:
        document = json.loads((lab_folder() / "state.json").read_text())
        document["without"] = tuple(document["without"])
        document["nodes"] = tuple(document["nodes"])
        return LabState(**document)
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def exclusive(what: str) -> Iterator[None]:
    """Hold /run/hafw/lab.lock. Raises RefusedError if another `up` or `down` has it.

    The file is removed before it is let go, so whoever got a lock looks whether the name still
    means the file it locked.
    """
    path = run_root() / "lab.lock"
    while True:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the folder went away between the two calls: a `down` ended
        except OSError as error:
            raise StateError(f"cannot open {path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 100, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise RefusedError(f"cannot {what}: {holder} is at it; wait for its end") from None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(fd).st_ino:
                break
        os.close(fd)
    try:
        os.truncate(fd, 0)
        os.pwrite(fd, f"{what} (pid {os.getpid()})".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # only if nothing else is in it
        os.close(fd)


# ---- folders of nodes -----------------------------------------------------------------------


def _node_folders(paths: NodePaths) -> tuple[Path, Path]:
    return paths.etc, paths.lib


def require_node_folders_free(nodes: list[str]) -> None:
    """Raises RefusedError if a folder with content that is not the lab's is in the way."""
    for node in nodes:
        for folder in _node_folders(NodePaths(node)):
            if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
                raise RefusedError(
                    f"{folder} exists and was not made by the lab: a node named {node} lives on "
                    "this machine, or an earlier lab left it. Nothing was changed. If none "
                    f"does: rm -r {folder}; else name the lab's nodes otherwise (--config)"
                )


def claim_node_folders(paths: NodePaths) -> None:
    """Make /etc/hafw/NODE and /var/lib/hafw/NODE, marked as ours; 0700."""
    for folder in _node_folders(paths):
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        (folder / MARKER).touch(mode=0o600)


def is_marked(node: str) -> bool:
    """The lab made a folder of this node."""
    return any((folder / MARKER).exists() for folder in _node_folders(NodePaths(node)))


def remove_node_folders(node: str) -> None:
    """Remove what `claim_node_folders` made and a node left in it, and its run folder."""
    paths = NodePaths(node)
    for folder in _node_folders(paths):
        if (folder / MARKER).exists():
            # The marker goes last, so that an interrupted removal is resumed.
            for entry in folder.iterdir():
                if entry.name != MARKER:
                    _remove(entry)
            (folder / MARKER).unlink()
        _remove_if_empty(folder)
        _remove_if_empty(folder.parent)
    _remove(paths.run)
    _remove(paths.bpf)
    _remove_if_empty(paths.bpf.parent)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"cannot remove {error.filename or path}: {error.strerror}") from None


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise StateError(f"cannot remove {folder}: {error.strerror}") from None
