"""policy.yaml: what may be written, what is refused and in which words."""

from __future__ import annotations

import json
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.config.document import parse_document
from hafw.config.load import load_cluster
from hafw.errors import ConfigError
from hafw.policy.fields import merge_ports
from hafw.policy.load import load_policy, policy_file, validate_policy
from hafw.policy.model import Policy

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = load_cluster(ROOT / "hafw/lab/cluster.yaml")
HEAD = "zones: {lan: [lan], wan: [wan]}\n"


def policy(text: str) -> Policy:
    return validate_policy(parse_document("p.yaml", HEAD + text), CLUSTER)


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        policy(text)
    return str(caught.value).splitlines()


def test_the_lab_policy_says_what_the_lab_promises() -> None:
    file = policy_file(ROOT / "hafw/lab/cluster.yaml", CLUSTER)
    lab = load_policy(file, CLUSTER)
    assert {name: list(ports) for name, ports in lab.helpers.items()} == {
        "ftp": [(21, 21)],
        "tftp": [(69, 69)],
        "sip": [(5060, 5060)],
    }
    (dnat,) = lab.nat.dnat
    assert dnat.protocol == ["tcp", "udp"]
    assert [str(target) for target in dnat.to] == ["192.0.2.20:8080", "[2001:db8:1::20]:8080"]


def test_one_item_may_stand_for_a_list() -> None:
    one = policy("rules: [{from: lan, to: wan, services: http, source: 192.0.2.7, action: drop}]")
    many = policy(
        "rules: [{from: [lan], to: [wan], services: [http], source: [192.0.2.7], action: drop}]"
    )
    assert one == many


def test_a_policy_survives_its_own_json() -> None:
    lab = load_policy(ROOT / "hafw/lab/policy.yaml", CLUSTER)
    text = lab.model_dump_json(by_alias=True, exclude_none=True)
    assert Policy.model_validate_json(text, strict=True) == lab


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rules: [{from: lan, to: wam, action: accept}]",
            "p.yaml:2: rules.0.to: no zone is named wam; did you mean wan? (got wam)",
        ),
        (
            "rules: [{from: dmz, action: accept}]",
            "p.yaml:2: rules.0.from: no zone is named dmz; there are any, lan, self, wan "
            "(got dmz)",
        ),
        (
            "rules: [{services: htpp, action: accept}]",
            "p.yaml:2: rules.0.services: no service is named htpp; did you mean http? (got htpp)",
        ),
        (
            "rules: [{action: allow}]",
            "p.yaml:2: rules.0.action: must be one of accept, drop, reject (got allow)",
        ),
        (
            "rules: [{action: drop, sync: never}]",
            "p.yaml:2: rules.0.sync: a rule that does not accept leaves nothing to replicate "
            "(got never)",
        ),
        (
            "rules: [{to: self, action: accept, sync: delayed}]",
            "p.yaml:2: rules.0.sync: flows of the node itself are never replicated (got delayed)",
        ),
        (
            "rules: [{action: accept, sync: later}]",
            "p.yaml:2: rules.0.sync: must be one of always, delayed, never (got later)",
        ),
        (
            "rules: [{form: lan, action: drop}]",
            "p.yaml:2: rules.0.form: the key is not known; did you mean from?",
        ),
        (
            "rules:\n- {action: drop}\n- {source: 192.0.2.1/24, action: drop}",
            "p.yaml:4: rules.1.source: has host bits set; write 192.0.2.0/24 or the address "
            "without a prefix length (got 192.0.2.1/24)",
        ),
        (
            "rules: [{source: example.net, action: drop}]",
            "p.yaml:2: rules.0.source: must be an IPv4 or IPv6 address or network "
            "(got example.net)",
        ),
        (
            "rules: [{source: 192.0.2.1, destination: '2001:db8::1', action: drop}]",
            "p.yaml:2: rules.0: source, destination and services have no address family in common",
        ),
        (
            "services: {echo4: {icmp: [echo-request]}}\n"
            "rules: [{source: '::1', services: echo4, action: drop}]",
            "p.yaml:3: rules.0: source, destination and services have no address family in common",
        ),
        (
            "rules: [{from: self, to: self, action: drop}]",
            "p.yaml:2: rules.0.to: from self to self never leaves the node (got self)",
        ),
        (
            "services: {web: {tcp: [80-]}}",
            "p.yaml:2: services.web.tcp.0: must be a port between 1 and 65535 or a range such as "
            "5000-5010 (got 80-)",
        ),
        (
            "services: {web: {tcp: [90-80]}}",
            "p.yaml:2: services.web.tcp.0: the range ends before it begins; write 80-90 "
            "(got 90-80)",
        ),
        (
            "services: {web: {}}",
            "p.yaml:2: services.web: a service needs at least one of tcp, udp, sctp, icmp, "
            "icmpv6, protocols",
        ),
        (
            "helpers: {ftp: [0]}",
            "p.yaml:2: helpers.ftp.0: must be a port between 1 and 65535 or a range such as "
            "5000-5010 (got 0)",
        ),
        (
            "helpers: {pptp: [1723]}",
            "p.yaml:2: helpers.pptp: must be one of ftp, sip, tftp",
        ),
        (
            "nat: {masquerade: [{from: self, to: wan}]}",
            "p.yaml:2: nat.masquerade.0.from: the node's own packets are not translated "
            "(got self)",
        ),
        (
            "nat: {snat: [{from: lan, to: wan, address: 198.51.100.1}]}",
            "p.yaml:2: nat.snat.0.address.0: this is gw1's own address and would die with it; "
            "use a VIP",
        ),
        (
            "nat: {snat: [{from: lan, to: wan, address: 192.0.2.254}]}",
            "p.yaml:2: nat.snat.0.address.0: 192.0.2.254 is a VIP of another segment",
        ),
        (
            "nat: {snat: [{from: lan, to: wan, address: [198.51.100.9, 198.51.100.8]}]}",
            "p.yaml:2: nat.snat.0.address: more than one IPv4 address",
        ),
        (
            "nat: {snat: [{from: lan, to: wan, source: 192.0.2.9, address: '2001:db8:2::fe'}]}",
            "p.yaml:2: nat.snat.0.address.0: source or destination has no address of this family",
        ),
        (
            "nat: {dnat: [{on: wan, ports: 80, to: 192.0.2.20, vip: 198.51.100.9}]}",
            "p.yaml:2: nat.dnat.0.vip.0: not a VIP there; the VIPs are 198.51.100.254, "
            "2001:db8:2::fe",
        ),
        (
            "nat: {dnat: [{on: wan, ports: 80, to: '2001:db8:1::20', vip: 198.51.100.254}]}",
            "p.yaml:2: nat.dnat.0.to.0: there is no IPv6 VIP to translate",
        ),
        (
            "nat: {dnat: [{on: wan, ports: [80, 81], to: '192.0.2.20:8080'}]}",
            "p.yaml:2: nat.dnat.0.to.0: a port is given, so ports must be a single port",
        ),
        (
            "nat: {dnat: [{on: wan, ports: 80, to: 'web:80'}]}",
            "p.yaml:2: nat.dnat.0.to: must be address or address:port, such as 192.0.2.20:8080 "
            'or [2001:db8::20]:8080 (got "web:80")',
        ),
        (
            "nat: {dnat: [{on: wna, ports: 80, to: 192.0.2.20}]}",
            "p.yaml:2: nat.dnat.0.on: no segment is named wna; did you mean wan? (got wna)",
        ),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    assert said in refused(text)


DEEP: object = 1
for _ in range(20):
    DEEP = {"&": [DEEP, 1]}
IS = {"op": "==", "right": 1}


@pytest.mark.parametrize(
    ("snippet", "said"),
    [
        ({}, "must be one condition, match or limit, not nothing"),
        ({"match": {}, "limit": {}}, "must be one condition, match or limit, not limit, match"),
        ({"accept": None}, "must be one condition, match or limit, not accept"),
        ({"counter": "nowhere"}, "must be one condition, match or limit, not counter"),
        ({"notrack": None}, "must be one condition, match or limit, not notrack"),
        (
            {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 0}},
            "must be one condition, match or limit, not mangle",
        ),
        ({"match": "x"}, "match must be a mapping"),
        ({"match": None}, "match must be a mapping"),
        ({"match": {"left": {"payload": None}}}, "match.left.payload must be a word, a number"),
        ({"match": {"left": {"meta": {"key": "mark"}}, "right": 1}}, "match must have op, left"),
        ({"match": {**IS, "left": [1]}}, "match.left must be an expression"),
        ({"match": {**IS, "left": "x"}}, "match.left must be an expression"),
        ({"match": {**IS, "left": {}}}, "match.left: an expression has one key"),
        ({"match": {**IS, "left": {"payload": "tcp"}}}, "match.left.payload must be a mapping"),
        ({"match": {**IS, "left": {"payload": {}}}}, "match.left.payload must be a mapping"),
        ({"match": {**IS, "left": {"meta": {"key": ["mark"]}}}}, "match.left.meta must be a map"),
        ({"match": {**IS, "left": {"&": [{"ct": "mark"}, 1]}}}, "match.left.&.ct must be a map"),
        ({"match": {**IS, "left": {"fib": 1}}}, "match.left.fib must be a mapping or a list"),
        ({"match": {"op": "~", "left": {"meta": {"key": "mark"}}, "right": 1}}, "match.op must"),
        (
            {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": {"set": []}}},
            "match.right.set must be a list of at least one",
        ),
        ({"match": {**IS, "left": DEEP}}, "is nested more than 12 deep"),
        ({"match": {**IS, "left": {"meta": {"key": "é" * 64}}}}, "longer than 127 bytes"),
        ({"match": {**IS, "left": {"meta": {"key": 1 << 64}}}}, "is too large a number"),
        ({"match": {**IS, "left": {"meta": {"key": 1.5}}}}, "must be a word, a number"),
        ({"limit": "named"}, "limit must be a mapping"),
        ({"limit": {"rate": "4", "per": "second"}}, "limit.rate must be a whole number"),
        ({"limit": {"rate": 4}}, "limit.per must be one of"),
        ({"limit": {"rate": 4, "per": "second", "name": "x"}}, "limit has no name"),
    ],
)
def test_a_snippet_of_the_wrong_shape_is_refused(snippet: object, said: str) -> None:
    rule = {"action": "reject", "from": "lan", "to": "wan", "nft": [snippet]}
    found = refused("rules: " + json.dumps([rule]))
    assert len(found) == 1, found
    assert "rules.0.nft.0" in found[0]
    assert said in found[0]


def test_zones_are_disjoint_and_two_names_are_taken() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_policy(parse_document("p", "zones: {any: [lan], lan: [lan], self: [wan]}"))
    assert str(caught.value).splitlines() == [
        "p:1: zones.any: any is built in and cannot be declared",
        "p:1: zones.lan: segment lan is already in zone any",
        "p:1: zones.self: self is built in and cannot be declared",
    ]


ranges = st.tuples(st.integers(1, 200), st.integers(0, 20)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(ranges, max_size=8))
def test_merged_ports_are_the_same_ports(ports: list[tuple[int, int]]) -> None:
    merged = merge_ports(ports)
    members = {p for low, high in ports for p in range(low, high + 1)}
    assert {p for low, high in merged for p in range(low, high + 1)} == members
    assert all(a[1] + 1 < b[0] for a, b in pairwise(merged))


def test_targets_print_as_they_are_written() -> None:
    made = policy(
        "nat: {dnat: [{on: wan, ports: 80, to: ['192.0.2.20:81', '[2001:db8:1::20]:82']}]}"
    )
    four, six = made.nat.dnat[0].to
    assert (str(four), str(six)) == ("192.0.2.20:81", "[2001:db8:1::20]:82")
    assert six.address == ip_address("2001:db8:1::20")


def test_the_example_of_the_operating_page_is_right() -> None:
    page = (ROOT / "docs/operating/policy.md").read_text()
    text = page.split("```yaml\n")[1].split("```")[0]
    example = validate_policy(parse_document("page", text), CLUSTER)
    assert len(example.rules) == 3
