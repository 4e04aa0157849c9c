"""hafwctl check: is a cluster.yaml or a policy.yaml right, and what does it mean?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hafw.config.check import CheckReport

__all__ = ["check"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--cluster",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of a policy file: the cluster.yaml it is for.  [default: the one beside it]",
)
def check(file: Path, cluster: Path | None) -> None:
    """Check FILE, a cluster.yaml and the policy that it names, or a policy.yaml.

    Loads nothing, asks nobody, needs no root. Every problem is named with its line and with what
    would be right. Whether the kernel takes the compiled policy is only known where it is loaded.
    """
    from hafw.config.check import check_file

    report = check_file(file, cluster)
    for line in report.lines:
        click.echo(f"hafwctl: error: {line}", err=True)
    for warning in report.warnings:
        click.echo(f"hafwctl: warning: {warning}", err=True)
    _show(report)
    if not report.ok:
        sys.exit(1)


def _show(report: CheckReport) -> None:
    if not report.problems:
        click.echo(f"{report.file}: fine")
        for what, value in report.facts:
            click.echo(f"  {what}: {value}")
    for note in report.notes:
        click.echo(f"  note: {note}")
    if report.also is not None:
        _show(report.also)
