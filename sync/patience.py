"""When to ask whom for a snapshot again. Pure.

After a failure the next request waits, longer each time, and goes over the next link; a refusal by
the server is asked again soon. While this kernel's table is full, and after it refused replicas,
fewer requests do.
"""

from __future__ import annotations

import errno
from collections import Counter

__all__ = ["TABLE_FULL_ERRNOS", "Patience"]

RETRY_S = 0.1
RETRY_S_MAX = 2.0
TABLE_FULL_RETRY_S = 5.0
TABLE_FULL_ERRNOS = frozenset({errno.ENOMEM, errno.ENFILE, errno.ENOSPC, errno.ENOBUFS})
"""ctnetlink says ENOMEM when nf_conntrack_alloc finds the table full."""
DROPPED_RETRY_S = 5.0
"""Between two snapshots wanted because this kernel refused replicas: it may go on refusing."""


class Patience:
    """Of one follower."""

    def __init__(self) -> None:
        self.table_full_until: dict[int, float] = {}
        self.unanswered: Counter[int] = Counter()
        """Holder -> requests in a row to which it said nothing at all."""
        self.links: Counter[int] = Counter()
        """Holder -> the link to ask it over: one that works is kept, one that does not is left."""
        self._attempts: Counter[int] = Counter()
        self._retry_at: dict[int, float] = {}
        self._dropped: set[int] = set()
        """Groups of which replicas were refused since the last request."""
        self._dropped_retry_at: dict[int, float] = {}

    def may_ask(self, group: int, *, now: float) -> bool:
        until = max(self._retry_at.get(group, 0.0), self.table_full_until.get(group, 0.0))
        if group in self._dropped:
            until = max(until, self._dropped_retry_at.get(group, 0.0))
        return now >= until

    def asked(self, group: int, *, now: float) -> None:
        if group in self._dropped:
            self._dropped.discard(group)
            self._dropped_retry_at[group] = now + DROPPED_RETRY_S
        self.table_full_until.pop(group, None)

    def answered(self, holder_id: int) -> None:
        self.unanswered[holder_id] = 0

    def done(self, group: int) -> None:
        self._attempts[group] = 0

    def refused_by_server(self, group: int, *, now: float) -> None:
        self._retry_at[group] = now + RETRY_S

    def failed(self, group: int, *, now: float) -> None:
        self._attempts[group] += 1
        wait = RETRY_S * (1 << min(self._attempts[group], 5))
        self._retry_at[group] = now + min(wait, RETRY_S_MAX)

    def no_progress(self, holder_id: int, *, unanswered: bool) -> None:
        self.links[holder_id] += 1
        self.unanswered[holder_id] += unanswered

    def table_full(self, group: int, *, now: float) -> None:
        self.table_full_until[group] = now + TABLE_FULL_RETRY_S

    def replicas_refused(self, group: int) -> None:
        self._dropped.add(group)

    def other_holder(self, group: int) -> None:
        """What was learnt of the one before does not hold for it."""
        self._retry_at.pop(group, None)
        self._dropped.discard(group)

    def held(self, group: int) -> None:
        self.table_full_until.pop(group, None)
