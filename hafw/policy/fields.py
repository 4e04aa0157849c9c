"""Field types of policy.yaml: ports, translation targets, lists that may be written as one."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = ["OneOrMore", "PortRange", "Target", "merge_ports"]


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise ValueError("must be a port between 1 and 65535 or a range such as 5000-5010")
    return int(text)


def _parse_ports(value: Any) -> tuple[int, int]:
    """80 or "8000-8010" as (first, last)."""
    if isinstance(value, tuple):
        return value[0], value[1]
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    first, dash, last = text.partition("-")
    low = _port(first.strip())
    high = _port(last.strip()) if dash else low
    if low > high:
        raise ValueError(f"the range ends before it begins; write {high}-{low}")
    return low, high


def _format_ports(ports: tuple[int, int]) -> int | str:
    return ports[0] if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


PortRange = Annotated[
    tuple[int, int],
    PlainValidator(_parse_ports),
    PlainSerializer(_format_ports),
    WithJsonSchema({"type": ["integer", "string"], "format": "ports"}),
]


def merge_ports(ports: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, without overlap: nft refuses overlapping intervals in a set."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ports):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


@dataclass(frozen=True, slots=True)
class TargetAddress:
    """Where a translation leads: an address, and a port if it changes."""

    address: IPv4Address | IPv6Address
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return str(self.address)
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def _parse_target(value: Any) -> TargetAddress:
    if isinstance(value, TargetAddress):
        return value
    text = value if isinstance(value, str) else ""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ip_address(host)
    except ValueError:
        message = "must be address or address:port, such as 192.0.2.20:8080 or [2001:db8::20]:8080"
        raise ValueError(message) from None
    return TargetAddress(address, _port(port) if port else None)


Target = Annotated[
    TargetAddress,
    PlainValidator(_parse_target),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "format": "target"}),
]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class _OneOrMoreSchema:
    """Tells the JSON Schema that one item may stand for a list of one."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = handler(schema)
        return {"anyOf": [made, made["items"]]}


OneOrMore = (
    BeforeValidator(_as_list),
    Field(min_length=1, max_length=1024),
    _OneOrMoreSchema(),
)
"""Annotates a list that may be written as its only item."""
