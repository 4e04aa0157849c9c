"""Drills that end, stop or move: power cut, freeze, kill, moves, Raft. Shell."""

from __future__ import annotations

import time
from collections.abc import Callable

from hafw.lab.conductor import Conductor
from hafw.lab.drill_steps import Takeover
from hafw.lab.faults import wait_until

__all__ = ["freeze", "kill", "power_cut", "raft", "there_and_back"]

THAW_AFTER_S = 1.0
BACK_AFTER_S = 0.5
MOVES = 4
MEGABYTES_BETWEEN_MOVES = 10
LEADER_BOUND_S = 10.0
"""For a new Raft leader, or for all to have noticed that there is none."""


def power_cut(conductor: Conductor, variant: str) -> None:
    """Restart: processes and kernel state are destroyed too. Heal: the node just comes back."""
    faults = conductor.faults
    cut: list[str] = []

    def act(active: str) -> int:
        cut.append(active)
        return faults.silence(active)

    active = conductor.sight.holder().node
    conductor.fault(f"power cut of {active}", act, takeover="must")
    if variant == "restart":
        faults.power_off(cut[0])
        faults.heal(cut[0])
        faults.start(cut[0])
    else:
        time.sleep(BACK_AFTER_S)
        faults.heal(cut[0])
    conductor.returned()


def freeze(conductor: Conductor, _variant: str) -> None:
    active = conductor.sight.holder().node
    conductor.fault(f"SIGSTOP of all of {active}", conductor.faults.freeze, takeover="must")
    time.sleep(THAW_AFTER_S)
    # From here on a gate of the thawed node that opens, for however short, is a move.
    conductor.fault(
        f"SIGCONT of all of {active}", lambda _: conductor.faults.thaw(), takeover="never"
    )
    conductor.returned()


def kill(conductor: Conductor, _variant: str) -> None:
    """leased of the ACTIVE node is back at once and may win the very next epoch itself: `anew`.
    A dead syncd there asks for a new epoch when it is back, and a restarted voter may make one
    necessary: `stays`."""
    lab, sight = conductor.lab, conductor.sight
    witnesses = [n for n, node in lab.config.nodes.items() if node.role == "witness"]
    daemons = ["leased", "syncd", "raftd", "hafwd"]
    if not lab.config.sync.enabled:
        daemons.remove("syncd")

    def kill_one(role: str, find: Callable[[], str], daemon: str) -> None:
        node = find()
        old = lab.pids(node).get(daemon)
        takeover: Takeover = "never"
        if daemon == "leased":
            takeover = "anew" if role == "ACTIVE" else "stays"
        elif daemon == "syncd" and role == "ACTIVE":
            takeover = "stays"
        conductor.fault(
            f"SIGKILL of {daemon} on {node} ({role})",
            lambda _active: conductor.faults.kill(node, daemon),
            takeover=takeover,
        )
        conductor.returned(lambda: lab.pids(node).get(daemon) not in (None, old))

    for daemon in daemons:
        kill_one("ACTIVE", lambda: sight.holder().node, daemon)
    for daemon in daemons:
        kill_one("BACKUP", lambda: sight.others(sight.holder().node)[0], daemon)
    for witness in witnesses:
        for daemon in ("leased", "raftd", "hafwd"):
            kill_one("witness", lambda witness=witness: witness, daemon)  # type: ignore[misc]


def there_and_back(conductor: Conductor, _variant: str) -> None:
    octets = MEGABYTES_BETWEEN_MOVES * 1_000_000
    conductor.wait_streams(octets)
    for _ in range(MOVES):
        active = conductor.sight.holder().node
        target = conductor.sight.others(active)[0]
        conductor.fault(
            f"move to {target}",
            lambda active, target=target: conductor.faults.move(active, target),  # type: ignore[misc]
            takeover="must",
            commanded=True,
        )
        conductor.wait_streams(octets)
        conductor.returned()


def raft(conductor: Conductor, variant: str) -> None:
    if variant == "leader":
        _raft_leader(conductor)
    else:
        _raft_quorum(conductor)


def _raft_leader(conductor: Conductor) -> None:
    sight = conductor.sight
    leader, term = sight.raft_leader()
    conductor.fault(
        f"SIGKILL of raftd on {leader} (Raft leader)",
        lambda _active: conductor.faults.kill(leader, "raftd"),
        takeover="never",
    )
    conductor.await_claim(
        "another Raft leader", LEADER_BOUND_S, lambda: sight.raft_leader()[1] > term
    )
    conductor.returned()


def _raft_quorum(conductor: Conductor) -> None:
    sight, faults = conductor.sight, conductor.faults
    active = sight.holder().node
    mute = [node for node in conductor.lab.config.nodes if node != active]

    def stop(_active: str) -> int:
        moments = [faults.stop(node, "raftd") for node in mute]
        wait_until(LEADER_BOUND_S, lambda: sight.raft_read_only(active))
        return min(moments)

    conductor.fault(f"SIGSTOP of raftd on {', '.join(mute)}", stop, takeover="never")
    conductor.await_claim(
        f"Raft is read-only on {active}", LEADER_BOUND_S, lambda: sight.raft_read_only(active)
    )
    conductor.fault(
        f"SIGKILL of leased on {active}, without Raft",
        lambda node: faults.kill(node, "leased"),
        takeover="must",
    )
    faults.thaw()
    conductor.returned()
