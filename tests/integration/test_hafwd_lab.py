"""hafwd and hafwctl in a running cluster: what they mend, what they must not disturb, and that
`hafwctl status` says what the kernel says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hafw.instance import running_pid
from hafw.lab.lab import Lab
from tests.integration.commands import hafwctl
from tests.integration.running import Running, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(shared_lab: Lab) -> Running:
    return Running(shared_lab)


@pytest.fixture(autouse=True)
def _healthy(cluster: Running) -> Iterator[None]:
    cluster.heal()
    yield
    for node in cluster.lab.config.nodes:
        for pid in cluster.lab.all_pids(node):
            os.kill(pid, signal.SIGCONT)


def status() -> dict[str, Any]:
    result = hafwctl("status", "--json")
    assert "Traceback" not in result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if document["healthy"] else 1)
    return document


def rows(document: dict[str, Any], table: str, **wanted: Any) -> list[dict[str, Any]]:
    return [
        row for row in document[table] if all(row[key] == value for key, value in wanted.items())
    ]


def problems(document: dict[str, Any]) -> list[str]:
    """Without what hafwd has mended by itself within the last minute in another test."""
    return [
        f"{row['scope']}: {row['problem']}"
        for row in document["problems"]
        if " s ago)" not in row["problem"]
    ]


def children(cluster: Running, node: str) -> tuple[int | None, int | None]:
    paths = cluster.lab.paths(node)
    return running_pid(paths, "leased"), running_pid(paths, "syncd")


def test_status_beside_the_lab_shows_all_nodes_and_agrees_with_the_kernel(
    cluster: Running,
) -> None:
    document = status()
    assert problems(document) == []
    active = cluster.active()
    assert {row["node"] for row in document["nodes"]} == {"gw1", "gw2", "wit"}
    assert {row["holder"] for row in document["groups"]} == {active}
    gates = {row["node"]: row["gate"] for row in document["groups"]}
    assert gates == {active: "open", cluster.backup(): "shut", "wit": None}
    assert all(row["gated"] and row["up"] for row in document["devices"])
    assert len(document["devices"]) == 4
    assert len({row["hash"] for row in document["policy"]}) == 1


def test_status_inside_a_node_is_of_that_node(cluster: Running) -> None:
    code, output = cluster.run("gw2", *_hafwctl_path(), "status", "--json")
    assert code in (0, 1), output
    assert [row["node"] for row in json.loads(output)["nodes"]] == ["gw2"]


def test_timers_reckon_with_what_the_nodes_measure(cluster: Running) -> None:
    cluster.active()
    done = hafwctl("timers", "--json")
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    assert told["round_trip_source"] == "measured"
    paths = {(row["node"], row["peer"], row["path"]) for row in told["round_trips"]}
    assert {("gw1", "gw2", path) for path in ("fastest", "sync0", "sync1", "lan", "wan")} <= paths
    assert ("wit", "gw1", "sync1") in paths
    for row in told["round_trips"]:
        assert 0 < row["rtt_min_ms"] <= row["rtt_p50_ms"] <= row["rtt_p99_ms"], row
    fastest = {(r["node"], r["peer"]): r["rtt_min_ms"] for r in told["round_trips"]
               if r["path"] == "fastest"}  # fmt: skip
    # Gateways and a witness: of gw1 and gw2, whoever is slower to the witness or to the other.
    assert told["round_trip_ms"] >= max(
        min(fastest[node, other] for other in ("wit", peer))
        for node, peer in (("gw1", "gw2"), ("gw2", "gw1"))
    )


def test_a_stopped_witness_is_the_last_loss_that_is_survived(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    before = rows(status(), "survival", node=active)
    assert [row["losing"] for row in before if not row["survives"]] == []
    assert len(before) == 7, "three nodes, two links, two segments"
    leased_pid, _ = children(cluster, "wit")
    assert leased_pid is not None
    os.kill(leased_pid, signal.SIGSTOP)
    try:
        wait_for("the witness is not heard", lambda: not _hears(active, "wit"))
        after = rows(status(), "survival", node=active)
    finally:
        os.kill(leased_pid, signal.SIGCONT)
    lost = {row["losing"]: row["why"] for row in after if not row["survives"]}
    assert lost == {
        active: f"no quorum: {backup} of 3 voters would vote",
        backup: f"no quorum: {active} of 3 voters would vote",
    }
    wait_for("the witness is heard again", lambda: _hears(active, "wit"))
    # It was held for some 0.1 s or more: the histogram has it, and nobody else's loop has.
    [lease] = rows(status(), "lease", node="wit")
    late = [row for row in rows(status(), "loop", node="wit") if row["late_up_to_ms"] > 50]
    assert sum(row["count"] for row in late) >= 1
    assert lease["loop_worst_ms"] > 50
    assert lease["loop_worst_age_s"] < 60


def _hears(node: str, peer: str) -> bool:
    [row] = rows(status(), "peers", node=node, peer=peer)
    return bool(row["alive"])


def _hafwctl_path() -> tuple[str]:
    return (str(Path(sys.executable).parent / "hafwctl"),)


def test_a_killed_hafwd_on_the_active_node_disturbs_nothing(cluster: Running) -> None:
    active = cluster.active()
    epoch, before = cluster.epoch(active), children(cluster, active)
    generation = rows(status(), "policy", node=active)[0]["generation"]
    paths = cluster.lab.paths(active)
    pid = running_pid(paths, "hafwd")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for("another hafwd", lambda: running_pid(paths, "hafwd") not in (None, pid))
    wait_for("it answers", lambda: problems(status()) == [], 20)
    assert children(cluster, active) == before
    assert cluster.active() == active
    assert cluster.epoch(active) == epoch
    row = rows(status(), "policy", node=active)[0]
    assert row["generation"] == generation, "the policy was loaded again for nothing"
    assert rows(status(), "counters", node=active, counter="devices_set_up")[0]["value"] == 0


def test_status_while_a_whole_node_is_stopped(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    for pid in cluster.lab.all_pids(backup):
        os.kill(pid, signal.SIGSTOP)
    document = status()
    states = {row["daemon"]: row["state"] for row in rows(document, "daemons", node=backup)}
    names = ("hafwd", "leased", "syncd", "raftd")
    assert states == dict.fromkeys(names, "silent")
    (group,) = rows(document, "groups", node=backup)
    assert (group["role"], group["holder"], group["lease_left_ms"]) == (None, None, None)
    assert group["gate"] == "shut"
    (group,) = rows(document, "groups", node=active)
    assert (group["role"], group["gate"]) == ("ACTIVE", "open")
    assert rows(document, "devices", node=backup, gated=True, up=True), "seen from outside"


def test_a_flushed_ruleset_on_the_active_node_is_loaded_again(cluster: Running) -> None:
    active = cluster.active()
    epoch, before = cluster.epoch(active), children(cluster, active)
    generation = rows(status(), "policy", node=active)[0]["generation"]
    assert cluster.run(active, "nft", "flush", "ruleset")[0] == 0
    wait_for(
        "a new generation is in force",
        lambda: rows(status(), "policy", node=active)[0]["generation"] == generation + 1,
    )
    assert rows(status(), "policy", node=active)[0]["state"] == "in force"
    assert children(cluster, active) == before
    assert (cluster.active(), cluster.epoch(active)) == (active, epoch)
    assert any(
        "somebody removed hafw's nftables tables" in row["alarm"]
        for row in rows(status(), "alarms", node=active)
    )


def test_a_deleted_device_on_the_backup_comes_back_gated_and_silent(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    assert cluster.run(backup, "ip", "link", "del", "hv1-lan")[0] == 0

    def mended() -> bool:
        assert cluster.holders() == [active]
        (row,) = rows(status(), "devices", node=backup, segment="lan")
        return bool(row["present"] and row["up"] and row["gated"])

    wait_for("the device is back", mended)
    assert rows(status(), "counters", node=backup, counter="devices_repaired")[0]["value"] >= 1


def test_a_policy_that_is_wrong_is_refused_and_changes_nothing(
    cluster: Running, tmp_path: Path
) -> None:
    before = {row["node"]: row["hash"] for row in status()["policy"]}
    bad = tmp_path / "bad.yaml"
    bad.write_text("zones: {lan: lan, wan: wan}\nbogus: 1\n")
    result = hafwctl("policy", "apply", str(bad))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"{bad}:2: bogus" in result.stderr
    assert "nothing was changed" in result.stderr
    after = status()
    assert {row["node"]: row["hash"] for row in after["policy"]} == before
    assert problems(after) == []


def test_a_move_says_what_moves_and_asks(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    result = hafwctl("group", "move", "main", backup, given="n\n")
    assert result.returncode == 1
    assert f"moves from {active} to {backup}" in result.stderr
    assert "192.0.2.254" in result.stderr
    assert result.stderr.endswith("hafwctl: aborted\n")
    assert cluster.active() == active


def test_a_move_from_outside_finds_the_holder(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    result = hafwctl("group", "move", "main", backup, "--yes", "--wait", "5")
    assert result.returncode == 0, result.stderr
    assert f"group main is ACTIVE on {backup} with epoch" in result.stderr
    assert cluster.active() == backup
    again = hafwctl("group", "move", "main", backup, "--yes")
    assert again.returncode == 0
    assert "already ACTIVE" in again.stderr
    wait_for("the old holder is synced", lambda: problems(status()) == [], 20)
    result = hafwctl("group", "move", "main", active, "--yes", "--wait", "5")
    assert result.returncode == 0, result.stderr


def test_a_move_to_the_witness_is_refused(cluster: Running) -> None:
    result = hafwctl("group", "move", "main", "wit", "--yes")
    assert result.returncode == 1
    assert "hafwctl: error: wit is no candidate for group main" in result.stderr


def test_sync_status_verify_and_resync(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    wait_for("all synced", lambda: problems(status()) == [], 20)
    said = hafwctl("sync", "status", "--json")
    assert said.returncode == 0, said.stderr
    by_node = {row["node"]: row for row in json.loads(said.stdout)}
    assert by_node.keys() == {active, backup}
    assert (by_node[active]["role"], by_node[backup]["role"]) == ("ACTIVE", "BACKUP")
    assert all(row["in_sync"] and not row["reason"] for row in by_node.values())
    assert by_node[backup]["lag_deltas"] is not None
    found = hafwctl("sync", "verify", "--json")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert {row["node"]: row["verdict"] for row in rows} == {active: "equal", backup: "equal"}
    assert [row["differing"] for row in rows if row["node"] == backup] == [0]
    again = hafwctl("sync", "resync", backup, "--yes")
    assert again.returncode == 0, again.stderr
    assert f"{backup} has all of main again" in again.stderr
    for target, why in ((active, "this node holds it"), ("wit", "wit is no gateway")):
        refused = hafwctl("sync", "resync", target, "--yes")
        assert refused.returncode == 1
        assert why in refused.stderr
    assert hafwctl("sync", "resync", backup, given="n\n").stderr.endswith("hafwctl: aborted\n")


def test_sync_verify_says_who_cannot_be_asked(cluster: Running) -> None:
    backup = cluster.backup()
    pid = running_pid(cluster.lab.paths(backup), "syncd")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    result = hafwctl("sync", "status", "--json")
    assert result.returncode == 1
    row = next(row for row in json.loads(result.stdout) if row["node"] == backup)
    assert (row["in_sync"], row["reason"]) == (False, "hafw-syncd did not answer")


def test_raft_may_die_on_every_node_and_no_lease_notices(cluster: Running) -> None:
    active, epoch = cluster.active(), cluster.epoch(cluster.active())
    nodes = tuple(cluster.lab.config.nodes)
    moves = {row["moves"] for row in rows(status(), "raft")}
    pids = {node: cluster.lab.pids(node)["raftd"] for node in nodes}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert cluster.announces(active), "the gate was shut for a moment"
        time.sleep(0.001)
    assert (cluster.active(), cluster.epoch(active)) == (active, epoch)
    cluster.lab.wait_ready(20)  # A Raft leader on every node among it.
    assert all(cluster.lab.pids(node)["raftd"] != pids[node] for node in nodes)
    assert {row["moves"] for row in rows(status(), "raft")} == moves, "the history is kept"
    (group,) = rows(status(), "groups", node=active)
    assert (group["assigned"], group["holder"]) == (active, active)
