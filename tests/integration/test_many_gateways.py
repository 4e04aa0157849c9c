"""Three and four gateways, several groups ACTIVE on different ones at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gate import GateReader
from hafw.errors import StateError
from hafw.lab.draw import draw
from hafw.lab.judges import MoveWindow
from hafw.lab.lab import Lab
from hafw.lab.probe_judges import GateJudge
from hafw.lab.probes import Addresses, ProbeSet, plan_probes
from hafw.lab.recipe import default_config_file
from hafw.messages import SyncdStatus
from hafw.node.client import LocalClient, Unavailable
from hafw.paths import NodePaths
from tests.integration.running import boottime_ns, wait_for
from tests.integration.test_planned_moves import table, well

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]
KINDS = frozenset({"snat udp", "snat tcp-echo", "snat tcp-idle"})
BOUND_S = 20


class Cluster:
    """A lab of a given size, and who holds what by the kernel's word."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.indexes = {name: group.index for name, group in lab.config.groups.items()}
        self.voters = list(lab.config.nodes)

    def holders(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self.indexes}
        for node in self.lab.gateways:
            try:
                gate = GateReader.open(NodePaths(node))
            except StateError:
                continue
            try:
                for name, index in self.indexes.items():
                    if gate.read(index).announce_ns > boottime_ns():
                        found[name].append(node)
            finally:
                gate.close()
        return found

    def held(self, **wanted: str) -> bool:
        holders = self.holders()
        return all(holders[name] == [node] for name, node in wanted.items())

    def spread(self) -> None:
        """Each group where its order begins."""
        for name, group in self.lab.config.groups.items():
            if not self.held(**{name: group.order[0]}):
                well("group", "move", name, group.order[0], "--wait", "10", "--yes")


@pytest.fixture
def cluster(request: pytest.FixtureRequest, lab_alone: None, tmp_path: Path) -> Iterator[Cluster]:
    gateways, groups = request.param
    file = tmp_path / "cluster.yaml"
    file.write_text(draw(gateways, groups))
    policy = default_config_file().with_name("policy.yaml").read_text()
    file.with_name("policy.yaml").write_text(policy)
    lab = Lab(file)
    lab.up()
    try:
        lab.wait_ready(30)
        yield Cluster(lab)
    finally:
        lab.down()
        lab.close()


def places(lab: Lab) -> tuple[Addresses, ...]:
    """A flow's ends for each group: the server's address to which the client goes by it."""
    return tuple(
        Addresses(
            4, "192.0.2.10", f"198.51.100.{10 * number}", "192.0.2.20",
            str(next(vip for vip in group.vips["wan"] if vip.version == 4)),
        )
        for number, group in enumerate(lab.config.groups.values(), 1)
    )  # fmt: skip


def lives_on(probes: ProbeSet) -> None:
    """Every flow exchanges something new, and nothing was wrong until now."""
    before = probes.snapshot().flows
    probes.exchange()

    def alive() -> bool:
        after = probes.snapshot().flows
        assert [f"{r.state} {r.error} {r.wrong_why}" for r in after.values() if r.error] == []
        return all(after[f].exchanges >= before[f].exchanges + 1 for f in before)

    wait_for("every flow exchanges", alive, BOUND_S)
    assert [flow.wrong_why for flow in probes.snapshot().flows.values()] == [""] * len(before)


def drained(cluster: Cluster, node: str) -> MoveWindow:
    """Drain a node; in that time both may accept, for one lease."""
    lease_ns = cluster.lab.config.lease.lease_ms * 1_000_000
    start_ns = boottime_ns()
    well("node", "drain", node, "--yes")
    return MoveWindow(start_ns, boottime_ns() + lease_ns, lease_ns)


@pytest.mark.parametrize("cluster", [(3, 2)], indirect=True)
def test_a_dead_nodes_group_goes_to_its_next_and_the_other_stays(cluster: Cluster) -> None:
    lab = cluster.lab
    assert cluster.voters == ["gw1", "gw2", "gw3"]
    cluster.spread()
    wait_for("spread", lambda: cluster.held(main="gw1", group2="gw2"), BOUND_S)
    addresses = places(lab)
    judges = [GateJudge(lab.config_file, name) for name in cluster.indexes]
    probes = ProbeSet(
        lambda host, argv, options: lab.spawn(host, argv, **options),
        addresses,
        plan_probes(addresses, octets_s=0, kinds=KINDS),
    )
    moves: list[MoveWindow] = []
    try:
        probes.start()
        lives_on(probes)
        wait_for("replicas", lambda: _replicated(lab, {"main": "gw1", "group2": "gw2"}), BOUND_S)
        epoch = _epoch("main")
        lab.silence("gw2")
        wait_for("the next of its order", lambda: cluster.held(main="gw1", group2="gw3"), BOUND_S)
        lives_on(probes)
        assert _epoch("main") == epoch, "the other group noticed nothing"
        lab.heal("gw2")
        lab.wait_ready(30)
        lives_on(probes)
        assert cluster.held(main="gw1", group2="gw3"), "no fail-back"

        moves.append(drained(cluster, "gw3"))
        assert cluster.held(main="gw1", group2="gw2")
        moves.append(drained(cluster, "gw1"))
        assert cluster.held(main="gw2", group2="gw2"), "both on the only one that is online"
        lives_on(probes)
        for node in ("gw1", "gw3"):
            well("node", "online", node)
        assert {row["assigned"] for row in table("cluster", "groups")} == {"gw2"}
        final = probes.final().flows
        assert [flow.wrong for flow in final.values()] == [0] * len(final)
    finally:
        probes.close()
        verdicts = [judge.take().verdict(moves) for judge in judges]
        for judge in judges:
            judge.close()
    assert [verdict.dual_ms for verdict in verdicts] == [0] * len(judges)


def _replicated(lab: Lab, active: dict[str, str]) -> bool:
    """Every other gateway has as many replicas of a group as its holder has flows."""
    indexes = {name: group.index for name, group in lab.config.groups.items()}
    synced = {node: {g.group: g for g in _syncd(node).groups} for node in lab.gateways}
    for group, holder in active.items():
        owned = synced[holder][indexes[group]].owned
        others = [s[indexes[group]].replicas for n, s in synced.items() if n != holder]
        if not owned or any(count < owned for count in others):
            return False
    return True


def _syncd(node: str) -> SyncdStatus:
    answer = LocalClient(NodePaths(node)).ask_syncd(2.0)
    assert not isinstance(answer, Unavailable)
    return answer


def _epoch(group: str) -> int:
    moves = table("cluster", "history", "--group", group, "--last", "1")
    return int(moves[0]["epoch"].split(".")[1])


@pytest.mark.long
@pytest.mark.parametrize("cluster", [(4, 4)], indirect=True)
def test_four_gateways_hold_a_group_each_and_two_of_them_may_die(cluster: Cluster) -> None:
    lab = cluster.lab
    assert cluster.voters == ["gw1", "gw2", "gw3", "gw4", "wit"]
    cluster.spread()
    spread = {"main": "gw1", "group2": "gw2", "group3": "gw3", "group4": "gw4"}
    wait_for("spread", lambda: cluster.held(**spread), BOUND_S)
    addresses = places(lab)
    probes = ProbeSet(
        lambda host, argv, options: lab.spawn(host, argv, **options),
        addresses,
        plan_probes(addresses, octets_s=0, kinds=KINDS),
    )
    try:
        probes.start()
        lives_on(probes)
        wait_for("replicas", lambda: _replicated(lab, spread), BOUND_S)
        for node in ("gw2", "gw3"):
            lab.silence(node)
        left = {"main": "gw1", "group2": "gw4", "group3": "gw4", "group4": "gw4"}
        wait_for("what is left holds all", lambda: cluster.held(**left), BOUND_S)
        lives_on(probes)
        lab.heal_all()
        lab.wait_ready(30)
        lives_on(probes)
    finally:
        probes.close()
