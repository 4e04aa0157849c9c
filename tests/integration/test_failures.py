"""Each row of docs/operating/failures.md: its fault in a running cluster, and what came of it.

One lab, one row after the other. The rows of `QUICK` run in CI with those of `test_drills.py`; the
others take longer than a few seconds.
"""

from __future__ import annotations

import os
import time
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
HELD_UP_S = 1.0
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
        pytest.param(
            "sync-link", "sync0", ("Faults", "cut", ""), "over all but sync0",
            id="no-cut", marks=pytest.mark.long,
        ),
        pytest.param(
            "one-way", "from-backup", ("Faults", "silence", ""), "which hears it",
            id="no-silence-of-the-backup", marks=pytest.mark.long,
        ),
        pytest.param(
            "one-way", "to-backup", ("Faults", "silence", ""), "which hears it",
            id="no-deafness-of-the-backup", marks=pytest.mark.long,
        ),
        pytest.param(
            "witness", "gone", ("Faults", "silence", ""), "no gateway hears wit",
            id="no-silence-of-the-witness",
        ),
        pytest.param(
            "witness", "paused", ("Faults", "freeze", ""), "no gateway hears wit",
            id="no-pause", marks=pytest.mark.long,
        ),
        pytest.param(
            "cpu", "", ("MachineFaults", "starve", ""), "all of the busy loops ran",
            id="no-busy-loops", marks=pytest.mark.long,
        ),
        pytest.param(
            "clock", "ahead", ("MachineFaults", "step_clock", ""), "+3600 s off",
            id="no-step", marks=pytest.mark.long,
        ),
        pytest.param(
            "return", "", ("Faults", "power_off", ""), "nothing runs on",
            id="never-off", marks=pytest.mark.long,
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

    def act(self: object, *words: object) -> int:
        if instead:
            return int(getattr(self, instead)(words[0]))
        return now_ns()

    monkeypatch.setattr(where, name, act)
    if name == "slow_down":
        monkeypatch.setattr(where, "speed_up", nothing)
    result = run(lab, drill, variant)
    assert not result.passed
    assert any(words in reason for reason in result.reasons), result.reasons
    monkeypatch.undo()
    lab.wait_ready(30)


@pytest.mark.parametrize(
    ("drill", "variant", "what"),
    [
        pytest.param("witness", "gone", "silence", id="nothing-moves"),
        pytest.param("carrier", "lan", "unplug", id="a-move", marks=pytest.mark.long),
    ],
)
def test_a_row_fails_if_packets_are_held_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, drill: str, variant: str, what: str
) -> None:
    from hafw.lab.faults import Faults

    act = getattr(Faults, what)

    def nft(words: str) -> None:
        for node in lab.gateways:
            assert lab.spawn(node, ["nft", words]).wait(HELD_UP_S) == 0

    def act_and_hold_up(self: Faults, node: str, *words: str) -> int:
        at_ns = int(act(self, node, *words))
        nft(
            "table inet held { chain f { type filter hook forward priority -300; policy drop; }; }"
        )
        try:
            time.sleep(HELD_UP_S)
        finally:
            nft("delete table inet held")
        return at_ns

    monkeypatch.setattr(Faults, what, act_and_hold_up)
    result = run(lab, drill, variant)
    assert [r.split(":")[0] for r in result.reasons] == ["too long"], result.reasons
    assert max(step.outage_ms for step in result.steps) >= HELD_UP_S * 1000
    monkeypatch.undo()
    lab.wait_ready(30)
