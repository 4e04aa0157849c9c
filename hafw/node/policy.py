"""The policy in force on this node: load it, keep the old one if the new one fails, notice when
somebody removes it. Shell over the policy worker.

What was loaded is recorded in ``RUN/policy.json``, so that a restarted hafwd knows what the
kernel has. If its tables are still there and neither the policy nor the cluster file changed, it
is taken as it is: restarting hafwd on the ACTIVE node must not disturb traffic. The record lies
in /run and so never outlives the kernel that it speaks about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from hafw.errors import KernelError, RefusedError, StateError
from hafw.instance import write_atomically
from hafw.node.client import LocalClient
from hafw.node.heavy import heavy_work
from hafw.node.status_rows import PolicyFacts
from hafw.node.worker import run_worker
from hafw.paths import NodePaths
from hafw.policy.apply import LOAD_S_MAX, parse_result

__all__ = ["PolicyKeeper", "PolicyRecord", "read_policy_record"]

VERIFY_S_MAX = 60.0


class PolicyRecord(msgspec.Struct, frozen=True):
    """What was loaded last. `source` is a hash over the policy and cluster files' bytes."""

    file: str
    source: str
    hash: str
    rules: int
    seconds: float
    generation: int
    loaded_at: str


def _record_file(paths: NodePaths) -> Path:
    return paths.run / "policy.json"


def read_policy_record(paths: NodePaths) -> PolicyRecord | None:
    """None if nothing was loaded since the machine started, or the record cannot be read."""
    try:
        return msgspec.json.decode(_record_file(paths).read_bytes(), type=PolicyRecord)
    except (OSError, msgspec.MsgspecError):
        return None


@dataclass(frozen=True, slots=True)
class _Failure:
    file: str
    error: str
    source: str


class PolicyKeeper:
    """`command` is the worker's with node and config; `in_kernel` says whether our tables are
    loaded. Not to be used by two tasks at once: `load` refuses while a load runs."""

    def __init__(
        self,
        paths: NodePaths,
        *,
        configured: Path,
        config_file: Path,
        command: list[str],
        cpus: frozenset[int],
        in_kernel: Callable[[], bool],
    ) -> None:
        self._paths = paths
        self._configured = configured
        self._config_file = config_file
        self._command = command
        self._cpus = cpus
        self._in_kernel = in_kernel
        self._record = read_policy_record(paths)
        self._failure: _Failure | None = None
        self._present = in_kernel()
        self._current = configured
        if self._present and self._record is not None:
            self._current = Path(self._record.file)
        self._loading = False
        self.loads = 0
        self.failures = 0
        self.vanished = 0
        self.drift = ""
        """What the last `verify` found changed by somebody else."""
        self.foreign: tuple[str, ...] = ()
        """Other people's base chains, as the last load or `verify` found them."""
        self.foreign_drops: tuple[str, ...] = ()
        """Those of them that can drop what the policy accepts."""

    @property
    def in_force(self) -> bool:
        """The kernel has our tables: a policy that hafw loaded, all of it or nothing."""
        return self._present

    @property
    def wanted_file(self) -> Path:
        """What to load at start, or after somebody removed the tables: what was in force last,
        else the configured file. A hafwd that is restarted does not go back to another policy by
        itself, not even if the file was removed meanwhile and the kernel still has it."""
        if self._present or self._current.exists():
            return self._current
        return self._configured

    def up_to_date(self) -> bool:
        """The loaded policy is what the files say now."""
        record = self._record
        return (
            self.in_force
            and record is not None
            and record.source == self._source(Path(record.file))
        )

    def look(self) -> bool:
        """See whether the tables are still there; False if they vanished since the last look."""
        was = self._present
        self._look()
        if was and not self._present:
            self.vanished += 1
            return False
        return True

    async def verify(self) -> None:
        """Compare what the kernel has with what was loaded; `drift` says what it found. Only a
        comparison that was made counts: a worker that could not run says nothing."""
        if self._loading or not self._present:
            return
        result = await run_worker(
            [*self._command, "--verify"], timeout_s=VERIFY_S_MAX, cpus=self._cpus
        )
        report = parse_result(result.stdout)
        if report is not None and not self._loading:
            self.drift = "" if report.ok else report.error
            self.foreign, self.foreign_drops = report.foreign, report.foreign_drops

    def failed_file_changed(self) -> bool:
        """The file that failed to load is another one by now: worth another try."""
        failure = self._failure
        return failure is not None and self._source(Path(failure.file)) != failure.source

    @property
    def failed_file(self) -> Path | None:
        """The file whose load failed last, if nothing was loaded since."""
        return None if self._failure is None else Path(self._failure.file)

    async def load(self, file: Path | None = None, *, by_hand: bool = False) -> PolicyRecord:
        """Load `file` (default: the configured one), all or nothing. Raises RefusedError.

        A failure is remembered (`failed_file`), because what should be in force is not; but not
        that of a command given `by_hand` over a policy in force: it was answered, and is over.
        """
        if self._loading:
            raise RefusedError("another policy is being loaded right now; try again")
        self._loading = True
        try:
            return await self._load(file or self._configured, by_hand=by_hand)
        finally:
            self._loading = False

    def facts(self) -> PolicyFacts:
        """For `status`: the kernel is asked now, because the last look may be a moment old."""
        record, failure = self._record, self._failure
        try:
            present = self._in_kernel()
        except KernelError:
            present = self._present
        state: Literal["in force", "kept", "failed", "gone", "loading"]
        if self._loading:
            state = "loading"
        elif present:
            state = "kept" if failure else "in force"
        elif record is not None and failure is None:
            state = "gone"
        else:
            state = "failed"
        loaded = record if present else None
        return PolicyFacts(
            state=state,
            hash=loaded.hash if loaded else None,
            generation=loaded.generation if loaded else None,
            rules=loaded.rules if loaded else None,
            file=loaded.file if loaded else (failure.file if failure else None),
            loaded_at=loaded.loaded_at if loaded else None,
            error=failure.error if failure else self.drift,
        )

    async def _load(self, file: Path, *, by_hand: bool) -> PolicyRecord:
        source = self._source(file)
        async with heavy_work(LocalClient(self._paths)):
            result = await run_worker(
                [*self._command, "--policy", str(file)], timeout_s=LOAD_S_MAX, cpus=self._cpus
            )
        report = parse_result(result.stdout)
        error = (report.error if report is not None else "") or result.error
        if not error and (report is None or not report.ok):
            error = "the policy worker gave no result"
        self._look()
        if not error and not self._present:
            error = "it was loaded, but its tables are not in the kernel now"
        if error or report is None:
            self.failures += 1
            if not (by_hand and self._present):
                self._failure = _Failure(str(file), error, source)
            raise RefusedError(f"policy not loaded: {error}")
        self.foreign, self.foreign_drops = report.foreign, report.foreign_drops
        self.loads += 1
        self._failure = None
        self.drift = ""
        self._current = file
        self._record = PolicyRecord(
            file=str(file),
            source=source,
            hash=report.hash,
            rules=report.rules,
            seconds=report.seconds,
            generation=(self._record.generation if self._record else 0) + 1,
            loaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with suppress(StateError):  # A full /run: what is loaded is in force all the same.
            write_atomically(
                _record_file(self._paths), msgspec.json.encode(self._record), mode=0o600
            )
        return self._record

    def _look(self) -> None:
        with suppress(KernelError):  # Not an answer: what was seen last stands, the next is soon.
            self._present = self._in_kernel()

    def _source(self, file: Path) -> str:
        digest = hashlib.sha256()
        for part in (file, self._config_file):
            try:
                content = part.read_bytes()
            except OSError as error:
                content = f"unreadable: {error.errno}".encode()
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()
