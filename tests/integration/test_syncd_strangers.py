"""What somebody on a sync link who has no key can do to syncd: nothing that lasts."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hafw.kernel.netns import entered
from tests.integration.syncd_world import Gateway, World, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration

# ZMTP 3.1 (RFC 37): signature, version, mechanism, as-server, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
LONG_COMMAND = 0x06


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[World]:
    """gw1 holds the group, gw2 is synced."""
    with syncd_world(tmp_path) as world:
        world.start()
        world.lead(1, 1)
        world[2].wait_synced()
        world[1].wait_synced()
        yield world


def resident_mb(gateway: Gateway) -> float:
    assert gateway.process is not None
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def connected(pair: World) -> socket.socket:
    """From gw2 to the snapshot server of gw1."""
    with entered(pair[2].space):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(("203.0.113.1", 7412))
    return sock


def test_a_huge_command_before_authentication_is_cut_off(pair: World) -> None:
    before_mb = resident_mb(pair[1])
    with connected(pair) as sock:
        sock.sendall(GREETING)
        sock.sendall(bytes([LONG_COMMAND]) + struct.pack(">Q", 2 << 30))
        with pytest.raises(ConnectionError):
            sock.sendall(bytes(128 << 20))
    assert resident_mb(pair[1]) - before_mb < 16
    pair[1].put(mixed(4))
    pair.wait_equal(1, 2)


def test_a_connection_that_says_nothing_is_closed(pair: World) -> None:
    with connected(pair) as sock:
        began_at = time.monotonic()
        while sock.recv(4096):
            pass
        assert time.monotonic() - began_at < 4
    wait_for("gw1 answers", lambda: pair[1].status())
