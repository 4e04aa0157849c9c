"""Asking hafw-raftd: one connection a question. Shell.

"Down", "silent" and answered as in `hafw.node.client`; blocking, and for asyncio in a thread of
its own, because nothing here may hold up hafwd's loop.
"""

from __future__ import annotations

import asyncio
import socket
import time

import msgspec

from cluster.agreed import (
    ClearLosses,
    Command,
    DropVoter,
    SetGroup,
    SetMemberState,
    SetOrder,
    SetVotes,
    State,
    decode_state,
    encode,
)
from cluster.assignment import apply
from hafw.node.client import ASK_S, Unavailable
from hafw.paths import NodePaths
from hafw.raft_messages import (
    PACKET_BYTES_MAX,
    ProposeReply,
    ProposeRequest,
    RaftMessage,
    RaftStatus,
    RaftStatusRequest,
    decode_raft,
    encode_raft,
)

__all__ = ["LEADER_S", "PROPOSE_S", "RaftClient"]

PROPOSE_S = 3.0
"""How long the cluster is waited for."""
LEADER_S = 3.0
"""How long Raft is waited for to have a leader again: an election takes 0.3 s, more when votes
are split (`cluster.raft_log.ELECTION_S`), and a member that was cut off learns of it last."""
POLL_S = 0.1
_TWICE = ClearLosses | DropVoter | SetGroup | SetMemberState | SetOrder | SetVotes
"""What leaves, said twice, what it left the first time."""


class RaftClient:
    def __init__(self, paths: NodePaths) -> None:
        self._path = paths.raftd_socket

    def status(self, timeout_s: float = ASK_S) -> RaftStatus | Unavailable:
        answer = self._ask(RaftStatusRequest(), timeout_s)
        if isinstance(answer, RaftStatus | Unavailable):
            return answer
        return Unavailable("silent", "hafw-raftd gave another answer")

    def propose(self, command: Command) -> ProposeReply | Unavailable:
        answer = self._ask(ProposeRequest(encode(command)), PROPOSE_S)
        if isinstance(answer, ProposeReply | Unavailable):
            return answer
        return Unavailable("silent", "hafw-raftd gave another answer")

    def agree(self, command: Command) -> ProposeReply | Unavailable:
        """`propose`, and again for `LEADER_S` while Raft's leader changes: if nothing was changed,
        or if that is not known, the command may be said twice, and nobody said another since."""
        deadline = time.monotonic() + LEADER_S
        before = self._agreed()
        known = True
        while True:
            answer = self.propose(command)
            if isinstance(answer, Unavailable):
                return answer if known else Unavailable("silent", answer.reason)
            if answer.ok:
                return answer
            if not answer.known:
                known = False
                done = self._done(before, command)
                if done:
                    return ProposeReply(True)
                again = done is False and isinstance(command, _TWICE)
            else:
                again = answer.again
            if not again or time.monotonic() >= deadline:
                return msgspec.structs.replace(answer, known=known)
            time.sleep(POLL_S)

    def _agreed(self) -> State | None:
        """What operators agree on, as this raftd knows it; nobody else changes that."""
        answer = self.status()
        if isinstance(answer, Unavailable):
            return None
        return msgspec.structs.replace(decode_state(answer.state), history=(), damped=())

    def _done(self, before: State | None, command: Command) -> bool | None:
        """Whether the command in doubt was carried out, as far as this raftd knows; None: somebody
        else changed something meanwhile, or it cannot be told."""
        now = self._agreed()
        if now is None or before is None:
            return None
        if now == before:
            return False
        after, refusal = apply(now, command)
        return True if after == now and not refusal else None

    async def status_async(self) -> RaftStatus | Unavailable:
        return await asyncio.to_thread(self.status)

    async def propose_async(self, command: Command) -> ProposeReply | Unavailable:
        return await asyncio.to_thread(self.propose, command)

    def _ask(self, message: RaftMessage, timeout_s: float) -> RaftMessage | Unavailable:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_UNIX, kind) as asking:
            asking.settimeout(timeout_s)
            try:
                asking.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                reason = f"hafw-raftd is not running: nobody has {self._path}"
                return Unavailable("down", reason)
            except OSError as error:
                return Unavailable("silent", f"hafw-raftd: {error.strerror or error}")
            try:
                asking.send(encode_raft(message))
                packet = asking.recv(PACKET_BYTES_MAX)
            except OSError:
                return Unavailable("silent", f"hafw-raftd did not answer in {timeout_s:g} s")
        try:
            return decode_raft(packet)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Unavailable("silent", "hafw-raftd closed the connection without an answer")
