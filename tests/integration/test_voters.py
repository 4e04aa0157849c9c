"""The voter set changes by hafwctl, in a running cluster: nobody loses a lease by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from hafw.lab.lab import Lab
from tests.integration.running import Running, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(lab_alone: None) -> Running:
    lab = Lab()
    lab.up()
    lab.wait_ready(30)
    return Running(lab)


def hafwctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("HAFW_NODE", "HAFW_CONFIG")}
    program = "from hafw.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "cluster", "voters", *arguments, "--json"],
        capture_output=True, text=True, timeout=90, check=False, env=environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def sets(node: str, *arguments: str) -> list[dict[str, Any]]:
    done = hafwctl("--node", node, *arguments)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_a_backup_is_taken_out_of_the_voters_and_put_back(cluster: Running) -> None:
    active, backup = cluster.active(), cluster.backup()
    everybody = sorted(cluster.lab.config.nodes)
    [before] = sets(active)
    assert sorted(before["voters"]) == everybody
    lost = cluster.leased(active).counters.get("leases_lost", 0)

    refused = hafwctl("--node", active, "--remove", active)
    assert refused.returncode == 1
    assert f"{active} is ACTIVE: move its groups away first" in refused.stderr
    refused = hafwctl("--node", active, "--add", backup)
    assert f"{backup} votes already" in refused.stderr

    sets(active, "--remove", backup)
    rest = [node for node in everybody if node != backup]
    for node in everybody:
        wait_for(
            f"{node} acts in the next set",
            lambda node=node: [sorted(row["voters"]) for row in sets(node)] == [rest],  # type: ignore[misc]
            20,
        )
    assert not cluster.leased(backup).may_vote
    assert cluster.holders() == [active]
    sets(backup, "--add", backup)
    for node in everybody:
        wait_for(
            f"{node} acts in the set after it",
            lambda node=node: [sorted(row["voters"]) for row in sets(node)] == [everybody],  # type: ignore[misc]
            20,
        )
    assert sets(active)[0]["set"] == before["set"] + 2
    assert cluster.holders() == [active]
    assert cluster.leased(active).counters.get("leases_lost", 0) == lost
