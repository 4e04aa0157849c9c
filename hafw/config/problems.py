"""What pydantic says about a configuration, in an operator's words. Pure.

`problems_of` turns a ValidationError into (path, message, hint): branch names of unions are cut
from the path, the errors of a union's branches become one, ranges and formats are worded from the
model's JSON Schema, an unknown key gets its nearest known one, and the relations that a model
refuses (lines that begin with a dotted path, `hafw.config.fields.refuse`) are split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from hafw.config.fields import PATTERN_WORDS

__all__ = ["format_words", "problems_of", "range_words", "relation_problems", "schema_at"]

Path_ = tuple[str | int, ...]
Problem = tuple[Path_, str, str | None]
"""Path, message, hint. A message about the key itself begins with ``the key``: its value is not
what is wrong."""

_RELATION = re.compile(r"^([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*): (.+)$")
_FORMATS = {
    "ipv4": "IPv4 address",
    "ipv6": "IPv6 address",
    "ipv4interface": "IPv4 address with its prefix length, such as 192.0.2.1/24",
    "ipv6interface": "IPv6 address with its prefix length, such as 2001:db8::1/64",
    "network": "IPv4 or IPv6 address or network",
}
_TYPES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "json_invalid": "has an escape that is no character",
}
_RANGES = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def schema_at(model: type[BaseModel], path: Path_) -> dict[str, Any]:
    """The JSON Schema of what belongs at a path; {} if nothing does."""
    root = _schema(model)
    found = _resolve(root, root)
    for part in path:
        found = _resolve(root, _step(found, part))
    return found


def _step(schema: dict[str, Any], part: str | int) -> dict[str, Any]:
    if isinstance(part, int):
        return _dict(schema.get("items"))
    if part in schema.get("properties", {}):
        return _dict(schema["properties"][part])
    for pattern in _dict(schema.get("patternProperties")).values():
        return _dict(pattern)
    return _dict(schema.get("additionalProperties"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _resolve(root: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references; of alternatives take the one with structure (the rest is null)."""
    while "$ref" in schema:
        target = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    for option in schema.get("anyOf", []):
        resolved = _resolve(root, option)
        if resolved.keys() & {"properties", "items", "additionalProperties", "patternProperties"}:
            return resolved
    return schema


def problems_of(error: ValidationError, model: type[BaseModel], value: Any) -> Iterator[Problem]:
    """Each (path, message, hint), one a path for errors of a union's branches."""
    seen: set[tuple[Path_, str]] = set()
    told: set[Path_] = set()
    for item in error.errors(include_url=False, include_input=False):
        path, in_branch = _real_path(item, value)
        for at, message, hint in _word(item, path, model, value):
            if (at, message) in seen or (in_branch and at in told):
                continue
            seen.add((at, message))
            if in_branch:
                told.add(at)
            yield at, message, hint


def _real_path(item: Any, value: Any) -> tuple[Path_, bool]:
    """The error's path without names of union branches, and whether there was one."""
    path: list[str | int] = []
    here = value
    loc = item["loc"]
    for index, part in enumerate(loc):
        if (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]
        else:
            if item["type"] == "missing" and index == len(loc) - 1:
                return (*path, part), False
            return tuple(path), part != "[key]"
        path.append(part)
    return tuple(path), False


def _word(item: Any, path: Path_, model: type[BaseModel], value: Any) -> Iterator[Problem]:
    kind = item["type"]
    schema = schema_at(model, path)
    if kind == "value_error" and (words := format_words(schema)) and _is_address_error(item):
        yield path, f"must be an {words}", None
    elif kind in ("value_error", "assertion_error"):
        yield from relation_problems(item["msg"].split(", ", 1)[1], path, model)
    elif kind == "missing":
        yield path, "is required", None
    elif kind == "extra_forbidden":
        yield path, "the key is not known", _nearest(str(path[-1]), schema_at(model, path[:-1]))
    elif kind == "string_pattern_mismatch":
        pattern = item["ctx"]["pattern"]
        message = "the key is not a valid name" if item["loc"][-1] == "[key]" else "is not valid"
        yield path, message, f"must be {PATTERN_WORDS.get(pattern, f'text like {pattern}')}"
    elif kind in _RANGES:
        yield path, f"must be {range_words(schema) or item['msg']}", None
    elif kind == "literal_error":
        yield path, *_choice(item, path, value)
    elif kind in ("too_short", "too_long"):
        bound = item["ctx"].get("min_length" if kind == "too_short" else "max_length")
        few = "at least" if kind == "too_short" else "at most"
        yield path, f"needs {few} {bound} {'entry' if bound == 1 else 'entries'}", None
    elif kind == "string_type" and (words := format_words(schema)):
        yield path, f"must be an {words}", None
    else:
        yield path, _TYPES.get(kind, item["msg"]), _list_hint(kind, path, value)


def _is_address_error(item: Any) -> bool:
    error = item.get("ctx", {}).get("error")
    return type(error).__name__ in ("AddressValueError", "NetmaskValueError") or (
        isinstance(error, ValueError) and "does not appear to be an IP" in str(error)
    )


def relation_problems(message: str, path: Path_, model: type[BaseModel]) -> Iterator[Problem]:
    """Split a model's relation errors: each line begins with a path relative to `path`."""
    for line in message.split("\n"):
        match = _RELATION.match(line)
        if match is None:
            yield path, line, None
            continue
        parts: Path_ = tuple(int(p) if p.isdigit() else p for p in match[1].split("."))
        if _step(schema_at(model, path), parts[0]):
            yield (*path, *parts), match[2], None
        else:
            yield path, line, None


def _nearest(key: str, schema: dict[str, Any]) -> str | None:
    known = sorted(schema.get("properties", {}))
    if close := get_close_matches(key, known, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"known keys: {', '.join(known)}" if known else None


def _choice(item: Any, path: Path_, value: Any) -> tuple[str, str | None]:
    expected = [word.strip("'") for word in re.findall(r"'[^']*'", item["ctx"]["expected"])]
    here = value
    for part in path:
        here = here[part]
    given = str(path[-1]) if item["loc"][-1] == "[key]" else here
    close = get_close_matches(str(given), expected, n=1, cutoff=0.6)
    return f"must be one of {', '.join(expected)}", f"did you mean {close[0]}?" if close else None


def _list_hint(kind: str, path: Path_, value: Any) -> str | None:
    here = value
    for part in path:
        here = here[part]
    if kind == "list_type" and isinstance(here, str | int):
        return f"write [{here}]"
    if kind == "string_type" and isinstance(here, int | float):
        return f'write "{here}" if it is meant'
    return None


def format_words(schema: dict[str, Any]) -> str | None:
    """An address type in words; None if the schema is not one."""
    options = [schema, *schema.get("anyOf", [])]
    formats = [option["format"] for option in options if option.get("format") in _FORMATS]
    if formats == ["ipv4", "ipv6"]:
        return "IPv4 or IPv6 address"
    if formats == ["ipv4interface", "ipv6interface"]:
        return "IPv4 or IPv6 address with its prefix length, such as 192.0.2.1/24"
    return _FORMATS[formats[0]] if len(formats) == 1 else None


def range_words(schema: dict[str, Any]) -> str | None:
    """``between 1 and 62``, ``at least 1``, ``at most 9``; None without bounds."""
    options = [schema, *schema.get("anyOf", [])]
    low = next((o["minimum"] for o in options if "minimum" in o), None)
    high = next((o["maximum"] for o in options if "maximum" in o), None)
    if low is not None and high is not None:
        return f"between {low} and {high}"
    if low is not None:
        return f"at least {low}"
    return None if high is None else f"at most {high}"
