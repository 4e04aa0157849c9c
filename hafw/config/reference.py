"""The reference pages and JSON Schemas of cluster.yaml and policy.yaml, from their models.

``python -m hafw.config.reference`` writes docs/reference; a test holds the two equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from hafw.config.fields import PATTERN_NAMES, PATTERN_WORDS
from hafw.config.model import ClusterConfig
from hafw.config.problems import format_words, range_words
from hafw.config.relations import RELATIONS as CLUSTER_RELATIONS
from hafw.policy.model import HELPER_PROTOCOLS, Policy
from hafw.policy.relations import RELATIONS as POLICY_RELATIONS
from hafw.policy.services import BUILT_IN

__all__ = ["pages"]

Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """File name in docs/reference to content."""
    cluster = _Page(ClusterConfig, "cluster.yaml", CLUSTER_RELATIONS).text()
    policy = _Page(Policy, "policy.yaml", POLICY_RELATIONS).text()
    return {
        "cluster.md": cluster,
        "cluster.schema.json": _json(ClusterConfig),
        "policy.md": policy + "\n" + _services() + "\n" + _helpers(),
        "policy.schema.json": _json(Policy),
    }


def _json(model: type[BaseModel]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | model.model_json_schema(by_alias=True), indent=2) + "\n"


def _services() -> str:
    rows = ["## Built-in services", "", "| service | what |", "| --- | --- |"]
    for name, item in sorted(BUILT_IN.items()):
        what = "; ".join(f"{key} {', '.join(map(str, value))}" for key, value in item.items())
        rows.append(f"| `{name}` | {what} |")
    return "\n".join(rows) + "\n"


def _helpers() -> str:
    rows = ["## Helpers", "", "| helper | assigned to first packets of |", "| --- | --- |"]
    rows += [f"| `{name}` | {', '.join(on)} |" for name, on in sorted(HELPER_PROTOCOLS.items())]
    return "\n".join(rows) + "\n"


class _Page:
    def __init__(self, model: type[BaseModel], file: str, relations: tuple[str, ...]) -> None:
        self._schema = model.model_json_schema(by_alias=True)
        self._file = file
        self._relations = relations
        self._seen: set[str] = set()

    def text(self) -> str:
        lines = [
            f"# {self._file}",
            "",
            "Generated from the models (`python -m hafw.config.reference`); do not edit. Unknown "
            "keys and keys given twice are errors.",
            "",
            *self._section("", self._schema),
            "## Names",
            "",
            *(
                f"- *{PATTERN_NAMES[pattern]}*: {PATTERN_WORDS[pattern]}"
                for pattern in PATTERN_NAMES
            ),
            "",
            "## What must agree",
            "",
            *(f"- {relation}" for relation in self._relations),
        ]
        return "\n".join(lines) + "\n"

    def _resolve(self, schema: Schema) -> Schema:
        if "$ref" in schema:
            target = self._schema["$defs"][schema["$ref"].rsplit("/", 1)[1]]
            return {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
        return schema

    def _section(self, path: str, schema: Schema) -> Iterator[str]:
        """A heading, the model's words, its keys, then the models inside it."""
        title = schema.get("title", "")
        if title in self._seen:
            return
        self._seen.add(title)
        yield f"## {f'`{path}`' if path else 'The file'}"
        yield ""
        yield " ".join(schema.get("description", "").split())
        yield ""
        yield "| key | what | default | meaning |"
        yield "| --- | --- | --- | --- |"
        required = schema.get("required", [])
        for key, raw in schema["properties"].items():
            default = "required" if key in required else self._default(raw)
            meaning = " ".join(raw.get("description", "").split())
            yield f"| `{key}` | {self._words(raw)} | {default} | {meaning} |"
        yield ""
        for key, raw in schema["properties"].items():
            here = f"{path}.{key}" if path else key
            for inner_path, inner in self._models(here, raw):
                yield from self._section(inner_path, inner)

    def _models(self, path: str, raw: Schema) -> Iterator[tuple[str, Schema]]:
        schema = self._resolve(raw)
        if "properties" in schema:
            yield path, schema
        for option in schema.get("anyOf", []):
            yield from self._models(path, option)
        if "items" in schema:
            yield from self._models(f"{path}[]", schema["items"])
        for inner in self._mapped(schema):
            yield from self._models(f"{path}.NAME", inner)

    def _mapped(self, schema: Schema) -> Iterator[Schema]:
        yield from schema.get("patternProperties", {}).values()
        inner = schema.get("additionalProperties")
        if isinstance(inner, dict):
            yield inner

    def _default(self, raw: Schema) -> str:
        default = raw.get("default")
        if default is None or default == [] or (default == {} and "$ref" not in raw):
            return "none"
        if isinstance(default, dict):
            return "as below"
        return f"`{json.dumps(default)}`".replace('"', "")

    def _words(self, raw: Schema) -> str:
        schema = self._resolve(raw)
        if "properties" in schema:
            return "mapping, see below"
        options = [o for o in schema.get("anyOf", []) if o.get("type") != "null"]
        for option in options:
            if option.get("items") in options:
                return "one or a list of: " + self._words(option["items"])
        if words := format_words(schema):
            return words
        if schema.get("format") == "ports":
            return "port or range (80, 8000-8010)"
        if schema.get("format") == "target":
            return "address or address:port"
        if "enum" in schema or "const" in schema:
            values = schema.get("enum") or [schema["const"]]
            return " or ".join(f"`{value}`" for value in values)
        if options:
            return self._words(options[0])
        kind = schema.get("type")
        if kind == "array":
            return "list of: " + self._words(schema["items"]) + self._size(schema)
        if kind == "object":
            inner = next(iter(self._mapped(schema)), None)
            return "mapping of names to: " + self._words(inner) if inner else "mapping"
        if kind == "string" and schema.get("pattern") in PATTERN_NAMES:
            return PATTERN_NAMES[schema["pattern"]]
        scalars = {"integer": "whole number", "number": "number", "boolean": "true or false"}
        name = scalars.get(str(kind), "text")
        bounds = range_words(schema)
        return f"{name} {bounds}" if bounds else name

    def _size(self, schema: Schema) -> str:
        low, high = schema.get("minItems"), schema.get("maxItems")
        if low and high:
            return f" ({low} to {high})"
        return f" (at least {low})" if low else ""


@click.command()
@click.argument("folder", type=Path, default=Path("docs/reference"))
def main(folder: Path) -> None:
    """Write a page for each file of the configuration into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    main()
