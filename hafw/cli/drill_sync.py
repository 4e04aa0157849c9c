"""hafwctl drill churn, bench-sync: what replication leaves behind, and what it costs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from hafw.cli.measuring import (
    JSON_OPTION,
    check_writable,
    ended_by_sigterm,
    progress,
    write_json,
)

__all__ = ["bench_sync", "churn"]


@click.command()
@click.option("--flows", type=click.IntRange(100), default=1_000_000, help="Made in all.")
@click.option("--standing", type=click.IntRange(10), default=300_000, help="Alive at the end.")
@click.option("--rate", type=click.FloatRange(0), default=10_000.0, help="Flows made a second.")
@click.option("--loss", type=click.IntRange(0, 90), default=1, help="Percent of frames lost.")
@click.option("--connections", type=click.IntRange(1), default=200, help="That really send.")
@click.option("--seed", type=int, default=1, help="The same seed makes the same flows.")
@click.option(
    "--sweep",
    type=click.Choice(["refresh", "take"]),
    default="refresh",
    help="Wait for the next refresh, or have all flows said at once by a new epoch.",
)
@click.option("--refresh-s", type=click.IntRange(10), default=60, help="sync.refresh_s.")
@click.option("--hold-s", type=click.IntRange(60), default=900, help="sync.hold_s.")
@JSON_OPTION
def churn(
    flows: int, standing: int, rate: float, loss: int, connections: int, seed: int, sweep: str,
    refresh_s: int, hold_s: int, json_file: Path | None,
) -> None:  # fmt: skip
    """Replicate churn under loss, restart the receiver in the middle, compare both tables.

    In namespaces of its own, without the lab. Flows of every kind are made, changed, re-used and
    deleted; afterwards pyroute2 reads both kernels. Exit 0 only if they hold the same.
    """
    from hafw.lab.churn import ChurnPlan, churn_to_json, render_churn, run_churn

    if refresh_s * 2 > hold_s:
        # As `SyncConfig` has it: the daemons would refuse their configuration.
        raise click.BadParameter(
            f"must be at most half of --hold-s ({hold_s})", param_hint="--refresh-s"
        )
    if not math.isfinite(rate):
        raise click.BadParameter("must be a number", param_hint="--rate")
    check_writable(json_file)
    plan = ChurnPlan(
        flows=flows,
        standing=standing,
        rate=rate,
        loss_percent=loss,
        connections=connections,
        seed=seed,
        sweep="take" if sweep == "take" else "refresh",
        hold_s=hold_s,
        refresh_s=refresh_s,
    )
    with ended_by_sigterm(), progress() as say:
        report = run_churn(plan, say)
    write_json(json_file, churn_to_json(report))
    click.echo(render_churn(report), nl=False)
    if report.problems:
        sys.exit(1)


@click.command("bench-sync")
@click.option("--quick", is_flag=True, help="Every figure in seconds; they mean nothing.")
@click.option(
    "--parts",
    default="",
    help="Of cpu, rate, wire, delay, packets, snapshot, takeover, power-cut. [default: all]",
)
@click.option("--flows", type=click.IntRange(100), help="For CPU and memory. [default: 300000]")
@click.option("--snapshot-flows", type=click.IntRange(100), help="[default: 1000000]")
@click.option("--takeover-flows", type=click.IntRange(100), help="Beside 1,000. [default: 500000]")
@click.option("--without-conntrackd", is_flag=True, help="Do not measure conntrackd beside it.")
@JSON_OPTION
def bench_sync(
    quick: bool, parts: str, flows: int | None, snapshot_flows: int | None,
    takeover_flows: int | None, without_conntrackd: bool, json_file: Path | None,
) -> None:  # fmt: skip
    """Measure replication beside the kernel's floor and beside conntrackd.

    In namespaces of its own; only power-cut needs the lab. Nothing else should run meanwhile.
    No pass or fail on a figure: exit 1 only if a part could not be measured.
    docs/internals/measurements.md says how to read the figures.
    """
    from dataclasses import replace

    from hafw.lab import bench_sync as bench

    sizes = bench.QUICK if quick else bench.Sizes()
    sizes = replace(
        sizes,
        cpu_flows=flows or sizes.cpu_flows,
        snapshot_flows=snapshot_flows or sizes.snapshot_flows,
        takeover_flows=(1000, takeover_flows) if takeover_flows else sizes.takeover_flows,
    )
    names = bench.parse_parts(parts) or list(bench.QUICK_PARTS if quick else bench.PARTS)
    check_writable(json_file)
    with ended_by_sigterm(), progress() as say:
        report = bench.run_sync_bench(sizes, names, say, with_conntrackd=not without_conntrackd)
    write_json(json_file, bench.sync_bench_to_json(report))
    click.echo(bench.render_sync_bench(report), nl=False)
    if report.problems:
        sys.exit(1)
