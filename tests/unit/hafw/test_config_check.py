"""check_file: what kind a file is, what is wrong with it, what is worth a look."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from hafw.cli.main import cli
from hafw.config.check import check_file

LAB = Path(__file__).resolve().parents[3] / "hafw/lab"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    for name in ("cluster.yaml", "policy.yaml"):
        shutil.copy(LAB / name, tmp_path)
    return tmp_path


def test_the_lab_cluster_and_its_policy_are_right(lab: Path) -> None:
    report = check_file(lab / "cluster.yaml")
    assert (report.ok, report.kind, report.lines) == (True, "cluster", [])
    assert (
        "voters at the first start",
        "3, majority 2, hash 16599b2484efdbd9 (later: hafwctl cluster voters)",
    ) in report.facts
    assert report.also is not None
    assert report.also.kind == "policy"
    assert dict(report.also.facts)["compiled for gw1"].endswith(" nft rules")


def test_a_policy_is_checked_against_the_cluster_beside_it(lab: Path) -> None:
    policy = lab / "policy.yaml"
    policy.write_text(policy.read_text().replace("lan: [lan]", "lan: [lam]"))
    report = check_file(policy)
    assert report.lines == [f"{policy}:3: zones.lan: no segment is named lam; did you mean lan?"]
    assert check_file(lab / "cluster.yaml").lines == report.lines
    (lab / "cluster.yaml").unlink()
    alone = check_file(policy)
    assert alone.ok
    assert f"no {lab / 'cluster.yaml'}: segments and VIPs were not checked" in alone.notes


def test_a_policy_beside_a_broken_cluster(lab: Path) -> None:
    (lab / "cluster.yaml").write_text("name: X\n")
    report = check_file(lab / "policy.yaml")
    assert report.ok
    assert "has 3 problems" in report.notes[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cluster.yaml"), ("name: X\n", "cluster.yaml:1: name: "), (": [", "cluster.yaml")],
)
def test_a_cluster_file_that_is_named_must_be_there_and_right(
    lab: Path, text: str | None, said: str
) -> None:
    named = lab / "cluster.yaml"
    named.unlink()
    if text is not None:
        named.write_text(text)
    assert check_file(lab / "policy.yaml").ok, "not named: a note is enough"
    report = check_file(lab / "policy.yaml", named)
    assert not report.ok
    assert all(str(named) in line for line in report.lines), report.lines
    assert said in report.lines[0]
    result = CliRunner().invoke(cli, ["check", str(lab / "policy.yaml"), "--cluster", str(named)])
    assert result.exit_code == 1
    assert "fine" not in result.stdout


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", "unknown", "is empty"),
        ("foo: 1\n", "unknown", "is neither a cluster nor a policy"),
        ("nodes: {}\n", "cluster", "name: is required"),
        ("rules: [{}]\n", "policy", "zones: is required"),
    ],
)
def test_what_is_wrong_is_a_report_not_an_exception(
    tmp_path: Path, text: str, kind: str, said: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    report = check_file(file)
    assert not report.ok
    assert report.kind == kind
    assert any(said in line for line in report.lines)


def test_notes_on_a_cluster_that_survives_nothing(lab: Path) -> None:
    file = lab / "cluster.yaml"
    text = file.read_text()
    text = text[: text.index("  wit:")] + text[text.index("groups:") :]
    text = text.replace("order: [gw1, gw2]", "order: [gw1]")
    text = text.replace("      sync1: {device: sync1, address: 203.0.113.130/25}\n", "")
    file.write_text(text)
    (lab / "policy.yaml").unlink()
    notes = check_file(file).notes
    warning = (
        "two voters: the loss of either leaves no majority; add a witness (quorum: two-node lets "
        "one go on alone, and promises less)"
    )
    assert check_file(file).warnings == [warning]
    result = CliRunner().invoke(cli, ["check", str(file)])
    assert result.exit_code == 0
    assert f"hafwctl: warning: {warning}\n" in result.stderr
    assert any("group main has one candidate" in note for note in notes)
    assert any("node gw2 has one link" in note for note in notes)
    assert any("does not exist here" in note for note in notes)


def test_two_nodes_are_told_what_they_do_not_get(lab: Path) -> None:
    file = lab / "cluster.yaml"
    text = file.read_text()
    text = text[: text.index("  wit:")] + text[text.index("groups:") :]
    file.write_text(text + "\nquorum: two-node\n")
    (warning,) = check_file(file).warnings
    assert warning.startswith("two nodes without a witness: if all links and segments")


def test_one_voter_is_noted(lab: Path) -> None:
    file = lab / "cluster.yaml"
    text = file.read_text()
    text = text[: text.index("  gw2:")] + text[text.index("groups:") :]
    file.write_text(text.replace("order: [gw1, gw2]", "order: [gw1]"))
    (warning,) = check_file(file).warnings
    assert warning.startswith("one voter: nobody can take over")


def test_a_vip_outside_its_segment_is_noted(lab: Path) -> None:
    file = lab / "cluster.yaml"
    before = check_file(file)
    assert before.warnings == []
    assert not any("VIP" in note for note in before.notes)
    text = file.read_text()
    text = text.replace("lan: [192.0.2.254,", "lan: [192.0.3.254,")
    text = text.replace('"2001:db8:2::fe"]', '"2001:db8:3::fe"]')
    file.write_text(text)
    report = check_file(file)
    assert report.ok
    found = [note for note in report.notes if "VIP" in note]
    assert found == [
        "group main: VIP 192.0.3.254 is in no network of segment lan (192.0.2.0/24): hosts there "
        "reach it by a route only",
        "group main: VIP 2001:db8:3::fe is in no network of segment wan (2001:db8:2::/64): hosts "
        "there reach it by a route only",
    ]


def test_a_policy_without_ssh_is_noted(lab: Path) -> None:
    policy = lab / "policy.yaml"
    assert any("ssh" in note for note in check_file(policy).notes)
    policy.write_text(policy.read_text() + "ssh_from: [203.0.113.0/24]\n")
    assert not any("ssh" in note for note in check_file(policy).notes)
