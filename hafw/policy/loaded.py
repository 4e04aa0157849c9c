"""What the kernel has of our tables, reduced to what a policy decides, and compared. Pure but for
the listing it is given.

Handles, counters and the contents of hafw_state change by themselves; all else changes only by a
load, by a flow that waits to be replicated, or by somebody else's hand: that is drift.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hafw.kernel.nftables import Nftables, NftError
from hafw.policy.compile import MARKER, TABLES
from hafw.policy.state_table import TABLE as STATE_TABLE
from hafw.policy.sync_classes import DELAYED_SETS

__all__ = ["expected_counts", "kernel_counts", "kernel_hash", "list_tables", "loaded_marker"]

Listing = list[dict[str, Any]]
_CHANGING = ("handle", "packets", "bytes")


def list_tables(nft: Nftables) -> Listing:
    """Everything in our tables. Raises NftError (ENOENT: a table is missing)."""
    found: Listing = []
    for name in TABLES:
        found += nft.list_objects("table", family="inet", name=name)
    return found


def loaded_marker(nft: Nftables) -> str | None:
    """Hash of the compilation that is loaded, from the marker chain; None if none is, or if one
    of our tables is missing. Cheap: lists no rules."""
    try:
        chains = [item["chain"] for item in nft.list_objects("chains") if "chain" in item]
    except NftError:
        return None
    ours = [chain for chain in chains if chain["family"] == "inet" and chain["table"] in TABLES]
    if {chain["table"] for chain in ours} != set(TABLES):
        return None
    marks = [chain["name"] for chain in ours if chain["name"].startswith(MARKER)]
    return marks[0].removeprefix(MARKER) if len(marks) == 1 else None


def expected_counts(document: dict[str, Any]) -> dict[str, int]:
    """Objects that a load of the document leaves in the kernel, by kind."""
    return _counts([c["add"] for c in document["nftables"] if "add" in c])


def kernel_counts(listing: Listing) -> dict[str, int]:
    """Objects that the kernel has, by kind."""
    return _counts(listing)


def _counts(items: Listing) -> dict[str, int]:
    """Tables are left out: a document names each twice."""
    counts: dict[str, int] = {}
    for item in items:
        kind = next(iter(item))
        if kind != "table":
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def kernel_hash(listing: Listing) -> str:
    """16 hex digits over the listing without what changes by itself."""
    texts = [json.dumps(_stable(item), sort_keys=True) for item in listing]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _stable(item: dict[str, Any]) -> Any:
    made = _strip(item)
    named = made.get("set", {})
    if named.get("table") == STATE_TABLE or named.get("name") in DELAYED_SETS.values():
        made["set"].pop("elem", None)
    return made


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        made = {k: _strip(v) for k, v in value.items() if k not in _CHANGING}
        for key in ("elem", "set"):  # The kernel lists the elements of a set in any order.
            if isinstance(made.get(key), list):
                made[key] = sorted(made[key], key=lambda part: json.dumps(part, sort_keys=True))
        return made
    if isinstance(value, list):
        return [_strip(part) for part in value]
    return value
