"""Read cluster.yaml: a `ClusterConfig`, or a `ConfigError` that names everything wrong in it."""

from __future__ import annotations

from pathlib import Path

from hafw.config.document import read_document, validate
from hafw.config.model import ClusterConfig

__all__ = ["load_cluster"]


def load_cluster(file: Path) -> ClusterConfig:
    """Raises ConfigError."""
    return validate(read_document(file), ClusterConfig)
