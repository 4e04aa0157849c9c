"""How hafwd starts its children."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hafw.config.model import CpuConfig
from hafw.cpus import plan_cpus, usable_cpus
from hafw.node.processes import LEASED_NICE, Processes
from hafw.node.supervisor import ChildStarted
from hafw.paths import NodePaths


def test_leased_starts_before_the_others_on_a_busy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAFW_RUN_ROOT", str(tmp_path))
    paths = NodePaths("gw1")
    paths.run.mkdir(parents=True)
    own = os.getpriority(os.PRIO_PROCESS, 0)

    async def priorities() -> dict[str, int]:
        ended: asyncio.Queue[str] = asyncio.Queue()
        commands = dict.fromkeys(("leased", "syncd"), ("sleep", "60"))
        processes = Processes(
            paths,
            commands,
            plan_cpus(CpuConfig(), usable_cpus()),
            lambda n, _: ended.put_nowait(n),
        )
        found = {}
        for name in commands:
            started = processes.start(name)
            assert isinstance(started, ChildStarted)
            found[name] = os.getpriority(os.PRIO_PROCESS, started.pid)
            processes.signal(name, kill=True)
        for _ in commands:
            await asyncio.wait_for(ended.get(), 10)
        return found

    assert asyncio.run(priorities()) == {"leased": LEASED_NICE, "syncd": own}
