"""Every figure of `hafwctl drill bench-rest` could be true, and all nodes live after it."""

from __future__ import annotations

import pytest

from hafw.lab.bench_rest import measure_rest, render_rest
from hafw.lab.lab import Lab

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(120)]


def test_every_figure_is_produced_and_could_be_true(shared_lab: Lab) -> None:
    report = measure_rest(shared_lab, 1.0, lambda _text: None)
    text = render_rest(report)
    found = {
        (figure.name.replace(" (ACTIVE)", ""), figure.system): figure for figure in report.figures
    }
    daemons = {"gw1": 4, "gw2": 4, "wit": 3}  # A witness replicates nothing.
    assert sorted(name for name, _ in found) == sorted(
        [f"CPU, {n}" for n, count in daemons.items() for _ in range(count)]
        + [f"wake-ups, {n}" for n in daemons]
    ), text
    assert sum("(ACTIVE)" in figure.name for figure in report.figures) == 5, text
    for (name, system), figure in found.items():
        assert 0 < figure.value < 5000, (name, text)
        assert figure.name in text
        if system == "leased":
            assert figure.floor, (name, text)
            assert figure.ratio == pytest.approx(figure.value / figure.floor)
    shared_lab.wait_ready(30)
