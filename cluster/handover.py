r"""The old holder's side of a planned hand-over, and moves away from a silent syncd or a dead
segment.

Theory of operation
    ::

        WAIT_SYNC --target synced--> POSITION --syncd answers--> RELEASED --target active--> moved
            |                           |                            \-- in time by nobody:
            \-- not within wait_s       \-- silent: open again            released, not moved

    WAIT_SYNC may last for minutes, and takes nothing from the holder: it claims new epochs, and
    gives the group to another node if a fault here asks for that.

    POSITION shuts *announce* and leaves *accept* at the deadline already stored, never renewing
    it; the lease itself is still renewed, so opening again is a right. `Release` gives the lease
    up: from then on this node is BACKUP. It is repeated at each heartbeat for one lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cluster.claims import heirs as heirs_of
from cluster.heartbeat import Message, MoveAnswer, Release
from cluster.heir import TARGET_LEASES
from cluster.lease_types import NS_PER_MS, AskPosition, Effect, Note, ReplyMove, SetGate
from cluster.view import NodeView
from hafw.human import epoch_node
from hafw.messages import MoveReply, Position, PositionReply

if TYPE_CHECKING:
    from cluster.lease_group import GroupCore

__all__ = ["SYNCD_SILENT_MS", "WAIT_MS_MAX", "HandOver", "MoveOrigin"]

POSITION_BEATS = 2
"""Heartbeats syncd may take to say its position; then the move is called off. Of the lease what is
left then must do for the target to open: `hafw.node.worst_case.relations`."""
SYNCD_SILENT_MS = 3000
"""A holder whose syncd has been silent for this long gives the group to a synced peer."""
WAIT_MS_MAX = 600_000


@dataclass(frozen=True, slots=True)
class MoveOrigin:
    """Who asked: a local client (`token`), or a node that forwards for one."""

    token: str = ""
    node: int = 0
    request: int = 0


class Step(Enum):
    WAIT_SYNC = "wait_sync"
    POSITION = "position"
    RELEASED = "released"


@dataclass(slots=True)
class _Move:
    origin: MoveOrigin | None
    target: int
    step: Step
    until_ns: int
    epoch: int = 0
    force: bool = False
    position: Position | None = None
    repeat_until_ns: int = 0


class HandOver:
    """At most one move of one group at a time."""

    def __init__(self, group: GroupCore, view: NodeView) -> None:
        self._group = group
        self._view = view
        self._move: _Move | None = None
        self._silent_since_ns: int | None = None
        self._worse_since_ns: int | None = None
        """Since when the upstream check of a peer is better than the own one."""

    @property
    def gate_frozen(self) -> bool:
        """Whether renewals must leave the gate's deadlines alone."""
        return self._move is not None and self._move.step is Step.POSITION

    @property
    def busy(self) -> bool:
        """Whether no epoch may be claimed: the move is for the one that is held."""
        return self._move is not None and self._move.step is not Step.WAIT_SYNC

    def serves(self, origin: MoveOrigin) -> bool:
        return self._move is not None and self._move.origin == origin

    def deadline(self) -> int | None:
        return None if self._move is None else self._move.until_ns

    # ---- starting -----------------------------------------------------------------------------

    def start(
        self, origin: MoveOrigin, target: int, wait_ms: int, now_ns: int, *, force: bool = False
    ) -> list[Effect]:
        """A move asked of the holder. Refused with a reason, or begun. `force`: neither the
        target nor the own syncd need be in order."""
        refusal = self._refusal(target, now_ns, force=force)
        if self._move is not None:
            refusal = "another move of this group is under way"
        if refusal:
            return self.refuse(origin, refusal)
        wait_ns = min(wait_ms, WAIT_MS_MAX) * NS_PER_MS
        self._move = _Move(origin, target, Step.WAIT_SYNC, now_ns + wait_ns, force=force)
        return self.tick(now_ns)

    def refuse(self, origin: MoveOrigin, reason: str) -> list[Effect]:
        self._view.counters["moves_refused"] += 1
        return self._answer(origin, moved=False, released=False, epoch=0, reason=reason)

    def _refusal(self, target: int, now_ns: int, *, force: bool) -> str:
        view, order = self._view, self._group.params.order
        held = self._group.proposer.held
        if held is None or not held.opened:
            return "this node does not hold the group"
        if target == view.params.node_id:
            return "that node is already the holder"
        if target not in order:
            return f"node {target} is not a candidate of this group"
        if not view.alive(target, now_ns):
            return f"node {target} is not heard"
        if target in view.standing.out:
            return f"node {target} is in maintenance or has left: hafwctl node online first"
        if target not in (view.voters_next or view.voters).members:
            return f"node {target} does not vote, or is being taken out of the voters"
        if not view.can_carry(target, now_ns):
            return f"node {target} cannot carry groups now (stopping, or its era file fails)"
        synced, reason = view.own_sync(self._group.params.index, now_ns)
        if not synced and not force:
            return f"the holder's own syncd is not in order: {reason}"
        return ""

    # ---- running ------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[Effect]:
        move = self._move
        if move is None:
            return self._watch_segments(now_ns) or self._watch_syncd(now_ns)
        match move.step:
            case Step.WAIT_SYNC:
                effects = self._wait_sync(move, now_ns)
                if self.busy or self._move is None:
                    return effects
                # A segment that dies here does not wait for the target of a move.
                return self._watch_segments(now_ns)
            case Step.POSITION:
                return self._wait_position(move, now_ns)
            case Step.RELEASED:
                return self._wait_target(move, now_ns)

    def repeat(self, now_ns: int) -> list[Message]:
        move = self._move
        if move is None or move.step is not Step.RELEASED or now_ns >= move.repeat_until_ns:
            return []
        return [Release(self._group.params.index, move.epoch, move.target, move.position)]

    def on_position(self, reply: PositionReply, now_ns: int) -> list[Effect]:
        move = self._move
        if move is None or move.step is not Step.POSITION or move.epoch != reply.epoch:
            return []
        return self._release(move, reply.position, now_ns)

    def cancel(self, reason: str) -> list[Effect]:
        """The lease is gone or the node stops: end a move that has not released."""
        move = self._move
        if move is None or move.step is Step.RELEASED:
            return []
        return self._end(move, moved=False, released=False, epoch=0, reason=reason)

    def stop(self) -> list[Effect]:
        """The node stops: the one who asked gets what is known."""
        move = self._move
        if move is None:
            return []
        released = move.step is Step.RELEASED
        return self._end(move, moved=False, released=released, epoch=0, reason="the node stops")

    def _wait_sync(self, move: _Move, now_ns: int) -> list[Effect]:
        view, index = self._view, self._group.params.index
        refusal = self._refusal(move.target, now_ns, force=move.force)
        if refusal:
            return self._end(move, moved=False, released=False, epoch=0, reason=refusal)
        if not move.force and not view.synced(move.target, index, now_ns):
            if now_ns < move.until_ns:
                return []
            beat = view.peers[move.target].groups.get(index)
            why = beat.reason if beat is not None else "it says nothing of this group"
            reason = f"node {move.target} is not synced: {why}"
            return self._end(move, moved=False, released=False, epoch=0, reason=reason)
        proposer, held = self._group.proposer, self._group.proposer.held
        assert held is not None
        if proposer.claim is not None or proposer.needs_epoch(now_ns):
            return []  # Soon over: the move is for the epoch that comes of it.
        move.step = Step.POSITION
        move.epoch = held.epoch
        move.until_ns = now_ns + POSITION_BEATS * view.params.heartbeat_ns
        return [
            self._silence(now_ns),
            AskPosition(index, held.epoch),
            Note("move_began", (("group", index), ("target_id", move.target))),
        ]

    def _silence(self, now_ns: int) -> SetGate:
        """Shut announce. Accept stays, for at most a usual lease: one may have been a long one."""
        lease_ns = self._view.params.shorter(self._view.params.lease_ns)
        accept_ns = min(self._group.gate_ns, now_ns + lease_ns)
        return SetGate(self._group.params.index, 0, accept_ns)

    def _wait_position(self, move: _Move, now_ns: int) -> list[Effect]:
        if now_ns < move.until_ns:
            return []
        held = self._group.proposer.held
        assert held is not None  # A lost lease cancels the move first.
        self._view.counters["moves_without_position"] += 1
        if move.origin is None or move.force:  # Away from a dead segment, position or not.
            return self._release(move, None, now_ns)
        reason = "the holder's syncd did not say its position in time"
        effects = self._end(move, moved=False, released=False, epoch=0, reason=reason)
        # The lease was renewed all the while, so opening again is a right.
        return [*self._group.store_gate(held.deadline_ns), *effects]

    def _release(self, move: _Move, position: Position | None, now_ns: int) -> list[Effect]:
        held = self._group.proposer.held
        assert held is not None
        assert held.epoch == move.epoch
        lease_ns = self._view.params.lease_ns
        index = self._group.params.index
        move.step = Step.RELEASED
        if move.force and not self._view.synced(move.target, index, now_ns):
            position = None  # It would wait for what it cannot apply.
        move.position = position
        move.repeat_until_ns = now_ns + lease_ns
        move.until_ns = now_ns + TARGET_LEASES * lease_ns + 5 * self._view.params.heartbeat_ns
        self._group.let_go()
        release = Release(index, move.epoch, move.target, move.position)
        self._group.acceptor.release(self._view.params.node_id, release)
        self._view.counters["moves_released"] += 1
        return [
            self._view.send(0, release),
            *self._group.role.tell(now_ns),
            Note("lease_released", (("group", index), ("epoch", move.epoch))),
        ]

    def _wait_target(self, move: _Move, now_ns: int) -> list[Effect]:
        epoch = self._group.role.epoch
        if epoch > move.epoch:
            moved = epoch_node(epoch) == move.target
            reason = "" if moved else f"node {epoch_node(epoch)} took it instead"
            return self._end(move, moved=moved, released=True, epoch=epoch, reason=reason)
        if now_ns < move.until_ns:
            return []
        reason = f"node {move.target} did not take the lease in time; somebody claims it by rank"
        return self._end(move, moved=False, released=True, epoch=0, reason=reason)

    def _end(
        self, move: _Move, *, moved: bool, released: bool, epoch: int, reason: str
    ) -> list[Effect]:
        self._move = None
        if move.origin is None:
            return []
        return self._answer(
            move.origin, moved=moved, released=released, epoch=epoch, reason=reason
        )

    def _answer(
        self, origin: MoveOrigin, *, moved: bool, released: bool, epoch: int, reason: str
    ) -> list[Effect]:
        if not origin.node:
            reply = MoveReply(moved=moved, released=released, epoch=epoch, reason=reason)
            return [ReplyMove(origin.token, reply)]
        answer = MoveAnswer(origin.request, moved, released, epoch, reason[:400])
        self._group.answered[origin.node] = answer
        return [self._view.send(origin.node, answer)]

    # ---- a dead segment, a silent syncd ---------------------------------------------------------

    def _watch_segments(self, now_ns: int) -> list[Effect]:
        """Give the group to a fit peer at once when one of its segments is dead here, and when its
        far side answers the peer and not this node, for longer than their checks can differ.

        Only ever to who comes before this node in `claims.rank`, or two nodes would hand the
        group to and fro: to a drained node not for its far side alone, as it would come back."""
        view, group, index = self._view, self._group, self._group.params.index
        dead, held = view.carrier_fault(index), group.proposer.held
        fault = dead or view.upstream_fault(index)
        if not fault or held is None or not held.opened or group.proposer.claim is not None:
            self._worse_since_ns = None
            return []
        heirs = heirs_of(view, group.params, now_ns)
        if dead and heirs:
            view.counters["moves_no_carrier"] += 1
            return self._give(heirs[0], held.epoch, fault, now_ns)
        standing = view.standing
        stays = {*standing.last, *standing.out}
        if view.params.node_id in stays:
            stays = set()
        sound = [n for n in heirs if n not in stays and view.sound(n, index, now_ns)]
        if not sound:
            self._worse_since_ns = None
            return []
        if self._worse_since_ns is None:
            self._worse_since_ns = now_ns
        if now_ns - self._worse_since_ns < group.params.upstream_ns:
            return []
        view.counters["moves_no_upstream"] += 1
        return self._give(sound[0], held.epoch, fault, now_ns)

    def _give(self, node: int, epoch: int, fault: str, now_ns: int) -> list[Effect]:
        view, index = self._view, self._group.params.index
        until_ns = now_ns + POSITION_BEATS * view.params.heartbeat_ns
        reason = f"the group was given to node {node}: {fault}"
        waiting = self.cancel(reason)
        move = _Move(None, node, Step.POSITION, until_ns, epoch=epoch)
        self._move, self._worse_since_ns = move, None
        facts = (("group", index), ("target_id", node), ("why", fault))
        shut: list[Effect] = [*waiting, self._silence(now_ns), Note("move_began", facts)]
        if view.syncd_silent_ns(now_ns):
            return [*shut, *self._release(move, None, now_ns)]
        return [*shut, AskPosition(index, epoch)]

    def _watch_syncd(self, now_ns: int) -> list[Effect]:
        """Give the group to a synced peer when the own syncd has been silent for too long."""
        view, group = self._view, self._group
        held = group.proposer.held
        if held is None or not held.opened or group.proposer.claim is not None:
            self._silent_since_ns = None
            return []
        if not view.syncd_silent_ns(now_ns):
            self._silent_since_ns = None
            return []
        if self._silent_since_ns is None:
            self._silent_since_ns = now_ns
        if now_ns - self._silent_since_ns < SYNCD_SILENT_MS * NS_PER_MS:
            return []
        for node in heirs_of(view, group.params, now_ns):
            self._silent_since_ns = None
            view.counters["moves_syncd_silent"] += 1
            move = _Move(None, node, Step.POSITION, now_ns, epoch=held.epoch)
            self._move = move
            shut = self._silence(now_ns)
            return [shut, *self._release(move, None, now_ns)]
        return []
