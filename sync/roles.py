"""Who holds each group, as this node knows it, and what follows when that changes. Pure.

Three sources: leased's `RoleChange` (repeated every 100 ms); a peer's delta of a newer epoch,
which proves that a lease ended even before leased says so; and the newest epoch that a peer's
beacon names, which proves the same to a node whose links have just come back. Epochs only grow:
an older word is ignored. *dirty* means that this kernel has forwarded the group's packets, so that
its windows go stale as soon as another node holds the group.

::

            RoleChange active            another's newer epoch
    follow ------------------> holding ------------------------> follow (BecomeStale if dirty)
      ^                           |
      +------ silent 1 s ---------+   (leased is dead: the gate shuts by itself; stop publishing)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hafw.human import epoch_node
from hafw.messages import RoleChange

__all__ = [
    "LEASED_SILENT_S",
    "BecomeStale",
    "Follow",
    "RoleEffect",
    "RoleState",
    "Roles",
    "StartHolding",
    "StopHolding",
]

LEASED_SILENT_S = 1.0
"""Without a RoleChange for this long the role is unknown."""


@dataclass(frozen=True, slots=True)
class StartHolding:
    """Publish from now on, under `epoch`. `contiguous`: nobody else forwarded since this node
    last did. `first`: this process knew no role before, so its registry says nothing."""

    group: int
    epoch: int
    contiguous: bool
    first: bool


@dataclass(frozen=True, slots=True)
class StopHolding:
    """Publish nothing any more."""

    group: int


@dataclass(frozen=True, slots=True)
class BecomeStale:
    """Another node has forwarded the group's packets since this one did."""

    group: int


@dataclass(frozen=True, slots=True)
class Follow:
    """`holder_id` holds the group under `epoch`: its snapshot is wanted, its deltas count."""

    group: int
    holder_id: int
    epoch: int


RoleEffect = StartHolding | StopHolding | BecomeStale | Follow


@dataclass(slots=True)
class RoleState:
    """One group's role. Read by others, written by `Roles`."""

    known: bool = False
    """A RoleChange has come since the start."""
    active: bool = False
    epoch: int = 0
    holder_id: int = 0
    """Who holds the lease now, as leased says; 0 = nobody."""
    last_holder_id: int = 0
    """Who held it last; 0 = nobody known."""
    own_epoch: int = 0
    """The last epoch under which this node held the group."""
    dirty: bool = False
    heard_at: float | None = None


class Roles:
    """The roles of this node in all groups."""

    def __init__(self, node_id: int, groups: list[int]) -> None:
        self._node_id = node_id
        self.states = {group: RoleState() for group in groups}
        self.counters: Counter[str] = Counter()

    def held(self) -> dict[int, int]:
        """Group -> epoch of the groups this node holds."""
        return {group: s.epoch for group, s in self.states.items() if s.active}

    def on_role_change(self, message: RoleChange, *, now: float) -> list[RoleEffect]:
        s = self.states.get(message.group)
        if s is None:
            self.counters["role_unknown_group"] += 1
            return []
        s.heard_at = now
        if message.epoch < s.epoch:
            # A peer's deltas were faster than our leased: its lease is over, whatever it says.
            self.counters["role_old_epoch"] += 1
            return []
        if message.active:
            return self._hold(s, message)
        return self._follow(s, message.group, message.epoch, message.holder_id, known=True)

    def on_superseded(self, group: int, epoch: int, holder_id: int) -> list[RoleEffect]:
        """A peer's authentic delta of a newer epoch."""
        s = self.states[group]
        if epoch <= s.epoch:
            return []
        self.counters["role_superseded"] += 1
        return self._follow(s, group, epoch, holder_id, known=s.known)

    def on_told(self, epochs: Mapping[int, int]) -> list[RoleEffect]:
        """Group -> the newest epoch that any peer knows. Under it its node has held the group;
        whether that lives still, leased will say."""
        effects: list[RoleEffect] = []
        for group, epoch in epochs.items():
            s, node = self.states.get(group), epoch_node(epoch)
            if s is not None and s.known and epoch > s.epoch and node != self._node_id:
                self.counters["role_told_newer"] += 1
                effects += self._follow(s, group, epoch, node, known=True)
                s.holder_id = 0
        return effects

    def tick(self, *, now: float) -> list[RoleEffect]:
        effects: list[RoleEffect] = []
        for group, s in sorted(self.states.items()):
            if s.active and s.heard_at is not None and now - s.heard_at > LEASED_SILENT_S:
                self.counters["role_leased_silent"] += 1
                s.active = False
                effects.append(StopHolding(group))
        return effects

    def _hold(self, s: RoleState, message: RoleChange) -> list[RoleEffect]:
        if s.active and s.epoch == message.epoch:
            return []
        effects: list[RoleEffect] = []
        first = not s.known
        # Leased answers for the epoch's beginning; within one epoch nobody else can have held.
        contiguous = message.contiguous or (s.own_epoch == message.epoch and s.dirty)
        if s.dirty and not contiguous:
            effects.append(BecomeStale(message.group))
        s.known = s.active = s.dirty = True
        s.epoch = s.own_epoch = message.epoch
        s.holder_id = s.last_holder_id = self._node_id
        effects.append(StartHolding(message.group, message.epoch, contiguous, first))
        return effects

    def _follow(
        self, s: RoleState, group: int, epoch: int, holder_id: int, *, known: bool
    ) -> list[RoleEffect]:
        effects: list[RoleEffect] = []
        if s.active:
            s.active = False
            effects.append(StopHolding(group))
        other = holder_id not in (0, self._node_id)
        changed = other and (holder_id != s.last_holder_id or epoch != s.epoch)
        s.known = known
        s.epoch, s.holder_id = epoch, holder_id
        if other:
            s.last_holder_id = holder_id
            if s.dirty:
                s.dirty = False
                effects.append(BecomeStale(group))
        if changed:
            effects.append(Follow(group, holder_id, epoch))
        return effects
