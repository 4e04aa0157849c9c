"""Who holds one group, as far as this node knows, and what its syncd is told of that."""

from __future__ import annotations

from cluster.acceptor import Acceptor
from cluster.lease_types import NS_PER_MS, TellSyncd
from cluster.proposer import Proposer
from cluster.view import NodeView
from hafw.messages import RoleChange

__all__ = ["Role"]

REPEAT_MS = 100


class Role:
    """`epoch`: the newest one under which a gate is known to have opened. `holder`: its node, if
    it is known to hold the group still; 0: nobody."""

    def __init__(self, group: int, view: NodeView, acceptor: Acceptor, proposer: Proposer) -> None:
        self.epoch = 0
        self.holder = 0
        self._group = group
        self._view = view
        self._acceptor = acceptor
        self._proposer = proposer
        self._told: RoleChange | None = None
        self._told_ns = 0

    def learn(self, now_ns: int) -> None:
        """Look at all that tells who is ACTIVE: heartbeats, the own voter, the own lease."""
        held, acceptor = self._proposer.held, self._acceptor
        node, epoch = self._view.active_peer(self._group, now_ns)
        if acceptor.opened and acceptor.accepted_epoch > epoch:
            node, epoch = acceptor.running_for(now_ns), acceptor.accepted_epoch
        if held is not None and held.opened and held.epoch >= epoch:
            node, epoch = self._view.params.node_id, held.epoch
        elif node == self._view.params.node_id:
            node = 0  # Granted, and already lost or given up here.
        if epoch >= self.epoch:
            self.epoch, self.holder = epoch, node
        else:
            self.holder = 0

    def opened(self, epoch: int) -> None:
        """A gate has opened under `epoch`, as a release or a promise proves."""
        if epoch > self.epoch:
            self.epoch, self.holder = epoch, 0

    def due(self, now_ns: int) -> bool:
        """Whether syncd is to be told: something is new, or a datagram may have been lost, or
        syncd has restarted."""
        gateway = self._view.params.gateway
        return gateway and (
            now_ns >= self._told_ns + REPEAT_MS * NS_PER_MS or self._told != self._now()
        )

    def tell(self, now_ns: int) -> list[TellSyncd]:
        if not self._view.params.gateway:
            return []
        self.learn(now_ns)
        self._told, self._told_ns = self._now(), now_ns
        return [TellSyncd(self._told)]

    def _now(self) -> RoleChange:
        held = self._proposer.held
        return RoleChange(
            group=self._group,
            active=held is not None and held.opened,
            epoch=self.epoch,
            holder_id=self.holder,
            contiguous=held is not None and held.opened and held.contiguous,
        )
