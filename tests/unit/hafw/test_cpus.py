"""Which CPU is whose: the pure plan, and what the machine is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hafw.config.model import CpuConfig
from hafw.cpus import CpuPlan, lease_cpu, parse_cpus, plan_cpus, policy_cpu, usable_cpus
from hafw.errors import StateError


@pytest.mark.parametrize(
    ("cpus", "usable", "lease", "policy"),
    [
        (CpuConfig(), {0, 1}, 1, 0),
        (CpuConfig(), {0, 1, 2, 3}, 3, 0),
        (CpuConfig(lease=0), {0, 1}, 0, 1),
        (CpuConfig(lease=0), {0, 1, 2}, 0, 1),
        (CpuConfig(policy=2), {0, 1, 2, 3}, 3, 2),
        (CpuConfig(policy=3), {0, 1, 2, 3}, 2, 3),
        (CpuConfig(policy=1), {0, 1}, 0, 1),
        (CpuConfig(lease=5), {3, 5}, 5, 3),
        (CpuConfig(), {0}, 0, 0),
    ],
)
def test_lease_and_policy_never_share_unless_there_is_one(
    cpus: CpuConfig, usable: set[int], lease: int, policy: int
) -> None:
    assert lease_cpu(cpus, frozenset(usable)) == lease
    assert policy_cpu(cpus, frozenset(usable)) == policy
    assert plan_cpus(cpus, frozenset(usable)).lease == lease


def test_the_daemons_keep_off_the_lease_loop() -> None:
    four = frozenset({0, 1, 2, 3})
    assert plan_cpus(CpuConfig(lease=1), four) == CpuPlan(
        all=four, lease=1, hafwd=frozenset({0, 2, 3}), syncd=frozenset({0, 2, 3})
    )
    two = frozenset({0, 1})
    assert plan_cpus(CpuConfig(), two) == CpuPlan(
        all=two, lease=1, hafwd=frozenset({0}), syncd=two
    )
    one = frozenset({0})
    assert plan_cpus(CpuConfig(), one) == CpuPlan(all=one, lease=0, hafwd=one, syncd=one)


def test_a_configured_cpu_that_is_not_there() -> None:
    usable = frozenset({0, 1})
    lease = CpuConfig(lease=7)
    for refuse in (lease_cpu, policy_cpu, plan_cpus):
        with pytest.raises(StateError, match=r"cpus.lease: CPU 7 is not online; there are 0, 1"):
            refuse(lease, usable)
    with pytest.raises(StateError, match=r"cpus.policy: CPU 7 is not online; there are 0, 1"):
        policy_cpu(CpuConfig(policy=7), usable)


def test_the_kernels_list_format() -> None:
    assert parse_cpus("0\n") == {0}
    assert parse_cpus("0-3,5,7-8\n") == {0, 1, 2, 3, 5, 7, 8}


def test_a_narrow_affinity_does_not_hide_cpus_and_is_kept() -> None:
    """As in syncd and hafwd, which are started beside the lease loop's CPU."""
    usable = usable_cpus()
    narrow = {min(usable)}
    program = (
        "import json, os\n"
        "from hafw.cpus import usable_cpus\n"
        f"os.sched_setaffinity(0, {narrow})\n"
        "print(json.dumps([sorted(usable_cpus()), sorted(os.sched_getaffinity(0))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [sorted(usable), sorted(narrow)]
    assert os.sched_getaffinity(0) <= usable
