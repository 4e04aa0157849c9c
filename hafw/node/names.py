"""The names of cluster.yaml for the numbers in what leased says: it knows only numbers. Pure."""

from __future__ import annotations

import re

from hafw.config.model import ClusterConfig

__all__ = ["named"]

_NUMBERED = re.compile(r"\b(group|nodes?) (\d+(?:, \d+)*)\b")


def named(config: ClusterConfig, text: str) -> str:
    """`group 1: ... node 2` as `group main: ... gw2`; a number without a name stays."""
    groups = {group.index: name for name, group in config.groups.items()}

    def name(found: re.Match[str]) -> str:
        kind, numbers = found[1], [int(number) for number in found[2].split(", ")]
        if kind == "group":
            return f"group {', '.join(groups.get(index, str(index)) for index in numbers)}"
        known = {node.id for node in config.nodes.values()}
        if not known.issuperset(numbers):
            return found[0]
        return ", ".join(map(config.node_name, numbers))

    return _NUMBERED.sub(name, text)
