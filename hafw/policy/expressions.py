"""Words of libnftables JSON: the few expressions and statements that our tables are made of. Pure.

Names are those of libnftables-json(5). Every rule and object of one table is gathered by a
`TableWriter`, which knows the order that nft needs: sets and objects, chains, then rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
)
from typing import Any

from hafw.policy.fields import merge_ports
from hafw.policy.shared_sets import share_sets

__all__ = [
    "ACCEPT",
    "DROP",
    "LOG_PREFIX_BYTES_MAX",
    "Expression",
    "Ip",
    "TableWriter",
    "address_in",
    "count",
    "ct",
    "ct_mark_is",
    "ct_not_confirmed",
    "ct_state",
    "ct_status_has",
    "ct_status_lacks",
    "cut_bytes",
    "event_set",
    "family_is",
    "goto",
    "iifname",
    "in_set",
    "jump",
    "mark_set",
    "meta",
    "oifname",
    "one_of",
    "payload",
    "payload_bits",
    "peer",
    "ports_in",
    "set_add",
    "syn",
    "tcp_flags",
]

Expression = dict[str, Any]
Net = IPv4Network | IPv6Network
Ip = IPv4Address | IPv6Address

ACCEPT: Expression = {"accept": None}
DROP: Expression = {"drop": None}
COMMENT_BYTES_MAX = 127
"""nft: NFTNL_UDATA_COMMENT_MAXLEN is 128 with the closing zero."""
LOG_PREFIX_BYTES_MAX = 127
"""nf_log.h: NF_LOG_PREFIXLEN is 128 with the closing zero. libnftables copies a longer prefix over
its own stack (evaluate.c: stmt_evaluate_log_prefix)."""


def cut_bytes(text: str, bytes_max: int) -> str:
    """As much of a text as fits, in whole characters."""
    return text.encode()[:bytes_max].decode(errors="ignore")


def one_of(values: Sequence[Any]) -> Any:
    """One value as itself, several as an anonymous set."""
    return values[0] if len(values) == 1 else {"set": list(values)}


def _match(left: Expression, right: Any, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str, right: Any, op: str = "==") -> Expression:
    return _match({"meta": {"key": key}}, right, op)


def iifname(right: Any, op: str = "==") -> Expression:
    return meta("iifname", right, op)


def oifname(right: Any) -> Expression:
    return meta("oifname", right)


def family_is(family: int) -> Expression:
    return meta("nfproto", f"ipv{family}")


def payload(protocol: str, field: str, right: Any, op: str = "==") -> Expression:
    return _match({"payload": {"protocol": protocol, "field": field}}, right, op)


def payload_bits(base: str, offset: int, length: int, right: int) -> Expression:
    """``@th,64,3 2``: some bits, counted from a header's begin."""
    return _match({"payload": {"base": base, "offset": offset, "len": length}}, right)


def ct(key: str, right: Any, op: str = "==") -> Expression:
    return _match({"ct": {"key": key}}, right, op)


def ct_state(*states: str) -> Expression:
    return ct("state", states[0] if len(states) == 1 else list(states), "in")


def ct_mark_is(mask: int, value: int, op: str = "==") -> Expression:
    return _match({"&": [{"ct": {"key": "mark"}}, mask]}, value, op)


def ct_not_confirmed() -> Expression:
    """The flow has no entry in the table yet: this is its first packet."""
    return ct_status_lacks("confirmed")


def ct_status_has(name: str) -> Expression:
    return ct("status", name, "in")


def ct_status_lacks(name: str) -> Expression:
    return _match({"&": [{"ct": {"key": "status"}}, name]}, 0)


def in_set(key: Expression, name: str) -> Expression:
    return _match(key, f"@{name}")


def set_add(key: Expression, name: str, *, timeout_s: int) -> Expression:
    """``add @name { key timeout 5s }``: nothing for a key that is there; ends the rule if the set
    is full."""
    elem = {"elem": {"val": key, "timeout": timeout_s}}
    return {"set": {"op": "add", "elem": elem, "set": f"@{name}"}}


def peer(family: int, way: str, of: str = "peers") -> Expression:
    """``iifname . ip saddr @peers4`` (way `in`), ``oifname . ip daddr @peers4`` (`out`)."""
    protocol = "ip" if family == 4 else "ip6"
    device, field = ("iifname", "saddr") if way == "in" else ("oifname", "daddr")
    address: Expression = {"payload": {"protocol": protocol, "field": field}}
    return _match({"concat": [{"meta": {"key": device}}, address]}, f"@{of}{family}")


def syn(op: str = "==") -> Expression:
    """``tcp flags & (syn | ack) == syn``: the packet asks for a connection."""
    return tcp_flags(("syn", "ack"), ("syn",), op)


def tcp_flags(looked_at: Sequence[str], right: Sequence[str], op: str = "==") -> Expression:
    """``tcp flags & (looked_at) == right``."""
    flags: Expression = {"payload": {"protocol": "tcp", "field": "flags"}}
    return _match({"&": [flags, _any_of(looked_at)]}, _any_of(right), op)


def _any_of(names: Sequence[str]) -> Any:
    made: Any = names[0] if names else 0
    for name in names[1:]:
        made = {"|": [made, name]}
    return made


def event_set(*names: str) -> Expression:
    """``ct event set``: of the flow's events, only these become messages; none at all without
    names. (The text grammar of nft 1.0.6 refuses `mark` and `helper` here, JSON takes them.)"""
    return {"mangle": {"key": {"ct": {"key": "event"}}, "value": list(names) or 0}}


def goto(chain: str) -> Expression:
    return {"goto": {"target": chain}}


def jump(chain: str) -> Expression:
    return {"jump": {"target": chain}}


def mark_set(keep_mask: int, value: int) -> Expression:
    """``ct mark set ct mark & keep_mask | value`` (nft: constants only)."""
    kept: Expression = {"&": [{"ct": {"key": "mark"}}, keep_mask]}
    made = {"|": [kept, value]} if value else kept
    return {"mangle": {"key": {"ct": {"key": "mark"}}, "value": made}}


def count(name: str | None = None) -> Expression:
    return {"counter": name}


def address_in(field: str, networks: Iterable[Net | Ip], family: int) -> Expression | None:
    """``ip saddr { ... }`` for those of one family; None if there are none."""
    nets = [n if isinstance(n, Net) else _host(n) for n in networks if n.version == family]
    collapsed: list[Any] = sorted(collapse_addresses(nets))  # type: ignore[type-var]
    if not collapsed:
        return None
    protocol = "ip" if family == 4 else "ip6"
    return payload(protocol, field, one_of([_network(net) for net in collapsed]))


def _host(address: Ip) -> Net:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _network(net: Net) -> Any:
    if net.prefixlen == net.max_prefixlen:
        return str(net.network_address)
    return {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}


def ports_in(protocol: str, field: str, ports: list[tuple[int, int]]) -> Expression:
    """``tcp dport { 80, 8000-8010 }``."""
    values = [low if low == high else {"range": [low, high]} for low, high in merge_ports(ports)]
    return payload(protocol, field, one_of(values))


class TableWriter:
    """Gathers one table of family inet; `commands` gives them in the order nft needs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._objects: list[Expression] = []
        self._chains: list[Expression] = []
        self._rules: list[Expression] = []

    def _at(self, **fields: Any) -> Expression:
        return {"family": "inet", "table": self.name, **fields}

    def set(
        self,
        name: str,
        of: str | Sequence[str],
        elements: Sequence[Any],
        *,
        flags: Sequence[str] = (),
        size: int | None = None,
    ) -> None:
        """`of` is a type, or several for a concatenation."""
        made = self._at(name=name, type=of)
        if flags:
            made["flags"] = list(flags)
        if size is not None:
            made["size"] = size
        if elements:
            made["elem"] = list(elements)
        self._objects.append({"set": made})

    def counter(self, name: str) -> None:
        self._objects.append({"counter": self._at(name=name)})

    def helper(self, name: str, of: str, protocol: str) -> None:
        made = self._at(name=name, type=of, protocol=protocol, l3proto="inet")
        self._objects.append({"ct helper": made})

    def chain(self, name: str) -> None:
        """A chain that no hook calls."""
        self._chains.append({"chain": self._at(name=name)})

    def base_chain(
        self, name: str, hook: str, priority: int, *, of: str = "filter", policy: str = "accept"
    ) -> None:
        made = self._at(name=name, type=of, hook=hook, prio=priority, policy=policy)
        self._chains.append({"chain": made})

    def rule(self, chain: str, *parts: Expression | None, comment: str | None = None) -> None:
        """Parts that are None are left out."""
        made = self._at(chain=chain, expr=[part for part in parts if part is not None])
        if comment:
            made["comment"] = cut_bytes(comment, COMMENT_BYTES_MAX)
        self._rules.append({"rule": made})

    @property
    def rules(self) -> int:
        return len(self._rules)

    def replaced(self) -> list[Expression]:
        """Commands that put this table in the place of whatever has its name."""
        table = {"table": {"family": "inet", "name": self.name}}
        shared, rules = share_sets([made["rule"] for made in self._rules])
        sets = [{"set": self._at(name=name, **made)} for name, made in shared.items()]
        body = [*self._objects, *sets, *self._chains, *({"rule": rule} for rule in rules)]
        return [{"add": table}, {"delete": table}, {"add": table}, *({"add": c} for c in body)]

    def kept(self) -> list[Expression]:
        """Commands that keep the table's sets and counters and only write its rules anew."""
        table = {"table": {"family": "inet", "name": self.name}}
        chains = [{k: c["chain"][k] for k in ("family", "table", "name")} for c in self._chains]
        return [
            {"add": table},
            *({"add": made} for made in self._objects),
            *({"add": made} for made in self._chains),
            *({"flush": {"chain": chain}} for chain in chains),
            *({"add": made} for made in self._rules),
        ]
