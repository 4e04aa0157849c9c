"""hafwctl drill: faults on purpose in the lab, measured; exit 0 only if nothing was lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hafw.cli.drill_failover import bench_failover
from hafw.cli.drill_rest import bench_rest
from hafw.cli.drill_sync import bench_sync, churn
from hafw.cli.measuring import (
    JSON_OPTION,
    check_writable,
    ended_by_sigterm,
    progress,
    write_json,
)
from hafw.cli.render import format_option, render

if TYPE_CHECKING:
    from hafw.lab.report import DrillResult

__all__ = ["drill"]


@click.group()
def drill() -> None:
    """Faults on purpose in the lab, with real traffic, measured.

    Takes the lab that is up, or builds one and removes it afterwards.
    """


@drill.command("list")
@format_option
def list_drills(fmt: str) -> None:
    """Every drill with its variants: what it does, and what must come of it."""
    from hafw.lab.drill_list import MOVES, rows

    found = [
        {"drill": drill.name, "variant": row.variant, "fault": row.fault, "outcome": row.outcome}
        for drill, row in [*rows(), *((drill, row) for drill in MOVES for row in drill.rows)]
    ]
    click.echo(render(found, fmt), nl=False)


@drill.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--variant", help="Only this variant of each drill named. [default: all]")
@click.option("--repeat", type=click.IntRange(1), default=1, help="Run everything N times.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["sync", "segments", "gate"]),
    help="UNSAFE: leave a protection out, to see the drill fail. Repeatable.",
)
@click.option("--heartbeat-ms", type=click.IntRange(1), help="Override lease.heartbeat_ms.")
@click.option("--lease-ms", type=click.IntRange(1), help="Override lease.lease_ms.")
@click.option("--keep-lab", is_flag=True, help="Leave the lab up afterwards.")
@JSON_OPTION
def run(
    names: tuple[str, ...],
    variant: str | None,
    repeat: int,
    without: tuple[str, ...],
    heartbeat_ms: int | None,
    lease_ms: int | None,
    keep_lab: bool,
    json_file: Path | None,
) -> None:
    """Run drills by name, or `all` of them (about 5 minutes); `hafwctl drill list` has the names.

    Exit 0 only if no flow established at least 1 s before the fault was lost, dual-ACTIVE is 0 by
    both judges, what moved is what should, the node came back synced and TCP was strict
    throughout; else 1. The last lines sum up each row, however often it was run.
    """
    from hafw.lab.drill_list import plan_drills
    from hafw.lab.drills import lab_for_drills, run_drills, save_logs
    from hafw.lab.lab import Lab
    from hafw.lab.report import render_drill, render_report, to_json

    plan = plan_drills(names, variant, repeat)
    check_writable(json_file)

    def show(result: DrillResult) -> None:
        click.echo(render_drill(result))

    with (
        ended_by_sigterm(),
        progress() as say,
        lab_for_drills(
            Lab(), say, heartbeat_ms=heartbeat_ms, lease_ms=lease_ms,
            without=frozenset(without), keep=keep_lab,
        ) as lab,
    ):  # fmt: skip
        report = run_drills(lab, plan, say, show)
        write_json(json_file, to_json(report))
        if not report.passed:
            click.echo(f"the nodes' logs were copied to {save_logs(lab)}", err=True)
    click.echo(render_report(report), nl=False)
    if not report.passed:
        sys.exit(1)


drill.add_command(bench_failover)
drill.add_command(churn)
drill.add_command(bench_sync)
drill.add_command(bench_rest)
