"""Read policy.yaml: a `Policy`, or a `ConfigError` that names everything wrong in it."""

from __future__ import annotations

from pathlib import Path

from hafw.config.document import Document, in_file_order, locate, read_document, validate
from hafw.config.model import ClusterConfig
from hafw.config.problems import relation_problems
from hafw.errors import ConfigError
from hafw.policy.model import Policy
from hafw.policy.relations import site_problems

__all__ = ["load_policy", "policy_file", "validate_policy"]


def policy_file(config_file: Path, cluster: ClusterConfig) -> Path:
    """The policy that a cluster.yaml names: relative to it."""
    return config_file.parent / cluster.policy


def load_policy(file: Path, cluster: ClusterConfig | None = None) -> Policy:
    """With a cluster, what the policy says of segments and VIPs is checked too. Raises
    ConfigError."""
    return validate_policy(read_document(file), cluster)


def validate_policy(document: Document, cluster: ClusterConfig | None = None) -> Policy:
    policy = validate(document, Policy)
    if cluster is not None and (found := site_problems(policy, cluster)):
        problems = [
            locate(document, path, message, hint)
            for path, message, hint in relation_problems("\n".join(found), (), Policy)
        ]
        raise ConfigError(document.file, in_file_order(problems))
    return policy
