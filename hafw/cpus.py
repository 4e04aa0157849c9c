"""Which CPU is whose: the one idea of it that every daemon, worker and judge goes by.

An nft load is not preemptible and holds its CPU, so the lease loop and the policy worker have
CPUs of their own and the others keep off the lease loop's. `usable_cpus` is the only look at the
machine; the rest is pure. Who decides sees the same set, however narrow its own affinity is: hafwd
and syncd are bound to fewer CPUs than the lease loop may have.

A foundation: `cluster` and `sync` use it too.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hafw.config.model import CpuConfig
from hafw.errors import StateError

__all__ = ["CpuPlan", "lease_cpu", "parse_cpus", "plan_cpus", "policy_cpu", "usable_cpus"]

_ONLINE = Path("/sys/devices/system/cpu/online")


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """Which CPUs each may use. The lease loop has one that nobody else of ours keeps busy."""

    all: frozenset[int]
    lease: int
    hafwd: frozenset[int]
    syncd: frozenset[int]


def plan_cpus(cpus: CpuConfig, usable: frozenset[int]) -> CpuPlan:
    """With one CPU everybody has it; with two syncd may use both: it would otherwise share with
    policy loads alone. Raises StateError as `lease_cpu` does."""
    lease = lease_cpu(cpus, usable)
    rest = usable - {lease} or usable
    return CpuPlan(all=usable, lease=lease, hafwd=rest, syncd=rest if len(usable) > 2 else usable)


def lease_cpu(cpus: CpuConfig, usable: frozenset[int]) -> int:
    """The lease loop's: the configured one, else the last that is not configured for policy
    loads. Raises StateError if the configured one is not there."""
    if cpus.lease is None:
        return max(usable - {cpus.policy} or usable)
    return _required("lease", cpus.lease, usable)


def policy_cpu(cpus: CpuConfig, usable: frozenset[int]) -> int:
    """The policy worker's: the configured one, else the first that is not the lease loop's. With
    one CPU there is no choice. Raises StateError if a configured one is not there."""
    lease = lease_cpu(cpus, usable)
    if cpus.policy is None:
        return min(usable - {lease} or usable)
    return _required("policy", cpus.policy, usable)


def _required(key: str, cpu: int, usable: frozenset[int]) -> int:
    if cpu not in usable:
        known = ", ".join(str(cpu) for cpu in sorted(usable))
        raise StateError(f"cpus.{key}: CPU {cpu} is not online; there are {known}")
    return cpu


def usable_cpus() -> frozenset[int]:
    """Online, and allowed to this process by its cpuset; not narrowed by its present affinity.

    kernel/sched/syscalls.c, __sched_setaffinity: a wish is cut to the cpuset, so asking for all
    and reading back tells what a container was given. The affinity is put back.
    """
    mine = os.sched_getaffinity(0)
    try:
        online = parse_cpus(_ONLINE.read_text())
    except OSError:
        return frozenset(mine)
    try:
        os.sched_setaffinity(0, online)
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return frozenset(mine)
    finally:
        with suppress(OSError):  # A CPU of ours went offline just now: the kernel moved us.
            os.sched_setaffinity(0, mine)


def parse_cpus(text: str) -> frozenset[int]:
    """The kernel's list format: ``0-3,5``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
