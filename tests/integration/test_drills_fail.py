"""Drills that must fail do: without sync, without the gate; and an interrupted one cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hafw.lab.files import lab_folder
from hafw.lab.inside import namespace_path

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.usefixtures("lab_alone")]
HAFWCTL = str(Path(sys.executable).with_name("hafwctl"))
WAIT_S = 120
NAMESPACES = ("hafw-sw", "hafw-gw1", "hafw-gw2", "hafw-wit", "hafw-client", "hafw-server")


def failed(tmp_path: Path, *words: str) -> tuple[dict[str, Any], str]:
    """The result of one drill that exits 1; its lab is gone."""
    file = tmp_path / "drill.json"
    done = subprocess.run(
        [HAFWCTL, "drill", "run", *words, "--json", str(file)],
        capture_output=True, text=True, timeout=WAIT_S, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(file.read_text())
    assert not report["passed"]
    (result,) = report["drills"]
    assert result["reasons"]
    assert nothing_left()
    assert list(tmp_path.glob("hafw-drill-logs-*/*.log")), "the logs of a failure are kept"
    return result, done.stdout


def nothing_left() -> bool:
    return not lab_folder().exists() and not any(
        namespace_path(name).exists() for name in NAMESPACES
    )


def test_without_sync_tcp_flows_are_lost(tmp_path: Path) -> None:
    result, words = failed(tmp_path, "power-cut", "--variant", "heal", "--without", "sync")
    lost = {(probe["name"], probe["family"]) for probe in result["probes"] if probe["lost"]}
    tcp = {(p["name"], p["family"]) for p in result["probes"] if "tcp" in p["name"]}
    assert lost >= tcp
    assert not any(probe["replica"] for probe in result["probes"])
    assert result["gate"]["dual_ms"] == 0
    assert "LOST: no answer within 10 s of the fault" in words
    assert "without sync" in words


def test_without_the_gate_both_judges_catch_it(tmp_path: Path) -> None:
    result, words = failed(tmp_path, "freeze", "--without", "gate")
    assert result["gate"]["dual_ms"] > 1000
    assert result["frames"]["dual_ms"] > 1000
    assert "by the gates' deadlines" in words
    assert "by forwarded frames" in words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drill_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [HAFWCTL, "drill", "run", "power-cut", "--variant", "heal"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        deadline = time.monotonic() + WAIT_S
        for line in process.stderr:
            if "waiting until the cluster is whole again" in line:
                break
            assert time.monotonic() < deadline
        process.send_signal(number)
        words = process.stderr.read()
        assert process.wait(WAIT_S) == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert "everything was cleaned up" in words
    assert "Traceback" not in words
    assert nothing_left()
