"""Requests, read back by a dumb attribute reader that knows nothing of the builder's layouts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import (
    AF_INET,
    IPPROTO_TCP,
    FlowEntry,
    FlowKey,
    SctpState,
    SeqAdj,
    SynProxy,
    TcpState,
    Tuple,
)
from sync.ctnetlink import (
    build_create,
    build_delete,
    build_dump,
    build_get,
    build_update,
    clear_liberal,
    is_delete_of_one,
    tcp_is_learnt,
)
from tests.unit.sync.flow_strategies import (
    PORT_PROTOS,
    SCTP_STATES,
    SEQADJS,
    SYNPROXIES,
    TCP_STATES,
    U32,
    entries,
    read_tree,
    tuples,
)

ORIG, REPLY, STATUS, PROTOINFO, HELP, NAT_SRC, TIMEOUT, MARK = range(1, 9)
NAT_DST, MASTER, SEQ_ORIG, SEQ_REPLY, ZONE, MARK_MASK, LABELS = 13, 14, 15, 16, 18, 21, 22
SYNPROXY = 24
ANSWERS = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129}
KEYS = st.builds(FlowKey, zone=st.sampled_from((0, 7, 0xFFFF)), orig=tuples())

Tree = dict[int, Any]


def open_message(message: bytes) -> tuple[tuple[int, int, int, int, int], Tree]:
    """(type, flags, seq, family, version) and the attribute tree; the header must be right."""
    length, kind, flags, seq, pid, family, version, resource = struct.unpack_from(
        "=IHHIIBBH", message
    )
    assert length == len(message)
    assert length % 4 == 0
    assert (pid, resource) == (0, 0)
    return (kind, flags, seq, family, version), read_tree(message[20:])


def as_tuple(tree: Tree, family: int) -> Tuple:
    src, dst = (tree[1][1], tree[1][2]) if family == AF_INET else (tree[1][3], tree[1][4])
    assert len(tree[1]) == 2
    keys = {kind: int.from_bytes(value, "big") for kind, value in tree[2].items()}
    proto = keys.pop(1)
    if proto in PORT_PROTOS:
        assert set(keys) == {2, 3}
        return Tuple(family, proto, src, dst, keys[2], keys[3])
    if proto in (1, 58):
        base = 4 if proto == 1 else 7
        assert set(keys) == {base, base + 1, base + 2}
        return Tuple(family, proto, src, dst, keys[base], keys[base + 1] << 8 | keys[base + 2])
    assert not keys
    return Tuple(family, proto, src, dst, 0, 0)


def as_nat(tree: Tree, family: int) -> tuple[bytes, int | None]:
    """Address and key of one translation; minimum and maximum must be the same."""
    low, high = (tree.pop(1), tree.pop(2)) if family == AF_INET else (tree.pop(4), tree.pop(5))
    assert low == high
    if 3 not in tree:
        assert not tree
        return low, None
    ports = tree.pop(3)
    assert not tree
    assert set(ports) == {1, 2}
    assert ports[1] == ports[2]
    return low, int.from_bytes(ports[1], "big")


def number(value: bytes) -> int:
    assert len(value) == 4
    return int.from_bytes(value, "big")


@given(entries(), st.booleans(), st.none() | st.integers(1, 86400), st.none() | U32)
def test_a_creation_says_the_whole_flow(
    entry: FlowEntry, pristine: bool, hold_s: int | None, mark: int | None
) -> None:
    message = build_create(
        entry, seq=77, pristine=pristine, hold_s=hold_s, mark=mark, with_master=True
    )
    header, tree = open_message(message)
    orig, reply = entry.key.orig, entry.reply
    family = orig.family
    assert header == (0x100, 0x601, 77, family, 0)
    assert as_tuple(tree.pop(ORIG), family) == orig

    # REPLY is the plain inverse, whatever the translation.
    plain = as_tuple(tree.pop(REPLY), family)
    assert (plain.src, plain.dst) == (orig.dst, orig.src)
    if orig.proto in (1, 58):
        assert plain.sport == orig.sport
        assert plain.dport == ANSWERS[orig.dport >> 8] << 8 | (orig.dport & 0xFF)
    else:
        assert (plain.sport, plain.dport) == (orig.dport, orig.sport)

    # Both translations, always, explicit: applied to ORIG they give the entry's reply.
    source, source_key = as_nat(tree.pop(NAT_SRC), family)
    target, target_key = as_nat(tree.pop(NAT_DST), family)
    assert (source, target) == (reply.dst, reply.src)
    if orig.proto in PORT_PROTOS:
        assert (source_key, target_key) == (reply.dport, reply.sport)
    elif orig.proto in (1, 58):
        assert (source_key, target_key) == (reply.sport, orig.sport)
    else:
        assert (source_key, target_key) == (None, None)

    assert number(tree.pop(TIMEOUT)) == (max(entry.timeout_s or 0, hold_s or 0) or 60)
    fixed = 0x400 if orig.proto == 47 else 0
    assert number(tree.pop(STATUS)) == entry.status & 0x6 | 0x8 | fixed
    expected_mark = entry.mark if mark is None else mark
    assert number(tree.pop(MARK, bytes(4))) == expected_mark
    assert int.from_bytes(tree.pop(ZONE, b""), "big") == entry.key.zone
    info = tree.pop(PROTOINFO, None)
    if entry.sctp is not None:
        assert info == sctp_tree(entry.sctp)
    else:
        check_tcp(entry, info, pristine)
    assert tree.pop(SYNPROXY, None) == synproxy_tree(entry.synproxy)
    helper = tree.pop(HELP, None)
    assert helper == (None if entry.helper is None else {1: entry.helper.encode() + b"\0"})
    assert tree.pop(LABELS, None) == entry.labels
    adjustments = (tree.pop(SEQ_ORIG, None), tree.pop(SEQ_REPLY, None))
    assert adjustments == tuple(map(seqadj_tree, entry.seqadj or (None, None)))
    master = tree.pop(MASTER, None)
    assert (None if master is None else as_tuple(master, family)) == entry.master
    assert not tree


def check_tcp(entry: FlowEntry, tree: Tree | None, pristine: bool) -> None:
    if entry.tcp is None:
        assert tree is None
        return
    tcp = entry.tcp
    assert tree is not None
    assert set(tree) == {1}
    one, two = tcp.flags_orig, tcp.flags_reply
    if pristine:
        one, two = (one | 0x08) & 0xCF, (two | 0x08) & 0xCF
    assert tree[1] == {
        1: bytes([tcp.state]),
        2: bytes([tcp.wscale_orig]),
        3: bytes([tcp.wscale_reply]),
        4: bytes([one, 0xFF]),
        5: bytes([two, 0xFF]),
    }


def sctp_tree(sctp: SctpState) -> Tree:
    tags = [struct.pack(">I", tag) for tag in (sctp.vtag_orig, sctp.vtag_reply)]
    return {3: {1: bytes([sctp.state]), 2: tags[0], 3: tags[1]}}


def synproxy_tree(synproxy: SynProxy | None) -> Tree | None:
    if synproxy is None:
        return None
    words = (synproxy.isn, synproxy.its, synproxy.tsoff)
    return {n + 1: struct.pack(">I", word) for n, word in enumerate(words)}


def seqadj_tree(adjustment: SeqAdj | None) -> Tree | None:
    if adjustment is None:
        return None
    return {
        1: struct.pack(">I", adjustment.position),
        2: struct.pack(">i", adjustment.before),
        3: struct.pack(">i", adjustment.after),
    }


def test_a_creation_leaves_the_master_out_unless_asked() -> None:
    orig = Tuple(2, 6, b"\1\2\3\4", b"\5\6\7\x08", 1, 2)
    reply = Tuple(2, 6, b"\5\6\7\x08", b"\1\2\3\4", 2, 1)
    entry = FlowEntry(FlowKey(0, orig), reply, 0x0F, 60, master=orig)
    assert MASTER not in open_message(build_create(entry))[1]
    assert MASTER in open_message(build_create(entry, with_master=True))[1]


@given(
    KEYS,
    st.none() | st.integers(0, 0xFFFF),
    st.none() | st.integers(0, 0x7FFFFFFF),
    st.none() | TCP_STATES,
    st.integers(0, 255),
    st.none() | st.tuples(SEQADJS, SEQADJS),
    st.booleans(),
    st.none() | SCTP_STATES,
    st.none() | SYNPROXIES,
    st.none() | st.binary(min_size=16, max_size=16),
)
def test_an_update_says_only_what_it_is_given_and_never_nat(
    key: FlowKey,
    status: int | None,
    timeout_s: int | None,
    tcp: TcpState | None,
    flags_mask: int,
    seqadj: tuple[SeqAdj, SeqAdj] | None,
    expected: bool,
    sctp: SctpState | None,
    synproxy: SynProxy | None,
    labels: bytes | None,
) -> None:
    sctp = None if tcp is not None else sctp
    message = build_update(
        key,
        seq=5,
        status=status,
        timeout_s=timeout_s,
        tcp=tcp,
        tcp_flags_mask=flags_mask,
        seqadj=seqadj,
        expected=expected,
        sctp=sctp,
        synproxy=synproxy,
        labels=labels,
    )
    header, tree = open_message(message)
    # Without CREATE: an update of a flow that is gone must not bring it back.
    assert header == (0x100, 0x001, 5, key.orig.family, 0)
    check_address(tree, key)
    bits = tree.pop(STATUS, None)
    assert (bits is None) == (status is None)
    if bits is not None and status is not None:
        assert number(bits) == status & 0x6 | 0x8 | (0x1 if expected else 0)
    seconds = tree.pop(TIMEOUT, None)
    assert (None if seconds is None else number(seconds)) == timeout_s
    info = tree.pop(PROTOINFO, None)
    assert (info is None) == (tcp is None and sctp is None)
    if sctp is not None:
        assert info == sctp_tree(sctp)
    assert tree.pop(SYNPROXY, None) == synproxy_tree(synproxy)
    assert tree.pop(LABELS, None) == labels
    if info is not None and tcp is not None:
        assert info[1][1] == bytes([tcp.state])
        assert info[1][4] == bytes([tcp.flags_orig, flags_mask])
        assert info[1][5] == bytes([tcp.flags_reply, flags_mask])
    adjustments = (tree.pop(SEQ_ORIG, None), tree.pop(SEQ_REPLY, None))
    assert adjustments == tuple(map(seqadj_tree, seqadj or (None, None)))
    assert not tree


def check_address(tree: Tree, key: FlowKey) -> None:
    assert as_tuple(tree.pop(ORIG), key.orig.family) == key.orig
    assert int.from_bytes(tree.pop(ZONE, b""), "big") == key.zone


def test_an_update_leaves_alone_by_default_what_only_this_node_knows() -> None:
    key = FlowKey(0, Tuple(2, 6, bytes(4), bytes(4), 1, 2))
    _, tree = open_message(build_update(key, tcp=TcpState(3, 0xFF, 0xFF, 0, 0)))
    assert tree[PROTOINFO][1][4][1] == 0xFF & ~0x38


@given(KEYS, U32, U32, U32)
def test_a_masked_mark_lands_as_the_caller_means_it(
    key: FlowKey, old: int, value: int, mask: int
) -> None:
    value &= mask
    _, tree = open_message(build_update(key, mark=(value, mask)))
    check_address(tree, key)
    # ctnetlink_change_mark, by its source: the value is XORed in.
    written = (old & ~number(tree.pop(MARK_MASK)) & 0xFFFFFFFF) ^ number(tree.pop(MARK))
    assert written == old & ~mask | value
    assert not tree


def test_a_mark_outside_its_mask_is_a_mistake_of_ours() -> None:
    key = FlowKey(0, Tuple(2, 6, bytes(4), bytes(4), 1, 2))
    with pytest.raises(AssertionError, match="outside its mask"):
        build_update(key, mark=(0x3, 0x1))
    with pytest.raises(AssertionError, match="outside its mask"):
        build_dump(mark=0x3, mask=0x1)


@given(KEYS)
def test_get_delete_and_clear_liberal_name_exactly_one_flow(key: FlowKey) -> None:
    for build, kind in ((build_get, 0x101), (build_delete, 0x102)):
        header, tree = open_message(build(key, seq=3))
        assert header == (kind, 0x001, 3, key.orig.family, 0)
        check_address(tree, key)
        assert not tree
    header, tree = open_message(clear_liberal(key, seq=3))
    assert header == (0x100, 0x001, 3, key.orig.family, 0)
    check_address(tree, key)
    # No state: the flow may have moved on since it was looked at.
    assert tree == {PROTOINFO: {1: {4: b"\x00\x08", 5: b"\x00\x08"}}}


@pytest.mark.parametrize(
    "broken",
    [
        lambda: build_delete(None),  # type: ignore[arg-type]
        lambda: build_delete(FlowKey(0, None)),  # type: ignore[arg-type]
        lambda: build_delete(FlowKey(0, Tuple(2, 6, b"", b"", 0, 0))),
        lambda: build_delete(FlowKey(0, Tuple(2, 6, bytes(16), bytes(16), 0, 0))),
        lambda: build_delete(FlowKey(0, Tuple(0, 6, bytes(4), bytes(4), 0, 0))),
    ],
)
def test_a_delete_that_would_flush_the_table_cannot_be_built(broken: Callable[[], bytes]) -> None:
    with pytest.raises((AssertionError, AttributeError)):
        broken()


def test_the_last_barrier_knows_a_flush_when_it_sees_one() -> None:
    key = FlowKey(4, Tuple(2, 6, bytes(4), bytes(4), 1, 2))
    good = build_delete(key)
    assert is_delete_of_one(good)
    body = good[20:]
    for attributes in (b"", body[52:], b"\x04\x00\x01\x80", b"\x04\x00\x02\x80" + body, body[:40]):
        flush = struct.pack("=IHHIIBBH", 20 + len(attributes), 0x102, 1, 0, 0, 2, 0, 0)
        assert not is_delete_of_one(flush + attributes)
    assert not is_delete_of_one(build_get(key))
    assert not is_delete_of_one(b"")


def test_a_dump_asks_for_both_families_and_filters_by_mark() -> None:
    header, tree = open_message(build_dump(seq=9))
    assert header == (0x101, 0x301, 9, 0, 0)
    assert not tree
    header, tree = open_message(build_dump(mark=0x10000000, mask=0xF0000000))
    assert tree == {MARK: b"\x10\0\0\0", MARK_MASK: b"\xf0\0\0\0"}
    _, tree = open_message(build_dump(mark=0))
    assert tree == {MARK: bytes(4), MARK_MASK: b"\xff" * 4}


@pytest.mark.parametrize(
    ("one", "two", "learnt"),
    [(0x2B, 0x2B, True), (0x2B, 0x0B, False), (0x0B, 0x2B, False), (0x0B, 0x0B, False)],
)
def test_windows_are_learnt_once_both_sides_have_acknowledged(
    one: int, two: int, learnt: bool
) -> None:
    orig = Tuple(2, IPPROTO_TCP, bytes(4), bytes(4), 1, 2)
    entry = FlowEntry(FlowKey(0, orig), orig, 0xE, 60, 0, TcpState(3, one, two, 7, 7))
    assert tcp_is_learnt(entry) is learnt


def test_windows_of_a_flow_without_tcp_are_never_learnt() -> None:
    orig = Tuple(2, 17, bytes(4), bytes(4), 1, 2)
    assert not tcp_is_learnt(FlowEntry(FlowKey(0, orig), orig, 0xE, 60))
