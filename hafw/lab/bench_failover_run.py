"""Failover measured: power cuts of the ACTIVE node, one after the other, in one lab. Shell.

A cut is silence: all frames of the node are dropped both ways in the switch, while the switch goes
on pointing at it. When another node carries the flow again the cut is healed: the node is heard as
it was, and the next fault waits until everything is whole. So a cycle is as short as the system
lets it be. The moment of each cut is drawn within a heartbeat (an advert). Nothing here passes or
fails on time.

*Starved*: two busy loops a CPU beside everything, at the priority of ordinary programs.
"""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from hafw.cpus import usable_cpus
from hafw.errors import HafwError, StateError
from hafw.lab.bench_failover import (
    SYSTEMS,
    FailoverReport,
    FaultResult,
    PartResult,
    Plan,
    SystemSpec,
    in_order,
    share_s,
)
from hafw.lab.failover_systems import LAN_VIP, Cluster, Verdict, running
from hafw.lab.faults import wait_until
from hafw.lab.probe_judges import AnswerJudge
from hafw.lab.probe_record import lost_reason, outage_ns
from hafw.lab.probes import ProbeSet, Snapshot, lab_addresses, plan_probes

__all__ = ["busy_loops", "new_report", "run_failover"]

Say = Callable[[str], None]
TAKEOVER_BOUND_S = 15.0
ALIVE_BOUND_S = 15.0
WHOLE_BOUND_S = 30.0
ESTABLISH_BOUND_S = 10.0
ESTABLISHED_S = 1.0
POLL_S = 0.005
LOOPS_PER_CPU = 2
SOAK_SLICE_S = 20.0
"""hafw's judge is asked this often: its record of samples has a bound."""


def new_report(plan: Plan) -> FailoverReport:
    """With nothing measured yet."""
    return FailoverReport(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel=platform.release(),
        cpus=os.cpu_count() or 0,
        plan=plan,
        parts=[],
    )


def run_failover(
    plan: Plan,
    say: Say,
    record: Callable[[PartResult], None],
    is_done: Callable[[str, str], bool] = lambda _system, _load: False,
) -> None:
    """Each system in a lab of its own, under each load; `record` gets each part as it ends, an
    interrupted one too. Parts that are done are left out."""
    end = time.monotonic() + plan.minutes * 60
    parts = [part for part in in_order(plan) if not is_done(*part)]
    for name in dict.fromkeys(system for system, _ in parts):
        with running(SYSTEMS[name], lambda text, name=name: say(f"{name}: {text}")) as cluster:  # type: ignore[misc]
            while parts and parts[0][0] == name:
                share = share_s(plan, end - time.monotonic(), parts)
                _, load = parts.pop(0)
                say(f"{name}, {load}: at most {share:.0f} s of faults")
                with _Part(plan, SYSTEMS[name], load, cluster, say) as part:
                    try:
                        part.run(share)
                    finally:
                        record(part.result())


@contextmanager
def busy_loops(count: int) -> Iterator[list[int]]:
    """Processes that want a CPU each, all the time; their ids."""
    argv = [sys.executable, "-S", "-E", "-c", "while True: pass"]
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            loop = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
            loops.append(loop)
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


class _Part:
    """One system under one load."""

    def __init__(
        self, plan: Plan, spec: SystemSpec, load: str, cluster: Cluster, say: Say
    ) -> None:
        self._plan, self._spec, self._load = plan, spec, load
        self._cluster, self._lab, self._say = cluster, cluster.lab, say
        self._rng = random.Random(f"{plan.seed} {spec.name} {load}")
        self._faults: list[FaultResult] = []
        self._lost: dict[str, str] = {}
        self._problems: list[str] = []
        self._own = Verdict(0)
        self._false: int | None = None
        self._quiet_s = 0.0
        self._late_ms = 0.0
        self._ended = False
        self._began = time.monotonic()
        addresses = tuple(a for a in lab_addresses(self._lab.config) if a.family == 4)
        self._probes = plan_probes(addresses, octets_s=0, kinds=cluster.kinds)
        self._judge = AnswerJudge(self._lab.config_file, LAN_VIP)
        try:
            self._agents = ProbeSet(
                lambda host, argv, options: self._lab.spawn(host, argv, **options),
                addresses,
                self._probes,
            )
        except BaseException:
            self._judge.close()
            raise

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_error: object) -> None:
        self._agents.close()
        self._judge.close()
        self._lab.heal_all()

    def run(self, share_s: float) -> None:
        """Until all faults are done or the time is over. An error that ends it is a problem of
        the part; an interrupt comes through."""
        loops = LOOPS_PER_CPU * len(usable_cpus()) if self._load == "starved" else 0
        try:
            with busy_loops(loops):
                self._establish()
                end = time.monotonic() + share_s
                while len(self._faults) < self._plan.faults and time.monotonic() < end:
                    count = f"fault {len(self._faults) + 1} of {self._plan.faults}"
                    self._say(f"{self._spec.name}, {self._load}: {count}")
                    self._faults.append(self._fault())
                    self._add(self._cluster.verdict())
                if loops and self._plan.quiet_s:
                    self._soak()
        except HafwError as error:
            self._problems.append(f"stopped early: {error}")
        self._ended = True

    def _establish(self) -> None:
        self._agents.start()
        if not wait_until(ESTABLISH_BOUND_S, self._is_established, poll_s=0.05):
            raise StateError(f"no flow within {ESTABLISH_BOUND_S:g} s: {self._cluster.missing()}")
        time.sleep(ESTABLISHED_S)
        self._wait_whole()
        self._agents.forget()
        self._judge.take()
        self._cluster.verdict()

    def _is_established(self) -> bool:
        flows = self._agents.snapshot().flows
        return all(flows[probe.spec.flow].exchanges for probe in self._probes)

    def _fault(self) -> FaultResult:
        before = self._agents.snapshot()
        time.sleep(self._rng.uniform(0, self._spec.period_ms / 1000))
        node = self._one_holder()
        fault_ns = self._lab.silence(node)
        if not wait_until(TAKEOVER_BOUND_S, lambda: self._is_taken_over(node), poll_s=POLL_S):
            raise StateError(f"nobody took over from {node} within {TAKEOVER_BOUND_S:g} s")
        self._wait_alive(before)
        heal_ns = self._lab.heal(node)
        self._wait_whole()
        self._wait_alive(self._agents.snapshot())
        after = self._agents.snapshot()
        self._agents.forget()
        self._late_ms = max(self._late_ms, after.late_ms)
        answers = self._judge.verdict((), [fault_ns], share_min=0.0)
        if answers.problem:
            self._problems.append(answers.problem)
        return FaultResult(
            node=node,
            outage_ms=self._outage_ms(after, fault_ns, heal_ns),
            return_ms=self._outage_ms(after, heal_ns, after.taken_ns),
            dual_ms=answers.dual_ms,
        )

    def _one_holder(self) -> str:
        """Looked for last of all: on a starved machine the address may move without a fault."""
        found: list[str] = []

        def one() -> bool:
            found[:] = self._cluster.holders()
            return len(found) == 1

        if not wait_until(WHOLE_BOUND_S, one, poll_s=POLL_S):
            raise StateError(f"the address is on {' and '.join(found) or 'no node'}")
        return found[0]

    def _is_taken_over(self, node: str) -> bool:
        return any(holder != node for holder in self._cluster.holders())

    def _outage_ms(self, after: Snapshot, start_ns: int, end_ns: int) -> float:
        flows = [p.spec.flow for p in self._probes if p.spec.kind == "udp"]
        return max(outage_ns(after.flows[flow], start_ns, end_ns) for flow in flows) / 1e6

    def _wait_alive(self, before: Snapshot) -> None:
        """Every flow that is not lost yet has exchanged something new; else it is lost."""
        if wait_until(ALIVE_BOUND_S, lambda: not self._dead(before), poll_s=POLL_S):
            return
        self._lost |= self._dead(before)
        if len(self._lost) == len(self._probes):
            raise StateError("all flows are lost")

    def _dead(self, before: Snapshot) -> dict[str, str]:
        after = self._agents.snapshot()
        found = {}
        for probe in self._probes:
            flow = probe.spec.flow
            why = lost_reason(
                before.flows[flow], after.flows[flow],
                exchanges=probe.exchanges_min, bound_s=ALIVE_BOUND_S,
            )  # fmt: skip
            if why and probe.name not in self._lost:
                found[probe.name] = f"flow lost: {probe.name}: {why}"
        return found

    def _wait_whole(self) -> None:
        if not wait_until(WHOLE_BOUND_S, lambda: not self._cluster.missing(), poll_s=0.02):
            raise StateError(f"not whole within {WHOLE_BOUND_S:g} s: {self._cluster.missing()}")

    def _soak(self) -> None:
        """No fault: whatever moves, moves falsely."""
        self._wait_whole()
        self._cluster.verdict()
        self._false = 0
        while self._quiet_s < self._plan.quiet_s:
            self._say(f"{self._spec.name}, {self._load}: {self._quiet_s:.0f} s without a fault")
            piece_s = min(SOAK_SLICE_S, self._plan.quiet_s - self._quiet_s)
            time.sleep(piece_s)
            self._quiet_s += piece_s
            found = self._cluster.verdict()
            self._false += found.takeovers
            self._add(found)

    def _add(self, found: Verdict) -> None:
        self._own = Verdict(
            takeovers=self._own.takeovers + found.takeovers,
            dual_ms=self._own.dual_ms + found.dual_ms,
            possible_ms=self._own.possible_ms + found.possible_ms,
        )
        if found.problem:
            self._problems.append(found.problem)

    def result(self) -> PartResult:
        """What was measured so far."""
        return PartResult(
            system=self._spec.name,
            load=self._load,
            timers=self._spec.words,
            floor_ms=self._spec.floor_ms,
            faults_wanted=self._plan.faults,
            faults=self._faults,
            flows_lost=list(self._lost.values()),
            own_dual_ms=self._own.dual_ms,
            own_possible_ms=self._own.possible_ms,
            agent_late_ms=self._late_ms,
            quiet_s=self._quiet_s,
            false_takeovers=self._false,
            seconds=time.monotonic() - self._began,
            interrupted=not self._ended,
            problems=list(dict.fromkeys(self._problems)),
        )
