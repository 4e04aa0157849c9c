r"""Does the far side of a segment answer? Judged by echo requests to one address a segment. Pure.

Theory of operation
    ::

        answering --count asks in a row unanswered--> failing
        failing   --count asks in a row answered----> answering

    Carrier says that a cable is plugged in; this says that something behind the switch is there.
    It only ever lowers a node's rank: if nobody's check is good, nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hafw.config.model import ClusterConfig

__all__ = ["UpstreamPlan", "UpstreamWatch", "plan_checks"]

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """One check: `address` is asked over `device` each `interval_ns`."""

    group: int
    segment: str
    device: str
    address: str
    interval_ns: int
    count: int


def plan_checks(config: ClusterConfig, node_name: str) -> list[UpstreamPlan]:
    """Of the groups that this node is a candidate of."""
    node = config.nodes[node_name]
    return [
        UpstreamPlan(
            group.index,
            segment,
            node.segments[segment].device,
            str(check.address),
            check.interval_ms * NS_PER_MS,
            check.count,
        )
        for group in config.groups.values()
        if node_name in group.order
        for segment, check in sorted(group.upstream.items())
    ]


class _Check:
    """Of one plan. `seq` is the number of the ask under way."""

    def __init__(self, plan: UpstreamPlan, now_ns: int) -> None:
        self.plan = plan
        self.seq = 0
        self.at_ns = now_ns
        self.answered = False
        self.failing = False
        self._run = 0
        """Asks in a row that speak against `failing`."""

    def ask(self, now_ns: int) -> int:
        """Judge the ask before, and number the next."""
        if self.seq:
            self._run = self._run + 1 if self.answered == self.failing else 0
            if self._run >= self.plan.count:
                self.failing, self._run = not self.failing, 0
        self.seq += 1
        self.answered = False
        self.at_ns = now_ns + self.plan.interval_ns
        return self.seq


class UpstreamWatch:
    """All checks of one node."""

    def __init__(self, plans: Iterable[UpstreamPlan], now_ns: int) -> None:
        self._checks = [_Check(plan, now_ns) for plan in plans]

    def due(self, now_ns: int) -> list[tuple[int, int]]:
        """(place of the plan, number to ask with) of each check whose time has come."""
        return [
            (place, check.ask(now_ns))
            for place, check in enumerate(self._checks)
            if now_ns >= check.at_ns
        ]

    def answered(self, place: int, seq: int) -> None:
        """An answer that comes after the next ask is none."""
        check = self._checks[place]
        check.answered = check.answered or seq == check.seq

    def failing(self) -> frozenset[tuple[int, str]]:
        """(group, segment) of each check that fails."""
        return frozenset((c.plan.group, c.plan.segment) for c in self._checks if c.failing)
