"""What `hafwctl sync` shows: rows from answers of syncd and from the status document. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from hafw.config.model import ClusterConfig
from hafw.messages import ResyncReply, VerifyReply

if TYPE_CHECKING:
    from hafw.node.status_rows import Document

__all__ = [
    "SYNC_KEYS",
    "VERIFY_KEYS",
    "resynced",
    "sync_rows",
    "unverified",
    "verdicts",
    "verified",
]

Row = dict[str, Any]

SYNC_KEYS = (
    "node", "group", "role", "flows", "in_sync", "reason", "lag_deltas", "delay_p50_ms",
    "delay_p99_ms", "clean_s", "differing", "repairs", "repaired", "liberal", "codec",
)  # fmt: skip
VERIFY_KEYS = (
    "node", "group", "role", "verdict", "flows", "entries", "missing", "stale", "left_over",
    "differing", "seq", "took_s", "error",
)  # fmt: skip


def _names(config: ClusterConfig) -> dict[int, str]:
    return {group.index: name for name, group in config.groups.items()}


def verdicts(config: ClusterConfig, reply: VerifyReply) -> Row:
    """For hafwd's API."""
    names = _names(config)
    return {
        "groups": [
            {**msgspec.to_builtins(one), "group": names.get(one.group, str(one.group))}
            for one in reply.groups
        ]
    }


def resynced(config: ClusterConfig, reply: ResyncReply) -> Row:
    """For hafwd's API."""
    names = _names(config)
    return {
        "groups": [names.get(group, str(group)) for group in reply.groups],
        "refused": {names.get(group, str(group)): why for group, why in reply.refused.items()},
    }


def verified(node: str, groups: list[Row]) -> list[Row]:
    """A row for each group of a node. `verdict`: ``equal``, ``differs`` or ``unknown``."""
    rows = []
    for one in groups:
        faults = one["missing"] + one["stale"] + one["left_over"] + (one["differing"] or 0)
        verdict = "differs" if faults else "unknown" if one["error"] else "equal"
        role = "ACTIVE" if one["active"] else "BACKUP"
        row = {**one, "node": node, "role": role, "verdict": verdict}
        row["took_s"] = round(one["took_s"], 3)
        rows.append({key: row[key] for key in VERIFY_KEYS})
    return rows


def unverified(node: str, error: str) -> Row:
    """Nothing was learnt of this node."""
    return {**dict.fromkeys(VERIFY_KEYS), "node": node, "verdict": "unknown", "error": error}


def sync_rows(document: Document) -> list[Row]:
    """A row for each group and gateway of the status document. A follower's `lag_deltas` and
    delays are of the stream of the group's holder."""
    rows = []
    gateways = {row["node"] for row in document["nodes"] if row["role"] != "witness"}
    for group in document["groups"]:
        node = group["node"]
        if node not in gateways:
            continue
        said = _only(document["sync"], node=node, group=group["group"])
        stream = _only(document["streams"], node=node, peer=group["holder"])
        row: Row = {**dict.fromkeys(SYNC_KEYS), "node": node, "group": group["group"]}
        row["role"] = group["role"]
        if said is None:
            row |= {"in_sync": False, "reason": "hafw-syncd did not answer"}
        else:
            row |= {key: said[key] for key in SYNC_KEYS if key in said}
            row["flows"] = said["owned"] if group["role"] == "ACTIVE" else said["replicas"]
            row["in_sync"] = said["synced"]
        if stream is not None and group["role"] != "ACTIVE":
            row |= {key: stream[key] for key in SYNC_KEYS if key in stream and key != "node"}
        rows.append(row)
    return rows


def _only(rows: list[Row], **wanted: str) -> Row | None:
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            return row
    return None
