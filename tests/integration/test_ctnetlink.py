"""The codec against the kernel: create, update, get, delete, clashes.

What the kernel holds is read back by conntrack(8) and by a dumb attribute reader, not only by the
codec under test.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from hafw.flow import IPS_FIXED_TIMEOUT, FlowEntry, FlowKey, SeqAdj, TcpState, Tuple, inverse
from hafw.kernel.netns import entered
from sync.ctnetlink import (
    build_create,
    build_delete,
    build_get,
    build_update,
    clear_liberal,
    parse_events,
)
from sync.ctsocket import RequestSocket
from tests.integration.ct_entries import ESP, GRE, HOSTS, SCTP, TCP, UDP, entry_of, flow
from tests.integration.ct_spaces import Listed, conntrack_list, kernel_tree

pytestmark = pytest.mark.integration

KERNEL_STATUS_SENT = 0x0E
SNAT_BIT, DNAT_BIT, BOTH_DONE = 0x10, 0x20, 0x180


def listed_tuple(side: dict[str, str], proto: int) -> Tuple:
    """A tuple as conntrack(8) prints it."""
    if proto in (1, 58):
        return flow(
            proto, side["src"], side["dst"], int(side["id"]),
            int(side["type"]) << 8 | int(side["code"]),
        )  # fmt: skip
    if proto == GRE:
        return flow(
            proto, side["src"], side["dst"], int(side["srckey"], 16), int(side["dstkey"], 16)
        )
    return flow(
        proto, side["src"], side["dst"], int(side.get("sport", 0)), int(side.get("dport", 0))
    )


def the_only(space: str, version: int) -> Listed:
    (listed,) = conntrack_list(space, f"ipv{version}")
    return listed


CASES = [
    (version, proto, nat)
    for version in (4, 6)
    for proto in (TCP, UDP, 1 if version == 4 else 58)
    for nat in ("plain", "snat", "dnat", "both")
] + [(4, ESP, "plain"), (4, ESP, "snat"), (4, GRE, "plain"), (6, GRE, "plain"), (4, SCTP, "plain")]


@pytest.mark.parametrize(("version", "proto", "nat"), CASES)
@pytest.mark.parametrize(("zone", "mark"), [(0, 0), (7, 0x11410007)])
def test_a_created_entry_is_what_was_asked_for(
    space: str, requests: RequestSocket, version: int, proto: int, nat: str, zone: int, mark: int
) -> None:
    entry = entry_of(version, proto, nat, zone=zone, mark=mark)
    assert requests.execute([build_create(entry)]) == [0]

    listed = the_only(space, version)
    assert listed.proto == proto
    assert listed_tuple(listed.orig, proto) == entry.key.orig
    assert listed_tuple(listed.reply, proto) == entry.reply
    assert listed.timeout_s in (299, 300)
    assert int(listed.facts.get("mark", "0")) == mark
    assert int(listed.facts.get("zone", "0")) == zone
    assert "ASSURED" in listed.words
    assert "UNREPLIED" not in listed.words
    if proto == TCP:
        assert listed.state == "ESTABLISHED"

    status = int.from_bytes(kernel_tree(space, entry.key)[3], "big")
    wanted = KERNEL_STATUS_SENT | BOTH_DONE
    wanted |= SNAT_BIT if nat in ("snat", "both") else 0
    wanted |= DNAT_BIT if nat in ("dnat", "both") else 0
    wanted |= IPS_FIXED_TIMEOUT if proto == GRE else 0
    assert status == wanted, f"{status:#x}, expected {wanted:#x}"

    got = requests.get(entry.key)
    assert got is not None
    assert (got.key, got.reply, got.mark) == (entry.key, entry.reply, mark)
    assert got.status == wanted
    dumped = [one for chunk in requests.dump() for one in chunk]
    assert [(one.key, one.reply) for one in dumped] == [(entry.key, entry.reply)]

    assert requests.execute([build_delete(entry.key)]) == [0]
    assert requests.get(entry.key) is None
    assert conntrack_list(space, f"ipv{version}") == []


def test_a_pristine_tcp_replica_is_liberal_and_has_learnt_nothing(
    space: str, requests: RequestSocket
) -> None:
    entry = entry_of(4, TCP, "snat")
    requests.execute([build_create(entry, hold_s=900)])
    tree = kernel_tree(space, entry.key)
    assert tree[4] == {1: {1: b"\x03", 2: b"\x07", 3: b"\x09", 4: b"\x0b\0", 5: b"\x0b\0"}}
    assert int.from_bytes(tree[7], "big") in (899, 900)

    # Strict again, whatever state it has reached meanwhile.
    moved = build_update(entry.key, tcp=TcpState(4, 0, 0, 7, 9), tcp_flags_mask=0)
    assert requests.execute([moved, clear_liberal(entry.key)]) == [0, 0]
    assert kernel_tree(space, entry.key)[4] == {
        1: {1: b"\x04", 2: b"\x07", 3: b"\x09", 4: b"\x03\0", 5: b"\x03\0"}
    }


def test_a_copy_that_is_not_pristine_keeps_its_flags(space: str, requests: RequestSocket) -> None:
    entry = entry_of(4, TCP, "snat")
    requests.execute([build_create(entry, pristine=False)])
    info = kernel_tree(space, entry.key)[4][1]
    assert (info[4], info[5]) == (b"\x23\0", b"\x03\0")


def test_an_update_changes_what_it_says_and_nothing_else(
    space: str, requests: RequestSocket
) -> None:
    entry = entry_of(6, TCP, "both", zone=7, mark=0x11410007)
    entry = dataclasses.replace(entry, status=0x08)
    requests.execute([build_create(entry)])
    assert "UNREPLIED" in the_only(space, 6).words
    update = build_update(
        entry.key,
        status=0x0E,
        timeout_s=55,
        mark=(0x22820000, 0xFFFF0000),
        tcp=TcpState(4, 0xFF, 0xFF, 7, 9),
    )
    assert requests.execute([update]) == [0]
    listed = the_only(space, 6)
    assert listed.state == "FIN_WAIT"
    assert listed.timeout_s in (54, 55)
    assert int(listed.facts["mark"]) == 0x22820007
    assert "ASSURED" in listed.words
    assert listed_tuple(listed.reply, TCP) == entry.reply
    # Liberal stays; learnt, and octets under way, do not come by an update.
    info = kernel_tree(space, entry.key)[4][1]
    assert (info[4], info[5]) == (b"\xcf\0", b"\xcf\0")


@pytest.mark.parametrize("old", [0x00000000, 0xFFFFFFFF, 0x11410007])
def test_a_masked_mark_is_set_not_flipped(space: str, requests: RequestSocket, old: int) -> None:
    entry = entry_of(4, UDP, "plain", mark=old)
    requests.execute([build_create(entry)])
    for _ in range(2):  # XOR outside the mask would show at the second time
        assert requests.execute([build_update(entry.key, mark=(0x22820000, 0xFFFF0000))]) == [0]
        got = requests.get(entry.key)
        assert got is not None
        assert got.mark == 0x22820000 | (old & 0xFFFF)


def test_an_update_of_a_flow_that_is_gone_does_not_bring_it_back(
    space: str, requests: RequestSocket
) -> None:
    entry = entry_of(4, TCP, "plain")
    assert entry.tcp is not None
    update = build_update(entry.key, timeout_s=9, tcp=entry.tcp)
    assert requests.execute([update]) == [errno.ENOENT]
    assert conntrack_list(space, "ipv4") == []


def test_a_request_in_another_zone_finds_nothing(requests: RequestSocket) -> None:
    entry = entry_of(4, UDP, "plain", zone=7)
    requests.execute([build_create(entry)])
    elsewhere = FlowKey(0, entry.key.orig)
    assert requests.get(elsewhere) is None
    assert requests.execute([build_delete(elsewhere)]) == [errno.ENOENT]
    assert requests.get(entry.key) is not None


def test_helper_labels_and_sequence_adjustment_are_created(
    space: str, requests: RequestSocket
) -> None:
    entry = dataclasses.replace(
        entry_of(4, TCP, "snat"),
        key=FlowKey(0, flow(TCP, "192.0.2.10", "198.51.100.10", 40000, 21)),
        reply=flow(TCP, "198.51.100.10", "198.51.100.254", 21, 1024),
        helper="ftp",
        labels=b"\x08" + bytes(15),
        seqadj=(SeqAdj(100, -6, 12), SeqAdj(0, 0, 0)),
    )
    assert requests.execute([build_create(entry)]) == [0]
    assert the_only(space, 4).facts["helper"] == "ftp"
    tree = kernel_tree(space, entry.key)
    assert tree[22] == entry.labels
    assert tree[15] == {1: struct.pack(">I", 100), 2: struct.pack(">i", -6), 3: b"\0\0\0\x0c"}
    got = requests.get(entry.key)
    assert got is not None
    assert (got.helper, got.labels, got.seqadj) == ("ftp", entry.labels, entry.seqadj)

    moved = (SeqAdj(200, 12, 18), SeqAdj(0, 0, 0))
    assert requests.execute([build_update(entry.key, seqadj=moved)]) == [0]
    got = requests.get(entry.key)
    assert got is not None
    assert got.seqadj == moved

    nobody = dataclasses.replace(entry_of(6, TCP, "plain"), helper="nonesuch")
    assert requests.execute([build_create(nobody)]) == [errno.EOPNOTSUPP]


def test_a_child_may_be_created_with_its_master_or_alone(requests: RequestSocket) -> None:
    master, child = entry_of(4, TCP, "plain"), entry_of(4, UDP, "plain")
    child = dataclasses.replace(child, master=master.key.orig, status=0x0F)
    assert requests.execute([build_create(child, with_master=True)]) == [errno.ENOENT]
    assert requests.execute([build_create(master), build_create(child, with_master=True)]) == [
        0,
        0,
    ]
    got = requests.get(child.key)
    assert got is not None
    assert got.master == master.key.orig
    assert got.status & 1
    # Its EXPECTED bit must be said in an update.
    silent = build_update(child.key, status=0x0E)
    honest = build_update(child.key, status=0x0E, expected=True)
    assert requests.execute([silent, honest]) == [errno.EBUSY, 0]
    assert requests.execute([build_delete(child.key), build_create(child)]) == [0, 0]
    got = requests.get(child.key)
    assert got is not None
    assert not got.status & 1


@pytest.mark.parametrize("nat", ["plain", "snat", "dnat", "both"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_clash_is_eexist_and_never_another_port(
    requests: RequestSocket, version: int, nat: str
) -> None:
    """A flow whose *reply* tuple is taken by a flow with another original tuple."""
    entry = entry_of(version, UDP, nat)
    # The plain flow that has the same reply tuple, and one translated onto it.
    owner = inverse(entry.reply)
    other = dataclasses.replace(owner, src=ip_address(HOSTS[version][3]).packed, sport=5)
    for taken in (owner, other):
        if taken == entry.key.orig:
            continue
        first = FlowEntry(FlowKey(0, taken), entry.reply, 0x0E, 60)
        assert requests.execute([build_create(first), build_create(entry)]) == [0, errno.EEXIST]
        assert requests.get(entry.key) is None
        assert requests.execute([build_delete(first.key)]) == [0]
    assert requests.execute([build_create(entry), build_create(entry)]) == [0, errno.EEXIST]


def test_the_kernel_speaks_as_the_codec_expects(space: str, requests: RequestSocket) -> None:
    """All of a real message is known: the fast path and the general walk give the same."""
    for version, proto, nat in CASES:
        entry = entry_of(version, proto, nat)
        requests.execute([build_create(entry)])
        with entered(space):
            raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        with raw:
            raw.send(build_get(entry.key))
            message = raw.recv(65536)
        (event,) = parse_events(message)
        assert (event.entry.key, event.entry.reply) == (entry.key, entry.reply)
        requests.execute([build_delete(entry.key)])
