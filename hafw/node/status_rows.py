"""What `hafwctl status` says: tables of rows from the facts gathered on a node, and the verdict.

Pure. The keys of the rows are a contract (docs/reference/status.md, tested): `COLUMNS` is its only
declaration. Nothing is carried over from an earlier look: what a daemon that is down would have
said is None, and the kernel's deadlines stand beside what leased says, never instead of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hafw.config.model import ClusterConfig
from hafw.human import format_epoch
from hafw.messages import (
    GroupLeaseStatus,
    LeasedStatus,
    Spread,
    SyncDigestStatus,
    SyncdStatus,
    SyncPassStatus,
)
from hafw.node.facts import (
    DaemonFacts,
    DaemonState,
    DeviceFacts,
    GateFacts,
    NodeFacts,
    PolicyFacts,
)
from hafw.node.names import named
from hafw.node.raft_rows import assigned_node, member_state, raft_row
from hafw.node.rotation import rotation_alarms, rotation_notes
from hafw.node.survival import survival_rows
from hafw.node.verdict import find_problems
from hafw.node.voters import voters_notes
from hafw.raft_messages import RaftStatus

__all__ = [
    "COLUMNS",
    "DaemonFacts",
    "DaemonState",
    "DeviceFacts",
    "Document",
    "GateFacts",
    "NodeFacts",
    "PolicyFacts",
    "Row",
    "Tables",
    "build_tables",
    "empty_tables",
    "merge",
    "unknown_tables",
]

TWO_NODE = (
    "two nodes without a witness (quorum: two-node): if all links and segments between them are "
    "cut, both forward"
)

Row = dict[str, Any]
Tables = dict[str, list[Row]]
Document = dict[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "nodes": ("node", "id", "role", "state", "active_for", "assembled_by", "up"),
    "daemons": ("node", "daemon", "state", "pid", "up_s", "restarts", "reason"),
    "groups": (
        "node", "group", "vrid", "vips", "role", "holder", "epoch", "epoch_number",
        "assigned", "lease_left_ms", "gate", "announce_left_ms", "accept_left_ms", "dropped_in",
        "dropped_out", "handed_over", "moves", "renewals",
    ),
    "devices": ("node", "group", "segment", "device", "present", "up", "gated"),
    "lease": (
        "node", "realtime", "may_vote", "votes_in_ms", "era", "voters_id", "voters_hash", "voters",
        "loop_p50_ms", "loop_p99_ms", "loop_max_ms", "loop_worst_ms", "loop_worst_age_s",
        "lease_ms", "heavy_left_s",
    ),
    "loop": ("node", "late_up_to_ms", "count"),
    "peers": (
        "node", "peer", "alive", "proven", "age_ms", "rtt_ms", "era", "links_alive", "links",
        "votes", "able", "state", "rtt_min_ms", "rtt_p50_ms", "rtt_p99_ms",
    ),
    "links": (
        "node", "peer", "link", "alive", "age_ms", "received", "rtt_min_ms", "rtt_p50_ms",
        "rtt_p99_ms",
    ),
    "damped": ("node", "group", "damped", "losses", "why", "quiet_left_s", "told_by"),
    "survival": ("node", "group", "kind", "losing", "survives", "why"),
    "raft": (
        "node", "role", "leader", "term", "commit", "applied", "quorum", "read_only", "connected",
        "peers", "entries", "recovering", "members", "moves", "digest",
    ),
    "sync": (
        "node", "group", "synced", "reason", "owned", "replicas", "liberal", "stale",
        "clean_s", "differing", "repairs", "repaired",
        "pass", "pass_running", "pass_done", "pass_total", "pass_adopted", "pass_per_s",
        "codec",
    ),
    "streams": (
        "node", "peer", "accepted", "lag_deltas", "applied_seq", "high_water_seq",
        "beacon_age_ms", "delay_p50_ms", "delay_p99_ms", "at_risk", "confirm_p50_ms",
        "confirm_p99_ms", "over",
    ),
    "policy": ("node", "state", "hash", "generation", "rules", "file", "loaded_at", "error"),
    "counters": ("node", "daemon", "counter", "value"),
    "alarms": ("node", "source", "alarm"),
    "notes": ("node", "source", "note"),
}  # fmt: skip


def empty_tables() -> Tables:
    return {name: [] for name in COLUMNS}


def unknown_tables(node: str, reason: str) -> Tables:
    """Of a node of which nothing can be learnt; the reason makes it a problem."""
    tables = empty_tables()
    tables["nodes"].append(
        {
            "node": node, "id": None, "role": None, "state": None, "active_for": [],
            "assembled_by": "hafwctl", "up": False,
        }
    )  # fmt: skip
    alarm = f"nothing is known of it: {reason}"
    tables["alarms"].append({"node": node, "source": "hafwctl", "alarm": alarm})
    return tables


def build_tables(config: ClusterConfig, facts: NodeFacts) -> Tables:
    """All tables of one node."""
    tables = empty_tables()
    node = config.nodes[facts.node]
    tables["groups"] = [_group_row(config, facts, name) for name in config.groups]
    tables["daemons"] = [
        {
            "node": facts.node, "daemon": daemon.daemon, "state": daemon.state,
            "pid": daemon.pid, "up_s": _rounded(daemon.up_s), "restarts": daemon.restarts,
            "reason": daemon.reason,
        }
        for daemon in facts.daemons
    ]  # fmt: skip
    tables["nodes"].append(
        {
            "node": facts.node,
            "id": node.id,
            "role": node.role,
            "state": member_state(facts.raft, facts.node),
            "active_for": [row["group"] for row in tables["groups"] if row["role"] == "ACTIVE"],
            "assembled_by": facts.assembled_by,
            "up": all(daemon.state in ("up", "off") for daemon in facts.daemons),
        }
    )
    tables["devices"] = [
        {
            "node": facts.node, "group": device.group, "segment": device.segment,
            "device": device.device, "present": device.present, "up": device.up,
            "gated": device.gated,
        }
        for device in facts.devices
    ]  # fmt: skip
    _add_common(tables, facts.node, "hafwd", facts.counters, facts.alarms)
    tables["notes"] = [
        {"node": facts.node, "source": "hafwd", "note": note} for note in facts.notes
    ]
    acts_alone = config.quorum == "two-node" if facts.leased is None else facts.leased.two_node
    if acts_alone:
        tables["notes"].append({"node": facts.node, "source": "quorum", "note": TWO_NODE})
    if facts.policy is not None:
        policy = facts.policy
        tables["policy"].append(
            {
                "node": facts.node, "state": policy.state, "hash": policy.hash,
                "generation": policy.generation, "rules": policy.rules, "file": policy.file,
                "loaded_at": policy.loaded_at, "error": policy.error,
            }
        )  # fmt: skip
    if facts.leased is not None:
        _add_leased(tables, config, facts.node, facts.leased, facts.raft)
    if facts.syncd is not None:
        _add_syncd(tables, config, facts.node, facts.syncd)
    if facts.raft is not None:
        tables["raft"].append(raft_row(config, facts.node, facts.raft))
        _add_common(tables, facts.node, "raftd", facts.raft.counters, facts.raft.alarms)
    return tables


def _group_row(config: ClusterConfig, facts: NodeFacts, name: str) -> Row:
    group = config.groups[name]
    lease: GroupLeaseStatus | None = None
    if facts.leased is not None:
        lease = next((g for g in facts.leased.groups if g.group == group.index), None)
    gate = None if facts.gates is None else facts.gates.get(group.index)
    announce_left = None if gate is None else _left_ms(gate.announce_ns, facts.now_ns)
    accept_left = None if gate is None else _left_ms(gate.accept_ns, facts.now_ns)
    role: str | None = None
    if lease is not None:
        role = "ACTIVE" if lease.active else "BACKUP"
    if facts.node not in group.order:
        role = "-"  # The witness, or a gateway that is no candidate.
    return {
        "node": facts.node,
        "group": name,
        "vrid": group.vrid,
        "vips": [str(vip) for vips in group.vips.values() for vip in vips],
        "role": role,
        "holder": None if lease is None else config.node_name(lease.holder_id),
        "epoch": None if lease is None else format_epoch(lease.epoch),
        "epoch_number": None if lease is None else lease.epoch,
        "assigned": assigned_node(facts.raft, name),
        "lease_left_ms": None if lease is None else _rounded(lease.lease_left_ms),
        "gate": _gate_word(announce_left, accept_left),
        "announce_left_ms": announce_left,
        "accept_left_ms": accept_left,
        "dropped_in": None if gate is None else gate.dropped_in,
        "dropped_out": None if gate is None else gate.dropped_out,
        "handed_over": None if gate is None else gate.handed_over,
        "moves": None if lease is None else lease.moves,
        "renewals": None if lease is None else lease.renewals,
    }


def _gate_word(announce_left_ms: float | None, accept_left_ms: float | None) -> str | None:
    if announce_left_ms is None or accept_left_ms is None:
        return None
    if announce_left_ms > 0:
        return "open"
    return "accept only" if accept_left_ms > 0 else "shut"


def _add_leased(
    tables: Tables,
    config: ClusterConfig,
    node: str,
    leased: LeasedStatus,
    raft: RaftStatus | None,
) -> None:
    voters = leased.voters
    tables["lease"].append(
        {
            "node": node,
            "realtime": leased.realtime,
            "may_vote": leased.may_vote,
            "votes_in_ms": _left_ms(leased.votes_from_ns, leased.now_ns),
            "era": leased.era,
            "voters_id": leased.voters_id,
            "voters_hash": leased.voters_hash,
            "voters": None if voters is None else [*map(config.node_name, voters.members)],
            "loop_p50_ms": _rounded(leased.loop_delay.p50_ms),
            "loop_p99_ms": _rounded(leased.loop_delay.p99_ms),
            "loop_max_ms": _rounded(leased.loop_delay.max_ms),
            "loop_worst_ms": _rounded(leased.loop_delay.worst_ms),
            "loop_worst_age_s": _rounded(leased.loop_delay.worst_age_s),
            "lease_ms": leased.lease_ms,
            "heavy_left_s": _rounded(leased.heavy_left_s),
        }
    )
    tables["loop"] = [
        {"node": node, "late_up_to_ms": (1 << bucket) / 1000, "count": count}
        for bucket, count in enumerate(leased.loop_delay.buckets)
        if count
    ]
    tables["notes"] += [
        {"node": node, "source": "voters", "note": note} for note in voters_notes(config, leased)
    ]
    tables["survival"] = survival_rows(config, node, leased)
    names = {group.index: name for name, group in config.groups.items()}
    tables["damped"] = [
        {
            "node": node, "group": names.get(at.group, str(at.group)),
            "damped": config.node_name(at.node_id), "losses": at.losses, "why": at.why,
            "quiet_left_s": at.left_s, "told_by": [config.node_name(n) for n in at.told_by],
        }
        for at in leased.damped
    ]  # fmt: skip
    for peer in leased.peers:
        name = config.node_name(peer.node_id)
        tables["peers"].append(
            {
                "node": node, "peer": name, "alive": peer.alive, "proven": peer.proven,
                "age_ms": _rounded(peer.age_ms), "rtt_ms": _rounded(peer.rtt_ms),
                "era": peer.era, "links_alive": sum(link.alive for link in peer.links),
                "links": len(peer.links), "votes": peer.votes, "able": peer.able,
                "state": member_state(raft, name),
                **_round_trip_columns(peer.round_trip),
            }
        )  # fmt: skip
        tables["links"] += [
            {
                "node": node, "peer": name, "link": link.name, "alive": link.alive,
                "age_ms": _rounded(link.age_ms), "received": link.received,
                **_round_trip_columns(link.round_trip),
            }
            for link in peer.links
        ]  # fmt: skip
    alarms = [named(config, alarm) for alarm in leased.alarms]
    _add_common(tables, node, "leased", leased.counters, alarms)


def _round_trip_columns(measured: Spread | None) -> Row:
    if measured is None:
        return dict.fromkeys(("rtt_min_ms", "rtt_p50_ms", "rtt_p99_ms"))
    return {
        "rtt_min_ms": _rounded(measured.min_ms), "rtt_p50_ms": _rounded(measured.p50_ms),
        "rtt_p99_ms": _rounded(measured.p99_ms),
    }  # fmt: skip


def _add_syncd(tables: Tables, config: ClusterConfig, node: str, syncd: SyncdStatus) -> None:
    names = {group.index: name for name, group in config.groups.items()}
    tables["sync"] = [
        {
            "node": node, "group": names.get(group.group, str(group.group)),
            "synced": group.synced, "reason": group.reason, "owned": group.owned,
            "replicas": group.replicas, "liberal": group.liberal, "stale": group.stale,
            **_digest_columns(group.digest),
            **_pass_columns(group.own_pass),
            "codec": syncd.codec,
        }
        for group in syncd.groups
    ]  # fmt: skip
    tables["streams"] = [
        {
            "node": node, "peer": config.node_name(peer.node_id), "accepted": peer.accepted,
            "lag_deltas": peer.lag_deltas, "applied_seq": peer.applied_seq,
            "high_water_seq": peer.high_water_seq, "beacon_age_ms": _rounded(peer.beacon_age_ms),
            "delay_p50_ms": _rounded(peer.delay_p50_ms),
            "delay_p99_ms": _rounded(peer.delay_p99_ms), "at_risk": peer.flows_at_risk,
            "confirm_p50_ms": _rounded(peer.confirm_p50_ms),
            "confirm_p99_ms": _rounded(peer.confirm_p99_ms), "over": peer.over,
        }
        for peer in syncd.peers
    ]  # fmt: skip
    tables["notes"] += [
        {"node": node, "source": "syncd", "note": note} for note in rotation_notes(syncd)
    ]
    alarms = syncd.alarms + rotation_alarms(node, syncd)
    _add_common(tables, node, "syncd", syncd.counters, alarms)


def _digest_columns(digest: SyncDigestStatus | None) -> Row:
    if digest is None:
        return dict.fromkeys(("clean_s", "differing", "repairs", "repaired"))
    return {
        "clean_s": _rounded(digest.clean_age_s), "differing": digest.differing,
        "repairs": digest.repairs, "repaired": digest.repaired,
    }  # fmt: skip


def _pass_columns(own: SyncPassStatus | None) -> Row:
    if own is None:
        names = ("pass_done", "pass_total", "pass_adopted", "pass_per_s")
        return {"pass": None, "pass_running": False, **dict.fromkeys(names)}
    return {
        "pass": own.kind, "pass_running": own.running, "pass_done": own.done,
        "pass_total": own.total, "pass_adopted": own.adopted, "pass_per_s": round(own.per_s),
    }  # fmt: skip


def _add_common(
    tables: Tables, node: str, daemon: str, counters: dict[str, int], alarms: list[str]
) -> None:
    tables["counters"] += [
        {"node": node, "daemon": daemon, "counter": name, "value": counters[name]}
        for name in sorted(counters)
    ]
    tables["alarms"] += [{"node": node, "source": daemon, "alarm": alarm} for alarm in alarms]


def merge(cluster: str, parts: Iterable[Tables]) -> Document:
    """One document of one node's tables or of several nodes', with the verdict over all:
    ``cluster``, ``healthy``, ``problems`` and the tables of `COLUMNS`."""
    tables = empty_tables()
    for part in parts:
        for name in COLUMNS:
            tables[name] += part.get(name, [])
    problems = find_problems(tables)
    return {"cluster": cluster, "healthy": not problems, "problems": problems, **tables}


def _left_ms(deadline_ns: int, now_ns: int) -> float:
    """Milliseconds until the deadline; 0 if it is past or was never set."""
    return round(max(0, deadline_ns - now_ns) / 1e6, 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
