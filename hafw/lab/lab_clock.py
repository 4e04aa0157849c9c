"""Wall clocks of the lab's nodes, one a node, which drills may step. Shell.

`make_clocks` compiles ``clock_step.c`` once a lab and makes one page a node; labd then starts
hafwd, and so all daemons, with it. Without a C compiler there are no such clocks: the lab is built
all the same, and a drill that wants to step one refuses.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

from hafw.errors import StateError
from hafw.lab.files import lab_folder

__all__ = ["clock_environment", "clock_off_s", "clock_reads", "make_clocks", "step_clock"]

_PAGE = struct.Struct("=qQ")
_NS_PER_S = 1_000_000_000
COMPILE_WAIT_S = 30.0


def _library() -> Path:
    return lab_folder() / "clock_step.so"


def _page_of(node: str) -> Path:
    return lab_folder() / f"{node}.clock"


def make_clocks(nodes: list[str]) -> None:
    """Raises StateError if the compiler refuses."""
    if shutil.which("gcc") is None:
        return
    source = Path(__file__).with_name("clock_step.c")
    fresh = _library().with_suffix(".new")
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(fresh), str(source)],
        capture_output=True, text=True, timeout=COMPILE_WAIT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StateError(f"cannot compile {source.name}: {done.stderr.strip()[-300:]}")
    for node in nodes:
        _page_of(node).write_bytes(_PAGE.pack(0, 0))
    os.replace(fresh, _library())


def clock_environment(node: str) -> dict[str, str]:
    """What a node's processes must be started with; nothing if there are no such clocks."""
    if not _library().exists() or not _page_of(node).exists():
        return {}
    return {"LD_PRELOAD": str(_library()), "HAFW_LAB_CLOCK": str(_page_of(node))}


def step_clock(node: str, step_s: int) -> None:
    """From now on the node's wall clock is this far from the machine's. Raises StateError."""
    _edit(node, step_s * _NS_PER_S)


def clock_reads(node: str) -> int:
    """How often the node's processes have asked for the time. Raises StateError."""
    return _edit(node, None)[1]


def clock_off_s(node: str) -> int:
    """How far the node's wall clock is from the machine's. Raises StateError."""
    return _edit(node, None)[0] // _NS_PER_S


def _edit(node: str, offset_ns: int | None) -> tuple[int, int]:
    """The page's offset and reads."""
    if not clock_environment(node):
        raise StateError(
            "this lab's nodes have no wall clock of their own: it was built without a C compiler "
            "(apt install gcc libc6-dev, then build the lab anew)"
        )
    with _page_of(node).open("r+b") as file, mmap.mmap(file.fileno(), _PAGE.size) as page:
        if offset_ns is not None:
            page[:8] = struct.pack("=q", offset_ns)
        off_ns, reads = _PAGE.unpack_from(page)
    return off_ns, reads
