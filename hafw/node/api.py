"""hafwd's API: msgpack over a ZeroMQ ROUTER on ``ipc://RUN/hafwd.sock``.

One request a message: a struct of this module, tagged by its class name; one `Reply` back. A
message that is no request, and a request that is refused, get a `Reply` that says why. Bounds:
messages of at most `MESSAGE_BYTES_MAX`, `REQUESTS_MAX` at work at a time; what comes beyond that
is answered "busy" and not queued. The socket lies in a folder that only root may enter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from hafw.errors import HafwError, PeerError
from hafw.paths import NodePaths

__all__ = [
    "MESSAGE_BYTES_MAX",
    "REQUESTS_MAX",
    "ApiServer",
    "Move",
    "Ping",
    "PolicyApply",
    "PolicyShow",
    "Reply",
    "Request",
    "Status",
    "SyncResync",
    "SyncVerify",
    "decode_reply",
    "decode_request",
    "encode",
]

MESSAGE_BYTES_MAX = 65536
REQUESTS_MAX = 16


class _Request(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base: tagged by class name."""


class Ping(_Request, frozen=True):
    """Answered with ``node`` and ``pid``."""


class Status(_Request, frozen=True):
    """Answered with the tables of `hafw.node.status_rows`, gathered now."""


class PolicyShow(_Request, frozen=True):
    """Answered with the row of the table ``policy``."""


class PolicyApply(_Request, frozen=True):
    """Load the policy file (absolute path), all or nothing; empty: the configured one."""

    file: str


class Move(_Request, frozen=True):
    """Planned hand-over of a group that this node holds to another node, both by name. `force`:
    asked of the target's hafwd (`hafw.messages.MoveRequest`)."""

    group: str
    target: str
    wait_s: float
    force: bool = False


class SyncVerify(_Request, frozen=True):
    """Answered with ``groups``: a `hafw.messages.SyncVerdict` for each, with the group's name."""


class SyncResync(_Request, frozen=True):
    """Answered with ``groups`` (names) that are fetched again, and ``refused`` (name: why not)."""


Request = Ping | Status | PolicyShow | PolicyApply | Move | SyncVerify | SyncResync


class Reply(msgspec.Struct, frozen=True):
    """`error` is empty if `ok`; one line for a person otherwise."""

    ok: bool
    error: str = ""
    result: dict[str, Any] = {}


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    return _encoder.encode(message)


def decode_request(message: bytes) -> Request:
    """Raises PeerError."""
    try:
        request: Request = _request_decoder.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not a request of hafwd's API: {error}") from None
    return request


def decode_reply(message: bytes) -> Reply:
    """Raises PeerError."""
    try:
        return _reply_decoder.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not a reply of hafwd's API: {error}") from None


Handler = Callable[[Request], Awaitable[dict[str, Any]]]


class ApiServer:
    """Answers requests with `handler`, which raises HafwError to refuse one."""

    def __init__(self, paths: NodePaths, handler: Handler) -> None:
        self._handler = handler
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        # The caller holds hafwd's lock: a socket file found here has no owner; bind unlinks it.
        self._socket.bind(f"ipc://{paths.hafwd_socket}")
        self._tasks = 0
        self.answered = 0
        self.refused = 0

    async def serve(self) -> None:
        """Until cancelled. A bug in the handler ends it: `AssertionError` is never caught."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                frames: list[bytes] = await self._socket.recv_multipart()
                if len(frames) != 2:
                    if frames:
                        await self._answer(frames[0], _refusal("a request is one frame"))
                    continue
                identity, message = frames
                if self._tasks >= REQUESTS_MAX:
                    await self._answer(identity, _refusal(f"busy: {REQUESTS_MAX} requests open"))
                    continue
                self._tasks += 1
                tasks.create_task(self._handle(identity, message))

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    async def _handle(self, identity: bytes, message: bytes) -> None:
        try:
            reply = Reply(ok=True, result=await self._handler(decode_request(message)))
        except HafwError as error:
            reply = _refusal(str(error))
        finally:
            self._tasks -= 1
        await self._answer(identity, reply)

    async def _answer(self, identity: bytes, reply: Reply) -> None:
        if reply.ok:
            self.answered += 1
        else:
            self.refused += 1
        # Not waited for: ROUTER drops what is for a client that is gone or does not read.
        with suppress(zmq.Again, zmq.ZMQError):
            await self._socket.send_multipart([identity, encode(reply)], zmq.DONTWAIT)


def _refusal(text: str) -> Reply:
    return Reply(ok=False, error=text)
