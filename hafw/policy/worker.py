"""Load a policy into the kernel, in a process of its own: ``python -m hafw.policy.worker``.

An nft load is not preemptible and holds its CPU for milliseconds, so the worker pins itself to
`cpus.policy`, away from the lease loop. It reads and checks the files, compiles, has the kernel
validate the transaction (dry run), applies it, lists the result and compares. On any failure
nothing has changed: the old rules stay. One line of JSON on stdout is the result
(`hafw.policy.apply.PolicyResult`); exit 0 or 1.

``--check`` stops after the dry run. ``--verify`` compares the kernel with what was loaded last.
Beside the result, ``RUN/ruleset.json`` keeps what was loaded, for ``--verify``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from hafw.config.document import Document, locate, read_document
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig, CpuConfig
from hafw.cpus import policy_cpu, usable_cpus
from hafw.errors import ConfigError, HafwError, KernelError, RefusedError, StateError
from hafw.instance import claim_instance, write_atomically
from hafw.kernel.nft_chains import foreign_base_chains
from hafw.kernel.nftables import Nftables, NftError
from hafw.paths import NodePaths
from hafw.policy.apply import PolicyResult, Ruleset, read_ruleset, ruleset_file
from hafw.policy.compile import TABLES, compile_policy, document_hash, document_rules, policy_hash
from hafw.policy.culprit import find_culprit
from hafw.policy.load import policy_file, validate_policy
from hafw.policy.loaded import (
    expected_counts,
    kernel_counts,
    kernel_hash,
    list_tables,
    loaded_marker,
)
from hafw.policy.model import Policy

__all__ = ["main", "run"]


def _pin(cpus: CpuConfig) -> None:
    cpu = policy_cpu(cpus, usable_cpus())
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        if cpus.policy is not None:
            raise StateError(f"cpus.policy: cannot use CPU {cpu}: {error.strerror}") from None
        # It went offline just now: stay where the kernel puts us.


class _Load:
    """One policy on its way into the kernel."""

    def __init__(self, cluster: ClusterConfig, node: str, file: Path) -> None:
        self.cluster = cluster
        self.node = node
        self.file = file
        self.source: Document = read_document(file)
        self.policy: Policy = validate_policy(self.source, cluster)
        self.document = compile_policy(self.policy, cluster, node)

    def dry_run(self, nft: Nftables) -> None:
        """Raises ConfigError that names the part of the policy, or NftError if it is none."""
        try:
            nft.json_cmd(self.document, dry_run=True)
        except NftError as error:
            path = find_culprit(self.policy, lambda part: self._refused(nft, part))
            if path is None:
                raise
            parts = tuple(int(p) if p.isdigit() else p for p in path.split("."))
            message = f"nft refuses this: {error.message}"
            problem = locate(self.source, parts, message, None)
            raise ConfigError(str(self.file), [problem]) from None

    def _refused(self, nft: Nftables, policy: Policy) -> bool:
        try:
            nft.json_cmd(compile_policy(policy, self.cluster, self.node), dry_run=True)
        except NftError:
            return True
        return False

    def verify(self, nft: Nftables) -> str:
        """The kernel hash. Raises StateError if the kernel does not have what was sent: somebody
        else changed our tables at the same moment."""
        listing = list_tables(nft)
        wanted, found = expected_counts(self.document), kernel_counts(listing)
        if loaded_marker(nft) != document_hash(self.document) or wanted != found:
            raise StateError(f"the kernel has {found} after the load, not {wanted}")
        return kernel_hash(listing)


def run(
    node: str, config: Path, policy: Path | None, *, check: bool = False, verify: bool = False
) -> PolicyResult:
    """Raises HafwError; then nothing has changed (but see `_Load.verify`)."""
    started = time.monotonic()
    cluster = load_cluster(config)
    _pin(cluster.cpus)
    paths = NodePaths(node)
    if verify:
        return _verify(paths, started)
    load = _Load(cluster, node, policy or policy_file(config, cluster))
    with Nftables() as nft:
        load.dry_run(nft)
        if not check:
            with claim_instance(paths, "policy"):
                nft.json_cmd(load.document)
                _record(paths, load, load.verify(nft))
    return PolicyResult(
        ok=True,
        hash=policy_hash(load.policy),
        ruleset=document_hash(load.document),
        rules=document_rules(load.document),
        seconds=round(time.monotonic() - started, 3),
        file=str(load.file),
    )


def _record(paths: NodePaths, load: _Load, kernel: str) -> None:
    ruleset = Ruleset(
        file=str(load.file),
        hash=policy_hash(load.policy),
        ruleset=document_hash(load.document),
        kernel=kernel,
        rules=document_rules(load.document),
        loaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with suppress(StateError):  # A full /run: what is loaded is in force all the same.
        write_atomically(ruleset_file(paths), msgspec.json.encode(ruleset), mode=0o600)


def _verify(paths: NodePaths, started: float) -> PolicyResult:
    """Raises RefusedError if nothing was loaded, or the kernel has something else by now."""
    ruleset = read_ruleset(paths)
    if ruleset is None:
        raise RefusedError(f"no policy was loaded on {paths.node}")
    with Nftables() as nft:
        if loaded_marker(nft) != ruleset.ruleset:
            raise RefusedError("the loaded policy is gone from the kernel, or another is there")
        found = kernel_hash(list_tables(nft))
    if found != ruleset.kernel:
        raise RefusedError(
            f"drift: somebody changed our tables since {ruleset.loaded_at} "
            f"(hash {found}, loaded {ruleset.kernel})"
        )
    return PolicyResult(
        ok=True,
        hash=ruleset.hash,
        ruleset=ruleset.ruleset,
        rules=ruleset.rules,
        seconds=round(time.monotonic() - started, 3),
        file=ruleset.file,
    )


def _with_foreign_chains(result: PolicyResult) -> PolicyResult:
    """What an accept of ours does not override (Docker's FORWARD, firewalld). Never a reason to
    fail: the policy is in force or not whatever others have."""
    try:
        chains = foreign_base_chains(TABLES)
    except KernelError as error:
        return msgspec.structs.replace(result, foreign=(f"foreign chains are unknown: {error}",))
    return msgspec.structs.replace(
        result,
        foreign=tuple(str(chain) for chain in chains),
        foreign_drops=tuple(str(chain) for chain in chains if chain.drops),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hafw-policy", description="Load a policy.")
    parser.add_argument("--node", required=True)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--policy", type=Path, help="default: the one the configuration names")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="dry run only")
    what.add_argument("--verify", action="store_true", help="compare the kernel with the record")
    given = parser.parse_args(arguments)
    try:
        result = run(
            given.node, given.config, given.policy, check=given.check, verify=given.verify
        )
    except HafwError as error:
        result = PolicyResult(ok=False, error=str(error))
    if not given.check:
        result = _with_foreign_chains(result)
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
