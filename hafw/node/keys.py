"""The keys of a node: made once for the cluster, the same bytes on every node.

`lease.key` authenticates heartbeats and votes (gateways and witness). `sync.key` seals the
replicated entries: a witness never gets it, because it has no need to read anybody's flows.
`raft.key` seals Raft's messages (gateways and witness).
The first node makes the keys; every other node gets them copied (`--from DIR`, a folder brought
over by a way you trust, e.g. scp to a tmpfs).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from hafw.errors import RefusedError, StateError
from hafw.keyring import KEY_BYTES, read_key, read_key_file
from hafw.paths import NodePaths

__all__ = ["KEY_NAMES", "init_keys", "write_key"]

KEY_NAMES: dict[str, tuple[str, ...]] = {
    "gateway": ("lease.key", "sync.key", "raft.key"),
    "witness": ("lease.key", "raft.key"),
}
"""Which keys a node of a role has."""


def init_keys(
    paths: NodePaths,
    *,
    role: Literal["gateway", "witness"] = "gateway",
    source: Path | None = None,
    force: bool = False,
    missing: bool = False,
) -> list[Path]:
    """Make a node's keys, or copy them from the folder `source`; return the files written.

    All or nothing up to the first write: an existing key is RefusedError unless `force`, or left
    as it is with `missing` (a release that has one key more), and every source key is checked as
    a daemon would check it (StateError) before anything changes.
    """
    names = KEY_NAMES[role]
    if missing:
        names = tuple(name for name in names if not (paths.etc / name).exists())
    targets = [paths.etc / name for name in names]
    there = [str(target) for target in targets if target.exists()]
    if there and not force:
        raise RefusedError(
            f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''}; nothing was changed. "
            "Replacing a key cuts this node off until all nodes have the new one: use --force"
        )
    keys = [_new_or_copied(name, source) for name in names]
    try:
        paths.etc.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        paths.etc.mkdir(mode=0o700, exist_ok=True)
        for target, key in zip(targets, keys, strict=True):
            write_key(target, key, force=force)
        if role == "witness" and force:
            (paths.etc / "sync.key").unlink(missing_ok=True)
    except FileExistsError as error:
        raise RefusedError(f"{error.filename} appeared meanwhile; it was not changed") from None
    except OSError as error:
        raise StateError(f"cannot write keys under {paths.etc}: {error.strerror}") from None
    return targets


def _new_or_copied(name: str, source: Path | None) -> bytes:
    if source is None:
        return os.urandom(KEY_BYTES)
    if not (source / name).exists():
        raise RefusedError(
            f"{source / name} does not exist: --from names a folder with copies of another "
            "node's key files; nothing was changed"
        )
    if name != "sync.key":
        return read_key(source / name)
    return read_key_file(source / name)


def write_key(target: Path, key: bytes, *, force: bool) -> None:
    """The file is the old one or the new one at any moment, on the disk too. Raises OSError."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(temporary, target)
        else:
            os.link(temporary, target)  # Unlike a rename, refuses an existing target.
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
