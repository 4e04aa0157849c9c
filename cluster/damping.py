"""Flap damping: a node that came and went again and again is not preferred until it is quiet.

Theory of operation
    After RFC 2439 (BGP route flap damping) in spirit: every loss adds a penalty that only quiet
    takes away, and who is above a threshold is not chosen. Here the penalty is a count, and what
    it costs doubles with each loss, so that moves become rare fast::

        losses   1 .. n-1   nothing
                 n          damped until fit without a break for `quiet`
                 n + k      ...  for `quiet` * 2^k, at most `quiet_max`

    A loss is a fit node that turns unfit for the group: silent for a whole lease, a segment
    without carrier, an upstream check that fails, or a new process of its leased. What syncd says
    is none: every planned move leaves a node unsynced for a while. Nor is the silence of a node
    whose lease still runs (a long one, around a policy load, is there for just that), nor anything
    while the node is drained or in maintenance. `quiet_max` without a loss takes one away, which
    halves the next wait; so who flaps with a shorter period than that ends up damped for as long
    as it does.

    Damping *ranks and never gates*: a damped node comes behind all others that are as synced and
    as sound, is not gone back to by preemption, and takes over at once if it is the only one.

    Each node counts for itself and says in its heartbeats whom it damps; for all it is the union
    of what the candidates that are heard say. So they agree within a heartbeat, nobody waits for
    a node that ranks itself lower, and a process that has just started knows what others know.
    `Clear` comes from Raft (`Standing.cleared`), and so to all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.lease_types import DampingParams

if TYPE_CHECKING:
    from cluster.view import NodeView, PeerView

__all__ = ["Damped", "Damping", "FlapWatch"]

STARTED_ANEW = "its leased started anew"
SILENT = "silent on every link and segment"
NO_UPSTREAM = "its upstream check fails"


@dataclass(frozen=True, slots=True)
class Damped:
    """`left_ns` of quiet are missing; None: the fault of the last loss, `why`, still lasts."""

    losses: int
    why: str
    left_ns: int | None


@dataclass(slots=True)
class _Record:
    fault: str | None = None
    """Empty: fit. None: not seen yet, or what it does is an operator's doing."""
    losses: int = 0
    why: str = ""
    fit_since_ns: int = 0
    counted_ns: int = 0
    """Up to where quiet has been taken into account."""


class Damping:
    """Of the candidates of one group, as one node sees them."""

    def __init__(self, params: DampingParams) -> None:
        self._params = params
        self._records: dict[int, _Record] = {}
        self._losses_max = params.losses
        while self.quiet_ns(self._losses_max) < params.quiet_ns_max:
            self._losses_max += 1

    def quiet_ns(self, losses: int) -> int:
        """How long a node that was lost so often must be fit without a break."""
        doublings = max(0, losses - self._params.losses)
        return min(self._params.quiet_ns << doublings, self._params.quiet_ns_max)

    def observe(self, node: int, fault: str, now_ns: int) -> bool:
        """What the node is like now; True if that was a loss that made it damped."""
        record = self._records.setdefault(node, _Record())
        if record.fault == fault:
            return False
        was, record.fault = record.fault, fault
        if not fault:
            record.fit_since_ns = record.counted_ns = now_ns
            return False
        if was != "":
            return False  # It was not fit before, or nobody knows.
        self._forgive(record, now_ns)
        record.losses = min(record.losses + 1, self._losses_max)
        record.why = fault
        return record.losses >= self._params.losses

    def excuse(self, node: int) -> None:
        """Whatever it does now, somebody works on it."""
        if node in self._records:
            self._records[node].fault = None

    def clear(self, node: int) -> bool:
        """Forget what was counted; True if that was something."""
        record = self._records.get(node)
        if record is None or not record.losses:
            return False
        record.losses = 0
        return True

    def damped(self, now_ns: int) -> dict[int, Damped]:
        """Who is, by node."""
        found = {}
        for node, record in sorted(self._records.items()):
            if record.losses < self._params.losses:
                continue
            left_ns = record.fit_since_ns + self.quiet_ns(record.losses) - now_ns
            if record.fault:
                found[node] = Damped(record.losses, record.why, None)
            elif left_ns > 0:
                found[node] = Damped(record.losses, record.why, left_ns)
        return found

    def _forgive(self, record: _Record, now_ns: int) -> None:
        while record.losses:
            until_ns = record.counted_ns + self._params.quiet_ns_max
            if now_ns < until_ns:
                return
            record.counted_ns = until_ns
            record.losses -= 1


class FlapWatch:
    """Of one node: what it sees of itself and its peers, for each group that it is a candidate
    of, and what the others say."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        params = view.params
        self._own = params.node_id
        self._groups = {
            group.index: (group.order, Damping(params.damping))
            for group in params.groups
            if params.damping is not None and params.node_id in group.order
        }
        self._cleared: dict[int, int] = {}
        self._looked_ns = self._listening_ns = 0

    # ---- seeing -------------------------------------------------------------------------------

    def hear(self, peer: PeerView, now_ns: int) -> None:
        """A heartbeat of the peer was taken."""
        for index, (order, damping) in self._groups.items():
            beat = peer.groups.get(index)
            if beat is None or peer.node_id not in order:
                continue
            fault = "" if beat.upstream else NO_UPSTREAM
            fault = fault if beat.carrier else beat.reason
            self._observe(damping, peer.node_id, fault, now_ns)

    def hear_anew(self, node: int, now_ns: int) -> None:
        """A new process of the peer's leased."""
        for order, damping in self._groups.values():
            if node in order:
                self._observe(damping, node, STARTED_ANEW, now_ns)

    def look(self, running: Mapping[int, int], now_ns: int) -> None:
        """At each heartbeat of this node: at itself, and for who is silent. Silence while this
        loop did not run, or while nobody is heard, may be this node's own fault; that of a
        node whose lease of a group still runs is none yet (`running`: group -> that node, as far
        as the own voter knows)."""
        view, params = self._view, self._view.params
        if not self._groups:
            return
        if now_ns - self._looked_ns > 2 * params.heartbeat_ns:
            self._listening_ns = now_ns
        self._looked_ns = now_ns
        silent = [
            node
            for node, peer in view.peers.items()
            if peer.beat is not None
            and now_ns - max(peer.heard_ns, self._listening_ns) > params.lease_ns
        ]
        deaf = len(silent) == len(view.peers) > 1
        for index, (order, damping) in self._groups.items():
            own = view.carrier_fault(index) or view.upstream_fault(index)
            self._observe(damping, self._own, own, now_ns)
            for node in silent:
                if node in order and not deaf and running.get(index) != node:
                    self._observe(damping, node, SILENT, now_ns)

    def stand(self, cleared: dict[int, int]) -> None:
        """How often each node has been cleared of what was counted, as agreed on."""
        for node, times in cleared.items():
            if times > self._cleared.get(node, 0):
                for _, damping in self._groups.values():
                    damping.clear(node)
        self._cleared = dict(cleared)

    def _observe(self, damping: Damping, node: int, fault: str, now_ns: int) -> None:
        standing = self._view.standing
        if node in standing.last or node in standing.out:
            damping.excuse(node)
        elif damping.observe(node, fault, now_ns):
            self._view.counters["nodes_damped"] += 1

    # ---- telling ------------------------------------------------------------------------------

    def told(self, group: int, now_ns: int) -> list[int]:
        """Whom this node itself damps."""
        return list(self.seen(group, now_ns))

    def seen(self, group: int, now_ns: int) -> dict[int, Damped]:
        """The same, with reasons."""
        known = self._groups.get(group)
        return {} if known is None else known[1].damped(now_ns)

    def damped(self, group: int, now_ns: int) -> set[int]:
        """Who is damped, as far as this node and the candidates that it hears know."""
        return {*self.seen(group, now_ns), *self.told_by(group, now_ns)}

    def told_by(self, group: int, now_ns: int) -> dict[int, list[int]]:
        """Which other nodes say of a node that it is damped."""
        found: dict[int, list[int]] = {}
        for peer in self._view.alive_peers(now_ns):
            beat = peer.groups.get(group)
            for node in () if beat is None else beat.damped:
                found.setdefault(node, []).append(peer.node_id)
        return found
