"""Two conntrack tables read by pyroute2 and compared: the judge of replication. Shell.

The reader shares nothing with `sync.ctnetlink`: its request is written out here, and pyroute2
decodes what the kernel answers. pyroute2 maps two attributes wrongly (CTA_HELP as text though it
is nested, CTA_LABELS as one number of fixed size); `EntryMessage` says what they are.

Compared: both tuples (so NAT), zone, helper, mark, labels, sequence adjustment, window scales, TCP
state, all TCP flags but 0x08 (BE_LIBERAL) and 0x20 (MAXACK_SET), and 0x10 (DATA_UNACKNOWLEDGED:
octets are under way) of the replica, which must not have it; SCTP state and verification
tags, synproxy and every status bit. Timeouts are judged by `timeout_problem`.

What the owner alone must have (a TCP or SCTP flow that was never ASSURED, a flow of no group) must
not be on the replica. Tables live while they are read: `compare` reads twice, and only what
differs both times counts.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyroute2.netlink import nla
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from hafw.errors import KernelError
from hafw.flow import IPPROTO_SCTP, IPPROTO_TCP, IPS_ASSURED, mark_group
from hafw.lab.inside import call_in

__all__ = [
    "Comparison",
    "Seen",
    "compare",
    "compare_tables",
    "decode_table",
    "raw_tuples",
    "read_raw",
    "timeout_problem",
]

TCP_FLAGS_COMPARED = 0xFF & ~(0x08 | 0x20)
_UNACKNOWLEDGED = 0x10
TIMEOUT_SLACK_S = 3
"""Timeouts are whole seconds, and the two tables are not read at one moment."""
AGAIN_AFTER_S = 1.0
EXAMPLES_MAX = 5
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP = struct.pack("=IHHIIBBH", 20, 0x0101, 0x0301, 1, 0, 0, 0, 0)
"""nlmsghdr IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP; nfgenmsg of no family: both."""


class EntryMessage(nfct_msg):  # type: ignore[misc]  # pyroute2 has no types
    """A conntrack entry as the kernel writes it (linux/netfilter/nfnetlink_conntrack.h)."""

    nla_map = tuple(
        {"CTA_HELP": ("CTA_HELP", "cta_help"), "CTA_LABELS": ("CTA_LABELS", "cdata")}.get(
            name, (name, kind)
        )
        for name, kind in nfct_msg.nla_map
    )

    class cta_help(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds it by this name
        nla_map = (("CTA_HELP_UNSPEC", "none"), ("CTA_HELP_NAME", "asciiz"))


class Seen(NamedTuple):
    """What of an entry is compared, field by field; `timeout_s` by its own rule."""

    reply: tuple[Any, ...]
    status: int
    mark: int
    tcp_state: int | None
    wscale: tuple[int, int] | None
    tcp_flags: tuple[int, int] | None
    helper: str | None
    labels: bytes | None
    seqadj: tuple[Any, ...] | None
    synproxy: tuple[Any, ...] | None
    sctp: tuple[Any, ...] | None
    timeout_s: int


Key = tuple[Any, ...]
"""Zone, then the original tuple."""
_FIELDS = [name for name in Seen._fields if name != "timeout_s"]


def read_raw(space: str) -> list[bytes]:
    """Every entry of a namespace's table as the kernel writes it: fast, so that tables which live
    are read at nearly one moment. Raises KernelError if the dump breaks off."""
    return call_in(space, lambda: list(_dump()))


def decode_table(messages: list[bytes]) -> dict[Key, Seen]:
    """What pyroute2 makes of it; some tenths of a millisecond an entry."""
    return dict(_decoded(message) for message in messages)


def raw_tuples(space: str) -> set[bytes]:
    """Both tuples of every entry as the kernel writes them: enough to count what is missing, and
    a hundred times as fast as decoding. Zones and everything else are left out."""
    return {_both_tuples(message) for message in read_raw(space)}


def _both_tuples(message: bytes) -> bytes:
    # ctnetlink_fill_info: CTA_TUPLE_ORIG, then CTA_TUPLE_REPLY, then all else.
    (first,) = struct.unpack_from("=H", message, 20)
    (second,) = struct.unpack_from("=H", message, 20 + first)
    return message[20 : 20 + first + second]


def _dump() -> Iterator[bytes]:
    """One conntrack message each."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.settimeout(10.0)
        sock.send(_DUMP)
        while True:
            received = sock.recv(1 << 17)
            offset = 0
            while offset < len(received):
                length, kind = struct.unpack_from("=IH", received, offset)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    code = -int(struct.unpack_from("=i", received, offset + 16)[0])
                    if code:
                        raise KernelError(code, "a dump", "the conntrack table")
                    return
                yield received[offset : offset + length]
                offset += (length + 3) & ~3


def _decoded(data: bytes) -> tuple[Key, Seen]:
    message = EntryMessage(data)
    message.decode()
    get = message.get_attr
    info = get("CTA_PROTOINFO")
    tcp = None if info is None else info.get_attr("CTA_PROTOINFO_TCP")
    state = wscale = flags = None
    if tcp is not None:
        state = tcp.get_attr("CTA_PROTOINFO_TCP_STATE")
        wscale = _pair(tcp, "CTA_PROTOINFO_TCP_WSCALE_")
        both = _pair(tcp, "CTA_PROTOINFO_TCP_FLAGS_")
        flags = (both[0][0] & TCP_FLAGS_COMPARED, both[1][0] & TCP_FLAGS_COMPARED)
    helper, labels = get("CTA_HELP"), get("CTA_LABELS")
    seqadj = (_values(get("CTA_SEQ_ADJ_ORIG")), _values(get("CTA_SEQ_ADJ_REPLY")))
    synproxy = _values(get("CTA_SYNPROXY"))
    seen = Seen(
        _tuple(get("CTA_TUPLE_REPLY")),
        get("CTA_STATUS"),
        get("CTA_MARK") or 0,
        state,
        wscale,
        flags,
        None if helper is None else helper.get_attr("CTA_HELP_NAME"),
        labels if labels is not None and any(labels) else None,
        seqadj if any(seqadj) else None,
        synproxy,
        None if info is None else _values(info.get_attr("CTA_PROTOINFO_SCTP")),
        # The kernel leaves the timeout out of what is about to go.
        get("CTA_TIMEOUT") or 0,
    )
    return (get("CTA_ZONE") or 0, *_tuple(get("CTA_TUPLE_ORIG"))), seen


def _pair(tcp: Any, prefix: str) -> tuple[Any, Any]:
    return tcp.get_attr(f"{prefix}ORIGINAL"), tcp.get_attr(f"{prefix}REPLY")


def _values(nest: Any) -> tuple[Any, ...] | None:
    """The values of a nest of numbers in the kernel's order; None if there is none or all are 0:
    what ctnetlink creates has room for everything, what packets create has not."""
    values = () if nest is None else tuple(attr[1] for attr in nest["attrs"])
    return values if any(values) else None


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(
        attr[1] for part in value["attrs"] if hasattr(part[1], "get_attr") for attr in
        part[1]["attrs"]
    )  # fmt: skip


def timeout_problem(
    owner_s: int,
    replica_s: int,
    hold_s: int,
    apart_s: float,
    *,
    refreshed_s: float = 0.0,
    sends: bool = False,
) -> str:
    """Why a replica's timeout is wrong, or nothing. `apart_s`: how much later than the owner's
    table the replica's was read. It must not be below what the owner's flow has left, nor above
    the greater of that and the hold. `refreshed_s`: how long ago packets may have refreshed the
    owner's timer without an event since the flow was said last. The timer of one that `sends` also
    changes its length in silence (nf_conntrack_proto_tcp.c: 300 s while octets are under way, 5
    days after the ACK), so that its replica is only bound to outlive the next refresh."""
    slack = TIMEOUT_SLACK_S + abs(apart_s)
    if replica_s < (min(owner_s, hold_s) if sends else owner_s) - slack - refreshed_s:
        return "timeout below the owner's"
    if replica_s > max(owner_s, hold_s) + slack:
        return "timeout above owner and hold"
    return ""


@dataclass(slots=True)
class Comparison:
    """What differs, counted by field, with a few examples each."""

    owner: int = 0
    """Flows that should have a replica."""
    not_worth: int = 0
    """Flows of the owner that should have none."""
    replica: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    keys: set[tuple[str, Key]] = field(default_factory=set)

    def note(self, what: str, key: Key, text: str) -> None:
        self.differences[what] += 1
        self.keys.add((what, key))
        shown = self.examples.setdefault(what, [])
        if len(shown) < EXAMPLES_MAX:
            shown.append(f"{key}: {text}")


def worth_a_replica(key: Key, seen: Seen) -> bool:
    """Of a group, and for TCP and SCTP also ASSURED."""
    early = key[3] in (IPPROTO_TCP, IPPROTO_SCTP) and not seen.status & IPS_ASSURED
    return mark_group(seen.mark) != 0 and not early


def compare_tables(
    owner: dict[Key, Seen],
    replica: dict[Key, Seen],
    *,
    hold_s: int,
    apart_s: float = 0.0,
    sender: str = "",
    refreshed_s: float = 0.0,
) -> Comparison:
    """Both tables entry by entry. Pure; entries that are in order are taken out of `replica`."""
    result = Comparison(replica=len(replica))
    for key, mine in owner.items():
        theirs = replica.pop(key, None)
        if not worth_a_replica(key, mine):
            result.not_worth += 1
            if theirs is not None and mark_group(theirs.mark):
                result.note("needless", key, f"replica {theirs}")
            continue
        result.owner += 1
        if theirs is None:
            result.note("missing", key, f"owner {mine}")
            continue
        if mine.tcp_flags is not None:
            first, second = mine.tcp_flags
            mine = mine._replace(tcp_flags=(first & ~_UNACKNOWLEDGED, second & ~_UNACKNOWLEDGED))
        for name in _FIELDS:
            one, other = getattr(mine, name), getattr(theirs, name)
            if one != other:
                result.note(name, key, f"owner {one}, replica {other}")
        sends = key[1] == sender
        problem = timeout_problem(
            mine.timeout_s,
            theirs.timeout_s,
            hold_s,
            apart_s,
            refreshed_s=refreshed_s if sends else 0.0,
            sends=sends,
        )
        if problem:
            result.note(problem, key, f"owner {mine.timeout_s} s, replica {theirs.timeout_s} s")
    for key, theirs in replica.items():
        if mark_group(theirs.mark):
            result.note("left over", key, f"replica {theirs}")
    return result


def compare(
    owner: str,
    replica: str,
    *,
    hold_s: int,
    sender: str = "",
    refreshed_s: float = 0.0,
    say: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """The tables of two namespaces, at rest but for what expires, and for the flows of the host
    `sender`, whose packets have refreshed their timers for up to `refreshed_s`. If anything
    differs both are read once more, and only what differs both times is kept."""

    def once() -> Comparison:
        say("reading both tables")
        begun = time.monotonic()
        mine, theirs = read_raw(owner), read_raw(replica)
        apart_s = time.monotonic() - begun
        say(f"decoding {len(mine) + len(theirs):,} entries")
        return compare_tables(
            decode_table(mine),
            decode_table(theirs),
            hold_s=hold_s,
            apart_s=apart_s,
            sender=sender,
            refreshed_s=refreshed_s,
        )

    begun = time.monotonic()
    first = once()
    if not first.keys:
        return first
    time.sleep(AGAIN_AFTER_S)
    refreshed_s += time.monotonic() - begun
    second = once()
    lasting = Comparison(second.owner, second.not_worth, second.replica)
    lasting.keys = first.keys & second.keys
    lasting.differences = Counter(what for what, _key in lasting.keys)
    lasting.examples = {what: second.examples[what] for what in lasting.differences}
    return lasting
