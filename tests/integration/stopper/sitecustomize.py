"""Loaded by Python at start when this folder is on PYTHONPATH: hafw-leased stops at a step.

The file ``<run>/stop-at`` names a step of the renewal; when the lease loop comes to it, the file
is removed and the process sends itself SIGSTOP right there, as a scheduler, a hypervisor or a
debugger might. Nothing of this is in the product.

============== ====================================================================
step           where the process stops
============== ====================================================================
before-send    the clock is read for a request, nothing is sent yet
after-send     the request has left
before-core    a voter's answer is received and its time read, nothing is decided
before-store   the deadline is computed, the kernel map not yet written
after-store    the map is written
============== ====================================================================
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def stop_if_asked(step: str) -> None:
    path = os.path.join(
        os.environ.get("HAFW_RUN_ROOT", "/run/hafw"), os.environ.get("HAFW_NODE", ""), "stop-at"
    )
    try:
        with open(path) as file:
            wanted = file.read().strip()
    except OSError:
        return
    if wanted == step:
        os.unlink(path)
        os.kill(os.getpid(), signal.SIGSTOP)


def wrap(owner: Any, name: str, before: str | None, after: str | None) -> None:
    inner = getattr(owner, name)

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            stop_if_asked(before)
        result = inner(*args, **kwargs)
        if after is not None:
            stop_if_asked(after)
        return result

    setattr(owner, name, stopped)


class Patch(Loader):
    """Runs the module's own loader, then wraps what PATCHES says."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        for owner, name, before, after in PATCHES[module.__name__]:
            wrap(getattr(module, owner), name, before, after)


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = Patch(spec.loader)
        return spec


PATCHES: dict[str, list[tuple[str, str, str | None, str | None]]] = {
    "cluster.gate_page": [("GateWriter", "store", "before-store", "after-store")],
    "cluster.lease": [("LeaseCore", "handle", "before-core", None)],
    "cluster.leased_io": [("LinkSockets", "send", "before-send", "after-send")],
}

if os.path.basename(sys.argv[0] if sys.argv else "").startswith("hafw-leased"):
    sys.meta_path.insert(0, Finder())
