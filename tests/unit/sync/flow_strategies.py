"""Hypothesis strategies for flows, and a dumb reader and writer of netlink attributes.

The reader and the writer know nothing of the codec's precompiled layouts: they are its oracle.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from hypothesis import strategies as st

from hafw.flow import (
    AF_INET,
    AF_INET6,
    Expectation,
    ExpectNat,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
    inverse,
)

NESTED = 0x8000
PORT_PROTOS = (6, 17, 33, 47, 132, 136)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
S32 = st.integers(-(1 << 31), (1 << 31) - 1)
INCARNATIONS = U32


def read_attributes(data: bytes) -> list[tuple[int, bool, bytes]]:
    """(type, nested flag, payload) of each attribute."""
    found = []
    while data:
        length, kind = struct.unpack("=HH", data[:4])
        assert 4 <= length <= len(data), data
        found.append((kind & 0x3FFF, bool(kind & NESTED), data[4:length]))
        data = data[(length + 3) // 4 * 4 :]
    return found


def read_tree(data: bytes) -> dict[int, object]:
    """Attributes as nested dictionaries, trusting the nested flag; a type never comes twice."""
    tree: dict[int, object] = {}
    for kind, nested, payload in read_attributes(data):
        assert kind not in tree, kind
        tree[kind] = read_tree(payload) if nested else payload
    return tree


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nest(kind: int, parts: Iterable[bytes]) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def tuple_parts(flow: Tuple) -> tuple[list[bytes], list[bytes]]:
    """The attributes of a tuple's address nest and of its protocol nest, in the kernel's order."""
    first = 1 if flow.family == AF_INET else 3
    addresses = [attribute(first, flow.src), attribute(first + 1, flow.dst)]
    keys = [attribute(1, bytes([flow.proto]))]
    if flow.proto in PORT_PROTOS:
        keys += [attribute(2, struct.pack(">H", flow.sport))]
        keys += [attribute(3, struct.pack(">H", flow.dport))]
    elif flow.proto in (1, 58):
        base = 4 if flow.proto == 1 else 7
        keys += [attribute(base, struct.pack(">H", flow.sport))]
        keys += [attribute(base + 1, bytes([flow.dport >> 8]))]
        keys += [attribute(base + 2, bytes([flow.dport & 0xFF]))]
    return addresses, keys


def write_tuple(kind: int, flow: Tuple) -> bytes:
    addresses, keys = tuple_parts(flow)
    return nest(kind, [nest(1, addresses), nest(2, keys)])


def write_attributes(entry: FlowEntry) -> list[bytes]:
    """The attributes of the event that the kernel would write for `entry`, in its order."""
    parts = [write_tuple(1, entry.key.orig), write_tuple(2, entry.reply)]
    if entry.key.zone:
        parts.append(attribute(18, struct.pack(">H", entry.key.zone)))
    if entry.kernel_id is not None:
        parts.append(attribute(12, struct.pack(">I", entry.kernel_id)))
    parts.append(attribute(3, struct.pack(">I", entry.status)))
    if entry.timeout_s is not None:
        parts.append(attribute(7, struct.pack(">I", entry.timeout_s)))
    if entry.tcp is not None:
        tcp = entry.tcp
        fields = [
            attribute(1, bytes([tcp.state])),
            attribute(2, bytes([tcp.wscale_orig])),
            attribute(3, bytes([tcp.wscale_reply])),
            attribute(4, bytes([tcp.flags_orig, 0])),
            attribute(5, bytes([tcp.flags_reply, 0])),
        ]
        parts.append(nest(4, [nest(1, fields)]))
    if entry.sctp is not None:
        fields = [
            attribute(1, bytes([entry.sctp.state])),
            attribute(2, struct.pack(">I", entry.sctp.vtag_orig)),
            attribute(3, struct.pack(">I", entry.sctp.vtag_reply)),
        ]
        parts.append(nest(4, [nest(3, fields)]))
    if entry.helper is not None:
        parts.append(nest(5, [attribute(1, entry.helper.encode() + b"\0")]))
    if entry.labels is not None:
        parts.append(attribute(22, entry.labels))
    for kind, adjustment in zip((15, 16), entry.seqadj or (), strict=False):
        values = (
            struct.pack(">I", adjustment.position),
            struct.pack(">i", adjustment.before),
            struct.pack(">i", adjustment.after),
        )
        parts.append(nest(kind, [attribute(n + 1, value) for n, value in enumerate(values)]))
    if entry.synproxy is not None:
        words = (entry.synproxy.isn, entry.synproxy.its, entry.synproxy.tsoff)
        fields = [attribute(n + 1, struct.pack(">I", word)) for n, word in enumerate(words)]
        parts.append(nest(24, fields))
    if entry.master is not None:
        parts.append(write_tuple(14, entry.master))
    if entry.mark:
        parts.append(attribute(8, struct.pack(">I", entry.mark)))
    return parts


def write_message(kind: int, flags: int, pid: int, parts: list[bytes]) -> bytes:
    body = bytes(4) + b"".join(parts)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, pid) + body


def _addresses(family: int) -> st.SearchStrategy[bytes]:
    size = 4 if family == AF_INET else 16
    return st.binary(min_size=size, max_size=size)


@st.composite
def tuples(draw: st.DrawFn, family: int | None = None, proto: int | None = None) -> Tuple:
    family = draw(st.sampled_from((AF_INET, AF_INET6))) if family is None else family
    icmp = 1 if family == AF_INET else 58
    if proto is None:
        proto = draw(st.sampled_from((6, 6, 17, icmp, 33, 47, 50, 132, 136)))
    sport, dport = draw(U16), draw(U16)
    if proto == icmp:
        queries = (8, 13, 15, 17) if proto == 1 else (128,)
        dport = draw(st.sampled_from(queries)) << 8 | draw(st.integers(0, 255))
    elif proto not in PORT_PROTOS:
        sport = dport = 0
    return Tuple(family, proto, draw(_addresses(family)), draw(_addresses(family)), sport, dport)


@st.composite
def replies(draw: st.DrawFn, orig: Tuple) -> Tuple:
    """The reply tuple of `orig`: plain, source-translated, destination-translated, or both."""
    plain = inverse(orig)
    src, dst, sport, dport = plain.src, plain.dst, plain.sport, plain.dport
    snat, dnat = draw(st.booleans()), draw(st.booleans())
    ports = orig.proto in PORT_PROTOS
    if snat:
        dst = draw(_addresses(orig.family))
        dport = draw(U16) if ports else dport
        # The id of ICMP is translated with the source, and stands first in either direction.
        sport = draw(U16) if orig.proto in (1, 58) else sport
    if dnat:
        src = draw(_addresses(orig.family))
        sport = draw(U16) if ports else sport
    return Tuple(orig.family, orig.proto, src, dst, sport, dport)


TCP_STATES = st.builds(
    TcpState,
    state=st.integers(0, 9),
    flags_orig=st.integers(0, 255),
    flags_reply=st.integers(0, 255),
    wscale_orig=st.integers(0, 14),
    wscale_reply=st.integers(0, 14),
)
SCTP_STATES = st.builds(SctpState, state=st.integers(0, 8), vtag_orig=U32, vtag_reply=U32)
SYNPROXIES = st.builds(SynProxy, isn=U32, its=U32, tsoff=U32).filter(
    lambda one: bool(one.isn or one.its or one.tsoff)
)
SEQADJS = st.builds(SeqAdj, position=U32, before=S32, after=S32)
HELPERS = st.sampled_from(("ftp", "tftp", "sip", "netbios-ns", "a-15-bytes-name"))


@st.composite
def entries(draw: st.DrawFn) -> FlowEntry:
    """Any entry that an event or a dump may carry."""
    orig = draw(tuples())
    return FlowEntry(
        FlowKey(draw(st.sampled_from((0, 0, 1, 5, 0xFFFF))), orig),
        draw(replies(orig)),
        draw(st.integers(0, 0xFFFF)),
        draw(st.none() | st.integers(0, 0x7FFFFFFF)),
        draw(U32),
        draw(TCP_STATES) if orig.proto == 6 and draw(st.booleans()) else None,
        draw(st.none() | HELPERS),
        draw(st.none() | st.binary(min_size=16, max_size=16)),
        draw(st.none() | U32),
        draw(st.none() | st.tuples(SEQADJS, SEQADJS)),
        draw(st.none() | tuples(family=orig.family)),
        draw(SCTP_STATES) if orig.proto == 132 and draw(st.booleans()) else None,
        draw(st.none() | SYNPROXIES),
    )


@st.composite
def expectations(draw: st.DrawFn) -> Expectation:
    """Any expectation that an event or a dump may carry."""
    master = draw(tuples())
    expected = draw(tuples(family=master.family))
    size = len(master.src)
    addresses = st.binary(min_size=size, max_size=size)
    ports = expected.proto in PORT_PROTOS
    some_port = U16 if ports else st.just(0)
    return Expectation(
        FlowKey(draw(st.sampled_from((0, 0, 5, 0xFFFF))), master),
        expected,
        draw(addresses),
        draw(some_port),
        draw(st.integers(0, 0x7FFFFFFF)),
        draw(st.integers(0, 7)),
        draw(st.integers(0, 255)),
        draw(st.none() | st.builds(ExpectNat, st.integers(0, 1), addresses, some_port)),
        draw(st.none() | st.sampled_from(("ftp", "nat-follow-master", "sip"))),
        draw(st.none() | HELPERS),
    )
