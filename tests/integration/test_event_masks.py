"""What the compiled policy lets the kernel say of each flow, counted by a listener of its own.

The numbers stand in docs/internals/measurements.md: change both.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from hafw.flow import TCP_STATES, FlowEntry, FlowKey, hafw_mark
from hafw.kernel.netns import entered
from hafw.kernel.nftables import Nftables
from hafw.policy.event_masks import at_ends, mask_chain
from hafw.policy.expressions import TableWriter
from sync.ctnetlink import CtEvent, EventKind, ExpectEvent, build_create, build_delete
from sync.ctsocket import CONNTRACK_GROUPS, EXPECTATION_GROUPS, EventSocket, RequestSocket
from tests.integration.ct_spaces import inside
from tests.integration.helper_world import OUTSIDE, dial, helper_world, listener
from tests.integration.policy_spaces import CLIENT, OWN_LAN, SERVER, WAIT_S, Site, policy_site
from tests.integration.syncd_world import wait_for

pytestmark = pytest.mark.integration
both = pytest.mark.parametrize("family", [4, 6])
MARK = hafw_mark(1, 1, 1)
CLOSING = ["FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch, policy_site(folder) as made:
        patch.setenv("HAFW_RUN_ROOT", str(folder))
        inside(made.gateway, "sysctl", "-qw", "net.netfilter.nf_conntrack_events=1")
        _load(made)
        yield made


def _load(site: Site) -> None:
    result = site.apply()
    assert result.ok, result.error


class Ear:
    """All events of the gateway since it was asked last."""

    def __init__(self, site: Site) -> None:
        with entered(site.gateway):
            self.events = EventSocket(groups=CONNTRACK_GROUPS + EXPECTATION_GROUPS)
            self.requests = RequestSocket()
        self._heard: list[CtEvent | ExpectEvent] = []

    def close(self) -> None:
        self.events.close()
        self.requests.close()

    def collect(self) -> list[CtEvent | ExpectEvent]:
        while found := self.events.drain_all(1000):
            self._heard += found
        return self._heard

    def words(self) -> list[str]:
        """Each message in a word: kind, or TCP state where there is one."""
        return [_word(event) for event in self.collect()]

    def until(self, last: str) -> list[str]:
        wait_for(lambda: f"{last} after {self.words()}", lambda: last in self.words(), WAIT_S)
        return self.take()

    def take(self) -> list[str]:
        found = self.words()
        self._heard = []
        return found


def _word(event: CtEvent | ExpectEvent) -> str:
    if isinstance(event, ExpectEvent):
        return "EXP DEL" if event.destroyed else "EXP NEW"
    if event.kind is EventKind.UPDATE and event.entry.tcp is not None:
        return TCP_STATES[event.entry.tcp.state]
    return event.kind.name


@pytest.fixture
def ear(site: Site) -> Iterator[Ear]:
    _flush(site)
    made = Ear(site)
    yield made
    made.close()
    site.close_sockets()


def _flush(site: Site) -> None:
    with suppress(AssertionError):
        inside(site.gateway, "conntrack", "-F")


@contextmanager
def _no_masks(site: Site) -> Iterator[None]:
    site.nft("flush chain inet hafw_cluster tcp_ends")
    yield
    _load(site)


def _stream(site: Site, family: int, port: int) -> tuple[socket.socket, socket.socket]:
    waiting = site.listen(site.server, family, port)
    client = site.connect(site.client, family, SERVER[family], port)
    server, _ = site.accept(waiting)
    client.sendall(b"x" * 1000)
    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
    return client, server


def _whole_life(site: Site, ear: Ear, family: int, port: int) -> list[str]:
    """One connection, closed by the client, then by the server; its entry deleted at the end."""
    client, server = _stream(site, family, port)
    said = ear.until("ESTABLISHED")
    client.close()
    said += ear.until("CLOSE_WAIT")
    server.close()
    said += ear.until("TIME_WAIT")
    inside(
        site.gateway, "conntrack", "-D", "-f", f"ipv{family}", "-p", "tcp", "--dport", str(port)
    )
    return said + ear.until("DESTROY")


@both
def test_a_connection_says_what_a_replica_needs_and_no_more(
    site: Site, ear: Ear, family: int
) -> None:
    masked = _whole_life(site, ear, family, 5001)
    assert masked == ["ESTABLISHED", *CLOSING, "DESTROY"]
    with _no_masks(site):
        assert _whole_life(site, ear, family, 5002) == ["NEW", "SYN_RECV", *masked]


def test_the_first_message_has_the_state_and_the_windows(site: Site, ear: Ear) -> None:
    _stream(site, 4, 5001)
    ear.until("ESTABLISHED")
    (entry,) = _tracked(ear, site, 5001)
    assert entry.tcp is not None
    assert entry.tcp.flags_orig & entry.tcp.flags_reply & 1, "window scaling"
    assert entry.mark == MARK


def _tracked(ear: Ear, site: Site, port: int) -> list[FlowEntry]:
    with entered(site.gateway):
        return [e for chunk in ear.requests.dump() for e in chunk if e.key.orig.dport == port]


def test_a_reset_is_said(site: Site, ear: Ear) -> None:
    client, _ = _stream(site, 4, 5001)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert ear.until("CLOSE") == ["ESTABLISHED", "CLOSE"]


@both
def test_what_is_refused_or_not_answered_says_nothing(site: Site, ear: Ear, family: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        site.connect(site.client, family, SERVER[family], 5999)
    waiting = site.socket(site.client, family, socket.SOCK_STREAM)
    waiting.setblocking(False)
    with suppress(BlockingIOError):  # Nobody has this address.
        waiting.connect((SERVER[family][:-2] + ("77" if family == 4 else "::77")[-2:], 80))
    _flush(site)  # The end of both, too.
    assert ear.take() == []
    with _no_masks(site), pytest.raises(ConnectionRefusedError):
        site.connect(site.client, family, SERVER[family], 5999)
    assert ear.take()[0] == "NEW"


@both
def test_datagrams_and_pings_say_their_begin_the_answer_and_the_end(
    site: Site, ear: Ear, family: int
) -> None:
    server = site.socket(site.server, family, socket.SOCK_DGRAM, port=5003)
    client = site.socket(site.client, family, socket.SOCK_DGRAM)
    client.sendto(b"question", (SERVER[family], 5003))
    _, source = server.recvfrom(10)
    server.sendto(b"answer", source[:2])
    client.recv(10)
    _flush(site)
    assert ear.take() == ["NEW", "UPDATE", "DESTROY"]
    assert site.ping(site.client, family, SERVER[family], WAIT_S)
    _flush(site)
    assert ear.take() == ["NEW", "UPDATE", "DESTROY"]


@both
def test_flows_of_the_node_itself_are_silent(site: Site, ear: Ear, family: int) -> None:
    """Whoever begins them, and by whatever device they come."""
    vip = {4: "192.0.2.254", 6: "2001:db8:1::fe"}[family]
    assert site.ping(site.client, family, vip, WAIT_S)
    inside(site.gateway, "sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
    assert site.ping(site.gateway, family, CLIENT[family], WAIT_S)
    assert site.ping(site.client, family, OWN_LAN[family], WAIT_S)
    site.listen(site.client, family, 5004)
    site.connect(site.gateway, family, CLIENT[family], 5004).close()
    _flush(site)
    assert ear.take() == []


def test_a_helper_still_expects_and_its_data_connection_is_masked(site: Site, ear: Ear) -> None:
    """FTP in active mode by hand: the server dials what the helper made of PORT."""
    control, server = _stream_to_21(site)
    assert ear.until("ESTABLISHED") == ["ESTABLISHED"]
    data = site.listen(site.client, 4, 5005, CLIENT[4])
    control.sendall(b"NOOP\r\n")  # The helper reads from the end of a line on.
    server.recv(100)
    high, low = divmod(5005, 256)
    control.sendall(f"PORT {CLIENT[4].replace('.', ',')},{high},{low}\r\n".encode())
    numbers = [int(n) for n in re.findall(rb"\d+", server.recv(100))]
    target = ".".join(map(str, numbers[:4])), numbers[4] << 8 | numbers[5]
    assert target[0] != CLIENT[4]
    back = site.socket(site.server, 4, socket.SOCK_STREAM, SERVER[4])
    back.connect(target)
    site.accept(data)
    assert ear.until("ESTABLISHED") == ["EXP NEW", "EXP DEL", "ESTABLISHED"]
    (child,) = [e for e in _tracked(ear, site, target[1]) if e.master is not None]
    assert child.mark == MARK


def _stream_to_21(site: Site) -> tuple[socket.socket, socket.socket]:
    waiting = site.listen(site.server, 4, 21)
    control = site.connect(site.client, 4, SERVER[4], 21)
    server, _ = site.accept(waiting)
    return control, server


def test_an_entry_made_by_ctnetlink_needs_no_mask(site: Site, ear: Ear) -> None:
    """An adopted replica speaks of what it must, and of nothing else, without a rule for it."""
    client, server = _stream(site, 4, 5001)
    ear.until("ESTABLISHED")
    (entry,) = _tracked(ear, site, 5001)
    made = [build_delete(entry.key), build_create(entry, hold_s=900)]
    assert ear.requests.execute(made) == [0, 0]
    ear.until("DESTROY")
    for _ in range(20):
        client.sendall(b"y" * 1000)
        server.recv(1000, socket.MSG_WAITALL)
        server.sendall(b"z" * 1000)
        client.recv(1000, socket.MSG_WAITALL)
    assert ear.take() == []
    client.close()
    said = ear.until("CLOSE_WAIT")
    server.close()
    assert said + ear.until("TIME_WAIT") == CLOSING


def test_each_closing_state_reaches_the_replica() -> None:
    with helper_world() as world:
        table = TableWriter("masks")
        table.base_chain("prerouting", "prerouting", -140)
        table.rule("prerouting", *at_ends())
        mask_chain(table)
        for gateway in world.cluster.gateways:
            with entered(gateway.space), Nftables() as nft:
                nft.json_cmd({"nftables": table.replaced()})
        with entered(world.cluster[2].space):
            replicas = RequestSocket()
        with (
            replicas,
            listener(world.outside, 4, OUTSIDE[4], 21, socket.SOCK_STREAM) as waiting,
            dial(world.inside, 4, OUTSIDE[4], 21) as client,
        ):
            server, _ = waiting.accept()
            keys: list[FlowKey] = []

            def state() -> str:
                with entered(world.cluster[2].space):
                    found = [e for chunk in replicas.dump() for e in chunk if e.tcp is not None]
                keys[:] = [entry.key for entry in found]
                return TCP_STATES[found[0].tcp.state] if found and found[0].tcp else "none"

            def reaches(wanted: str) -> None:
                wait_for(lambda: f"{wanted}, not {state()}", lambda: state() == wanted, WAIT_S)

            reaches("ESTABLISHED")
            client.shutdown(socket.SHUT_WR)
            reaches("CLOSE_WAIT")
            server.close()
            reaches("TIME_WAIT")
            inside(world.cluster[1].space, "conntrack", "-D", "-p", "tcp")
            reaches("none")
