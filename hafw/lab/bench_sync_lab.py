"""Power cuts of a whole gateway in the lab, with few and with many replicas. Shell.

The outage is that of `hafwctl drill bench-failover`: the longest gap of a 1 kHz UDP flow through
SNAT, lease and all. With nothing to commit it must not depend on the number of flows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hafw.errors import HafwError
from hafw.lab.bench_figures import Figure
from hafw.lab.bench_tools import Loops, compile_loops, write_flows
from hafw.lab.conductor import Conductor
from hafw.lab.drills import lab_for_drills
from hafw.lab.judges import percentile
from hafw.lab.lab import Lab
from hafw.lab.sync_spaces import wait_for
from hafw.lab.topology import namespace_of
from hafw.node.client import LocalClient, Unavailable
from hafw.paths import NodePaths

__all__ = ["measure_power_cut"]

LOAD_RATE = 20_000.0
REPLICATED_S = 300.0
HEARD_S = 0.5
PROBE_KINDS = frozenset({"snat udp", "snat tcp-echo"})


def measure_power_cut(
    sizes: tuple[int, ...], cuts: int, say: Callable[[str], None]
) -> list[Figure]:
    """Median and worst outage of `cuts` power cuts for each number of replicas."""
    figures: list[Figure] = []
    for flows in sizes:
        with lab_for_drills(Lab(), say) as lab:
            figures += _cut(lab, flows, cuts, say)
    return figures


def _cut(lab: Lab, flows: int, cuts: int, say: Callable[[str], None]) -> list[Figure]:
    with Conductor(
        lab, lambda _text: None, octets_s=0, frames=False, kinds=PROBE_KINDS, families=(4,)
    ) as conductor:
        problem = ""
        try:
            conductor.establish()
            say(f"power cut: {flows:,} flows into the ACTIVE node")
            _load(lab, conductor.sight.holder().node, flows)
            for number in range(1, cuts + 1):
                say(f"power cut {number} of {cuts} with {flows:,} replicas")
                _cut_and_heal(conductor)
        except HafwError as error:
            problem = f"stopped early: {error}"
        drill = conductor.finish("bench-sync", "power-cut", problem)
    outages = sorted(step.outage_ms for step in drill.steps)
    note = "; ".join(drill.reasons)
    name = f"power cut, {flows:,} replicas: outage"
    return [
        Figure(f"{name}, median of {len(outages)}", "hafw", percentile(outages, 50), "ms",
               note=note),
        Figure(f"{name}, max", "hafw", percentile(outages, 100), "ms"),
    ]  # fmt: skip


def _cut_and_heal(conductor: Conductor) -> None:
    """One power cut; returns when the cluster is whole again."""
    cut: list[str] = []

    def act(active: str) -> int:
        cut.append(active)
        return conductor.faults.silence(active)

    conductor.fault("power cut", act, takeover="must")
    conductor.faults.heal(cut[0])
    _wait_synced(conductor.lab)
    conductor.returned()


def _wait_synced(lab: Lab) -> None:
    """The node that came back has replaced all its entries. Until it hears that it is not ACTIVE
    any more it still calls itself synced; a cut before that would be a second fault."""
    time.sleep(HEARD_S)
    lab.wait_ready(REPLICATED_S)


def _load(lab: Lab, active: str, flows: int) -> None:
    """Flows as the ACTIVE node's own, and their replicas everywhere. Raises HafwError."""
    node_id = lab.config.nodes[active].id
    with tempfile.TemporaryDirectory(prefix="hafw-b-") as text:
        folder = Path(text)
        file = write_flows(folder / "flows", flows, owner=node_id)
        Loops(compile_loops(folder)).insert(namespace_of(active), file, rate=LOAD_RATE, batch=20)
    others = [name for name in lab.gateways if name != active]

    def replicated() -> bool:
        answers = [LocalClient(NodePaths(name)).ask_syncd() for name in others]
        return all(
            not isinstance(answer, Unavailable) and answer.groups[0].replicas >= flows
            for answer in answers
        )

    wait_for(f"{flows} replicas", replicated, REPLICATED_S)
