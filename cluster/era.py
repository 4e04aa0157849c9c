"""The era file: the durable part of an epoch. Shell.

One decimal number, the word `voters` and a newline in `NodePaths.era`. The word says that this
node has had a voters file (`cluster.voters_file`), which is written first; versions of hafw before
that wrote the number alone. It is raised at every start of leased, before anything is heard or
said, and before this node answers an epoch of a higher era, so that epochs only grow over any
number of restarts. A write is: temporary file, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from hafw.errors import StateError

__all__ = ["ERA_MAX", "ERA_SANE", "had_voters", "read_era", "write_durable", "write_era"]

ERA_MAX = (1 << 24) - 1
ERA_SANE = ERA_MAX // 2
"""More than this no cluster reaches by restarts: the file is damaged. Eras only grow, so one that
was followed to the end of the number range would stop the cluster for good."""
_FILE_BYTES_MAX = 32
_HAD_VOTERS = b" voters"


def read_era(path: Path) -> int:
    """The era on disk; 0 if this node never had one. Raises StateError if it cannot be known."""
    mend = (
        f"if the other nodes are up, remove it: this node then learns the era from them; "
        f"otherwise write into it a number just above any era that `hafwctl status` showed on "
        f"the other nodes (at most {ERA_SANE})"
    )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StateError(f"cannot read era file {path}: {error.strerror}; {mend}") from None
    try:
        content = os.read(fd, _FILE_BYTES_MAX)
    except OSError as error:
        raise StateError(f"cannot read era file {path}: {error.strerror}; {mend}") from None
    finally:
        os.close(fd)
    digits = content.removesuffix(b"\n").removesuffix(_HAD_VOTERS)
    if not digits.isdigit() or int(digits) > ERA_MAX:
        shown = content[:16].decode("ascii", "backslashreplace")
        raise StateError(f"era file {path} does not hold a number ({shown!r}); {mend}")
    if int(digits) > ERA_SANE:
        raise StateError(
            f"era file {path} holds {int(digits)}, more than restarts can have made (at most "
            f"{ERA_SANE}): it is damaged; {mend}"
        )
    return int(digits)


def had_voters(path: Path) -> bool:
    """Whether the era file says that there has been a voters file. An era that cannot be read is
    `read_era`'s to refuse; a number written by hand says no such thing."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return content.removesuffix(b"\n").endswith(_HAD_VOTERS)


def write_era(path: Path, era: int) -> None:
    """Make `era` durable; there is a voters file by now. Raises OSError; the era file then holds
    the old era or the new one."""
    if not 0 < era <= ERA_MAX:
        raise OSError(f"era {era} is outside 1..{ERA_MAX}")
    write_durable(path, b"%d%s\n" % (era, _HAD_VOTERS))


def write_durable(path: Path, content: bytes) -> None:
    """Replace the file, with it and its folder fsynced. Raises OSError; it then holds the old
    content or the new one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
