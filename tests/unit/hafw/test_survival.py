"""Would the cluster survive losing one node, link or segment now?"""

from __future__ import annotations

from msgspec import structs

from hafw.messages import LeasedStatus, LinkStatus, PeerStatus
from hafw.node.survival import survival_rows
from tests.unit.hafw.test_status_rows import CONFIG, leased

PATHS = {"gw2": ("sync0", "sync1", "lan", "wan"), "gw1": ("sync0", "sync1", "lan", "wan"),
         "wit": ("sync0", "sync1")}  # fmt: skip
NAMES = {1: "gw1", 2: "gw2", 9: "wit"}


def view(
    node: str, changes: dict[str, PeerStatus] | None = None, *, holder: str = "gw1"
) -> LeasedStatus:
    """All is well, but for the peers in `changes`."""
    told = leased(node, active=node == holder, holder=holder)
    peers = [(changes or {}).get(NAMES[peer.node_id], healthy(peer)) for peer in told.peers]
    groups = [structs.replace(group, synced=node != "wit") for group in told.groups]
    return structs.replace(told, peers=peers, groups=groups)


def healthy(peer: PeerStatus) -> PeerStatus:
    name = NAMES[peer.node_id]
    links = [LinkStatus(path, True, 3.0, 7) for path in PATHS[name]]
    gateway = name != "wit"
    return structs.replace(peer, votes=True, able=gateway, synced={1: gateway}, links=links)


def changed(node: str, name: str, **fields: object) -> dict[str, PeerStatus]:
    [peer] = [peer for peer in leased(node).peers if NAMES[peer.node_id] == name]
    return {name: structs.replace(healthy(peer), **fields)}


def ask(node: str, told: LeasedStatus) -> dict[str, tuple[bool, str]]:
    return {
        f"{row['kind']} {row['losing']}": (bool(row["survives"]), str(row["why"]))
        for row in survival_rows(CONFIG, node, told)
    }


def test_a_healthy_cluster_survives_every_single_loss() -> None:
    told = ask("gw1", view("gw1"))
    assert told == {
        "node gw1": (True, "gw2 takes over"),
        "node gw2": (True, "gw1 stays ACTIVE"),
        "node wit": (True, "gw1 stays ACTIVE"),
        "link sync0": (True, "every peer is heard over 1 or more other paths"),
        "link sync1": (True, "every peer is heard over 1 or more other paths"),
        "segment lan": (True, "gw2 takes over"),
        "segment wan": (True, "gw2 takes over"),
    }
    assert all(survives for survives, _ in ask("gw2", view("gw2")).values())
    assert all(survives for survives, _ in ask("wit", view("wit")).values())
    assert set(ask("wit", view("wit"))) == {
        "node gw1", "node gw2", "node wit", "link sync0", "link sync1"
    }  # fmt: skip


def test_without_the_witness_nothing_more_may_be_lost() -> None:
    told = ask("gw1", view("gw1", changed("gw1", "wit", alive=False)))
    assert told["node gw1"] == (False, "no quorum: gw2 of 3 voters would vote")
    assert told["node gw2"] == (False, "no quorum: gw1 of 3 voters would vote")
    assert told["node wit"] == (True, "gw1 stays ACTIVE")
    assert told["link sync0"][0]


def test_a_voter_that_does_not_vote_yet_is_no_quorum() -> None:
    told = ask("gw1", view("gw1", changed("gw1", "wit", votes=False)))
    assert told["node gw2"] == (False, "no quorum: gw1 of 3 voters would vote")
    mute = structs.replace(view("gw1"), may_vote=False)
    assert ask("gw1", mute)["node gw2"] == (False, "no quorum: wit of 3 voters would vote")


def test_an_unsynced_successor_would_lose_flows() -> None:
    behind = changed("gw1", "gw2", synced={1: False}, reasons={1: "snapshot is running"})
    told = ask("gw1", view("gw1", behind))
    why = "no synced successor: gw2 is not synced (snapshot is running)"
    assert told["node gw1"] == (False, why)
    assert told["segment lan"] == (False, f"dead there: {why}")
    assert told["node wit"] == (True, "gw1 stays ACTIVE")
    away = ask("gw1", view("gw1", changed("gw1", "gw2", able=False, synced={1: False})))
    assert away["node gw1"] == (
        False, "no successor: gw2 not heard, or not able to carry groups"
    )  # fmt: skip


def test_the_backup_counts_itself_as_the_successor() -> None:
    own = view("gw2")
    assert ask("gw2", own)["node gw1"] == (True, "gw2 takes over")
    groups = [structs.replace(own.groups[0], synced=False, reason="syncd silent")]
    told = ask("gw2", structs.replace(own, groups=groups))
    assert told["node gw1"] == (
        False, "no synced successor: gw2 is not synced (syncd silent)"
    )  # fmt: skip


def test_the_last_path_to_a_peer_is_as_good_as_the_peer() -> None:
    one = [LinkStatus("sync0", True, 3.0, 7), LinkStatus("sync1", False, 9000.0, 7)]
    told = ask("gw1", view("gw1", changed("gw1", "wit", links=one)))
    assert told["link sync0"] == (True, "the only path to wit: gw1 stays ACTIVE")
    both = changed("gw1", "wit", links=one) | changed("gw1", "gw2", links=one)
    told = ask("gw1", view("gw1", both))
    assert told["link sync0"] == (
        False, "the only path to gw2, wit: no quorum: gw1 of 3 voters would vote"
    )  # fmt: skip
    assert told["link sync1"][0]


def test_while_nobody_holds_the_group_somebody_must_be_able_to_take_it() -> None:
    told = ask("gw1", view("gw1", holder="-"))
    assert told["node wit"] == (True, "gw1 takes over")
    assert told["node gw1"] == (True, "gw2 takes over")


def two_nodes(**fields: object) -> dict[str, tuple[bool, str]]:
    nodes = {name: node for name, node in CONFIG.nodes.items() if name != "wit"}
    config = CONFIG.model_copy(update={"nodes": nodes, "quorum": "two-node"})
    told = view("gw1", changed("gw1", "gw2", **fields))
    told = structs.replace(told, peers=[peer for peer in told.peers if peer.node_id == 2])
    told = structs.replace(told, two_node=True)
    return {
        f"{row['kind']} {row['losing']}": (bool(row["survives"]), str(row["why"]))
        for row in survival_rows(config, "gw1", told)
    }


def test_of_two_nodes_without_a_witness_either_survives_the_other() -> None:
    told = two_nodes()
    assert told["node gw1"] == (True, "gw2 takes over")
    assert told["node gw2"] == (True, "gw1 stays ACTIVE")
    assert all(survives for survives, _ in told.values())


def test_their_last_path_is_not_survived() -> None:
    told = two_nodes(links=[LinkStatus("sync0", True, 3.0, 7)])
    assert told["link sync0"] == (False, "the only path to gw2: both nodes would forward")
    assert told["link sync1"][0]
