"""Failover measured: many power cuts, one 1 kHz UDP probe, the distribution of outages. Shell.

A cut is silence of the ACTIVE node; after the takeover it is healed, becomes synced again, and the
next cut hits the other one. Nothing here passes or fails on time: the figures are for reading,
beside the floor (no lease can be taken over before it has ended).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence

import msgspec

from hafw.errors import HafwError, RefusedError
from hafw.lab.conductor import Conductor, Say
from hafw.lab.drills import lab_for_drills
from hafw.lab.judges import percentile
from hafw.lab.lab import Lab
from hafw.lab.report import DrillResult, table

__all__ = [
    "PROBE_KINDS",
    "PROFILES",
    "BenchReport",
    "ProfileResult",
    "bench_profile",
    "bench_to_json",
    "cut_and_heal",
    "parse_profiles",
    "render_bench",
    "run_bench",
    "summarize",
]

PROFILES = {"default": (20, 100), "fast": (10, 40), "experimental": (5, 20)}
"""Name: (heartbeat_ms, lease_ms)."""
PROBE_KINDS = frozenset({"snat udp", "snat tcp-echo"})


class ProfileResult(msgspec.Struct, frozen=True):
    """The cuts of one profile. Outages and takeovers in ms, in the order of the cuts. `problems`:
    why cuts are missing or something was wrong; flows lost and dual-ACTIVE among them."""

    profile: str
    heartbeat_ms: int
    lease_ms: int
    cuts_wanted: int
    outages_ms: list[float]
    takeovers_ms: list[float]
    dual_ms: float
    within_resolution_ms: float
    flows_lost: int
    agent_late_ms: float
    problems: list[str]


class BenchReport(msgspec.Struct, frozen=True):
    kernel: str
    cpus: int
    profiles: list[ProfileResult]


def parse_profiles(text: str) -> list[str]:
    """``default,fast`` and the like. Raises RefusedError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PROFILES]:
        raise RefusedError(
            f"there is no profile {', '.join(unknown)}; there are {', '.join(PROFILES)}"
        )
    if not names:
        raise RefusedError(f"name at least one profile of {', '.join(PROFILES)}")
    return names


def run_bench(
    profiles: Sequence[str], cuts: int, say: Say, show: Callable[[ProfileResult], None]
) -> BenchReport:
    """One lab a profile, built and removed. A lab that is up already is in the way, unless it
    has that profile's timers."""
    results = []
    for name in profiles:
        heartbeat_ms, lease_ms = PROFILES[name]
        with lab_for_drills(Lab(), say, heartbeat_ms=heartbeat_ms, lease_ms=lease_ms) as lab:
            result = bench_profile(lab, name, cuts, say)
        show(result)
        results.append(result)
    return BenchReport(platform.release(), os.cpu_count() or 0, results)


def bench_profile(lab: Lab, profile: str, cuts: int, say: Say) -> ProfileResult:
    """`cuts` power cuts in a ready lab."""
    with Conductor(
        lab, lambda _text: None, octets_s=0, frames=False, kinds=PROBE_KINDS, families=(4,)
    ) as conductor:
        problem = ""
        try:
            conductor.establish()
            for number in range(1, cuts + 1):
                say(f"{profile}: cut {number} of {cuts}")
                cut_and_heal(conductor)
        except HafwError as error:
            problem = f"stopped early: {error}"
        result = conductor.finish("bench-failover", profile, problem)
    return summarize(
        profile, lab.config.lease.heartbeat_ms, lab.config.lease.lease_ms, cuts, result
    )


def cut_and_heal(conductor: Conductor, healed: Callable[[], None] = lambda: None) -> None:
    """One power cut; returns when the cluster is whole again. `healed` may wait for more first."""
    cut: list[str] = []

    def act(active: str) -> int:
        cut.append(active)
        return conductor.faults.silence(active)

    conductor.fault("power cut", act, takeover="must")
    conductor.faults.heal(cut[0])
    healed()
    conductor.returned()


def summarize(
    profile: str, heartbeat_ms: int, lease_ms: int, cuts: int, result: DrillResult
) -> ProfileResult:
    """The figures of one profile from its drill result. Pure."""
    gate = result.gate
    return ProfileResult(
        profile=profile,
        heartbeat_ms=heartbeat_ms,
        lease_ms=lease_ms,
        cuts_wanted=cuts,
        outages_ms=[step.outage_ms for step in result.steps],
        takeovers_ms=[s.takeover_ms for s in result.steps if s.takeover_ms is not None],
        dual_ms=gate.dual_ms if gate else 0.0,
        within_resolution_ms=gate.possible_ms if gate else 0.0,
        flows_lost=sum(bool(probe.lost) for probe in result.probes),
        agent_late_ms=result.agent_late_ms,
        problems=result.reasons,
    )


def render_bench(report: BenchReport) -> str:
    """One row a profile. Pure."""
    head = (
        "profile", "timers ms", "floor ms", "cuts", "min", "median", "p90", "p99", "max",
        "takeover median", "dual ms", "lost",
    )  # fmt: skip
    rows = []
    for result in report.profiles:
        ordered = sorted(result.outages_ms)
        figures = [percentile(ordered, percent) for percent in (0, 50, 90, 99, 100)]
        rows.append(
            (
                result.profile,
                f"{result.heartbeat_ms}/{result.lease_ms}",
                str(result.lease_ms),
                f"{len(ordered)}/{result.cuts_wanted}",
                *(f"{figure:.0f}" for figure in figures),
                f"{percentile(sorted(result.takeovers_ms), 50):.0f}",
                f"{result.dual_ms:g}",
                str(result.flows_lost),
            )
        )
    lines = ["outage of a 1 kHz UDP flow through SNAT over power cuts, ms (resolution 1 ms):"]
    lines += table(head, rows)
    lines.append(
        "floor: the lease; a survivor may not take over before it has ended. The cut falls "
        "anywhere in a heartbeat, so up to one heartbeat below it is possible."
    )
    lines += [f"{r.profile}: {problem}" for r in report.profiles for problem in r.problems]
    return "\n".join(lines) + "\n"


def bench_to_json(report: BenchReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
