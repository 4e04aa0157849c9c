"""The judges' processes, as the conductor has them: start, take a record, get a verdict. Shell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hafw.config.load import load_cluster
from hafw.lab.judges import (
    FORWARDED_SHARE_MIN,
    Change,
    FrameVerdict,
    GateVerdict,
    MoveWindow,
    judge_frames,
    judge_gates,
    taken_over_ns,
)
from hafw.lab.probe_frames import FrameRecord
from hafw.lab.probe_gate import DeadlineRecord, DeviceRecord
from hafw.lab.probe_loop import TICK_NS
from hafw.lab.probe_process import LineProcess, spawn_here
from hafw.lab.probes import Addresses

__all__ = ["AnswerJudge", "FrameJudge", "GateJudge", "GateRecord"]

ASK_S = 10.0
_ASK = b'{"op": "report"}'


class GateRecord(msgspec.Struct, frozen=True):
    """What judge (a) saw of one group since the last record."""

    deadlines: DeadlineRecord
    devices: DeviceRecord
    group: str
    lease_ns: int

    def changes(self, node: str) -> list[Change]:
        return self.deadlines.changes[node][self.group]

    def takeover_ns(self, after_ns: int, not_by: str) -> int | None:
        """When another gateway's gate opened after a fault."""
        moments = [
            moment
            for node in self.deadlines.changes
            if node != not_by
            and (moment := taken_over_ns(self.changes(node), after_ns)) is not None
        ]
        return min(moments, default=None)

    def verdict(self, moves: Sequence[MoveWindow], *, dark: bool = False) -> GateVerdict:
        """`dark`: all nodes have started at once."""
        nodes = sorted(self.deadlines.changes)
        return judge_gates(
            [self.changes(node) for node in nodes],
            [self.devices.unguarded[node][self.group] for node in nodes],
            end_ns=self.deadlines.end_ns,
            moves=moves,
            sample_gaps_ns=self.deadlines.gaps_ns,
            look_gap_ns=self.devices.gap_ns_max,
            lease_ns=self.lease_ns,
            dark=dark,
            problem="" if self.devices.looks else "nobody looked at the devices",
        )


class GateJudge:
    """Judge (a): the sampler of deadlines and the watch over devices."""

    def __init__(self, config_file: Path, group: str, prefix: str = "hafw-") -> None:
        arguments = ("--config", str(config_file), "--prefix", prefix)
        module = "hafw.lab.probe_gate"
        self._group = group
        self._lease_ns = load_cluster(config_file).lease.lease_ms * 1_000_000
        self._children = [LineProcess(spawn_here, "", module, "deadlines", *arguments)]
        try:
            self._children.append(LineProcess(spawn_here, "", module, "devices", *arguments))
            self.take()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The judge's processes."""
        return [child.pid for child in self._children]

    def take(self) -> GateRecord:
        """What was seen since the last call."""
        deadlines, devices = (child.ask(_ASK, timeout_s=ASK_S) for child in self._children)
        return GateRecord(
            msgspec.json.decode(deadlines, type=DeadlineRecord),
            msgspec.json.decode(devices, type=DeviceRecord),
            self._group,
            self._lease_ns,
        )

    def close(self) -> None:
        for child in self._children:
            child.close()


class _NumberJudge:
    """A child that gives a number a millisecond to every gateway and notes who took it."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._child = LineProcess(spawn_here, "", module, *arguments)
        try:
            self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> FrameRecord:
        return msgspec.json.decode(self._child.ask(_ASK, timeout_s=ASK_S), type=FrameRecord)

    def verdict(
        self,
        moves: Sequence[MoveWindow],
        faults_ns: Sequence[int] = (),
        *,
        share_min: float = FORWARDED_SHARE_MIN,
        dark_ns: int = 0,
    ) -> FrameVerdict:
        """Over everything since the last `take` or `verdict`. `faults_ns`: when, ascending;
        `dark_ns`: how long nobody could forward."""
        record = self.take()
        problem = ""
        if record.strayed:
            problem = f"{record.strayed} frames left by a gateway they were not given to"
        return judge_frames(
            record.dual,
            interval_ns=TICK_NS,
            injected=record.injected,
            forwarded=record.forwarded,
            moves=moves,
            faults_ns=faults_ns,
            unnoted=record.unnoted,
            share_min=share_min,
            dark_ns=dark_ns,
            problem=problem,
        )

    def close(self) -> None:
        self._child.close()


class FrameJudge(_NumberJudge):
    """Judge (b): marked frames into every gateway's port."""

    def __init__(
        self, config_file: Path, addresses: Sequence[Addresses], switch: str = "hafw-sw"
    ) -> None:
        arguments = ["--config", str(config_file), "--switch", switch]
        for place in addresses:
            arguments += ["--client", place.client, "--server", place.server]
        super().__init__("hafw.lab.probe_frames", *arguments)


class AnswerJudge(_NumberJudge):
    """Who answers for the LAN's VIP: the one question that any system of virtual addresses can be
    asked."""

    def __init__(self, config_file: Path, vip: str, switch: str = "hafw-sw") -> None:
        arguments = ("--config", str(config_file), "--switch", switch, "--vip", vip)
        super().__init__("hafw.lab.probe_answers", *arguments)
