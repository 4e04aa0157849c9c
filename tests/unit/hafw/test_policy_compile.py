"""The compiler: golden documents (one command a line), and the properties that must hold in any.

After a wanted change: ``HAFW_GOLDEN=write pytest THIS_FILE``; then read what differs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gate import GATE_HANDOVER_MARK as GATE_MARK
from hafw.config.document import parse_document, validate
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.errors import ConfigError, RefusedError
from hafw.flow import MARK_MASK, hafw_mark
from hafw.policy.cluster_table import GATE_HANDOVER_MARK
from hafw.policy.compile import (
    TABLES,
    compile_policy,
    document_hash,
    document_rules,
    policy_hash,
)
from hafw.policy.load import load_policy, validate_policy
from hafw.policy.model import Policy

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parent / "golden"
LAB = load_cluster(ROOT / "hafw/lab/cluster.yaml")
LAB_POLICY = load_policy(ROOT / "hafw/lab/policy.yaml", LAB)

TWO_GROUPS = validate(
    parse_document(
        "two.yaml",
        (ROOT / "hafw/lab/cluster.yaml").read_text()
        + "  second:\n    index: 2\n    vrid: 7\n    order: [gw2, gw1]\n    vips:\n"
        "      lan: [192.0.2.253, '2001:db8:1::fd']\n"
        "      wan: [198.51.100.253, '2001:db8:2::fd']\n",
    ),
    ClusterConfig,
)

EVERYTHING = """
zones: {lan: [lan], wan: [wan]}
services:
  game: {udp: [27015, 27020-27030, 27025-27040]}
  probe: {icmp: [timestamp-request], icmpv6: [echo-request], protocols: [gre, esp]}
ssh_from: [203.0.113.0/25, "2001:db8:5::/64"]
rules:
- {from: wan, source: [192.0.2.66, 10.0.0.0/9, 10.128.0.0/9, "2001:db8:66::/48"], action: drop,
   comment: blocked}
- {from: lan, to: wan, services: [http, https, dns, ping, game, probe], action: accept}
- {from: [lan, wan], to: [wan, lan], destination: "2001:db8:9::9", services: ssh, action: reject}
- {from: any, to: [self, any], services: [ping], action: accept, log: true, counter: false}
- {from: wan, to: self, action: reject, comment: no}
- {from: self, to: wan, services: smtp, action: drop}
- {from: lan, to: wan, services: ntp, action: accept, sync: never}
- {from: lan, to: [wan, self], services: [dns, ping], action: accept, sync: delayed}
- {from: lan, action: accept, nft: [{match: {op: "==", left: {meta: {key: skuid}}, right: 0}}]}
nat:
  snat:
  - {from: lan, to: wan, source: [192.0.2.128/25, "2001:db8:1::/65"],
     address: [198.51.100.253, "2001:db8:9::1"]}
  masquerade:
  - {from: lan, to: any, comment: out and hairpin}
  dnat:
  - {on: wan, vip: 198.51.100.253, protocol: [tcp, sctp], ports: [80, 8000-8010], to: 192.0.2.20,
     sync: delayed,
     source: [192.0.2.0/24, 198.51.100.128/25]}
helpers: {ftp: [21, 2121], sip: 5060}
"""


def document(policy: Policy, cluster: ClusterConfig = LAB, node: str = "gw1") -> dict[str, Any]:
    return compile_policy(policy, cluster, node)


def lines(made: dict[str, Any]) -> str:
    return "".join(json.dumps(command) + "\n" for command in made["nftables"])


def golden(name: str, made: dict[str, Any]) -> None:
    file = GOLDEN / name
    if os.environ.get("HAFW_GOLDEN") == "write":
        file.write_text(lines(made))
    assert lines(made) == file.read_text(), f"{name}: see the head of this file"


def rules(made: dict[str, Any], table: str, chain: str) -> list[list[dict[str, Any]]]:
    found = [c["add"]["rule"] for c in made["nftables"] if "rule" in c.get("add", {})]
    return [r["expr"] for r in found if (r["table"], r["chain"]) == (table, chain)]


@pytest.mark.parametrize("node", ["gw1", "gw2"])
def test_lab_policy_golden(node: str) -> None:
    golden(f"policy_lab_{node}.jsonl", document(LAB_POLICY, LAB, node))


def test_everything_golden() -> None:
    policy = validate_policy(parse_document("p", EVERYTHING), TWO_GROUPS)
    golden("policy_everything.jsonl", document(policy, TWO_GROUPS))


def test_only_our_tables_are_ever_named() -> None:
    policy = validate_policy(parse_document("p", EVERYTHING), TWO_GROUPS)
    for command in document(policy, TWO_GROUPS)["nftables"]:
        (objects,) = command.values()
        ((kind, fields),) = objects.items()
        assert fields["family"] == "inet"
        assert fields["name" if kind == "table" else "table"] in TABLES
        assert "flush" not in command or kind == "chain"


def test_state_is_kept_and_the_others_are_swapped() -> None:
    commands = document(LAB_POLICY)["nftables"]
    deleted = [c["delete"]["table"]["name"] for c in commands if "delete" in c]
    assert sorted(deleted) == ["hafw_cluster", "hafw_policy"]
    flushed = {c["flush"]["chain"]["table"] for c in commands if "flush" in c}
    assert flushed == {"hafw_state"}


def test_the_same_input_gives_the_same_bytes() -> None:
    again = load_policy(ROOT / "hafw/lab/policy.yaml", LAB)
    assert lines(document(again)) == lines(document(LAB_POLICY))
    assert policy_hash(again) == policy_hash(LAB_POLICY)


def test_hashes_tell_policies_and_nodes_apart() -> None:
    changed = LAB_POLICY.model_copy(update={"rules": LAB_POLICY.rules[:1]})
    assert policy_hash(changed) != policy_hash(LAB_POLICY)
    hashes = {document_hash(document(LAB_POLICY, LAB, node)) for node in ("gw1", "gw2")}
    assert len(hashes) == 2
    assert document_hash(document(changed)) not in hashes


def test_the_layout_of_the_file_does_not_change_the_hash() -> None:
    text = (ROOT / "hafw/lab/policy.yaml").read_text()
    other = validate_policy(parse_document("p", f"# moved\n\n{text}"), LAB)
    assert policy_hash(other) == policy_hash(LAB_POLICY)


def test_nat_chains_are_there_without_any_nat() -> None:
    """Else replicas would not be translated: the hooks come with the first nat chain."""
    policy = Policy(zones={"lan": ["lan"]})
    chains = [
        c["add"]["chain"] for c in document(policy)["nftables"] if "chain" in c.get("add", {})
    ]
    hooks = {(c["hook"], c["prio"]) for c in chains if c.get("type") == "nat"}
    assert hooks == {("prerouting", -100), ("postrouting", 100)}


def test_the_mark_is_set_once_in_the_original_direction_between_conntrack_and_nat() -> None:
    made = document(LAB_POLICY)
    (setting,) = [
        rule for rule in rules(made, "hafw_cluster", "prerouting") if "mangle" in rule[-1]
    ]
    mark = hafw_mark(1, 1, 1)
    assert setting == [
        {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}},
        {
            "match": {
                "op": "==",
                "left": {"meta": {"key": "iifname"}},
                "right": {"set": ["hv1-lan", "hv1-wan"]},
            }
        },
        {"match": {"op": "==", "left": {"ct": {"key": "direction"}}, "right": "original"}},
        {"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, MARK_MASK]}, "right": 0}},
        {
            "mangle": {
                "key": {"ct": {"key": "mark"}},
                "value": {"|": [{"&": [{"ct": {"key": "mark"}}, 0xFFFF]}, mark]},
            }
        },
    ]
    chain = next(
        c["add"]["chain"]
        for c in made["nftables"]
        if c.get("add", {}).get("chain", {}).get("name") == "prerouting"
        and c["add"]["chain"]["table"] == "hafw_cluster"
    )
    assert -200 < chain["prio"] < -100


def test_the_handover_mark_is_the_gates() -> None:
    assert GATE_HANDOVER_MARK == GATE_MARK


def test_a_source_is_translated_to_the_vip_of_its_own_group() -> None:
    policy = validate_policy(
        parse_document("p", "zones: {lan: [lan], wan: [wan]}\n"
                       "nat: {masquerade: [{from: lan, to: wan}]}"),
        TWO_GROUPS,
    )  # fmt: skip
    found = {}
    for rule in rules(document(policy, TWO_GROUPS), "hafw_policy", "nat_postrouting"):
        group = next(
            part["match"]["right"] >> 28
            for part in rule
            if "&" in part.get("match", {}).get("left", {})
        )
        found[group, rule[-1]["snat"]["family"]] = rule[-1]["snat"]["addr"]
    assert found == {
        (1, "ip"): "198.51.100.254",
        (1, "ip6"): "2001:db8:2::fe",
        (2, "ip"): "198.51.100.253",
        (2, "ip6"): "2001:db8:2::fd",
    }


def test_no_own_address_is_ever_a_translation() -> None:
    policy = validate_policy(parse_document("p", EVERYTHING), TWO_GROUPS)
    own = {
        str(a.ip)
        for node in TWO_GROUPS.nodes.values()
        for port in node.segments.values()
        for a in port.addresses
    }
    for node in ("gw1", "gw2"):
        for rule in rules(document(policy, TWO_GROUPS, node), "hafw_policy", "nat_postrouting"):
            assert rule[-1]["snat"]["addr"] not in own


def test_a_reject_never_answers_from_a_vip() -> None:
    policy = validate_policy(
        parse_document("p", "zones: {lan: [lan]}\nrules: [{to: self, action: reject}]"), LAB
    )
    ours = [r for r in rules(document(policy), "hafw_policy", "input") if "reject" in r[-1]]
    before = rules(document(policy), "hafw_policy", "input")
    first = before.index(ours[0])
    said = [json.dumps(rule) for rule in before[first - 2 : first]]
    assert "@vips4" in said[0]
    assert "@vips6" in said[1]
    assert all('"drop"' in text for text in said)


def test_a_witness_and_a_stranger_have_no_ruleset() -> None:
    with pytest.raises(RefusedError, match="wit is a witness: only gateways have a policy"):
        document(LAB_POLICY, LAB, "wit")
    with pytest.raises(RefusedError, match="no node is named gw9; the cluster has gw1, gw2, wit"):
        document(LAB_POLICY, LAB, "gw9")


def test_a_policy_for_another_cluster_is_refused() -> None:
    policy = Policy(zones={"dmz": ["dmz"]})
    with pytest.raises(ConfigError, match="no segment is named dmz"):
        document(policy)


def test_a_gateway_outside_a_group_has_none_of_its_devices() -> None:
    alone = TWO_GROUPS.model_copy(deep=True)
    alone.groups["second"].order.remove("gw1")
    text = lines(document(LAB_POLICY, alone, "gw1"))
    assert "hv7-" not in text
    assert "192.0.2.253" not in text
    assert "hv7-" in lines(document(LAB_POLICY, alone, "gw2"))


def test_a_rules_comment_fits_and_names_the_rule() -> None:
    policy = validate_policy(
        parse_document(
            "p", f"zones: {{lan: [lan]}}\nrules: [{{action: drop, comment: {'é' * 100}}}]"
        ),
        LAB,
    )
    made = document(policy)
    comments = [
        c["add"]["rule"]["comment"]
        for c in made["nftables"]
        if "comment" in c.get("add", {}).get("rule", {})
    ]
    (comment,) = [c for c in comments if c.startswith("rules.0: é")]
    assert len(comment.encode()) <= 127


@pytest.mark.parametrize("comment", ["é" * 100, "x" + "é" * 99, "€" * 100, "𝄞" * 100])
def test_a_log_prefix_fits_libnftables_buffer(comment: str) -> None:
    """NF_LOG_PREFIXLEN is 128 with the closing zero; more would run over libnftables' stack."""
    text = f"zones: {{lan: [lan]}}\nrules: [{{action: drop, log: true, comment: {comment}}}]"
    made = document(validate_policy(parse_document("p", text), LAB))
    (prefix,) = {
        part["log"]["prefix"]
        for expr in rules(made, "hafw_policy", "forward")
        for part in expr
        if "log" in part
    }
    assert 120 < len(prefix.encode()) <= 127
    assert prefix == f"hafw {comment[: len(prefix) - 6]} "


zones = st.lists(
    st.sampled_from(["lan", "wan", "any", "self"]), min_size=1, max_size=2, unique=True
)
nets = st.none() | st.lists(
    st.sampled_from(["192.0.2.7", "10.0.0.0/8", "2001:db8::/32", "::1"]), min_size=1, max_size=3
)
some_rules = st.fixed_dictionaries(
    {
        "from": zones,
        "to": zones,
        "source": nets,
        "destination": nets,
        "services": st.none() | st.lists(st.sampled_from(["http", "dns", "ping", "ipsec"]),
                                         min_size=1, max_size=3),
        "action": st.sampled_from(["accept", "drop", "reject"]),
        "log": st.booleans(),
        "sync": st.sampled_from(["always", "delayed", "never"]),
    }
)  # fmt: skip


def statements(expr: list[dict[str, Any]]) -> Iterator[str]:
    for part in expr:
        yield from part


@given(st.lists(some_rules, max_size=4))
def test_whatever_is_valid_compiles_to_rules_with_one_verdict_at_the_end(
    given_rules: list[dict[str, Any]],
) -> None:
    text = json.dumps({"zones": {"lan": ["lan"], "wan": ["wan"]}, "rules": given_rules})
    try:
        policy = validate_policy(parse_document("p", text), LAB)
    except ConfigError:
        return  # No family in common, from self to self, or a class of what is not replicated.
    made = document(policy)
    assert document_rules(made) >= len(given_rules)
    for chain in ("forward", "input", "output"):
        for expr in rules(made, "hafw_policy", chain):
            said = list(statements(expr))
            verdicts = [w for w in said if w in ("accept", "drop", "reject", "goto", "jump")]
            assert verdicts == [said[-1]] or said[-1] in ("counter", "log")
            families = {
                part["match"]["left"]["payload"]["protocol"]
                for part in expr
                if "payload" in part.get("match", {}).get("left", {})
            }
            assert not {"ip", "ip6"} <= families, "a rule that can match nothing"


def test_sets_that_many_rules_repeat_are_shared_and_say_the_same() -> None:
    """nf_tables is quadratic in the number of anonymous sets of a table."""
    each = [
        {"from": "lan", "to": "wan", "services": ["http", "https"], "action": "accept",
         "source": [f"10.0.{n}.0/24", "2001:db8::/32", "192.0.2.7", "192.0.2.9"]}
        for n in range(40)
    ]  # fmt: skip
    text = json.dumps({"zones": {"lan": ["lan"], "wan": ["wan"]}, "rules": each})
    made = document(validate_policy(parse_document("p", text), LAB))
    forward = rules(made, "hafw_policy", "forward")
    named = {
        c["add"]["set"]["name"]: c["add"]["set"]
        for c in made["nftables"]
        if "set" in c.get("add", {})
    }
    ports = [
        part["match"]["right"]
        for expr in forward
        for part in expr
        if part.get("match", {}).get("left", {}).get("payload", {}).get("field") == "dport"
    ]
    shared = next(name for name in named if name.startswith("inet_service_"))
    assert named[shared]["elem"] == [80, 443]
    assert ports.count(f"@{shared}") == 80  # TCP, for IPv4 and IPv6 sources.
    used = {part["match"]["right"] for expr in forward for part in expr if "match" in part
            and isinstance(part["match"]["right"], str)}  # fmt: skip
    own = [name for name in named if name.startswith("ipv4_addr_") and f"@{name}" in used]
    assert len(own) == 40  # Each rule's own sources, once for TCP and UDP.


def test_a_small_ruleset_keeps_its_sets_in_its_rules() -> None:
    names = [
        c["add"]["set"]["name"]
        for c in document(LAB_POLICY)["nftables"]
        if "set" in c.get("add", {})
    ]
    assert not [name for name in names if name.startswith(("inet_", "ipv4_", "ipv6_", "ifname_"))]
