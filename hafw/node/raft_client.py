"""Asking hafw-raftd: one connection a question. Shell.

"Down", "silent" and answered as in `hafw.node.client`; blocking, and for asyncio in a thread of
its own, because nothing here may hold up hafwd's loop.
"""

from __future__ import annotations

import asyncio
import socket

import msgspec

from cluster.assignment import Command, encode
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

__all__ = ["PROPOSE_S", "RaftClient"]

PROPOSE_S = 3.0
"""How long the cluster is waited for."""


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
