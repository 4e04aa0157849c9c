"""A running lab for tests: who holds the group by the kernel's word, and bounded, named waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cluster.gate import GateReader
from hafw.errors import StateError
from hafw.lab.lab import Lab
from hafw.messages import GroupLeaseStatus, LeasedStatus, SyncdStatus
from hafw.node.client import LocalClient, Unavailable

GROUP = 1
LEASE_NS = 100_000_000


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_for(what: str, claim: Callable[[], bool], timeout_s: float = 15.0) -> float:
    """Seconds until the claim holds; fails by name when it does not."""
    begun = time.monotonic()
    while not claim():
        waited = time.monotonic() - begun
        assert waited < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.002)
    return time.monotonic() - begun


class Running:
    """The lab and what tests ask of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @property
    def gateways(self) -> tuple[str, ...]:
        return tuple(self.lab.gateways)

    def announces(self, node: str) -> bool:
        """The kernel's gate of the node lets its virtual MAC speak now."""
        try:
            gate = GateReader.open(self.lab.paths(node))
        except StateError:
            return False
        try:
            return gate.read(GROUP).announce_ns > boottime_ns()
        finally:
            gate.close()

    def holders(self) -> list[str]:
        return [node for node in self.gateways if self.announces(node)]

    def active(self) -> str:
        wait_for("one gateway is ACTIVE", lambda: len(self.holders()) == 1)
        return self.holders()[0]

    def backup(self) -> str:
        active = self.active()
        return next(node for node in self.gateways if node != active)

    def leased(self, node: str) -> LeasedStatus:
        answer = LocalClient(self.lab.paths(node)).ask_leased(2.0)
        assert not isinstance(answer, Unavailable), f"{node}: {answer.reason}"
        return answer

    def syncd(self, node: str) -> SyncdStatus:
        answer = LocalClient(self.lab.paths(node)).ask_syncd(2.0)
        assert not isinstance(answer, Unavailable), f"{node}: {answer.reason}"
        return answer

    def damped(self, node: str) -> list[str]:
        """Why a node damps others, or itself."""
        return [each.why for each in self.leased(node).damped]

    def group(self, node: str) -> GroupLeaseStatus:
        return next(group for group in self.leased(node).groups if group.group == GROUP)

    def epoch(self, node: str) -> int:
        return self.group(node).epoch

    def heal(self, timeout_s: float = 30.0) -> None:
        """Undo faults and wait for a healthy cluster."""
        self.lab.heal_all()
        for node in ("gw1", "gw2", "wit"):
            self.lab.release(node)
        self.lab.wait_ready(timeout_s)

    def run(self, where: str, *argv: str | Path, timeout_s: float = 60.0) -> tuple[int, str]:
        """Run a command on a host of the lab; its exit status and both outputs."""
        process = self.lab.spawn(
            where, [str(part) for part in argv], stdout=-1, stderr=-2, text=True
        )
        output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output
