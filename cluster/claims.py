"""Who may claim a free group, and when: rank, do not gate (DESIGN §5, who may claim).

A synced candidate claims by its place in the group's order, one heartbeat apart, so that duels are
rare and nobody waits for a node that does not answer. An unsynced one claims only after
`UNSYNCED_LEASES` leases without a holder in which a majority of voters reports that it hears no
synced candidate: a cold start never leaves nobody in charge, and a dead syncd never loses flows
while another node has them.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["UNSYNCED_LEASES", "Patience", "rank"]

UNSYNCED_LEASES = 5


def rank(
    node: int, order: tuple[int, ...], *, alive: Collection[int], synced: Collection[int]
) -> int | None:
    """Place of `node` among the candidates that are alive, synced ones first; None: no candidate.

    `node` itself counts as alive.
    """
    if node not in order:
        return None
    present = [candidate for candidate in order if candidate == node or candidate in alive]
    ranked = sorted(present, key=lambda candidate: candidate not in synced)
    return ranked.index(node)


class Patience:
    """How long it has been true without a break that nobody holds and nobody synced is there."""

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._since_ns: int | None = None

    def observe(self, hopeless: bool, now_ns: int) -> None:
        if not hopeless:
            self._since_ns = None
        elif self._since_ns is None:
            self._since_ns = now_ns

    def ripe_ns(self) -> int | None:
        """When an unsynced claim is due; None while there is hope."""
        return None if self._since_ns is None else self._since_ns + self._wait_ns

    def ripe(self, now_ns: int) -> bool:
        ripe_ns = self.ripe_ns()
        return ripe_ns is not None and now_ns >= ripe_ns
