"""What a drill found, the verdict on it, and how it is shown. Pure.

The JSON form is the structs themselves; its keys are a contract. A drill passed if, and only if,
nobody has a reason why not: `judge_drill` collects them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hafw.human import format_epoch
from hafw.lab.judges import NO_SAMPLE, FrameVerdict, GateVerdict, percentile

__all__ = [
    "DrillReport",
    "DrillResult",
    "ProbeResult",
    "StepResult",
    "StrictReading",
    "judge_drill",
    "judge_failed",
    "render_drill",
    "render_report",
    "table",
    "title_of",
    "to_json",
    "unjudged",
]

_NO_VERDICT = "judge (a) could not judge"
_TOO_LONG = "too long"


class ProbeResult(msgspec.Struct, frozen=True):
    """One flow. `before` and `after` count right answers (streams: bytes) before the first fault
    and since; `missing` datagrams without an answer; `lost` says why, empty = alive.
    `replica`: the peer's conntrack table had the flow just before the first fault."""

    name: str
    family: int
    outage_ms: float | None
    resolution_ms: float
    before: int
    after: int
    unit: str
    missing: int
    wrong: int
    established_s: float | None
    replica: bool | None
    lost: str = ""


class StepResult(msgspec.Struct, frozen=True):
    """One fault (or move) of a drill. `outage_ms`: the worst gap of a 1 kHz UDP probe.
    `takeover_ms`: from the fault to another gateway's open gate, by judge (a). `within_ms` and
    `taken_within_ms`: what both may be at most (None: anything). `note`: what else was found, as
    it should be."""

    what: str
    at_s: float
    holder_before: str
    holder_after: str
    epoch_before: int
    epoch_after: int
    takeover_ms: float | None
    outage_ms: float
    ready_s: float | None
    problem: str = ""
    note: str = ""
    within_ms: float | None = None
    taken_within_ms: float | None = None


class StrictReading(msgspec.Struct, frozen=True):
    """nf_conntrack_tcp_loose and nf_conntrack_tcp_be_liberal of one gateway; both must be 0."""

    when: str
    node: str
    tcp_loose: int
    tcp_be_liberal: int


class DrillResult(msgspec.Struct, frozen=True):
    """One drill, with everything that was found. `reasons`: why it failed; empty = passed."""

    drill: str
    variant: str
    seconds: float
    probes: list[ProbeResult]
    steps: list[StepResult]
    gate: GateVerdict | None
    frames: FrameVerdict | None
    strict: list[StrictReading]
    agent_late_ms: float
    passed: bool = False
    reasons: list[str] = []

    @property
    def title(self) -> str:
        return title_of(self.drill, self.variant)


class DrillReport(msgspec.Struct, frozen=True):
    """A whole run of `hafwctl drill run`. `unjudged` runs were made again and are not among
    `drills`."""

    started: str
    heartbeat_ms: int
    lease_ms: int
    without: list[str]
    kernel: str
    cpus: int
    seconds: float
    drills: list[DrillResult]
    passed: bool
    unjudged: int = 0


def title_of(drill: str, variant: str) -> str:
    """A row of the table of faults, in a word or two."""
    return f"{drill} ({variant})" if variant else drill


def judge_drill(result: DrillResult, problems: Sequence[str] = ()) -> DrillResult:
    """The result with `reasons` and `passed` set. `problems` are what the conductor could not do
    (a probe that was never established, a node that did not return)."""
    reasons = list(problems)
    reasons += [f"{step.what}: {step.problem}" for step in result.steps if step.problem]
    reasons += [
        f"{_TOO_LONG}: {step.what}: {words}"
        for step in result.steps
        for words in _too_long(step, result.agent_late_ms)
    ]
    reasons += [
        f"flow lost: {probe.name} IPv{probe.family}: {probe.lost}"
        for probe in result.probes
        if probe.lost
    ]
    if not result.probes:
        reasons.append("no probe was running")
    if result.gate is None:
        reasons.append("judge (a) gave no verdict")
    elif result.gate.problem:
        reasons.append(f"{_NO_VERDICT}: {result.gate.problem}")
    if result.gate is not None and result.gate.dual_ms > 0:
        reasons.append(f"dual-ACTIVE for {_ms(result.gate.dual_ms)} by the gates' deadlines")
    if result.frames is not None and result.frames.problem:
        reasons.append(f"judge (b) could not judge: {result.frames.problem}")
    if result.frames is not None and result.frames.dual_ms > 0:
        reasons.append(f"dual-ACTIVE for {_ms(result.frames.dual_ms)} by forwarded frames")
    reasons += [
        f"TCP is not strict on {reading.node} ({reading.when}): "
        f"tcp_loose={reading.tcp_loose} tcp_be_liberal={reading.tcp_be_liberal}"
        for reading in result.strict
        if reading.tcp_loose or reading.tcp_be_liberal
    ]
    if not result.strict:
        reasons.append("nobody looked whether TCP is strict")
    return msgspec.structs.replace(result, passed=not reasons, reasons=reasons)


def _too_long(step: StepResult, late_ms: float) -> list[str]:
    """`late_ms`: a probe that ticked late saw gaps of that length itself; as much as the bound is
    believed at most."""
    found = []
    for words, took_ms, within_ms in (
        ("packets were held up", step.outage_ms, step.within_ms),
        ("nobody took over", step.takeover_ms, step.taken_within_ms),
    ):
        if took_ms is None or within_ms is None:
            continue
        if took_ms > within_ms + min(late_ms, within_ms):
            found.append(f"{words} for {took_ms:.0f} ms, where {within_ms:.0f} are the most")
    return found


def unjudged(result: DrillResult) -> bool:
    """Nothing is wrong with it but that judge (a) took no sample for half a lease (and something
    took too long). It takes them on two CPUs at real-time priority, so the machine itself stood
    still, the leases with it. Neither passed nor failed."""
    return (
        result.gate is not None
        and result.gate.problem.startswith(NO_SAMPLE)
        and all(reason.startswith((_NO_VERDICT, _TOO_LONG)) for reason in result.reasons)
    )


def judge_failed(drill: str, variant: str, seconds: float, reason: str) -> DrillResult:
    """A drill that could not even begin."""
    return DrillResult(
        drill=drill,
        variant=variant,
        seconds=seconds,
        probes=[],
        steps=[],
        gate=None,
        frames=None,
        strict=[],
        agent_late_ms=0.0,
        passed=False,
        reasons=[f"the drill could not begin: {reason}"],
    )


def to_json(report: DrillReport) -> bytes:
    """Indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def render_drill(result: DrillResult) -> str:
    """The tables of one drill, as plain text. Nothing hangs on colour."""
    lines = [
        f"{result.title}: {'passed' if result.passed else 'FAILED'} in {result.seconds:.1f} s"
    ]
    lines += _indent(_probe_table(result.probes))
    lines += _indent(_step_table(result.steps))
    lines += _indent(_judge_lines(result))
    if result.strict:
        ok = not any(r.tcp_loose or r.tcp_be_liberal for r in result.strict)
        words = "tcp_loose=0, be_liberal=0 on every gateway" if ok else "NOT STRICT"
        lines.append(f"  strict TCP: {words} ({len(result.strict)} readings)")
    lines += [f"  FAILED: {reason}" for reason in result.reasons]
    return "\n".join(lines) + "\n"


def render_report(report: DrillReport) -> str:
    """The last lines of a run: one for each row, however often it was run, and the verdict.
    `packets` are the UDP probes', a thousand a second each."""
    runs: dict[str, list[DrillResult]] = {}
    for result in report.drills:
        runs.setdefault(result.title, []).append(result)
    head = (
        "drill", "runs", "verdict", "moves", "outage ms", "packets", "unanswered", "flows lost",
        "dual (a)", "dual (b)", "seconds",
    )  # fmt: skip
    lines = table(head, [_summary(title, results) for title, results in runs.items()])
    without = f", without {', '.join(report.without)}" if report.without else ""
    failed = sum(not result.passed for result in report.drills)
    verdict = f"{failed} of {len(report.drills)} FAILED" if failed else "all passed"
    lines.append(
        f"{len(report.drills)} drills, {verdict}, in {report.seconds:.0f} s "
        f"(heartbeat {report.heartbeat_ms} ms, lease {report.lease_ms} ms{without})"
    )
    if report.unjudged:
        lines.append(
            f"{report.unjudged} more had no verdict, because this machine stood still for half a "
            "lease; they were made again"
        )
    return "\n".join(lines) + "\n"


def _summary(title: str, results: Sequence[DrillResult]) -> tuple[str, ...]:
    probes = [probe for result in results for probe in result.probes]
    steps = [step for result in results for step in result.steps]
    udp = [probe for probe in probes if probe.name.endswith(" udp")]
    failed = sum(not result.passed for result in results)
    words = "passed" if not failed else "FAILED" if failed == len(results) else f"{failed} FAILED"
    gates = [result.gate for result in results if result.gate]
    frames = [result.frames for result in results if result.frames]
    return (
        title,
        str(len(results)),
        words,
        str(sum(step.holder_after != step.holder_before for step in steps)),
        _outages(steps),
        str(sum(probe.before + probe.after + probe.missing for probe in udp)),
        str(sum(probe.missing for probe in udp)),
        str(sum(bool(probe.lost) for probe in probes)),
        _ms(sum(gate.dual_ms for gate in gates)) if gates else "?",
        _ms(sum(frame.dual_ms for frame in frames)) if frames else "-",
        f"{sum(result.seconds for result in results):.1f}",
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return [line(head), *(line(row) for row in rows)]


def _probe_table(probes: Sequence[ProbeResult]) -> list[str]:
    head = ("probe", "IP", "outage ms", "before", "after", "missing", "replica", "flow")
    rows = [
        (
            probe.name,
            f"v{probe.family}",
            _outage(probe),
            _amount(probe.before, probe.unit),
            _amount(probe.after, probe.unit),
            str(probe.missing),
            {True: "yes", False: "no", None: "?"}[probe.replica],
            f"LOST: {probe.lost}" if probe.lost else "alive",
        )
        for probe in probes
    ]
    return table(head, rows) if rows else []


def _step_table(steps: Sequence[StepResult]) -> list[str]:
    head = ("fault", "at s", "ACTIVE", "epoch", "takeover ms", "outage ms", "ready again s")
    rows = [
        (
            step.what,
            f"{step.at_s:.1f}",
            _arrow(step.holder_before, step.holder_after),
            _arrow(format_epoch(step.epoch_before), format_epoch(step.epoch_after)),
            "-" if step.takeover_ms is None else f"{step.takeover_ms:.0f}",
            f"{step.outage_ms:.0f}",
            "-" if step.ready_s is None else f"{step.ready_s:.1f}",
        )
        for step in steps
    ]
    notes = [f"{step.what}: {step.note}" for step in steps if step.note]
    return [*table(head, rows), *notes] if rows else []


def _judge_lines(result: DrillResult) -> list[str]:
    lines = []
    gate = result.gate
    if gate is not None:
        line = (
            f"dual-ACTIVE (a) gates' deadlines: {_ms(gate.dual_ms)} "
            f"(+ {_ms(gate.possible_ms)} within resolution; {gate.samples} samples, gap p99 "
            f"{gate.sample_gap_p99_ms:.2f} ms, max {gate.sample_gap_max_ms:.2f} ms; "
            f"devices at least every {gate.look_gap_max_ms:.0f} ms)"
        )
        if gate.allowed_ms:
            line += f"; accept overlap in commanded moves {_ms(gate.allowed_ms)} (allowed)"
        if gate.unguarded_ms:
            line += f"; virtual MAC devices up without the gate for {gate.unguarded_ms:.0f} ms"
        lines.append(line)
    frames = result.frames
    if frames is not None:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(frames.forwarded.items()))
        line = (
            f"dual-ACTIVE (b) forwarded frames: {_ms(frames.dual_ms)} "
            f"({frames.injected} injected into each; forwarded by {counts})"
        )
        if frames.allowed_ms:
            line += f"; in commanded moves {_ms(frames.allowed_ms)} (allowed)"
        if frames.apart:
            line += f"; {frames.apart} forwarded twice at different moments (allowed)"
        lines.append(line)
    lines.append(f"agents' ticks were at most {result.agent_late_ms:.1f} ms late")
    return lines


def _outages(steps: Sequence[StepResult]) -> str:
    ordered = sorted(step.outage_ms for step in steps)
    if not ordered:
        return "-"
    if len(ordered) == 1:
        return f"{ordered[0]:.0f}"
    return f"{percentile(ordered, 50):.0f} median, {ordered[-1]:.0f} max"


def _outage(probe: ProbeResult) -> str:
    if probe.outage_ms is None:
        return "-"
    if probe.outage_ms == 0:
        return f"<{probe.resolution_ms:.0f}"
    return f"{probe.outage_ms:.0f}"


def _ms(milliseconds: float) -> str:
    """Never rounded to 0 unless it is."""
    if milliseconds == 0:
        return "0 ms"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.3g} ms"


def _amount(count: int, unit: str) -> str:
    if unit == "bytes":
        return f"{count / 1e6:.1f} MB"
    return str(count)


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _is_number(cell: str) -> bool:
    return cell.lstrip("<-").replace(".", "", 1).removesuffix(" MB").isdigit() or cell == "-"
