"""hafwctl drill bench-rest: what the daemons cost while nothing happens."""

from __future__ import annotations

from pathlib import Path

import click

from hafw.cli.measuring import (
    JSON_OPTION,
    check_writable,
    ended_by_sigterm,
    progress,
    write_json,
)

__all__ = ["bench_rest"]

SETTLE_S = 5.0


@click.command("bench-rest")
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=60.0, show_default=True, help="Of each."
)
@JSON_OPTION
def bench_rest(seconds: float, json_file: Path | None) -> None:
    """Measure the CPU time of each daemon at rest, leased's beside a bare loop.

    In the lab; nothing else should run meanwhile. The nodes are switched off and on again for the
    loop. No pass or fail on a figure. docs/internals/measurements.md says how to read them.
    """
    import time

    from hafw.lab.bench_rest import measure_rest, render_rest, rest_to_json
    from hafw.lab.drills import lab_for_drills
    from hafw.lab.lab import Lab

    check_writable(json_file)
    with ended_by_sigterm(), progress() as say, lab_for_drills(Lab(), say) as lab:
        say("waiting until all is calm")
        time.sleep(SETTLE_S)
        report = measure_rest(lab, seconds, say)
    write_json(json_file, rest_to_json(report))
    click.echo(render_rest(report), nl=False)
