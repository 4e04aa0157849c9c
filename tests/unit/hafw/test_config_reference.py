"""The reference pages in the repository are those that the models give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafw.config.reference import pages

FOLDER = Path(__file__).resolve().parents[3] / "docs/reference"


@pytest.mark.parametrize("name", sorted(pages()))
def test_reference_is_up_to_date(name: str) -> None:
    written = (FOLDER / name).read_text()
    assert written == pages()[name], "run python -m hafw.config.reference"


def test_every_key_has_a_meaning() -> None:
    """A key that nobody can look up is not declared."""
    for name in ("cluster.md", "policy.md"):
        rows = [line for line in pages()[name].splitlines() if line.startswith("| `")]
        keys = [row for row in rows if row.count("|") == 5]
        assert len(keys) > 20
        assert [row for row in keys if row.endswith("|  |")] == []


def test_schemas_are_json_and_closed() -> None:
    for name in ("cluster.schema.json", "policy.schema.json"):
        schema = json.loads(pages()[name])
        assert schema["additionalProperties"] is False
        assert all(s["additionalProperties"] is False for s in schema["$defs"].values())
