"""The two keyed hashes of a flow: which flow it is, and what it adds to a digest. Pure.

Both are 64 bits of a Carter-Wegman hash under one secret of the cluster, so that all nodes compute
the same and nobody outside can make two flows meet. Over the canonical text of a flow,
``h = (h * k + w) mod p`` with p = 2^61 - 1 for each 7 bytes `w` (big-endian, the last may be
shorter), then once for the length of the text; the hash is ``fmix64(h ^ k2)`` (MurmurHash3's
finalizer). `k` is the first 8 bytes of the secret mod p (0 becomes 1), `k2` the next 8.

Canonical texts, all integers big-endian:

============ =================================================================================
flow         zone 2, family 1 (4 or 6), protocol 1, orig src, orig dst, orig keys 2 + 2
contribution flow, incarnation 4, reply src, reply dst, reply keys 2 + 2, helper name in ASCII
============ =================================================================================

The contribution covers a flow's identity and nothing that changes while the flow lives.
"""

from __future__ import annotations

import struct

from hafw.flow import AF_INET, FlowEntry, FlowKey, Tuple

__all__ = ["BUCKETS", "SECRET_BYTES", "FlowHash", "bucket_of"]

"""The HKDF label by which the secret derives from the sync key."""
SECRET_BYTES = 32
BUCKETS = 256
"""Of a digest, by the top 8 bits of the flow hash."""

_P = (1 << 61) - 1
_M64 = (1 << 64) - 1
_M56 = (1 << 56) - 1
_HEAD = struct.Struct(">HBB")
_PORTS = struct.Struct(">HH")
_U32 = struct.Struct(">I")


def bucket_of(flow_hash: int) -> int:
    return flow_hash >> 56


class FlowHash:
    """Both hashes under one secret."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == SECRET_BYTES, len(secret)
        self.secret = secret
        self._k = int.from_bytes(secret[:8], "big") % _P or 1
        self._k2 = int.from_bytes(secret[8:16], "big")

    def flow(self, key: FlowKey) -> int:
        """Which flow: zone and original tuple."""
        return self._hash(_flow_text(key))

    def contribution(self, entry: FlowEntry, incarnation: int) -> int:
        """What this life of the flow adds to the sum of its bucket."""
        helper = "" if entry.helper is None else entry.helper
        return self._hash(
            _flow_text(entry.key)
            + _U32.pack(incarnation)
            + _tuple_text(entry.reply)
            + helper.encode("ascii", "replace")
        )

    def _hash(self, text: bytes) -> int:
        k, size = self._k, len(text)
        # One big integer, cut by shifts: faster than a slice for each word.
        whole, odd = divmod(size, 7)
        number = int.from_bytes(text, "big")
        shift = 8 * (size - 7)
        h = 0
        for _ in range(whole):
            h = (h * k + (number >> shift & _M56)) % _P
            shift -= 56
        if odd:
            h = (h * k + (number & (1 << 8 * odd) - 1)) % _P
        h = (h * k + size) % _P ^ self._k2
        h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & _M64
        h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & _M64
        return h ^ h >> 33


def _flow_text(key: FlowKey) -> bytes:
    orig = key.orig
    family = 4 if orig.family == AF_INET else 6
    return _HEAD.pack(key.zone, family, orig.proto) + _tuple_text(orig)


def _tuple_text(one: Tuple) -> bytes:
    return one.src + one.dst + _PORTS.pack(one.sport, one.dport)
