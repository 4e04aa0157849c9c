"""Drills that cut, pull or slow down cables, of gateways and of the witness. Shell."""

from __future__ import annotations

import time

from hafw.errors import StateError
from hafw.lab.conductor import Conductor
from hafw.lab.drill_steps import COMMAND_T, UPSTREAM_T
from hafw.lab.faults import DRILL_GROUP, wait_until
from hafw.lab.silence import Direction

__all__ = [
    "carrier",
    "one_way",
    "segment",
    "sync_link",
    "sync_links",
    "sync_links_power",
    "witness",
]

OUT_S = 1.0
"""How long a fault that moves something lasts after the takeover."""
PAUSE_S = 10.0
SLOW_MS = 20.0
"""Each way, so that an answer takes 40 ms."""
SHOWN_BOUND_S = 5.0
RESTART_BOUND_S = 20.0


def carrier(conductor: Conductor, variant: str) -> None:
    lab, faults = conductor.lab, conductor.faults
    active = conductor.sight.holder().node
    device = lab.config.nodes[active].segments[variant].device
    conductor.fault(
        f"carrier loss of {device} on {active}",
        lambda node: faults.unplug(node, device),
        takeover="must",
        # It gives its lease up, as in a move: until the deadline it may accept.
        commanded=True,
    )
    time.sleep(OUT_S)
    taker = conductor.sight.holder().node
    faults.plug_in(active, device)
    conductor.returned()
    conductor.require("no fail-back", conductor.sight.holder().node == taker)


def segment(conductor: Conductor, variant: str) -> None:
    """Which side of a silent segment is dead an upstream check tells, or a person does."""
    lab, sight, faults = conductor.lab, conductor.sight, conductor.faults
    checked = "lan" in lab.config.groups[DRILL_GROUP].upstream
    if variant == "checked" and not checked:
        _check_upstream(conductor)
    elif variant == "unchecked" and checked:
        raise StateError("this lab has an upstream check of lan: --variant checked")
    conductor.establish()
    active = sight.holder().node
    (other,) = sight.others(active)
    device = lab.config.nodes[active].segments["lan"].device

    def shown() -> bool:
        return all(sight.path_is_silent(node, "lan") for node in (active, other))

    def move(_active: str) -> int:
        before_ns = faults.cut(active, [device])
        if not wait_until(SHOWN_BOUND_S, shown):
            raise StateError("the gateways do not show that lan is silent")
        faults.move(active, other)
        return before_ns

    if variant == "checked":
        conductor.fault(
            f"lan of {active} dead, its upstream check fails",
            lambda _: faults.cut(active, [device]),
            takeover="must",
            commanded=True,
            within_t=UPSTREAM_T,
        )
        alarm = "group 1: the upstream check of segment lan fails"
        conductor.require("an alarm says why", alarm in sight.leased_alarms(active))
        time.sleep(OUT_S)
    else:
        conductor.fault(
            f"lan of {active} dead, moved by command", move, "must", commanded=True,
            within_t=COMMAND_T,
        )  # fmt: skip
    taker = sight.holder().node
    faults.heal(active)
    conductor.returned()
    conductor.require("no fail-back", sight.holder().node == taker)


def _check_upstream(conductor: Conductor) -> None:
    """Configure one, and start the gateways anew, one after the other."""
    lab, sight = conductor.lab, conductor.sight
    active = sight.holder().node
    conductor.machine.check_upstream("lan", conductor.client_address)
    for node in [*sight.others(active), active]:
        old = lab.pids(node)["hafwd"]
        conductor.faults.restart(node)

        def anew(node: str = node, old: int = old) -> bool:
            return lab.pids(node).get("hafwd") not in (None, old)

        if not wait_until(RESTART_BOUND_S, anew):
            raise StateError(f"hafwd of {node} did not start anew")
        conductor.wait_whole(RESTART_BOUND_S)


def sync_link(conductor: Conductor, variant: str) -> None:
    lab, sight, faults = conductor.lab, conductor.sight, conductor.faults
    active = sight.holder().node
    (backup,) = sight.others(active)
    device = lab.config.nodes[active].links[variant].device

    def heard() -> list[set[str]]:
        return [sight.heard_over(active, backup), sight.heard_over(backup, active)]

    before = heard()
    conductor.fault(
        f"{variant} of {active} cut", lambda node: faults.cut(node, [device]), takeover="never"
    )
    conductor.await_claim(
        f"both gateways hear each other over all but {variant}",
        SHOWN_BOUND_S,
        lambda: all(was - now == {variant} for was, now in zip(before, heard(), strict=True)),
    )
    conductor.expect_replica(f"while {variant} is cut")
    faults.heal(active)
    conductor.returned()


def sync_links(conductor: Conductor, variant: str) -> None:
    lab, sight, faults = conductor.lab, conductor.sight, conductor.faults
    active = sight.holder().node
    node = active if variant == "active" else sight.others(active)[0]
    devices = [link.device for link in lab.config.nodes[node].links.values()]
    conductor.fault(
        f"all sync links of {node} cut", lambda _: faults.cut(node, devices), takeover="never"
    )
    (backup,) = sight.others(active)
    conductor.require("deltas run over a segment", bool(sight.stands_in(active, backup)))
    conductor.require("the BACKUP is synced", sight.is_synced(backup))
    conductor.expect_replica("while all sync links are cut")
    faults.heal(node)
    conductor.await_claim(
        "deltas run over links again", SHOWN_BOUND_S, lambda: not sight.stands_in(active, backup)
    )
    conductor.returned()


def sync_links_power(conductor: Conductor, _variant: str) -> None:
    """All flows begin while the links are cut: what the other gateway knows of them, it knows by
    way of a segment."""
    lab, sight, faults = conductor.lab, conductor.sight, conductor.faults
    active = sight.holder().node
    (backup,) = sight.others(active)
    faults.cut(active, [link.device for link in lab.config.nodes[active].links.values()])
    over = wait_until(SHOWN_BOUND_S, lambda: bool(sight.stands_in(active, backup)))
    conductor.establish()
    synced = sight.is_synced(backup)
    conductor.fault(
        f"power cut of {active}, its sync links cut before the flows began",
        faults.silence,
        takeover="must",
    )
    conductor.require("deltas ran over a segment", over)
    conductor.require("the BACKUP was synced", synced)
    time.sleep(OUT_S)
    faults.heal(active)
    conductor.returned()


def one_way(conductor: Conductor, variant: str) -> None:
    sight, faults = conductor.sight, conductor.faults
    way, _, role = variant.partition("-")
    direction: Direction = "from" if way == "from" else "to"
    active = sight.holder().node
    node = active if role == "active" else sight.others(active)[0]
    conductor.fault(
        f"silence {direction} {node} ({role.upper()})",
        lambda _: faults.silence(node, direction),
        takeover="must" if role == "active" else "never",
    )
    (other,) = sight.others(node)
    deaf, heard = (other, node) if way == "from" else (node, other)
    conductor.await_claim(
        f"{deaf} does not hear {heard}, which hears it",
        SHOWN_BOUND_S,
        lambda: not sight.heard_over(deaf, heard) and bool(sight.heard_over(heard, deaf)),
    )
    time.sleep(OUT_S)
    faults.heal(node)
    conductor.returned()


def witness(conductor: Conductor, variant: str) -> None:
    lab, faults = conductor.lab, conductor.faults
    name = next((n for n, node in lab.config.nodes.items() if node.role == "witness"), None)
    if name is None:
        raise StateError("this lab has no witness")

    def require_silence() -> None:
        heard = [node for node in lab.gateways if conductor.sight.heard_over(node, name)]
        conductor.require(f"no gateway hears {name}", not heard)

    if variant == "gone":
        conductor.fault(f"silence of {name}", lambda _: faults.silence(name), takeover="never")
        require_silence()
        faults.heal(name)
    elif variant == "paused":
        conductor.fault(
            f"SIGSTOP of all of {name} for {PAUSE_S:g} s",
            lambda _: faults.freeze(name),
            takeover="never",
            hold_s=PAUSE_S,
        )
        require_silence()
        faults.thaw()
    else:
        conductor.fault(
            f"{name} answers {2 * SLOW_MS:g} ms late",
            lambda _: faults.slow_down(name, SLOW_MS),
            takeover="never",
        )
        active = conductor.sight.holder().node
        conductor.require(
            f"{name} is heard, {2 * SLOW_MS:g} ms late",
            conductor.sight.rtt_ms(active, name) >= 2 * SLOW_MS,
        )
        conductor.fault(f"power cut of {active}", faults.silence, takeover="must")
        time.sleep(OUT_S)
        faults.heal(active)
        faults.speed_up(name)
    conductor.returned()
