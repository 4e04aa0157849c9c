"""The lab's policy under real traffic: one gateway, both families."""

from __future__ import annotations

import ftplib
import socket
import subprocess
import sys
from ipaddress import ip_address

import pytest

from hafw.flow import IPPROTO_UDP, Expectation, ExpectNat, FlowKey, Tuple, hafw_mark
from hafw.kernel.netns import entered
from sync.ctnetlink import build_expect_create
from sync.ctsocket import RequestSocket
from tests.integration.policy_spaces import (
    CLIENT,
    FAMILY,
    INNER,
    OWN_LAN,
    SERVER,
    VIP_WAN,
    WAIT_S,
    Site,
    run,
    silent,
    tcp_segment,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("afresh")]
both = pytest.mark.parametrize("family", [4, 6])
MARK = hafw_mark(1, 1, 1)
SYN, RST, ACK = 0x02, 0x04, 0x10


@both
def test_tcp_leaves_with_the_vip_as_source_and_the_groups_mark(site: Site, family: int) -> None:
    listener = site.listen(site.server, family, 5001)
    stream = site.connect(site.client, family, SERVER[family], 5001)
    accepted, source = site.accept(listener)
    assert source == VIP_WAN[family]
    stream.sendall(b"ping")
    assert accepted.recv(4) == b"ping"
    accepted.sendall(b"pong")
    assert stream.recv(4) == b"pong"
    (flow,) = site.flows("-p", "tcp", "--dport", "5001")
    assert f"mark={MARK} " in flow


@both
def test_udp_leaves_with_the_vip_as_source_and_is_answered(site: Site, family: int) -> None:
    server = site.socket(site.server, family, socket.SOCK_DGRAM, port=5002)
    client = site.socket(site.client, family, socket.SOCK_DGRAM)
    client.sendto(b"ping", (SERVER[family], 5002))
    text, source = server.recvfrom(10)
    assert (text, source[0]) == (b"ping", VIP_WAN[family])
    server.sendto(b"pong", source[:2])
    assert client.recv(10) == b"pong"
    (flow,) = site.flows("-p", "udp", "--dport", "5002")
    assert f"mark={MARK} " in flow


@both
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_port_8080_of_the_vip_leads_to_the_inner_server(
    site: Site, family: int, kind: int
) -> None:
    inner = site.socket(site.client, family, kind, INNER[family], 8080)
    outer = site.socket(site.server, family, kind)
    if kind == socket.SOCK_STREAM:
        inner.listen(1)
        outer.connect((VIP_WAN[family], 8080))
        accepted, source = site.accept(inner)
        accepted.sendall(b"in")
    else:
        outer.sendto(b"hello", (VIP_WAN[family], 8080))
        _, sender = inner.recvfrom(10)
        inner.sendto(b"in", sender[:2])
        source = sender[0]
    assert source == SERVER[family]
    assert outer.recv(2) == b"in"
    name = "tcp" if kind == socket.SOCK_STREAM else "udp"
    (flow,) = site.flows("-p", name, "--dport", "8080")
    assert f"mark={MARK} " in flow


@both
def test_the_vip_answers_ping_and_that_flow_is_the_nodes_own(site: Site, family: int) -> None:
    address = {4: "192.0.2.254", 6: "2001:db8:1::fe"}[family]
    assert site.ping(site.client, family, address, WAIT_S)
    flows = site.flows("-p", "icmp" if family == 4 else "icmpv6")
    assert flows
    assert all("mark=0 " in flow for flow in flows if address in flow)


@both
def test_an_icmp_error_does_not_rewrite_the_mark_of_its_flow(site: Site, family: int) -> None:
    client = site.socket(site.client, family, socket.SOCK_DGRAM)
    client.connect((SERVER[family], 5003))
    server = site.socket(site.server, family, socket.SOCK_DGRAM, port=5003)
    client.send(b"x")
    server.recv(1)
    other = hafw_mark(1, 2, 2) | 0x0ABC
    filters = ("-U", "-p", "udp", "--dport", "5003", "-m", str(other))
    name = {4: "ipv4", 6: "ipv6"}[family]
    subprocess.run(
        ["ip", "netns", "exec", site.gateway, "conntrack", *filters, "-f", name],
        check=True,
        capture_output=True,
    )
    server.close()
    client.send(b"y")  # Port unreachable comes back, by the other virtual MAC device.
    with pytest.raises(ConnectionRefusedError):
        client.recv(1)
    (flow,) = site.flows("-p", "udp", "--dport", "5003")
    assert f"mark={other} " in flow


@both
def test_ftp_in_active_mode_goes_through_with_its_helper(site: Site, family: int) -> None:
    """The data connection comes from outside, to a VIP: only the helper's expectation lets it."""
    code = (
        "from pyftpdlib.authorizers import DummyAuthorizer\n"
        "from pyftpdlib.handlers import FTPHandler\n"
        "from pyftpdlib.servers import FTPServer\n"
        "FTPHandler.authorizer = DummyAuthorizer()\n"
        # It compares texts, and the kernel's helper writes IPv6 addresses in full.
        "FTPHandler.permit_foreign_addresses = True\n"
        f"FTPHandler.authorizer.add_anonymous({str(site.run_root)!r})\n"
        f"server = FTPServer(({SERVER[family]!r}, 21), FTPHandler)\n"
        "print('ready', flush=True)\n"
        "server.serve_forever()\n"
    )
    (site.run_root / "file.bin").write_bytes(b"z" * 100_000)
    with entered(site.server):
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        got: list[bytes] = []
        with entered(site.client), ftplib.FTP(timeout=WAIT_S) as ftp:
            ftp.connect(SERVER[family], 21)
            ftp.login()
            ftp.set_pasv(False)
            ftp.retrbinary("RETR file.bin", got.append)
            assert b"".join(got) == b"z" * 100_000
            (control,) = site.flows("-p", "tcp", "--dport", "21")
            assert "helper=ftp" in control
            children = [flow for flow in site.flows("-p", "tcp") if "dport=21 " not in flow]
            assert len(children) == 1
            assert all(f"mark={MARK} " in flow for flow in children)
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()


@both
def test_a_call_that_a_replica_expects_gets_the_sip_helper_and_its_media_do_not(
    site: Site, family: int
) -> None:
    """The expectation is made as a peer's syncd makes it. ctnetlink gives its children no helper:
    the policy does."""
    phone = site.socket(site.client, family, socket.SOCK_DGRAM, port=5062)
    phone.sendto(b"registers", (SERVER[family], 5060))
    (master,) = site.flows("-p", "udp", "--dport", "5060")
    assert "helper=sip" in master
    vip, client, server = (ip_address(a[family]).packed for a in (VIP_WAN, CLIENT, SERVER))
    kind = FAMILY[family]
    key = FlowKey(0, Tuple(kind, IPPROTO_UDP, client, server, 5062, 5060))
    expectation = Expectation(
        key, Tuple(kind, IPPROTO_UDP, server, vip, 0, 5062), b"\xff" * len(vip), 0, 60, 1, 0,
        ExpectNat(1, client, 5062), "sip", "sip",
    )  # fmt: skip
    with entered(site.gateway):
        kernel = RequestSocket()
    assert kernel.execute([build_expect_create(expectation)]) == [0]
    request = b"OPTIONS sip:a SIP/2.0\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    for port, text in ((5070, request), (6000, b"\x80\x00media")):
        caller = site.socket(site.server, family, socket.SOCK_DGRAM, port=port)
        caller.sendto(text, (VIP_WAN[family], 5062))
        assert phone.recv(1000) == text
    kernel.close()
    (call,) = site.flows("-p", "udp", "--sport", "5070")
    (media,) = site.flows("-p", "udp", "--sport", "6000")
    assert "helper=sip" in call
    assert "helper" not in media


@both
def test_a_source_of_the_lan_that_comes_from_the_wan_is_dropped(site: Site, family: int) -> None:
    spoofed = {4: "192.0.2.99", 6: "2001:db8:1::99"}[family]
    width = {4: 32, 6: 128}[family]
    site.ip(site.server, f"addr add {spoofed}/{width} dev lo")
    inner = site.socket(site.client, family, socket.SOCK_DGRAM, INNER[family], 8080)
    liar = site.socket(site.server, family, socket.SOCK_DGRAM, spoofed)
    liar.sendto(b"x", (VIP_WAN[family], 8080))
    assert silent(inner)
    assert site.counter("spoofed") == 1
    honest = site.socket(site.server, family, socket.SOCK_DGRAM)
    honest.sendto(b"y", (VIP_WAN[family], 8080))
    inner.settimeout(WAIT_S)
    assert inner.recv(1) == b"y"


@both
def test_a_first_packet_by_the_nodes_own_mac_is_dropped_and_counted(
    site: Site, family: int
) -> None:
    listener = site.listen(site.server, family, 5004)
    route = f"-{family} route add {SERVER[family]} via {OWN_LAN[family]}"
    site.ip(site.client, route)
    try:
        client = site.socket(site.client, family, socket.SOCK_STREAM)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect((SERVER[family], 5004))
        client.close()
        assert site.counter("other_way") >= 1
        assert silent(listener)
    finally:
        site.ip(site.client, route.replace("add", "del"))
    assert site.connect(site.client, family, SERVER[family], 5004)


@both
def test_a_vip_by_the_nodes_own_mac_is_dropped_and_counted(site: Site, family: int) -> None:
    """The same for what ends on the node: a ping to the VIP, sent to the physical device."""
    vip = {4: "192.0.2.254", 6: "2001:db8:1::fe"}[family]
    link = run("ip", "-n", site.gateway, "-o", "link", "show", "lan0")
    address = link.split("link/ether ")[1].split()[0]
    entry = f"-{family} neigh replace {vip} dev eth0 lladdr {address} nud permanent"
    site.ip(site.client, entry)
    try:
        assert not site.ping(site.client, family, vip, 0.5)
        assert site.counter("other_way") == 1
    finally:
        site.ip(site.client, f"-{family} neigh del {vip} dev eth0")


def _resets(site: Site, family: int, flags: int, port: int) -> bool:
    """Whether a RST comes back from the VIP for one segment from the server."""
    with entered(site.server):
        raw = socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.settimeout(0.5)
    segment = tcp_segment(family, SERVER[family], VIP_WAN[family], 40000 + port, port, flags)
    raw.sendto(segment, (VIP_WAN[family], 0))
    try:
        while True:
            packet = raw.recv(2048)
            tcp = packet[20:] if family == 4 else packet
            if tcp[13] & RST and int.from_bytes(tcp[2:4], "big") == 40000 + port:
                return True
    except TimeoutError:
        return False
    finally:
        raw.close()


@both
def test_no_rst_comes_from_a_vip_for_a_flow_that_is_unknown(site: Site, family: int) -> None:
    """With a packet in mid-stream, and with a first one. Without our tables the stack answers."""
    assert not _resets(site, family, ACK, 6001)
    assert site.counter("vip_invalid") == 1
    assert not _resets(site, family, SYN, 6002)
    assert site.counter("vip_refused", "hafw_policy") == 1
    for table in ("hafw_policy", "hafw_cluster", "hafw_state"):
        site.nft(f"delete table inet {table}")
    assert _resets(site, family, ACK, 6003)
    assert _resets(site, family, SYN, 6004)


@both
def test_in_a_handover_only_first_packets_wait(site: Site, family: int) -> None:
    listener = site.listen(site.server, family, 5005)
    stream = site.connect(site.client, family, SERVER[family], 5005)
    accepted, _ = site.accept(listener)
    server = site.socket(site.server, family, socket.SOCK_DGRAM, port=5006)
    oneway = site.socket(site.client, family, socket.SOCK_DGRAM)
    oneway.sendto(b"a", (SERVER[family], 5006))
    assert server.recv(1) == b"a"
    # What the gate's program does while accept is open and announce is not.
    site.nft("add table inet t_gate")
    site.nft("add chain inet t_gate c { type filter hook prerouting priority -400 ; }")
    site.nft("add rule inet t_gate c iifname hv1-lan meta mark set 0x4841")
    try:
        stream.sendall(b"still")
        assert accepted.recv(5) == b"still"
        oneway.sendto(b"b", (SERVER[family], 5006))
        assert server.recv(1) == b"b"
        assert site.counter("handover") == 0
        first = site.socket(site.client, family, socket.SOCK_DGRAM)
        first.sendto(b"c", (SERVER[family], 5006))
        assert silent(server)
        assert site.counter("handover") == 1
    finally:
        site.nft("delete table inet t_gate")
    first.sendto(b"d", (SERVER[family], 5006))
    server.settimeout(WAIT_S)
    assert server.recv(1) == b"d"


@both
def test_what_is_not_tracked_is_never_forwarded(site: Site, family: int) -> None:
    server = site.socket(site.server, family, socket.SOCK_DGRAM, port=5010)
    client = site.socket(site.client, family, socket.SOCK_DGRAM)
    site.nft("add table inet t_raw")
    site.nft("add chain inet t_raw c { type filter hook prerouting priority -400 ; }")
    site.nft("add rule inet t_raw c udp dport 5010 notrack")
    try:
        client.sendto(b"x", (SERVER[family], 5010))
        assert silent(server)
        assert site.counter("untracked") == 1
    finally:
        site.nft("delete table inet t_raw")


@both
def test_what_no_rule_accepts_is_dropped(site: Site, family: int) -> None:
    """From the WAN to the LAN, sent to the virtual MAC, to an address that is not translated."""
    inner = site.socket(site.client, family, socket.SOCK_DGRAM, CLIENT[family], 5007)
    site.ip(site.server, f"-{family} route add {CLIENT[family]} via {VIP_WAN[family]}")
    try:
        outer = site.socket(site.server, family, socket.SOCK_DGRAM)
        outer.sendto(b"x", (CLIENT[family], 5007))
        assert silent(inner)
        assert site.counter("forward_refused", "hafw_policy") == 1
    finally:
        site.ip(site.server, f"-{family} route del {CLIENT[family]}")
