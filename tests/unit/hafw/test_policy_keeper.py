"""What hafwd says around a policy load. Worker and leased are stand-ins that keep the order."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hafw.errors import RefusedError
from hafw.messages import HEAVY_S_MAX, HeavyWork, StatusRequest, decode_leased, encode
from hafw.node.policy import PolicyKeeper
from hafw.paths import NodePaths
from hafw.policy.apply import PolicyResult
from tests.unit.hafw.test_status_rows import leased

WORKER = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
    telling.sendto(b"load", sys.argv[1])
print(sys.argv[2])
"""


class Leased:
    """Has the socket, answers who asks, and keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.heard: list[object] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    def read(self) -> None:
        datagram, sender = self.socket.recvfrom(1 << 16)
        message = "load" if datagram == b"load" else decode_leased(datagram)
        if isinstance(message, StatusRequest):
            self.socket.sendto(encode(leased("gw1")), sender)
        else:
            self.heard.append(message)

    async def during(self, keeper: PolicyKeeper) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.socket, self.read)
        try:
            await keeper.load()
        finally:
            loop.remove_reader(self.socket)
            while True:
                try:
                    self.read()
                except BlockingIOError:
                    break


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodePaths:
    monkeypatch.setenv("HAFW_RUN_ROOT", str(tmp_path))
    paths = NodePaths("gw1")
    paths.run.mkdir()
    return paths


@pytest.fixture
def there(paths: NodePaths) -> Iterator[Leased]:
    there = Leased(paths.leased_socket)
    yield there
    there.socket.close()


def keeper(paths: NodePaths, result: PolicyResult) -> PolicyKeeper:
    said = msgspec.json.encode(result).decode()
    return PolicyKeeper(
        paths,
        configured=paths.run / "policy.yaml",
        config_file=paths.run / "cluster.yaml",
        command=[sys.executable, "-c", WORKER, str(paths.leased_socket), said],
        cpus=frozenset(os.sched_getaffinity(0)),
        in_kernel=lambda: True,
    )


def test_leased_hears_of_a_load_before_it_begins_and_when_it_is_over(
    paths: NodePaths, there: Leased
) -> None:
    loading = keeper(paths, PolicyResult(ok=True, hash="ab", rules=7))
    asyncio.run(there.during(loading))
    assert there.heard == [HeavyWork(HEAVY_S_MAX), "load", HeavyWork(0.0)]
    assert (loading.loads, loading.in_force) == (1, True)


def test_leased_hears_that_a_load_is_over_that_failed(paths: NodePaths, there: Leased) -> None:
    loading = keeper(paths, PolicyResult(ok=False, error="line 3: no such zone"))
    with pytest.raises(RefusedError, match="line 3: no such zone"):
        asyncio.run(there.during(loading))
    assert there.heard == [HeavyWork(HEAVY_S_MAX), "load", HeavyWork(0.0)]
