"""Drawn labs are valid clusters of the size asked for, and can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hafw.cli.main import cli
from hafw.config.load import load_cluster
from hafw.errors import RefusedError
from hafw.lab import topology
from hafw.lab.draw import GATEWAYS_MAX, GROUPS_MAX, draw


@pytest.mark.parametrize("gateways", range(2, GATEWAYS_MAX + 1))
@pytest.mark.parametrize("groups", [1, 2, GROUPS_MAX])
def test_every_size_is_a_valid_cluster(tmp_path: Path, gateways: int, groups: int) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(draw(gateways, groups))
    config = load_cluster(file)
    roles = [node.role for node in config.nodes.values()]
    assert roles.count("gateway") == gateways
    assert len(roles) % 2 == 1, "an odd number of voters"
    assert [group.order[0] for group in config.groups.values()] == [
        f"gw{number % gateways + 1}" for number in range(groups)
    ]
    plan = topology.plan(config)
    client, server = plan.host("client"), plan.host("server")
    assert len(client.routes) == 2 * groups
    addresses = {str(a.ip) for port in server.ports for a in port.addresses}
    assert len(addresses) == 2 * groups
    hosts = {to.split("/")[0] for to, _ in client.routes if to}
    assert hosts == addresses - {"198.51.100.10", "2001:db8:2::10"}


def test_the_first_two_are_the_labs_own(tmp_path: Path) -> None:
    from hafw.lab.recipe import default_config_file

    file = tmp_path / "cluster.yaml"
    file.write_text(draw(2, 1))
    own, drawn = load_cluster(default_config_file()), load_cluster(file)
    assert drawn.nodes == own.nodes
    assert drawn.groups == own.groups


@pytest.mark.parametrize(("gateways", "groups"), [(1, 1), (9, 1), (2, 0), (2, 9)])
def test_no_other_size(gateways: int, groups: int) -> None:
    with pytest.raises(RefusedError, match="a lab has 2 to 8 gateways"):
        draw(gateways, groups)


def test_what_somebody_edited_is_not_drawn_over(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    again = ["lab", "draw", str(folder), "--gateways", "3"]
    assert CliRunner().invoke(cli, again).exit_code == 0
    assert CliRunner().invoke(cli, again).exit_code == 0, "the same again changes nothing"
    (folder / "policy.yaml").write_text("mine\n")
    drawn = (folder / "cluster.yaml").read_text()
    refused = CliRunner().invoke(cli, ["lab", "draw", str(folder), "--gateways", "4"])
    words = f"{folder}/cluster.yaml and {folder}/policy.yaml: there already, with other content"
    assert words in str(refused.exception)
    assert (folder / "policy.yaml").read_text() == "mine\n"
    assert (folder / "cluster.yaml").read_text() == drawn
