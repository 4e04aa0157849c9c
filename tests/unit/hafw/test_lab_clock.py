"""A node's wall clock in the lab: what a process started with it sees before and after a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hafw.errors import StateError
from hafw.lab import lab_clock

ASK = """
import datetime, json, sys, time
for _ in sys.stdin:
    told = [time.time(), datetime.datetime.now().timestamp(), time.clock_gettime(0),
            time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)]
    print(json.dumps(told), flush=True)
"""
SLACK_S = 60.0
"""Between two questions, on however busy a machine; a step is an hour."""


@pytest.fixture
def lab_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAFW_RUN_ROOT", str(tmp_path))
    (tmp_path / "lab").mkdir()
    return tmp_path / "lab"


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_a_running_process_sees_the_step_and_only_in_its_wall_clock(
    lab_folder: Path, step_s: int
) -> None:
    lab_clock.make_clocks(["gw1", "gw2"])
    process = subprocess.Popen(
        [sys.executable, "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **lab_clock.clock_environment("gw1")},
    )  # fmt: skip

    def ask() -> list[float]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("?\n")
        process.stdin.flush()
        told: list[float] = json.loads(process.stdout.readline())
        return told

    try:
        before, reads = ask(), lab_clock.clock_reads("gw1")
        assert reads >= 3
        lab_clock.step_clock("gw2", step_s)
        beside = ask()
        lab_clock.step_clock("gw1", step_s)
        after = ask()
        lab_clock.step_clock("gw1", 0)
        again = ask()
    finally:
        process.kill()
        process.communicate()
    for told, offset_s in ((beside, 0), (after, step_s), (again, 0)):
        for place in range(3):
            assert abs(told[place] - before[place] - offset_s) < SLACK_S
        for place in (3, 4):
            assert 0 <= told[place] - before[place] < SLACK_S
    assert lab_clock.clock_reads("gw1") > reads
    assert lab_clock.clock_reads("gw2") == 0


def test_a_lab_without_a_compiler_has_no_clocks_and_says_so(
    lab_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(lab_folder))
    lab_clock.make_clocks(["gw1"])
    assert lab_clock.clock_environment("gw1") == {}
    with pytest.raises(StateError, match="apt install gcc"):
        lab_clock.step_clock("gw1", 1)
