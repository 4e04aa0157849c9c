"""Deltas: what they are (`sync.delta_model`), how they look on the wire (`sync.delta_codec`)."""

from __future__ import annotations

from sync.delta_codec import STATUS_WIRE_MASK, decode_deltas, encode_delta, encode_deltas
from sync.delta_model import (
    Delta,
    DeltaError,
    Destroy,
    ExpectDestroy,
    ExpectUpsert,
    GroupDigest,
    Upsert,
    Version,
)

__all__ = [
    "STATUS_WIRE_MASK",
    "Delta",
    "DeltaError",
    "Destroy",
    "ExpectDestroy",
    "ExpectUpsert",
    "GroupDigest",
    "Upsert",
    "Version",
    "decode_deltas",
    "encode_delta",
    "encode_deltas",
]
