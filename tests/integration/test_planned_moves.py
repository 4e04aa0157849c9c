"""Drain, maintenance, order, preemption and force, by hafwctl, in a running cluster."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.standing import read_standing
from hafw.lab.drills import run_judged
from hafw.lab.lab import Lab
from hafw.paths import NodePaths
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
    for node in cluster.gateways:  # All, before anybody is waited for.
        for pid in cluster.lab.all_pids(node):
            os.kill(pid, signal.SIGCONT)
    for node in cluster.gateways:
        well("node", "online", node, "--wait", "20")


def well(*arguments: str) -> str:
    done = hafwctl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(*arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(well(*arguments, "--json"))
    return rows


def state_of(node: str) -> str:
    return str(next(row["state"] for row in table("cluster", "members") if row["member"] == node))


def newest_move() -> dict[str, Any]:
    return table("cluster", "history", "--last", "1")[0]


def test_drained_a_node_hands_over_ranks_last_and_stays_so_through_a_restart_of_all(
    cluster: Running,
) -> None:
    first, second = cluster.active(), cluster.backup()
    well("node", "drain", first, "--why", "new disk", "--yes")
    assert cluster.active() == second
    assert state_of(first) == "draining"
    wait_for("history", lambda: newest_move()["why"] == f"{first} is drained: new disk")
    assert newest_move()["planned"]
    refused = hafwctl("group", "move", "main", first, "--yes")
    assert refused.returncode == 1
    assert f"{first} is being drained: first hafwctl node online {first}" in refused.stderr
    assert "moves from" not in refused.stderr, "announced, and then refused"
    told = hafwctl("status").stdout.splitlines()[0]
    assert told.endswith(f"; {first} is being drained")
    refused = hafwctl("node", "drain", second, "--yes")
    assert refused.returncode == 1
    assert "nobody could take its groups" in refused.stderr
    assert "hands over" not in refused.stderr, "announced, and then refused"
    refused = hafwctl("node", "maintenance", "wit", "--yes")
    assert (refused.returncode, "hands over" in refused.stderr) == (1, False)
    assert "wit is online and votes" in hafwctl("node", "online", "wit").stderr
    assert cluster.active() == second

    lab = cluster.lab
    for node in lab.config.nodes:
        lab.hold(node)
        for pid in lab.all_pids(node):
            os.kill(pid, signal.SIGKILL)
    wait_for("all are dead", lambda: not any(map(lab.all_pids, lab.config.nodes)))
    for node in lab.config.nodes:
        lab.release(node)
    lab.wait_ready(30)
    assert cluster.active() == second, "drained, it is the last choice of a cold start too"
    assert state_of(first) == "draining"
    assert read_standing(NodePaths(first).standing).last == [lab.config.nodes[first].id]
    well("node", "online", first)
    well("group", "move", "main", first, "--yes")
    assert cluster.active() == first


def test_online_waits_for_a_node_that_was_only_just_started(cluster: Running) -> None:
    """The end of a restart by hand: drained, restarted, `online` said on the node itself."""
    node, lab = cluster.backup(), cluster.lab
    well("node", "drain", node, "--yes")
    lab.hold(node)
    os.kill(lab.pids(node)["hafwd"], signal.SIGTERM)
    wait_for("it is down", lambda: not lab.all_pids(node))
    lab.release(node)
    done = hafwctl("node", "online", node, "--node", node)
    assert (done.returncode, "could take over" in done.stderr) == (0, True), done.stderr
    assert "hafw-raftd is not running" in done.stderr, "it had nothing to wait for"


@pytest.mark.long
def test_what_cannot_leave_stays_and_the_command_says_why(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    os.kill(cluster.lab.pids(backup)["hafwd"], signal.SIGSTOP)
    os.kill(cluster.lab.pids(backup)["syncd"], signal.SIGSTOP)
    wait_for(
        "the holder hears it", lambda: not cluster.leased(active).peers[0].synced.get(1, False)
    )
    done = hafwctl("node", "maintenance", active, "--wait", "3", "--yes")
    assert done.returncode == 1
    assert f"{backup} is not synced (syncd silent)" in done.stderr
    assert cluster.active() == active
    assert state_of(active) == "draining"
    os.kill(cluster.lab.pids(backup)["syncd"], signal.SIGCONT)
    wait_for("it leaves as soon as it can", lambda: cluster.holders() == [backup], 30)


def test_in_maintenance_a_node_takes_nothing_even_if_it_is_alone(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    well("node", "maintenance", backup, "--yes")
    wait_for("its leased knows", lambda: read_standing(NodePaths(backup).standing).out != [])
    refused = hafwctl("group", "move", "main", backup, "--yes")
    assert f"{backup} is in maintenance" in refused.stderr
    forced = hafwctl("group", "force-active", "main", backup, "--yes")
    assert forced.returncode == 1
    assert "in maintenance" in forced.stderr
    takeovers = cluster.leased(backup).counters.get("takeovers", 0)
    cluster.lab.silence(active)
    wait_for("nobody is ACTIVE", lambda: cluster.holders() == [])
    for _ in range(20):  # Twenty leases and more: even despair does not make it claim.
        assert cluster.leased(backup).counters.get("takeovers", 0) == takeovers
        assert cluster.holders() == []
        wait_for("a lease", _later(0.15))
    cluster.lab.heal(active)
    wait_for("it is back", lambda: cluster.holders() == [active])


def _later(seconds: float) -> Any:
    import time

    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def test_forced_an_unsynced_node_is_active_and_never_without_a_majority(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    for daemon in ("hafwd", "syncd"):
        os.kill(cluster.lab.pids(backup)[daemon], signal.SIGSTOP)
    wait_for(
        "the holder hears it", lambda: not cluster.leased(active).peers[0].synced.get(1, False)
    )
    assert hafwctl("group", "move", "main", backup, "--yes").returncode == 1
    os.kill(cluster.lab.pids(backup)["hafwd"], signal.SIGCONT)
    cluster.lab.silence(backup)
    wait_for("it is alone", lambda: not any(p.alive for p in cluster.leased(backup).peers))
    refused = hafwctl("group", "force-active", "main", backup, "--yes")
    assert refused.returncode == 1
    assert "two nodes could be ACTIVE; nothing overrides that" in refused.stderr
    assert cluster.holders() == [active]
    cluster.lab.heal(backup)
    wait_for("it is heard", lambda: all(p.alive for p in cluster.leased(backup).peers))
    well("group", "force-active", "main", backup, "--yes")
    wait_for("it is ACTIVE", lambda: cluster.holders() == [backup])
    wait_for("history", lambda: newest_move()["why"].startswith("forced: hafwctl group force"))


@pytest.mark.long
def test_with_preempt_and_an_order_the_group_goes_where_it_should(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    well("group", "order", "main", backup, active)
    assert table("cluster", "groups")[0]["order"] == [backup, active]
    wait_for("two looks", _later(2.5))
    assert cluster.active() == active, "without preempt an order moves nothing"
    well("group", "preempt", "main", "on", "--after", "1")
    try:
        wait_for("it goes there", lambda: cluster.holders() == [backup], 15)
        wait_for(
            "history", lambda: newest_move()["why"].startswith(f"preempt: {backup} is better")
        )
    finally:
        well("group", "preempt", "main", "off")
        well("group", "order", "main", "--reset")
    [row] = table("cluster", "groups")
    assert (row["order"], row["order_from"], row["preempt"]) == (
        ["gw1", "gw2"], "cluster.yaml", False,
    )  # fmt: skip
    refused = hafwctl("group", "order", "main", "gw1")
    assert "names each of its candidates once: gw1, gw2" in refused.stderr


def lossless(lab: Lab, drill: str, times: int) -> None:
    """Every run without one lost packet."""
    for _ in range(times):
        for result in run_judged(lab, drill, "", lambda _text: None):
            assert [probe.missing for probe in result.probes] == [0] * 16, result.reasons
        assert result.reasons == []


def test_no_packet_is_lost_in_a_planned_move(cluster: Running) -> None:
    lossless(cluster.lab, "planned-move", 2)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("drill", ["drain", "rolling-restart"])
def test_no_packet_is_lost_in_a_drain_or_a_rolling_restart(cluster: Running, drill: str) -> None:
    lossless(cluster.lab, drill, 2)


@pytest.mark.long
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("drill", ["planned-move", "drain", "rolling-restart"])
def test_fifty_times_no_packet_is_lost(cluster: Running, drill: str) -> None:
    lossless(cluster.lab, drill, 50)
