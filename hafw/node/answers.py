"""What hafwd's API answers: status gathered now, policy commands, moves relayed to leased."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

from cluster.assignment import decode_state
from hafw.errors import RefusedError
from hafw.human import format_epoch
from hafw.instance import process_state
from hafw.messages import MoveReply, MoveRequest, ResyncReply, SyncdStatus, VerifyReply
from hafw.node import api
from hafw.node.client import Unavailable
from hafw.node.names import named
from hafw.node.raft_relay import planned_move
from hafw.node.raft_rows import target_problem
from hafw.node.status import SYNC_DISABLED, daemon_facts, now_ns, read_devices, read_gates
from hafw.node.status_rows import DaemonFacts, NodeFacts, build_tables
from hafw.node.supervisor import ChildReport, ChildState
from hafw.node.sync_rows import resynced, verdicts

if TYPE_CHECKING:
    from hafw.node.node import Node

__all__ = ["WAIT_S_MAX", "Answers"]

WAIT_S_MAX = 60.0
"""Longest wait of a planned move for its target to be synced."""


Answer = TypeVar("Answer", VerifyReply, ResyncReply)


def _answered(answer: Answer | Unavailable) -> Answer:
    if isinstance(answer, Unavailable):
        raise RefusedError(answer.reason)
    return answer


class Answers:
    """The handler of `hafw.node.api.ApiServer`. Raises HafwError to refuse."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def answer(self, request: api.Request) -> dict[str, Any]:
        node = self._node
        match request:
            case api.Ping():
                return {"node": node.name, "pid": os.getpid()}
            case api.Status():
                return build_tables(node.config, await self._facts())
            case api.PolicyShow():
                self._require_gateway()
                tables = build_tables(node.config, await self._facts())
                return dict(tables["policy"][0])
            case api.PolicyApply(file):
                return await self._apply(file)
            case api.Move():
                return await self._move(request)
            case api.SyncVerify():
                self._require_syncd()
                return verdicts(node.config, _answered(await node.client.verify_async()))
            case api.SyncResync():
                self._require_syncd()
                return resynced(node.config, _answered(await node.client.resync_async()))
            case _:
                assert_never(request)

    async def _apply(self, file: str) -> dict[str, Any]:
        node = self._node
        self._require_gateway()
        record = await node.policy.load(Path(file) if file else None, by_hand=True)
        node.policy_decided = True
        node.decide()
        return {
            "node": node.name,
            "hash": record.hash,
            "generation": record.generation,
            "rules": record.rules,
            "file": record.file,
            "seconds": record.seconds,
        }

    async def _move(self, request: api.Move) -> dict[str, Any]:
        node = self._node
        group = node.config.groups.get(request.group)
        if group is None:
            known = ", ".join(node.config.groups)
            raise RefusedError(f"no group is named {request.group}; there are {known}")
        if request.target not in group.order:
            raise RefusedError(
                f"{request.target} is no candidate for group {request.group}; its order is "
                f"{', '.join(group.order)}"
            )
        if not 0 <= request.wait_s <= WAIT_S_MAX:
            raise RefusedError(f"wait must be 0 to {WAIT_S_MAX:g} s, not {request.wait_s:g}")
        if refusal := await self._state_refusal(request):
            raise RefusedError(refusal)
        target_id = node.config.nodes[request.target].id
        answer = await node.client.move_async(
            MoveRequest(group.index, target_id, request.wait_s, force=request.force)
        )
        if isinstance(answer, Unavailable):
            doubt = "" if answer.state == "down" else "; whether the group moves is not known"
            raise RefusedError(answer.reason + doubt)
        if answer.moved:
            await self._record(request, answer)
        return {
            "moved": answer.moved,
            "released": answer.released,
            "epoch": format_epoch(answer.epoch),
            "reason": named(node.config, answer.reason),
        }

    async def _state_refusal(self, request: api.Move) -> str:
        """Why the agreed state of the target speaks against it. Without Raft nothing does: leased
        knows itself whether it is in maintenance."""
        raft = await self._node.raft.status_async()
        if isinstance(raft, Unavailable):
            return ""
        return target_problem(decode_state(raft.state), request.target, force=request.force)

    async def _record(self, request: api.Move, answer: MoveReply) -> None:
        """The history says who asked. Without Raft the move is done all the same."""
        node = self._node
        raft = await node.raft.status_async()
        if isinstance(raft, Unavailable) or raft.read_only:
            return
        state = decode_state(raft.state)
        what = "planned: hafwctl group move"
        if request.force:
            what = "forced: hafwctl group force-active"
        why = f"{what} on {node.name}"
        await node.raft.propose_async(
            planned_move(
                node.config, state, answer,
                group=request.group, target=request.target, why=why,
            )
        )  # fmt: skip

    def _require_syncd(self) -> None:
        node = self._node
        if not node.is_gateway:
            raise RefusedError(f"{node.name} is a witness: it replicates nothing")
        if not node.wants_syncd:
            raise RefusedError(f"hafw-syncd is off on {node.name}: sync.enabled is false")

    def _require_gateway(self) -> None:
        if not self._node.is_gateway:
            raise RefusedError(f"{self._node.name} is a witness: it has no policy")

    # ---- status ----------------------------------------------------------------------------

    async def _facts(self) -> NodeFacts:
        node = self._node
        reports = node.reports()
        leased, syncd, raft = await asyncio.gather(
            node.client.ask_leased_async(), self._ask_syncd_if_wanted(), node.raft.status_async()
        )
        own = process_state(os.getpid())
        daemons = [DaemonFacts("hafwd", "up", os.getpid(), None if own is None else own[1])]
        daemons.append(self._child_facts(reports["leased"], leased))
        if node.is_gateway:
            daemons.append(
                self._child_facts(reports["syncd"], syncd) if node.wants_syncd else SYNC_DISABLED
            )
        daemons.append(self._child_facts(reports["raftd"], raft))
        alarms = node.alarms()
        return NodeFacts(
            node=node.name,
            now_ns=now_ns(),
            assembled_by="hafwd",
            daemons=daemons,
            leased=None if isinstance(leased, Unavailable) else leased,
            syncd=None if isinstance(syncd, Unavailable) else syncd,
            raft=None if isinstance(raft, Unavailable) else raft,
            gates=read_gates(node.config, node.name, node.paths, alarms),
            devices=read_devices(node.config, node.name, node.paths),
            policy=node.policy.facts() if node.is_gateway else None,
            alarms=alarms,
            notes=node.notes(),
            counters={
                **node.counters(),
                "api_answered": node.api.answered,
                "api_refused": node.api.refused,
            },
        )

    async def _ask_syncd_if_wanted(self) -> SyncdStatus | Unavailable | None:
        node = self._node
        return await node.client.ask_syncd_async() if node.wants_syncd else None

    def _child_facts(self, report: ChildReport, answer: object) -> DaemonFacts:
        facts = daemon_facts(
            self._node.paths,
            report.name,
            answer,
            restarts=report.restarts,
            reason_down=report.last_exit,
        )
        if report.state is ChildState.STOPPING and facts.state != "down":
            return DaemonFacts(
                facts.daemon, "stopping", facts.pid, facts.up_s, facts.restarts, facts.reason
            )
        return facts
