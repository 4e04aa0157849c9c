"""The drills in a running lab: they pass, they leave things as they were, they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hafw.errors import RefusedError
from hafw.lab.drills import lab_for_drills
from hafw.lab.faults import Sight
from hafw.lab.inside import call_in
from hafw.lab.lab import Lab
from hafw.lab.topology import namespace_of

pytestmark = [pytest.mark.integration, pytest.mark.alone]
HAFWCTL = str(Path(sys.executable).with_name("hafwctl"))
ALL_WAIT_S = 180
"""What the drills may take after set-up."""
CLASSIC = ("power-cut", "freeze", "kill", "there-and-back")
"""The others are rows of `test_failures.py`."""


@pytest.fixture(scope="module")
def lab(shared_lab: Lab) -> Lab:
    return shared_lab


def hafwctl(*words: str, wait_s: float = ALL_WAIT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HAFWCTL, *words], capture_output=True, text=True, timeout=wait_s, check=False
    )


def read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def test_drills_pass_and_leave_the_lab_up(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "drills.json"
    done = hafwctl("drill", "run", *CLASSIC, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    report = read(file)
    assert report["passed"]
    assert [(d["drill"], d["variant"]) for d in report["drills"]] == [
        ("power-cut", "restart"), ("power-cut", "heal"), ("freeze", ""), ("kill", ""),
        ("there-and-back", ""),
    ]  # fmt: skip
    for drill in report["drills"]:
        assert len(drill["probes"]) == 16
        assert all(probe["established_s"] >= 1 for probe in drill["probes"])
        assert all(probe["before"] > 0 < probe["after"] for probe in drill["probes"])
        whens = {"at the beginning", "at the end"}
        for step in drill["steps"]:
            whens |= {f"{time} {step['what']}" for time in ("before", "after")}
            if step["ready_s"] is not None:
                whens.add(f"after the return from {step['what']}")
        assert drill["steps"][-1]["ready_s"] is not None
        assert {(reading["when"], reading["node"]) for reading in drill["strict"]} == {
            (when, node) for when in whens for node in ("gw1", "gw2")
        }
        assert drill["gate"]["samples"] > 1000
        assert drill["frames"]["injected"] > 1000
    cut, _, freeze, kill, moves = (drill["steps"] for drill in report["drills"])
    assert [len(steps) for steps in (cut, freeze)] == [1, 2], "frozen, thawed"
    for step in (cut[0], freeze[0]):
        assert step["holder_before"] != step["holder_after"]
        assert step["epoch_after"] > step["epoch_before"]
        assert step["takeover_ms"] > 0
    assert cut[0]["outage_ms"] > 50, "a cut without an outage was none"
    assert freeze[1]["holder_before"] == freeze[1]["holder_after"] == freeze[0]["holder_after"]
    assert len(kill) == 11
    assert len(moves) == 4
    streams = [p for p in report["drills"][-1]["probes"] if p["unit"] == "bytes"]
    assert len(streams) == 4
    assert all(stream["after"] > 40_000_000 for stream in streams)
    assert "5 drills, all passed" in done.stdout
    assert lab.exists()
    assert not lab.silenced()
    assert lab.problems() == []


@pytest.mark.long
@pytest.mark.timeout(10 * ALL_WAIT_S + 60)
def test_ten_times_all_drills_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "drills.json"
    done = hafwctl(
        "drill", "run", *CLASSIC, "--repeat", "10", "--json", str(file), wait_s=10 * ALL_WAIT_S
    )
    report = read(file)
    assert len(report["drills"]) == 10 * 5
    for drill in report["drills"]:
        assert drill["reasons"] == [], drill["drill"]
        assert [probe["lost"] for probe in drill["probes"]] == [""] * 16
        assert (drill["gate"]["dual_ms"], drill["gate"]["problem"]) == (0, "")
        assert (drill["frames"]["dual_ms"], drill["frames"]["problem"]) == (0, "")
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["passed"]
    assert lab.exists()


def test_somebody_elses_fault_is_refused_and_left_alone(lab: Lab) -> None:
    lab.silence("wit")
    try:
        done = hafwctl("drill", "run", "freeze", wait_s=60)
        assert done.returncode == 1
        assert "wit: frames are dropped by somebody's fault" in done.stderr
        assert "Traceback" not in done.stderr
        assert lab.silenced() == {"wit"}
    finally:
        lab.heal("wit")
    lab.wait_ready(20)


def test_one_drill_a_lab(lab: Lab) -> None:
    def ignore(_text: str) -> None: ...

    with (
        lab_for_drills(Lab(), ignore),
        pytest.raises(RefusedError, match="a drill is running in this lab already"),
        lab_for_drills(Lab(), ignore),
    ):
        pass
    assert lab.exists()


@pytest.mark.parametrize("name", ["nf_conntrack_tcp_loose", "nf_conntrack_tcp_be_liberal"])
def test_lax_tcp_on_one_gateway_is_read(lab: Lab, name: str) -> None:
    path = Path("/proc/sys/net/netfilter") / name

    def write(value: str) -> None:
        call_in(namespace_of("gw2"), lambda: path.write_text(value))

    sight = Sight(lab)
    strict = {r.node: (r.tcp_loose, r.tcp_be_liberal) for r in sight.strict("before")}
    assert strict == {"gw1": (0, 0), "gw2": (0, 0)}
    write("1")
    try:
        lax = {r.node: r.tcp_loose + r.tcp_be_liberal for r in sight.strict("after")}
    finally:
        write("0")
    assert lax == {"gw1": 0, "gw2": 1}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("dance",), 1, "there is no drill dance; there are power-cut, freeze, kill"),
        (("freeze", "--variant", "heal"), 1, "freeze has no variant heal: it has none"),
        (("freeze", "--repeat", "0"), 2, "0 is not in the range"),
        (("freeze", "--json", "/nowhere/at/all.json"), 2, "is not a folder"),
        (("freeze", "--heartbeat-ms", "90"), 1, "heartbeat_ms * 3 must be <= lease_ms"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    lab: Lab, words: tuple[str, ...], code: int, said: str
) -> None:
    done = hafwctl("drill", "run", *words, wait_s=60)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
