"""The bare lab is what DESIGN §9 says, by the word of iproute2 rather than of the code."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from typing import Any

import pytest

from hafw.errors import RefusedError
from hafw.keyring import read_key
from hafw.lab.files import MARKER, is_marked
from hafw.lab.inside import namespace_inode
from hafw.lab.lab import Lab
from hafw.paths import NodePaths

pytestmark = pytest.mark.integration

# DESIGN §9, literally.
ADDRESSES = {
    "hafw-client": {
        "lan0": ["192.0.2.10/24", "192.0.2.20/24", "2001:db8:1::10/64", "2001:db8:1::20/64"],
    },
    "hafw-gw1": {
        "lan0": ["192.0.2.1/24", "2001:db8:1::1/64"],
        "wan0": ["198.51.100.1/24", "2001:db8:2::1/64"],
        "sync0": ["203.0.113.1/25"],
        "sync1": ["203.0.113.129/25"],
    },
    "hafw-gw2": {
        "lan0": ["192.0.2.2/24", "2001:db8:1::2/64"],
        "wan0": ["198.51.100.2/24", "2001:db8:2::2/64"],
        "sync0": ["203.0.113.2/25"],
        "sync1": ["203.0.113.130/25"],
    },
    "hafw-wit": {"sync0": ["203.0.113.9/25"], "sync1": ["203.0.113.137/25"]},
    "hafw-server": {"wan0": ["198.51.100.10/24", "2001:db8:2::10/64"]},
}
PORTS = {
    "lan": {"client-lan0", "gw1-lan0", "gw2-lan0"},
    "wan": {"server-wan0", "gw1-wan0", "gw2-wan0"},
    "sync0": {"gw1-sync0", "gw2-sync0", "wit-sync0"},
    "sync1": {"gw1-sync1", "gw2-sync1", "wit-sync1"},
}


def ip(namespace: str, *words: str) -> Any:
    command = ["ip", "-n", namespace, "-j", "-d", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return json.loads(done.stdout or "[]")


def everything() -> dict[str, Any]:
    """All that a second `up` could change: indexes, MACs, addresses, namespaces."""
    return {
        name: (namespace_inode(name), [
            (link["ifindex"], link["ifname"], link["address"],
             sorted(a["local"] for a in link["addr_info"]))
            for link in ip(name, "addr")
        ])
        for name in (*ADDRESSES, "hafw-sw")
    }  # fmt: skip


@pytest.mark.parametrize("namespace", sorted(ADDRESSES))
def test_devices_and_addresses(bare_lab: Lab, namespace: str) -> None:
    found = {}
    for link in ip(namespace, "addr"):
        if link["ifname"] == "lo":
            continue
        assert {"UP", "LOWER_UP"} <= set(link["flags"]), link
        addresses = [a for a in link["addr_info"] if a["scope"] == "global"]
        assert not any(a.get("tentative") for a in link["addr_info"])
        found[link["ifname"]] = sorted(f"{a['local']}/{a['prefixlen']}" for a in addresses)
    assert found == {
        device: sorted(addresses) for device, addresses in ADDRESSES[namespace].items()
    }


def test_client_routes_by_the_vips(bare_lab: Lab) -> None:
    (v4,) = ip("hafw-client", "-4", "route", "show", "default")
    (v6,) = ip("hafw-client", "-6", "route", "show", "default")
    assert (v4["gateway"], v4["prefsrc"]) == ("192.0.2.254", "192.0.2.10")
    assert (v6["gateway"], v6["prefsrc"]) == ("2001:db8:1::fe", "2001:db8:1::10")


def test_server_has_no_route_to_the_lan(bare_lab: Lab) -> None:
    for target in ("192.0.2.10", "2001:db8:1::10"):
        command = ["ip", "-n", "hafw-server", "route", "get", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        assert done.returncode != 0
        assert "unreachable" in done.stderr.lower()


def test_switch_ports(bare_lab: Lab) -> None:
    found: dict[str, set[str]] = {}
    for link in ip("hafw-sw", "link"):
        if "master" in link:
            assert link["linkinfo"]["info_slave_data"]["state"] == "forwarding", link
            found.setdefault(link["master"], set()).add(link["ifname"])
    assert found == PORTS


def test_bridges_flood_multicast_and_never_hold_frames_back(bare_lab: Lab) -> None:
    for bridge in PORTS:
        (link,) = ip("hafw-sw", "link", "show", bridge)
        told = link["linkinfo"]["info_data"]
        assert (told["stp_state"], told["forward_delay"]) == (0, 0)
        assert told["mcast_snooping"] == 0


def test_the_two_ends_of_a_veth_differ_in_index(bare_lab: Lab) -> None:
    for namespace in ADDRESSES:
        for link in ip(namespace, "link"):
            if link["ifname"] != "lo":
                assert link["ifindex"] != link["link_index"], link


def test_macs_follow_from_node_and_device(bare_lab: Lab) -> None:
    (link,) = ip("hafw-gw2", "link", "show", "sync1")
    assert link["address"] == "02:68:61:66:02:04"


def test_a_second_up_changes_nothing(bare_lab: Lab) -> None:
    before = everything()
    assert bare_lab.up(bare=True) is False
    assert Lab().up(bare=True) is False
    assert everything() == before


def test_up_with_other_parameters_is_refused(bare_lab: Lab) -> None:
    before = everything()
    with pytest.raises(RefusedError, match=r"a lab is up already, bare.*not with daemons"):
        bare_lab.up()
    with pytest.raises(RefusedError, match="heartbeat 10 / lease 40 ms"):
        bare_lab.up(bare=True, heartbeat_ms=10, lease_ms=40)
    assert everything() == before


def test_a_broken_lab_is_built_anew(bare_lab: Lab) -> None:
    subprocess.run(["ip", "-n", "hafw-sw", "link", "del", "gw1-wan0"], check=True, timeout=10)
    assert any("wan0" in problem for problem in bare_lab.problems())
    assert bare_lab.up(bare=True) is True
    assert bare_lab.problems() == []
    assert {link["ifname"] for link in ip("hafw-gw1", "link")} >= {"wan0"}


def test_keys_are_shared_private_and_the_witness_has_no_sync_key(bare_lab: Lab) -> None:
    nodes = [NodePaths(name) for name in ("gw1", "gw2", "wit")]
    assert len({read_key(node.lease_key) for node in nodes}) == 1
    assert read_key(nodes[0].sync_key) == read_key(nodes[1].sync_key)
    assert read_key(nodes[0].sync_key) != read_key(nodes[0].lease_key)
    assert not nodes[2].sync_key.exists()
    for node in nodes:
        assert stat.S_IMODE(node.etc.stat().st_mode) == 0o700
        assert stat.S_IMODE(node.lease_key.stat().st_mode) == 0o600


def test_bpffs_is_mounted(bare_lab: Lab) -> None:
    told = subprocess.run(
        ["stat", "-f", "-c", "%t", "/sys/fs/bpf"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "cafe4a11"


def test_status_tells_the_same(bare_lab: Lab) -> None:
    status = bare_lab.status()
    assert status["up"] is True
    assert status["bare"] is True
    assert {b: set(ports) for b, ports in status["bridges"].items()} == PORTS
    assert all(well for ports in status["bridges"].values() for well in ports.values())
    assert set(status["hosts"]) == {"gw1", "gw2", "wit", "client", "server"}


def test_a_node_installed_anew_is_still_the_labs(bare_lab: Lab) -> None:
    paths = bare_lab.paths("wit")
    shutil.rmtree(paths.lib)
    assert is_marked("wit")
    bare_lab.start("wit")
    assert [entry.name for entry in paths.lib.iterdir()] == [MARKER], "so `down` removes it"
