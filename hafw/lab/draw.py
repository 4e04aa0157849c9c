"""A cluster.yaml for a lab of any size: gateways, groups, a witness where votes need one. Pure.

The addresses go on as those of the lab's own file begin: gateway N is N in every network, group N
has the VIPs .254, .253, ... and begins its order with gateway N, so that each gateway is the first
choice of some group while there are as many.
"""

from __future__ import annotations

from hafw.errors import RefusedError

__all__ = ["GATEWAYS_MAX", "GROUPS_MAX", "draw"]

GATEWAYS_MAX = 8
GROUPS_MAX = 8
WITNESS_ID = 9


def draw(gateways: int, groups: int) -> str:
    """Raises RefusedError for more than the addresses allow."""
    if not (2 <= gateways <= GATEWAYS_MAX and 1 <= groups <= GROUPS_MAX):
        raise RefusedError(
            f"a lab has 2 to {GATEWAYS_MAX} gateways and 1 to {GROUPS_MAX} groups, "
            f"not {gateways} and {groups}"
        )
    names = [f"gw{number}" for number in range(1, gateways + 1)]
    witness = [] if gateways % 2 else ["wit"]
    lines = [
        f"# A lab of {gateways} gateways and {groups} group{'s' if groups > 1 else ''}: "
        "hafwctl lab draw",
        "name: lab",
        "nodes:",
    ]
    for number, name in enumerate(names, 1):
        lines += [f"  {name}:", f"    id: {number}", "    segments:"]
        for segment, v4, v6 in (("lan", "192.0.2", 1), ("wan", "198.51.100", 2)):
            addresses = f'[{v4}.{number}/24, "2001:db8:{v6}::{number}/64"]'
            lines.append(f"      {segment}: {{device: {segment}0, addresses: {addresses}}}")
        lines += _links(number)
    for name in witness:
        lines += [f"  {name}:", f"    id: {WITNESS_ID}", "    role: witness", *_links(WITNESS_ID)]
    lines.append("groups:")
    for number in range(1, groups + 1):
        start = (number - 1) % gateways
        order = ", ".join(names[start:] + names[:start])
        last = 255 - number
        lines += [
            f"  {'main' if number == 1 else f'group{number}'}:",
            f"    index: {number}",
            f"    vrid: {number}",
            f"    order: [{order}]",
            "    vips:",
            f'      lan: [192.0.2.{last}, "2001:db8:1::{last:x}"]',
            f'      wan: [198.51.100.{last}, "2001:db8:2::{last:x}"]',
        ]
    return "\n".join(lines) + "\n"


def _links(number: int) -> list[str]:
    return [
        "    links:",
        f"      sync0: {{device: sync0, address: 203.0.113.{number}/25}}",
        f"      sync1: {{device: sync1, address: 203.0.113.{128 + number}/25}}",
    ]
