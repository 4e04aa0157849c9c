"""Two gateways without a witness: the world of the lease with checkers of what is promised then.

Both may be ACTIVE only while nothing that either says reaches the other. The checkers look at gate
stores, at which of the two directions is cut, and at the nodes' carriers; never at how the core
decides. What a node does, or what is done to it, is no excuse: paused, killed, or with a loop that
runs late, it must not be ACTIVE beside another one that it could hear.
"""

from __future__ import annotations

from random import Random

from tests.simulation.lease_node import CALM_NS, GROUP, LEASE_NS, MS, Lane, Node, ViolationError
from tests.simulation.lease_world import World

__all__ = ["HEARTBEAT_NS", "PAIR", "PairWorld"]

HEARTBEAT_NS = 20 * MS
PAIR = ((1, 2), (2, 1))
APART_NS = LEASE_NS + 3 * HEARTBEAT_NS
"""Both may be ACTIVE for this long after one of them can hear the other again."""
YIELD_NS = 4 * HEARTBEAT_NS
"""And for this long if both can, and neither was held up."""


class PairWorld(World):
    """Gateways 1 and 2; a datagram stands for its copies on all links and segments."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng, gateways=(1, 2), witnesses=())
        self.heartbeat_ns = HEARTBEAT_NS
        self.two_node = True
        self.healed_at = dict.fromkeys(PAIR, 0)
        self.apart_at = 0
        """When the directions last changed other than both together."""
        self.carriers_at = {1: 0, 2: 0}
        self.both_ns = 0
        """How long both have been ACTIVE, by looks."""
        self.both_at = -CALM_NS
        self.active_at = 0
        """When anybody was ACTIVE last, by looks."""
        self.epochs: dict[int, int] = {}
        self._opened = (0, 0)

    # ---- faults that the checkers must know of ------------------------------------------------

    def cut(self, pairs: set[tuple[int, int]]) -> None:
        self.say(f"cut {sorted(pairs)}")
        self.network_disturbed_at = self.now
        if pairs != set(PAIR) or self.network.cut:
            self.apart_at = self.now
        self.network.cut |= pairs

    def heal(self, pairs: set[tuple[int, int]]) -> None:
        self.say(f"healed {sorted(pairs)}")
        self.network_disturbed_at = self.now
        if pairs != set(PAIR) or self.network.cut != pairs:
            self.apart_at = self.now
        for pair in pairs & self.network.cut:
            self.healed_at[pair] = self.now
        self.network.cut -= pairs

    def slow(self, share: float, slow_ns: int) -> None:
        """Datagrams may take long; until `unslow` nobody can tell what reaches whom."""
        self.network_disturbed_at = self.apart_at = self.now
        self.network.slow, self.network.slow_ns = share, slow_ns

    def unslow(self) -> None:
        self.network.slow = 0.0
        self.network_disturbed_at = self.apart_at = self.now + self.network.slow_ns
        for pair in PAIR:
            self.healed_at[pair] = self.network_disturbed_at

    def carrier(self, node: Node, down: frozenset[str]) -> None:
        self.carriers_at[node.id] = self.now
        super().carrier(node, down)

    # ---- checkers -----------------------------------------------------------------------------

    def look(self) -> None:
        """Ask at every instant that matters."""
        one, other = self.nodes[1], self.nodes[2]
        active = [node for node in (one, other) if self.announces(node)]
        if len(active) == 2:
            self._check_apart()
        elif active:
            self.lanes[GROUP].holder = active[0].id  # Also who stayed when both were.
        if active:
            self.active_at = self.now
        self.check_kept()

    def _check_exclusive(self, node: Node, group: int) -> None:
        other = self.nodes[3 - node.id]
        if self.announces(other, group):
            self._check_apart()

    def _check_apart(self) -> None:
        """Both announce. Only if all is cut, and all carriers of both were there."""
        self.both_at = self.now
        self.both_ns += HEARTBEAT_NS // 10
        for node in self.nodes.values():
            if node.segments_down and self.now - self.carriers_at[node.id] > APART_NS:
                raise ViolationError(f"both announce, and {node.id} has no carrier")
        if self.network.slow:
            return
        up = [pair for pair in PAIR if pair not in self.network.cut]
        for pair in up:
            if self.now - self.healed_at[pair] > APART_NS:
                raise ViolationError(f"both announce, and {pair[1]} can hear {pair[0]}")
        calm = all(self._calm(node) for node in self.nodes.values())
        whole_ns = self.now - max(self.healed_at.values())
        if calm and len(up) == 2 and whole_ns > YIELD_NS:
            raise ViolationError("both announce, and each can hear the other")

    def _calm(self, node: Node) -> bool:
        return node.core is not None and node.disturbed_at < self.now - CALM_NS

    def _check_position(self, node: Node, lane: Lane) -> None:
        """Not judged where both forwarded: what either released says little of the other then."""
        if self.now - self.both_at < CALM_NS:
            node.owed.clear()
        super()._check_position(node, lane)

    def _check_epoch(self, node: Node, lane: Lane, epoch: int) -> None:
        """Every opening has an epoch of its own, above the node's own before: after a heal there
        is one order."""
        if self.epochs.get(epoch) == node.id and self._opened == (epoch, node.process):
            return  # Renewed in the very turn that opened it.
        self._opened = epoch, node.process
        if epoch in self.epochs or epoch <= max(
            (e for e, n in self.epochs.items() if n == node.id), default=0
        ):
            raise ViolationError(f"node {node.id} opened again under epoch {epoch:x}")
        self.epochs[epoch] = node.id

    def check_kept(self) -> None:
        """A lease may not end while its holder is well, whatever becomes of the other node, and
        whatever is cut or healed in both directions together, nor for a move that waits: only
        once a gate was shut to hand the group over."""
        network, calm_from = self.network, self.now - CALM_NS
        if (
            self.apart_at > calm_from
            or any(node.gate.shut_at > calm_from for node in self.nodes.values())
            or network.loss
            or network.slow
            or len(network.cut) == 1
            or self.now - self.active_at > HEARTBEAT_NS // 2  # It ended before.
            or any(self.announces(node) for node in self.nodes.values())
        ):
            return
        slow_disk = any(
            node.disk_ns > 20 * MS or node.disk_fails or node.disk_hangs or node.late
            for node in self.nodes.values()
        )
        holder = self.nodes.get(self.lanes[GROUP].holder)
        if holder is None or slow_disk or not self._calm(holder) or holder.segments_down:
            return
        raise ViolationError(f"node {holder.id} lost its lease, and is well")
