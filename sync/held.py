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
    drains_wanted: int = 0
    """The pass's dump is through: it ends when the event queue was empty this many times."""
    next_chunk_at: float = 0.0
    retry_at: float = 0.0
    digest_at: float = 0.0
    """When the group's digest is said next."""
    refresh_at: float = 0.0
    adopted_until: float = 0.0
    """Events are compared with the ADOPTED flag until then; 0: no flow has it."""

    def pass_again(self) -> None:
        """The pass under way is void."""
        if self.dump is not None:
            self.dump.cancel()
        self.own_pass = self.dump = None
        self.want_take = True

    def cancel(self) -> None:
        for dumper in (self.scan, self.dump):
            if dumper is not None:
                dumper.cancel()
        self.liberal.cancel()
