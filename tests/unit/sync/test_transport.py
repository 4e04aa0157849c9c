"""Over which ways a datagram goes, with links, and with a segment in their place."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import cast

import pytest

from hafw.config.load import load_cluster
from sync.detour import segment_name
from sync.transport import Transport

CONFIG = load_cluster(Path(__file__).parents[3] / "hafw/lab/cluster.yaml")
PEER = CONFIG.nodes["gw2"].id
LAN, WAN = segment_name("lan"), segment_name("wan")


class Wire:
    """Stands for the socket of one way, and notes by which way something went."""

    def __init__(self, name: str, went: list[str]) -> None:
        self.name, self.went = name, went

    def sendto(self, datagram: bytes, address: tuple[str, int]) -> int:
        assert address[1] == CONFIG.sync.port
        self.went.append(self.name)
        return len(datagram)


class Ways:
    """gw1's transport, all of its ways open."""

    def __init__(self) -> None:
        self.transport = Transport(CONFIG, "gw1")
        self.went: list[str] = []
        for link in self.transport._links:
            link.own = cast(socket.socket, Wire(link.name, self.went))

    def shut(self, name: str) -> None:
        for link in self.transport._links:
            if link.name == name:
                link.own = None

    def unicast(self, attempt: int = 0) -> list[str]:
        self.went.clear()
        self.transport.unicast(PEER, b"x", attempt=attempt)
        return list(self.went)

    def everywhere(self) -> set[str]:
        self.went.clear()
        self.transport.unicast_everywhere(PEER, b"x")
        return set(self.went)

    def to_all(self) -> list[str]:
        self.went.clear()
        self.transport.to_all(b"x")
        return list(self.went)

    def asked(self) -> list[str]:
        return [name for name, _, _ in self.transport.addresses_to(PEER)]


@pytest.fixture
def ways() -> Ways:
    return Ways()


def test_segments_carry_nothing_while_links_reach_the_peer(ways: Ways) -> None:
    links = ways.transport.shared[PEER]
    assert links
    assert set(ways.transport.segments[PEER]) == {LAN, WAN}
    assert ways.everywhere() == set(links)
    assert ways.asked() == ways.to_all() == links
    assert [ways.unicast(n) for n in range(len(links))] == [[name] for name in links]


def test_a_segment_that_stands_in_carries_everything_for_the_peer(ways: Ways) -> None:
    links = ways.transport.shared[PEER]
    ways.transport.detour({PEER: WAN})
    assert ways.unicast() == [links[0], WAN], "the links are tried all the time"
    assert ways.asked() == [WAN]
    assert sorted(ways.to_all()) == sorted([*links, WAN])
    assert ways.everywhere() == {*links, LAN, WAN}
    for name in links:
        ways.shut(name)
    assert ways.unicast() == [WAN]
    ways.transport.detour({})
    assert ways.unicast() == []
    assert ways.transport.counters["send_no_link"] == 1


def test_a_peer_that_no_segment_reaches_is_still_asked_over_all(ways: Ways) -> None:
    links = ways.transport.shared[PEER]
    ways.transport.detour({PEER: ""})
    assert ways.unicast() == links[:1]
    assert ways.asked() == ways.to_all() == links
    assert ways.everywhere() == {*links, LAN, WAN}
