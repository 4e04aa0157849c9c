"""Each row of docs/operating/failures.md: its fault in a running cluster, and what came of it.

One lab, one row after the other. The rows of `QUICK` run in CI with those of `test_drills.py`; the
others take longer than a few seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hafw.lab.drill_list import rows
from hafw.lab.drills import run_judged
from hafw.lab.lab import Lab
from hafw.lab.report import DrillResult

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(180)]

QUICK = frozenset(
    {
        ("carrier", "lan"), ("segment", "unchecked"), ("sync-links", "active"),
        ("sync-links-power", ""), ("one-way", "from-active"), ("one-way", "to-active"),
        ("witness", "gone"), ("witness", "slow"), ("raft", "leader"), ("clock", "ahead"),
        ("cold-start", ""),
    }
)  # fmt: skip
IN_TEST_DRILLS = frozenset({"power-cut", "freeze", "kill", "there-and-back"})
ALL_ROWS = [
    pytest.param(
        drill.name, row.variant,
        marks=[] if (drill.name, row.variant) in QUICK else [pytest.mark.long],
        id=f"{drill.name}-{row.variant}".strip("-"),
    )
    for drill, row in rows()
    if drill.name not in IN_TEST_DRILLS
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(shared_lab: Lab) -> Iterator[Lab]:
    yield shared_lab
    if any(os.path.ismount(shared_lab.paths(node).lib) for node in shared_lab.config.nodes):
        shared_lab.down()  # A small disk stays until then.


def run(lab: Lab, drill: str, variant: str) -> DrillResult:
    """The run that counts."""
    return [*run_judged(lab, drill, variant, lambda _text: None)][-1]


@pytest.mark.parametrize(("drill", "variant"), ALL_ROWS)
def test_row(lab: Lab, drill: str, variant: str) -> None:
    result = run(lab, drill, variant)
    assert result.reasons == []
    assert len(result.probes) == 16
    assert [probe.lost for probe in result.probes] == [""] * 16
    assert result.gate is not None
    assert result.frames is not None
    assert (result.gate.dual_ms, result.frames.dual_ms) == (0, 0)
    assert result.steps
    assert lab.silenced() == frozenset(), "every fault was undone"


def nothing(*_: object, **__: object) -> int:
    return 0


@pytest.mark.parametrize(
    ("drill", "variant", "place", "words"),
    [
        # A fault that is none, or one that is more than it says, fails its row.
        pytest.param(
            "sync-links", "active", ("Faults", "cut", "silence"), "the group left",
            id="more-than-links",
        ),
        pytest.param(
            "one-way", "from-active", ("Faults", "silence", ""), "nobody else was ACTIVE",
            id="no-silence", marks=pytest.mark.long,
        ),
        pytest.param(
            "carrier", "lan", ("Faults", "unplug", ""), "nobody else was ACTIVE",
            id="no-unplugging", marks=pytest.mark.long,
        ),
        pytest.param(
            "raft", "leader", ("Faults", "kill", ""), "another Raft leader",
            id="no-kill", marks=pytest.mark.long,
        ),
        pytest.param(
            "disk", "", ("MachineFaults", "fill_disk", ""), "does not vote while its disk is full",
            id="no-full-disk", marks=pytest.mark.long,
        ),
        pytest.param(
            "witness", "slow", ("Faults", "slow_down", ""), "wit is heard, 40 ms late",
            id="no-slow-witness", marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_a_row_can_fail(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, drill: str, variant: str,
    place: tuple[str, str, str], words: str,
) -> None:  # fmt: skip
    from hafw.lab import faults, machine_faults
    from hafw.lab.probe_loop import now_ns

    owner, name, instead = place
    where = {"Faults": faults.Faults, "MachineFaults": machine_faults.MachineFaults}[owner]

    def act(self: object, node: str, *_: object) -> int:
        if instead:
            return int(getattr(self, instead)(node))
        return now_ns()

    monkeypatch.setattr(where, name, act)
    if name == "slow_down":
        monkeypatch.setattr(where, "speed_up", nothing)
    result = run(lab, drill, variant)
    assert not result.passed
    assert any(words in reason for reason in result.reasons), result.reasons
    monkeypatch.undo()
    lab.wait_ready(30)
