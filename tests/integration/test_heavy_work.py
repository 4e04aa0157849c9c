"""20,000 rules on the ACTIVE node, fast profile: held by a long lease, and nothing moves."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.own_lab import own_lab
from tests.integration.running import Running, wait_for
from tests.integration.test_first_light import big_policy

pytestmark = [
    pytest.mark.integration, pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(180),
]  # fmt: skip
LEASE_MS = 40
RULES = 20_000


@pytest.fixture(scope="module")
def cluster(lab_alone: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    profile = f"lease: {{heartbeat_ms: 10, lease_ms: {LEASE_MS}}}"
    with own_lab(tmp_path_factory.mktemp("lab"), profile) as lab:
        yield Running(lab)


def test_a_large_policy_on_the_active_node_moves_nothing(cluster: Running, tmp_path: Path) -> None:
    node = cluster.active()
    file = tmp_path / "policy.yaml"
    file.write_text(big_policy(cluster, RULES))
    before, left = cluster.leased(node), []
    loaded: list[tuple[int, str]] = []

    def load() -> None:
        hafwctl = Path(sys.executable).parent / "hafwctl"
        loaded.append(cluster.run(node, hafwctl, "policy", "apply", file, timeout_s=120))

    loading = threading.Thread(target=load)
    loading.start()
    while loading.is_alive():
        left.append(cluster.group(node).lease_left_ms)
        time.sleep(0.02)
    assert loaded[0][0] == 0, loaded[0][1]
    assert max(left) > 500, "held by a long lease meanwhile"
    after = cluster.leased(node)
    assert cluster.holders() == [node]
    assert after.groups[0].epoch == before.groups[0].epoch
    assert after.counters.get("leases_lost", 0) == before.counters.get("leases_lost", 0)
    wait_for("the usual lease", lambda: cluster.group(node).lease_left_ms <= LEASE_MS, 5)
    assert cluster.leased(node).lease_ms == LEASE_MS
    assert cluster.group(node).epoch == before.groups[0].epoch
