"""Which part of a policy nft refuses. nft's JSON errors carry no position, so parts are left out
until it is found: the parts are halved, each step one dry run of half as many, so that the search
costs about as much as one dry run of all. Pure: the dry run is an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hafw.policy.model import Nat, Policy

__all__ = ["find_culprit"]


def find_culprit(policy: Policy, refused: Callable[[Policy], bool]) -> str | None:
    """Dotted path of the first part that is refused by itself; None if there is none, or if the
    policy is refused even without any part (the kernel lacks something that every policy needs).
    """
    if refused(_only(policy, set())):
        return None
    parts = _parts(policy)
    while len(parts) > 1:
        half = parts[: len(parts) // 2]
        parts = half if refused(_only(policy, set(half))) else parts[len(half) :]
    return parts[0] if parts and refused(_only(policy, set(parts))) else None


def _parts(policy: Policy) -> list[str]:
    return [
        *(f"helpers.{name}" for name in policy.helpers),
        *(f"rules.{number}" for number in range(len(policy.rules))),
        *(f"nat.snat.{number}" for number in range(len(policy.nat.snat))),
        *(f"nat.masquerade.{number}" for number in range(len(policy.nat.masquerade))),
        *(f"nat.dnat.{number}" for number in range(len(policy.nat.dnat))),
    ]


def _only(policy: Policy, parts: set[str]) -> Policy:
    """The policy with these parts alone. Each was valid with the rest, so it is without."""

    def kept(path: str, items: list[Any]) -> list[Any]:
        return [item for number, item in enumerate(items) if f"{path}.{number}" in parts]

    nat = Nat.model_construct(
        snat=kept("nat.snat", policy.nat.snat),
        masquerade=kept("nat.masquerade", policy.nat.masquerade),
        dnat=kept("nat.dnat", policy.nat.dnat),
    )
    helpers = {n: ports for n, ports in policy.helpers.items() if f"helpers.{n}" in parts}
    changes = {"rules": kept("rules", policy.rules), "nat": nat, "helpers": helpers}
    return policy.model_copy(update=changes)
