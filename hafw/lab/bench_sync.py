"""ct_sync measured, each figure beside the kernel's floor or conntrackd in the same run. Shell.

The parts are in `bench_sync_parts` (CPU, rate, bytes, memory, delay) and `bench_sync_large`
(snapshot, takeover); docs/internals/measurements.md says what each floor contains and how to read
the figures. Nothing here passes or fails on a figure: aims are printed beside them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from hafw.errors import HafwError, RefusedError
from hafw.lab import machine
from hafw.lab.bench_figures import Figure
from hafw.lab.bench_sync_lab import measure_power_cut
from hafw.lab.bench_sync_large import measure_snapshot, measure_takeover
from hafw.lab.bench_sync_parts import (
    Bench,
    measure_cpu,
    measure_delay,
    measure_packets,
    measure_rate,
    measure_wire,
)
from hafw.lab.bench_systems import CONNTRACKD_MODES, Conntrackd, Hafw, System, require_conntrackd
from hafw.lab.bench_tools import Loops, compile_loops
from hafw.lab.report import table
from hafw.lab.sync_spaces import sync_spaces

__all__ = [
    "PARTS",
    "QUICK",
    "QUICK_PARTS",
    "Sizes",
    "SyncBenchReport",
    "parse_parts",
    "render_sync_bench",
    "run_sync_bench",
    "sync_bench_to_json",
]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. `rates` are the steps tried, flows a second, before bisection;
    `idle_s`: how long an idle daemon is watched (0: its CPU time is not taken off); `full_speed`:
    CPU time also of flows made as fast as it goes."""

    cpu_flows: int = 300_000
    paced_rate: float = 10_000.0
    rates: tuple[float, ...] = (5e3, 1e4, 2e4, 4e4, 6e4, 8e4, 1.2e5, 1.6e5, 2.4e5, 3.2e5)
    rate_s: float = 4.0
    bisections: int = 3
    wire_flows: int = 50_000
    delay_rate: float = 10_000.0
    delay_s: float = 10.0
    packets: int = 100_000
    snapshot_flows: int = 1_000_000
    takeover_flows: tuple[int, ...] = (1_000, 500_000)
    takeover_s: float = 10.0
    cuts: int = 5
    idle_s: float = 2.0
    full_speed: bool = True
    modes: tuple[str, ...] = CONNTRACKD_MODES


QUICK = Sizes(
    cpu_flows=400,
    paced_rate=2_000.0,
    rates=(1_000.0,),
    rate_s=0.4,
    bisections=0,
    wire_flows=400,
    delay_rate=1_000.0,
    delay_s=0.3,
    packets=400,
    snapshot_flows=1_000,
    takeover_flows=(500,),
    takeover_s=0.5,
    idle_s=0.0,
    full_speed=False,
    modes=("FTFW",),
)
"""For the test that every figure is produced: seconds, and figures that mean nothing."""

PARTS = ("cpu", "rate", "wire", "delay", "packets", "snapshot", "takeover", "power-cut")
QUICK_PARTS = PARTS[:-1]
"""The last one builds the lab."""


class SyncBenchReport(msgspec.Struct):
    kernel: str
    cpus: int
    codec: str
    pinned: bool
    figures: list[Figure]
    problems: list[str] = []
    """Parts that did not come to their end, and why."""


def parse_parts(text: str) -> list[str]:
    """``cpu,rate`` and the like; empty: none. Raises RefusedError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise RefusedError(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if text and not names:
        raise RefusedError(f"{text!r} names no part; there are {', '.join(PARTS)}")
    return names


def run_sync_bench(
    sizes: Sizes, parts: list[str], say: Say, *, with_conntrackd: bool = True
) -> SyncBenchReport:
    """All parts, one after the other, in namespaces of their own. Raises HafwError."""
    # The last CPU is where the lease would be; a machine with one has nothing to pin.
    cpus = (0, 1) if (os.cpu_count() or 1) > 1 else None
    report = SyncBenchReport(platform.release(), os.cpu_count() or 1, "", cpus is not None, [])
    most = _most_flows(sizes)
    with machine.room_for(most + 100_000), sync_spaces() as spaces:
        ours = Hafw(spaces, cpus)
        systems: list[System] = [ours]
        if with_conntrackd:
            program = require_conntrackd()
            systems += [
                Conntrackd(spaces, cpus, mode=mode, program=program, flows=most)
                for mode in sizes.modes
            ]
        bench = Bench(
            spaces, Loops(compile_loops(spaces.folder)), ours, systems, say, sizes.idle_s
        )
        work: dict[str, Callable[[], list[Figure]]] = {
            "cpu": lambda: measure_cpu(
                bench, sizes.cpu_flows, sizes.paced_rate, full_speed=sizes.full_speed
            ),
            "rate": lambda: measure_rate(bench, sizes.rates, sizes.rate_s, sizes.bisections),
            "wire": lambda: measure_wire(bench, sizes.wire_flows, sizes.paced_rate),
            "delay": lambda: measure_delay(bench, sizes.delay_rate, sizes.delay_s),
            "packets": lambda: measure_packets(bench, sizes.packets, sizes.paced_rate),
            "snapshot": lambda: measure_snapshot(bench, sizes.snapshot_flows),
            "takeover": lambda: measure_takeover(bench, sizes.takeover_flows, sizes.takeover_s),
        }
        for part in work:
            if part in parts:
                _measure(report, part, work[part], say)
        report.codec = bench.codec
    if "power-cut" in parts:  # The lab has the nodes' usual folders.
        with machine.room_for(most + 100_000):
            _measure(
                report,
                "power-cut",
                lambda: measure_power_cut(sizes.takeover_flows, sizes.cuts, say),
                say,
            )
    return report


def _most_flows(sizes: Sizes) -> int:
    """The most entries that a table is to hold at once."""
    return max(
        sizes.cpu_flows,
        sizes.wire_flows,
        sizes.packets,
        sizes.snapshot_flows,
        *sizes.takeover_flows,
        int(max(sizes.rates) * sizes.rate_s),
        int(sizes.delay_rate * sizes.delay_s),
    )


def _measure(
    report: SyncBenchReport, part: str, work: Callable[[], list[Figure]], say: Say
) -> None:
    """One part; what stops it does not stop the others."""
    say(f"{part} ...")
    try:
        report.figures += work()
    except HafwError as error:
        report.problems.append(f"{part}: {error}")


def render_sync_bench(report: SyncBenchReport) -> str:
    """One row a figure. Pure."""
    head = ("figure", "of", "value", "unit", "floor", "ratio", "aim", "note")
    rows = [
        (
            figure.name,
            figure.system,
            _number(figure.value),
            figure.unit,
            "" if figure.floor is None else _number(figure.floor),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.aim,
            figure.note,
        )
        for figure in report.figures
    ]
    lines = [
        f"ct_sync on Linux {report.kernel}, {report.cpus} CPUs, codec {report.codec or '-'}, "
        f"daemons {'pinned' if report.pinned else 'not pinned'}"
    ]
    problems = [f"PROBLEM: {problem}" for problem in report.problems]
    return "\n".join([*lines, *table(head, rows), *problems]) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def sync_bench_to_json(report: SyncBenchReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
