"""What a lab is to be: parameters into a `LabState`, a cluster.yaml and a policy. No kernel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from hafw.config.model import ClusterConfig, LeaseConfig
from hafw.errors import ConfigError, ConfigProblem
from hafw.lab.files import LabState

__all__ = [
    "FEATURES",
    "default_config_file",
    "describe",
    "read_policy",
    "render_config",
    "with_upstream",
]

FEATURES = frozenset({"sync", "segments", "gate"})
"""What a lab can be built without, for drills that must fail."""


def default_config_file() -> Path:
    """The cluster that DESIGN §9 describes."""
    return Path(__file__).with_name("cluster.yaml")


def describe(state: LabState) -> str:
    """In words, for messages."""
    words = ["bare" if state.bare else "with daemons"]
    if state.heartbeat_ms is not None or state.lease_ms is not None:
        heartbeat, lease = state.heartbeat_ms or "default", state.lease_ms or "default"
        words.append(f"heartbeat {heartbeat} / lease {lease} ms")
    words += [f"without {feature}" for feature in state.without]
    return f"{', '.join(words)}, from {state.source}"


def render_config(source: Path, config: ClusterConfig, wanted: LabState) -> str:
    """The lab's cluster.yaml: the source with what was asked for, comments kept."""
    lease = {
        key: value
        for key, value in (("heartbeat_ms", wanted.heartbeat_ms), ("lease_ms", wanted.lease_ms))
        if value is not None
    }
    try:
        LeaseConfig.model_validate({**config.lease.model_dump(), **lease})
    except ValidationError as error:
        raise ConfigError(
            str(source),
            [
                ConfigProblem("lease", "as overridden: " + e["msg"].removeprefix("Value error, "))
                for e in error.errors()
            ],
        ) from None
    yaml = _yaml()
    document = yaml.load(source.read_text())
    for section, values in (
        ("lease", lease),
        ("sync", {"enabled": False} if "sync" in wanted.without else {}),
        ("sync", {"segments": []} if "segments" in wanted.without else {}),
    ):
        if values:
            document.setdefault(section, {}).update(values)
    document["policy"] = "policy.yaml"
    return _text(yaml, document)


def with_upstream(text: str, group: str, segment: str, address: str) -> str:
    """A cluster.yaml whose group has an upstream check of a segment, with the default times."""
    yaml = _yaml()
    document = yaml.load(text)
    document["groups"][group]["upstream"] = {segment: {"address": address}}
    return _text(yaml, document)


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 200
    return yaml


def _text(yaml: YAML, document: Any) -> str:
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def read_policy(source: Path, config: ClusterConfig) -> str:
    """The policy beside a cluster file. Raises ConfigError."""
    file = source.parent / config.policy
    try:
        return file.read_text()
    except OSError as error:
        raise ConfigError(
            str(source),
            [
                ConfigProblem(
                    "policy", f"cannot read {file}: {error.strerror}", value=config.policy
                )
            ],
        ) from None
