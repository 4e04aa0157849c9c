"""`nft:` of a rule: further conditions in libnftables' own JSON, within bounds. Pure.

Conditions only: `match` and `limit`. A statement (a mark, a verdict, notrack) would undo what the
tables around it rely on. Words are not checked, that is nft's; the shape is, because the compiler
and libnftables both trust it: libnftables copies some texts into buffers of 128 bytes and walks
nested expressions on its stack.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

__all__ = ["BYTES_MAX", "DEPTH_MAX", "Snippet"]

BYTES_MAX = 127
"""libnftables.h, nf_log.h (NF_LOG_PREFIXLEN): 128 with the closing zero."""
DEPTH_MAX = 12
"""nft writes a port range inside a set inside a concatenation at depth 7."""
NUMBER_MAX = (1 << 63) - 1
"""jansson reads JSON integers into a long long."""

_OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "in")
_WORDS = ("payload", "meta", "ct")
"""Expressions whose fields the compiler reads."""
_LIMIT = {"rate", "per", "burst", "rate_unit", "burst_unit", "inv"}
_PER = ("second", "minute", "hour", "day", "week")


def _checked(snippet: dict[str, Any]) -> dict[str, Any]:
    if len(snippet) != 1 or not snippet.keys() <= {"match", "limit"}:
        named = ", ".join(sorted(str(key) for key in snippet)) or "nothing"
        raise ValueError(f"must be one condition, match or limit, not {named}")
    ((word, body),) = snippet.items()
    if not isinstance(body, dict):
        raise ValueError(f"{word} must be a mapping, as in libnftables-json(5)")
    _bounded(word, body, 1)
    if word == "match":
        _match(body)
    else:
        _limit(body)
    return snippet


def _match(body: dict[str, Any]) -> None:
    if body.keys() != {"op", "left", "right"}:
        raise ValueError("match must have op, left and right, and nothing else")
    if body["op"] not in _OPERATORS:
        raise ValueError(f"match.op must be one of {' '.join(_OPERATORS)}")
    if not isinstance(body["left"], dict):
        raise ValueError("match.left must be an expression such as {meta: {key: mark}}")
    for side in ("left", "right"):
        _expression(f"match.{side}", body[side])


def _expression(path: str, value: Any) -> None:
    """A mapping is one expression, named by its only key; the fields of it are its own."""
    if isinstance(value, list):
        for item in value:
            _expression(path, item)
    if not isinstance(value, dict):
        return
    if len(value) != 1:
        raise ValueError(f"{path}: an expression has one key, its name")
    ((name, body),) = value.items()
    path = f"{path}.{name}"
    if name in _WORDS:
        fields = body.values() if isinstance(body, dict) else ()
        if not fields or any(isinstance(field, dict | list) for field in fields):
            raise ValueError(f"{path} must be a mapping of words and numbers")
    elif name == "set":
        if not isinstance(body, list) or not body:
            raise ValueError(f"{path} must be a list of at least one element")
        _expression(path, body)
    elif isinstance(body, list):
        _expression(path, body)
    elif not isinstance(body, dict):
        raise ValueError(f"{path} must be a mapping or a list")


def _limit(body: dict[str, Any]) -> None:
    if unknown := body.keys() - _LIMIT:
        raise ValueError(f"limit has no {', '.join(sorted(unknown))}")
    for key in ("rate", "burst"):
        value = body.get(key, 1 if key == "burst" else None)
        if type(value) is not int or not 1 <= value < 1 << 32:
            raise ValueError(f"limit.{key} must be a whole number from 1 to 4294967295")
    if body.get("per") not in _PER:
        raise ValueError(f"limit.per must be one of {', '.join(_PER)}")
    if type(body.get("inv", False)) is not bool:
        raise ValueError("limit.inv must be true or false")
    for key in ("rate_unit", "burst_unit"):
        if not isinstance(body.get(key, ""), str):
            raise ValueError(f"limit.{key} must be a word")


def _bounded(path: str, value: Any, depth: int) -> None:
    """Raises ValueError for what JSON has no word for, and for what is too long or too deep."""
    if depth > DEPTH_MAX:
        raise ValueError(f"is nested more than {DEPTH_MAX} deep")
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{path}: {key} is no name")
                _bounded(path, key, depth)
                _bounded(f"{path}.{key}", item, depth + 1)
        case list():
            for item in value:
                _bounded(path, item, depth + 1)
        case str():
            if len(value.encode(errors="replace")) > BYTES_MAX or "\0" in value:
                raise ValueError(f"a text in {path} is longer than {BYTES_MAX} bytes or has a NUL")
        case int():
            if abs(value) > NUMBER_MAX:
                raise ValueError(f"{path}: {value} is too large a number")
        case _:
            raise ValueError(f"{path} must be a word, a number, a list or a mapping")


Snippet = Annotated[dict[str, Any], AfterValidator(_checked)]
