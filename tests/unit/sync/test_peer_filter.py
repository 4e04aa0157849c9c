"""The socket filter of links and segments, run by the kernel on loopback sockets."""

from __future__ import annotations

import socket

import pytest

from sync.peer_filter import peer_filter
from sync.sockets import attach_filter


@pytest.mark.parametrize(
    ("family", "heard", "unheard"),
    [
        (socket.AF_INET, ["127.0.0.2", "127.0.0.77"], "127.0.0.3"),
        (socket.AF_INET6, ["2001:db8::1", "::1"], None),
        (socket.AF_INET6, ["2001:db8::1", "::2", "1::1"], "::1"),
    ],
    ids=["ipv4", "ipv6", "ipv6-stranger"],
)
def test_only_peers_are_heard(
    family: socket.AddressFamily, heard: list[str], unheard: str | None
) -> None:
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.bind((loopback, 0))
        own.settimeout(0.05)
        attach_filter(own, peer_filter(heard))
        sources = [loopback] if family == socket.AF_INET6 else [*heard, "127.0.0.3"]
        for source in sources:
            with socket.socket(family, socket.SOCK_DGRAM) as other:
                other.bind((source, 0))
                other.sendto(source.encode(), own.getsockname())
        arrived = []
        while True:
            try:
                arrived.append(own.recv(100).decode())
            except TimeoutError:
                break
    assert arrived == [source for source in sources if source != unheard]


def test_as_many_ipv6_peers_as_a_cluster_may_have() -> None:
    peers = [f"2001:db8::{number:x}" for number in range(1, 62)]
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as own:
        attach_filter(own, peer_filter([*peers, "::1"]))
        own.bind(("::1", 0))
        own.settimeout(5)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.sendto(b"x", own.getsockname())
        assert own.recv(10) == b"x"
