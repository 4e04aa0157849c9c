"""bench-failover: what is shown of what was measured, and what is measured again."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from hafw.cli.main import cli
from hafw.errors import RefusedError
from hafw.lab.bench_failover import (
    LOADS,
    SYSTEMS,
    FailoverReport,
    FaultResult,
    PartResult,
    Plan,
    failover_to_json,
    histogram,
    in_order,
    merge_parts,
    parse_names,
    read_failover,
    render_failover,
    share_s,
)
from hafw.lab.failover_systems import count_masters, keepalived_config
from hafw.lab.probe_answers import build_request, parse_answer

VIP = "192.0.2.254"


def part(*outages: float, **changes: Any) -> PartResult:
    whole = PartResult(
        system="hafw-fast", load="idle", timers="10/40", floor_ms=40, faults_wanted=5,
        faults=[FaultResult("gw1", outage, 0.0, 0.0) for outage in outages], flows_lost=[],
        own_dual_ms=0.0, own_possible_ms=0.0, agent_late_ms=1.0, quiet_s=0.0,
        false_takeovers=None, seconds=3.0, interrupted=False, problems=[],
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def report(*parts: PartResult) -> FailoverReport:
    return FailoverReport("2026-01-01T00:00:00+00:00", "6.18", 2, Plan(), list(parts))


def row(found: FailoverReport) -> list[str]:
    lines = render_failover(found).splitlines()
    return next(line for line in lines if line.startswith(("hafw-", "keepalived-"))).split()


def test_a_part_is_shown_with_its_distribution() -> None:
    found = report(part(41, 35, 39, 43, 37))
    assert row(found) == [
        "hafw-fast", "10/40", "idle", "40", "5/5", "35", "39", "43", "43", "43", "0", "0.0",
        "0.0", "0", "-",
    ]  # fmt: skip
    assert not found.parts[0].failed
    document = json.loads(failover_to_json(found))
    assert [f["outage_ms"] for f in document["parts"][0]["faults"]] == [41, 35, 39, 43, 37]
    assert read_failover(failover_to_json(found)) == found


def test_a_part_without_a_fault_is_shown() -> None:
    assert row(report(part()))[4:10] == ["0/5", "-", "-", "-", "-", "-"]
    assert "nothing" in render_failover(report())


def test_takeovers_without_a_fault_are_counted_by_the_hour() -> None:
    assert row(report(part(41, quiet_s=60.0, false_takeovers=2)))[-1] == "120"
    assert row(report(part(41, quiet_s=60.0, false_takeovers=0)))[-1] == "0"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flows_lost": ["flow lost: snat udp: gone"]}, "flow lost: snat udp: gone"),
        ({"problems": ["stopped early: tired"]}, "stopped early: tired"),
        ({"interrupted": True}, "hafw-fast, idle: interrupted"),
        ({"own_dual_ms": 3.0}, " 3.0 "),
    ],
)
def test_what_is_wrong_is_said_and_fails(changes: dict[str, Any], said: str) -> None:
    wrong = part(41, **changes)
    assert wrong.failed
    assert said in render_failover(report(wrong))


def test_two_answers_fail_hafw_and_are_a_figure_of_keepalived() -> None:
    both = [FaultResult("gw1", 300.0, 0.0, 70.5), FaultResult("gw1", 290.0, 0.0, 2.0)]
    assert part(faults=both).failed
    rival = part(faults=both, system="keepalived-100ms")
    assert not rival.failed
    assert row(report(rival))[11:13] == ["72.5", "70.5"]


@pytest.mark.parametrize(
    ("outages", "expected"),
    [
        ([], []),
        ([41.0], [(41, 42, 1)]),
        ([30.0, 39.9, 31.0], [(30, 31, 1), (31, 32, 1), *((n, n + 1, 0) for n in range(32, 39)),
                              (39, 40, 1)]),
        ([86.0, 105.0], [(86, 88, 1), *((n, n + 2, 0) for n in range(88, 104, 2)),
                         (104, 106, 1)]),
        ([2300.0, 4300.0], [(2000, 2500, 1), (2500, 3000, 0), (3000, 3500, 0), (3500, 4000, 0),
                            (4000, 4500, 1)]),
    ],
)  # fmt: skip
def test_bins_are_few_and_round(
    outages: list[float], expected: list[tuple[float, float, int]]
) -> None:
    assert histogram(outages) == expected


def test_the_bars_count_every_fault() -> None:
    text = render_failover(report(part(41, 35, 35, 43, 37)))
    counts = [int(line.split()[-1]) for line in text.splitlines() if line[:1] == " "]
    assert sum(counts) == 5


def test_names_are_checked() -> None:
    assert parse_names("starved, idle,idle", LOADS, "load") == ("starved", "idle")
    for text in ("busy", "", "idle,busy"):
        with pytest.raises(RefusedError, match="load"):
            parse_names(text, LOADS, "load")


def test_newer_parts_replace_older_ones_in_the_order_of_systems() -> None:
    old = [part(1, system="keepalived-1s"), part(2)]
    new = [part(3), part(4, load="starved")]
    merged = merge_parts(old, new)
    assert [p.outages for p in merged] == [[3], [4], [1]]


def test_floors() -> None:
    floors = {name: round(spec.floor_ms, 2) for name, spec in SYSTEMS.items()}
    assert floors == {
        "hafw-default": 100, "hafw-fast": 40, "hafw-experimental": 20,
        # RFC 9568, 6.1: three adverts and (256 - priority) / 256 of one.
        "keepalived-1s": 3011.72, "keepalived-100ms": 301.17, "keepalived-10ms": 30.12,
    }  # fmt: skip


def test_keepalived_moves_both_segments_at_once() -> None:
    text = keepalived_config("gw2", 253, 0.01)
    assert "router_id gw2" in text
    assert text.count("vrrp_instance ") == text.count("priority 253") == 2
    assert text.count("advert_int 0.01\n") == 2
    assert "192.0.2.254/32" in text
    assert "198.51.100.254/32" in text
    group = text.partition("vrrp_sync_group")[2].partition("vrrp_instance")[0].split()
    assert {"lan", "wan"} < set(group)
    assert text.count("{") == text.count("}")


def test_masters_are_counted_once_for_both_segments() -> None:
    log = "(lan) Entering MASTER STATE\n(wan) Entering MASTER STATE\n(lan) Entering BACKUP STATE\n"
    assert count_masters(log * 3) == 3


def test_an_answer_names_the_number_it_is_to() -> None:
    request = build_request(VIP, 0x01020304)
    assert request[:6] == b"\xff" * 6
    assert parse_answer(request, VIP) is None, "a request is no answer"
    hardware = bytes.fromhex("00005e000101")
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + hardware + bytes([192, 0, 2, 254])
    answer = request[6:12] + hardware + b"\x08\x06" + body + request[6:12] + bytes(4)
    assert parse_answer(answer, VIP) == 0x01020304
    assert parse_answer(answer[:-1], VIP) is None
    assert parse_answer(answer, "192.0.2.1") is None
    stranger = answer[:32] + b"\x02\x00" + answer[34:]
    assert parse_answer(stranger, VIP) is None


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["drill", "bench-failover", *words])
    return done.exit_code, done.output + str(done.exception or "")


def test_what_is_complete_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_bytes(failover_to_json(report(part(41), part(42, load="starved"))))
    words = ("--systems", "hafw-fast", "--json", str(file), "--resume")
    code, text = run(*words)
    assert code == 0, text
    assert "hafw-fast, starved:" in text


def test_resuming_needs_a_report(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert "--resume needs --json" in run("--resume")[1]
    file.write_text("{}")
    assert "no report of bench-failover" in run("--resume", "--json", str(file))[1]


def test_slow_systems_come_last_and_get_what_the_others_leave() -> None:
    plan = Plan(minutes=45, quiet_s=60)
    parts = in_order(plan)
    assert [system for system, load in parts if load == "idle"] == [
        "keepalived-10ms", "hafw-fast", "hafw-default", "keepalived-100ms", "keepalived-1s",
    ]  # fmt: skip
    assert share_s(plan, 45 * 60, parts) == (45 * 60 - 5 * 60 - 4 * 12) / 10
    left_s = 45 * 60 - 8 * 60.0
    assert share_s(plan, left_s, parts[-2:]) == (left_s - 60) / 2
    assert share_s(plan, left_s - 60, parts[-1:]) == left_s - 60 - 60
    assert share_s(plan, -100, parts[-1:]) == 5, "some faults in any case"


def test_all_shares_and_quiet_times_together_are_the_time_given() -> None:
    plan = Plan(minutes=30, quiet_s=30)
    parts = in_order(plan)
    left_s, labs = plan.minutes * 60, {system for system, _ in parts}
    while parts:
        if parts[0][0] in labs:
            labs.discard(parts[0][0])
            left_s -= 12
        spent_s = share_s(plan, left_s, parts)
        _, load = parts.pop(0)
        left_s -= spent_s + (30 if load == "starved" else 0)
    assert abs(left_s) < 1
