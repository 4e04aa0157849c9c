"""Under which epoch this kernel's entries of a group were last known to be clean. Shell.

A syncd that starts on the ACTIVE node cannot tell from a RoleChange whether another node has held
the group since this kernel's windows were learnt. If its predecessor noted the very epoch that is
in force now, nobody has: then the entries need not be replaced under the feet of live flows. The
note is in the run folder, so it goes with the kernel's table when the machine restarts.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from hafw.instance import write_atomically
from hafw.paths import NodePaths

__all__ = ["CleanEpochs"]


class CleanEpochs:
    """Group -> epoch. A note that cannot be read or written only costs a replacement."""

    def __init__(self, paths: NodePaths) -> None:
        self._file: Path = paths.run / "syncd.clean"
        self._before: dict[int, int] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._before = msgspec.json.decode(self._file.read_bytes(), type=dict[int, int])
        self._now: dict[int, int] = {}

    def was_clean(self, group: int, epoch: int) -> bool:
        """Did the process before this one note this epoch?"""
        return self._before.get(group) == epoch

    def note(self, group: int, epoch: int) -> None:
        if self._now.get(group) == epoch:
            return
        self._now[group] = epoch
        with contextlib.suppress(OSError):
            write_atomically(self._file, msgspec.json.encode(self._now), mode=0o600)
