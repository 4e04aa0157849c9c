"""Node set-up against a real kernel: once, again, after damage, after a change, and refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cluster import bpf
from cluster.gate import (
    Deadlines,
    GateReader,
    GateWriter,
    attached,
    check_bpffs,
    forget_group,
)
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import StateError
from hafw.instance import claim_instance
from hafw.kernel import sysctl
from hafw.kernel.features import missing_features
from hafw.node.setup import check_node, find_problems, prepare_node, teardown_node
from tests.integration.gate_env import (
    CONFIG_TEXT,
    GROUP,
    MAC,
    VIP4,
    VIP6,
    GateNet,
    Renewal,
    built_net,
)

pytestmark = pytest.mark.integration
DEVICE = "hv7-lan"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateNet]:
    yield from built_net(tmp_path_factory)


@pytest.fixture
def node(net: GateNet) -> Iterator[GateNet]:
    """gw1 prepared; the test runs inside its namespace."""
    with net.inside("gw1"):
        prepare_node(net.config, "gw1")
        net.forget_neighbours()
        yield net
        teardown_node(net.config, "gw1")


def changed(edit: dict[str, object], folder: Path) -> ClusterConfig:
    """The test's configuration with some of `groups.main.vips` or the groups replaced."""
    document = YAML(typ="safe").load(CONFIG_TEXT)
    document["groups"] = {**document["groups"], **edit}
    document["groups"] = {name: group for name, group in document["groups"].items() if group}
    file = folder / "changed.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(document, stream)
    return load_cluster(file)


def identities(net: GateNet) -> list[object]:
    """What must not change on a node that is right: devices, programs, links."""
    found: list[object] = [socket.if_nametoindex(name) for name in (DEVICE, "hv7-wan")]
    for pin in sorted(net.paths("gw1").bpf.iterdir()):
        with bpf.closing(bpf.open_pin(pin)) as fd:
            if pin.name.startswith("link"):
                found.append(bpf.link_info(fd))
            elif pin.name.startswith("prog"):
                found.append(bpf.program_info(fd))
            else:
                found.append(bpf.map_id(fd))
    return found


def cli(net: GateNet, *words: str, command: tuple[str, ...] = ()) -> tuple[int, str, str]:
    argv = (sys.executable, "-m", "hafw.node.setup", *words)
    done = net.run("gw1", *command, *argv, check=False)
    return done.returncode, done.stdout, done.stderr


# ---- once and again ----------------------------------------------------------------------------


def forwards() -> bool:
    """In this network namespace, both families alike."""
    (value,) = {sysctl.read(k) for k in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")}
    return value == "1"


def test_a_second_set_up_changes_nothing(node: GateNet) -> None:
    before = identities(node)
    assert prepare_node(node.config, "gw1") == []
    assert identities(node) == before
    assert check_node(node.config, "gw1") == []


def test_set_up_of_an_active_node_loses_no_packet(node: GateNet) -> None:
    with Renewal(node.paths("gw1")):
        stop = threading.Event()

        def again() -> None:
            with node.inside("gw1"):
                while not stop.is_set():
                    assert prepare_node(node.config, "gw1") == []

        thread = threading.Thread(target=again)
        thread.start()
        try:
            lost = [
                address
                for _ in range(100)
                for address in (VIP4, VIP6)
                if not node.ping(address, wait_s=1.0)
            ]
        finally:
            stop.set()
            thread.join()
        assert lost == []


def test_a_prepared_node_is_shut_up_and_does_not_forward(node: GateNet) -> None:
    reader = GateReader.open(node.paths("gw1"))
    assert (reader.read(GROUP).announce_ns, reader.read(GROUP).accept_ns) == (0, 0)
    reader.close()
    assert "state UP" in node.ip("gw1", f"link show {DEVICE}")
    assert not forwards()
    for name in ("tcp_loose", "tcp_be_liberal"):
        assert sysctl.read(f"net/netfilter/nf_conntrack_{name}") == "0"


def test_forwarding_is_a_step_of_its_own(net: GateNet) -> None:
    with net.inside("gw2"):
        assert not forwards()
        assert sysctl.enable_forwarding()
        assert forwards()
        assert not sysctl.enable_forwarding()
        prepare_node(net.config, "gw2")
        assert forwards(), "set-up leaves it as it is"
        sysctl.disable_forwarding()
        assert not forwards()
        assert check_node(net.config, "gw2") == [], "it accepts no redirects meanwhile"
        teardown_node(net.config, "gw2")


# ---- beside a running leased -------------------------------------------------------------------


def test_the_page_of_a_group_that_is_no_more_is_left_to_a_running_leased(
    node: GateNet, tmp_path: Path
) -> None:
    """It holds leases by the configuration it was started with; only it writes the page."""
    paths = node.paths("gw1")
    other = {"index": 5, "vrid": 9, "order": ["gw1"], "vips": {"lan": [VIP4]}}
    without = changed({"main": None, "other": other}, tmp_path)
    with claim_instance(paths, "leased"):
        leased = GateWriter.open(paths)
        ahead_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 1_000_000_000
        leased.store(GROUP, announce_ns=ahead_ns, accept_ns=ahead_ns)
        done = prepare_node(without, "gw1")
        assert leased.read(GROUP) == Deadlines(ahead_ns, ahead_ns)
        leased.close()
        assert [text for text in done if text.endswith("leased is running")]
        assert check_node(without, "gw1") == [], "nothing that a repair could mend now"
        with pytest.raises(StateError, match="leased is running; stop it first"):
            forget_group(paths, GROUP)
    assert prepare_node(without, "gw1") == [f"shut and removed the gate of group {GROUP}"]
    reader = GateReader.open(paths)
    assert reader.read(GROUP) == Deadlines(0, 0)
    reader.close()


def test_teardown_is_refused_under_a_running_leased(node: GateNet) -> None:
    before = identities(node)
    with (
        claim_instance(node.paths("gw1"), "leased"),
        pytest.raises(StateError, match="hafw-leased is running"),
    ):
        teardown_node(node.config, "gw1")
    assert identities(node) == before


def test_a_drills_gate_is_not_taken_back_under_a_running_leased(node: GateNet) -> None:
    prepare_node(node.config, "gw1", gate_always_pass=True)
    with claim_instance(node.paths("gw1"), "leased"):
        assert prepare_node(node.config, "gw1", gate_always_pass=True) == []
        with pytest.raises(StateError, match="leased is running; stop it first"):
            prepare_node(node.config, "gw1")
        assert attached(node.paths("gw1"), DEVICE, enforcing=True), "the safe half is done"
    assert prepare_node(node.config, "gw1") == ["the gate drops again"]


# ---- damage ------------------------------------------------------------------------------------


def test_a_device_made_anew_by_hand_is_found_open_and_healed(node: GateNet) -> None:
    node.ip("gw1", f"link del {DEVICE}")
    node.ip("gw1", f"link add link lan0 name {DEVICE} address {MAC} type macvlan mode private")
    node.ip("gw1", f"addr add {VIP4}/32 dev {DEVICE}")
    node.ip("gw1", f"link set {DEVICE} up")
    assert node.ping(VIP4), "an open gate, or this test is blind"
    assert f"{DEVICE}: up without our program on both hooks" in check_node(node.config, "gw1")
    assert not attached(node.paths("gw1"), DEVICE)
    done = prepare_node(node.config, "gw1")
    assert done[0].startswith("set net/") or done[0].startswith(f"took {DEVICE} down")
    down, attach, up = (
        next(place for place, text in enumerate(done) if words in text)
        for words in (f"took {DEVICE} down", "attached the gate", f"took {DEVICE} up")
    )
    assert down < attach < up
    assert attached(node.paths("gw1"), DEVICE, enforcing=True)
    assert check_node(node.config, "gw1") == []
    node.forget_neighbours()
    assert not node.ping(VIP4)


@pytest.mark.parametrize("pin", ["link-hv7-lan-in", "link-hv7-lan-out", "prog-3-in", "gate"])
def test_a_lost_pin_is_found_and_healed(node: GateNet, pin: str) -> None:
    (node.paths("gw1").bpf / pin).unlink()
    assert check_node(node.config, "gw1") != []
    assert not attached(node.paths("gw1"), DEVICE)
    prepare_node(node.config, "gw1")
    assert check_node(node.config, "gw1") == []
    with Renewal(node.paths("gw1")):
        assert node.ping(VIP4)
    node.forget_neighbours()
    assert not node.ping(VIP4)


def test_changed_sysctls_are_named_with_the_reason_and_set_again(node: GateNet) -> None:
    sysctl.write("net/netfilter/nf_conntrack_tcp_loose", "1")
    sysctl.write("net/ipv4/conf/lan0/rp_filter", "1")
    problems = check_node(node.config, "gw1")
    assert len(problems) == 2
    assert problems[0].startswith("net/netfilter/nf_conntrack_tcp_loose is 1 and must be 0")
    assert "rp_filter" in problems[1]
    assert len(prepare_node(node.config, "gw1")) == 2
    assert check_node(node.config, "gw1") == []


def test_an_interface_that_is_down_is_reported(node: GateNet) -> None:
    node.ip("gw1", "link set wan0 down")
    try:
        problems = check_node(node.config, "gw1")
        assert find_problems(node.config, "gw1") == ([], problems), "not hafw's to mend"
    finally:
        node.ip("gw1", "link set wan0 up")
        node.ip("gw1", "addr add 2001:db8:2::1/64 dev wan0 nodad")
    assert "node gw1, segment wan: wan0 is down" in problems


def test_what_is_missing_is_reported_before_the_first_set_up(net: GateNet) -> None:
    with net.inside("gw2"):
        problems = check_node(net.config, "gw2")
    assert any("there is no gate for node gw2" in text for text in problems)
    assert any(f"{DEVICE} is missing" in text for text in problems)


# ---- the configuration changes -----------------------------------------------------------------


def test_a_removed_vip_a_removed_segment_a_removed_group(node: GateNet, tmp_path: Path) -> None:
    main = {"index": GROUP, "vrid": 7, "order": ["gw1", "gw2"]}
    fewer = changed({"main": {**main, "vips": {"lan": [VIP6]}}}, tmp_path)
    before = socket.if_nametoindex(DEVICE)
    assert prepare_node(fewer, "gw1") == [
        "took hv7-wan down: no longer configured",
        "removed hv7-wan: no longer configured",
        "removed the pins of hv7-wan",
        f"removed {VIP4}/32 from {DEVICE}",
    ]
    assert socket.if_nametoindex(DEVICE) == before
    other = {"index": 4, "vrid": 8, "order": ["gw1"], "vips": {"lan": [VIP4]}}
    moved = changed({"main": None, "other": other}, tmp_path)
    with Renewal(node.paths("gw1")):
        prepare_node(moved, "gw1")
        assert check_node(moved, "gw1") == []
    assert sorted(pin.name for pin in node.paths("gw1").bpf.iterdir()) == [
        "gate",
        "link-hv8-lan-in",
        "link-hv8-lan-out",
        "prog-4-in",
        "prog-4-out",
    ]
    assert DEVICE not in node.ip("gw1", "link show")


def test_another_group_index_changes_the_programs_of_the_device(
    node: GateNet, tmp_path: Path
) -> None:
    main = {"index": 5, "vrid": 7, "order": ["gw1", "gw2"], "vips": {"lan": [VIP4]}}
    renumbered = changed({"main": main}, tmp_path)
    prepare_node(renumbered, "gw1")
    assert check_node(renumbered, "gw1") == []
    with Renewal(node.paths("gw1")):  # Opens index 3, which nothing listens to any more.
        assert not node.ping(VIP4)


def test_teardown_leaves_nothing_and_may_be_repeated(net: GateNet) -> None:
    with net.inside("gw1"):
        prepare_node(net.config, "gw1")
        net.ip("gw1", "link del hv7-wan")
        teardown_node(net.config, "gw1")
        assert "hv7" not in net.ip("gw1", "link show")
        assert not net.paths("gw1").bpf.exists()
        assert teardown_node(net.config, "gw1") == []


# ---- refused -----------------------------------------------------------------------------------


def test_a_missing_interface_names_node_segment_and_device(net: GateNet) -> None:
    with net.inside("gw2"):
        net.ip("gw2", "link set lan0 name lanX")
        try:
            with pytest.raises(StateError, match=r"node gw2, segment lan: .* no interface lan0"):
                prepare_node(net.config, "gw2")
            assert "no interface lan0" in check_node(net.config, "gw2")[0]
        finally:
            net.ip("gw2", "link set lanX name lan0")
        with pytest.raises(StateError, match=r"no node gw9 .* it has: gw1, gw2, wit"):
            prepare_node(net.config, "gw9")


def test_a_name_that_another_kind_of_device_has(net: GateNet) -> None:
    with net.inside("gw2"):
        net.ip("gw2", f"link add {DEVICE} type veth peer name other")
        with pytest.raises(StateError, match=rf"{DEVICE} is the name of .* a veth device has it"):
            prepare_node(net.config, "gw2")
        net.ip("gw2", f"link del {DEVICE}")


def test_a_witness_needs_its_links_and_gets_nothing(net: GateNet) -> None:
    with net.inside("gw2"):
        before = net.ip("gw2", "-br link")
        assert prepare_node(net.config, "wit") == []
        assert check_node(net.config, "wit") == [
            "node wit, link sync0: sync0 does not have the address 203.0.113.9/25"
        ]
        assert net.ip("gw2", "-br link") == before
        assert not net.paths("wit").bpf.exists()
    with net.inside("client"), pytest.raises(StateError, match="link sync0"):
        prepare_node(net.config, "wit")


def test_a_private_mount_namespace_is_refused(node: GateNet) -> None:
    words = ("--node", "gw1", "--config", str(node.file))
    code, out, err = cli(node, *words, command=("unshare", "--mount"))
    assert (code, out) == (1, "")
    assert "mount namespace of its own" in err
    assert "Traceback" not in err
    exec_argv = ["ip", "netns", "exec", node.namespace("gw1")]
    argv = [sys.executable, "-m", "hafw.node.setup", *words]
    done = subprocess.run([*exec_argv, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mount namespace of its own" in done.stderr


def test_a_folder_that_is_not_bpffs_is_refused(
    net: GateNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAFW_BPF_ROOT", str(tmp_path))
    with net.inside("gw2"):
        with pytest.raises(StateError, match="not on bpffs"):
            prepare_node(net.config, "gw2")
        (tmp_path / "gw2").mkdir()
        with pytest.raises(StateError, match="not on bpffs"):
            check_bpffs(net.paths("gw2"))
        assert DEVICE not in net.ip("gw2", "link show")


def test_without_root_one_line_says_so(net: GateNet) -> None:
    words = ("--node", "gw1", "--config", str(net.file))
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    code, out, err = cli(net, *words, command=drop)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "CAP_NET_ADMIN" in err


def test_this_kernel_lacks_nothing() -> None:
    assert missing_features("gateway") == []
    assert missing_features("witness") == []


# ---- the command -------------------------------------------------------------------------------


def test_the_command_prepares_checks_and_takes_down(net: GateNet) -> None:
    words = ("--node", "gw1", "--config", str(net.file))
    code, out, err = cli(net, *words)
    assert (code, err) == (0, "")
    assert json.loads(out)["ok"] is True
    assert any("created hv7-lan" in text for text in json.loads(out)["changes"])
    code, out, _ = cli(net, *words, "--check")
    assert (code, json.loads(out)) == (0, {"ok": True, "problems": []})
    net.ip("gw1", "link set hv7-lan down")
    code, out, _ = cli(net, *words, "--check")
    assert code == 1
    assert "hv7-lan is not up" in json.loads(out)["problems"]
    code, out, _ = cli(net, *words, "--teardown")
    assert code == 0
    assert not net.paths("gw1").bpf.exists()


def test_a_broken_configuration_is_one_line(net: GateNet, tmp_path: Path) -> None:
    broken = tmp_path / "cluster.yaml"
    broken.write_text("name: x\nnode: {}\n")
    code, out, err = cli(net, "--node", "gw1", "--config", str(broken))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("hafw.node.setup: error: ")
