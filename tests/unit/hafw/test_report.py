"""The verdict on a drill and how it is shown: every reason to fail fails."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hafw.errors import RefusedError
from hafw.human import make_epoch
from hafw.lab import drills
from hafw.lab.drill_list import plan_drills, rows
from hafw.lab.judges import NO_SAMPLE, FrameVerdict, GateVerdict, Span
from hafw.lab.lab import Lab
from hafw.lab.report import (
    DrillReport,
    DrillResult,
    ProbeResult,
    StepResult,
    StrictReading,
    judge_drill,
    judge_failed,
    render_drill,
    render_report,
    table,
    to_json,
    unjudged,
)

PROBE = ProbeResult(
    name="snat udp", family=4, outage_ms=98.4, resolution_ms=2.0, before=1219, after=5068,
    unit="packets", missing=84, wrong=0, established_s=1.21, replica=True,
)  # fmt: skip
STREAM = ProbeResult(
    name="snat tcp-up", family=6, outage_ms=0.0, resolution_ms=49.2, before=2_600_000,
    after=10_900_000, unit="bytes", missing=0, wrong=0, established_s=1.21, replica=False,
)  # fmt: skip
IDLE = msgspec.structs.replace(PROBE, name="snat tcp-idle", outage_ms=None, replica=None)
STEP = StepResult(
    what="power cut of gw1", at_s=1.6, holder_before="gw1", holder_after="gw2",
    epoch_before=make_epoch(1, 1, 1), epoch_after=make_epoch(1, 2, 2), takeover_ms=97.2,
    outage_ms=98.4, ready_s=4.5,
)  # fmt: skip
GATE = GateVerdict(
    dual_ms=0, possible_ms=0, allowed_ms=0, unguarded_ms=0, samples=6521,
    sample_gap_p99_ms=1.28, sample_gap_max_ms=4.0, possible_max_ms=0, look_gap_max_ms=101.4,
    spans=[],
)  # fmt: skip
FRAMES = FrameVerdict(
    dual_ms=0, allowed_ms=0, apart=0, injected=3343, forwarded={"gw1": 1926, "gw2": 1413}
)
STRICT = StrictReading("at the end", "gw1", 0, 0)
GOOD = DrillResult(
    drill="power-cut", variant="restart", seconds=7.4, probes=[PROBE, STREAM, IDLE], steps=[STEP],
    gate=GATE, frames=FRAMES, strict=[STRICT], agent_late_ms=4.5,
)  # fmt: skip


def changed(part: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(part, **changes)


def report(*results: DrillResult) -> DrillReport:
    return DrillReport(
        started="2026-11-22T11:00:00+00:00", heartbeat_ms=20, lease_ms=100, without=["sync"],
        kernel="6.18", cpus=2, seconds=7.4, drills=list(results),
        passed=all(result.passed for result in results),
    )  # fmt: skip


def test_a_drill_without_a_reason_to_fail_passed() -> None:
    result = judge_drill(GOOD)
    assert result.passed
    assert result.reasons == []


BAD = [
    ({"probes": [PROBE, changed(STREAM, lost="ECONNRESET")]},
     "flow lost: snat tcp-up IPv6: ECONNRESET"),
    ({"probes": []}, "no probe was running"),
    ({"steps": [changed(STEP, problem="nobody was ACTIVE within 10 s")]},
     "power cut of gw1: nobody was ACTIVE"),
    ({"steps": [changed(STEP, within_ms=90.0)], "agent_late_ms": 8.0},
     "too long: power cut of gw1: packets were held up for 98 ms, where 90 are the most"),
    ({"steps": [changed(STEP, taken_within_ms=90.0)]}, "nobody took over for 97 ms, where 90 are"),
    ({"steps": [changed(STEP, outage_ms=900.0, within_ms=400.0)], "agent_late_ms": 5000.0},
     "held up for 900 ms, where 400 are the most"),
    ({"gate": changed(GATE, dual_ms=0.004, spans=[Span(1, 2)])},
     "dual-ACTIVE for 0.004 ms by the gates' deadlines"),
    ({"gate": changed(GATE, problem="nobody looked")}, "judge (a) could not judge: nobody looked"),
    ({"gate": None}, "judge (a) gave no verdict"),
    ({"frames": changed(FRAMES, dual_ms=1.0)}, "dual-ACTIVE for 1 ms by forwarded frames"),
    ({"frames": changed(FRAMES, problem="blind")}, "judge (b) could not judge: blind"),
    ({"strict": [STRICT, StrictReading("at the end", "gw2", 1, 0)]},
     "TCP is not strict on gw2 (at the end): tcp_loose=1 tcp_be_liberal=0"),
    ({"strict": [StrictReading("at the end", "gw2", 0, 1)]}, "tcp_be_liberal=1"),
    ({"strict": []}, "nobody looked whether TCP is strict"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words for _, words in BAD])
def test_each_of_these_alone_fails_a_drill(changes: dict[str, Any], words: str) -> None:
    result = judge_drill(changed(GOOD, **changes))
    assert not result.passed
    assert len(result.reasons) == 1
    assert words in result.reasons[0]
    assert f"FAILED: {result.reasons[0]}" in render_drill(result)


def test_a_probe_that_was_late_itself_has_not_seen_that_gap() -> None:
    late = changed(GOOD, steps=[changed(STEP, within_ms=90.0)], agent_late_ms=9.0)
    assert judge_drill(late).passed


def test_a_blind_judge_still_tells_what_it_saw() -> None:
    gate = changed(GATE, problem="blind", dual_ms=5.0)
    frames = changed(FRAMES, problem="blind", dual_ms=7.0)
    result = judge_drill(changed(GOOD, gate=gate, frames=frames))
    assert len(result.reasons) == 4
    assert "dual-ACTIVE for 5 ms by the gates' deadlines" in result.reasons
    assert "dual-ACTIVE for 7 ms by forwarded frames" in result.reasons


def test_what_the_conductor_could_not_do_fails_a_drill() -> None:
    result = judge_drill(GOOD, ["the drill could not go on: gw1 vanished"])
    assert result.reasons == ["the drill could not go on: gw1 vanished"]
    assert not judge_failed("freeze", "", 1.0, "no lab").passed


def test_overlap_in_a_commanded_move_is_shown_and_no_reason() -> None:
    result = judge_drill(changed(GOOD, gate=changed(GATE, allowed_ms=81.234)))
    assert result.passed
    assert "accept overlap in commanded moves 81 ms (allowed)" in render_drill(result)


def test_what_a_person_sees_of_a_drill() -> None:
    text = render_drill(judge_drill(GOOD))
    assert text.splitlines() == [
        "power-cut (restart): passed in 7.4 s",
        "  probe          IP  outage ms  before    after  missing  replica  flow",
        "  snat udp       v4         98    1219     5068       84  yes      alive",
        "  snat tcp-up    v6        <49  2.6 MB  10.9 MB        0  no       alive",
        "  snat tcp-idle  v4          -    1219     5068       84  ?        alive",
        "  fault             at s  ACTIVE      epoch           takeover ms  outage ms"
        "  ready again s",
        "  power cut of gw1   1.6  gw1 -> gw2  1.1.1 -> 1.2.2           97         98"
        "            4.5",
        "  dual-ACTIVE (a) gates' deadlines: 0 ms (+ 0 ms within resolution; 6521 samples, "
        "gap p99 1.28 ms, max 4.00 ms; devices at least every 101 ms)",
        "  dual-ACTIVE (b) forwarded frames: 0 ms (3343 injected into each; forwarded by "
        "gw1 1926, gw2 1413)",
        "  agents' ticks were at most 4.5 ms late",
        "  strict TCP: tcp_loose=0, be_liberal=0 on every gateway (1 readings)",
    ]


def test_the_last_lines_count_the_failed() -> None:
    good = judge_drill(GOOD)
    bad = judge_drill(changed(GOOD, probes=[changed(PROBE, lost="gone")]))
    text = render_report(report(good, bad))
    assert "2 drills, 1 of 2 FAILED, in 7 s (heartbeat 20 ms, lease 100 ms, without sync)" in text
    assert "all passed" in render_report(report(good))
    assert text.splitlines()[1].split()[:4] == ["power-cut", "(restart)", "2", "1"]
    failed = render_report(report(bad)).splitlines()[1]
    assert failed.split()[:9] == [
        "power-cut", "(restart)", "1", "FAILED", "1", "98", "6371", "84", "1"
    ]  # fmt: skip


def test_repeated_rows_are_one_line_each_with_all_their_packets() -> None:
    udp6 = changed(PROBE, family=6, missing=0)
    other = changed(GOOD, drill="drain", variant="", probes=[PROBE, udp6, IDLE, STREAM])
    slow = changed(other, steps=[changed(STEP, outage_ms=20.0), changed(STEP, holder_after="gw1")])
    text = render_report(report(*map(judge_drill, (GOOD, other, slow, GOOD, other))))
    head, cut, drain, last = text.splitlines()
    assert head.split("  ")[0] == "drill"
    assert cut.split() == [
        "power-cut", "(restart)", "2", "passed", "2", "98", "median,", "98", "max", "12742",
        "168", "0", "0", "ms", "0", "ms", "14.8",
    ]  # fmt: skip
    assert drain.split() == [
        "drain", "3", "passed", "3", "98", "median,", "98", "max", str(3 * (2 * 6287 + 84)),
        "252", "0", "0", "ms", "0", "ms", "22.2",
    ]  # fmt: skip
    assert last.startswith("5 drills, all passed")


def test_a_run_without_a_verdict_is_told_from_one_that_failed() -> None:
    stood = changed(GATE, problem="no sample of the gates was taken for 80.0 ms, which is more")
    run = judge_drill(changed(GOOD, gate=stood))
    assert unjudged(run)
    assert not run.passed
    # What stood still was late, too; the next run tells which it was.
    assert unjudged(judge_drill(changed(GOOD, gate=stood, steps=[changed(STEP, within_ms=9.0)])))
    assert not unjudged(judge_drill(changed(GOOD, steps=[changed(STEP, within_ms=9.0)])))
    assert not unjudged(judge_drill(GOOD))
    worse: list[dict[str, Any]] = [{"probes": [changed(PROBE, lost="gone")]}, {"strict": []}]
    for changes in worse:
        assert not unjudged(judge_drill(changed(GOOD, gate=stood, **changes)))
    assert not unjudged(judge_drill(changed(GOOD, gate=stood), ["1 packet lost"]))
    assert not unjudged(judge_drill(changed(GOOD, gate=changed(stood, dual_ms=1.0))))
    shown = render_report(changed(report(judge_drill(GOOD)), unjudged=2))
    assert "2 more had no verdict" in shown


def test_a_run_without_a_verdict_is_made_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stood = changed(GATE, problem=f"{NO_SAMPLE} for 80.0 ms")
    blind, good = judge_drill(changed(GOOD, gate=stood)), judge_drill(GOOD)
    bad = judge_drill(changed(GOOD, strict=[]))
    for made, wanted in (
        ([good, bad], [good]),
        ([bad, good], [bad]),
        ([blind, good], [blind, good]),
        ([blind, blind, good], [blind, blind]),
    ):
        coming = iter(made)
        monkeypatch.setattr(drills, "run_drill", lambda *_, coming=coming: next(coming))
        assert [*drills.run_judged(Lab(), "drain", "", lambda _text: None)] == wanted


def test_the_json_keys_are_a_contract() -> None:
    document = json.loads(to_json(report(judge_drill(GOOD))))
    assert set(document) == {
        "started", "heartbeat_ms", "lease_ms", "without", "kernel", "cpus", "seconds", "drills",
        "passed", "unjudged",
    }  # fmt: skip
    (drill,) = document["drills"]
    assert set(drill) == {
        "drill", "variant", "seconds", "probes", "steps", "gate", "frames", "strict",
        "agent_late_ms", "passed", "reasons",
    }  # fmt: skip
    assert set(drill["probes"][0]) == {
        "name", "family", "outage_ms", "resolution_ms", "before", "after", "unit", "missing",
        "wrong", "established_s", "replica", "lost",
    }  # fmt: skip
    assert set(drill["steps"][0]) == {
        "what", "at_s", "holder_before", "holder_after", "epoch_before", "epoch_after",
        "takeover_ms", "outage_ms", "ready_s", "problem", "note",
        "within_ms", "taken_within_ms",
    }  # fmt: skip
    assert set(drill["gate"]) == {
        "dual_ms", "possible_ms", "allowed_ms", "unguarded_ms", "samples", "sample_gap_p99_ms",
        "sample_gap_max_ms", "possible_max_ms", "look_gap_max_ms", "spans", "problem",
    }  # fmt: skip
    assert set(drill["frames"]) == {
        "dual_ms", "allowed_ms", "apart", "injected", "forwarded", "problem"
    }  # fmt: skip
    assert document["passed"] is drill["passed"] is True


def test_a_table_is_aligned() -> None:
    assert table(("name", "n"), [("a", "10"), ("long name", "9")]) == [
        "name        n",
        "a          10",
        "long name   9",
    ]


@pytest.mark.parametrize(
    ("drills", "variant", "repeat", "expected"),
    [
        (["freeze"], None, 2, [("freeze", ""), ("freeze", "")]),
        (["power-cut"], None, 1, [("power-cut", "restart"), ("power-cut", "heal")]),
        (["power-cut"], "heal", 1, [("power-cut", "heal")]),
        (["freeze", "raft"], None, 1, [("freeze", ""), ("raft", "leader"), ("raft", "quorum")]),
        (["all"], None, 1, [(drill.name, row.variant) for drill, row in rows()]),
    ],
)
def test_what_is_run(
    drills: list[str], variant: str | None, repeat: int, expected: list[tuple[str, str]]
) -> None:
    assert plan_drills(drills, variant, repeat) == expected


@pytest.mark.parametrize(
    ("drills", "variant", "words"),
    [
        (["freeze", "dance"], None, "there is no drill dance; there are power-cut, freeze"),
        (["freeze"], "heal", "freeze has no variant heal: it has none"),
        (["raft"], "heal", "raft has no variant heal: its variants are leader, quorum"),
    ],
)
def test_what_cannot_be_run_is_refused(drills: list[str], variant: str | None, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        plan_drills(drills, variant, 1)
