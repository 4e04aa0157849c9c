"""hafw-leased of a gateway gives up if the gate that it writes is not the one that is asked."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import gate
from hafw.messages import LeasedStatus
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
