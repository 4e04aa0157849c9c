"""Would the cluster survive losing one node, one link or one segment now? Pure.

Asked of what one node's leased says, so it is that node's view: whom it hears, who of them votes,
who could carry each group without losing flows. A loss is survived if somebody still forwards the
group afterwards and no published flow is lost. More than one loss at a time is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hafw.config.model import ClusterConfig, GroupConfig
from hafw.messages import GroupLeaseStatus, LeasedStatus, PeerStatus

__all__ = ["survival_rows"]

Row = dict[str, object]
Verdict = tuple[bool, str]


def survival_rows(config: ClusterConfig, node: str, leased: LeasedStatus) -> list[Row]:
    """Rows ``node, group, kind, losing, survives, why``."""
    view = _View(config, node, leased)
    rows: list[Row] = []
    for status in leased.groups:
        names = [name for name, group in config.groups.items() if group.index == status.group]
        for name in names:
            rows += [
                {
                    "node": node, "group": name, "kind": kind, "losing": losing,
                    "survives": verdict[0], "why": verdict[1],
                }
                for kind, losing, verdict in view.losses(config.groups[name], status)
            ]  # fmt: skip
    return rows


class _View:
    """What one node knows."""

    def __init__(self, config: ClusterConfig, node: str, leased: LeasedStatus) -> None:
        self._config = config
        self._node = node
        self._peers = {config.node_name(peer.node_id): peer for peer in leased.peers}
        self._own = {group.group: group for group in leased.groups}
        self._votes = leased.may_vote
        voters = config.voters.members if leased.voters is None else leased.voters.members
        self._members = [config.node_name(node_id) for node_id in voters]
        self._two_node = leased.two_node
        self._majority = 1 if self._two_node else len(voters) // 2 + 1

    def losses(
        self, group: GroupConfig, status: GroupLeaseStatus
    ) -> Iterable[tuple[str, str, Verdict]]:
        own = self._config.nodes[self._node]
        holder = self._config.node_name(status.holder_id) if status.holder_id else ""
        for name in self._config.nodes:
            yield "node", name, self._without_nodes({name}, group, status.group, holder)
        for link in own.links:
            yield "link", link, self._without_path(link, group, status.group, holder)
        for segment in own.segments:
            yield "segment", segment, self._without_segment(segment, group, status.group, holder)

    # ---- nodes --------------------------------------------------------------------------------

    def _without_nodes(
        self, lost: set[str], group: GroupConfig, index: int, holder: str
    ) -> Verdict:
        left = [name for name in self._members if name not in lost and self._voting(name)]
        if len(left) < self._majority:
            there = ", ".join(left) or "nobody"
            return False, f"no quorum: {there} of {len(self._members)} voters would vote"
        if holder and holder not in lost:
            return True, f"{holder} stays ACTIVE"
        return self._successor(group, index, lambda name: name not in lost)

    def _successor(self, group: GroupConfig, index: int, stays: Callable[[str], bool]) -> Verdict:
        """Who would take the group over."""
        candidates = [name for name in group.order if stays(name)]
        for name in candidates:
            if self._synced(name, index):
                return True, f"{name} takes over"
        for name in candidates:
            if self._there(name):
                return False, f"no synced successor: {name} is {self._why(name, index)}"
        if not candidates:
            return False, "no successor: the group has no other candidate"
        return (
            False,
            f"no successor: {', '.join(candidates)} not heard, or not able to carry groups",
        )

    # ---- links and segments -------------------------------------------------------------------

    def _without_path(self, path: str, group: GroupConfig, index: int, holder: str) -> Verdict:
        """Whom would this node no more hear?"""
        cut = {
            name
            for name, peer in self._peers.items()
            if peer.alive and not any(at.alive and at.name != path for at in peer.links)
        }
        if cut and self._two_node:
            return False, f"the only path to {', '.join(sorted(cut))}: both nodes would forward"
        if cut:
            worst = self._without_nodes(cut, group, index, holder)
            return worst[0], f"the only path to {', '.join(sorted(cut))}: {worst[1]}"
        if not any(peer.alive for peer in self._peers.values()):
            return self._without_nodes(set(), group, index, holder)
        spare = min(
            sum(at.alive and at.name != path for at in peer.links)
            for peer in self._peers.values()
            if peer.alive
        )
        return True, f"every peer is heard over {spare} or more other paths"

    def _without_segment(
        self, segment: str, group: GroupConfig, index: int, holder: str
    ) -> Verdict:
        """The carrier of this node's device there."""
        heard = self._without_path(segment, group, index, holder)
        if not heard[0] or segment not in group.vips or holder != self._node:
            return heard
        moved = self._successor(group, index, lambda name: name != self._node)
        return (True, moved[1]) if moved[0] else (False, f"dead there: {moved[1]}")

    # ---- facts --------------------------------------------------------------------------------

    def _peer(self, name: str) -> PeerStatus | None:
        peer = self._peers.get(name)
        return peer if peer is not None and peer.alive and peer.proven else None

    def _voting(self, name: str) -> bool:
        if name == self._node:
            return self._votes
        peer = self._peer(name)
        return peer is not None and peer.votes

    def _there(self, name: str) -> bool:
        peer = self._peer(name)
        return name == self._node or (peer is not None and peer.able)

    def _synced(self, name: str, index: int) -> bool:
        if name == self._node:
            return self._own[index].synced
        peer = self._peer(name)
        return peer is not None and peer.able and peer.synced.get(index, False)

    def _why(self, name: str, index: int) -> str:
        peer = self._peer(name)
        reason = self._own[index].reason if peer is None else peer.reasons.get(index, "")
        return f"not synced ({reason or 'it gives no reason'})"
