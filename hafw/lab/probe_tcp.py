"""TCP probes: echo (steady or idle until asked) and paced streams, both checked. Shell."""

from __future__ import annotations

import errno
import select
import socket

from hafw.lab.probe_flows import MS, BaseFlow, FlowSpec, error_name, family_of
from hafw.lab.probe_loop import Loop, now_ns
from hafw.lab.probe_stream import (
    ANSWER,
    FRAME_BYTES,
    REQUEST,
    Frame,
    Hello,
    HelloKind,
    StreamCheck,
    decode_frame,
    encode_frame,
    encode_hello,
    stream_slice,
)

__all__ = [
    "BURST_FRAMES",
    "READ_BYTES",
    "EchoFlow",
    "StreamFlow",
    "StreamSource",
    "stream_resolution_ns",
    "tune_receiver",
]

BURST_FRAMES = 64
"""Frames of one exchange of an idle flow."""
SEND_BUFFER_BYTES = 1 << 20
"""A stream keeps this much written and not yet delivered: that is what is in flight at a cut."""
READ_BYTES = 128 * 1024
_RECEIVE_LOW_WATER_BYTES = 8192
_SO_SNDBUFFORCE = 32
_SO_MAX_PACING_RATE = 47
_RESOLUTION_NS = 2 * MS


class TcpFlow(BaseFlow):
    """A TCP connection: opened without blocking, its hello sent first."""

    kind: HelloKind = HelloKind.ECHO

    def __init__(self, loop: Loop, spec: FlowSpec, resolution_ns: int) -> None:
        sock = socket.socket(family_of(spec), socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((spec.local, 0))
        super().__init__(loop, spec, sock, resolution_ns)
        code = sock.connect_ex((spec.remote, spec.port))
        if code not in (0, errno.EINPROGRESS):
            self._fail(errno.errorcode.get(code, str(code)))
            return
        loop.watch(self._fd, self._on_event, write=True)

    def tick(self, now: int) -> None:
        """Only echo flows have a rhythm."""

    def on_open(self) -> None:
        """The connection stands and the hello is sent."""

    def on_octets(self, octets: bytes) -> None:
        """Something was received."""
        self._record.mark_wrong(f"{len(octets)} bytes that nobody asked for")

    def on_writable(self) -> None:
        """Only sources write when they can."""

    def _on_event(self, mask: int) -> None:
        try:
            if self._state == "connecting":
                self._finish_connect()
                return
            if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                octets = self._socket.recv(READ_BYTES)
                if not octets:
                    self._fail("closed by the other side")
                    return
                self.on_octets(octets)
            if mask & select.EPOLLOUT and self._state == "open":
                self.on_writable()
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error_name(error))

    def _finish_connect(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(errno.errorcode.get(code, str(code)))
            return
        self._state = "open"
        self._opened_ns = now_ns()
        spec = self.spec
        hello = Hello(self.kind, spec.flow, spec.salt, spec.octets_s)
        self._socket.send(encode_hello(hello))
        self._loop.watch(self._fd, self._on_event)
        self.on_open()


class EchoFlow(TcpFlow):
    """Frames, one outstanding; every `interval_ms`, or `BURST_FRAMES` when asked (interval 0)."""

    def __init__(self, loop: Loop, spec: FlowSpec) -> None:
        self._buffer = b""
        self._waiting = False
        self._burst = BURST_FRAMES if spec.interval_ms == 0 else 0
        resolution_ns = max(3 * spec.interval_ms * MS // 2, _RESOLUTION_NS)
        super().__init__(loop, spec, resolution_ns)

    def tick(self, now: int) -> None:
        if (
            self.spec.interval_ms
            and self._state == "open"
            and self._due(now)
            and not self._waiting
        ):
            self._ask()

    def on_open(self) -> None:
        if self._burst:
            self._ask()

    def exchange(self) -> None:
        if self.spec.interval_ms == 0 and self._state == "open" and not self._burst:
            self._burst = BURST_FRAMES
            self._ask()

    def on_octets(self, octets: bytes) -> None:
        self._buffer += octets
        if len(self._buffer) < FRAME_BYTES:
            return
        frame = decode_frame(ANSWER, self._buffer[:FRAME_BYTES])
        if frame is None or frame.flow != self.spec.flow or frame.seq != self._sent - 1:
            self._record.mark_wrong(f"answer {self._sent - 1} has wrong content")
            self._fail("wrong content")
            return
        self._buffer = self._buffer[FRAME_BYTES:]
        self._waiting = False
        self._record.right(now_ns(), FRAME_BYTES)
        if self._burst:
            self._burst -= 1
            if self._burst:
                self._ask()

    def _ask(self) -> None:
        frame = encode_frame(REQUEST, Frame(self.spec.flow, self._sent, now_ns()))
        self._sent += 1
        self._waiting = True
        try:
            self._socket.send(frame)
        except OSError as error:
            self._fail(error_name(error))


class StreamSource:
    """Writes the stream of a salt into a socket as it takes it, paced by the kernel."""

    def __init__(self, sock: socket.socket, salt: int, octets_s: int) -> None:
        self._socket = sock
        self._salt = salt
        self.written = 0
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES // 2)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, octets_s)

    def write(self) -> None:
        """Raises OSError as the socket does, except for a full buffer."""
        try:
            self.written += self._socket.send(stream_slice(self._salt, self.written, READ_BYTES))
        except BlockingIOError:
            return


def tune_receiver(sock: socket.socket) -> None:
    """Wake for pieces that are worth it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _RECEIVE_LOW_WATER_BYTES)


class StreamFlow(TcpFlow):
    """A paced stream, up (this side writes) or down (this side checks)."""

    def __init__(self, loop: Loop, spec: FlowSpec) -> None:
        self.kind = HelloKind.UP if spec.kind == "tcp-up" else HelloKind.DOWN
        self._source: StreamSource | None = None
        self._check = StreamCheck(spec.salt)
        super().__init__(loop, spec, stream_resolution_ns(spec.octets_s))

    def on_open(self) -> None:
        if self.kind is HelloKind.UP:
            self._source = StreamSource(self._socket, self.spec.salt, self.spec.octets_s)
            self._loop.watch(self._fd, self._on_event, write=True)
        else:
            tune_receiver(self._socket)

    def on_writable(self) -> None:
        if self._source is not None:
            self._source.write()
            self._written = self._source.written

    def on_octets(self, octets: bytes) -> None:
        if self.kind is HelloKind.UP:
            super().on_octets(octets)
            return
        wrong = self._check.feed(octets)
        if wrong:
            self._record.mark_wrong(wrong)
            self._fail("wrong content")
        else:
            self._record.right(now_ns(), len(octets))


def stream_resolution_ns(octets_s: int) -> int:
    """A paced stream arrives in pieces of up to 64 KiB (net/ipv4/tcp_output.c, tcp_tso_autosize:
    the shorter the round trip, the longer the segments): up to one and a half is its rhythm."""
    return max(10 * MS, 3 * 65536 * 1_000_000_000 // (2 * max(octets_s, 1)))
