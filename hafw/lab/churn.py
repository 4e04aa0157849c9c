"""Churn under loss, then both tables compared: does replication leave the same state? Shell.

1. gw1 holds the group; frames on both sync links are lost at random, both ways.
2. Flows of every kind come, change, are re-used and go (`churn_maker`). In the middle the
   receiver is killed, and started again a little later.
3. Loss goes on until both registries count alike; then one sweep over all flows by the holder:
   the refresh that would come anyway, or at once, by a new epoch (`sweep`).
4. An independent reader compares both tables, field by field (`ct_compare`).
5. gw2 takes over, and the connections that really send (`churn_traffic`) go through it: none may
   still be liberal after 5 s of packets both ways, none may break.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec

from hafw.errors import HafwError
from hafw.kernel.netns import entered
from hafw.lab import machine
from hafw.lab.churn_maker import ChurnMaker
from hafw.lab.churn_traffic import Traffic
from hafw.lab.ct_compare import Comparison, compare
from hafw.lab.sync_network import CLIENT, GROUP
from hafw.lab.sync_spaces import SyncNode, SyncSpaces, sync_spaces, wait_for
from sync.ctsocket import RequestSocket

__all__ = ["ChurnPlan", "ChurnReport", "churn_to_json", "render_churn", "run_churn"]

Say = Callable[[str], None]
LIBERAL_AFTER_S = 5.0
STEADY_S = 0.4
DOWN_SHARE = 0.05
"""Of all flows: as many are made while the receiver is down."""
DOWN_S_MIN = 1.0
LIVE_FROM = 0.75
"""Of all flows: the others wait until the receiver is synced again."""


@dataclass(frozen=True, slots=True)
class ChurnPlan:
    """The sizes of a run. `standing` flows live at its end; `bound_s` bounds each wait."""

    flows: int = 1_000_000
    standing: int = 300_000
    rate: float = 10_000.0
    loss_percent: int = 1
    connections: int = 200
    seed: int = 1
    sweep: Literal["refresh", "take"] = "refresh"
    hold_s: int = 900
    refresh_s: int = 60
    bound_s: float = 900.0


class ChurnReport(msgspec.Struct):
    """What came of it; times in seconds. Passed if `problems` is empty."""

    flows: int
    seed: int
    codec: str = ""
    churn_s: float = 0.0
    requests: dict[str, int] = {}
    refused: dict[str, int] = {}
    frames_lost: int = 0
    down_s: float = 0.0
    back_s: float = 0.0
    settled_s: float = 0.0
    swept_s: float = 0.0
    compared: int = 0
    not_worth: int = 0
    on_replica: int = 0
    differences: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    connections: int = 0
    strict_again_s: float | None = None
    liberal_after_5_s: int = 0
    owner_counters: dict[str, int] = {}
    replica_counters: dict[str, int] = {}
    problems: list[str] = []


def run_churn(plan: ChurnPlan, say: Say) -> ChurnReport:
    """The whole run in namespaces of its own. What is wrong is in the report's problems."""
    report = ChurnReport(plan.flows, plan.seed)
    with (
        machine.room_for(plan.standing * 2 + 100_000),
        sync_spaces(hold_s=plan.hold_s, refresh_s=plan.refresh_s, labels=True) as spaces,
    ):
        say("starting two syncds")
        try:
            _run(plan, spaces, report, say)
        except HafwError as error:
            report.problems.append(f"stopped early: {error}")
        report.problems += [f"a daemon failed: {text}" for text in spaces.tracebacks()]
    return report


def _run(plan: ChurnPlan, spaces: SyncSpaces, report: ChurnReport, say: Say) -> None:
    spaces.start()
    spaces.carry(1)
    report.codec = spaces[1].status().codec
    traffic = Traffic(spaces.client, spaces.server, plan.connections)
    try:
        with _requests(spaces[1]) as owner, _requests(spaces[2]) as replica:
            _churn(plan, spaces, report, owner, replica, say)
            say("waiting until both count alike")
            _settle(plan, spaces, report)
            say(f"waiting for the sweep ({plan.sweep})")
            swept_from = time.monotonic()
            report.swept_s = _sweep(plan, spaces)
            _settle(plan, spaces, report)
            report.frames_lost = spaces.lost_frames()
            _compare(plan, spaces, report, time.monotonic() - swept_from, say)
            report.owner_counters = spaces[1].status().counters
            report.replica_counters = spaces[2].status().counters
            say("gw2 takes over")
            _take_over(spaces, report, traffic, replica)
    finally:
        traffic.close()


@contextmanager
def _requests(node: SyncNode) -> Iterator[RequestSocket]:
    with entered(node.space):
        sock = RequestSocket()
    with sock:
        yield sock


def _churn(
    plan: ChurnPlan, spaces: SyncSpaces, report: ChurnReport,
    owner: RequestSocket, replica: RequestSocket, say: Say,
) -> None:  # fmt: skip
    maker = ChurnMaker(
        owner,
        replica,
        flows=plan.flows,
        standing=plan.standing,
        seed=plan.seed,
        group=GROUP,
    )
    node, down_at, starting = spaces[2], 0.0, threading.Thread(target=spaces[2].start)

    def between(made: int) -> None:
        nonlocal down_at
        if not down_at and made >= plan.flows // 2:
            node.stop(signal.SIGKILL)
            down_at = time.monotonic()
        elif down_at and not report.down_s and made >= plan.flows * (0.5 + DOWN_SHARE):
            time.sleep(max(0.0, down_at + DOWN_S_MIN - time.monotonic()))
            report.down_s = time.monotonic() - down_at
            starting.start()
        elif report.down_s and not report.back_s and made >= plan.flows * LIVE_FROM:
            # The rest comes live, or all would come by the snapshot alone.
            starting.join()
            wait_for(
                lambda: f"gw2 synced again ({node.reason})", lambda: node.synced, plan.bound_s
            )
            report.back_s = time.monotonic() - down_at
        if made % 10_000 == 0:
            say(f"{made:,} of {plan.flows:,} flows made")

    spaces.lose(plan.loss_percent)
    report.churn_s = maker.run(plan.rate, between)
    report.requests, report.refused = dict(maker.done), dict(maker.refused)
    report.problems += [
        f"the generator was refused: {name} {count}"
        for name, count in maker.refused.items()
        if name.startswith("wrong_")
    ]


def _settle(plan: ChurnPlan, spaces: SyncSpaces, report: ChurnReport) -> None:
    """Both registries count alike, and go on doing so: events that wait are not counted."""
    facts, last, since = "", (-1, -1), 0.0

    def alike() -> bool:
        nonlocal facts, last, since
        one, other = spaces[1].status(), spaces[2].status()
        owned, replicas = one.groups[0].owned, other.groups[0].replicas
        facts = f"owned {owned}, replicas {replicas}; {other.groups[0].reason}"
        if owned != replicas or (owned, replicas) != last:
            last, since = (owned, replicas), time.monotonic()
        steady = owned == replicas and time.monotonic() - since >= STEADY_S
        return steady and other.groups[0].synced and one.groups[0].synced

    report.settled_s += wait_for(lambda: f"equal counts ({facts})", alike, plan.bound_s)


def _sweep(plan: ChurnPlan, spaces: SyncSpaces) -> float:
    """A pass over all flows that began after the churn. Seconds until it ended."""
    name = f"passes_{plan.sweep}"
    before = spaces[1].counter(name)
    if plan.sweep == "take":
        spaces.lead(1, contiguous=True)

    def done() -> bool:
        status = spaces[1].status()
        one = status.groups[0].own_pass
        begun = status.counters.get(name, 0) > before
        return begun and one is not None and one.kind == plan.sweep and not one.running

    return wait_for(f"a pass over all flows ({name})", done, plan.bound_s)


def _compare(
    plan: ChurnPlan, spaces: SyncSpaces, report: ChurnReport, refreshed_s: float, say: Say
) -> None:
    """`refreshed_s`: since a sweep began to say all flows."""
    found: Comparison = compare(
        spaces[1].space,
        spaces[2].space,
        hold_s=plan.hold_s,
        sender=CLIENT,
        refreshed_s=refreshed_s,
        say=say,
    )
    report.compared, report.not_worth = found.owner, found.not_worth
    report.on_replica = found.replica
    report.differences, report.examples = dict(found.differences), found.examples
    report.problems += [
        f"tables differ: {what} of {count} flows" for what, count in found.differences.items()
    ]
    if not found.owner:
        report.problems.append("nothing was compared: the owner has no flow worth a replica")


def _take_over(
    spaces: SyncSpaces, report: ChurnReport, traffic: Traffic, node: RequestSocket
) -> None:
    before = traffic.progress()
    begun = time.monotonic()
    spaces.carry(2)
    spaces.lead(2)
    while (passed := time.monotonic() - begun) < LIBERAL_AFTER_S:
        if not traffic.liberal(node):
            report.strict_again_s = passed
            break
        time.sleep(0.05)
    report.connections = len(before)
    report.liberal_after_5_s = traffic.liberal(node)
    if report.liberal_after_5_s:
        report.problems.append(
            f"{report.liberal_after_5_s} flows are liberal after 5 s of packets both ways"
        )
    stuck = sum(after <= old for after, old in zip(traffic.progress(), before, strict=True))
    if stuck or traffic.broken:
        report.problems.append(f"{stuck} connections stand still, broken: {traffic.broken[:3]}")


def render_churn(report: ChurnReport) -> str:
    """For people. Pure."""
    requests = ", ".join(f"{count} {name}" for name, count in report.requests.items())
    strict = (
        f"{report.liberal_after_5_s} still liberal after {LIBERAL_AFTER_S:g} s"
        if report.strict_again_s is None
        else f"all strict after {report.strict_again_s:.1f} s"
    )
    lines = [
        f"churn of {report.flows} flows in {report.churn_s:.1f} s (seed {report.seed}, codec "
        f"{report.codec}): {requests}",
        f"{report.frames_lost} frames lost on the sync links; receiver down "
        f"{report.down_s:.1f} s, synced again after {report.back_s:.1f} s",
        f"settled in {report.settled_s:.1f} s, swept in {report.swept_s:.1f} s",
        f"compared: {report.compared} flows with {report.on_replica} entries of the replica; "
        f"{report.not_worth} not worth a replica",
        f"{report.connections} connections through the other node: {strict}",
    ]
    for what, texts in report.examples.items():
        lines += [f"{what}: {text}" for text in texts]
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    lines.append("the tables are equal" if not report.problems else "FAILED")
    return "\n".join(lines) + "\n"


def churn_to_json(report: ChurnReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
