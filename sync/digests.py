"""Digests: the holder says what it knows, a follower compares at the same place. Pure.

Once a second the holder puts the digest of its registry into its own stream, so that it stands at
an exact place between the deltas. A follower that has a whole snapshot compares its registry when
it has taken all before that place: the sums of a bucket are equal iff both know the same lives of
the same flows in it. Buckets that differ are fetched anew, as a snapshot of these buckets alone::

    clean --differs--> differing --fetched--> unproven --equal at the next digest--> clean
                           ^                     |
                           +---- still differs --+   (the second time: alarm, a full snapshot)

A snapshot runs ahead of the stream, so that digests said before its end prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sync.delta import GroupDigest, Version
from sync.flowhash import BUCKETS
from sync.registry import FlowRegistry

__all__ = ["FAILURES_MAX", "DigestWatch", "say_digest"]

BUCKETS_SAID = 32
"""In one delta: about 270 bytes, for the smallest datagrams (`sync.paths`) carry it too."""
FAILURES_MAX = 2
"""Repairs in a row that may fail to help; then all is fetched."""


def say_digest(registry: FlowRegistry, group: int, epoch: int) -> list[GroupDigest]:
    """The deltas that say the group's digest as of now."""
    sums = tuple(total for total, _ in registry.digest(group))
    return [
        GroupDigest(group, first, sums[first : first + BUCKETS_SAID], Version(epoch, 0))
        for first in range(0, BUCKETS, BUCKETS_SAID)
    ]


@dataclass(slots=True)
class DigestWatch:
    """What a follower knows of one group by digests."""

    differing: set[int] = field(default_factory=set)
    """Buckets, by the last digest."""
    missing: int = 0
    """Flows that went from this kernel since the group was clean: the next digest shows them."""
    clean_at: float | None = None
    """When all buckets were equal last."""
    repairs: int = 0
    repaired: int = 0
    """Flows made, replaced or deleted by repairs."""
    failures: int = 0
    """Repairs in a row that did not help."""
    in_vain: int = 0
    """How often nothing but a full snapshot was left."""
    alarm: bool = False
    """`FAILURES_MAX` was reached, and the group was not clean since."""
    compared_at: float | None = None
    """When all of a digest was compared last, at the holder's position `compared_seq`."""
    compared_seq: int = 0
    _valid_after: int = 0
    _under_way: bool = False
    _within: bool = False
    _unproven: set[int] = field(default_factory=set)
    _still_wrong: bool = False
    _equal: set[int] = field(default_factory=set)

    def compared(self, first: int, count: int, wrong: set[int], *, seq: int, now: float) -> None:
        """The digest at `seq` says this of `count` buckets from `first` on."""
        if self._under_way or seq <= self._valid_after:
            return
        said = set(range(first, first + count))
        self._within = first + count < BUCKETS
        self.differing = self.differing - said | wrong
        self._prove(said, wrong)
        if first + count == BUCKETS:
            self.compared_at, self.compared_seq = now, seq
        # A digest comes in parts, in order.
        self._equal = said - wrong if first == 0 else self._equal | said - wrong
        if len(self._equal) == BUCKETS:
            self._equal.clear()
            self.clean_at = now
            self.missing = 0
            self.alarm = False

    def _prove(self, said: set[int], wrong: set[int]) -> None:
        """Did the last repair help? Known when all of its buckets were compared again."""
        if not self._unproven:
            return
        self._still_wrong = self._still_wrong or bool(self._unproven & wrong)
        self._unproven -= said
        if not self._unproven:
            self.failures = self.failures + 1 if self._still_wrong else 0
            if self.hopeless:
                self.in_vain += 1
                self.alarm = True

    def note_missing(self, count: int = 1) -> None:
        """Replicas went from this kernel, and from the registry."""
        self.missing += count
        self._equal.clear()

    @property
    def hopeless(self) -> bool:
        """Nothing but a full snapshot is left."""
        return self.failures >= FAILURES_MAX

    def repair_begins(self) -> None:
        self._under_way = True

    def repair_failed(self) -> None:
        """It was broken off; the buckets differ as before."""
        self._under_way = False

    def repair_ends(self, buckets: frozenset[int], flows: int, *, seq: int) -> None:
        """All of `buckets` were fetched; `seq` is the holder's position after that."""
        self._under_way = self._still_wrong = False
        self._valid_after = seq
        self._unproven = set(buckets)
        self._equal.clear()
        self.differing -= buckets
        self.repairs += 1
        self.repaired += flows

    def begin_anew(self, *, seq: int) -> None:
        """All of the group was fetched; `seq` as above. Digests of another sender count from the
        beginning of what it sends."""
        self._under_way = self._within = self._still_wrong = False
        self._valid_after = seq
        self._unproven.clear()
        self._equal.clear()
        self.differing.clear()
        self.missing = self.failures = 0

    @property
    def to_repair(self) -> frozenset[int]:
        """Buckets that differ; none while only a part of a digest was heard, since one repair
        fetches what all of it shows."""
        return frozenset() if self._within else frozenset(self.differing)

    @property
    def open_buckets(self) -> int:
        """That differ, or are not known to be equal since their repair."""
        return len(self.differing | self._unproven)

    def reason(self, holder: str) -> str:
        """Why the group is not known to be as its holder has it; empty if it is."""
        if count := self.open_buckets:
            return f"{count} of {BUCKETS} digest buckets differ from {holder}, being repaired"
        if self.missing:
            return f"{self.missing} replicas went from this kernel; comparing with {holder}"
        return ""
