"""Announcements as bytes, read back field by field."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cluster.announce import AnnouncedPort, announced_ports, arp_frames, na_frame, port_frames
from cluster.mld import report_frames, solicited_node
from cluster.vmac import virtual_link_local
from hafw.config.load import load_cluster

MAC = "00:00:5e:00:01:2a"
RAW = bytes.fromhex("00005e00012a")


def ones_complement_sum(octets: bytes) -> int:
    """The slow way of RFC 1071: word by word, carry at once."""
    total = 0
    for place in range(0, len(octets), 2):
        total += octets[place] << 8 | octets[place + 1]
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


def test_gratuitous_arp_is_a_request_and_a_reply_for_the_vip() -> None:
    vip = IPv4Address("192.0.2.254")
    request, reply = arp_frames(MAC, vip)
    for frame, operation in ((request, 1), (reply, 2)):
        assert len(frame) == 42
        assert frame[:6] == b"\xff" * 6
        assert frame[6:12] == RAW
        assert frame[12:14] == b"\x08\x06"
        assert frame[14:20] == b"\x00\x01\x08\x00\x06\x04"
        assert int.from_bytes(frame[20:22], "big") == operation
        assert frame[22:28] == RAW
        assert frame[28:32] == frame[38:42] == vip.packed
    assert request[32:38] == bytes(6)
    assert reply[32:38] == RAW


@given(st.ip_addresses(v=6))
def test_neighbour_advertisement(target: IPv6Address) -> None:
    frame = na_frame(MAC, target)
    assert len(frame) == 86
    assert frame[:14] == bytes.fromhex("333300000001") + RAW + b"\x86\xdd"
    header, body = frame[14:54], frame[54:]
    assert header[0] >> 4 == 6
    assert int.from_bytes(header[4:6], "big") == len(body) == 32
    assert header[6] == 58
    assert header[7] == 255, "RFC 4861, 7.1.2: any other hop limit is ignored"
    assert header[8:24] == target.packed
    assert header[24:40] == IPv6Address("ff02::1").packed
    assert body[0:2] == b"\x88\x00"
    assert body[4] == 0xA0, "router and override, not solicited"
    assert body[8:24] == target.packed
    assert body[24:26] == b"\x02\x01"
    assert body[26:32] == RAW
    pseudo = header[8:40] + len(body).to_bytes(4, "big") + b"\0\0\0\x3a"
    assert ones_complement_sum(pseudo + body) == 0xFFFF


@given(st.lists(st.ip_addresses(v=6), min_size=1, max_size=4))
def test_listener_reports_name_each_group_once_in_both_versions(
    targets: list[IPv6Address],
) -> None:
    source = IPv6Address("fe80::200:5eff:fe00:12a")
    newer, *older = report_frames(MAC, source, targets)
    wanted = {(b"\xff\x02" + bytes(9) + b"\x01\xff" + t.packed[13:]) for t in targets}
    for frame in (newer, *older):
        header, options, body = frame[14:54], frame[54:62], frame[62:]
        assert frame[:2] == b"\x33\x33"
        assert frame[2:6] == header[36:40], "the MAC of the group it goes to (RFC 2464, 7)"
        assert frame[6:14] == RAW + b"\x86\xdd"
        assert int.from_bytes(header[4:6], "big") == len(options) + len(body)
        assert header[6:8] == b"\x00\x01", "hop-by-hop options, hop limit 1: RFC 3810, 5"
        assert header[8:24] == source.packed
        assert options == bytes.fromhex("3a00050200000100"), "router alert for MLD"
        pseudo = header[8:40] + len(body).to_bytes(4, "big") + b"\0\0\0\x3a"
        assert ones_complement_sum(pseudo + body) == 0xFFFF
    assert newer[38:54] == IPv6Address("ff02::16").packed
    assert newer[62] == 143
    records = [newer[70 + 20 * n :][:20] for n in range(int.from_bytes(newer[68:70], "big"))]
    assert {record[4:] for record in records} == wanted
    assert {record[:4] for record in records} == {b"\x04\0\0\0"}, "to EXCLUDE of no source"
    assert len(records) == len(older) == len(wanted)
    assert {frame[62] for frame in older} == {131}
    assert {frame[70:] for frame in older} == {frame[38:54] for frame in older} == wanted


def test_no_listener_report_without_an_address() -> None:
    assert report_frames(MAC, IPv6Address("fe80::1"), []) == []
    assert str(solicited_node(IPv6Address("2001:db8::12:3456"))) == "ff02::1:ff12:3456"


def test_a_port_announces_each_vip_and_listens_for_the_link_local_address_too() -> None:
    four, six = IPv4Address("192.0.2.254"), IPv6Address("2001:db8:1::fe:1")
    local = virtual_link_local(MAC)
    assert solicited_node(local) != solicited_node(six)
    reports = report_frames(MAC, local, [six, local])
    assert len(reports) == 3, "one of both groups, and one of each for older switches"
    frames = port_frames(AnnouncedPort("hv1-lan", MAC, (four, six)))
    told = [*arp_frames(MAC, four), na_frame(MAC, six), na_frame(MAC, local)]
    assert sorted(frames) == sorted([*told, *reports])
    assert port_frames(AnnouncedPort("hv1-lan", MAC, (four,))) == arp_frames(MAC, four)


def test_ports_of_a_group_only_for_its_candidates() -> None:
    config = load_cluster(Path(__file__).parents[3] / "hafw/lab/cluster.yaml")
    ports = announced_ports(config, "main", "gw1")
    assert [(port.ifname, port.mac) for port in ports] == [
        ("hv1-lan", "00:00:5e:00:01:01"),
        ("hv1-wan", "00:00:5e:00:01:01"),
    ]
    assert IPv6Address("2001:db8:1::fe") in ports[0].vips
    assert announced_ports(config, "main", "wit") == []
