"""hafw-leased of a gateway gives up if the gate that it writes is not the one that is asked."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cluster.leased
from cluster import gate
from cluster.leased import Leased, now_boottime_ns
from cluster.realtime import Collector
from hafw.instance import claim_instance
from hafw.logs import configure_logs
from hafw.messages import LeasedStatus, SyncBeacon, encode
from hafw.node.client import LocalClient
from hafw.node.setup import prepare_node, teardown_node
from tests.integration.gate_env import GateNet, built_net

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "gw1").mkdir()
    key = folder / "gw1" / "lease.key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAFW_ETC_ROOT", str(folder))
        patch.setenv("HAFW_LIB_ROOT", str(folder / "lib"))
        yield from built_net(tmp_path_factory)


@pytest.fixture
def leased(net: GateNet) -> Iterator[subprocess.Popen[str]]:
    """That of gw1, which answers."""
    with net.inside("gw1"):
        prepare_node(net.config, "gw1")
        argv = (sys.executable, "-m", "cluster.leased", "--node", "gw1", "--config", str(net.file))
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 5
            while not isinstance(LocalClient(net.paths("gw1")).ask_leased(), LeasedStatus):
                assert time.monotonic() < deadline, "leased does not answer"
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=5)
            teardown_node(net.config, "gw1")


def take_down(net: GateNet) -> None:
    """What nobody should do under a running leased."""
    for device in ("hv7-lan", "hv7-wan"):
        net.ip("gw1", f"link del {device}")
    gate.forget_all(net.paths("gw1"))


def take_down_and_set_up(net: GateNet) -> None:
    take_down(net)
    prepare_node(net.config, "gw1")


def remove_a_device(net: GateNet) -> None:
    net.ip("gw1", "link del hv7-wan")


def unpin_a_program(net: GateNet) -> None:
    (Path(net.paths("gw1").bpf) / "link-hv7-lan-in").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (take_down, "is not the one that was opened"),
        (take_down_and_set_up, "is not the one that was opened"),
        (remove_a_device, "hv7-wan is gone or its gate is not attached"),
        (unpin_a_program, "hv7-lan is gone or its gate is not attached"),
    ],
)
def test_without_its_gate_it_ends_with_the_reason(
    net: GateNet, leased: subprocess.Popen[str], damage: Callable[[GateNet], None], said: str
) -> None:
    time.sleep(1.2)
    assert leased.poll() is None, "all is well so far"
    damage(net)
    _, words = leased.communicate(timeout=6)
    assert leased.returncode == 1
    last = words.strip().splitlines()[-1]
    assert last.startswith("hafw-leased: error: ")
    assert said in last
    assert "Traceback" not in words


@pytest.mark.parametrize("awaited", [False, True])
def test_beacon_wakes_a_gateway_only_while_a_gate_waits_for_it(
    net: GateNet, monkeypatch: pytest.MonkeyPatch, *, awaited: bool
) -> None:
    """The turns are made by hand, and a turn that was not woken ends at its deadline."""
    monkeypatch.setattr(cluster.leased, "awaits_syncd", lambda _groups: awaited)
    paths, slow = net.paths("gw1"), net.config.lease.model_copy(update={"heartbeat_ms": 1000})
    config = net.config.model_copy(
        update={
            "lease": slow, "sync": net.config.sync.model_copy(update={"beacon_ms": 1000}),
        }
    )  # fmt: skip
    beacon = SyncBeacon(synced={3: True}, reasons={}, applied=[], stale_entries=0)
    with net.inside("gw1"):
        prepare_node(config, "gw1")
        with claim_instance(paths, "leased"):
            leased = Leased(config, "gw1", configure_logs("leased", "gw1"))
            collector = Collector(now_boottime_ns())
            try:
                leased._turn(collector)  # What is there at a start is taken.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syncd:
                    for _ in range(3):
                        deadline_ns = leased._core.deadline(now_ns=now_boottime_ns())
                        syncd.sendto(encode(beacon), str(paths.leased_socket))
                        leased._turn(collector)
                        assert leased._core.view.beacon == beacon, "it waits for no further turn"
                        leased._core.view.beacon = None
                        assert (now_boottime_ns() < deadline_ns) == awaited
            finally:
                leased.close()
        teardown_node(config, "gw1")
