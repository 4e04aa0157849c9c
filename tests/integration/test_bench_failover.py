"""bench-failover measures hafw and keepalived alike, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hafw.lab.bench_failover_run import busy_loops
from hafw.lab.lab import Lab

pytestmark = [pytest.mark.integration, pytest.mark.alone]
HAFWCTL = str(Path(sys.executable).with_name("hafwctl"))
BENCH = [HAFWCTL, "drill", "bench-failover", "--loads", "idle"]
WAIT_S = 90


def test_both_systems_are_measured_by_the_same_judge(lab_alone: None, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = ["--systems", "hafw-default,keepalived-100ms", "--faults", "3", "--json", str(file)]
    done = subprocess.run(
        [*BENCH, *words], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, rival = json.loads(file.read_text())["parts"]
    for part, most_ms in ((ours, 1_000), (rival, 3_000)):
        assert part["problems"] == part["flows_lost"] == []
        assert len(part["faults"]) == 3
        assert all(50 < fault["outage_ms"] < most_ms for fault in part["faults"]), part
    assert {fault["node"] for fault in ours["faults"]} == {"gw1", "gw2"}
    assert ours["own_dual_ms"] == sum(fault["dual_ms"] for fault in ours["faults"]) == 0
    # A node that is heard again still believes that it is MASTER: nothing fences it.
    assert sum(fault["dual_ms"] for fault in rival["faults"]) > 0
    assert not Lab().exists()


def test_an_interrupted_bench_shows_what_it_has_and_cleans_up(
    lab_alone: None, tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    bench = subprocess.Popen(
        [*BENCH, "--systems", "keepalived-10ms", "--json", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert bench.stderr is not None
        for line in bench.stderr:
            if "fault 3 of 300" in line:
                break
        bench.send_signal(signal.SIGTERM)
        out, err = bench.communicate(timeout=WAIT_S)
    finally:
        bench.kill()
    assert bench.returncode == 1, out + err
    (part,) = json.loads(file.read_text())["parts"]
    assert part["interrupted"]
    assert 2 <= len(part["faults"]) < 300
    assert f"{len(part['faults'])}/300" in out
    assert "interrupted: everything was cleaned up" in err
    assert not Lab().exists()


def test_busy_loops_end_with_their_block() -> None:
    with busy_loops(2) as pids:
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, 0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
