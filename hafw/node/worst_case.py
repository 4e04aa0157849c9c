"""How long nobody forwards after a fault, at worst, by the rules of the lease. Pure.

Each outage is a sum of terms, and each term names the rule that it comes from, so that a person
can check it and sees what would shorten it. Round trips are from loop to loop: the lateness of the
voter's loop is in them. What is not in the sums: more than one fault at a time, and the switch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.claims import UNSYNCED_LEASES
from cluster.handover import POSITION_BEATS, SYNCD_SILENT_MS
from hafw.config.model import DRIFT, LEASE_MS_MAX, RESTART_WAIT_MS, ClusterConfig, LeaseConfig

__all__ = [
    "ASSUMED_MS",
    "PROFILES",
    "Fault",
    "Measured",
    "Relation",
    "Term",
    "Votes",
    "needed_ms",
    "profile_of",
    "relations",
    "round_trip_needed",
    "votes_of",
    "worst_cases",
    "worst_round_trips",
]

PROFILES = {
    "default": LeaseConfig(),
    "fast": LeaseConfig(heartbeat_ms=10, lease_ms=40),
    "experimental": LeaseConfig(heartbeat_ms=5, lease_ms=20),
}
ASSUMED_MS = 1.0
"""A round trip where none was measured."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`round_trip_ms` to the voters needed (p99 of the last minute, or assumed); `loop_ms`: how
    late the worst of the lease loops wakes (p99; 0 if not measured)."""

    round_trip_ms: float
    loop_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Term:
    ms: float
    why: str


@dataclass(frozen=True, slots=True)
class Fault:
    """`least_ms`: the same fault at its luckiest moment. `note` says what else to know. `until`:
    what must happen before anybody forwards, if no timer brings that about; empty: none needed."""

    fault: str
    terms: tuple[Term, ...]
    least_ms: float
    note: str
    until: str = ""

    @property
    def worst_ms(self) -> float:
        return sum(term.ms for term in self.terms)


@dataclass(frozen=True, slots=True)
class Votes:
    """The voters by name, and which of them vote now. `source`: the set in force, or a file."""

    members: tuple[str, ...]
    voting: frozenset[str]
    source: str

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1

    @property
    def spare(self) -> int:
        """How many of those that vote may be lost."""
        return len(self.voting) - self.majority


@dataclass(frozen=True, slots=True)
class Relation:
    """`left_ms` has to be at most `right_ms`."""

    relation: str
    left_ms: float
    right_ms: float

    @property
    def holds(self) -> bool:
        return self.left_ms <= self.right_ms


def profile_of(lease: LeaseConfig) -> str:
    for name, profile in PROFILES.items():
        if (profile.heartbeat_ms, profile.lease_ms) == (lease.heartbeat_ms, lease.lease_ms):
            return name
    return "own"


def votes_of(
    config: ClusterConfig,
    lease: Iterable[Mapping[str, object]] = (),
    peers: Iterable[Mapping[str, object]] = (),
) -> Votes:
    """From the rows of status' tables `lease` and `peers`: the newest set in force, as the node
    tells that acts in it. Without any, what cluster.yaml would begin with, everybody voting."""
    tellers = [row for row in lease if isinstance(row.get("voters"), list)]
    if not tellers:
        founders = tuple(map(config.node_name, config.voters.members))
        return Votes(founders, frozenset(founders), "cluster.yaml")
    teller = max(tellers, key=lambda row: int(str(row["voters_id"])))
    names = teller["voters"]
    assert isinstance(names, list)
    members = tuple(map(str, names))
    voting = {
        str(row["peer"])
        for row in peers
        if row["node"] == teller["node"] and row.get("alive") and row.get("votes")
    }
    voting |= {str(teller["node"])} if teller.get("may_vote") else set()
    return Votes(members, frozenset(voting & set(members)), f"set {teller['voters_id']} in force")


def round_trip_needed(
    config: ClusterConfig, votes: Votes, measured: Mapping[str, Mapping[str, float]]
) -> float | None:
    """The round trip to the voters that a gateway needs when any one other is lost: the worst case
    over gateways and losses. `measured` is p99 by node and peer; None if it says too little."""
    needed = votes.majority - 1
    worst: float | None = None
    for node, heard in measured.items():
        if node not in votes.members or node not in config.nodes:
            continue
        if config.nodes[node].role != "gateway":
            continue
        peers = {peer: ms for peer, ms in heard.items() if peer in votes.members}
        for lost in peers:
            left = sorted(ms for peer, ms in peers.items() if peer != lost)
            if 0 < needed <= len(left):
                worst = max(worst or 0.0, left[needed - 1])
    return worst


def needed_ms(lease: LeaseConfig, measured: Measured) -> float:
    """The shortest lease that a holder renews in time if one round trip is lost (DESIGN §5)."""
    return lease.heartbeat_ms + 2 * measured.round_trip_ms + measured.loop_ms


def relations(config: ClusterConfig, measured: Measured) -> list[Relation]:
    lease = config.lease
    beats = 4 if config.quorum == "two-node" else 3
    return [
        Relation(
            f"heartbeat_ms * {beats} <= lease_ms", lease.heartbeat_ms * beats, lease.lease_ms
        ),
        Relation(
            "heartbeat_ms + 2 round trips + loop delay <= lease_ms",
            needed_ms(lease, measured),
            lease.lease_ms,
        ),
        Relation(
            "worst planned move <= lease left to the old node (else packets may be lost)",
            sum(term.ms for term in _hand_over(config, measured)),
            _accept_left_ms(config, measured),
        ),
        Relation("lease_ms <= longest lease of this release", lease.lease_ms, LEASE_MS_MAX),
        Relation("longest lease <= restart wait of a voter", LEASE_MS_MAX, RESTART_WAIT_MS),
    ]


def _claim(measured: Measured) -> tuple[Term, ...]:
    return (
        Term(2 * measured.round_trip_ms, "2 round trips: prepare, propose"),
        Term(measured.loop_ms, "the claimant's loop wakes late"),
    )


def _hand_over(config: ClusterConfig, measured: Measured) -> tuple[Term, ...]:
    return (
        Term(
            float(POSITION_BEATS * config.lease.heartbeat_ms),
            f"its syncd says its position: at most {POSITION_BEATS} heartbeats",
        ),
        Term(measured.round_trip_ms / 2, "release, one way"),
        *_claim(measured),
        Term(float(config.sync.beacon_ms), "a beacon: the new node's syncd has applied it all"),
    )


def _accept_left_ms(config: ClusterConfig, measured: Measured) -> float:
    """For how long at least the holder takes in packets after it has begun to hand over: the rest
    of its lease, which it renews no more."""
    lease = config.lease
    return lease.lease_ms * (1 - DRIFT) - lease.heartbeat_ms - measured.round_trip_ms


_PATH_LOST = Fault(
    "one of several links, or a segment's heartbeats, cut",
    (),
    0.0,
    "nothing moves: heartbeats go over every link and segment at once",
)


_APART = (
    Fault(
        "all links and segments between two nodes without a witness cut",
        (),
        0.0,
        "both forward, until one hears the other again",
    ),
)


def _during_a_load(late: Term, claim: tuple[Term, ...], fastest_ms: float, until: str) -> Fault:
    longest = LEASE_MS_MAX * (1 + DRIFT)
    return Fault(
        "power cut or freeze while the ACTIVE node loads a policy, or within a second after",
        (Term(longest, f"long lease of {LEASE_MS_MAX} ms + 1 % drift"), late, *claim),
        fastest_ms,
        "so that a load that holds up the lease loop moves nothing",
        until,
    )


def _deaf(lease: LeaseConfig, claim: tuple[Term, ...], trip_ms: float, until: str) -> Fault:
    own_ms = lease.lease_ms * (1 - DRIFT)
    return Fault(
        "the ACTIVE node hears nobody, and is heard",
        (
            Term(own_ms, f"lease of {lease.lease_ms} ms - 1 % drift, as the holder counts"),
            Term(float(lease.heartbeat_ms), "it gives up what voters still grant: a heartbeat"),
            Term(trip_ms / 2, "release, one way"),
            *claim,
        ),
        own_ms - lease.heartbeat_ms - trip_ms + trip_ms / 2 + 2 * trip_ms,
        "the voters granted all that it asked for; if no release arrives, as long again",
        until,
    )


def _cold_start(config: ClusterConfig, claim: tuple[Term, ...], fastest_ms: float) -> Fault:
    lease = config.lease
    better = max(len(group.order) for group in config.groups.values()) - 1
    return Fault(
        "start of the whole cluster",
        (
            Term(RESTART_WAIT_MS * (1 + DRIFT), "a voter that has started waits"),
            Term(
                float(UNSYNCED_LEASES * lease.lease_ms),
                f"{UNSYNCED_LEASES} leases: nobody is synced yet",
            ),
            Term(
                float(better * lease.lease_ms),
                "a lease for each node before it in the order that is heard",
            ),
            *claim,
        ),
        RESTART_WAIT_MS * (1 + DRIFT) + fastest_ms,
        "from the start of the last of a majority of hafw-leased to the first ACTIVE node",
    )


def _until(config: ClusterConfig, votes: Votes) -> str:
    if votes.spare > 0 or config.quorum == "two-node":
        return ""
    return (
        f"a lost voter is back: of {len(votes.members)} ({votes.source}) "
        f"{len(votes.voting)} vote, and {votes.majority} are needed"
    )


def _other_voter_lost(until: str) -> Fault:
    note = "the ACTIVE node cannot renew its lease" if until else "nothing moves"
    return Fault("a BACKUP or the witness lost", (), 0.0, note, until)


def worst_cases(config: ClusterConfig, measured: Measured, votes: Votes) -> list[Fault]:
    """One for each kind of fault, the common ones first."""
    until = _until(config, votes)
    lease, trip = config.lease, measured.round_trip_ms
    voters_hold = Term(
        lease.lease_ms * (1 + DRIFT), f"lease of {lease.lease_ms} ms + 1 % drift, as voters count"
    )
    late = Term(trip, "the last renewal under way, and the refusal of the voter it reached last")
    claim, hand_over = _claim(measured), _hand_over(config, measured)
    fastest = 2 * trip
    accept_ms = max(0.0, _accept_left_ms(config, measured))
    return [
        Fault(
            "power cut or freeze of the ACTIVE node",
            (voters_hold, late, *claim),
            lease.lease_ms * (1 + DRIFT) - lease.heartbeat_ms + fastest,
            f"a frozen node's gate is shut {lease.lease_ms * (1 - DRIFT):.0f} ms after its last "
            "renewal was sent, before anybody can claim",
            until,
        ),
        Fault(
            "hafw-leased of the ACTIVE node dies or hangs",
            (
                Term(2 * DRIFT * lease.lease_ms, "drift: from the gate's end to the voters'"),
                late,
                *claim,
            ),
            2 * DRIFT * lease.lease_ms + fastest,
            "the node forwards until its gate shuts",
            until,
        ),
        *(() if config.quorum == "two-node" else (_deaf(lease, claim, trip, until),)),
        Fault(
            "a segment of the ACTIVE node loses its carrier",
            (Term(measured.loop_ms, "the ACTIVE node's loop wakes late"), *hand_over),
            trip / 2 + fastest,
            "if another node is synced and has carrier there; else nobody moves",
        ),
        Fault(
            "planned move, drain",
            hand_over,
            trip / 2 + fastest,
            f"no packet is lost as long as this is below {accept_ms:.0f} ms, for which the old "
            "node still takes in what is under way; packets of the difference may be. A syncd "
            "that does not say its position in time calls the move off",
        ),
        Fault(
            "hafw-syncd of the ACTIVE node stays silent",
            hand_over[1:-1],
            trip / 2 + fastest,
            f"after {SYNCD_SILENT_MS / 1000:.0f} s in which it forwards as before",
        ),
        *(() if config.quorum == "two-node" else (_during_a_load(late, claim, fastest, until),)),
        _PATH_LOST,
        _other_voter_lost(until),
        *(_APART if config.quorum == "two-node" else ()),
        _cold_start(config, claim, fastest),
    ]


def worst_round_trips(rows: Iterable[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """p99 by node and peer, from the rows of status' table `peers`."""
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        p99_ms = row.get("rtt_p99_ms")
        if row.get("alive") and isinstance(p99_ms, float | int):
            measured.setdefault(str(row["node"]), {})[str(row["peer"])] = float(p99_ms)
    return measured
