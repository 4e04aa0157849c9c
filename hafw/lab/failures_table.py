"""The table of `docs/operating/failures.md`: the drills' words, and what runs measured. Pure.

`python -m hafw.lab.failures_table REPORT...` writes it, from what `hafwctl drill run --json` left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from hafw.lab.drill_list import rows
from hafw.lab.drill_steps import NO_NODE
from hafw.lab.judges import percentile
from hafw.lab.report import DrillReport, DrillResult, title_of

__all__ = ["HEAD", "main", "table_lines"]

HEAD = ("drill", "fault", "what must come of it", "runs", "outage ms", "flows lost", "dual-ACTIVE")


def table_lines(results: Iterable[DrillResult]) -> list[str]:
    """Markdown. A row without a result has dashes."""
    found: dict[tuple[str, str], list[DrillResult]] = {}
    for result in results:
        found.setdefault((result.drill, result.variant), []).append(result)
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for drill, row in rows():
        runs = found.get((drill.name, row.variant), [])
        title = f"`{title_of(drill.name, row.variant)}`"
        lines.append(_line([title, row.fault, row.outcome, *_figures(runs)]))
    return lines


def _figures(runs: list[DrillResult]) -> list[str]:
    if not runs:
        return ["-"] * 4
    lost = sum(bool(probe.lost) for run in runs for probe in run.probes)
    by_gates = sum(run.gate.dual_ms for run in runs if run.gate)
    by_frames = sum(run.frames.dual_ms for run in runs if run.frames)
    return [str(len(runs)), _outage(runs), str(lost), f"{by_gates:g} / {by_frames:g}"]


def _outage(runs: list[DrillResult]) -> str:
    steps = [step for run in runs for step in run.steps]
    cold = [step.takeover_ms or 0.0 for step in steps if step.holder_before == NO_NODE.node]
    worst = cold or [max((step.outage_ms for step in run.steps), default=0.0) for run in runs]
    worst.sort()
    words = f"{percentile(worst, 50):.0f}"
    if len(worst) > 1:
        words += f", at most {worst[-1]:.0f}"
    return f"first ACTIVE after {words}" if cold else words


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(prog="failures_table")
    parser.add_argument("reports", nargs="+", type=Path)
    arguments = parser.parse_args()
    reports = [msgspec.json.decode(p.read_bytes(), type=DrillReport) for p in arguments.reports]
    lines = table_lines(result for report in reports for result in report.drills)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
