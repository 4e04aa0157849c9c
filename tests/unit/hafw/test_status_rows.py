"""Status: rows from facts, and the verdict over rows. The keys are a contract."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cluster.assignment import Group, Member, Move, State, Voters, encode
from hafw.cli.status import _loop, _pretty, _replication, _survival
from hafw.config.load import load_cluster
from hafw.human import make_epoch
from hafw.messages import (
    DampedStatus,
    GroupLeaseStatus,
    LeasedStatus,
    LinkStatus,
    LoopDelay,
    PeerStatus,
    Spread,
    SyncdStatus,
    SyncGroupStatus,
    SyncPassStatus,
    SyncPeerStatus,
)
from hafw.node.status_rows import (
    COLUMNS,
    DaemonFacts,
    DeviceFacts,
    GateFacts,
    NodeFacts,
    PolicyFacts,
    build_tables,
    merge,
)
from hafw.raft_messages import RaftPeer, RaftStatus

ROOT = Path(__file__).resolve().parents[3]
CONFIG = load_cluster(ROOT / "hafw/lab/cluster.yaml")
NOW_NS = 1_000_000_000_000
EPOCH = make_epoch(3, 17, 1)
IDS = {"gw1": 1, "gw2": 2, "wit": 9}
OPEN = GateFacts(NOW_NS + 80_000_000, NOW_NS + 80_000_000, 4, 5, 6)
SPREAD = Spread(0.1, 0.2, 0.3, 0.4, 5)
SHUT = GateFacts(NOW_NS - 1, NOW_NS - 1, 40, 50)


def leased(node: str, *, active: bool = False, holder: str = "gw1") -> LeasedStatus:
    peers = [
        PeerStatus(
            node_id=IDS[peer], alive=True, proven=True, age_ms=3.25, era=2, synced={1: True},
            reasons={}, rtt_ms=0.4,
            links=[LinkStatus("sync0", True, 3.0, 7, SPREAD), LinkStatus("lan", True, 3.0, 7)],
            round_trip=SPREAD, votes=True, able=peer != "wit",
        )
        for peer in IDS if peer != node
    ]  # fmt: skip
    group = GroupLeaseStatus(
        group=1, active=active, epoch=EPOCH, holder_id=IDS.get(holder, 0), lease_left_ms=80.0,
        announce_deadline_ns=0, accept_deadline_ns=0, dropped_in=0, dropped_out=0, moves=2,
        renewals=99,
    )  # fmt: skip
    return LeasedStatus(
        node_id=IDS[node], pid=5, session=1, era=3, now_ns=NOW_NS, may_vote=True,
        votes_from_ns=0, voters_id=1, voters_hash="ab" * 8, realtime=True, groups=[group],
        peers=peers, loop_delay=LoopDelay(0.01, 0.2, 1.5, [0, 7, 0, 2], 9.5, 60.0),
        counters={"refused": 3}, alarms=[],
    )  # fmt: skip


def syncd(node: str, *, active: bool = False, synced: bool = True) -> SyncdStatus:
    peer = "gw2" if node == "gw1" else "gw1"
    return SyncdStatus(
        node_id=IDS[node], pid=6, session=2, seq=8, codec="native",
        groups=[SyncGroupStatus(1, active, EPOCH, 1, synced, "" if synced else "snapshot", 7, 8,
                                1, 0)],
        peers=[SyncPeerStatus(IDS[peer], 4, True, 10, 12, 2, 5.0, 0.5, 1.5)],
        counters={"deltas_sent": 12}, alarms=[],
    )  # fmt: skip


ORDER = ("gw1", "gw2")
ASSIGNMENT = State(
    members=tuple(
        Member(name, id_, "gateway" if name in ORDER else "witness", {"sync0": "203.0.113.1"})
        for name, id_ in IDS.items()
    ),
    voters=Voters(1, (1, 2, 9), "ab" * 8),
    groups=(Group("main", 1, ORDER),),
    history=(Move("main", EPOCH, 2, 1, 0.0, "gw2 is silent on every link and segment"),),
)


def raft(node: str) -> RaftStatus:
    return RaftStatus(
        node_id=IDS[node], pid=7, uid=65534, role="leader" if node == "gw2" else "follower",
        leader_id=2, term=3, commit=9, applied=9, entries=9, quorum=True, read_only=False,
        recovering="", peers=[RaftPeer(IDS[p], True, 12.0) for p in IDS if p != node],
        state=encode(ASSIGNMENT), digest="c0ffee", counters={"copies": 4}, alarms=[],
    )  # fmt: skip


def facts(node: str, *, active: bool = False) -> NodeFacts:
    gateway = node != "wit"
    daemons = [DaemonFacts("hafwd", "up", 1, 100.0), DaemonFacts("leased", "up", 2, 99.0, 0)]
    if gateway:
        daemons.append(DaemonFacts("syncd", "up", 3, 98.0, 1))
    daemons.append(DaemonFacts("raftd", "up", 4, 97.0, 0))
    return NodeFacts(
        node=node,
        now_ns=NOW_NS,
        assembled_by="hafwd",
        daemons=daemons,
        leased=leased(node, active=active),
        syncd=syncd(node, active=active) if gateway else None,
        raft=raft(node),
        gates={1: OPEN if active else SHUT} if gateway else None,
        devices=[DeviceFacts("main", "lan", "hv1-lan", True, True, True)] if gateway else [],
        policy=PolicyFacts("in force", "c0ffee" * 8, 2, 31, "p.yaml", "now") if gateway else None,
        counters={"api_answered": 1} if gateway else {},
    )


def healthy() -> dict[str, NodeFacts]:
    return {"gw1": facts("gw1", active=True), "gw2": facts("gw2"), "wit": facts("wit")}


def document(nodes: dict[str, NodeFacts]) -> dict[str, Any]:
    return merge("lab", [build_tables(CONFIG, node) for node in nodes.values()])


def problems(nodes: dict[str, NodeFacts]) -> list[str]:
    return [f"{p['scope']}: {p['problem']}" for p in document(nodes)["problems"]]


def test_a_healthy_cluster_has_no_problem() -> None:
    result = document(healthy())
    assert result["problems"] == []
    assert result["healthy"] is True
    assert result["cluster"] == "lab"


def test_a_rotation_is_a_note_and_two_are_an_alarm() -> None:
    nodes = healthy()
    own = nodes["gw1"].syncd
    assert own is not None
    (gw2,) = own.peers
    beacon = structs.replace(gw2, name="gw2", seals_key=0, opens_keys={0: 7, 1: 9})
    both = structs.replace(own, opens_keys={0: 7, 1: 9}, peers=[beacon])
    nodes["gw1"] = replace(nodes["gw1"], syncd=both)
    (note,) = document(nodes)["notes"]
    assert note["source"] == "syncd"
    assert "under way, accepted here: opens with keys 0 (00000007) and 1" in note["note"]
    assert problems(nodes) == []
    other = structs.replace(both, opens_keys={0: 7, 1: 8})
    nodes["gw1"] = replace(nodes["gw1"], syncd=other)
    (problem,) = problems(nodes)
    assert "gw2 has another key 1 (00000009) than gw1 (00000008); abort one" in problem
    silent = structs.replace(other, peers=[structs.replace(beacon, beacon_age_ms=3001.0)])
    nodes["gw1"] = replace(nodes["gw1"], syncd=silent)
    assert problems(nodes) == []


def test_the_weaker_promise_of_two_nodes_is_a_note() -> None:
    assert not [n for n in build_tables(CONFIG, facts("gw1"))["notes"] if n["source"] == "quorum"]
    told = facts("gw1")
    assert told.leased is not None
    alone = replace(told, leased=structs.replace(told.leased, two_node=True))
    [note] = [n for n in build_tables(CONFIG, alone)["notes"] if n["source"] == "quorum"]
    config = CONFIG.model_copy(update={"quorum": "two-node"})
    assert not [n for n in build_tables(config, told)["notes"] if n["source"] == "quorum"]
    silent = build_tables(config, replace(told, leased=None))["notes"]
    assert [n["note"] for n in silent if n["source"] == "quorum"] == [note["note"]]
    assert note["note"].endswith("if all links and segments between them are cut, both forward")


def test_a_node_asked_alone_says_that_its_peer_is_drained() -> None:
    members = tuple(
        structs.replace(m, state="draining") if m.name == "gw2" else m for m in ASSIGNMENT.members
    )
    agreed = encode(structs.replace(ASSIGNMENT, members=members))
    nodes = {
        name: replace(node, raft=structs.replace(raft(name), state=agreed))
        for name, node in healthy().items()
    }
    first = "cluster lab: healthy; gw2 is being drained"
    for asked in (["gw1"], ["gw2"], ["gw1", "gw2", "wit"]):
        told = merge("lab", [build_tables(CONFIG, nodes[name]) for name in asked])
        assert _pretty(told, verbose=False).splitlines()[0] == first, asked
    assert _pretty(document(healthy()), verbose=False).startswith("cluster lab: healthy\n")


def test_every_row_has_exactly_the_declared_keys() -> None:
    result = document(healthy())
    assert set(result) == {"cluster", "healthy", "problems", *COLUMNS}
    for table, columns in COLUMNS.items():
        if table in ("alarms", "damped", "notes"):
            continue
        assert result[table], table
        for row in result[table]:
            assert tuple(row) == columns, table
    json.dumps(result)


def test_alarm_rows_have_the_declared_keys() -> None:
    nodes = healthy()
    nodes["gw1"] = replace(nodes["gw1"], alarms=["the disk is full"])
    assert [tuple(row) for row in document(nodes)["alarms"]] == [COLUMNS["alarms"]]
    assert problems(nodes) == ["gw1: alarm of hafwd: the disk is full"]


def test_a_long_cause_of_several_problems_is_said_once_for_each_node() -> None:
    cause = "/sys/fs/bpf/hafw: this process has a mount namespace of its own; use `nsenter --net`"
    nodes = healthy()
    for name in ("gw1", "gw2"):
        nodes[name] = replace(
            nodes[name],
            alarms=[
                f"the node's devices cannot be set up: {cause}",
                f"the gate cannot be read: {cause}",
                "the disk is full",
                "the disk is full",
            ],
        )
    for name in ("gw1", "gw2"):
        assert [text for text in problems(nodes) if text.startswith(name)] == [
            f"{name}: alarm of hafwd: the node's devices cannot be set up: {cause}",
            f"{name}: alarm of hafwd: the gate cannot be read: as said above",
            f"{name}: alarm of hafwd: the disk is full",
            f"{name}: alarm of hafwd: the disk is full",
        ]
    assert sum(cause in row["alarm"] for row in document(nodes)["alarms"]) == 4


def test_the_loop_and_its_worst_are_rows() -> None:
    result = document({"gw1": facts("gw1", active=True)})
    assert result["loop"] == [
        {"node": "gw1", "late_up_to_ms": 0.002, "count": 7},
        {"node": "gw1", "late_up_to_ms": 0.008, "count": 2},
    ]
    [lease] = result["lease"]
    assert (lease["loop_worst_ms"], lease["loop_worst_age_s"]) == (9.5, 60.0)
    shown = _loop([*result["loop"], {"node": "gw2", "late_up_to_ms": 16.384, "count": 1}])
    assert shown == [
        {"node": "gw1", "2 us": 7, "8 us": 2, "16 ms": 0},
        {"node": "gw2", "2 us": 0, "8 us": 0, "16 ms": 1},
    ]


def test_survival_is_shown_as_the_active_node_sees_it() -> None:
    result = document(healthy())
    assert {row["says"] for row in _survival(result, False)} == {"gw1"}
    assert {row["says"] for row in _survival(result, True)} == {"gw1", "gw2", "wit"}
    nobody = document({"gw2": facts("gw2"), "wit": facts("wit")})
    assert {row["says"] for row in _survival(nobody, False)} == {"gw2", "wit"}


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs/reference/status.md").read_text()
    sections = {
        part.split("`", 2)[1]: part for part in page.split("\n## Table ")[1:] if "`" in part
    }
    assert set(sections) == set(COLUMNS)
    for table, columns in COLUMNS.items():
        for column in columns:
            assert f"| `{column}` |" in sections[table], f"{table}.{column}"


def test_group_rows_show_both_words_kernel_and_leased() -> None:
    row = document(healthy())["groups"][0]
    assert row["node"] == "gw1"
    assert (row["role"], row["holder"], row["epoch"]) == ("ACTIVE", "gw1", "3.17.1")
    assert (row["gate"], row["announce_left_ms"], row["accept_left_ms"]) == ("open", 80.0, 80.0)
    assert (row["dropped_in"], row["dropped_out"], row["handed_over"]) == (4, 5, 6)
    assert row["epoch_number"] == EPOCH
    backup, witness = document(healthy())["groups"][1:]
    assert (backup["role"], backup["gate"], backup["announce_left_ms"]) == ("BACKUP", "shut", 0.0)
    assert (witness["role"], witness["gate"]) == ("-", None)


def test_nothing_of_a_silent_leased_is_shown_but_the_gate_is() -> None:
    nodes = healthy()
    nodes["gw1"] = replace(
        nodes["gw1"],
        leased=None,
        daemons=[
            DaemonFacts("hafwd", "up", 1, 100.0),
            DaemonFacts("leased", "silent", 2, 99.0, 0, "the process is stopped"),
            DaemonFacts("syncd", "up", 3, 98.0, 1),
        ],
    )
    row = document(nodes)["groups"][0]
    assert [row[key] for key in ("role", "holder", "epoch", "lease_left_ms")] == [None] * 4
    assert row["gate"] == "open"
    assert problems(nodes) == [
        "gw1: hafw-leased is silent: the process is stopped",
        "main: gate of gw1 is open, but its leased cannot be asked",
    ]


def test_accept_alone_is_not_active() -> None:
    nodes = healthy()
    gate = GateFacts(0, NOW_NS + 50_000_000, 0, 0)
    nodes["gw1"] = replace(nodes["gw1"], gates={1: gate}, leased=leased("gw1", holder="-"))
    nodes["gw2"] = replace(nodes["gw2"], leased=leased("gw2", holder="-"))
    nodes["wit"] = replace(nodes["wit"], leased=leased("wit", holder="-"))
    assert document(nodes)["groups"][0]["gate"] == "accept only"
    assert problems(nodes) == ["main: no node is ACTIVE: nobody's gate is open"]


def test_two_open_gates_are_the_first_thing_to_say() -> None:
    nodes = healthy()
    nodes["gw2"] = replace(
        nodes["gw2"], gates={1: OPEN}, leased=leased("gw2", active=True, holder="gw2")
    )
    found = problems(nodes)
    assert found[0] == "main: TWO ACTIVE NODES: gw1 and gw2 have their gates open"
    assert "main: nodes disagree about the holder: gw1 says gw1, gw2 says gw2, wit says gw1" in (
        found
    )


def test_a_belief_that_the_kernel_does_not_share_is_a_problem() -> None:
    nodes = healthy()
    nodes["gw1"] = replace(nodes["gw1"], gates={1: SHUT})
    assert problems(nodes) == [
        "main: no node is ACTIVE: nobody's gate is open",
        "main: leased of gw1 believes it is ACTIVE, but its gate is shut",
    ]


def test_one_node_alone_may_name_a_holder_elsewhere() -> None:
    assert problems({"gw2": facts("gw2")}) == []


def test_one_node_alone_that_knows_no_holder_is_not_healthy() -> None:
    nodes = {"gw2": replace(facts("gw2"), leased=leased("gw2", holder="-"))}
    assert problems(nodes) == ["main: no node is ACTIVE: nobody's gate is open"]


def test_an_unreadable_gate_is_not_taken_for_a_shut_one() -> None:
    nodes = {"gw1": replace(facts("gw1"), gates=None, leased=None)}
    assert document(nodes)["groups"][0]["gate"] is None
    assert problems(nodes) == [
        "main: not known who is ACTIVE: neither gates nor leased can be read"
    ]


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ((False, False, False), "virtual MAC device hv1-lan is missing"),
        ((True, True, False), "virtual MAC device hv1-lan is up WITHOUT the gate: it counts as"),
        ((True, False, False), "virtual MAC device hv1-lan has no gate"),
        ((True, False, True), "virtual MAC device hv1-lan is down"),
    ],
)
def test_devices(device: tuple[bool, bool, bool], text: str) -> None:
    nodes = healthy()
    row = DeviceFacts("main", "lan", "hv1-lan", *device)
    nodes["gw2"] = replace(nodes["gw2"], devices=[row])
    assert len(problems(nodes)) == 1
    assert problems(nodes)[0].startswith(f"gw2: {text}")


def test_devices_that_cannot_be_seen_are_no_problem_by_themselves() -> None:
    nodes = healthy()
    row = DeviceFacts("main", "lan", "hv1-lan", None, None, None)
    nodes["gw2"] = replace(nodes["gw2"], devices=[row])
    assert problems(nodes) == []


def test_a_dead_peer_is_said_once_and_a_dead_link_by_name() -> None:
    nodes = healthy()
    status = leased("gw1", active=True)
    gw2, wit = status.peers
    dead = [LinkStatus(link.name, False, 900.0, link.received) for link in gw2.links]
    changed = [
        PeerStatus(2, False, True, 900.0, 2, {}, {}, None, dead),
        PeerStatus(9, True, True, 3.0, 2, {}, {}, 0.4, [dead[0], wit.links[1]]),
    ]
    fields = {name: getattr(status, name) for name in status.__struct_fields__}
    nodes["gw1"] = replace(nodes["gw1"], leased=LeasedStatus(**{**fields, "peers": changed}))
    assert problems(nodes) == [
        "gw1: no heartbeat from gw2 on any link",
        "gw1: no heartbeat from wit on link sync0",
    ]


def test_adoption_shows_its_progress() -> None:
    said = syncd("gw1", active=True)
    own = SyncPassStatus("take", True, 1200, 5000, 1100, 19_999.6)
    group = structs.replace(said.groups[0], own_pass=own)
    nodes = healthy()
    nodes["gw1"] = replace(nodes["gw1"], syncd=structs.replace(said, groups=[group]))
    row = build_tables(CONFIG, nodes["gw1"])["sync"][0]
    assert {key: value for key, value in row.items() if key.startswith("pass")} == {
        "pass": "take", "pass_running": True, "pass_done": 1200, "pass_total": 5000,
        "pass_adopted": 1100, "pass_per_s": 20_000,
    }  # fmt: skip
    assert _replication(row)["pass"] == "take at 1200 of 5000, 20000/s"
    backup = build_tables(CONFIG, nodes["gw2"])["sync"][0]
    assert (backup["pass"], backup["pass_total"]) == (None, None)
    assert _replication(backup)["pass"] == "-"


def test_unsynced_says_why() -> None:
    nodes = healthy()
    nodes["gw2"] = replace(nodes["gw2"], syncd=syncd("gw2", synced=False))
    assert problems(nodes) == ["gw2: not synced for group main: snapshot"]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (PolicyFacts("failed", error="line 3"), "no policy is in force: line 3"),
        (
            PolicyFacts("kept", "c0ffee" * 8, 2, error="line 3"),
            "the new policy failed, generation 2 is kept: line 3",
        ),
        (PolicyFacts("gone"), "the policy's tables are gone from the kernel"),
    ],
)
def test_policy_states(policy: PolicyFacts, text: str) -> None:
    nodes = healthy()
    nodes["gw2"] = replace(nodes["gw2"], policy=policy)
    assert problems(nodes) == [f"gw2: {text}"]


def test_different_policies_are_a_problem() -> None:
    nodes = healthy()
    nodes["gw2"] = replace(nodes["gw2"], policy=PolicyFacts("in force", "bad" * 16, 3))
    assert problems(nodes) == [
        "policy: the nodes have different policies loaded: gw1 c0ffeec0ffee, gw2 badbadbadbad"
    ]


def test_replication_switched_off_is_a_problem() -> None:
    nodes = healthy()
    off = DaemonFacts("syncd", "off", reason="sync.enabled is false")
    nodes["gw2"] = replace(nodes["gw2"], daemons=[*nodes["gw2"].daemons[:2], off], syncd=None)
    assert problems(nodes) == ["gw2: hafw-syncd is off: sync.enabled is false"]
    assert document(nodes)["nodes"][1]["up"] is True


def test_a_note_is_shown_and_no_problem() -> None:
    nodes = healthy()
    nodes["gw1"] = replace(nodes["gw1"], notes=["a chain of others"])
    result = document(nodes)
    assert result["notes"] == [{"node": "gw1", "source": "hafwd", "note": "a chain of others"}]
    assert set(result["notes"][0]) == set(COLUMNS["notes"])
    assert result["healthy"]


def test_who_is_damped_is_a_row_with_what_is_missing() -> None:
    at = DampedStatus(1, 2, 4, "silent", 90.5, [9])
    flapped = structs.replace(leased("gw1", active=True), damped=[at])
    [row] = build_tables(CONFIG, replace(facts("gw1", active=True), leased=flapped))["damped"]
    assert tuple(row) == COLUMNS["damped"]
    assert row == {
        "node": "gw1", "group": "main", "damped": "gw2", "losses": 4, "why": "silent",
        "quiet_left_s": 90.5, "told_by": ["wit"],
    }  # fmt: skip
