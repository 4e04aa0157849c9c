"""How a digest goes over the wire, as one of the deltas (`sync.delta_codec`). Pure.

====== ============== ==========================================================================
bytes  field          there if
====== ============== ==========================================================================
2      flags          always: DIGEST, and EPOCH
1      group          always, 1 to 15
1      first bucket   always
1      buckets        always, 1 to 128
8      epoch          EPOCH; else it is that of the datagram's header
8 each sums           always
====== ============== ==========================================================================
"""

from __future__ import annotations

import struct

from sync.delta_model import DeltaError, GroupDigest, Version
from sync.flowhash import BUCKETS

__all__ = ["BUCKETS_A_DELTA", "decode_digest", "encode_digest"]

BUCKETS_A_DELTA = 128
"""What fits a datagram of its own. (`sync.digests` says fewer at a time.)"""
GROUP_MAX = 15

_HEAD = struct.Struct(">HBBB")
_U64 = struct.Struct(">Q")


def encode_digest(delta: GroupDigest, flags: int, epoch: int | None) -> bytes:
    """Without its length. `epoch` is None if the header says it."""
    count = len(delta.sums)
    assert 1 <= count <= BUCKETS_A_DELTA, count
    assert 0 <= delta.first <= BUCKETS - count, delta.first
    assert 1 <= delta.group <= GROUP_MAX, delta.group
    return b"".join(
        (
            _HEAD.pack(flags, delta.group, delta.first, count),
            b"" if epoch is None else _U64.pack(epoch),
            struct.pack(f">{count}Q", *delta.sums),
        )
    )


def decode_digest(payload: bytes, offset: int, epoch: int | None) -> tuple[GroupDigest, int]:
    """From its flags on; `epoch` is that of the header, or None if the delta must say it. Raises
    struct.error where the payload ends too early."""
    _, group, first, count = _HEAD.unpack_from(payload, offset)
    offset += _HEAD.size
    if epoch is None:
        (epoch,) = _U64.unpack_from(payload, offset)
        offset += 8
    if not 1 <= count <= min(BUCKETS_A_DELTA, BUCKETS - first) or not 1 <= group <= GROUP_MAX:
        raise DeltaError("bad_value", f"digest of group {group}: {count} buckets from {first}")
    sums = struct.unpack_from(f">{count}Q", payload, offset)
    return GroupDigest(group, first, sums, Version(epoch, 0)), offset + 8 * count
