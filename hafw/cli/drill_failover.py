"""hafwctl drill bench-failover: the distribution of outages, beside keepalived's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hafw.cli.measuring import (
    JSON_OPTION,
    check_writable,
    ended_by_sigterm,
    progress,
    write_json,
)

if TYPE_CHECKING:
    from hafw.lab.bench_failover import PartResult

__all__ = ["bench_failover"]


@click.command("bench-failover")
@click.option(
    "--systems",
    default="",
    help="Of hafw-default (20/100 ms), hafw-fast (10/40), hafw-experimental (5/20), "
    "keepalived-1s, keepalived-100ms, keepalived-10ms. [default: all but experimental]",
)
@click.option("--loads", default="idle,starved", show_default=True, help="Of idle, starved.")
@click.option(
    "--faults", type=click.IntRange(1), default=300, show_default=True,
    help="Power cuts for each system under each load.",
)  # fmt: skip
@click.option(
    "--minutes", type=click.FloatRange(0.1), default=45.0, show_default=True,
    help="For everything together. What quick systems leave of their shares goes to slow ones.",
)  # fmt: skip
@click.option(
    "--quiet-s", type=click.FloatRange(0), default=60.0, show_default=True,
    help="Seconds without a fault, starved, in which takeovers are counted; 0: do not.",
)  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments of the cuts.")
@click.option("--resume", is_flag=True, help="Keep what the file of --json has complete already.")
@JSON_OPTION
def bench_failover(
    systems: str, loads: str, faults: int, minutes: float, quiet_s: float, seed: int,
    resume: bool, json_file: Path | None,
) -> None:  # fmt: skip
    """Measure the outage over many power cuts, beside keepalived. No pass or fail on time.

    Each system in a lab of its own, one after the other; nothing else should run meanwhile. What
    was measured is shown when it is interrupted, too, and written after every part. Exit 1 only
    if hafw lost a flow, two nodes of it were ACTIVE, or a part could not be measured.
    docs/internals/measurements.md says how to read the figures.
    """
    from msgspec import structs

    from hafw.errors import RefusedError
    from hafw.lab import bench_failover as bench
    from hafw.lab.bench_failover_run import new_report, run_failover

    plan = bench.Plan(
        systems=bench.parse_names(systems or ",".join(bench.DEFAULT_SYSTEMS), tuple(bench.SYSTEMS),
                                  "system"),
        loads=bench.parse_names(loads, bench.LOADS, "load"),
        faults=faults, minutes=minutes, quiet_s=quiet_s, seed=seed,
    )  # fmt: skip
    check_writable(json_file)
    report = new_report(plan)
    if resume:
        if json_file is None:
            raise RefusedError("--resume needs --json: the file with what was measured before")
        if json_file.exists():
            old = bench.read_failover(json_file.read_bytes())
            kept = [part for part in old.parts if not part.failed]
            report = structs.replace(report, parts=kept)
    done = {(part.system, part.load) for part in report.parts}

    def record(part: PartResult) -> None:
        nonlocal report
        report = structs.replace(report, parts=bench.merge_parts(report.parts, [part]))
        write_json(json_file, bench.failover_to_json(report))
        click.echo(
            f"{part.system}, {part.load}: {len(part.faults)} faults in {part.seconds:.0f} s"
        )

    try:
        with ended_by_sigterm(), progress() as say:
            run_failover(plan, say, record, lambda *key: key in done)
    finally:
        click.echo(bench.render_failover(report), nl=False)
    if any(part.failed for part in report.parts):
        sys.exit(1)
