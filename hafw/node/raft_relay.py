"""Between leased, which knows nothing of Raft, and raftd, which must not reach leased. hafwd's.

Up: the groups that this node has taken, and why it thinks so. Each look compares the two; a take
that the history does not have is reported by the node that took it, and again with the next look
until a majority has it. Without a Raft leader nothing is lost but takes of one holder that another
follows before there is one again.

Down: what was agreed on that ranks candidates, at each look, and into a file for the next leased;
the moves that follow from it (`hafw.node.mover`), which only the holder makes; and the next step
of the voter set (`hafw.node.voters`), which hafwd beside the Raft leader asks for.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from cluster.assignment import DampedNode, Move, RecordDamped, RecordMove, State, decode_state
from cluster.standing import standing_of, write_standing
from hafw.config.model import ClusterConfig
from hafw.errors import HafwError
from hafw.messages import DampedStatus, LeasedStatus, MoveReply, MoveRequest, Standing
from hafw.node.client import LocalClient, Unavailable
from hafw.node.mover import Mover, Wish
from hafw.node.raft_client import RaftClient
from hafw.node.voters import VoterKeeper
from hafw.paths import NodePaths
from hafw.raft_messages import RaftStatus

__all__ = ["RaftRelay", "newly_damped", "planned_move", "unrecorded"]


def unrecorded(
    config: ClusterConfig, leased: LeasedStatus, raft: RaftStatus, *, now_s: float | None = None
) -> list[RecordMove]:
    """The takes of this node that the history lacks; none while Raft is read-only."""
    if raft.read_only:
        return []
    state = decode_state(raft.state)
    at_s = time.time() if now_s is None else now_s
    found = []
    for group in leased.groups:
        if not group.active:
            continue
        name = next((n for n, g in config.groups.items() if g.index == group.group), None)
        known = [move for move in state.history if move.group == name]
        if name is None or any(move.epoch == group.epoch for move in known):
            continue
        before = max(
            (move for move in known if move.epoch < group.epoch),
            key=lambda move: move.epoch,
            default=None,
        )
        from_id = 0 if before is None else before.to_id
        why = _why(config, leased, from_id)
        found.append(
            RecordMove(Move(name, group.epoch, from_id, leased.node_id, round(at_s, 3), why))
        )
    return found


def _why(config: ClusterConfig, leased: LeasedStatus, from_id: int) -> str:
    """A guess from what leased hears now; a planned move is reported by who asked for it."""
    if from_id == 0:
        return "nobody is known to have held it before"
    if from_id == leased.node_id:
        return "claimed anew by its holder"
    peer = next((peer for peer in leased.peers if peer.node_id == from_id), None)
    name = config.node_name(from_id)
    if peer is None or not peer.alive:
        return f"{name} is silent on every link and segment"
    return f"{name} let it go and is alive"


def planned_move(
    config: ClusterConfig,
    state: State,
    reply: MoveReply,
    *,
    group: str,
    target: str,
    why: str,
    now_s: float | None = None,
) -> RecordMove:
    """A hand-over that was asked for, by a person or by what was agreed on, and that was done."""
    earlier = [m for m in state.history if m.group == group and m.epoch < reply.epoch]
    from_id = max(earlier, key=lambda m: m.epoch).to_id if earlier else 0
    at_s = time.time() if now_s is None else now_s
    to_id = config.nodes[target].id
    return RecordMove(
        Move(group, reply.epoch, from_id, to_id, round(at_s, 3), why[:120], planned=True)
    )


def newly_damped(
    config: ClusterConfig,
    leased: LeasedStatus,
    before: list[DampedStatus],
    *,
    now_s: float | None = None,
) -> list[RecordDamped]:
    """What the holder's leased has counted since it damped the nodes of `before`."""
    known = {(at.group, at.node_id): at.losses for at in before}
    names = {group.index: name for name, group in config.groups.items()}
    held = {group.group for group in leased.groups if group.active}
    at_s = round(time.time() if now_s is None else now_s, 3)
    return [
        RecordDamped(DampedNode(names[at.group], at.node_id, at.losses, at_s, at.why[:120]))
        for at in leased.damped
        if at.group in held and at.losses > known.get((at.group, at.node_id), 0)
    ]


class RaftRelay:
    """Of one node."""

    def __init__(
        self,
        config: ClusterConfig,
        node: str,
        client: LocalClient,
        raft: RaftClient,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._config, self._node, self._client, self._raft = config, node, client, raft
        self._log = log
        self._file = NodePaths(node).standing
        self._written: Standing | None = None
        self._file_error = ""
        self.mover = Mover(config, node)
        self._damped: list[DampedStatus] = []
        self._voters = VoterKeeper()
        self.moved = self.refused = 0

    async def look(self, leased: LeasedStatus, raft: RaftStatus) -> None:
        """Both answered just now."""
        for taken in unrecorded(self._config, leased, raft):
            await self._raft.propose_async(taken)  # Refused or lost: the next look.
        if not raft.read_only:
            for damped in newly_damped(self._config, leased, self._damped):
                await self._raft.propose_async(damped)
            self._damped = leased.damped
        state = decode_state(raft.state)
        if not state.members:
            return  # A cluster that has never had a leader agrees on nothing.
        standing = standing_of(state)
        self._client.tell_standing(standing)
        if standing != self._written:
            await asyncio.to_thread(self._write, standing)
        await self._change_voters(leased, state, leads=raft.role == "leader" and raft.quorum)
        for wish in self.mover.observe(leased, state, now=time.monotonic()):
            await self._move(wish, state)

    def alarms(self) -> list[str]:
        alarms = [
            f"group {name} should leave this node and cannot: {why}"
            for name, why in self.mover.stuck.items()
        ]
        if self._file_error:
            alarms.append(
                f"what Raft agreed on is not kept for the next start: {self._file_error}"
            )
        return alarms + self._voters.alarms(time.monotonic())

    async def _change_voters(self, leased: LeasedStatus, state: State, *, leads: bool) -> None:
        request = self._voters.observe(leased, state, leads=leads, now=time.monotonic())
        if request is None:
            return
        answer = await asyncio.to_thread(self._client.ask_voters, request)
        reason = answer.reason
        self._log.info("voters_asked", id=request.id, members=request.members, reason=reason)

    def _write(self, standing: Standing) -> None:
        try:
            write_standing(self._file, standing)
        except HafwError as error:
            self._file_error = str(error)
        else:
            self._written, self._file_error = standing, ""

    async def _move(self, wish: Wish, state: State) -> None:
        group = self._config.groups[wish.group]
        request = MoveRequest(
            group=group.index, target_id=self._config.nodes[wish.target].id, wait_s=0.0
        )
        answer = await self._client.move_async(request)
        facts = {"group": wish.group, "target": wish.target, "why": wish.why}
        if isinstance(answer, Unavailable) or not answer.moved:
            self.refused += 1
            released = not isinstance(answer, Unavailable) and answer.released
            now = time.monotonic()
            self.mover.refused(wish.group, answer.reason, now=now, released=released)
            self._log.warning("move_refused", reason=answer.reason, **facts)
            return
        self.moved += 1
        self.mover.done(wish.group, now=time.monotonic())
        self._log.info("moved", **facts)
        await self._raft.propose_async(
            planned_move(
                self._config, state, answer,
                group=wish.group, target=wish.target, why=wish.why,
            )
        )  # fmt: skip
