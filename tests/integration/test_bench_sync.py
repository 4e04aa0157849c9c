"""Every figure of `hafwctl drill bench-sync` is produced and could be true."""

from __future__ import annotations

import pytest

from hafw.lab.bench_sync import QUICK, QUICK_PARTS, render_sync_bench, run_sync_bench

pytestmark = [pytest.mark.integration, pytest.mark.alone]

# Figure -> the systems it is of, the least and the most that it can be.
BOTH, OURS = {"hafw", "conntrackd FTFW"}, {"hafw"}
EXPECTED: dict[str, tuple[set[str], float, float]] = {
    "CPU per event, 2,000/s": (BOTH, 0.1, 5_000),
    "CPU per entry, 2,000/s": (BOTH, 0.1, 5_000),
    "memory per flow, owner": (BOTH, -100_000, 1_000_000),
    "memory per flow, replica": (BOTH, -100_000, 1_000_000),
    "CPU when idle": (BOTH, 0, 0),  # Not looked at for want of time.
    "flows/s, nothing lost": (BOTH, 0, 1_000),
    "bytes per NEW, delta alone": (OURS, 20, 100),
    "bytes per NEW, UDP payload": (BOTH, 30, 1_000),
    "bytes per NEW, Ethernet frames": (BOTH, 31, 1_500),
    "event to entry at 1,000/s, p50": (BOTH, 0.001, 60_000),
    "event to entry at 1,000/s, p99": (BOTH, 0.001, 60_000),
    "event to entry at 1,000/s, max": (BOTH, 0.001, 60_000),
    "CPU per event, real packets, 2,000/s": (OURS, 0.1, 5_000),
    "snapshot of 1,000, answer to last entry": (OURS, 0.0001, 60),
    "snapshot of 1,000, answer to synced": (OURS, 0.0001, 60),
    "takeover, 500 replicas: role change to first packet": (OURS, 0, 10_000),
    "takeover, 500 replicas: longest gap after it": (OURS, 0.1, 10_000),
    "takeover, 500 replicas: all adopted": (OURS, 0, 60),
}
WITH_FLOOR = ("CPU per event", "CPU per entry", "snapshot of")


def test_every_figure_is_produced_and_could_be_true() -> None:
    report = run_sync_bench(QUICK, list(QUICK_PARTS), lambda _text: None)
    text = render_sync_bench(report)
    assert not report.problems, text
    found = {(figure.name, figure.system): figure for figure in report.figures}
    assert len(found) == len(report.figures), text
    assert set(found) == {(n, s) for n, (of, _, _) in EXPECTED.items() for s in of}, text
    for (name, system), figure in found.items():
        _, least, most = EXPECTED[name]
        assert least <= figure.value <= most, (name, system, text)
        assert name in text
        if name.startswith(WITH_FLOOR):
            assert figure.floor, (name, system, text)
            assert figure.ratio == pytest.approx(figure.value / figure.floor)
        if not name.startswith("flows/s"):
            # Nothing was lost on the way; the highest rate alone says what failed.
            assert "missing" not in figure.note, (name, system, text)
            assert "not matched" not in figure.note, (name, system, text)
