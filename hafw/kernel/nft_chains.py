"""Other people's base chains, and whether they can drop what we accept. Asked of the kernel by
netlink: libnftables 1.0.6 ends the process on some foreign sets, and no set is read here.

linux/netfilter/nf_tables.h: dumps of NFT_MSG_GETCHAIN and NFT_MSG_GETRULE, all families. A chain
drops if its policy does, or if a rule of it, or of a chain it jumps to, says drop, reject or
queue, or looks a verdict up in a map (which may say drop).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hafw.errors import KernelError

__all__ = ["ForeignChain", "foreign_base_chains"]

_NETLINK_NETFILTER = 12
_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_GETCHAIN, _GETRULE = 10 << 8 | 4, 10 << 8 | 7
_NLA_TYPE_MASK = 0x3FFF
_DUMP_BYTES_MAX = 64 << 20

_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_ARP_HOOKS = ("input", "output", "forward")
_NETDEV_HOOKS = ("ingress", "egress")
_JUMPS = (-3, -4)
_TARGETS = ("REJECT", "DROP", "NFQUEUE", "TARPIT")
_OUR_WAY = ("inet", "ip", "ip6", "arp", "netdev")
"""Families whose hooks our packets pass; a bridge's only if a segment is a bridge's port."""

_Chain = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """`drops`: an accept of ours does not save a packet from it."""

    family: str
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    drops: bool

    def __str__(self) -> str:
        return (
            f"{self.family} {self.table} {self.name} (hook {self.hook}, priority "
            f"{self.priority}, policy {self.policy})"
        )


def foreign_base_chains(ours: Collection[str]) -> list[ForeignChain]:
    """In the calling thread's network namespace; `ours` are inet tables. Raises KernelError, also
    for an answer that is not understood."""
    try:
        return _foreign_base_chains(ours)
    except (LookupError, struct.error) as error:
        raise KernelError(
            errno.EBADMSG, "a netlink dump", "nftables chains", f"not understood: {error}"
        ) from None


def _foreign_base_chains(ours: Collection[str]) -> list[ForeignChain]:
    verdicts = _verdicts()
    found = []
    for family, attributes in _dump(_GETCHAIN):
        table, name = _text(attributes[1]), _text(attributes[3])
        if 4 not in attributes or (family == "inet" and table in ours):
            continue
        hook = _attributes(attributes[4])
        policy = "drop" if 5 in attributes and _number(attributes[5]) == 0 else "accept"
        drops = policy == "drop" or _reaches_drop((family, table, name), verdicts)
        found.append(
            ForeignChain(
                family, table, name, _hook_name(family, _number(hook[1])), _number(hook[2]),
                policy, drops and family in _OUR_WAY,
            )
        )  # fmt: skip
    return sorted(found, key=str)


def _verdicts() -> dict[_Chain, tuple[bool, set[_Chain]]]:
    """By chain: whether a rule of it can drop, and the chains it jumps to."""
    found: dict[_Chain, tuple[bool, set[_Chain]]] = {}
    for family, attributes in _dump(_GETRULE):
        table = _text(attributes[1])
        chain = family, table, _text(attributes[2])
        drops, jumps = found.get(chain, (False, set()))
        for kind, element in _each(attributes.get(4, b"")):
            if kind == 1:
                expression = _attributes(element)
                said, target = _verdict(_text(expression[1]), _attributes(expression.get(2, b"")))
                drops = drops or said
                jumps = jumps | {(family, table, target)} if target else jumps
        found[chain] = drops, jumps
    return found


def _verdict(name: str, fields: dict[int, bytes]) -> tuple[bool, str]:
    """Whether an expression can drop; the chain it jumps to."""
    match name:
        case "reject" | "queue":
            return True, ""
        case "target":  # iptables-nft's x_tables targets.
            return _text(fields.get(1, b"")) in _TARGETS, ""
        case "lookup":  # NFTA_LOOKUP_DREG 0: the verdict register, so a verdict map.
            return 3 in fields and _number(fields[3]) == 0, ""
        case "immediate":
            verdict = _attributes(_attributes(fields.get(2, b"")).get(2, b""))
            if 1 not in verdict:
                return False, ""
            code = _number(verdict[1])
            if code in _JUMPS:
                return False, _text(verdict.get(2, b""))
            return code == 0 or (code > 0 and code & 0xFF == 3), ""
    return False, ""


def _reaches_drop(chain: _Chain, verdicts: dict[_Chain, tuple[bool, set[_Chain]]]) -> bool:
    seen, waiting = {chain}, [chain]
    while waiting:
        drops, jumps = verdicts.get(waiting.pop(), (False, set()))
        if drops:
            return True
        waiting += jumps - seen
        seen |= jumps
    return False


def _hook_name(family: str, number: int) -> str:
    names = {"arp": _ARP_HOOKS, "netdev": _NETDEV_HOOKS}.get(family, _HOOKS)
    return names[number] if number < len(names) else str(number)


# ---- netlink ------------------------------------------------------------------------------------


def _dump(kind: int) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Family and attributes of every object; within a bound."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    read = 0
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(5)
            netlink.send(struct.pack("=IHHII", 20, kind, _REQUEST_DUMP, 1, 0) + body)
            while read < _DUMP_BYTES_MAX:
                answer = netlink.recv(1 << 18)
                read += len(answer)
                offset = 0
                while offset + 16 <= len(answer):
                    length, code = struct.unpack_from("=IH", answer, offset)
                    if code == _NLMSG_DONE:
                        return
                    if code == _NLMSG_ERROR:
                        raise OSError(-struct.unpack_from("=i", answer, offset + 16)[0], "")
                    family = _FAMILIES.get(answer[offset + 16])
                    if family is not None:
                        yield family, _attributes(answer[offset + 20 : offset + length])
                    offset += length + -length % 4
    except OSError as error:
        raise KernelError(
            error.errno or errno.ETIMEDOUT, "a netlink dump", "nftables chains"
        ) from None
    raise KernelError(errno.E2BIG, "a netlink dump", "nftables chains", "too much to read")


def _each(content: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(content):
        length, kind = struct.unpack_from("=HH", content, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, content[offset + 4 : offset + length]
        offset += length + -length % 4


def _attributes(content: bytes) -> dict[int, bytes]:
    return dict(_each(content))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes) -> int:
    return int(struct.unpack("!i", value[:4])[0])
