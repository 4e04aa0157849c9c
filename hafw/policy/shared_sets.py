"""Anonymous sets that many rules repeat become one named set. Pure.

nf_tables names each anonymous set by looking through all sets of the table
(nf_tables_api.c: nf_tables_set_alloc_name), and libnftables lists them no better: 20,000 rules
with a set each took a minute here, without sets 1.2 s. Small rulesets keep their sets in the
rules, where they are read more easily.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

__all__ = ["FEW", "share_sets"]

FEW = 64
"""A table with so many anonymous sets or fewer is left as it is."""

Rule = dict[str, Any]
_META = {"iifname": "ifname", "oifname": "ifname", "l4proto": "inet_proto"}
_PAYLOAD = {
    ("ip", "saddr"): "ipv4_addr",
    ("ip", "daddr"): "ipv4_addr",
    ("ip6", "saddr"): "ipv6_addr",
    ("ip6", "daddr"): "ipv6_addr",
    ("tcp", "dport"): "inet_service",
    ("udp", "dport"): "inet_service",
    ("sctp", "dport"): "inet_service",
    ("icmp", "type"): "icmp_type",
    ("icmpv6", "type"): "icmpv6_type",
}


def share_sets(rules: list[Rule]) -> tuple[dict[str, Rule], list[Rule]]:
    """Named sets (type, flags and elem by name) and the rules that use them."""
    keys = [key for rule in rules for part in rule["expr"] if (key := _key(part))]
    if len(keys) <= FEW:
        return {}, rules
    repeated = {key for key, uses in Counter(keys).items() if uses > 1}
    sets: dict[str, Rule] = {}
    made = []
    for rule in rules:
        expr = [_replaced(part, repeated, sets) for part in rule["expr"]]
        made.append({**rule, "expr": expr})
    return sets, made


def _key(part: Rule) -> tuple[str, str] | None:
    """Type and elements of the anonymous set that a condition matches against."""
    match = part.get("match", {})
    right = match.get("right")
    if not isinstance(right, dict) or "set" not in right:
        return None
    left = match["left"]
    payload = left.get("payload", {})
    of = _META.get(left.get("meta", {}).get("key")) or _PAYLOAD.get(
        (payload.get("protocol"), payload.get("field"))
    )
    return None if of is None else (of, json.dumps(right["set"]))


def _replaced(part: Rule, repeated: set[tuple[str, str]], sets: dict[str, Rule]) -> Rule:
    key = _key(part)
    if key is None or key not in repeated:
        return part
    of, elements = key
    name = f"{of}_{hashlib.sha256(elements.encode()).hexdigest()[:12]}"
    if name not in sets:
        elem = json.loads(elements)
        interval = any(isinstance(item, dict) for item in elem)
        flags = ["constant", "interval"] if interval else ["constant"]
        sets[name] = {"type": of, "flags": flags, "elem": elem}
    return {"match": {**part["match"], "right": f"@{name}"}}
