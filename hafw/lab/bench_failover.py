"""What `make bench-failover` found, and how it is shown: distributions of outages. Pure.

The JSON form is the structs themselves; its keys are a contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hafw.errors import RefusedError
from hafw.lab.judges import percentile
from hafw.lab.report import table

__all__ = [
    "DEFAULT_SYSTEMS",
    "LOADS",
    "PRIORITIES",
    "SYSTEMS",
    "FailoverReport",
    "FaultResult",
    "PartResult",
    "Plan",
    "SystemSpec",
    "failover_to_json",
    "histogram",
    "in_order",
    "merge_parts",
    "parse_names",
    "read_failover",
    "render_failover",
    "share_s",
]

LOADS = ("idle", "starved")
DEFAULT_SYSTEMS = (
    "hafw-default", "hafw-fast", "keepalived-1s", "keepalived-100ms", "keepalived-10ms",
)  # fmt: skip
LAB_S = 12.0
"""A lab is built and taken away, and its flows are established."""
SHARE_S_MIN = 5.0
BINS = 10
BAR = 40
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


PRIORITIES = (254, 253)
"""keepalived's."""


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """What to run. hafw has `timers` (heartbeat_ms, lease_ms), keepalived an `advert_ms`."""

    name: str
    timers: tuple[int, int] | None = None
    advert_ms: float | None = None

    @property
    def words(self) -> str:
        if self.timers is not None:
            return f"{self.timers[0]}/{self.timers[1]}"
        return f"{self.advert_ms:g}"

    @property
    def period_ms(self) -> float:
        """A fault may fall anywhere in it."""
        return float(self.timers[0]) if self.timers is not None else self.advert_ms or 0.0

    @property
    def floor_ms(self) -> float:
        """No takeover can be earlier after the last sign of life: the lease, or three adverts and
        the survivor's skew."""
        if self.timers is not None:
            return float(self.timers[1])
        skew = (256 - PRIORITIES[1]) / 256
        return (self.advert_ms or 0.0) * (3 + skew)


SYSTEMS = {
    spec.name: spec
    for spec in (
        SystemSpec("hafw-default", timers=(20, 100)),
        SystemSpec("hafw-fast", timers=(10, 40)),
        SystemSpec("hafw-experimental", timers=(5, 20)),
        SystemSpec("keepalived-1s", advert_ms=1000),
        SystemSpec("keepalived-100ms", advert_ms=100),
        SystemSpec("keepalived-10ms", advert_ms=10),
    )
}


class Plan(msgspec.Struct, frozen=True):
    """What is to be measured. `minutes` are for all parts together: each ends after `faults`, or
    when its share of what is left is over (`share_s`). `quiet_s` without a fault follow under
    starvation."""

    systems: tuple[str, ...] = DEFAULT_SYSTEMS
    loads: tuple[str, ...] = LOADS
    faults: int = 300
    minutes: float = 45.0
    quiet_s: float = 60.0
    seed: int = 1


class FaultResult(msgspec.Struct, frozen=True):
    """One fault, in ms. `outage_ms` from the last answer before the takeover to the first after
    it; `return_ms` the longest gap from the heal to the next fault; `dual_ms` while two gateways
    answered for the address, by the judge of answers."""

    node: str
    outage_ms: float
    return_ms: float
    dual_ms: float


class PartResult(msgspec.Struct, frozen=True):
    """One system under one load. `own_dual_ms`: hafw's, by the gates' deadlines (judge (a)).
    `false_takeovers` in `quiet_s` without a fault; None = not looked at. `interrupted`: somebody
    ended it. `problems`: what was wrong; a part that time ended has none by that."""

    system: str
    load: str
    timers: str
    floor_ms: float
    faults_wanted: int
    faults: list[FaultResult]
    flows_lost: list[str]
    own_dual_ms: float
    own_possible_ms: float
    agent_late_ms: float
    quiet_s: float
    false_takeovers: int | None
    seconds: float
    interrupted: bool
    problems: list[str]

    @property
    def is_hafw(self) -> bool:
        return self.system.startswith("hafw")

    @property
    def outages(self) -> list[float]:
        return sorted(fault.outage_ms for fault in self.faults)

    @property
    def failed(self) -> bool:
        """Dual-ACTIVE and lost flows are failures of hafw; keepalived's are figures."""
        broken = self.is_hafw and (
            self.own_dual_ms > 0 or any(fault.dual_ms for fault in self.faults)
        )
        return bool(self.problems or self.flows_lost or broken or self.interrupted)


class FailoverReport(msgspec.Struct, frozen=True):
    started: str
    kernel: str
    cpus: int
    plan: Plan
    parts: list[PartResult]


def in_order(plan: Plan) -> list[tuple[str, str]]:
    """The parts, slow systems last: what quick ones leave of their shares is theirs."""
    systems = sorted(plan.systems, key=lambda name: SYSTEMS[name].floor_ms)
    return [(system, load) for system in systems for load in plan.loads]


def share_s(plan: Plan, left_s: float, parts: Sequence[tuple[str, str]]) -> float:
    """How long the faults of the first of these parts, whose lab is up, may take if `left_s` are
    left for all: equal shares of what labs and quiet times leave. Never so little that no fault is
    made."""
    quiet_s = plan.quiet_s * sum(load == "starved" for _, load in parts)
    labs_s = LAB_S * len({system for system, _ in parts} - {parts[0][0]})
    return max((left_s - quiet_s - labs_s) / len(parts), SHARE_S_MIN)


def parse_names(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """``idle,starved`` and the like. Raises RefusedError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in known]:
        raise RefusedError(
            f"there is no {what} {', '.join(unknown)}; there are {', '.join(known)}"
        )
    if not names:
        raise RefusedError(f"name at least one {what} of {', '.join(known)}")
    return names


def merge_parts(old: Sequence[PartResult], new: Sequence[PartResult]) -> list[PartResult]:
    """Every part once, the newer one, in the systems' order."""
    found = {(part.system, part.load): part for part in (*old, *new)}
    order = [(system, load) for system in SYSTEMS for load in LOADS]
    return [found[key] for key in order if key in found]


def histogram(outages: Sequence[float]) -> list[tuple[float, float, int]]:
    """(from, to, count) in at most `BINS` steps of 1, 2 or 5 times a power of ten ms."""
    if not outages:
        return []
    low, high = min(outages), max(outages)
    width = next((s for s in _STEPS if high // s - low // s < BINS), _STEPS[-1])
    first, last = int(low // width), int(high // width)
    counts = [0] * (last - first + 1)
    for outage in outages:
        counts[int(outage // width) - first] += 1
    return [
        (float((first + n) * width), float((first + n + 1) * width), count)
        for n, count in enumerate(counts)
    ]


def render_failover(report: FailoverReport) -> str:
    """A row a part, a histogram a part, what was wrong."""
    head = (
        "system", "timers ms", "load", "floor ms", "faults", "min", "p50", "p90", "p99", "max",
        "return max", "dual ms", "dual max", "lost", "false/h",
    )  # fmt: skip
    lines = [
        "outage of a 1 kHz UDP flow through SNAT over power cuts of the ACTIVE node, "
        "ms (resolution 2 ms):"
    ]
    lines += table(head, [_row(part) for part in report.parts]) if report.parts else ["nothing"]
    lines += [
        "floor: after the last sign of life nobody may take over earlier. A cut falls anywhere in "
        "a period, so up to one below it is possible.",
        "dual: two gateways answered for the address; for hafw also two open gates.",
        "return max: the longest gap when the cut node was heard again.",
    ]
    for part in report.parts:
        lines += ["", f"{part.system}, {part.load}:", *_bars(part.outages)]
    wrong = [
        f"{part.system}, {part.load}: {words}"
        for part in report.parts
        for words in (*part.problems, *part.flows_lost, *(["interrupted"] * part.interrupted))
    ]
    return "\n".join([*lines, *([""] if wrong else []), *wrong]) + "\n"


def _row(part: PartResult) -> tuple[str, ...]:
    figures = [percentile(part.outages, percent) for percent in (0, 50, 90, 99, 100)]
    duals = [fault.dual_ms for fault in part.faults]
    return (
        part.system,
        part.timers,
        part.load,
        f"{part.floor_ms:.0f}",
        f"{len(part.faults)}/{part.faults_wanted}",
        *(f"{figure:.0f}" if part.faults else "-" for figure in figures),
        f"{max((fault.return_ms for fault in part.faults), default=0):.0f}",
        f"{max(sum(duals), part.own_dual_ms):.1f}",
        f"{max(duals, default=0):.1f}",
        str(len(part.flows_lost)),
        _per_hour(part),
    )


def _per_hour(part: PartResult) -> str:
    if part.false_takeovers is None or not part.quiet_s:
        return "-"
    return f"{part.false_takeovers * 3600 / part.quiet_s:.0f}"


def _bars(outages: Sequence[float]) -> list[str]:
    bins = histogram(outages)
    most = max((count for _, _, count in bins), default=1)
    return [
        f"  {low:>6.0f} to {high:<6.0f} {'#' * -(-count * BAR // most):<{BAR}} {count}"
        for low, high, count in bins
    ]


def failover_to_json(report: FailoverReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_failover(octets: bytes) -> FailoverReport:
    """Raises RefusedError for what `failover_to_json` did not write."""
    try:
        return msgspec.json.decode(octets, type=FailoverReport)
    except msgspec.DecodeError as error:
        raise RefusedError(f"this is no report of bench-failover: {error}") from None
