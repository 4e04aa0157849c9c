"""What each daemon costs while nothing happens, leased beside its floor in the same run. Shell.

In the lab, ready and calm. Then all nodes are powered off, and on each the floor's loop
(`bench_rest_floor`) runs over the same wires, at the same pace and for as long. Nothing passes or
fails on a figure.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable

import msgspec

from hafw.errors import StateError
from hafw.lab.bench_figures import Figure, beside
from hafw.lab.bench_rest_floor import SETTLE_S, FloorSays, wakes_of
from hafw.lab.bench_tools import cpu_ns
from hafw.lab.lab import DAEMONS, Lab
from hafw.lab.report import table
from hafw.node.client import LocalClient, Unavailable

__all__ = ["RestReport", "measure_rest", "render_rest", "rest_to_json"]

FLOOR_ENDS_S = 20.0
AIM = "30: 3 % of a core"

Say = Callable[[str], None]


class RestReport(msgspec.Struct):
    """`load`: the machine's before and after, without which CPU time says little."""

    kernel: str
    cpus: int
    python: str
    load: tuple[float, float]
    seconds: float
    figures: list[Figure]


def measure_rest(lab: Lab, seconds: float, say: Say) -> RestReport:
    """The lab must be ready; its nodes were off and on afterwards. Raises HafwError."""
    load = os.getloadavg()[0]
    active = _active(lab)
    say(f"the daemons of {len(lab.config.nodes)} nodes for {seconds:g} s")
    spent, woken = _watch(lab, seconds)
    if _active(lab) != active:
        raise StateError("the group moved meanwhile: that was no rest")
    say(f"the floor for {seconds:g} s")
    floors = _floors(lab, seconds)
    figures = []
    for node in lab.config.nodes:
        floor = floors[node]
        name = f"{node} (ACTIVE)" if node == active else node
        share, wakes = floor.cpu_ns / floor.wall_ns * 1e3, floor.wakes / floor.wall_ns * 1e9
        for daemon in spent[node]:
            ms = spent[node][daemon] / 1e6
            if daemon != "leased":
                figures.append(Figure(f"CPU, {name}", daemon, ms, "ms/s"))
                continue
            figures.append(beside(f"CPU, {name}", daemon, ms, "ms/s", share, aim=AIM))
            figures.append(beside(f"wake-ups, {name}", daemon, woken[node], "1/s", wakes))
    python = f"Python {platform.python_version()}{'' if _optimized() else ' built without PGO'}"
    loads = (load, os.getloadavg()[0])
    return RestReport(platform.release(), os.cpu_count() or 1, python, loads, seconds, figures)


def _optimized() -> bool:
    """A build with --enable-optimizations needs a fifth less."""
    return "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))


def _active(lab: Lab) -> str:
    """Of the first group. Raises StateError."""
    for node in lab.gateways:
        answer = LocalClient(lab.paths(node)).ask_leased()
        if not isinstance(answer, Unavailable) and answer.groups[0].active:
            return node
    raise StateError("no node is ACTIVE")


def _watch(lab: Lab, seconds: float) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """CPU nanoseconds a second of each node's daemons, and how often its leased woke a second."""
    pids = {
        node: {daemon: found[daemon] for daemon in DAEMONS if daemon in found}
        for node in lab.config.nodes
        if (found := lab.pids(node))
    }
    before = {(n, d): cpu_ns(pid) for n, of in pids.items() for d, pid in of.items()}
    slept = {node: wakes_of(of["leased"]) for node, of in pids.items()}
    began = time.monotonic()
    time.sleep(seconds)
    spent = {
        node: {daemon: float(cpu_ns(pid) - before[node, daemon]) for daemon, pid in of.items()}
        for node, of in pids.items()
    }
    woken = {node: wakes_of(of["leased"]) - slept[node] for node, of in pids.items()}
    took = time.monotonic() - began
    return (
        {node: {daemon: ns / took for daemon, ns in of.items()} for node, of in spent.items()},
        {node: count / took for node, count in woken.items()},
    )


def _floors(lab: Lab, seconds: float) -> dict[str, FloorSays]:
    """All at once, so that they hear each other. Raises StateError."""
    nodes = list(lab.config.nodes)
    for node in nodes:
        lab.power_off(node)
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for node in nodes:
            argv = [
                *(sys.executable, "-m", "hafw.lab.bench_rest_floor", "--node", node),
                *("--config", str(lab.config_file), "--seconds", f"{seconds:g}"),
            ]
            running[node] = lab.spawn(node, argv, stdout=subprocess.PIPE, text=True)
        said = {}
        for node, process in running.items():
            text, _ = process.communicate(timeout=SETTLE_S + seconds + FLOOR_ENDS_S)
            if process.returncode:
                raise StateError(f"the floor's loop of {node} ended with {process.returncode}")
            said[node] = msgspec.json.decode(text, type=FloorSays)
        return said
    except subprocess.TimeoutExpired:
        raise StateError("the floor's loop does not end") from None
    finally:
        for process in running.values():
            process.kill()
            process.wait()
        for node in nodes:
            lab.start(node)


def render_rest(report: RestReport) -> str:
    """One row a figure. Pure."""
    rows = [
        (
            figure.name,
            figure.system,
            f"{figure.value:.1f}",
            figure.unit,
            "" if figure.floor is None else f"{figure.floor:.1f}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.aim,
        )
        for figure in report.figures
    ]
    head = ("at rest", "of", "value", "unit", "floor", "ratio", "aim")
    before, after = report.load
    line = (
        f"{report.seconds:g} s on Linux {report.kernel}, {report.cpus} CPUs, {report.python}, "
        f"load {before:.2f} before and {after:.2f} after"
    )
    return "\n".join([line, *table(head, rows)]) + "\n"


def rest_to_json(report: RestReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
