"""Flow entries -> ctnetlink requests. Pure: values in, bytes out.

*Creation and update are two kinds of message.* A creation states NAT in the only form that the
kernel turns into a translating entry: CTA_TUPLE_REPLY is the plain inverse of ORIG, and
CTA_NAT_SRC and CTA_NAT_DST are always both there, with min = max address and min = max key, so
that a clash is EEXIST and never silently another port (`nf_nat_setup_info`, `get_unique_tuple`).
A flow without NAT gets its identity as both: tried, it changes neither tuples nor the answer to a
clash, sets the *_NAT_DONE bits that a nat chain sets, and keeps the flow in the table by source
that later port allocations look at; 0.6 us of kernel time each.
An update never carries NAT (EOPNOTSUPP). A DELETE always carries a tuple: without one it would
flush the table (`ctnetlink_del_conntrack`).

The order of attributes is ours: the tuple comes first, which `is_delete_of_one` relies on.
"""

from __future__ import annotations

from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_GRE,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_EXPECTED,
    IPS_FIXED_TIMEOUT,
    IPS_SEEN_REPLY,
    SCTP_STATES,
    TCP_FLAG_BE_LIBERAL,
    TCP_FLAG_DATA_UNACKNOWLEDGED,
    TCP_FLAG_MAXACK_SET,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
    inverse,
)
from sync import ctnetlink_layout as nl

__all__ = [
    "TCP_FLAGS_UPDATE_MASK",
    "TIMEOUT_DEFAULT_S",
    "build_create",
    "build_delete",
    "build_dump",
    "build_get",
    "build_update",
    "clear_liberal",
    "is_delete_of_one",
    "tcp_is_learnt",
]

_OF_ONE_NODE = TCP_FLAG_DATA_UNACKNOWLEDGED | TCP_FLAG_MAXACK_SET
"""What packets teach a kernel, and no other: octets under way, an ACK seen."""
TCP_FLAGS_UPDATE_MASK = 0xFF & ~(TCP_FLAG_BE_LIBERAL | _OF_ONE_NODE)
"""An update leaves alone what says whether this node has learnt the windows."""
TIMEOUT_DEFAULT_S = 60
"""A creation needs a timeout (EINVAL); this one if neither the entry nor the caller has any."""

_CREATE_STATUS = IPS_SEEN_REPLY | IPS_ASSURED
_ALWAYS = {IPPROTO_GRE: IPS_CONFIRMED | IPS_FIXED_TIMEOUT}
"""Status bits of a creation. nf_conntrack_gre_packet refreshes a flow by timeouts that its own
first packet has set: an entry of ours has none and would expire with the first packet that it
carries. So its timeout is fixed: it lives as long as it was given, however many packets come."""
_H_ZONE = nl.attribute(nl.CTA_ZONE, 2)
_H_STATUS = nl.attribute(nl.CTA_STATUS, 4)
_H_TIMEOUT = nl.attribute(nl.CTA_TIMEOUT, 4)
_H_MARK = nl.attribute(nl.CTA_MARK, 4)
_H_MARK_MASK = nl.attribute(nl.CTA_MARK_MASK, 4)
_H_TCP = nl.nest(nl.CTA_PROTOINFO, 44)
_TCP_FLAGS_ONLY = nl.nest(nl.CTA_PROTOINFO, 20) + nl.nest(nl.CTA_PROTOINFO_TCP, 16)
_LIBERAL_OFF = bytes((0, TCP_FLAG_BE_LIBERAL, 0, 0))
_u32 = nl.U32.pack
_u16 = nl.U16.pack
_tcp_info = nl.TCP_INFO.pack


def build_create(
    entry: FlowEntry,
    *,
    seq: int = 0,
    pristine: bool = True,
    hold_s: int | None = None,
    mark: int | None = None,
    with_master: bool = False,
) -> bytes:
    """A request that creates `entry`, or fails with EEXIST if either of its tuples is taken.

    `pristine` (TCP): BE_LIBERAL on both sides, MAXACK_SET and DATA_UNACKNOWLEDGED on neither, the
    state in which a replica must start (DESIGN section 4). The timeout is the greater of the
    entry's and `hold_s`; `mark` replaces the entry's. `with_master` states CTA_TUPLE_MASTER, which
    fails with ENOENT if this node has no such flow; without it the entry is a flow of its own.
    """
    orig = entry.key.orig
    reply = entry.reply
    assert reply.family == orig.family, (orig, reply)
    timeout_s = max(entry.timeout_s or 0, hold_s or 0) or TIMEOUT_DEFAULT_S
    mark = entry.mark if mark is None else mark
    parts = [
        _tuple(nl.CTA_TUPLE_ORIG, orig),
        _tuple(nl.CTA_TUPLE_REPLY, inverse(orig)),
        _nat(nl.CTA_NAT_SRC, reply.dst, reply.sport if _has_icmp(orig) else reply.dport, orig),
        # The kernel translates an ICMP id once, with the source; the destination keeps it.
        _nat(nl.CTA_NAT_DST, reply.src, orig.sport if _has_icmp(orig) else reply.sport, orig),
        _u32(_H_TIMEOUT, timeout_s),
        # Any other bit is refused or silently ignored at creation.
        _u32(_H_STATUS, entry.status & _CREATE_STATUS | _ALWAYS.get(orig.proto, IPS_CONFIRMED)),
    ]
    if entry.key.zone:
        parts.append(_u16(_H_ZONE, entry.key.zone))
    if mark:
        parts.append(_u32(_H_MARK, mark))
    if entry.tcp is not None and orig.proto == IPPROTO_TCP:
        parts.append(_tcp(_pristine(entry.tcp) if pristine else entry.tcp, 0xFF))
    if entry.sctp is not None and orig.proto == IPPROTO_SCTP:
        parts.append(_sctp(entry.sctp))
    if entry.helper is not None:
        parts.append(_helper(entry.helper))
    if entry.labels is not None:
        parts.append(_padded(nl.CTA_LABELS, entry.labels))
    if entry.seqadj is not None:
        parts.append(_seqadj(nl.CTA_SEQ_ADJ_ORIG, entry.seqadj[0]))
        parts.append(_seqadj(nl.CTA_SEQ_ADJ_REPLY, entry.seqadj[1]))
    if entry.synproxy is not None:
        parts.append(_synproxy(entry.synproxy))
    if with_master and entry.master is not None:
        parts.append(_tuple(nl.CTA_TUPLE_MASTER, entry.master))
    flags = nl.NLM_F_REQUEST | nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return _message(nl.CT_NEW, flags, seq, orig.family, parts)


def build_update(
    key: FlowKey,
    *,
    seq: int = 0,
    status: int | None = None,
    timeout_s: int | None = None,
    mark: tuple[int, int] | None = None,
    tcp: TcpState | None = None,
    tcp_flags_mask: int = TCP_FLAGS_UPDATE_MASK,
    seqadj: tuple[SeqAdj, SeqAdj] | None = None,
    expected: bool = False,
    sctp: SctpState | None = None,
    synproxy: SynProxy | None = None,
    labels: bytes | None = None,
) -> bytes:
    """A request that changes an existing entry (ENOENT if there is none); never its NAT.

    `mark` is (value, mask): new = old & ~mask | value. `status` may only add SEEN_REPLY and
    ASSURED: to clear either is EBUSY. `expected` must say whether the entry in this kernel has
    IPS_EXPECTED, or the kernel answers EBUSY; it matters only with `status`. `tcp_flags_mask`
    says which flags of `tcp` are written. The kernel works through timeout, status, TCP, mark,
    sequence adjustment, synproxy, labels and stops at the first error: a failing update is partly
    applied. Labels are ENOSPC on a node without a `ct label` rule.
    """
    parts = _address(key)
    if status is not None:
        bits = status & _CREATE_STATUS | IPS_CONFIRMED | (IPS_EXPECTED if expected else 0)
        parts.append(_u32(_H_STATUS, bits))
    if timeout_s is not None:
        parts.append(_u32(_H_TIMEOUT, timeout_s))
    if mark is not None:
        value, mask = mark
        # ctnetlink_change_mark: (old & ~mask) XOR value; equal to OR only inside the mask.
        assert value & ~mask == 0, f"mark {value:#x} has bits outside its mask {mask:#x}"
        parts.append(_u32(_H_MARK, value))
        parts.append(_u32(_H_MARK_MASK, mask))
    if tcp is not None:
        parts.append(_tcp(tcp, tcp_flags_mask))
    if sctp is not None:
        parts.append(_sctp(sctp))
    if seqadj is not None:
        parts.append(_seqadj(nl.CTA_SEQ_ADJ_ORIG, seqadj[0]))
        parts.append(_seqadj(nl.CTA_SEQ_ADJ_REPLY, seqadj[1]))
    if synproxy is not None:
        parts.append(_synproxy(synproxy))
    if labels is not None:
        parts.append(_padded(nl.CTA_LABELS, labels))
    return _message(nl.CT_NEW, nl.NLM_F_REQUEST, seq, key.orig.family, parts)


def clear_liberal(key: FlowKey, *, seq: int = 0) -> bytes:
    """A request that makes a TCP flow strict again; its state is not touched."""
    parts = _address(key)
    parts += [_TCP_FLAGS_ONLY, nl.TCP_D, _LIBERAL_OFF, nl.TCP_E, _LIBERAL_OFF]
    return _message(nl.CT_NEW, nl.NLM_F_REQUEST, seq, key.orig.family, parts)


def build_delete(key: FlowKey, *, seq: int = 0) -> bytes:
    """A request that deletes exactly the flow `key`. It cannot be built without a tuple."""
    assert isinstance(key, FlowKey), key
    message = _message(nl.CT_DELETE, nl.NLM_F_REQUEST, seq, key.orig.family, _address(key))
    assert is_delete_of_one(message), "a DELETE without a tuple would flush the table"
    return message


def build_get(key: FlowKey, *, seq: int = 0) -> bytes:
    """A request for one entry, answered by it or by ENOENT."""
    return _message(nl.CT_GET, nl.NLM_F_REQUEST, seq, key.orig.family, _address(key))


def build_dump(*, seq: int = 0, mark: int | None = None, mask: int | None = None) -> bytes:
    """A request for all entries of both families, or those whose ``mark & mask`` is `mark`."""
    parts: list[bytes] = []
    if mark is not None:
        mask = 0xFFFFFFFF if mask is None else mask
        assert mark & ~mask == 0, f"mark {mark:#x} has bits outside its mask {mask:#x}"
        parts = [_u32(_H_MARK, mark), _u32(_H_MARK_MASK, mask)]
    return _message(nl.CT_GET, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, seq, 0, parts)


def tcp_is_learnt(entry: FlowEntry) -> bool:
    """The node has seen an ACK in both directions, so the flow's windows are known here."""
    tcp = entry.tcp
    return tcp is not None and bool(tcp.flags_orig & tcp.flags_reply & TCP_FLAG_MAXACK_SET)


def is_delete_of_one(message: bytes) -> bool:
    """A DELETE whose first attribute is an original tuple of full size."""
    if len(message) < nl.HEADER_BYTES + 4:
        return False
    length, kind = nl.NLA.unpack_from(message, nl.HEADER_BYTES)
    return bool(
        nl.NLMSG.unpack_from(message)[1] == nl.CT_DELETE
        and kind == nl.CTA_TUPLE_ORIG | nl.NLA_F_NESTED
        and length >= 4 + nl.V4_PLAIN.size
        and nl.HEADER_BYTES + length <= len(message)
    )


def _message(kind: int, flags: int, seq: int, family: int, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    header = nl.HEADER.pack(nl.HEADER_BYTES + len(body), kind, flags, seq, 0, family, 0, 0)
    return header + body


def _address(key: FlowKey) -> list[bytes]:
    parts = [_tuple(nl.CTA_TUPLE_ORIG, key.orig)]
    if key.zone:
        parts.append(_u16(_H_ZONE, key.zone))
    return parts


def _has_icmp(flow: Tuple) -> bool:
    return flow.proto in (IPPROTO_ICMP, IPPROTO_ICMPV6)


_TUPLE_HEADERS = {
    (kind, length): nl.nest(kind, length)
    # CTA_EXPECT_MASTER, _TUPLE, _MASK and CTA_EXPECT_NAT_TUPLE are 1, 2, 3 and 2.
    for kind in (nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY, nl.CTA_EXPECT_MASK, nl.CTA_TUPLE_MASTER)
    for length in (32, 48, 56, 72, 80)
}


def _tuple(kind: int, flow: Tuple) -> bytes:
    family, proto, src, dst = flow.family, flow.proto, flow.src, flow.dst
    # struct would pad or cut an address silently.
    if family == AF_INET:
        assert len(src) == 4 and len(dst) == 4, flow  # noqa: PT018
        a, b = nl.V4_A, nl.V4_B
    else:
        assert family == AF_INET6 and len(src) == 16 and len(dst) == 16, flow  # noqa: PT018
        a, b = nl.V6_A, nl.V6_B
    v4 = family == AF_INET
    if proto in nl.PROTOS_WITH_PORTS:
        fmt = nl.V4_PORTS if v4 else nl.V6_PORTS
        body = fmt.pack(
            a, src, b, dst, nl.PORTS_C, proto, nl.PORTS_D, flow.sport, nl.PORTS_E, flow.dport
        )
    elif proto in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        fmt = nl.V4_ICMP if v4 else nl.V6_ICMP
        d, e, f = (
            (nl.ICMP_D, nl.ICMP_E, nl.ICMP_F)
            if proto == IPPROTO_ICMP
            else (nl.ICMPV6_D, nl.ICMPV6_E, nl.ICMPV6_F)
        )
        body = fmt.pack(
            a, src, b, dst, nl.ICMP_C, proto, d, flow.sport, e, flow.dport >> 8, f,
            flow.dport & 0xFF,
        )  # fmt: skip
    else:
        fmt = nl.V4_PLAIN if v4 else nl.V6_PLAIN
        body = fmt.pack(a, src, b, dst, nl.PLAIN_C, proto)
    return _TUPLE_HEADERS[kind, len(body)] + body


def _nat(kind: int, address: bytes, key: int, orig: Tuple) -> bytes:
    """One translation to exactly `address` and, where the protocol has one, `key`."""
    v4 = orig.family == AF_INET
    low, high = (nl.V4_NAT_MIN, nl.V4_NAT_MAX) if v4 else (nl.V6_NAT_MIN, nl.V6_NAT_MAX)
    if orig.proto in nl.PROTOS_WITH_PORTS or _has_icmp(orig):
        fmt = nl.V4_NAT if v4 else nl.V6_NAT
        header = nl.nest(kind, fmt.size - 4)
        return fmt.pack(
            header, low, address, high, address, nl.NAT_PROTO, key, nl.NAT_PORT_MAX, key
        )
    fmt = nl.V4_NAT_PLAIN if v4 else nl.V6_NAT_PLAIN
    return fmt.pack(nl.nest(kind, fmt.size - 4), low, address, high, address)


def _pristine(tcp: TcpState) -> TcpState:
    keep, liberal = 0xFF & ~_OF_ONE_NODE, TCP_FLAG_BE_LIBERAL
    return TcpState(
        tcp.state,
        (tcp.flags_orig | liberal) & keep,
        (tcp.flags_reply | liberal) & keep,
        tcp.wscale_orig,
        tcp.wscale_reply,
    )


def _tcp(tcp: TcpState, mask: int) -> bytes:
    return _H_TCP + _tcp_info(
        nl.TCP_A, tcp.state, nl.TCP_B, tcp.wscale_orig, nl.TCP_C, tcp.wscale_reply,
        nl.TCP_D, tcp.flags_orig, mask, nl.TCP_E, tcp.flags_reply, mask,
    )  # fmt: skip


def _sctp(sctp: SctpState) -> bytes:
    # Some kernels index an array of timeouts with whatever state they are given.
    assert 0 <= sctp.state < len(SCTP_STATES), sctp
    inner = (
        nl.attribute(nl.CTA_PROTOINFO_SCTP_STATE, 1)
        + bytes((sctp.state, 0, 0, 0))
        + _u32(nl.attribute(nl.CTA_PROTOINFO_SCTP_VTAG_ORIGINAL, 4), sctp.vtag_orig)
        + _u32(nl.attribute(nl.CTA_PROTOINFO_SCTP_VTAG_REPLY, 4), sctp.vtag_reply)
    )
    inner = nl.nest(nl.CTA_PROTOINFO_SCTP, len(inner)) + inner
    return nl.nest(nl.CTA_PROTOINFO, len(inner)) + inner


def _synproxy(synproxy: SynProxy) -> bytes:
    inner = (
        _u32(nl.attribute(nl.CTA_SYNPROXY_ISN, 4), synproxy.isn)
        + _u32(nl.attribute(nl.CTA_SYNPROXY_ITS, 4), synproxy.its)
        + _u32(nl.attribute(nl.CTA_SYNPROXY_TSOFF, 4), synproxy.tsoff)
    )
    return nl.nest(nl.CTA_SYNPROXY, len(inner)) + inner


def _padded(kind: int, payload: bytes) -> bytes:
    return nl.attribute(kind, len(payload)) + payload + bytes(-len(payload) % 4)


def _helper(name: str) -> bytes:
    inner = _padded(nl.CTA_HELP_NAME, name.encode("ascii") + b"\0")
    return nl.nest(nl.CTA_HELP, len(inner)) + inner


def _seqadj(kind: int, adjustment: SeqAdj) -> bytes:
    inner = (
        _u32(nl.attribute(nl.CTA_SEQADJ_CORRECTION_POS, 4), adjustment.position)
        + _u32(nl.attribute(nl.CTA_SEQADJ_OFFSET_BEFORE, 4), adjustment.before & 0xFFFFFFFF)
        + _u32(nl.attribute(nl.CTA_SEQADJ_OFFSET_AFTER, 4), adjustment.after & 0xFFFFFFFF)
    )
    return nl.nest(kind, len(inner)) + inner
