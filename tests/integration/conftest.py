"""What all integration tests share. They need root and say so; they never skip for want of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.agreed import ClearLosses
from hafw.kernel.netns import entered
from hafw.lab.lab import Lab
from hafw.node.client import Unavailable
from hafw.node.raft_client import RaftClient
from hafw.paths import NodePaths
from sync.ctsocket import EventSocket, RequestSocket
from tests.integration.ct_spaces import inside, spaces, strict
from tests.integration.policy_spaces import Site, policy_site
from tests.integration.running import Running, wait_for
from tests.integration.syncd_world import World, syncd_world


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail("integration tests need root: they build network namespaces")


@pytest.fixture(scope="session")
def _lab_lock() -> Iterator[None]:
    """The right to the lab's names on this machine, which has room for one lab only."""
    with (Path(tempfile.gettempdir()) / "hafw-test-lab.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Lab().state() is not None:
            pytest.fail("a lab is up on this machine; `hafwctl lab down` before the tests")
        yield
        Lab().down()


@pytest.fixture(scope="module")
def lab_alone(_lab_lock: None) -> Iterator[None]:
    """No lab, and nobody else who makes one."""
    Lab().down()
    yield
    Lab().down()


@pytest.fixture(scope="module")
def shared_lab(_lab_lock: None) -> Lab:
    """The default lab, ready. It stays for the next module that asks for it, so whoever uses it
    leaves it whole; what is broken is built anew, and nobody is damped for what was done to it."""
    lab = Lab()
    built = lab.up()
    lab.heal_all()
    lab.wait_ready(30)
    if not built:
        for node in lab.gateways:
            answer = RaftClient(NodePaths(node)).propose(ClearLosses(node))
            assert not isinstance(answer, Unavailable), answer.reason
            assert answer.ok, answer.reason
        wait_for("nobody is damped", lambda: not any(map(Running(lab).damped, lab.gateways)))
    return lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share a lab come one after the other, last."""
    items.sort(key=lambda item: "shared_lab" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="module")
def bare_lab(lab_alone: None) -> Iterator[Lab]:
    """The lab's network without daemons."""
    lab = Lab()
    lab.up(bare=True)
    yield lab
    lab.down()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two gateways, their syncds not started."""
    with syncd_world(tmp_path) as one:
        yield one


@pytest.fixture
def pair(world: World) -> World:
    """Their syncds run: gw1 holds the group, gw2 is synced."""
    world.start()
    world.lead(1, 1)
    world[2].wait_synced()
    world[1].wait_synced()
    return world


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One gateway between two hosts, for policies; none is loaded."""
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch, policy_site(folder) as made:
        patch.setenv("HAFW_RUN_ROOT", str(folder))
        yield made


@pytest.fixture
def afresh(site: Site) -> Iterator[None]:
    """The lab's policy, afresh: counters of hafw_cluster begin at 0, no flow is left."""
    subprocess.run(["ip", "netns", "exec", site.gateway, "conntrack", "-F"], capture_output=True)
    result = site.apply()
    assert result.ok, result.error
    yield
    site.close_sockets()


LABEL_RULES = """
table inet labels {
  chain forward {
    type filter hook forward priority filter;
    ct label set 3
  }
}
"""


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    """A namespace whose conntrack tracks strictly and keeps labels."""
    with spaces("table") as (name,):
        strict(name)
        # A rule that sets a label makes room for labels in every entry (nf_connlabels_get).
        inside(name, "nft", "-f", "-", stdin=LABEL_RULES)
        yield name


@pytest.fixture
def requests(space: str) -> Iterator[RequestSocket]:
    """To ask with; the table is empty."""
    with entered(space):
        sock = RequestSocket()
    with sock:
        inside(space, "conntrack", "-F")
        yield sock


@pytest.fixture
def events(space: str, requests: RequestSocket) -> Iterator[EventSocket]:
    """Hears what happens in it."""
    with entered(space):
        sock = EventSocket()
    with sock:
        yield sock
