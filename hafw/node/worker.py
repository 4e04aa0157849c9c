"""Run a worker process to its end, bounded in time. Heavy or blocking work of hafwd (devices by
pyroute2, policy loads) is done by workers, so that nothing it does can stall the API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["WorkerResult", "children_on", "run_worker"]

OUTPUT_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """`error` is empty if it ended with exit code 0, else one line for a person."""

    stdout: bytes
    error: str


@contextmanager
def children_on(cpus: frozenset[int]) -> Iterator[None]:
    """What this thread starts meanwhile may use `cpus`, though this process keeps to fewer."""
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
        yield
    finally:
        os.sched_setaffinity(0, mine)


async def run_worker(
    command: Sequence[str], *, timeout_s: float, cpus: frozenset[int]
) -> WorkerResult:
    """Never raises for what the worker does; it is killed when the time is up, and when the
    caller is cancelled."""
    name = command[-1] if len(command) < 3 else command[2]  # python -m MODULE ...
    try:
        with children_on(cpus):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                limit=OUTPUT_BYTES_MAX,
            )
    except OSError as error:
        return WorkerResult(b"", f"{name} cannot be started: {error.strerror}")
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        return WorkerResult(b"", f"{name} did not end within {timeout_s:g} s and was killed")
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return WorkerResult(stdout, "")
    return WorkerResult(stdout, _reason(stderr) or f"{name} ended with {process.returncode}")


def _reason(stderr: bytes) -> str:
    """All ``NAME: error: …`` lines joined, without the names; else the last line."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.split(": error: ", 1)[1] for line in lines if ": error: " in line[:60]]
    return "; ".join(errors) if errors else (lines[-1].strip() if lines else "")
