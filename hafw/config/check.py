"""What `hafwctl check FILE` finds: whether a cluster or policy file is right, and what it means.

The kind is told by the file's own keys. A cluster file is checked together with the policy it
names; a policy file with the cluster.yaml beside it, if there is one. Nothing is asked of the
kernel (`hafw.policy.apply` with check=True does that) and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hafw.config.document import Document, read_document, validate
from hafw.config.model import ClusterConfig, GroupConfig
from hafw.errors import ConfigError, ConfigProblem
from hafw.policy.compile import compile_policy, document_rules, policy_hash
from hafw.policy.load import policy_file, validate_policy
from hafw.policy.model import Policy

__all__ = ["CheckReport", "check_file"]

Kind = Literal["cluster", "policy", "unknown"]

_CLUSTER_KEYS = {"name", "nodes", "groups", "lease", "sync", "cpus", "policy"}
_POLICY_KEYS = {"zones", "services", "rules", "nat", "helpers", "ssh_from"}


@dataclass(slots=True)
class CheckReport:
    """`facts` are (what, value) of a file that is right; `notes` are legal but worth a look;
    `warnings` are legal but not what a cluster is for; `also` is the report on the policy that a
    cluster file names."""

    file: str
    kind: Kind
    problems: list[ConfigProblem] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    also: CheckReport | None = None

    @property
    def ok(self) -> bool:
        return not self.problems and (self.also is None or self.also.ok)

    @property
    def lines(self) -> list[str]:
        """One line a problem, ``FILE:LINE: path: message``, of this file and of `also`."""
        own = str(ConfigError(self.file, self.problems)).splitlines() if self.problems else []
        return own + (self.also.lines if self.also else [])


def check_file(file: Path, cluster_file: Path | None = None) -> CheckReport:
    """Never raises for what is wrong with the files. `cluster_file` is for a policy file:
    one that is named must be right; the default, cluster.yaml beside it, may be missing."""
    try:
        document = read_document(file)
    except ConfigError as error:
        return CheckReport(str(file), "unknown", error.problems)
    kind = _kind(document)
    try:
        if kind == "cluster":
            return _check_cluster(file, document)
        if kind == "policy":
            if cluster_file is not None:
                return _check_policy_for(file, document, cluster_file)
            return _check_policy(file, document, *_cluster_beside(file.parent / "cluster.yaml"))
    except ConfigError as error:
        return CheckReport(str(file), kind, error.problems)
    message = "is neither a cluster nor a policy"
    hint = "a cluster has name, nodes and groups; a policy has zones, rules and nat"
    return CheckReport(str(file), kind, [ConfigProblem("", message, hint=hint)])


def _kind(document: Document) -> Kind:
    keys = set(document.value)
    cluster, policy = len(keys & _CLUSTER_KEYS), len(keys & _POLICY_KEYS)
    if cluster == policy:
        return "unknown"
    return "cluster" if cluster > policy else "policy"


def _check_cluster(file: Path, document: Document) -> CheckReport:
    cluster = validate(document, ClusterConfig)
    report = CheckReport(str(file), "cluster", facts=_cluster_facts(cluster))
    report.warnings += _cluster_warnings(cluster)
    report.notes += _cluster_notes(cluster)
    named = policy_file(file, cluster)
    if named.exists():
        report.also = _named_policy(named, file)
    else:
        report.notes.append(f"the policy it names, {named}, does not exist here")
    return report


def _named_policy(file: Path, cluster_file: Path) -> CheckReport:
    try:
        return _check_policy(file, read_document(file), *_cluster_beside(cluster_file))
    except ConfigError as error:
        return CheckReport(str(file), "policy", error.problems)


def _cluster_facts(cluster: ClusterConfig) -> list[tuple[str, str]]:
    voters = cluster.voters
    facts = [
        ("cluster", cluster.name),
        ("nodes", ", ".join(f"{n} ({c.role}, id {c.id})" for n, c in cluster.nodes.items())),
        (
            "voters at the first start",
            f"{len(voters.members)}, majority {voters.majority}, hash {voters.hash} (later: "
            "hafwctl cluster voters)",
        ),
        (
            "timers",
            f"{cluster.lease.heartbeat_ms} ms heartbeat, {cluster.lease.lease_ms} ms lease",
        ),
    ]
    for name, group in cluster.groups.items():
        vips = "; ".join(
            f"{segment} {', '.join(str(vip) for vip in vips)}"
            for segment, vips in group.vips.items()
        )
        facts.append((f"group {name}", f"{group.virtual_mac}, {' > '.join(group.order)}: {vips}"))
    return facts


def _cluster_warnings(cluster: ClusterConfig) -> list[str]:
    nodes = cluster.voters.members
    if len(nodes) == 1:
        return [
            "one voter: nobody can take over; add a gateway, and when that has joined a witness"
        ]
    if cluster.quorum == "two-node":
        return [
            "two nodes without a witness: if all links and segments between them are cut, both "
            "forward; a witness prevents that"
        ]
    if len(nodes) == 2:
        return [
            "two voters: the loss of either leaves no majority; add a witness (quorum: two-node "
            "lets one go on alone, and promises less)"
        ]
    return []


def _cluster_notes(cluster: ClusterConfig) -> list[str]:
    notes = []
    for name, group in cluster.groups.items():
        if len(group.order) == 1:
            notes.append(f"group {name} has one candidate: nobody can take over")
        notes += _strange_vips(cluster, name, group)
    for name, node in cluster.nodes.items():
        if len(node.links) == 1:
            notes.append(f"node {name} has one link: its loss silences the node to its peers")
    return notes


def _strange_vips(cluster: ClusterConfig, name: str, group: GroupConfig) -> Iterator[str]:
    """Legal (a VIP may be routed to the segment), but most often a slip of the pen."""
    for segment, vips in group.vips.items():
        networks = {
            address.network
            for node in cluster.nodes.values()
            if segment in node.segments
            for address in node.segments[segment].addresses
        }
        for vip in vips:
            if not any(vip in network for network in networks):
                known = ", ".join(sorted(str(n) for n in networks if n.version == vip.version))
                yield (
                    f"group {name}: VIP {vip} is in no network of segment {segment} "
                    f"({known or f'it has no IPv{vip.version} network'}): hosts there reach it by "
                    "a route only"
                )


def _check_policy_for(file: Path, document: Document, cluster_file: Path) -> CheckReport:
    """Against the cluster file that was asked for: without it nothing can be said."""
    try:
        cluster = validate(read_document(cluster_file), ClusterConfig)
    except ConfigError as error:
        return CheckReport(str(cluster_file), "cluster", error.problems)
    return _check_policy(file, document, cluster, [])


def _check_policy(
    file: Path, document: Document, cluster: ClusterConfig | None, notes: list[str]
) -> CheckReport:
    policy = validate_policy(document, cluster)
    report = CheckReport(str(file), "policy", facts=_policy_facts(policy), notes=notes)
    if cluster is not None:
        for name, node in cluster.nodes.items():
            if node.role == "gateway":
                rules = document_rules(compile_policy(policy, cluster, name))
                report.facts.append((f"compiled for {name}", f"{rules} nft rules"))
    report.notes += _policy_notes(policy)
    return report


def _cluster_beside(file: Path) -> tuple[ClusterConfig | None, list[str]]:
    if not file.exists():
        return None, [f"no {file}: segments and VIPs were not checked"]
    try:
        return validate(read_document(file), ClusterConfig), []
    except ConfigError as error:
        count = len(error.problems)
        return None, [f"{file} has {count} problems: segments and VIPs were not checked"]


def _policy_facts(policy: Policy) -> list[tuple[str, str]]:
    nat = policy.nat
    zones = ", ".join(f"{name} ({', '.join(s)})" for name, s in policy.zones.items())
    translations = f"{len(nat.snat)} snat, {len(nat.masquerade)} masquerade, {len(nat.dnat)} dnat"
    return [
        ("zones", zones),
        ("rules", str(len(policy.rules))),
        ("translations", translations),
        ("helpers", ", ".join(policy.helpers) or "none"),
        ("hash", policy_hash(policy)),
    ]


def _policy_notes(policy: Policy) -> list[str]:
    notes = []
    if not policy.rules and not policy.nat.dnat:
        notes.append("no rule: nothing is forwarded")
    to_self = [rule for rule in policy.rules if "self" in rule.to and rule.action == "accept"]
    ssh = any(rule.services is None or "ssh" in rule.services for rule in to_self)
    if not ssh and not policy.ssh_from:
        notes.append("neither ssh_from nor a rule to self lets ssh reach the nodes")
    return notes
