"""Drills of the machine below: CPU, disk, clock, power for all, restarts. Shell."""

from __future__ import annotations

import time

from hafw.lab.conductor import Conductor
from hafw.lab.drill_steps import NO_NODE, all_new
from hafw.lab.probe_loop import now_ns

__all__ = ["clock", "cold_start", "comes_back", "cpu", "disk", "restart_all"]

STARVE_S = 4.0
FULL_S = 1.5
STEP_HOLD_S = 2.0
HOUR_S = 3600
SMALL_DISK_BOUND_S = 20.0
VOTE_BOUND_S = 6.0
DAEMONS_BOUND_S = 15.0
COLD_BOUND_S = 40.0
"""Twelve Python processes start at once, on whatever the machine is; then M and five leases."""


def cpu(conductor: Conductor, _variant: str) -> None:
    machine = conductor.machine
    conductor.fault(
        "two busy loops a core", lambda _: machine.starve(), takeover="never", hold_s=STARVE_S
    )
    conductor.require("all of the busy loops ran", machine.is_starving())
    machine.feed()
    conductor.returned()


def disk(conductor: Conductor, _variant: str) -> None:
    """The node must have been given its small disk before the flows came: see `prepare_disk`."""
    lab, sight, machine = conductor.lab, conductor.sight, conductor.machine
    active = sight.holder().node
    machine.shrink_disk(active)
    conductor.wait_whole(SMALL_DISK_BOUND_S)
    conductor.fault(f"full disk on {active}", machine.fill_disk, takeover="never", hold_s=FULL_S)
    old = lab.pids(active).get("leased")
    conductor.fault(
        f"SIGKILL of leased on {active}, its disk full",
        lambda node: conductor.faults.kill(node, "leased"),
        takeover="must",
    )
    conductor.await_claim(
        f"leased is back on {active}",
        DAEMONS_BOUND_S,
        lambda: lab.pids(active).get("leased") not in (None, old),
    )
    # M has passed by then: without the full disk it would vote.
    time.sleep(VOTE_BOUND_S / 2)
    conductor.require(
        f"{active} does not vote while its disk is full, and says why",
        any("era" in alarm for alarm in sight.leased_alarms(active))
        and any(words.startswith(active) for words in sight.mute_voters()),
    )
    machine.free_disks()
    conductor.returned()


def clock(conductor: Conductor, variant: str) -> None:
    machine = conductor.machine
    step_s = HOUR_S if variant == "ahead" else -HOUR_S
    gateways = conductor.lab.gateways

    def step(_active: str) -> int:
        before_ns = now_ns()
        for node in gateways:
            machine.step_clock(node, step_s)
        return before_ns

    before = {node: machine.clock_reads(node) for node in gateways}
    conductor.fault(
        f"clock step of {step_s:+d} s on {', '.join(gateways)}",
        step,
        takeover="never",
        hold_s=STEP_HOLD_S,
    )
    for node in gateways:
        conductor.require(
            f"{node} looked at its wall clock meanwhile, {step_s:+d} s off",
            machine.clock_reads(node) > before[node] and machine.clock_off_s(node) == step_s,
        )
        machine.step_clock(node, 0)
    conductor.returned()


def cold_start(conductor: Conductor, _variant: str) -> None:
    lab, faults = conductor.lab, conductor.faults
    nodes = list(lab.config.nodes)
    old = {node: lab.pids(node) for node in nodes}

    def power_returns(_active: str) -> int:
        for node in nodes:
            faults.power_off(node)
        before_ns = now_ns()
        for node in nodes:
            faults.start(node)
        return before_ns

    conductor.fault(
        "power for all nodes returns",
        power_returns,
        takeover="must",
        before=NO_NODE,
        bound_s=COLD_BOUND_S,
    )
    conductor.returned(lambda: all(all_new(old[node], lab.pids(node)) for node in nodes))
    conductor.establish()


def comes_back(conductor: Conductor, _variant: str) -> None:
    sight, faults = conductor.sight, conductor.faults
    (backup,) = sight.others(sight.holder().node)

    def switched_off(_active: str) -> int:
        before_ns = now_ns()
        faults.power_off(backup)
        return before_ns

    conductor.fault(f"{backup} switched off", switched_off, takeover="never")
    conductor.require(f"nothing runs on {backup}", not conductor.lab.all_pids(backup))

    def switched_on(_active: str) -> int:
        before_ns = now_ns()
        faults.start(backup)
        return before_ns

    conductor.fault(f"{backup} switched on", switched_on, takeover="never")
    conductor.returned()


def restart_all(conductor: Conductor, _variant: str) -> None:
    lab, sight, faults = conductor.lab, conductor.sight, conductor.faults
    for node in lab.config.nodes:
        old = lab.pids(node)
        was_active = sight.holder().node == node
        conductor.fault(
            f"restart of {node}",
            lambda _active, node=node: faults.restart(node),  # type: ignore[misc]
            takeover="must" if was_active else "stays",
            commanded=was_active,
        )
        holder = sight.holder().node
        if node in lab.gateways:
            conductor.require(f"{holder} holds the group, not {node}", holder != node)
        conductor.require(f"{holder} is synced", sight.is_synced(holder))
        conductor.returned(lambda node=node, old=old: all_new(old, lab.pids(node)))  # type: ignore[misc]
