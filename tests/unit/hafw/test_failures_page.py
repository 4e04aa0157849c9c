"""docs/operating/failures.md says what the drills say, for each of them, with figures."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hafw.lab.drill_list import rows
from hafw.lab.failures_table import HEAD, table_lines
from hafw.lab.judges import FrameVerdict
from tests.unit.hafw.test_report import FRAMES, GATE, GOOD, PROBE, STEP

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operating" / "failures.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table_of(page: str) -> list[list[str]]:
    lines = page.splitlines()
    start = lines.index(next(line for line in lines if cells(line) == list(HEAD)))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append(cells(line))
    return found


def test_the_page_has_every_row_in_the_drills_words_with_figures() -> None:
    shown = table_of(PAGE.read_text())[2:]
    expected = [cells(line)[:3] for line in table_lines([])[2:]]
    assert [row[:3] for row in shown] == expected
    for row in shown:
        runs, outage, lost, dual = row[3:]
        assert int(runs) >= 1, row
        assert any(char.isdigit() for char in outage), row
        assert (lost, dual) == ("0", "0 / 0"), row


def test_no_two_rows_are_the_same() -> None:
    titles = [(drill.name, row.variant) for drill, row in rows()]
    assert len(set(titles)) == len(titles)
    for drill, _ in rows():
        assert (drill.variants == ("",)) == ("" in drill.variants)


def test_figures_are_the_median_and_worst_of_the_runs_and_nothing_is_hidden() -> None:
    slow = msgspec.structs.replace(STEP, outage_ms=150.0)
    gate = msgspec.structs.replace(GATE, dual_ms=3.0)
    frames: FrameVerdict = msgspec.structs.replace(FRAMES, dual_ms=2.0)
    bad = msgspec.structs.replace(
        GOOD, steps=[STEP, slow], gate=gate, frames=frames,
        probes=[PROBE, msgspec.structs.replace(PROBE, lost="gone")],
    )  # fmt: skip
    line = cells(table_lines([GOOD, bad, GOOD])[2])
    assert line[3:] == ["3", "98, at most 150", "1", "3 / 2"]


def test_a_cold_start_shows_the_time_to_the_first_active_node() -> None:
    step = msgspec.structs.replace(
        STEP, holder_before="no node", takeover_ms=9216.0, outage_ms=0.0
    )
    cold = msgspec.structs.replace(GOOD, drill="cold-start", variant="", steps=[step])
    (line,) = [line for line in table_lines([cold]) if "cold-start" in line]
    assert "first ACTIVE after 9216" in line
