"""Flow types shared by everything that handles conntrack entries, and the ct mark's layout.

A `Tuple` is the kernel's `struct nf_conntrack_tuple` seen from user space; a `FlowEntry` is one
conntrack entry as ctnetlink reports it (linux/netfilter/nfnetlink_conntrack.h). `reply` is always
the tuple of the event or dump, that is *after* NAT; the codec derives the creation form from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

__all__ = [
    "AF_INET",
    "AF_INET6",
    "CHOSEN_SHIFT",
    "EXPECT_INACTIVE",
    "GROUP_MASK",
    "GROUP_SHIFT",
    "IPPROTO_GRE",
    "IPPROTO_ICMP",
    "IPPROTO_ICMPV6",
    "IPPROTO_SCTP",
    "IPPROTO_TCP",
    "IPPROTO_UDP",
    "IPPROTO_UDPLITE",
    "IPS_ASSURED",
    "IPS_CONFIRMED",
    "IPS_DST_NAT",
    "IPS_EXPECTED",
    "IPS_FIXED_TIMEOUT",
    "IPS_SEEN_REPLY",
    "IPS_SEQ_ADJUST",
    "IPS_SRC_NAT",
    "MARK_MASK",
    "NEVER_MARK",
    "OWNER_MASK",
    "OWNER_SHIFT",
    "SCTP_STATES",
    "TCP_FLAG_BE_LIBERAL",
    "TCP_FLAG_DATA_UNACKNOWLEDGED",
    "TCP_FLAG_MAXACK_SET",
    "TCP_STATES",
    "USER_MARK_MASK",
    "ExpectNat",
    "Expectation",
    "FlowEntry",
    "FlowKey",
    "SctpState",
    "SeqAdj",
    "SynProxy",
    "TcpState",
    "Tuple",
    "delayed_mark",
    "hafw_mark",
    "inverse",
    "mark_group",
    "mark_owner",
]

AF_INET = 2
AF_INET6 = 10
IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPPROTO_GRE = 47
IPPROTO_ICMPV6 = 58
IPPROTO_SCTP = 132
IPPROTO_UDPLITE = 136

# linux/netfilter/nf_conntrack_common.h, enum ip_conntrack_status.
IPS_EXPECTED = 1 << 0
IPS_SEEN_REPLY = 1 << 1
IPS_ASSURED = 1 << 2
IPS_CONFIRMED = 1 << 3
IPS_SRC_NAT = 1 << 4
IPS_DST_NAT = 1 << 5
IPS_SEQ_ADJUST = 1 << 6
IPS_FIXED_TIMEOUT = 1 << 10

# linux/netfilter/nf_conntrack_tcp.h
TCP_FLAG_BE_LIBERAL = 0x08
TCP_FLAG_DATA_UNACKNOWLEDGED = 0x10
TCP_FLAG_MAXACK_SET = 0x20
TCP_STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
# linux/netfilter/nf_conntrack_sctp.h, enum sctp_conntrack.
SCTP_STATES = (
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
)

# linux/netfilter/nf_conntrack_common.h: it is there and matches nothing yet.
EXPECT_INACTIVE = 0x2

# DESIGN §4, marks: [31:28] group, [27:22] owner in force, [21:16] owner chosen; the rest is the
# user's. 0 = a flow of the node itself, never replicated.
MARK_MASK = 0xFFFF0000
USER_MARK_MASK = 0x0000FFFF
GROUP_SHIFT = 28
GROUP_MASK = 0xF << GROUP_SHIFT
OWNER_SHIFT = 22
OWNER_MASK = 0x3F << OWNER_SHIFT
CHOSEN_SHIFT = 16
NEVER_MARK = 63 << CHOSEN_SHIFT
"""Group 0, and no node has this id: a forwarded flow that is never replicated."""


def hafw_mark(group: int, owner: int, chosen: int) -> int:
    """The top 16 bits of a ct mark: group index 1 to 15, node ids 1 to 62."""
    assert 1 <= group <= 15, group
    assert 1 <= owner <= 62, owner
    assert 1 <= chosen <= 62, chosen
    return group << GROUP_SHIFT | owner << OWNER_SHIFT | chosen << CHOSEN_SHIFT


def delayed_mark(group: int) -> int:
    """Group 0, owner 0, and the group's index where the owner chosen has its place: a forwarded
    flow that is too young to be replicated."""
    assert 1 <= group <= 15, group
    return group << CHOSEN_SHIFT


def mark_group(mark: int) -> int:
    """Group index of a ct mark; 0 means a flow of the node itself."""
    return mark >> GROUP_SHIFT & 0xF


def mark_owner(mark: int) -> int:
    """Node id of the owner in force in a ct mark."""
    return mark >> OWNER_SHIFT & 0x3F


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a flow.

    `src` and `dst` are packed network-order addresses (4 or 16 bytes by `family`). `sport` and
    `dport` are host-order ports; for ICMP and ICMPv6 `sport` is the query id and `dport` is
    ``type << 8 | code``; for protocols without ports both are 0.
    """

    family: int
    proto: int
    src: bytes
    dst: bytes
    sport: int
    dport: int

    def __str__(self) -> str:
        kind = IPv4Address if self.family == AF_INET else IPv6Address
        return f"{self.proto} {kind(self.src)}:{self.sport} -> {kind(self.dst)}:{self.dport}"


# nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c, invmap: query types and their answers.
_ICMP_INVERSE = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17}
_ICMPV6_INVERSE = {128: 129, 129: 128, 139: 140, 140: 139}


def inverse(orig: Tuple) -> Tuple:
    """The tuple of the other direction of a flow without NAT (`nf_ct_invert_tuple`).

    An ICMP type that has no answer is kept: the kernel tracks no such flow.
    """
    proto = orig.proto
    if proto in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        types = _ICMP_INVERSE if proto == IPPROTO_ICMP else _ICMPV6_INVERSE
        kind = orig.dport >> 8
        answer = types.get(kind, kind) << 8 | (orig.dport & 0xFF)
        return Tuple(orig.family, proto, orig.dst, orig.src, orig.sport, answer)
    return Tuple(orig.family, proto, orig.dst, orig.src, orig.dport, orig.sport)


@dataclass(frozen=True, slots=True)
class FlowKey:
    """What names a flow on every node: its zone and original tuple."""

    zone: int
    orig: Tuple

    def __str__(self) -> str:
        return f"{self.orig} zone {self.zone}" if self.zone else str(self.orig)


@dataclass(frozen=True, slots=True)
class TcpState:
    """CTA_PROTOINFO_TCP. `flags_*` are the IP_CT_TCP_FLAG_* bits of each direction; the window
    scales are only meaningful where flag 0x01 (WINDOW_SCALE) is set in both directions."""

    state: int
    flags_orig: int
    flags_reply: int
    wscale_orig: int
    wscale_reply: int


@dataclass(frozen=True, slots=True)
class SctpState:
    """CTA_PROTOINFO_SCTP. A packet whose verification tag is not that of its direction is INVALID
    (nf_conntrack_proto_sctp.c), so a replica needs both; `vtag_orig` is what packets in the
    original direction carry."""

    state: int
    vtag_orig: int
    vtag_reply: int


@dataclass(frozen=True, slots=True)
class SynProxy:
    """CTA_SYNPROXY, of a TCP flow that this node's SYNPROXY answered in the server's name: the
    client's initial sequence number, and what is added to the server's timestamps."""

    isn: int
    its: int
    tsoff: int


@dataclass(frozen=True, slots=True)
class SeqAdj:
    """CTA_SEQ_ADJ of one direction: from sequence number `position` on, packets are shifted by
    `after` (before it by `before`) bytes. Offsets are signed 32 bits."""

    position: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class FlowEntry:
    """One conntrack entry. `None` means that the message did not carry the attribute."""

    key: FlowKey
    reply: Tuple
    status: int
    timeout_s: int | None = None
    mark: int = 0
    tcp: TcpState | None = None
    helper: str | None = None
    labels: bytes | None = None
    kernel_id: int | None = None
    """CTA_ID: ties events to the registry on one node; meaningless elsewhere."""
    seqadj: tuple[SeqAdj, SeqAdj] | None = None
    """Original and reply direction. In dumps and GETs only: no event carries it."""
    master: Tuple | None = None
    """CTA_TUPLE_MASTER, the original tuple of the flow whose expectation made this one."""
    sctp: SctpState | None = None
    """In events, where the state has changed; in dumps and GETs always."""
    synproxy: SynProxy | None = None
    """None also where the kernel shows zeros: every replica has room for it."""


@dataclass(frozen=True, slots=True)
class ExpectNat:
    """CTA_EXPECT_NAT: what the child's first packet is translated by. `direction` is that of the
    expectation (0 original, 1 reply); of the tuple only the source is used."""

    direction: int
    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """One flow that a helper expects (linux/netfilter/nfnetlink_conntrack.h, ctattr_expect).

    The mask covers the source alone: the destination of an expectation always counts in full
    (`struct nf_conntrack_tuple_mask`).
    """

    master: FlowKey
    """Zone and original tuple of the flow whose helper expects."""
    expected: Tuple
    mask_src: bytes
    mask_sport: int
    timeout_s: int
    flags: int = 0
    """NF_CT_EXPECT_PERMANENT 1, INACTIVE 2, USERSPACE 4."""
    policy_class: int = 0
    nat: ExpectNat | None = None
    function: str | None = None
    """CTA_EXPECT_FN: what sets up the child's translation."""
    helper: str | None = None
    """CTA_EXPECT_HELP_NAME: the helper of the master."""

    @property
    def key(self) -> FlowKey:
        """What names it: no two expectations of a zone may overlap (`expect_clash`)."""
        return FlowKey(self.master.zone, self.expected)
