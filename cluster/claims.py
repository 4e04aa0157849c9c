"""Who may claim a free group, and when: rank, do not gate (DESIGN §5, who may claim).

A synced candidate claims by its place in the group's order, one heartbeat apart, so that duels are
rare and nobody waits for a node that does not answer. An unsynced one claims only after
`UNSYNCED_LEASES` leases without a holder in which a majority of voters reports that it hears no
synced candidate, and by its place too, a lease apart: a cold start never leaves nobody in charge,
goes to the first of the order that is there, and a dead syncd never loses flows while another node
has them. A synced candidate that does not claim all the same (deaf, or with a
disk that hangs) is waited for `DESPAIR_LEASES` leases in which this node could have claimed.
"""

from __future__ import annotations

from collections.abc import Collection

from cluster.acceptor import Acceptor
from cluster.lease_types import GroupParams
from cluster.view import NodeView

__all__ = ["DESPAIR_LEASES", "UNSYNCED_LEASES", "Candidacy", "Patience", "heirs", "rank"]

UNSYNCED_LEASES = 5
DESPAIR_LEASES = 5 * UNSYNCED_LEASES


def rank(
    node: int,
    order: tuple[int, ...],
    *,
    alive: Collection[int],
    synced: Collection[int],
    last: Collection[int] = (),
    sound: Collection[int] = (),
    damped: Collection[int] = (),
) -> int | None:
    """Place of `node` among the candidates that are alive: synced ones first, of those the ones
    that are not being drained (`last`), of those the `sound`, whose upstream answers, of those
    the ones that are not `damped`; None: no candidate.

    `node` itself counts as alive.
    """
    if node not in order:
        return None
    present = [candidate for candidate in order if candidate == node or candidate in alive]
    ranked = sorted(
        present, key=lambda at: (at not in synced, at in last, at not in sound, at in damped)
    )
    return ranked.index(node)


def heirs(view: NodeView, group: GroupParams, now_ns: int) -> list[int]:
    """Other nodes that could carry the group without losing flows, best first: as `rank` says."""
    index = group.index
    fit = [
        node
        for node in view.order(group)
        if node != view.params.node_id and view.synced(node, index, now_ns)
    ]
    damped, last = view.flaps.damped(index, now_ns), view.standing.last
    sound = [node for node in fit if view.sound(node, index, now_ns)]
    return sorted(fit, key=lambda node: (node in last, node not in sound, node in damped))


class Patience:
    """How long something has been true without a break: that nobody holds the group and nobody
    synced is there, or that this node could claim it and nobody else does."""

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._since_ns: int | None = None

    def observe(self, true: bool, now_ns: int) -> None:
        if not true:
            self._since_ns = None
        elif self._since_ns is None:
            self._since_ns = now_ns

    def ripe_ns(self) -> int | None:
        """When an unsynced claim is due for that; None while it is not true."""
        return None if self._since_ns is None else self._since_ns + self._wait_ns

    def ripe(self, now_ns: int) -> bool:
        ripe_ns = self.ripe_ns()
        return ripe_ns is not None and now_ns >= ripe_ns


class Candidacy:
    """When this node may claim one group. Asked at every tick; remembers since when it is free."""

    def __init__(self, group: GroupParams, view: NodeView, acceptor: Acceptor) -> None:
        self._group = group
        self._view = view
        self._acceptor = acceptor
        self._own = view.params.node_id
        self._patience = Patience(UNSYNCED_LEASES * view.params.lease_ns)
        self._despair = Patience(DESPAIR_LEASES * view.params.lease_ns)
        self._free_since_ns: int | None = None
        self._forced_until_ns = 0
        self.at_ns: int | None = None
        """When a claim will be due if nothing changes."""

    def reset(self) -> None:
        self._free_since_ns = None

    def force(self, until_ns: int) -> None:
        """Until then claim the group as soon as it is free, synced or not, whoever ranks above:
        an operator wants it here. Votes are needed like any other time."""
        self._forced_until_ns = until_ns

    def due(self, now_ns: int, *, busy: bool, retry_ns: int) -> bool:
        """Whether to claim now. `busy`: this node holds the group or is claiming it."""
        self.at_ns = None
        if self._own not in self._group.order or busy:
            self._free_since_ns = None
            self._despair.observe(False, now_ns)
            return False
        self._patience.observe(self._hopeless(now_ns), now_ns)
        claimable = self._claimable(now_ns)
        self._despair.observe(claimable, now_ns)
        if not claimable:
            self._free_since_ns = None
            return False
        if self._free_since_ns is None:
            self._free_since_ns = now_ns
        at_ns = self._due_ns(now_ns, self._free_since_ns, retry_ns)
        if at_ns is None or now_ns < at_ns:
            self.at_ns = at_ns
            return False
        return True

    def synced_seen(self, now_ns: int) -> bool:
        """Whether a candidate (this node too) is alive and synced."""
        return any(
            self._view.synced(node, self._group.index, now_ns) for node in self._group.order
        )

    def _due_ns(self, now_ns: int, free_since_ns: int, retry_ns: int) -> int | None:
        view, index = self._view, self._group.index
        order = view.order(self._group)
        alive = [node for node in order if view.can_carry(node, now_ns)]
        synced = [node for node in alive if view.synced(node, index, now_ns)]
        sound = [node for node in alive if view.sound(node, index, now_ns)]
        place = rank(
            self._own, order, alive=alive, synced=synced, last=view.standing.last, sound=sound,
            damped=view.flaps.damped(index, now_ns),
        )  # fmt: skip
        assert place is not None
        given = self._acceptor.released and self._acceptor.released_to == self._own
        if given or self._counted_for_us(now_ns):
            place = 0
        at_ns = max(free_since_ns + place * view.params.heartbeat_ns, retry_ns)
        if now_ns < self._forced_until_ns:
            return max(free_since_ns, retry_ns)
        if self._own in synced:
            return at_ns
        hopeless_ns, despair_ns = self._patience.ripe_ns(), self._despair.ripe_ns()
        if hopeless_ns is not None:
            # Each node's wait began when it heard the others: a heartbeat or a write of the
            # disk apart, so that a heartbeat a place would not keep the order.
            hopeless_ns += place * view.params.lease_ns
        ripe_ns = min((due for due in (hopeless_ns, despair_ns) if due is not None), default=None)
        return None if ripe_ns is None else max(at_ns, ripe_ns)

    def _claimable(self, now_ns: int) -> bool:
        view, acceptor = self._view, self._acceptor
        if not view.able() or acceptor.blocks(self._own, now_ns):
            return False
        if (
            acceptor.live(now_ns)
            and acceptor.released
            and acceptor.released_to not in (0, self._own)
        ):
            return False  # Given to another by this node: it has until the lease would have ended.
        if view.active_peer(self._group.index, now_ns)[0]:
            return False
        return view.voters_ready(self._group.index, now_ns)

    def _counted_for_us(self, now_ns: int) -> bool:
        """Whether voters still count a lease of this node, which an earlier process held."""
        return any(
            peer.groups[self._group.index].holder == self._own
            for peer in self._view.alive_peers(now_ns)
            if self._group.index in peer.groups
        )

    def _hopeless(self, now_ns: int) -> bool:
        """Whether a majority of voters reports no holder and no synced candidate."""
        view, index = self._view, self._group.index
        reports = 0
        for node, peer in view.peers.items():
            beat = peer.groups.get(index)
            if beat is None or beat.holder or beat.active or beat.synced_seen:
                continue
            if not view.in_set(peer):
                continue
            reports += view.alive(node, now_ns)
        # Of two nodes without a witness a silent one reports nothing, however late this loop is.
        unheard = view.pair is not None and not view.alive_peers(now_ns)
        needed = 1 if unheard else view.needed(index, now_ns, holding=False)
        own = view.is_voter and not self._acceptor.running_for(now_ns)
        if reports + 1 < needed or not own:
            return reports >= needed
        return reports + (not self.synced_seen(now_ns)) >= needed
