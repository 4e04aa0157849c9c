"""A cable that comes and goes, with preemption on: the group goes back to its node a few times,
then stays where it is; without damping it goes back every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.assignment import SetGroup
from hafw.lab.faults import Faults, wait_until
from hafw.node.client import Unavailable
from hafw.node.raft_client import RaftClient
from hafw.raft_messages import ProposeReply
from tests.integration.commands import hafwctl
from tests.integration.own_lab import own_lab
from tests.integration.running import Running, wait_for

pytestmark = [
    pytest.mark.integration, pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(180),
    pytest.mark.usefixtures("lab_alone"),
]  # fmt: skip
FLAPS = 4
BACK_S = 10.0


@contextmanager
def falling_back(folder: Path, damping: str) -> Iterator[Running]:
    """A lab whose group goes back to gw1 once that has been fit for a second."""
    with own_lab(folder, f"damping: {damping}") as lab:
        cluster = Running(lab)
        raft = RaftClient(lab.paths("gw1"))
        wait_for("preempt", lambda: agreed(raft.propose(SetGroup("main", True, 1.0))), 20)
        wait_for("gw1 has it", lambda: cluster.holders() == ["gw1"], 30)
        yield cluster


def agreed(answer: ProposeReply | Unavailable) -> bool:
    return isinstance(answer, ProposeReply) and answer.ok


def flap(cluster: Running, faults: Faults) -> bool:
    """One loss of gw1's segment; whether the group goes back afterwards."""
    faults.unplug("gw1", "lan0")
    wait_for("gw2 has it", lambda: cluster.holders() == ["gw2"], 15)
    faults.plug_in("gw1", "lan0")
    return wait_until(BACK_S, lambda: cluster.holders() == ["gw1"])


def test_it_goes_back_a_bounded_number_of_times_until_it_is_said_to_be_mended(
    tmp_path: Path,
) -> None:
    with falling_back(tmp_path, "{losses: 2, quiet_s: 600}") as cluster:
        faults = Faults(cluster.lab)
        went_back = [flap(cluster, faults) for _ in range(FLAPS)]
        assert went_back == [True] + [False] * (FLAPS - 1)
        assert " losses (segment lan: no carrier on " in hafwctl("status", "--node", "gw2").stdout
        assert "damped after 2 losses" in hafwctl("cluster", "history", "--node", "gw2").stdout
        hafwctl("node", "undamp", "gw1", "--node", "gw2")
        wait_for("it goes back", lambda: cluster.holders() == ["gw1"], 20)
        wait_for("no alarm", lambda: not cluster.leased("gw2").damped)


def test_without_damping_it_goes_back_every_time(tmp_path: Path) -> None:
    with falling_back(tmp_path, "{losses: 0}") as cluster:
        faults = Faults(cluster.lab)
        assert [flap(cluster, faults) for _ in range(FLAPS)] == [True] * FLAPS
