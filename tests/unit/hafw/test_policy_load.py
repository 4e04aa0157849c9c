"""Around a load: the culprit of a refusal, the kernel's listing compared, the CPU, the result."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.config.load import load_cluster
from hafw.paths import NodePaths
from hafw.policy.apply import PolicyResult, Ruleset, parse_result, read_ruleset, worker_command
from hafw.policy.compile import compile_policy, document_rules
from hafw.policy.culprit import find_culprit
from hafw.policy.load import load_policy
from hafw.policy.loaded import expected_counts, kernel_hash
from hafw.policy.model import Policy

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = load_cluster(ROOT / "hafw/lab/cluster.yaml")


def policy_of(count: int) -> Policy:
    return Policy.model_validate(
        {
            "zones": {"lan": ["lan"], "wan": ["wan"]},
            "rules": [{"action": "accept", "comment": f"rule {n}"} for n in range(count)],
            "helpers": {"ftp": [21]},
            "nat": {"masquerade": [{"from": "lan", "to": "wan"}]},
        }
    )


@given(st.integers(1, 60), st.data())
def test_the_first_bad_rule_is_found_in_few_tries(count: int, data: st.DataObject) -> None:
    policy = policy_of(count)
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
    words = {f"rule {n}" for n in bad}
    tries = asked = 0

    def refused(part: Policy) -> bool:
        nonlocal tries, asked
        tries += 1
        asked += len(part.rules)
        return any(rule.comment in words for rule in part.rules)

    assert find_culprit(policy, refused) == f"rules.{min(bad)}"
    assert tries <= 3 + (count + 2).bit_length()
    assert asked <= count + 2  # About one dry run of all.


@pytest.mark.parametrize(
    ("path", "is_there"),
    [
        ("helpers.ftp", lambda policy: "ftp" in policy.helpers),
        ("nat.masquerade.0", lambda policy: bool(policy.nat.masquerade)),
    ],
)
def test_parts_that_are_no_rules_are_found_too(path: str, is_there: Any) -> None:
    assert find_culprit(policy_of(3), is_there) == path


def test_nobody_is_blamed_for_what_every_policy_needs() -> None:
    assert find_culprit(policy_of(3), lambda part: True) is None
    assert find_culprit(policy_of(3), lambda part: False) is None


def test_counts_name_what_a_load_leaves() -> None:
    policy = load_policy(ROOT / "hafw/lab/policy.yaml", CLUSTER)
    made = compile_policy(policy, CLUSTER, "gw1")
    counts = expected_counts(made)
    assert counts["rule"] == document_rules(made)
    assert counts["ct helper"] == 4
    assert "table" not in counts


LISTING: list[dict[str, Any]] = [
    {"table": {"family": "inet", "name": "hafw_policy", "handle": 3}},
    {"set": {"table": "hafw_policy", "name": "a", "handle": 1, "elem": ["x", "y"]}},
    {"set": {"table": "hafw_state", "name": "b", "handle": 1, "elem": ["1.2.3.4"]}},
    {"counter": {"table": "hafw_policy", "name": "c", "packets": 1, "bytes": 2}},
    {
        "rule": {
            "table": "hafw_policy",
            "handle": 9,
            "expr": [
                {"match": {"op": "==", "left": 1, "right": {"set": ["p", {"range": [1, 2]}]}}},
                {"counter": {"packets": 5, "bytes": 6}},
                {"accept": None},
            ],
        }
    },
]


def test_what_changes_by_itself_is_no_drift() -> None:
    other = copy.deepcopy(LISTING)
    other[0]["table"]["handle"] = 77
    other[1]["set"]["elem"] = ["y", "x"]
    other[2]["set"]["elem"] = ["5.6.7.8", "9.9.9.9"]
    other[3]["counter"].update(packets=100, bytes=200)
    other[4]["rule"]["expr"][1]["counter"]["packets"] = 500
    other[4]["rule"]["expr"][0]["match"]["right"]["set"].reverse()
    assert kernel_hash(other) == kernel_hash(LISTING)


@pytest.mark.parametrize(
    "change",
    [
        lambda listing: listing.pop(),
        lambda listing: listing[1]["set"]["elem"].append("z"),
        lambda listing: listing[4]["rule"]["expr"].pop(),
        lambda listing: listing[4]["rule"]["expr"][0]["match"].update(op="!="),
        lambda listing: listing.append({"rule": {"table": "hafw_state", "expr": []}}),
    ],
)
def test_what_somebody_changed_is_drift(change: Any) -> None:
    other = copy.deepcopy(LISTING)
    change(other)
    assert kernel_hash(other) != kernel_hash(LISTING)


def test_the_result_is_the_last_line() -> None:
    assert parse_result(b'noise\n{"ok":true,"hash":"ab","rules":3}\n') == PolicyResult(
        ok=True, hash="ab", rules=3
    )
    assert parse_result(b"") is None
    assert parse_result(b"Traceback\n") is None


def test_the_command_line() -> None:
    command = worker_command(Path("/c.yaml"), "gw1", Path("/p.yaml"), check=True)
    assert command[1:] == [
        "-m", "hafw.policy.worker", "--node", "gw1", "--config", "/c.yaml",
        "--policy", "/p.yaml", "--check",
    ]  # fmt: skip


def test_the_record_of_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFW_RUN_ROOT", str(tmp_path))
    paths = NodePaths("gw1")
    assert read_ruleset(paths) is None
    paths.run.mkdir(parents=True)
    file = paths.run / "ruleset.json"
    file.write_text('{"file":"p","hash":"a","ruleset":"b","kernel":"c","rules":1,"loaded_at":"t"}')
    assert read_ruleset(paths) == Ruleset("p", "a", "b", "c", 1, "t")
    file.write_text("{")
    assert read_ruleset(paths) is None
