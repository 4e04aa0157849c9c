"""cluster.yaml: each mistake is named with file, line, path, value and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError

LAB = Path("hafw/lab/cluster.yaml")
TEXT = (Path(__file__).resolve().parents[3] / LAB).read_text()


def problems(tmp_path: Path, text: str) -> list[str]:
    """The error's lines, without the folder."""
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(file)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def line_of(text: str, needle: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if needle in line)


def test_the_lab_file_is_right() -> None:
    config = load_cluster(Path(__file__).resolve().parents[3] / LAB)
    assert config.voters.members == (1, 2, 9)
    assert config.groups["main"].device("lan") == "hv1-lan"


@pytest.mark.parametrize(
    ("upstream", "said"),
    [
        ("{dmz: {address: 192.0.2.10}}", ".dmz: the group has no VIP on segment dmz"),
        (
            "{wan: {address: 198.51.100.2}}",
            ".wan.address: 198.51.100.2 is an own address of gw2: it says nothing of the far side",
        ),
        (
            "{wan: {address: 198.51.100.254}}",
            ".wan.address: 198.51.100.254 is a VIP of the group: it says nothing of the far side",
        ),
        (
            "{wan: {address: 198.51.100.10, interval_ms: 49}}",
            ".wan.interval_ms: must be between 50 and 10000 (got 49)",
        ),
    ],
)
def test_an_upstream_check_asks_somebody_else_on_a_segment_of_the_group(
    tmp_path: Path, upstream: str, said: str
) -> None:
    text = TEXT.rstrip() + f"\n    upstream: {upstream}\n"
    [problem] = problems(tmp_path, text)
    assert f": groups.main.upstream{said}" in problem


def test_an_upstream_check_needs_an_own_address_of_its_family(tmp_path: Path) -> None:
    text = TEXT.replace(', "2001:db8:2::2/64"]', "]").replace('198.51.100.254, "2001:db8:2::fe"',
                                                              "198.51.100.254")  # fmt: skip
    text = text.rstrip() + '\n    upstream: {wan: {address: "2001:db8:2::10"}}\n'
    [problem] = problems(tmp_path, text)
    assert "wan.address: gw2 has no IPv6 address of its own on wan to ask from" in problem


def test_the_lab_file_is_right_through_its_own_json() -> None:
    config = load_cluster(Path(__file__).resolve().parents[3] / LAB)
    assert ClusterConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    id: 1\n", "    id: 99\n", "nodes.gw1.id: must be between 1 and 62 (got 99)"),
        ("    id: 1\n", "    id: true\n", "nodes.gw1.id: must be a whole number (got true)"),
        ("    id: 1\n", '    id: "1"\n', 'nodes.gw1.id: must be a whole number (got "1")'),
        ("    id: 1\n", "    id: 1.5\n", "nodes.gw1.id: must be a whole number (got 1.5)"),
        ("    id: 1\n", "    id:\n", "nodes.gw1.id: must be a whole number"),
        (
            "role: witness",
            "role: witnes",
            "nodes.wit.role: must be one of gateway, witness (got witnes); did you mean witness?",
        ),
        (
            "name: lab",
            "name: Lab",
            "name: is not valid (got Lab); must be a lower-case letter, then up to 31 of a-z, "
            "0-9 and -",
        ),
        (
            "order: [gw1, gw2]",
            "order: gw1",
            "groups.main.order: must be a list (got gw1); write [gw1]",
        ),
        (
            "[192.0.2.254, ",
            "[192.0.2.256, ",
            "groups.main.vips.lan.0: must be an IPv4 or IPv6 address (got 192.0.2.256)",
        ),
        (
            "[192.0.2.254, ",
            "[5, ",
            "groups.main.vips.lan.0: must be an IPv4 or IPv6 address (got 5)",
        ),
        (
            "address: 203.0.113.9/25",
            "address: 203.0.113.9",
            "nodes.wit.links.sync0.address: needs its prefix length, such as 203.0.113.9/24 "
            "(got 203.0.113.9)",
        ),
        (
            "address: 203.0.113.9/25",
            "address: 2001:db8::9/64",
            "nodes.wit.links.sync0.address: must be an IPv4 address with its prefix length, such "
            "as 192.0.2.1/24 (got 2001:db8::9/64)",
        ),
        (
            "sync0, address: 203.0.113.9/25",
            "sync 0, address: 203.0.113.9/25",
            "nodes.wit.links.sync0.device: is not valid (got sync 0); must be a device name: 1 to "
            "15 characters without space, / or :",
        ),
    ],
)
def test_a_wrong_value(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    line = line_of(text, new.strip())
    assert problems(tmp_path, text) == [f"cluster.yaml:{line}: {said}"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    id: 2\n", "    id: 1\n", "nodes.gw2.id: 1 is already the id of gw1 (got 1)"),
        (
            "device: sync1, address: 203.0.113.130",
            "device: sync0, address: 203.0.113.130",
            "nodes.gw2.links.sync1.device: sync0 is already the device of nodes.gw2.links.sync0 "
            "(got sync0)",
        ),
        (
            "203.0.113.130/25",
            "203.0.113.129/25",
            "nodes.gw2.links.sync1.address: 203.0.113.129 is already an address of gw1 "
            "(link sync1) (got 203.0.113.129/25)",
        ),
        (
            "203.0.113.130/25",
            "203.0.113.130/24",
            "nodes.gw2.links.sync1.address: link sync1 is 203.0.113.0/24 here, but "
            "203.0.113.128/25 on gw1 (got 203.0.113.130/24)",
        ),
        (
            "order: [gw1, gw2]",
            "order: [gw1, gw3]",
            "groups.main.order.1: no node is named gw3 (got gw3)",
        ),
        (
            "order: [gw1, gw2]",
            "order: [gw1, wit]",
            "groups.main.order.1: wit is not a gateway (got wit)",
        ),
        (
            "order: [gw1, gw2]",
            "order: [gw1, gw1]",
            "groups.main.order: gw1 is listed twice",
        ),
        (
            "lan: [192.0.2.254, ",
            "lan: [192.0.2.2, ",
            "groups.main.vips.lan.0: 192.0.2.2 is an own address of gw2 (segment lan) "
            "(got 192.0.2.2)",
        ),
        (
            "lan: [192.0.2.254, ",
            "lan: [198.51.100.254, ",
            "groups.main.vips.wan.0: 198.51.100.254 is already a VIP of main on lan "
            "(got 198.51.100.254)",
        ),
        (
            "lan: [192.0.2.254, ",
            "lan: [224.0.0.5, ",
            "groups.main.vips.lan.0: 224.0.0.5 cannot be a VIP (got 224.0.0.5)",
        ),
        (
            '"2001:db8:2::fe"]',
            '"fe80::1"]',
            "groups.main.vips.wan.1: the virtual link-local address is made by hafw "
            '(got "fe80::1")',
        ),
        (
            "[198.51.100.2/24, ",
            "[",
            "groups.main.vips.wan: gw2 needs an IPv4 address of its own on wan",
        ),
        (
            "role: witness\n",
            "role: gateway\n",
            "nodes.wit.segments: a gateway needs at least one segment",
        ),
    ],
)
def test_a_broken_relation(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert TEXT.count(old) == 1
    found = problems(tmp_path, TEXT.replace(old, new))
    assert [line.split(": ", 1)[1] for line in found] == [said]
    assert all(line.split(":")[1].isdigit() for line in found)


def test_relations_inside_a_section_have_their_own_line(tmp_path: Path) -> None:
    text = TEXT + "lease:\n  lease_ms: 50\n  heartbeat_ms: 20\nsync:\n  refresh_s: 800\n"
    lines = len(TEXT.splitlines())
    assert problems(tmp_path, text) == [
        f"cluster.yaml:{lines + 3}: lease.heartbeat_ms: heartbeat_ms * 3 must be <= lease_ms "
        "(20 * 3 > 50) (got 20)",
        f"cluster.yaml:{lines + 5}: sync.refresh_s: refresh_s * 2 must be <= hold_s "
        "(800 * 2 > 900), or replicas expire in between (got 800)",
    ]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("sync: {port: 7410}", "sync.port: 7410 is already lease.port (got 7410)"),
        ("cpus: {lease: 1, policy: 1}", "cpus.policy: lease and policy must be different CPUs"),
        ("lease: {multicast: 239.1.2.3}", "lease.multicast: must be in 224.0.0.0/24"),
        ("lease: {multicast: 169.254.1.1}", "lease.multicast: must be in 224.0.0.0/24"),
        ("lease: {multicast: 224.0.1.1}", "lease.multicast: must be in 224.0.0.0/24"),
        ("sync: {multicast: 10.1.2.3}", "sync.multicast: must be in 239.0.0.0/8"),
        ("sync: {multicast: 224.0.0.142}", "sync.multicast: must be in 239.0.0.0/8"),
        (
            "sync: {segments: [lan, dmz]}",
            "sync.segments.1: no segment is named dmz; there are lan",
        ),
        ("sync: {segments: [lan, lan]}", "sync.segments.1: lan is listed twice"),
    ],
)
def test_relations_between_sections(tmp_path: Path, section: str, said: str) -> None:
    (line,) = problems(tmp_path, f"{TEXT}{section}\n")
    assert said in line


def test_all_problems_come_at_once_in_file_order(tmp_path: Path) -> None:
    text = TEXT.replace("    id: 1\n", "    id: 0\n").replace("vrid: 1", "vrid: 256")
    text = text.replace("    id: 9\n", "    id: 9\n    id: 10\n") + "lesae: {}\n"
    found = problems(tmp_path, text)
    assert [line.split(": ")[1] for line in found] == [
        "nodes.gw1.id",
        "nodes.wit.id",
        "groups.main.vrid",
        "lesae",
    ]
    numbers = [int(line.split(":")[1]) for line in found]
    assert numbers == sorted(numbers)


def test_several_broken_relations_are_all_told(tmp_path: Path) -> None:
    text = TEXT.replace("    id: 2\n", "    id: 1\n").replace(
        "order: [gw1, gw2]", "order: [gw1, wit]"
    )
    text = text.replace("lan: [192.0.2.254, ", "lan: [192.0.2.2, ")
    assert len(problems(tmp_path, text)) == 3


def test_a_missing_key_is_told_at_its_parent(tmp_path: Path) -> None:
    text = TEXT.replace("    vrid: 1\n", "")
    line = line_of(text, "main:")
    assert problems(tmp_path, text) == [f"cluster.yaml:{line}: groups.main.vrid: is required"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [("ordre", "did you mean order?"), ("quux", "known keys: index, order, upstream, vips, vrid")],
)
def test_an_unknown_key_and_the_one_it_leaves_missing(tmp_path: Path, key: str, hint: str) -> None:
    text = TEXT.replace("    order:", f"    {key}:")
    assert problems(tmp_path, text) == [
        f"cluster.yaml:{line_of(text, 'main:')}: groups.main.order: is required",
        f"cluster.yaml:{line_of(text, key)}: groups.main.{key}: the key is not known; {hint}",
    ]


def test_links_must_be_shared(tmp_path: Path) -> None:
    text = TEXT.replace("sync0: {device: sync0, address: 203.0.113.9/25}\n      ", "")
    text = text.replace("sync1: {device: sync1, address: 203.0.113.137/25}", "")
    text = text.replace("    links:\n      \ngroups", "    links:\n      x: X\ngroups")
    text = text.replace("x: X", "x: {device: x0, address: 203.0.113.137/25}")
    assert all("no link has the same name" in line for line in problems(tmp_path, text))


THIRD = """\
  gw3:
    id: 3
    segments: {lan: {device: lan0, addresses: [192.0.2.3/24, "2001:db8:1::3/64"]}}
    links: {sync0: {device: sync0, address: 203.0.113.3/25}}
"""


def two_node_text() -> str:
    """The lab's file without its witness."""
    before, rest = TEXT.split("  wit:\n", 1)
    lines = rest.splitlines()
    end = next(n for n, line in enumerate(lines) if line and not line.startswith("    "))
    return before + "\n".join(lines[end:]) + "\nquorum: two-node\n"


def test_two_nodes_without_a_witness(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(two_node_text())
    config = load_cluster(file)
    assert (config.quorum, config.voters.members) == ("two-node", (1, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TEXT + "quorum: two-node\n",
            "quorum: two-node is for two gateways without a witness, and wit is one: leave it "
            "out, a majority is safer (got two-node)",
        ),
        (
            two_node_text().replace("nodes:\n", "nodes:\n" + THIRD),
            "quorum: two-node takes exactly two gateways, and there are 3: leave it out "
            "(got two-node)",
        ),
        (
            two_node_text() + "lease: {heartbeat_ms: 30, lease_ms: 100}\n",
            "lease.heartbeat_ms: with quorum: two-node heartbeat_ms * 4 must be <= lease_ms "
            "(30 * 4 > 100), or a late heartbeat looks like a dead peer (got 30)",
        ),
        (
            TEXT + "quorum: pair\n",
            "quorum: must be one of majority, two-node (got pair)",
        ),
    ],
)
def test_quorum_that_does_not_fit(tmp_path: Path, text: str, said: str) -> None:
    assert [line.split(": ", 1)[1] for line in problems(tmp_path, text)] == [said]
