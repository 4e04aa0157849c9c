"""What the holder of a group remembers of the work it has begun. Plain records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hafw.messages import NewEpochRequest
from sync.adopt import OwnPass
from sync.dumper import Dumper
from sync.liberal import LiberalFlows
from sync.progress import PassProgress

if TYPE_CHECKING:
    from sync._codec import StrictMaker

__all__ = ["Held", "HolderPorts"]


@dataclass(frozen=True, slots=True)
class HolderPorts:
    """What the holder needs of the process around it."""

    start_dump: Callable[[int], Dumper]
    start_everywhere: Callable[[], Dumper]
    """Of all groups and none."""
    start_gathered: Callable[[int], Dumper]
    """As `LiberalFlows` reads it."""
    send_to_leased: Callable[[NewEpochRequest], None]
    note_clean: Callable[[int, int], None]
    """Group, epoch: no entry of the group is stale here, and this node holds it."""
    strict: StrictMaker | None = None


@dataclass(slots=True)
class Held:
    """One held group."""

    epoch: int
    liberal: LiberalFlows
    want_take: bool = False
    want_repair: bool = False
    want_refresh: bool = False
    says_all: bool = False
    """The pass under way says every flow, also what the peers know."""
    recovering: bool = False
    overrun: bool = False
    ready: bool = False
    """All flows have been said under this epoch: snapshots may be served."""
    scan: Dumper | None = None
    """Recovering: is there anything to recover?"""
    epoch_asked_at: float | None = None
    epoch_wait_until: float | None = None
    own_pass: OwnPass | None = None
    dump: Dumper | None = None
    progress: PassProgress | None = None
    """Of the pass that runs, or else of the last one."""
    unheard: int = 0
    """Flows that the last refresh did not find, although no event was lost."""
    everywhere: bool = False
    """The pass looks through the whole table for what its group's dump did not show."""
    strays: int = 0
    """Flows that had lost their mark when the group was taken over, since the last refresh."""
    drains_wanted: int = 0
    """The pass's dump is through: it ends when the event queue was empty this many times."""
    next_chunk_at: float = 0.0
    retry_at: float = 0.0
    digest_at: float = 0.0
    """When the group's digest is said next."""
    refresh_at: float = 0.0
    adopted_until: float = 0.0
    """Events are compared with the ADOPTED flag until then; 0: no flow has it."""

    def resume(self, before: Held) -> None:
        """Held again under the same epoch: nobody else has held the group meanwhile, and what the
        peers were told holds. Only what happened meanwhile is to be said."""
        self.ready = self.overrun = self.want_repair = True
        self.refresh_at, self.unheard, self.strays = (
            before.refresh_at, before.unheard, before.strays,
        )  # fmt: skip

    def times(self, retry_s: float) -> list[float]:
        """When there is something to do again, if nothing wakes the loop. `retry_s`: between two
        requests for a new epoch."""
        times = [self.refresh_at]
        if self.ready:
            times.append(self.digest_at)
        if len(self.liberal):
            times.append(self.liberal.poll_at)
        if self.own_pass is not None or self.want_take or self.want_repair:
            times.append(max(self.next_chunk_at, self.retry_at))
        if self.epoch_wait_until is not None and self.epoch_asked_at is not None:
            times.append(self.epoch_asked_at + retry_s)
        return times

    def busy(self, *, now: float) -> bool:
        """Is there work that should not wait for an event?"""
        scanned = self.scan is not None and (self.scan.ready or self.scan.done)
        ready = self.dump is not None and (self.dump.ready or self.dump.done)
        return (
            self.liberal.busy
            or (scanned and now >= self.retry_at)
            or (ready and now >= self.next_chunk_at)
        )

    def pass_again(self) -> None:
        """The pass under way is void."""
        if self.dump is not None:
            self.dump.cancel()
        self.own_pass = self.dump = None
        self.everywhere = False
        self.want_take = True

    def cancel(self) -> None:
        for dumper in (self.scan, self.dump):
            if dumper is not None:
                dumper.cancel()
        self.liberal.cancel()
