"""Field types that cluster.yaml and policy.yaml share, and their patterns in words."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

__all__ = [
    "PATTERN_NAMES",
    "PATTERN_WORDS",
    "Address",
    "Device",
    "Interface",
    "LinkInterface",
    "Model",
    "Name",
    "Network",
    "Port",
    "SegmentName",
    "parse_network",
    "refuse",
]

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,31}$"
SEGMENT_PATTERN = r"^[a-z][a-z0-9]{0,7}$"
DEVICE_PATTERN = r"^[^\s/:]{1,15}$"

PATTERN_WORDS = {
    NAME_PATTERN: "a lower-case letter, then up to 31 of a-z, 0-9 and -",
    SEGMENT_PATTERN: "a lower-case letter, then up to 7 of a-z and 0-9",
    DEVICE_PATTERN: "a device name: 1 to 15 characters without space, / or :",
}
"""What a name must look like, for error messages and the reference page."""

PATTERN_NAMES = {
    NAME_PATTERN: "name",
    SEGMENT_PATTERN: "segment name",
    DEVICE_PATTERN: "device name",
}


def _with_prefix(value: object) -> object:
    if isinstance(value, str) and "/" not in value:
        example = f"{value}/{64 if ':' in value else 24}"
        raise ValueError(f"needs its prefix length, such as {example}")
    return value


def parse_network(value: object) -> IPv4Network | IPv6Network:
    """An address or network as text. Raises ValueError that says what would be right."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an IPv4 or IPv6 address or network")
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        loose = ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address or network") from None
    raise ValueError(f"has host bits set; write {loose} or the address without a prefix length")


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
SegmentName = Annotated[str, Field(pattern=SEGMENT_PATTERN)]
Device = Annotated[str, Field(pattern=DEVICE_PATTERN)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Address = IPv4Address | IPv6Address
Interface = Annotated[IPv4Interface | IPv6Interface, BeforeValidator(_with_prefix)]
LinkInterface = Annotated[IPv4Interface, BeforeValidator(_with_prefix)]
Network = Annotated[
    IPv4Network | IPv6Network,
    PlainValidator(parse_network),  # A union would word its errors once a branch.
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "format": "network"}),
]


class Model(BaseModel):
    """Base of every model of a configuration file: unknown keys are errors, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def refuse(problems: list[str]) -> None:
    """Raise one ValueError for all broken relations. Each begins with the dotted path it is
    about, relative to the model, and a colon: the loader splits it off and finds its line."""
    if problems:
        raise ValueError("\n".join(problems))
