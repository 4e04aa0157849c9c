"""Drills of planned moves: nothing is broken, and not one packet may be lost. Shell.

They do what `hafwctl node drain`, a restart by the init system and `hafwctl node online` do, as
docs/operating/cluster.md tells people to.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from cluster.agreed import SetMemberState
from hafw.errors import RefusedError
from hafw.lab.drill_steps import all_new
from hafw.lab.faults import wait_until
from hafw.lab.probe_loop import now_ns
from hafw.node.client import Unavailable
from hafw.node.raft_client import RaftClient
from hafw.paths import NodePaths

if TYPE_CHECKING:
    from hafw.lab.conductor import Conductor

__all__ = ["drain", "planned_move", "rolling_restart"]

AGREE_BOUND_S = 10.0
BETWEEN_S = 0.3
"""Between two moves, so that each is of flows that have settled. All flows exchange something
before and after it, which takes most of a second."""


def planned_move(conductor: Conductor, _variant: str) -> None:
    sight = conductor.sight
    for _ in range(2):
        target = sight.others(sight.holder().node)[0]
        conductor.fault(
            f"move to {target}",
            lambda active, target=target: conductor.faults.move(active, target),  # type: ignore[misc]
            takeover="must",
            commanded=True,
        )
        time.sleep(BETWEEN_S)
        conductor.returned()


def drain(conductor: Conductor, _variant: str) -> None:
    for _ in range(2):
        node = conductor.sight.holder().node
        _drain(conductor, node)
        time.sleep(BETWEEN_S)
        _agree(conductor, node, "online")
        conductor.returned()


def rolling_restart(conductor: Conductor, _variant: str) -> None:
    lab, sight, faults = conductor.lab, conductor.sight, conductor.faults
    gateways = [*sight.others(sight.holder().node), sight.holder().node]
    witnesses = [name for name in lab.config.nodes if name not in gateways]
    for node in [*gateways, *witnesses]:
        if sight.holder().node == node:
            _drain(conductor, node)
        elif node in gateways:
            _agree(conductor, node, "draining")
        old = lab.pids(node)
        conductor.fault(
            f"restart of {node}",
            lambda _active, node=node: faults.restart(node),  # type: ignore[misc]
            takeover="stays",
            # It may not move until the next step either, and the node takes seconds to come back.
            hold_s=0.0,
        )
        conductor.returned(lambda node=node, old=old: all_new(old, lab.pids(node)))  # type: ignore[misc]
        if node in gateways:
            _agree(conductor, node, "online")


def _drain(conductor: Conductor, node: str) -> None:
    """The ACTIVE node: its hafwd hands the group over as soon as it has heard of it."""

    def act(_active: str) -> int:
        before_ns = now_ns()
        _agree(conductor, node, "draining")
        return before_ns

    conductor.fault(f"drain of {node}", act, takeover="must", commanded=True)


def _agree(conductor: Conductor, node: str, state: Literal["online", "draining"]) -> None:
    """Have the cluster agree, whichever raftd answers. Raises RefusedError."""
    problem = ""

    def agreed() -> bool:
        nonlocal problem
        for member in conductor.lab.config.nodes:
            answer = RaftClient(NodePaths(member)).propose(SetMemberState(node, state, "drill"))
            if not isinstance(answer, Unavailable) and answer.ok:
                return True
            problem = answer.reason
        return False

    if not wait_until(AGREE_BOUND_S, agreed, poll_s=0.1):
        raise RefusedError(f"{node} cannot be {state}: {problem}")
