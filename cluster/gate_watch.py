"""Whether the gate that leased writes is still the one the kernel asks. Shell.

A page that nobody's programs read any more, or a device without them, is a black hole: the node
goes on renewing its lease, and no frame gets in or out. So the lease loop looks, one device at a
time, at all of them about once a second, and gives its leases up if something is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cluster import gate
from cluster.gate_page import GateWriter, pinned_map_id
from hafw.errors import KernelError
from hafw.paths import NodePaths

__all__ = ["GateWatch"]

ROUND_NS = 1_000_000_000
"""In which every device is looked at once."""
LOOKS_MAX = 2
"""A device that is wrong so often in a row is wrong: hafwd may be about to set it up again."""


class GateWatch:
    """Of one open gate and the devices, as (group index, name), that must be behind it."""

    def __init__(
        self, paths: NodePaths, writer: GateWriter, devices: Sequence[tuple[int, str]]
    ) -> None:
        self._paths = paths
        self._map_id = writer.map_id
        self._devices = list(devices)
        self._next = 0
        self._next_ns = 0
        self._wrong: Counter[str] = Counter()

    def look(self, now_ns: int) -> str:
        """Why this node must not hold a lease; empty if it may, or if it is not time to look."""
        if now_ns < self._next_ns:
            return ""
        self._next_ns = now_ns + ROUND_NS // max(1, len(self._devices))
        if self._is_other_gate():
            return (
                f"the gate at {self._paths.bpf} is not the one that was opened at the start: "
                "somebody removed it or took the node down; its leases are given up"
            )
        if not self._devices:
            return ""
        group_index, ifname = self._devices[self._next]
        self._next = (self._next + 1) % len(self._devices)
        if self._is_attached(group_index, ifname):
            del self._wrong[ifname]
            return ""
        self._wrong[ifname] += 1
        if self._wrong[ifname] < LOOKS_MAX:
            return ""
        return f"{ifname} is gone or its gate is not attached any more; the leases are given up"

    def _is_other_gate(self) -> bool:
        try:
            return pinned_map_id(self._paths) != self._map_id
        except KernelError:  # E.g. ENOMEM: not known now.
            return False

    def _is_attached(self, group_index: int, ifname: str) -> bool:
        good = (gate.HookState.GATE, gate.HookState.ALWAYS_PASS)
        try:
            return all(
                gate.hook_state(self._paths, group_index, ifname, hook) in good
                for hook in gate.Hook
            )
        except KernelError:  # The device went away meanwhile.
            return False
