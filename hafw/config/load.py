"""Read cluster.yaml: a `ClusterConfig`, or a `ConfigError` that names everything wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, ConfigProblem

__all__ = ["load_cluster"]


def load_cluster(file: Path) -> ClusterConfig:
    """Raises ConfigError."""
    document: Any = YAML(typ="rt").load(file.read_text())
    try:
        return ClusterConfig.model_validate(document)
    except ValidationError as error:
        problems = [
            ConfigProblem(".".join(str(part) for part in item["loc"]), item["msg"])
            for item in error.errors()
        ]
        raise ConfigError(str(file), problems) from None
