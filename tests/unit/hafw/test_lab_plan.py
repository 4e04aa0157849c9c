"""The lab's plan, its nft input, its configuration and labd's patience: no kernel involved."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, StateError
from hafw.lab.draw import draw
from hafw.lab.files import LabState
from hafw.lab.labd import BACKOFF_S_MAX, Backoff
from hafw.lab.recipe import default_config_file, render_config, with_upstream
from hafw.lab.silence import fault_commands, heal_commands
from hafw.lab.topology import plan

CONFIG = load_cluster(default_config_file())


def altered(tmp_path: Path, old: str, new: str) -> ClusterConfig:
    text = default_config_file().read_text()
    assert old in text
    file = tmp_path / "cluster.yaml"
    file.write_text(text.replace(old, new))
    return load_cluster(file)


def wanted(**asked: object) -> LabState:
    state: dict[str, object] = {
        "complete": False, "bare": False, "heartbeat_ms": None, "lease_ms": None,
        "without": (), "source": "x", "nodes": ("gw1",),
    }  # fmt: skip
    return LabState(**(state | asked))  # type: ignore[arg-type]


class TestPlan:
    def test_namespaces_are_those_of_the_design(self) -> None:
        assert set(plan(CONFIG).namespaces) == {
            "hafw-sw", "hafw-gw1", "hafw-gw2", "hafw-wit", "hafw-client", "hafw-server",
        }  # fmt: skip

    def test_ports_are_named_after_host_and_device(self) -> None:
        ports = {port.port: port.bridge for host in plan(CONFIG).hosts for port in host.ports}
        assert ports == {
            "gw1-lan0": "lan", "gw1-wan0": "wan", "gw1-sync0": "sync0", "gw1-sync1": "sync1",
            "gw2-lan0": "lan", "gw2-wan0": "wan", "gw2-sync0": "sync0", "gw2-sync1": "sync1",
            "wit-sync0": "sync0", "wit-sync1": "sync1",
            "client-lan0": "lan", "server-wan0": "wan",
        }  # fmt: skip

    def test_indexes_and_macs_are_unique(self) -> None:
        ports = [port for host in plan(CONFIG).hosts for port in host.ports]
        assert len({port.port_index for port in ports}) == len(ports)
        assert len({port.mac for port in ports}) == len(ports)

    def test_third_gateway_gets_ports(self, tmp_path: Path) -> None:
        third = (
            "  gw3:\n    id: 3\n    segments:\n"
            '      lan: {device: lan0, addresses: [192.0.2.3/24, "2001:db8:1::3/64"]}\n'
            '      wan: {device: wan0, addresses: [198.51.100.3/24, "2001:db8:2::3/64"]}\n'
            "    links:\n      sync0: {device: sync0, address: 203.0.113.3/25}\n"
            "      sync1: {device: sync1, address: 203.0.113.131/25}\n  wit:\n"
        )
        topology = plan(altered(tmp_path, "  wit:\n", third))
        assert "hafw-gw3" in topology.namespaces
        assert [port.port for port in topology.host("gw3").ports] == [
            "gw3-lan0", "gw3-wan0", "gw3-sync0", "gw3-sync1",
        ]  # fmt: skip

    def test_port_name_that_the_kernel_would_refuse(self, tmp_path: Path) -> None:
        config = altered(tmp_path, "device: sync0, address: 203.0.113.9", "device: backbone-left-0, address: 203.0.113.9")  # noqa: E501  # fmt: skip
        with pytest.raises(ConfigError, match=r"wit-backbone-left-0 is longer than 15"):
            plan(config)

    @pytest.mark.parametrize("name", ["client", "server", "sw", "lab"])
    def test_node_with_a_name_of_the_labs_own(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"nodes\.{name}: the lab uses this name"):
            plan(altered(tmp_path, "  wit:\n", f"  {name}:\n"))

    def test_config_without_a_wan(self, tmp_path: Path) -> None:
        config = altered(tmp_path, '      wan: [198.51.100.254, "2001:db8:2::fe"]', "")
        with pytest.raises(ConfigError, match="VIPs on segment wan"):
            plan(config)

    def test_unknown_host(self) -> None:
        with pytest.raises(StateError, match="no host gw9; there are gw1, gw2, wit"):
            plan(CONFIG).host("gw9")


class TestFaultCommands:
    def test_all_ports_both_ways_in_one_transaction(self) -> None:
        text = fault_commands("gw1", ["gw1-wan0", "gw1-lan0"])
        devices = 'devices = { "gw1-lan0", "gw1-wan0" }'
        assert text.splitlines() == [
            "add table netdev hafw_fault_gw1",
            "delete table netdev hafw_fault_gw1",
            "add table netdev hafw_fault_gw1",
            f"add chain netdev hafw_fault_gw1 from_it {{ type filter hook ingress {devices} "
            "priority -2000000000; policy drop; }",
            f"add chain netdev hafw_fault_gw1 to_it {{ type filter hook egress {devices} "
            "priority -2000000000; policy drop; }",
            # What a judge sends out of the port itself.
            "add rule netdev hafw_fault_gw1 to_it meta mark 0x68616677 accept",
        ]

    @pytest.mark.parametrize(
        ("direction", "present", "absent"),
        [("from", "ingress", "egress"), ("to", "egress", "ingress")],
    )
    def test_one_way(self, direction: str, present: str, absent: str) -> None:
        text = fault_commands("gw1", ["gw1-lan0"], direction)  # type: ignore[arg-type]
        assert f"hook {present}" in text
        assert f"hook {absent}" not in text

    def test_dashes_become_underscores(self) -> None:
        assert "hafw_fault_edge_a" in fault_commands("edge-a", ["p"])
        assert heal_commands("edge-a").splitlines()[-1] == "delete table netdev hafw_fault_edge_a"


class TestRenderedConfig:
    def load(self, tmp_path: Path, state: LabState) -> ClusterConfig:
        file = tmp_path / "cluster.yaml"
        file.write_text(render_config(default_config_file(), CONFIG, state))
        return load_cluster(file)

    def test_nothing_asked_for_changes_nothing(self, tmp_path: Path) -> None:
        assert self.load(tmp_path, wanted()) == CONFIG

    def test_timers(self, tmp_path: Path) -> None:
        lease = self.load(tmp_path, wanted(heartbeat_ms=10, lease_ms=40)).lease
        assert (lease.heartbeat_ms, lease.lease_ms) == (10, 40)

    def test_without_sync(self, tmp_path: Path) -> None:
        assert CONFIG.sync.enabled
        assert not self.load(tmp_path, wanted(without=("sync",))).sync.enabled

    def test_timers_that_do_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"lease: as overridden: .*50 \* 3 > 100"):
            self.load(tmp_path, wanted(heartbeat_ms=50))


class TestBackoff:
    def test_doubles_up_to_its_bound(self) -> None:
        backoff = Backoff()
        waits = [backoff.after(0.1) for _ in range(6)]
        assert waits == [0.2, 0.4, 0.8, 1.6, BACKOFF_S_MAX, BACKOFF_S_MAX]

    def test_a_steady_life_forgives(self) -> None:
        backoff = Backoff()
        for _ in range(5):
            backoff.after(0.1)
        assert backoff.after(5.0) == 0.2
        assert backoff.after(0.1) == 0.4


def test_an_upstream_check_is_added_to_one_group_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(with_upstream(draw(2, 2), "group2", "lan", "192.0.2.10"))
    checked = load_cluster(file)
    file.write_text(draw(2, 2))
    plain = load_cluster(file)
    check = checked.groups["group2"].upstream["lan"]
    assert (str(check.address), check.interval_ms, check.count) == ("192.0.2.10", 200, 3)
    assert checked.groups["main"] == plain.groups["main"]
    assert checked.nodes == plain.nodes
