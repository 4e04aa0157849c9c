"""Every drill with its variants, what it does and what must come of it: the table of faults.

`docs/operating/failures.md` and `hafwctl drill list` show these words, and a test holds the page
equal to them. A drill without variants has one row, whose variant is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hafw.errors import RefusedError
from hafw.lab import drill_links, drill_machine, drill_moves, drill_processes
from hafw.lab.conductor import Conductor
from hafw.lab.drill_steps import COMMAND_T, GIVEN_UP_T, HELD_UP_T, TAKEN_T, UPSTREAM_T

__all__ = ["DRILLS", "DRILLS_BY_NAME", "MOVES", "Drill", "Plan", "Row", "plan_drills", "rows"]

STREAM_OCTETS_S = 2_000_000
STREAM_OCTETS_S_MOVING = 4_000_000
"""There-and-back waits for its megabytes; the others only need streams that are busy."""

Plan = tuple[str, str]
"""(drill, variant)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of a drill. `outcome`: what must come of `fault`, which the drill checks, and
    within how many leases T (`hafw.lab.drill_steps.allowed_ms`)."""

    variant: str
    fault: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Drill:
    """`script` gets the conductor and the variant. `flows_first`: flows are opened and looked at
    before the script, which may not lose one of them. `lossless`: not one packet either."""

    name: str
    script: Callable[[Conductor, str], None]
    rows: tuple[Row, ...]
    octets_s: int = STREAM_OCTETS_S
    flows_first: bool = True
    lossless: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(row.variant for row in self.rows)


_WITHIN = f"within {TAKEN_T} T"
_TAKES_OVER = f"the other takes over when the lease has run out, {_WITHIN}"
_FLOWS = f"no packet is held up for {HELD_UP_T} T"
_NOTHING = f"nothing moves, {_FLOWS}"
_GIVEN_UP = f"the lease is given up and not waited for, no packet is held up for {GIVEN_UP_T} T"

DRILLS: tuple[Drill, ...] = (
    Drill(
        "power-cut",
        drill_processes.power_cut,
        (
            Row(
                "restart",
                "power cut of the ACTIVE node, which starts afresh after the takeover",
                f"{_TAKES_OVER}; the node comes back as a synced BACKUP",
            ),
            Row(
                "heal",
                "all cables of the ACTIVE node cut, and back after the takeover",
                f"{_TAKES_OVER}; the node comes back as a synced BACKUP",
            ),
        ),
    ),
    Drill(
        "freeze",
        drill_processes.freeze,
        (
            Row(
                "",
                "every process of the ACTIVE node stopped (SIGSTOP), thawed 1 s after the "
                "takeover",
                f"{_TAKES_OVER}; the gate of the thawed node stays shut, {_FLOWS}",
            ),
        ),
    ),
    Drill(
        "kill",
        drill_processes.kill,
        (
            Row(
                "",
                "SIGKILL of each process in turn: ACTIVE node, BACKUP, witness",
                "hafw-leased of the ACTIVE node: the other takes over, or the node itself in a "
                f"new epoch, {_WITHIN}; any other: {_NOTHING} (of a syncd or a leased: the ACTIVE "
                "node may begin a new epoch in place)",
            ),
        ),
    ),
    Drill(
        "there-and-back",
        drill_processes.there_and_back,
        (
            Row(
                "",
                "planned moves to the other node and back, twice, 10 MB a stream in between",
                f"each move is made: {_GIVEN_UP}",
            ),
        ),
        octets_s=STREAM_OCTETS_S_MOVING,
    ),
    Drill(
        "carrier",
        drill_links.carrier,
        (
            Row(
                "lan",
                "carrier loss: the ACTIVE node's cable to lan is pulled, and plugged in again",
                f"the other takes over at once: {_GIVEN_UP}; no fail-back",
            ),
            Row(
                "wan",
                "carrier loss: the ACTIVE node's cable to wan is pulled, and plugged in again",
                f"the other takes over at once: {_GIVEN_UP}; no fail-back",
            ),
        ),
    ),
    Drill(
        "segment",
        drill_links.segment,
        (
            Row(
                "checked",
                "loss of one segment behind a live port: no frame crosses the ACTIVE node's lan, "
                "its carrier stays; an upstream check of lan is configured",
                f"the check fails and the group moves by itself, within {UPSTREAM_T} T; no "
                "fail-back",
            ),
            Row(
                "unchecked",
                "the same without an upstream check",
                "the silent path is shown by both nodes, and the group moves by command, within "
                f"{COMMAND_T} T of the fault",
            ),
        ),
        flows_first=False,
    ),
    Drill(
        "sync-link",
        drill_links.sync_link,
        (
            Row("sync0", "sync link sync0 of the ACTIVE node cut", _NOTHING),
            Row("sync1", "sync link sync1 of the ACTIVE node cut", _NOTHING),
        ),
    ),
    Drill(
        "sync-links",
        drill_links.sync_links,
        (
            Row(
                "active",
                "both sync links cut, on the ACTIVE node",
                f"{_NOTHING}: segments carry heartbeats, votes and deltas",
            ),
            Row(
                "backup",
                "both sync links cut, on the BACKUP",
                f"{_NOTHING}: segments carry heartbeats, votes and deltas",
            ),
        ),
    ),
    Drill(
        "sync-links-power",
        drill_links.sync_links_power,
        (
            Row(
                "",
                "both sync links of the ACTIVE node cut; flows begin; then its power cut",
                f"{_TAKES_OVER}, with the flows of the cut",
            ),
        ),
        flows_first=False,
    ),
    Drill(
        "one-way",
        drill_links.one_way,
        (
            Row("from-active", "no frame leaves the ACTIVE node, all reach it", _TAKES_OVER),
            Row("to-active", "no frame reaches the ACTIVE node, all leave it", _TAKES_OVER),
            Row("from-backup", "no frame leaves the BACKUP, all reach it", _NOTHING),
            Row("to-backup", "no frame reaches the BACKUP, all leave it", _NOTHING),
        ),
    ),
    Drill(
        "witness",
        drill_links.witness,
        (
            Row("gone", "the witness is gone", _NOTHING),
            Row(
                "slow",
                "the witness's answers take 40 ms; then a power cut of the ACTIVE node",
                f"{_NOTHING}; at the power cut {_TAKES_OVER}",
            ),
            Row("paused", "the witness is stopped for 10 s and goes on", _NOTHING),
        ),
    ),
    Drill(
        "raft",
        drill_processes.raft,
        (
            Row(
                "leader",
                "SIGKILL of the Raft leader",
                f"{_NOTHING}; another leader is elected",
            ),
            Row(
                "quorum",
                "Raft without quorum (two hafw-raftd stopped), then SIGKILL of the ACTIVE "
                "node's hafw-leased",
                f"Raft is read-only and {_NOTHING}; then the other takes over, without Raft, "
                f"{_WITHIN}",
            ),
        ),
    ),
    Drill(
        "cpu",
        drill_machine.cpu,
        (Row("", "CPU starvation: two busy loops a core for 4 s", _NOTHING),),
    ),
    Drill(
        "disk",
        drill_machine.disk,
        (
            Row(
                "",
                "full disk on the ACTIVE node; then SIGKILL of its hafw-leased",
                f"full: {_NOTHING}; killed: the other takes over, {_WITHIN}, and the node does "
                "not vote (alarm) until there is room again",
            ),
        ),
    ),
    Drill(
        "clock",
        drill_machine.clock,
        (
            Row("ahead", "the clocks of both gateways step by +1 h", _NOTHING),
            Row("back", "the clocks of both gateways step by -1 h", _NOTHING),
        ),
    ),
    Drill(
        "cold-start",
        drill_machine.cold_start,
        (
            Row(
                "",
                "power cut of all nodes; power returns everywhere at once",
                "one node becomes ACTIVE, the other synced, and new flows pass",
            ),
        ),
        flows_first=False,
    ),
    Drill(
        "return",
        drill_machine.comes_back,
        (
            Row(
                "",
                "a node that was switched off is switched on again",
                f"{_NOTHING}; it becomes a synced BACKUP",
            ),
        ),
    ),
    Drill(
        "restart-all",
        drill_machine.restart_all,
        (
            Row(
                "",
                "the daemons of each node are restarted, one node after another",
                "the group leaves the ACTIVE node as it restarts, and stays otherwise: each time "
                f"a synced node holds it; no packet is held up for {GIVEN_UP_T} T, or "
                f"{HELD_UP_T} T where it stays",
            ),
        ),
    ),
)
MOVES: tuple[Drill, ...] = (
    Drill(
        "planned-move",
        drill_moves.planned_move,
        (Row("", "hafwctl group move to the other node, and back", "no packet is lost"),),
        lossless=True,
    ),
    Drill(
        "drain",
        drill_moves.drain,
        (Row("", "each node in turn is drained, and online again", "no packet is lost"),),
        lossless=True,
    ),
    Drill(
        "rolling-restart",
        drill_moves.rolling_restart,
        (
            Row(
                "",
                "each node in turn: drain, restart of all its daemons, online; then the witness",
                "no packet is lost",
            ),
        ),
        lossless=True,
    ),
)
"""Planned, with nothing broken: not rows of the table of faults."""
DRILLS_BY_NAME = {drill.name: drill for drill in (*DRILLS, *MOVES)}


def rows() -> list[tuple[Drill, Row]]:
    """The table of faults, in its order."""
    return [(drill, row) for drill in DRILLS for row in drill.rows]


def plan_drills(names: Sequence[str], variant: str | None, repeat: int) -> list[Plan]:
    """What `drill run NAME... --variant V --repeat N` means. Raises RefusedError."""
    known = ", ".join(DRILLS_BY_NAME)
    once: list[Plan] = []
    wanted = [drill.name for drill in DRILLS] if "all" in names else names
    for name in wanted:
        drill = DRILLS_BY_NAME.get(name)
        if drill is None:
            raise RefusedError(f"there is no drill {name}; there are {known} and all")
        if variant is None:
            once += [(name, each) for each in drill.variants]
        elif variant in drill.variants:
            once.append((name, variant))
        else:
            variants = ", ".join(filter(None, drill.variants))
            words = f"its variants are {variants}" if variants else "it has none"
            raise RefusedError(f"{name} has no variant {variant}: {words}")
    return once * repeat
