"""Moves that are asked of a node: begun here, forwarded to the holder, or forced to this node.

A move is asked of any node; the one that is not the holder forwards it and repeats that until the
answer is there. A *forced* move is asked of its target: it claims the group as soon as it is
free, whoever ranks above and synced or not, and has the holder, if there is one, give it up. What
is never overridden: the votes of a majority, a running lease of a node that is not heard, and
maintenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.handover import WAIT_MS_MAX, MoveOrigin
from cluster.heartbeat import MoveAnswer, MoveAsk
from cluster.lease_types import NS_PER_MS, Effect, Note, ReplyMove
from cluster.view import NodeView
from hafw.messages import MoveReply, MoveRequest

if TYPE_CHECKING:
    from cluster.lease_group import GroupCore

__all__ = ["FORCE_MS", "Asks"]

ASK_GRACE_MS = 10_000
"""A forwarded move is waited for this long beyond its own `wait_s`."""
ASKS_MAX = 16
FORCE_MS = 4000
"""How long a forced claim may take: a restarted voter's silence (2 s) and some leases."""


@dataclass(slots=True)
class _Ask:
    token: str
    holder: int
    message: MoveAsk
    until_ns: int


class Asks:
    """Of one node, for all its groups."""

    def __init__(self, view: NodeView, groups: Mapping[int, GroupCore]) -> None:
        self._view = view
        self._groups = groups
        self._asks: dict[int, _Ask] = {}
        self._forced: dict[int, tuple[str, int]] = {}

    def on_move(self, token: str, request: MoveRequest, now_ns: int) -> list[Effect]:
        """A local request."""
        group = self._groups.get(request.group)
        if group is None:
            return self._refuse(token, f"there is no group {request.group}")
        if not 0 <= request.wait_s * 1000 <= WAIT_MS_MAX:  # A NaN is outside, too.
            return self._refuse(token, f"wait_s is 0 to {WAIT_MS_MAX // 1000} seconds")
        if request.force:
            return self._on_force(token, request, group, now_ns)
        wait_ms = int(request.wait_s * 1000)
        if group.active:
            return group.handover.start(
                MoveOrigin(token=token), request.target_id, wait_ms, now_ns
            )
        holder = group.role.holder
        if not holder or holder == self._view.params.node_id:
            return self._refuse(token, "no node is known to hold the group now")
        if not self._view.alive(holder, now_ns):
            return self._refuse(token, f"node {holder} holds the group and is not heard")
        return self._forward(token, holder, request, now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        """With each heartbeat."""
        effects: list[Effect] = []
        for number, ask in list(self._asks.items()):
            if now_ns < ask.until_ns:
                effects.append(self._view.send(ask.holder, ask.message))
            else:
                del self._asks[number]
                effects += self._refuse(ask.token, f"holder {ask.holder} did not answer")
        for index, (token, until_ns) in list(self._forced.items()):
            group = self._groups[index]
            if group.active:
                reply = MoveReply(moved=True, released=True, epoch=group.role.epoch, reason="")
                effects.append(ReplyMove(token, reply))
            elif now_ns >= until_ns:
                effects += self._refuse(
                    token, self._why_not(index, now_ns) or _not_won(group, now_ns)
                )
            else:
                continue
            del self._forced[index]
        return effects

    def on_ask(self, sender: int, ask: MoveAsk, now_ns: int) -> list[Effect]:
        """Another node forwards."""
        group = self._groups.get(ask.group)
        if group is None:
            reason = f"there is no group {ask.group}"
            return [self._view.send(sender, MoveAnswer(ask.request, False, False, 0, reason))]
        answered = group.answered.get(sender)
        if answered is not None and answered.request == ask.request:
            return [self._view.send(sender, answered)]
        origin = MoveOrigin(node=sender, request=ask.request)
        if group.handover.serves(origin):
            return []
        force = ask.force and ask.target == sender
        return group.handover.start(origin, ask.target, ask.wait_ms, now_ns, force=force)

    def on_answer(self, sender: int, answer: MoveAnswer) -> list[Effect]:
        ask = self._asks.get(answer.request)
        if ask is None or ask.holder != sender:
            return []
        del self._asks[answer.request]
        if ask.message.force and not answer.moved and not answer.released:
            self._groups[ask.message.group].force(0)
        reply = MoveReply(
            moved=answer.moved,
            released=answer.released,
            epoch=answer.epoch,
            reason=answer.reason,
        )
        return [ReplyMove(ask.token, reply)]

    # ---- parts --------------------------------------------------------------------------------

    def _on_force(
        self, token: str, request: MoveRequest, group: GroupCore, now_ns: int
    ) -> list[Effect]:
        view, own = self._view, self._view.params.node_id
        refusal = self._why_not(group.params.index, now_ns)
        if request.target_id != own:
            refusal = f"a group is forced to a node by that node: ask node {request.target_id}"
        elif own not in group.params.order:
            refusal = "this node is not a candidate of this group"
        elif group.active:
            refusal = "this node is already the holder"
        elif group.params.index in self._forced:
            refusal = "the group is being forced to this node already"
        if refusal:
            return self._refuse(token, refusal)
        until_ns = now_ns + FORCE_MS * NS_PER_MS
        view.counters["moves_forced"] += 1
        note = Note("force_asked", (("group", group.params.index), ("to", own)))
        group.force(until_ns)
        holder = group.role.holder
        if holder and holder != own and view.alive(holder, now_ns):
            return [note, *self._forward(token, holder, request, now_ns)]
        self._forced[group.params.index] = (token, until_ns)
        return [note]

    def _forward(self, token: str, holder: int, request: MoveRequest, now_ns: int) -> list[Effect]:
        if not 0 <= request.target_id < 1 << 8:
            return self._refuse(token, f"there is no node {request.target_id}")
        if len(self._asks) >= ASKS_MAX:
            return self._refuse(token, "too many moves are being forwarded")
        number = self._view.next_request()
        wait_ms = int(request.wait_s * 1000)
        ask = MoveAsk(number, request.group, request.target_id, wait_ms, request.force)
        until_ns = now_ns + (wait_ms + ASK_GRACE_MS) * NS_PER_MS
        self._asks[number] = _Ask(token, holder, ask, until_ns)
        return [self._view.send(holder, ask)]

    def _why_not(self, index: int, now_ns: int) -> str:
        """Why this node could claim nothing, whatever is forced."""
        view = self._view
        if view.params.node_id in view.standing.out:
            return "this node is in maintenance or has left: hafwctl node online first"
        if not view.able():
            return "this node cannot carry groups now (stopping, or its era file fails)"
        if not view.voters_ready(index, now_ns):
            silent = [
                node
                for node, peer in sorted(view.peers.items())
                if not view.alive(node, now_ns) or peer.beat is None or not peer.beat.votes
            ]
            return (
                f"no majority of the voters may vote and is heard (silent, or just started: nodes "
                f"{', '.join(map(str, silent)) or 'none'}), and without it two nodes could be "
                "ACTIVE; nothing overrides that"
            )
        return ""

    def _refuse(self, token: str, reason: str) -> list[Effect]:
        self._view.counters["moves_refused"] += 1
        reply = MoveReply(moved=False, released=False, epoch=0, reason=reason)
        return [ReplyMove(token, reply)]


def _not_won(group: GroupCore, now_ns: int) -> str:
    running = group.acceptor.running_for(now_ns)
    if running:
        return f"the lease of node {running} is still running"
    return f"no majority granted a lease within {FORCE_MS / 1000:g} s"
