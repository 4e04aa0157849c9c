"""The node's devices, gate and sysctls, kept as they should be. Shell over the set-up worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from hafw.errors import HafwError
from hafw.node.worker import run_worker

__all__ = ["DeviceKeeper"]

SETUP_S_MAX = 30.0
FAILURES_MAX = 3
"""So many failed repairs in a row, and the node counts as not prepared: another does better."""


class DeviceKeeper:
    """`check` says what is wrong that `command`, the worker, makes right, and what else is."""

    def __init__(
        self,
        check: Callable[[], tuple[list[str], list[str]]],
        command: Sequence[str],
        cpus: frozenset[int],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._check = check
        self._command = command
        self._cpus = cpus
        self._log = log
        self._failed_in_row = 0
        self.prepared = False
        """The devices were right once, and repairs since did not fail for good."""
        self.error = ""
        """Why the last repair failed; empty if it did not."""
        self.others: list[str] = []
        """What is wrong now and not hafw's to mend."""
        self.setups = 0
        self.repairs = 0

    async def look(self) -> str:
        """Check, repair if needed; returns what was repaired ("" if nothing was, or on the first
        set-up)."""
        problems, others = await self._find_problems()
        if others != self.others:
            self._log.warning("interfaces_changed", problems=others)
        self.others = others
        if not problems:
            self._succeed()
            return ""
        self.setups += 1
        result = await run_worker(self._command, timeout_s=SETUP_S_MAX, cpus=self._cpus)
        if result.error:
            self._failed_in_row += 1
            if result.error != self.error:
                self._log.error("node_setup_failed", error=result.error, problems=problems)
            self.error = result.error
            if self._failed_in_row >= FAILURES_MAX:
                self.prepared = False
            return ""
        repaired = self.prepared
        self._succeed()
        if not repaired:
            self._log.info("node_prepared")
            return ""
        self.repairs += 1
        self._log.warning("node_repaired", problems=problems)
        return "; ".join(problems)

    def _succeed(self) -> None:
        self.prepared, self._failed_in_row, self.error = True, 0, ""

    async def _find_problems(self) -> tuple[list[str], list[str]]:
        try:
            # In a thread: pyroute2's calls block, and refuse a thread that runs a loop.
            return await asyncio.to_thread(self._check)
        except (HafwError, OSError) as error:
            return [str(error)], []
