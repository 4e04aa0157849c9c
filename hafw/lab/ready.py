"""Is the cluster ready: asked of the daemons themselves, at their own sockets."""

from __future__ import annotations

from hafw.config.model import ClusterConfig, GroupConfig
from hafw.messages import LeasedStatus, SyncdStatus
from hafw.node.client import LocalClient, Unavailable
from hafw.node.raft_client import RaftClient
from hafw.paths import NodePaths

__all__ = ["not_ready"]

ASK_S = 0.2


def not_ready(config: ClusterConfig, *, with_sync: bool) -> list[str]:
    """What is missing, in words: every group needs exactly one ACTIVE node and, with sync, every
    other candidate synced, by its own word and as the ACTIVE node has heard it. Every node needs a
    Raft leader."""
    leased: dict[str, LeasedStatus] = {}
    syncd: dict[str, SyncdStatus] = {}
    missing = []
    for name, node in config.nodes.items():
        client = LocalClient(NodePaths(name))
        if not NodePaths(name).run.exists():
            missing.append(f"{name}: its hafwd has not started")
            continue
        lease_answer = client.ask_leased(ASK_S)
        if isinstance(lease_answer, Unavailable):
            missing.append(f"{name}: {lease_answer.reason}")
        else:
            leased[name] = lease_answer
        raft = RaftClient(NodePaths(name)).status(ASK_S)
        if isinstance(raft, Unavailable):
            missing.append(f"{name}: {raft.reason}")
        elif raft.read_only:
            missing.append(f"{name}: it knows no Raft leader")
        if not with_sync or node.role == "witness":
            continue
        sync_answer = client.ask_syncd(ASK_S)
        if isinstance(sync_answer, Unavailable):
            missing.append(f"{name}: {sync_answer.reason}")
        else:
            syncd[name] = sync_answer
    for name, group in config.groups.items():
        missing += _group(config, name, group, leased, syncd, with_sync)
    return missing


def _group(
    config: ClusterConfig, name: str, group: GroupConfig,
    leased: dict[str, LeasedStatus], syncd: dict[str, SyncdStatus], with_sync: bool,
) -> list[str]:  # fmt: skip
    active = [
        node
        for node in group.order
        if node in leased and any(g.group == group.index and g.active for g in leased[node].groups)
    ]
    if len(active) != 1:
        return [f"group {name}: ACTIVE on {', '.join(active) or 'no node'}"]
    if not with_sync:
        return []
    heard = {peer.node_id: peer for peer in leased[active[0]].peers}
    holder_id = config.nodes[active[0]].id
    missing = []
    for node in group.order:
        if node in active or node not in syncd:
            continue
        own = next((g for g in syncd[node].groups if g.group == group.index), None)
        if own is None or not own.synced:
            reason = own.reason if own is not None else "it does not know the group"
            missing.append(f"group {name}: {node} is not synced ({reason})")
            continue
        if own.holder_id != holder_id:
            # After a cut a node is synced with what it knew before, until it hears who holds.
            missing.append(f"group {name}: {node} has not heard that {active[0]} is ACTIVE")
            continue
        peer = heard.get(config.nodes[node].id)
        if peer is None or not peer.alive or not peer.synced.get(group.index, False):
            missing.append(f"group {name}: {active[0]} has not heard that {node} is synced")
    return missing
