"""What was refused and has not been said yet: a line for the first, a count for the rest. Pure.

Whoever sends what must be refused can send a lot of it, so a refusal is counted and costs nothing
more; the log has the first of each kind, and another once nothing of the kind came for `QUIET_NS`.
So a forger cannot fill the disk, and an attack that begins anew is seen again.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["LEASED", "QUIET_NS", "RAFTD", "Refusals"]

QUIET_NS = 600_000_000_000

LEASED = (
    "truncated",
    "oversize",
    "bad_magic",
    "wrong_version",
    "wrong_cluster",
    "bad_tag",
    "malformed",
    "unknown_sender",
    "own_id_heard",
    "retired_session",
    "replayed",
    "wrong_voters",
    "not_a_candidate",
)
"""Counters of hafw-leased that only a stranger, a forger or a wrong configuration raises."""
RAFTD = (
    "wrong_size",
    "wrong_version",
    "wrong_cluster",
    "bad_tag",
    "malformed",
    "malformed_message",
    "forged_command",
    "not_for_us",
    "own_id_heard",
    "retired_session",
)
"""The same of hafw-raftd."""


class Refusals:
    """Watches counters by name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._seen: tuple[int | None, ...] = (None,) * len(names)
        self._last_ns: dict[str, int] = {}

    def to_say(self, counters: Mapping[str, int], now_ns: int) -> list[tuple[str, int]]:
        """(name, count) of what has grown since the last call and is to be logged now."""
        seen = tuple(map(counters.get, self._names))
        if seen == self._seen:
            return []
        known, self._seen = self._seen, seen
        found = []
        for name, before, count in zip(self._names, known, seen, strict=True):
            if not count or count == before:
                continue
            last_ns = self._last_ns.get(name)
            self._last_ns[name] = now_ns
            if last_ns is None or now_ns - last_ns >= QUIET_NS:
                found.append((name, count))
        return found
