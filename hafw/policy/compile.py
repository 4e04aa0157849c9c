"""Compile a policy for one gateway to libnftables JSON: one transaction, three tables. Pure.

=============== ==========================================================================
hafw_policy     swapped whole: zones, rules, NAT, helpers (`hafw.policy.filter`, `.nat`)
hafw_cluster    swapped whole: marks, notrack, hand-over (`hafw.policy.cluster_table`)
hafw_state      kept: sets with timeouts (`hafw.policy.state_table`)
=============== ==========================================================================

The same input gives the same document, byte for byte. An empty chain of hafw_policy named
``loaded-HASH`` carries the document's hash into the kernel: whoever lists chains can tell which
compilation is loaded.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, ConfigProblem
from hafw.policy.cluster_table import cluster_table
from hafw.policy.expressions import TableWriter
from hafw.policy.filter import filter_part
from hafw.policy.model import Policy
from hafw.policy.nat import nat_part
from hafw.policy.relations import site_problems
from hafw.policy.site import Site
from hafw.policy.state_table import state_table

__all__ = [
    "MARKER",
    "TABLES",
    "compile_policy",
    "document_hash",
    "document_rules",
    "policy_hash",
]

POLICY_TABLE = "hafw_policy"
TABLES = ("hafw_policy", "hafw_state", "hafw_cluster")
"""Ours, all of family inet. No other table is ever touched."""
MARKER = "loaded-"


def compile_policy(policy: Policy, cluster: ClusterConfig, node_name: str) -> dict[str, Any]:
    """The libnftables document. Raises ConfigError if the two files do not agree, RefusedError
    for a node that has no ruleset."""
    if problems := site_problems(policy, cluster):
        split = [problem.split(": ", 1) for problem in problems]
        raise ConfigError("policy", [ConfigProblem(path, text) for path, text in split])
    site = Site(policy, cluster, node_name)
    table = TableWriter(POLICY_TABLE)
    filter_part(table, site)
    nat_part(table, site)
    rest = [*cluster_table(site).replaced(), *state_table().kept()]
    table.chain(MARKER + _hash([*table.replaced(), *rest]))
    return {"nftables": [*table.replaced(), *rest]}


def policy_hash(policy: Policy) -> str:
    """16 hex digits over what the policy says: the same on every node with the same file, however
    it is laid out."""
    return _hash(json.loads(policy.model_dump_json(by_alias=True)))


def document_hash(document: dict[str, Any]) -> str:
    """The hash that the document's marker chain carries: this node's compilation."""
    for command in document["nftables"]:
        name = str(command.get("add", {}).get("chain", {}).get("name", ""))
        if name.startswith(MARKER):
            return name.removeprefix(MARKER)
    raise AssertionError("a document of ours has a marker")


def document_rules(document: dict[str, Any]) -> int:
    """Number of nft rules in the document."""
    return sum("rule" in command.get("add", {}) for command in document["nftables"])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
