"""Asking hafw-leased and hafw-syncd over their Unix datagram sockets, and hafwd over its API.

Every question has a socket of its own, bound to a temporary path in the node's run folder, so
that an answer that comes too late can never be taken for the answer to a later question.
"Down" (nobody has the socket) and "silent" (it is there, but no answer came in time: hung or
stopped) are different answers, and neither is an exception.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

import msgspec
import zmq

from hafw.instance import process_state, running_pid
from hafw.messages import (
    DATAGRAM_BYTES_MAX,
    HeavyWork,
    LeasedStatus,
    MoveReply,
    MoveRequest,
    ResyncReply,
    ResyncRequest,
    Standing,
    StatusRequest,
    SyncdStatus,
    VerifyReply,
    VerifyRequest,
    VotersReply,
    VotersRequest,
    decode_leased,
    decode_syncd,
    encode,
)
from hafw.node.api import Reply, Request, decode_reply
from hafw.node.api import encode as encode_request
from hafw.paths import NodePaths

__all__ = [
    "ASK_S",
    "HAFWD_S",
    "MOVE_MARGIN_S",
    "VERIFY_S",
    "LocalClient",
    "Unavailable",
    "ask_hafwd",
]

ASK_S = 0.5
"""How long a status answer is waited for."""
HAFWD_S = 1.5
"""How long hafwd is waited for: it asks the others, each for `ASK_S`, at once."""
MOVE_MARGIN_S = 5.0
"""Beyond `MoveRequest.wait_s`: the hand-over itself."""

VERIFY_S = 120.0
"""A verification walks through the whole table, twice if need be."""

Answer = TypeVar("Answer")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No answer. `down`: no process has the socket. `silent`: it did not answer in time."""

    state: Literal["down", "silent"]
    reason: str


def ask_hafwd(
    paths: NodePaths, request: Request, timeout_s: float = HAFWD_S
) -> Reply | Unavailable:
    """One request to the hafwd of a node of this machine. Raises PeerError if what answers does
    not speak its API."""
    pid = running_pid(paths, "hafwd")
    if pid is None:
        return Unavailable("down", f"hafwd is not running for {paths.node}")
    if _is_stopped(pid):
        return Unavailable("silent", "the process is stopped (SIGSTOP or a debugger)")
    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(f"ipc://{paths.hafwd_socket}")
            dealer.send(encode_request(request))
            if not dealer.poll(round(timeout_s * 1e3)):
                return Unavailable("silent", f"hafwd did not answer in {timeout_s:g} s")
            return decode_reply(dealer.recv())
    finally:
        context.term()


def _is_stopped(pid: int) -> bool:
    state = process_state(pid)
    return state is not None and state[0] in "Tt"


class LocalClient:
    """Questions to the daemons of one node, blocking and for asyncio alike."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths

    def ask_leased(self, timeout_s: float = ASK_S) -> LeasedStatus | Unavailable:
        return self._ask(self._leased_question(), timeout_s)

    def ask_syncd(self, timeout_s: float = ASK_S) -> SyncdStatus | Unavailable:
        return self._ask(self._syncd_question(), timeout_s)

    def move(self, request: MoveRequest) -> MoveReply | Unavailable:
        """Ask leased for a planned hand-over; returns when it is done or refused."""
        return self._ask(self._move_question(request), request.wait_s + MOVE_MARGIN_S)

    def ask_voters(self, request: VotersRequest) -> VotersReply | Unavailable:
        """Ask leased to let another voter set follow."""
        question = _Question(
            "hafw-leased", self._paths.leased_socket, encode(request), decode_leased, VotersReply
        )
        return self._ask(question, ASK_S)

    def tell_standing(self, standing: Standing) -> bool:
        """See `_tell_leased`."""
        return self._tell_leased(standing)

    def tell_heavy_work(self, for_s: float) -> bool:
        """See `_tell_leased`."""
        return self._tell_leased(HeavyWork(for_s))

    def _tell_leased(self, message: Standing | HeavyWork) -> bool:
        """Without an answer; False if it is not there to hear it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as telling:
            try:
                telling.sendto(encode(message), str(self._paths.leased_socket))
            except OSError:
                return False
        return True

    def verify(self) -> VerifyReply | Unavailable:
        """Ask syncd to compare; returns when it has."""
        return self._ask(self._verify_question(), VERIFY_S)

    def resync(self) -> ResyncReply | Unavailable:
        return self._ask(self._resync_question(), ASK_S)

    async def verify_async(self) -> VerifyReply | Unavailable:
        return await self._ask_async(self._verify_question(), VERIFY_S)

    async def resync_async(self) -> ResyncReply | Unavailable:
        return await self._ask_async(self._resync_question(), ASK_S)

    async def ask_leased_async(self, timeout_s: float = ASK_S) -> LeasedStatus | Unavailable:
        return await self._ask_async(self._leased_question(), timeout_s)

    async def ask_syncd_async(self, timeout_s: float = ASK_S) -> SyncdStatus | Unavailable:
        return await self._ask_async(self._syncd_question(), timeout_s)

    async def move_async(self, request: MoveRequest) -> MoveReply | Unavailable:
        return await self._ask_async(self._move_question(request), request.wait_s + MOVE_MARGIN_S)

    def _leased_question(self) -> _Question[LeasedStatus]:
        return _Question(
            "hafw-leased",
            self._paths.leased_socket,
            encode(StatusRequest()),
            decode_leased,
            LeasedStatus,
        )

    def _syncd_question(self) -> _Question[SyncdStatus]:
        return self._to_syncd(StatusRequest(), SyncdStatus)

    def _verify_question(self) -> _Question[VerifyReply]:
        return self._to_syncd(VerifyRequest(), VerifyReply)

    def _resync_question(self) -> _Question[ResyncReply]:
        return self._to_syncd(ResyncRequest(), ResyncReply)

    def _to_syncd(
        self, request: StatusRequest | VerifyRequest | ResyncRequest, answer: type[Answer]
    ) -> _Question[Answer]:
        path = self._paths.syncd_socket
        return _Question("hafw-syncd", path, encode(request), decode_syncd, answer)

    def _move_question(self, request: MoveRequest) -> _Question[MoveReply]:
        return _Question(
            "hafw-leased", self._paths.leased_socket, encode(request), decode_leased, MoveReply
        )

    def _ask(self, question: _Question[Answer], timeout_s: float) -> Answer | Unavailable:
        deadline = time.monotonic() + timeout_s
        if not question.address.exists():
            return question.down()
        with _Asking(self._paths) as asking:
            unavailable = asking.send(question)
            if unavailable is not None:
                return unavailable
            poll = select.poll()
            poll.register(asking.socket, select.POLLIN)
            while (left_s := deadline - time.monotonic()) > 0:
                if poll.poll(left_s * 1e3):
                    answer = question.decode(asking.socket.recv(DATAGRAM_BYTES_MAX))
                    if answer is not None:
                        return answer
        return question.silent(timeout_s)

    async def _ask_async(
        self, question: _Question[Answer], timeout_s: float
    ) -> Answer | Unavailable:
        loop = asyncio.get_running_loop()
        if not question.address.exists():
            return question.down()
        with _Asking(self._paths) as asking:
            unavailable = asking.send(question)
            if unavailable is not None:
                return unavailable
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        datagram = await loop.sock_recv(asking.socket, DATAGRAM_BYTES_MAX)
                        answer = question.decode(datagram)
                        if answer is not None:
                            return answer
            except TimeoutError:
                return question.silent(timeout_s)


@dataclass(frozen=True, slots=True)
class _Question(Generic[Answer]):
    """One datagram to one daemon, and how its answer is known."""

    daemon: str
    address: Path
    datagram: bytes
    decoder: Callable[[bytes], object]
    kind: type[Answer]

    def decode(self, datagram: bytes) -> Answer | None:
        """None for what is not the answer; it is then waited for until the time is up."""
        try:
            message = self.decoder(datagram)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return message if isinstance(message, self.kind) else None

    def down(self) -> Unavailable:
        return Unavailable("down", f"{self.daemon} is not running: nobody has {self.address}")

    def silent(self, timeout_s: float) -> Unavailable:
        return Unavailable(
            "silent", f"{self.daemon} has its socket open but did not answer in {timeout_s:g} s"
        )


class _Asking:
    """A datagram socket with an address to answer to, gone afterwards."""

    def __init__(self, paths: NodePaths) -> None:
        self._path = paths.run / f".ask-{os.getpid()}-{next(_numbers)}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)

    def send(self, question: _Question[Answer]) -> Unavailable | None:
        try:
            self.socket.bind(str(self._path))
        except OSError as error:  # /run is full, or the folder went away.
            return Unavailable("silent", f"cannot bind {self._path}: {error.strerror}")
        try:
            self.socket.sendto(question.datagram, str(question.address))
        except (FileNotFoundError, ConnectionRefusedError):
            return question.down()
        except BlockingIOError:
            return Unavailable(
                "silent", f"{question.daemon} does not read its socket: the queue is full"
            )
        except OSError as error:
            return Unavailable("silent", f"{question.daemon}: {error.strerror}")
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
        self._path.unlink(missing_ok=True)
