"""Run the policy worker and take its result, with a bound. Shell.

The kernel applies a transaction whole or not at all, so a worker that is killed at the bound
leaves either the old rules or the new ones, never a mixture.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from hafw.paths import NodePaths

__all__ = [
    "LOAD_S_MAX",
    "PolicyResult",
    "Ruleset",
    "apply_policy",
    "parse_result",
    "read_ruleset",
    "ruleset_file",
    "worker_command",
]

LOAD_S_MAX = 120.0


class PolicyResult(msgspec.Struct, frozen=True):
    """The worker's line on stdout. `hash` is the policy's, the same on every node; `ruleset` that
    of this node's compilation, which the kernel carries in its marker chain. `foreign` are other
    people's base chains in words, or why they cannot be listed; `foreign_drops` those of them
    that can drop what the policy accepts."""

    ok: bool
    error: str = ""
    hash: str = ""
    ruleset: str = ""
    rules: int = 0
    seconds: float = 0.0
    file: str = ""
    foreign: tuple[str, ...] = ()
    foreign_drops: tuple[str, ...] = ()


class Ruleset(msgspec.Struct, frozen=True):
    """``RUN/ruleset.json``: what the worker loaded last. `kernel` hashes the kernel's listing."""

    file: str
    hash: str
    ruleset: str
    kernel: str
    rules: int
    loaded_at: str


def ruleset_file(paths: NodePaths) -> Path:
    return paths.run / "ruleset.json"


def read_ruleset(paths: NodePaths) -> Ruleset | None:
    """None if nothing was loaded, or the record cannot be read."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(ruleset_file(paths).read_bytes(), type=Ruleset)
    return None


def worker_command(
    config_file: Path,
    node: str,
    policy_file: Path | None = None,
    *,
    check: bool = False,
    verify: bool = False,
) -> list[str]:
    command = [sys.executable, "-m", "hafw.policy.worker", "--node", node]
    command += ["--config", str(config_file)]
    if policy_file is not None:
        command += ["--policy", str(policy_file)]
    return command + ["--check"] * check + ["--verify"] * verify


def parse_result(stdout: bytes) -> PolicyResult | None:
    """The worker's last line; None if there is no result."""
    lines = stdout.strip().splitlines()
    with suppress(msgspec.MsgspecError):
        return msgspec.json.decode(lines[-1], type=PolicyResult) if lines else None
    return None


def apply_policy(
    config_file: Path,
    node: str,
    policy_file: Path | None = None,
    *,
    check: bool = False,
    verify: bool = False,
    timeout_s: float = LOAD_S_MAX,
) -> PolicyResult:
    """Blocks for up to `timeout_s`. In the network namespace of the caller. Never raises for a
    policy that is refused: `ok` is false then, and `error` says why."""
    command = worker_command(config_file, node, policy_file, check=check, verify=verify)
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return PolicyResult(ok=False, error=f"the policy worker took more than {timeout_s:g} s")
    result = parse_result(done.stdout)
    if result is not None:
        return result
    words = done.stderr.decode(errors="replace").strip().splitlines()
    reason = words[-1] if words else f"exit code {done.returncode}"
    return PolicyResult(ok=False, error=f"the policy worker gave no result: {reason}")
