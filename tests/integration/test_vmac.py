"""Virtual MAC devices on a segment: who answers, who is believed, what announcements teach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.announce import Announcer, announced_ports
from hafw.node.setup import prepare_node, teardown_node
from tests.integration.gate_env import (
    GROUP,
    LINK_LOCAL,
    MAC,
    VIP4,
    VIP6,
    GateNet,
    Renewal,
    Sniffer,
    built_net,
    dropped,
    wait_for,
)

pytestmark = pytest.mark.integration
DEVICE = "hv7-lan"
WRONG_MAC = "02:00:00:00:0b:ad"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    yield from built_net(tmp_path_factory)


@pytest.fixture
def both(net: GateNet) -> Iterator[GateNet]:
    """Both gateways prepared, shut."""
    for node in ("gw1", "gw2"):
        with net.inside(node):
            prepare_node(net.config, node)
    net.forget_neighbours()
    yield net
    for node in ("gw1", "gw2"):
        with net.inside(node):
            teardown_node(net.config, node)


def announce(net: GateNet, node: str) -> int:
    with net.inside(node):
        announcer = Announcer(announced_ports(net.config, "main", node))
        sent = announcer.announce()
        announcer.close()
    return sent


def test_only_the_open_gateway_answers_and_only_with_the_virtual_mac(both: GateNet) -> None:
    with Renewal(both.paths("gw2")):
        assert both.ping(VIP4)
        assert both.ping(VIP6)
        assert both.port_of(MAC) == "gw2"
        for address in (VIP4, VIP6):
            assert MAC in both.neighbour(address)
    assert dropped(both.paths("gw1"))[0] > 0, "gw1 heard the questions and dropped them"


def test_nobody_answers_while_both_are_shut(both: GateNet) -> None:
    """Without arp_ignore=1 a BACKUP answers for the VIP from its physical device."""
    sniffer = Sniffer(both, "client", "eth0")
    assert not both.ping(VIP4)
    assert not both.ping(VIP6)
    answers = [f for f in sniffer.frames() if f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2"]
    assert answers == []
    sniffer.close()


def test_announcements_move_the_switch_to_the_new_gateway(both: GateNet) -> None:
    with Renewal(both.paths("gw1")):
        assert both.ping(VIP4)
        assert both.port_of(MAC) == "gw1"
    assert both.port_of(MAC) == "gw1", "silence alone moves nothing"
    with Renewal(both.paths("gw2")):
        assert announce(both, "gw2") == 14
        wait_for("the switch learns", lambda: both.port_of(MAC) == "gw2", 1.0)
        assert both.ping(VIP4)


def test_an_announcement_of_the_old_gateway_does_not_move_it_back(both: GateNet) -> None:
    with Renewal(both.paths("gw2")):
        announce(both, "gw2")
        wait_for("the switch learns", lambda: both.port_of(MAC) == "gw2", 1.0)
        assert announce(both, "gw1") == 0
        assert both.port_of(MAC) == "gw2"


def _teach_wrong(net: GateNet, address: str) -> None:
    net.ip("client", f"neigh replace {address} lladdr {WRONG_MAC} dev eth0 nud reachable")
    assert WRONG_MAC in net.neighbour(address)


@pytest.mark.parametrize("address", [VIP4, VIP6, LINK_LOCAL])
def test_announcements_correct_a_host_s_neighbour_entry(both: GateNet, address: str) -> None:
    _teach_wrong(both, address)
    with Renewal(both.paths("gw1")):
        announce(both, "gw1")
        wait_for("the host is corrected", lambda: MAC in both.neighbour(address), 1.0)
        if ":" in address:
            assert "router" in both.neighbour(address)


def test_an_announcer_outlives_its_device(both: GateNet) -> None:
    with both.inside("gw1"), Renewal(both.paths("gw1")):
        announcer = Announcer(announced_ports(both.config, "main", "gw1"))
        assert announcer.announce() == 14
        both.ip("gw1", f"link del {DEVICE}")
        assert announcer.announce() == 7
        prepare_node(both.config, "gw1")
        assert announcer.announce() + announcer.announce() >= 21
        assert announcer.announce() == 14
        announcer.close()


def test_the_virtual_mac_devices_catch_no_traffic_of_the_node(both: GateNet) -> None:
    """Own packets leave by the physical device, from the node's own address and MAC."""
    for target in ("192.0.2.10", "2001:db8:1::10"):
        route = both.ip("gw1", f"route get {target}")
        assert " dev lan0 " in route
        assert VIP4 not in route
        assert f"src {VIP6}" not in route
    for family in ("-4", "-6"):
        routes = both.ip("gw1", f"{family} route show table all").splitlines()
        own = [line for line in routes if f"dev {DEVICE}" in line]
        for line in own:
            kind_or_prefix = line.split()[0]
            assert kind_or_prefix in {"local", "anycast", "multicast", "fe80::/64", VIP6}, line


def test_an_ipv6_vip_is_usable_at_once_and_never_chosen_as_source(both: GateNet) -> None:
    text = both.ip("gw1", f"-6 addr show dev {DEVICE}")
    assert "tentative" not in text
    assert "dadfailed" not in text
    assert sorted(line.split()[1] for line in text.splitlines() if "inet6" in line) == [
        f"{VIP6}/128",
        f"{LINK_LOCAL}/64",
    ]
    assert "deprecated" in next(line for line in text.splitlines() if VIP6 in line)


def test_group_index_of_the_configuration_is_the_slot(both: GateNet) -> None:
    assert both.config.groups["main"].index == GROUP
