"""`sync: always | delayed | never` under traffic: what a listener hears, what a dump shows."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from hafw.flow import GROUP_MASK, NEVER_MARK, FlowEntry, delayed_mark, hafw_mark
from hafw.kernel.netns import entered
from sync.ctnetlink import EventKind
from sync.ctsocket import EventSocket, RequestSocket
from sync.publish import publishable
from tests.integration.ct_spaces import inside
from tests.integration.policy_spaces import (
    LAB,
    SERVER,
    VIP_WAN,
    WAIT_S,
    Site,
    policy_site,
)
from tests.integration.syncd_world import wait_for

pytestmark = pytest.mark.integration
both = pytest.mark.parametrize("family", [4, 6])
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
kinds = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
MARK = hafw_mark(1, 1, 1)
DELAY_S = 1
NEVER, DELAYED, ALWAYS = 5001, 5002, 5003

POLICY = f"""
zones: {{lan: [lan], wan: [wan]}}
services:
  once: {{tcp: [{NEVER}], udp: [{NEVER}]}}
  slow: {{tcp: [{DELAYED}], udp: [{DELAYED}], icmp: [echo-request], icmpv6: [echo-request]}}
rules:
- {{from: lan, to: wan, services: once, action: accept, sync: never}}
- {{from: lan, to: wan, services: slow, action: accept, sync: delayed}}
- {{from: lan, to: wan, action: accept}}
nat:
  masquerade: [{{from: lan, to: wan}}]
  dnat: [{{on: wan, protocol: [udp], ports: 8080, to: 192.0.2.20, sync: never}}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch, policy_site(folder) as made:
        patch.setenv("HAFW_RUN_ROOT", str(folder))
        made.cluster = folder / "cluster.yaml"
        text = (LAB / "cluster.yaml").read_text()
        made.cluster.write_text(f"{text}\nsync: {{delay_s: {DELAY_S}}}\n")
        inside(made.gateway, "sysctl", "-qw", "net.netfilter.nf_conntrack_events=1")
        result = made.apply(POLICY)
        assert result.ok, result.error
        yield made


class Gateway:
    """What syncd would hear and see, of one server port."""

    def __init__(self, site: Site, port: int) -> None:
        with entered(site.gateway):
            self.events, self.requests = EventSocket(), RequestSocket()
        self._site, self._port = site, port

    def close(self) -> None:
        self.events.close()
        self.requests.close()

    def heard(self) -> list[tuple[EventKind, int]]:
        """(kind, mark) of each message since the last call."""
        return [
            (event.kind, event.entry.mark)
            for event in self.events.drain(1000)
            if event.entry.key.orig.dport == self._port
        ]

    def entry(self) -> FlowEntry:
        with entered(self._site.gateway):
            found = [e for chunk in self.requests.dump() for e in chunk]
        (one,) = [entry for entry in found if entry.key.orig.dport == self._port]
        return one

    def of_the_group(self) -> list[FlowEntry]:
        """As passes and snapshots look for flows."""
        with entered(self._site.gateway):
            chunks = list(self.requests.dump(mark=1 << 28, mask=GROUP_MASK))
        return [e for chunk in chunks for e in chunk if e.key.orig.dport == self._port]


class Talk:
    """A client's flow through the gateway, and its other end."""

    def __init__(self, site: Site, family: int, kind: int, port: int) -> None:
        if kind == TCP:
            waiting = site.listen(site.server, family, port)
            self.client = site.connect(site.client, family, SERVER[family], port)
            self.server, source = site.accept(waiting)
            assert source == VIP_WAN[family], "translated as any other flow"
        else:
            self.server = site.socket(site.server, family, UDP, port=port)
            self.client = site.socket(site.client, family, UDP)
            self.client.connect((SERVER[family], port))
            self.client.send(b"x")
            _, peer = self.server.recvfrom(1)
            assert peer[0] == VIP_WAN[family]
            self.server.connect(peer[:2])
            self.server.send(b"y")
            self.client.recv(1)

    def talk(self) -> None:
        self.client.send(b"question")
        assert self.server.recv(100) == b"question"
        self.server.send(b"answer")
        assert self.client.recv(100) == b"answer"

    def end(self) -> None:
        self.client.close()
        if self.server.type == TCP:
            assert self.server.recv(1) == b""
        self.server.close()


@pytest.fixture(autouse=True)
def _empty(site: Site) -> Iterator[None]:
    _flush(site)
    yield
    site.close_sockets()


def _flush(site: Site) -> None:
    with suppress(AssertionError):
        inside(site.gateway, "conntrack", "-F")


@both
@kinds
def test_never_is_silent_and_in_no_dump_of_the_group(site: Site, family: int, kind: int) -> None:
    gateway = Gateway(site, NEVER)
    talk = Talk(site, family, kind, NEVER)
    talk.talk()
    assert gateway.entry().mark == NEVER_MARK
    assert gateway.of_the_group() == []
    talk.end()
    _flush(site)
    assert gateway.heard() == []
    gateway.close()


@both
@kinds
def test_delayed_and_short_is_silent(site: Site, family: int, kind: int) -> None:
    gateway = Gateway(site, DELAYED)
    talk = Talk(site, family, kind, DELAYED)
    for _ in range(5):
        talk.talk()
    assert gateway.entry().mark == delayed_mark(1)
    assert gateway.of_the_group() == []
    talk.end()
    _flush(site)
    assert gateway.heard() == []
    gateway.close()


@both
@kinds
def test_delayed_speaks_with_its_first_packet_after_the_delay(
    site: Site, family: int, kind: int
) -> None:
    gateway = Gateway(site, DELAYED)
    talk = Talk(site, family, kind, DELAYED)
    begun = time.monotonic()
    heard: list[tuple[EventKind, int]] = []

    def speaks() -> bool:
        talk.talk()
        heard.extend(gateway.heard())
        return bool(heard)

    wait_for("the flow is said", speaks, DELAY_S + WAIT_S)
    assert time.monotonic() - begun >= DELAY_S * 0.9
    assert heard[0] == (EventKind.UPDATE, MARK)
    (entry,) = gateway.of_the_group()
    assert entry.mark == MARK
    assert publishable(entry)
    talk.end()
    if kind == TCP:
        wait_for("the end is said", lambda: len(_more(heard, gateway)) > 3)
    _flush(site)
    heard += gateway.heard()
    assert heard[-1][0] is EventKind.DESTROY
    assert all(mark == MARK for _, mark in heard)
    gateway.close()


def _more(heard: list[tuple[EventKind, int]], gateway: Gateway) -> list[tuple[EventKind, int]]:
    heard.extend(gateway.heard())
    return heard


@both
def test_a_delayed_ping_is_published_at_once(site: Site, family: int) -> None:
    """Only flows with ports can wait."""
    with entered(site.gateway):
        events = EventSocket()
    with events:
        assert site.ping(site.client, family, SERVER[family], WAIT_S)
        assert [event.entry.mark for event in events.drain(10)] == [MARK, MARK]


@both
def test_a_one_way_flow_keeps_its_class(site: Site, family: int) -> None:
    """Each of its packets is `new`, and meets the rules again."""
    for port, mark in ((NEVER, NEVER_MARK), (DELAYED, delayed_mark(1))):
        gateway = Gateway(site, port)
        client = site.socket(site.client, family, UDP)
        for _ in range(3):
            client.sendto(b"x", (SERVER[family], port))
        site.ping(site.client, family, SERVER[family], WAIT_S)  # All have passed.
        assert gateway.entry().mark == mark
        assert gateway.heard() == []
        gateway.close()


def test_a_translated_destination_has_a_class_too(site: Site) -> None:
    gateway = Gateway(site, 8080)
    inner = site.socket(site.client, 4, UDP, "192.0.2.20", 8080)
    outer = site.socket(site.server, 4, UDP)
    outer.sendto(b"hello", (VIP_WAN[4], 8080))
    _, sender = inner.recvfrom(10)
    inner.sendto(b"in", sender)
    assert outer.recv(10) == b"in"
    assert gateway.entry().mark == NEVER_MARK
    assert gateway.heard() == []
    gateway.close()


def test_the_users_bits_of_the_mark_are_left_alone(site: Site) -> None:
    site.nft("add table inet user")
    hook = "{ type filter hook prerouting priority -149 ; }"
    site.nft(f"add chain inet user c {hook}")
    site.nft("add rule inet user c ct state new ct mark set ct mark | 0x0abc")
    try:
        for port, mark in ((NEVER, NEVER_MARK), (DELAYED, delayed_mark(1)), (ALWAYS, MARK)):
            gateway = Gateway(site, port)
            Talk(site, 4, UDP, port)
            assert gateway.entry().mark == mark | 0x0ABC
            gateway.close()
    finally:
        site.nft("delete table inet user")


def test_what_waits_is_no_drift(site: Site) -> None:
    from hafw.policy.loaded import kernel_hash

    before = kernel_hash(site.listing())
    Talk(site, 4, UDP, DELAYED)
    assert kernel_hash(site.listing()) == before


def test_what_waited_is_published_under_a_policy_without_delays(site: Site) -> None:
    gateway = Gateway(site, DELAYED)
    talk = Talk(site, 4, UDP, DELAYED)
    assert site.apply(POLICY.replace("sync: delayed", "sync: always")).ok
    try:
        talk.talk()
        assert gateway.heard() == [(EventKind.UPDATE, MARK)]
    finally:
        assert site.apply(POLICY).ok
    gateway.close()
