"""What a group is made of in `SyncdStatus`: passes and comparisons. Pure types."""

from __future__ import annotations

import msgspec

__all__ = ["SyncDigestStatus", "SyncPassStatus"]


class SyncPassStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The holder's pass over its own entries. `kind`: ``take`` (a takeover: adoption), ``repair``
    (after lost events) or ``refresh``. `total` as far as is known; `adopted`: entries that were
    replicas and have our mark and a normal timeout now; `per_s` since it began."""

    kind: str
    running: bool
    done: int
    total: int
    adopted: int
    per_s: float


class SyncDigestStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A follower's comparison with the holder's digests. `clean_age_s`: since all buckets were
    equal last; None if they never were. `differing`: buckets that differ or are being repaired.
    `repairs` and the `repaired` flows are since the start of this syncd."""

    clean_age_s: float | None
    differing: int
    missing: int
    repairs: int
    repaired: int
    in_vain: int
