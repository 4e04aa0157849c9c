"""Two gateways without a witness: real hafw-leased and kernel gates, one shared segment to cut.

The daemons run without syncds, so nobody is synced and a claim takes five leases more; the times
of a takeover are the simulation's business.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gate import GateReader
from hafw.config.load import load_cluster
from hafw.messages import LeasedStatus
from hafw.node.client import LocalClient
from hafw.node.setup import prepare_node, teardown_node
from tests.integration.gate_env import CONFIG_TEXT, GROUP, GateNet, built_net, now_ns, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(120)]
NODES = ("gw1", "gw2")


@pytest.fixture
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    folder = tmp_path_factory.mktemp("keys")
    for node in NODES:
        (folder / node).mkdir()
        key = folder / node / "lease.key"
        key.write_bytes(bytes(32))
        key.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAFW_ETC_ROOT", str(folder))
        patch.setenv("HAFW_LIB_ROOT", str(folder / "lib"))
        yield from built_net(tmp_path_factory)


class Pair:
    """The two daemons; `lan` is the only path that leads anywhere."""

    def __init__(self, net: GateNet) -> None:
        self.net = net
        before, rest = CONFIG_TEXT.split("  wit:\n")
        groups = rest[rest.index("groups:") :]
        self.file = Path(net.file).with_name("pair.yaml")
        self.file.write_text(before + groups + "quorum: two-node\n")
        self.config = load_cluster(self.file)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str) -> None:
        argv = (sys.executable, "-m", "cluster.leased", "--node", node, "--config", str(self.file))
        self.daemons[node] = subprocess.Popen(self.net.command(node, *argv))

    def cut(self, node: str, *, heal: bool = False) -> None:
        """The switch forwards nothing from or to the node; the carrier stays."""
        self.net.ip("sw", f"link set {node} {'master lan' if heal else 'nomaster'}")

    def kill(self, node: str) -> None:
        self.daemons[node].kill()
        self.daemons[node].wait(5)

    def active(self) -> list[str]:
        return [node for node in NODES if self.announces(node)]

    def announces(self, node: str) -> bool:
        gate = GateReader.open(self.net.paths(node))
        try:
            return gate.read(GROUP).announce_ns > now_ns()
        finally:
            gate.close()

    def counter(self, node: str, name: str) -> int:
        answer = LocalClient(self.net.paths(node)).ask_leased(2.0)
        assert isinstance(answer, LeasedStatus)
        return answer.counters.get(name, 0)

    def wait_active(self, *nodes: str) -> None:
        try:
            wait_for(f"{nodes} ACTIVE", lambda: self.active() == list(nodes), 10)
        except TimeoutError:
            late = {node: self.counter(node, "turns_too_late") for node in NODES}
            raise AssertionError(f"not ACTIVE: {nodes}; late turns: {late}") from None

    def stays(self, node: str, looks: int) -> None:
        for _ in range(looks):
            assert self.active() == [node]


@pytest.fixture
def pair(net: GateNet) -> Iterator[Pair]:
    made = Pair(net)
    try:
        for node in NODES:
            with net.inside(node):
                prepare_node(made.config, node)
            made.start(node)
        yield made
    finally:
        for node, daemon in made.daemons.items():
            daemon.kill()
            daemon.wait(5)
            with net.inside(node):
                teardown_node(made.config, node)


def test_power_cut_freeze_and_a_cut_of_everything(pair: Pair) -> None:
    wait_for("one is ACTIVE", lambda: len(pair.active()) == 1, 15)
    [first] = pair.active()
    other = NODES[1 - NODES.index(first)]

    pair.kill(first)  # And silent at once: a power cut.
    pair.cut(first)
    pair.wait_active(other)
    pair.cut(first, heal=True)
    pair.start(first)
    wait_for("the node votes again", lambda: _votes(pair, first), 10)
    pair.stays(other, 500)

    pair.daemons[other].send_signal(signal.SIGSTOP)
    pair.wait_active(first)
    pair.daemons[other].send_signal(signal.SIGCONT)
    pair.stays(first, 500)

    pair.cut(first)
    pair.wait_active(*NODES)  # What is not promised without a witness.
    pair.cut(first, heal=True)
    wait_for("one gives way", lambda: len(pair.active()) == 1, 2)
    [higher] = pair.active()
    pair.stays(higher, 500)
    lower = NODES[1 - NODES.index(higher)]
    assert pair.counter(lower, "leases_yielded") == 1


def _votes(pair: Pair, node: str) -> bool:
    answer = LocalClient(pair.net.paths(node)).ask_leased(2.0)
    return isinstance(answer, LeasedStatus) and answer.may_vote
