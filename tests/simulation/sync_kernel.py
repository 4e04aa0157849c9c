"""The kernel of a simulated gateway: a table, the events of its packets, and what syncd writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hafw.flow import FlowEntry, FlowKey
from sync.ctnetlink import CtEvent, EventKind
from sync.ops import (
    Adopt,
    Create,
    KernelOp,
    MakeStrict,
    Pristine,
    Remove,
    Replace,
    SetTimeout,
    Update,
)

if TYPE_CHECKING:
    from tests.simulation.sync_world import SimWorld

__all__ = ["FakeKernel", "Held"]


@dataclass
class Held:
    """An entry of the fake kernel. `learnt`: the epoch under which this node last forwarded it,
    0 while pristine."""

    entry: FlowEntry
    learnt: int


class FakeKernel:
    """It survives its syncd."""

    def __init__(self, world: SimWorld) -> None:
        self.world = world
        self.kernel: dict[FlowKey, Held] = {}
        self.events: list[CtEvent] = []

    def happen(self, kind: EventKind, entry: FlowEntry) -> None:
        """A packet changes the table; syncd will read the event."""
        if kind is EventKind.DESTROY:
            del self.kernel[entry.key]
        else:
            self.kernel[entry.key] = Held(entry, self.world.epoch)
        self.events.append(CtEvent(kind, entry, 0))

    def write(self, ops: list[KernelOp]) -> None:
        for op in ops:
            match op:
                case Create(entry) | Replace(entry) | Pristine(entry):
                    there = self.kernel.get(entry.key)
                    if isinstance(op, Create) and there is not None:
                        there.entry = entry  # EEXIST: the same flow is updated in place.
                    else:
                        self.kernel[entry.key] = Held(entry, 0)
                case Update(entry):
                    held = self.kernel.get(entry.key)
                    if held is None or held.entry.reply != entry.reply:
                        self.kernel[entry.key] = Held(entry, 0)
                    else:
                        held.entry = entry
                case Remove(key):
                    self.kernel.pop(key, None)
                case Adopt(key, mark):
                    if key in self.kernel:
                        self.kernel[key].entry = replace(self.kernel[key].entry, mark=mark)
                case SetTimeout() | MakeStrict():
                    pass
