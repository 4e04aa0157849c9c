"""Conducts one drill: probes up, faults one after another, everything measured. Shell.

    with Conductor(lab, say, octets_s=..., frames=True) as conductor:
        conductor.establish()
        conductor.fault("silence gw1", act, takeover="must")
        ...                                # the node is brought back
        conductor.returned()
        result = conductor.finish("power-cut", "heal")

A step that goes wrong is noted and the drill goes on to its end, because what comes after a
failure is worth knowing too; only what makes going on pointless raises `HafwError`. Leaving the
block ends the probes and judges and mends every fault.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from hafw.errors import StateError
from hafw.flow import IPPROTO_ICMP, Tuple
from hafw.lab.drill_steps import (
    NO_NODE,
    Step,
    Takeover,
    allowed_ms,
    dark_ns,
    fault_windows,
    gave_up,
    packets_lost,
    probe_result,
    step_result,
    worst_udp_ms,
)
from hafw.lab.faults import DRILL_GROUP, Faults, Holder, Sight, is_established, wait_until
from hafw.lab.judges import MoveWindow
from hafw.lab.lab import Lab
from hafw.lab.machine_faults import MachineFaults
from hafw.lab.probe_judges import FrameJudge, GateJudge
from hafw.lab.probe_loop import now_ns
from hafw.lab.probe_record import lost_reason
from hafw.lab.probes import Probe, ProbeSet, Snapshot, lab_addresses, plan_probes, tuple_of
from hafw.lab.report import DrillResult, ProbeResult, StrictReading, judge_drill

__all__ = ["ALIVE_BOUND_S", "Conductor", "Say"]

ESTABLISH_BOUND_S = 10.0
ESTABLISHED_BEFORE_S = 1.2
TAKEOVER_BOUND_S = 10.0
ALIVE_BOUND_S = 10.0
"""A flow without a right exchange this long after a fault (or a return) is lost."""
READY_BOUND_S = 20.0
STREAM_BOUND_S = 30.0
POLL_S = 0.05

HOLD_S = 1.0
"""How long a fault lasts after which nothing may move: ten leases."""
REPLICA_BOUND_S = 3.0
PINGS, PING_S = 3, 0.2

Say = Callable[[str], None]


class Conductor:
    """One drill's probes, judges, faults and notes."""

    def __init__(
        self,
        lab: Lab,
        say: Say,
        *,
        octets_s: int,
        frames: bool,
        kinds: frozenset[str] | None = None,
        families: tuple[int, ...] = (4, 6),
        lossless: bool = False,
    ) -> None:
        """`lossless`: a drill in which every packet must arrive and be answered."""
        self.lab = lab
        self.sight = Sight(lab)
        self.faults = Faults(lab)
        self.machine = MachineFaults(lab)
        self._say = say
        self._frames, self._lossless = frames, lossless
        self._addresses = tuple(a for a in lab_addresses(lab.config) if a.family in families)
        self._plan = plan_probes(self._addresses, octets_s=octets_s, kinds=kinds)
        self._stack = ExitStack()
        self._steps: list[Step] = []
        self._moves: list[MoveWindow] = []
        self._strict: list[StrictReading] = []
        self._problems: list[str] = []
        self._lost: dict[int, str] = {}
        self._established_ns: dict[int, int] = {}
        self._tuples: dict[int, Tuple] = {}
        self._replicas: dict[int, bool] = {}
        self._first: Snapshot | None = None
        self._began = time.monotonic()
        self._began_ns = now_ns()

    def __enter__(self) -> Self:
        try:
            # Mended last, when nothing looks at the faults any more.
            self._stack.callback(self.faults.mend)
            self._stack.callback(self.machine.mend)
            config_file = self.lab.config_file
            self.gate_judge = GateJudge(config_file, DRILL_GROUP)
            self._stack.callback(self.gate_judge.close)
            self.frame_judge: FrameJudge | None = None
            if self._frames:
                self.frame_judge = FrameJudge(config_file, self._addresses)
                self._stack.callback(self.frame_judge.close)
            self.probes = ProbeSet(self._spawn, self._addresses, self._plan)
            self._stack.callback(self.probes.close)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def client_address(self) -> str:
        """The client's, behind the LAN."""
        return self._addresses[0].client

    def _spawn(
        self, host: str, argv: Sequence[str], options: dict[str, Any]
    ) -> subprocess.Popen[bytes]:
        return self.lab.spawn(host, argv, **options)

    # ---- before the first fault ---------------------------------------------------------------

    def establish(self) -> None:
        """Open all flows and wait until each has been established long enough, by the ACTIVE
        node's own conntrack table. Raises StateError that names those that are not."""
        self._say("starting probes")
        self._strict += self.sight.strict("at the beginning")
        self.probes.start()
        active = self.sight.holder().node
        if not wait_until(ESTABLISH_BOUND_S, lambda: self._all_established(active), poll_s=POLL_S):
            missing = ", ".join(
                f"{probe.name} IPv{probe.spec.family}"
                for probe in self._plan
                if probe.spec.flow not in self._established_ns
            )
            raise StateError(
                f"not established through {active} within {ESTABLISH_BOUND_S:g} s: {missing}"
            )
        latest_ns = max(self._established_ns.values())
        time.sleep(max(ESTABLISHED_BEFORE_S - (now_ns() - latest_ns) / 1e9, 0.0))

    def _all_established(self, active: str) -> bool:
        table = self.sight.conntrack(active)
        seen_ns = now_ns()
        flows = self.probes.snapshot().flows
        for probe in self._plan:
            report = flows[probe.spec.flow]
            if report.state == "failed":
                raise StateError(f"{probe.name} IPv{probe.spec.family}: {report.error}")
            if probe.spec.flow in self._established_ns or not report.exchanges:
                continue
            self._tuples[probe.spec.flow] = tuple_of(probe, report)
            if is_established(table.get(self._tuples[probe.spec.flow])):
                self._established_ns[probe.spec.flow] = seen_ns
        return len(self._established_ns) == len(self._plan)

    def _look_before_first_fault(self, active: str) -> None:
        replicas: set[Tuple] = set()
        for peer in self.sight.others(active):
            replicas |= self.sight.conntrack(peer).keys()
        self._replicas = {flow: key in replicas for flow, key in self._tuples.items()}
        self._first = self.probes.snapshot()

    # ---- faults -------------------------------------------------------------------------------

    def fault(
        self,
        what: str,
        act: Callable[[str], int],
        takeover: Takeover,
        *,
        commanded: bool = False,
        within_t: float | None = None,
        hold_s: float = HOLD_S,
        before: Holder | None = None,
        bound_s: float = TAKEOVER_BOUND_S,
    ) -> None:
        """Do something to the cluster and see that the flows live. `act` gets the ACTIVE node and
        returns the moment just before it acted. `commanded`: the ACTIVE node gives its lease up,
        so both may accept for one more. `within_t`: for how many leases packets may be held up, if
        not as usual (`allowed_ms`). `hold_s`: how long nothing may move, if nothing may.
        `before`: who is ACTIVE, if not whose gate is open. `bound_s`: for a takeover."""
        self._strict += self.sight.strict(f"before {what}")
        before = before or self.sight.holder()
        if self._first is None and self._tuples:
            self._look_before_first_fault(before.node)
        self._say(what)
        fault_ns = act(before.node)
        step = Step(what, fault_ns, before, before, takeover, commanded=commanded)
        if before != NO_NODE:
            lease_ms = self.lab.config.lease.lease_ms
            step.within_ms = allowed_ms(takeover, within_t, lease_ms, given=commanded)
        self._steps.append(step)
        stays = takeover in ("stays", "never")
        if stays:
            time.sleep(max(hold_s - (now_ns() - fault_ns) / 1e9, 0.0))
        elif not wait_until(bound_s, lambda: self._is_carried(step)):
            who = "nobody else was ACTIVE" if takeover == "must" else "no new epoch began"
            step.problems.append(f"{who} within {bound_s:g} s")
        elif commanded:
            lease_ns = self.lab.config.lease.lease_ms * 1_000_000
            self._moves.append(MoveWindow(fault_ns, now_ns() + lease_ns, lease_ns))
        self._note_holder(step)
        self._check_alive(0.0 if stays else (now_ns() - fault_ns) / 1e9)
        self._strict += self.sight.strict(f"after {what}")

    def _is_carried(self, step: Step) -> bool:
        open_now = self.sight.open_gateways()
        if step.takeover == "must":
            return any(node != step.before.node for node in open_now)
        return any(self.sight.epoch(node) > step.before.epoch for node in open_now)

    def _note_holder(self, step: Step) -> None:
        for node in self.sight.open_gateways():
            epoch = self.sight.epoch(node)
            if epoch >= step.after.epoch:
                step.after = Holder(node, epoch)

    def _check_alive(self, spent_s: float = 0.0) -> None:
        """Every flow that is not lost yet must exchange something new, in time."""
        if not self._tuples:
            return  # None has been opened yet.
        before = self.probes.snapshot()
        self.probes.exchange()
        left_s = max(ALIVE_BOUND_S - spent_s, 1.0)
        wait_until(left_s, lambda: not self._why_lost(before), poll_s=POLL_S)
        for flow, why in self._why_lost(before).items():
            self._lost.setdefault(flow, why)

    def _why_lost(self, before: Snapshot) -> dict[int, str]:
        after = self.probes.snapshot()
        found = {}
        for probe in self._plan:
            flow = probe.spec.flow
            if flow not in self._lost:
                why = lost_reason(
                    before.flows[flow],
                    after.flows[flow],
                    exchanges=probe.exchanges_min,
                    bound_s=ALIVE_BOUND_S,
                )
                if why:
                    found[flow] = why
        return found

    def require(self, what: str, claim: bool) -> None:
        """What the drill says of itself must be true; then it is a note of the last step."""
        step = self._steps[-1]
        if claim:
            step.notes.append(what)
        else:
            step.problems.append(f"not so: {what}")

    def await_claim(self, what: str, bound_s: float, claim: Callable[[], bool]) -> None:
        """What must become true after the last step, and how long after it."""
        step = self._steps[-1]
        if wait_until(bound_s, claim, poll_s=POLL_S):
            step.notes.append(f"{what} {(now_ns() - step.fault_ns) / 1e9:.1f} s after it")
        else:
            step.problems.append(f"not so within {bound_s:g} s: {what}")

    def expect_replica(self, when: str) -> None:
        """A flow that begins now gets its replica on every other gateway. Raises StateError."""
        active = self.sight.holder().node
        old = self.sight.conntrack(active).keys()
        place = self._addresses[0]
        words = ["ping", "-q", "-c", str(PINGS), "-i", str(PING_S), "-W", "1", place.server]
        self.lab.spawn("client", words, stdout=subprocess.DEVNULL).wait(PINGS + 1)
        fresh = {
            key
            for key, entry in self.sight.conntrack(active).items()
            if key.proto == IPPROTO_ICMP and is_established(entry)
        } - old
        held = bool(fresh) and wait_until(
            REPLICA_BOUND_S,
            lambda: all(
                fresh <= self.sight.conntrack(peer).keys() for peer in self.sight.others(active)
            ),
            poll_s=POLL_S,
        )
        self.require(f"a flow that began {when} has its replica", held)

    def wait_whole(self, bound_s: float) -> None:
        """Between two steps: ready, all voters voting. Raises StateError."""
        self.lab.wait_ready(bound_s)
        if not wait_until(bound_s, lambda: not self.sight.mute_voters(), poll_s=POLL_S):
            raise StateError("; ".join(self.sight.mute_voters()))

    def returned(self, also: Callable[[], bool] = lambda: True) -> None:
        """The cluster is whole again: ready, all voters voting, and `also` what the drill wants;
        then the flows must live still. What is missing is a problem of the last step."""
        step = self._steps[-1]
        self._say("waiting until the cluster is whole again")
        began = time.monotonic()
        if not wait_until(READY_BOUND_S, also, poll_s=POLL_S):
            step.problems.append(f"the killed process did not return within {READY_BOUND_S:g} s")
        try:
            self.lab.wait_ready(READY_BOUND_S)
        except StateError as error:
            step.problems.append(str(error))
        if not wait_until(READY_BOUND_S, lambda: not self.sight.mute_voters(), poll_s=POLL_S):
            step.problems.append("; ".join(self.sight.mute_voters()))
        step.ready_s = time.monotonic() - began
        self._note_holder(step)
        self._check_alive()
        self._strict += self.sight.strict(f"after the return from {step.what}")

    def wait_streams(self, octets: int) -> None:
        """Wait until every stream has carried this much since now, and bytes are right."""
        before = self.probes.snapshot()
        streams = [
            probe.spec.flow
            for probe in self._plan
            if probe.is_stream and probe.spec.flow not in self._lost
        ]

        def carried() -> bool:
            flows = self.probes.snapshot().flows
            return all(flows[f].octets - before.flows[f].octets >= octets for f in streams)

        self._say(f"waiting for {octets / 1e6:.0f} MB per stream")
        if not wait_until(STREAM_BOUND_S, carried, poll_s=POLL_S):
            self._problems.append(
                f"a stream did not carry {octets / 1e6:.0f} MB within {STREAM_BOUND_S:g} s"
            )

    # ---- the end ------------------------------------------------------------------------------

    def finish(self, drill: str, variant: str, problem: str = "") -> DrillResult:
        """Stop looking and judge. `problem`: why the drill could not go on, if it could not."""
        self._strict += self.sight.strict("at the end")
        record = self.gate_judge.take()
        last = self.probes.final()
        if self._lossless:
            self._problems += packets_lost(self._plan, last.flows, self._steps)
        self._problems += [f"a stranger spoke to {words}" for words in last.strangers]
        windows = fault_windows([step.fault_ns for step in self._steps], last.taken_ns)
        opened = [probe for probe in self._plan if probe.spec.flow in last.flows]
        steps = [
            step_result(
                step,
                window,
                began_ns=self._began_ns,
                taken_ns=record.takeover_ns(step.fault_ns, step.before.node),
                outage_ms=worst_udp_ms(self._plan, last.flows, window) if self._first else 0.0,
                given=step.commanded and gave_up(record.changes(step.before.node), step.fault_ns),
            )
            for step, window in zip(self._steps, windows, strict=True)
        ]
        frames = None
        if self.frame_judge:
            faults_ns = [step.fault_ns for step in self._steps]
            frames = self.frame_judge.verdict(self._moves, faults_ns, dark_ns=dark_ns(steps))
        result = DrillResult(
            drill=drill,
            variant=variant,
            seconds=time.monotonic() - self._began,
            probes=[self._probe_result(probe, last, windows) for probe in opened],
            steps=steps,
            gate=record.verdict(self._moves, dark=bool(dark_ns(steps))),
            frames=frames,
            strict=self._strict,
            agent_late_ms=last.late_ms,
        )
        return judge_drill(result, [problem, *self._problems] if problem else self._problems)

    def _probe_result(
        self, probe: Probe, last: Snapshot, windows: Sequence[tuple[int, int]]
    ) -> ProbeResult:
        flow = probe.spec.flow
        return probe_result(
            probe,
            self._first.flows[flow] if self._first else None,
            last.flows[flow],
            windows,
            established_ns=self._established_ns.get(flow),
            replica=self._replicas.get(flow),
            lost=self._lost.get(flow, ""),
        )
