"""hafwctl timers: the sums, the relations, what is measured and what is assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hafw.cli.main import cli
from hafw.cli.timers import timers_document
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig, LeaseConfig
from hafw.node.worst_case import (
    PROFILES,
    Measured,
    needed_ms,
    profile_of,
    relations,
    round_trip_needed,
    votes_of,
    worst_cases,
    worst_round_trips,
)

LAB = Path(__file__).resolve().parents[3] / "hafw/lab/cluster.yaml"
CONFIG = load_cluster(LAB)
ALL = votes_of(CONFIG)
NOTHING: dict[str, Any] = {"peers": [], "links": [], "lease": []}


def peer(node: str, name: str, p99_ms: float | None, *, alive: bool = True) -> dict[str, Any]:
    return {
        "node": node, "peer": name, "alive": alive, "rtt_min_ms": 0.1, "rtt_p50_ms": 0.2,
        "rtt_p99_ms": p99_ms,
    }  # fmt: skip


def test_every_sum_is_the_sum_of_its_terms_and_not_below_its_best_case() -> None:
    for name, lease in PROFILES.items():
        config = CONFIG.model_copy(update={"lease": lease})
        for trip_ms in (0.0, 0.3, 40.0):
            for fault in worst_cases(config, Measured(trip_ms, 0.5), ALL):
                assert fault.worst_ms == sum(term.ms for term in fault.terms)
                assert fault.least_ms <= fault.worst_ms, (name, fault.fault)


def test_a_power_cut_lasts_as_long_as_the_voters_hold_the_lease_and_the_claim_takes() -> None:
    power_cut, leased_dies, *_ = worst_cases(CONFIG, Measured(2.0, 0.5), ALL)
    assert power_cut.worst_ms == pytest.approx(100 * 1.01 + 3 * 2.0 + 0.5)
    assert power_cut.least_ms == pytest.approx(100 * 1.01 - 20 + 2 * 2.0)
    # The gate shuts at 99 % of the lease by its clock, the voters wait for 101 % by theirs.
    assert leased_dies.worst_ms == pytest.approx(2.0 + 3 * 2.0 + 0.5)


def test_a_slow_witness_breaks_the_relation_of_a_fast_profile() -> None:
    fast = CONFIG.model_copy(update={"lease": PROFILES["fast"]})
    assert relations(fast, Measured(14.0, 1.0))[1].holds
    broken = relations(fast, Measured(15.0, 1.0))[1]
    assert broken.relation == "heartbeat_ms + 2 round trips + loop delay <= lease_ms"
    assert not broken.holds
    assert broken.left_ms == needed_ms(PROFILES["fast"], Measured(15.0, 1.0)) == 41.0


def test_planned_moves_lose_nothing_by_default_and_where_they_might_a_relation_says_so() -> None:
    def loses(config: ClusterConfig, trip_ms: float) -> list[str]:
        return [r.relation for r in relations(config, Measured(trip_ms)) if not r.holds]

    assert loses(CONFIG, 1.0) == []
    [move] = loses(CONFIG, 30.0)
    assert move.startswith("worst planned move <= ")
    fast = CONFIG.model_copy(update={"lease": PROFILES["fast"]})
    assert loses(fast, 1.0) == [move]
    sync = fast.sync.model_copy(update={"beacon_ms": 5})
    assert loses(fast.model_copy(update={"sync": sync}), 1.0) == []
    cases = worst_cases(CONFIG, Measured(1.0), ALL)
    told = next(fault for fault in cases if fault.fault.startswith("planned"))
    assert (told.worst_ms, "below 78 ms" in told.note) == (62.5, True)


def test_profiles_are_known_by_their_two_numbers() -> None:
    assert profile_of(CONFIG.lease) == "default"
    assert profile_of(LeaseConfig(heartbeat_ms=10, lease_ms=40, port=7999)) == "fast"
    assert profile_of(LeaseConfig(heartbeat_ms=10, lease_ms=50)) == "own"


def test_the_round_trip_needed_is_to_the_voter_that_is_left() -> None:
    measured = {"gw1": {"gw2": 0.3, "wit": 12.0}, "gw2": {"gw1": 0.4, "wit": 9.0}}
    assert round_trip_needed(CONFIG, ALL, measured) == 12.0  # gw1 and the witness, were gw2 lost.
    assert round_trip_needed(CONFIG, ALL, {"wit": {"gw1": 30.0, "gw2": 30.0}}) is None
    assert round_trip_needed(CONFIG, ALL, {"gw1": {"gw2": 0.3}}) is None


def test_only_peers_that_are_heard_and_measured_count() -> None:
    rows = [
        peer("gw1", "gw2", 0.5),
        peer("gw1", "wit", None),
        peer("gw2", "wit", 9.0, alive=False),
    ]
    assert worst_round_trips(rows) == {"gw1": {"gw2": 0.5}}


def test_measured_round_trips_and_loops_are_used_unless_one_is_given() -> None:
    rows = [peer("gw1", "gw2", 0.5), peer("gw1", "wit", 2.0)]
    lease = [{"loop_p99_ms": 0.25}, {"loop_p99_ms": 0.75}]
    links = [{"node": "gw1", "peer": "gw2", "link": "sync0", "rtt_min_ms": 0.1,
              "rtt_p50_ms": 0.2, "rtt_p99_ms": 0.6}]  # fmt: skip
    status = {"peers": rows, "links": links, "lease": lease}
    told = timers_document(CONFIG, status)
    assert (told["round_trip_ms"], told["round_trip_source"]) == (2.0, "measured")
    assert told["loop_ms"] == 0.75
    assert [row["path"] for row in told["round_trips"]] == ["fastest", "fastest", "sync0"]
    given = timers_document(CONFIG, status, 40.0)
    assert (given["round_trip_ms"], given["round_trip_source"]) == (40.0, "assumed")
    assert (timers_document(CONFIG, NOTHING)["round_trip_source"]) == "assumed"


def test_of_a_file_it_needs_no_daemon_and_no_root(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["timers", str(LAB)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "profile default, heartbeat 20 ms, lease 100 ms; round trip 1.0 ms (assumed)" in (
        shown.stdout
    )
    assert "= 101 ms  lease of 100 ms + 1 % drift" in shown.stdout
    told = json.loads(CliRunner().invoke(cli, ["timers", str(LAB), "--json"]).stdout)
    assert set(told) == {
        "cluster", "profile", "heartbeat_ms", "lease_ms", "round_trip_ms", "round_trip_source",
        "loop_ms", "relations", "profiles", "round_trips", "voters_from", "voters", "worst_cases",
    }  # fmt: skip
    assert [row["profile"] for row in told["profiles"] if row["in_force"]] == ["default"]
    own = tmp_path / "cluster.yaml"
    own.write_text(LAB.read_text() + "lease: {heartbeat_ms: 10, lease_ms: 50}\n")
    refused = CliRunner().invoke(cli, ["timers", str(own), "--rtt-ms", "21", "--format", "tsv"])
    assert refused.exit_code == 1, "10 + 2 * 21 is more than 50"
    assert "profile=own\tin_force=yes" in refused.stdout


def test_two_nodes_need_four_heartbeats_in_a_lease_and_are_told_what_they_do_not_get() -> None:
    config = CONFIG.model_copy(update={"quorum": "two-node"})
    assert relations(config, Measured(1.0))[0].relation == "heartbeat_ms * 4 <= lease_ms"
    said = {fault.fault: fault.note for fault in worst_cases(config, Measured(1.0), ALL)}
    assert said["all links and segments between two nodes without a witness cut"].startswith(
        "both"
    )
    assert not any("without a witness" in f.fault for f in worst_cases(CONFIG, Measured(1.0), ALL))


def lease_row(*voters: str, number: int = 4) -> dict[str, Any]:
    return {
        "node": "gw1", "voters_id": number, "voters": list(voters), "may_vote": True,
        "loop_p99_ms": 0.5,
    }  # fmt: skip


def test_who_votes_is_what_leased_tells_and_without_it_the_file() -> None:
    assert (votes_of(CONFIG).members, votes_of(CONFIG).source) == (
        ("gw1", "gw2", "wit"), "cluster.yaml",
    )  # fmt: skip
    votes = votes_of(
        CONFIG,
        [lease_row("gw1", "wit", number=3), lease_row("gw1", "gw2", "node3", "wit")],
        [peer("gw1", "gw2", 0.5) | {"votes": True}, peer("gw1", "wit", 9.0) | {"votes": False}],
    )
    assert (votes.members, votes.source) == (("gw1", "gw2", "node3", "wit"), "set 4 in force")
    assert (votes.voting, votes.majority, votes.spare) == (frozenset({"gw1", "gw2"}), 3, -1)


def test_the_round_trip_is_that_of_the_voters_in_force() -> None:
    """With gw3 as the fourth, two others are needed, the slow witness always one of them."""
    four = votes_of(CONFIG, [lease_row("gw1", "gw2", "node3", "wit")])
    measured = {"gw1": {"gw2": 0.3, "wit": 12.0}}
    assert round_trip_needed(CONFIG, four, measured) is None
    with_gw3 = {"gw1": {"gw2": 0.3, "node3": 30.0, "wit": 12.0}}
    assert round_trip_needed(CONFIG, four, with_gw3) == 30.0
    assert round_trip_needed(CONFIG, ALL, with_gw3) == 12.0
    two = votes_of(CONFIG, [lease_row("gw1", "wit")])
    assert round_trip_needed(CONFIG, two, {"gw2": {"gw1": 0.3, "wit": 12.0}}) is None


def test_without_a_vote_to_spare_nothing_ends_a_loss() -> None:
    heard = [peer("gw1", name, 0.5) | {"votes": True} for name in ("gw2", "wit")]
    status = {"peers": heard, "links": [], "lease": [lease_row("gw1", "gw2", "node3", "wit")]}
    told = timers_document(CONFIG, status)
    lost = {row["fault"]: row for row in told["worst_cases"] if row["until"]}
    assert list(lost) == [
        "power cut or freeze of the ACTIVE node", "hafw-leased of the ACTIVE node dies or hangs",
        "the ACTIVE node hears nobody, and is heard",
        "power cut or freeze while the ACTIVE node loads a policy, or within a second after",
        "a BACKUP or the witness lost",
    ]  # fmt: skip
    assert {row["worst_ms"] for row in lost.values()} == {None}
    assert {row["until"] for row in lost.values()} == {
        "a lost voter is back: of 4 (set 4 in force) 3 vote, and 3 are needed"
    }
    status["lease"] = [lease_row("gw1", "gw2", "wit")]
    assert not any(row["until"] for row in timers_document(CONFIG, status)["worst_cases"])
