"""What a delta is: one change of one flow, its version. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hafw.errors import PeerError
from hafw.flow import Expectation, FlowEntry, FlowKey, Tuple

__all__ = [
    "Delta",
    "DeltaError",
    "Destroy",
    "ExpectDestroy",
    "ExpectUpsert",
    "GroupDigest",
    "Upsert",
    "Version",
]


class DeltaError(PeerError):
    """A delta that no sender of ours writes. `reason` names the counter."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"delta refused ({reason}): {detail}")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """The ownership version: the epoch under which it was read, then a count within it."""

    epoch: int
    count: int


@dataclass(frozen=True, slots=True)
class Upsert:
    """The flow exists and looks like this. `refresh`: nothing changed, it is only said again."""

    entry: FlowEntry
    incarnation: int
    version: Version
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Destroy:
    """The flow is gone. It acts only where key, incarnation and contribution (what the flow adds
    to its digest: `sync.flowhash`) all match."""

    key: FlowKey
    incarnation: int
    version: Version
    contribution: int


@dataclass(frozen=True, slots=True)
class ExpectUpsert:
    """The helper of a flow expects this. Identity is the master's: its key, the incarnation in
    which it expects, and its version. `refresh` as above."""

    expectation: Expectation
    incarnation: int
    version: Version
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class ExpectDestroy:
    """The flow of `master` expects `expected` no more: it came, or it never will."""

    master: FlowKey
    expected: Tuple
    incarnation: int
    version: Version

    @property
    def key(self) -> FlowKey:
        return FlowKey(self.master.zone, self.expected)


@dataclass(frozen=True, slots=True)
class GroupDigest:
    """What the holder knows of the group at this place of its stream: from bucket `first` on, the
    sum of the contributions of the flows in each bucket (`sync.registry`)."""

    group: int
    first: int
    sums: tuple[int, ...]
    version: Version


Delta = Upsert | Destroy | ExpectUpsert | ExpectDestroy | GroupDigest
