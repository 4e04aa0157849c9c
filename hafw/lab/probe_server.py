"""The accepting side of probe flows: answers UDP frames, echoes, swallows or produces streams.

It looks at who is talking: a peer address that is not one of those expected (the WAN VIP, behind
SNAT) is wrong, is never answered, and is reported. Shell.
"""

from __future__ import annotations

import select
import socket

import msgspec

from hafw.lab.probe_datagrams import RESOLUTION_NS
from hafw.lab.probe_flows import error_name
from hafw.lab.probe_loop import Loop, now_ns
from hafw.lab.probe_record import FlowReport, Record
from hafw.lab.probe_stream import (
    ANSWER,
    FRAME_BYTES,
    HELLO_BYTES,
    REQUEST,
    Hello,
    HelloKind,
    StreamCheck,
    decode_frame,
    decode_hello,
    encode_frame,
)
from hafw.lab.probe_tcp import READ_BYTES, StreamSource, stream_resolution_ns, tune_receiver

__all__ = ["Accepted", "DatagramServer", "TcpServer"]

_ACCEPTED_MAX = 256
"""Connections of one server; one more is refused by closing it."""


class DatagramServer:
    """Answers right frames from expected peers. One UDP socket."""

    def __init__(self, loop: Loop, address: str, port: int, peers: frozenset[str]) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._loop = loop
        self._peers = peers
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((address, port))
        self._records: dict[int, Record] = {}
        self._strangers = Record(RESOLUTION_NS)
        loop.watch(self._socket.fileno(), self._on_event)

    def reports(self) -> list[FlowReport]:
        """One per flow seen; flow 0 holds what belongs to none."""
        records = {0: self._strangers, **self._records}
        return [_report(flow, record, "open") for flow, record in records.items()]

    def close(self) -> None:
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _on_event(self, _mask: int) -> None:
        try:
            octets, peer = self._socket.recvfrom(2048)
        except OSError:
            return
        frame = decode_frame(REQUEST, octets)
        if frame is None:
            self._strangers.mark_wrong(f"{len(octets)} bytes from {peer[0]} are no request")
            return
        record = self._records.setdefault(frame.flow, Record(RESOLUTION_NS))
        if peer[0] not in self._peers:
            record.mark_wrong(f"the peer is seen as {peer[0]}, not {_expected(self._peers)}")
            return
        record.right(now_ns(), len(octets))
        try:
            self._socket.sendto(encode_frame(ANSWER, frame), peer)
        except OSError:
            return  # No route or no buffer: a lost answer, which the asker counts.


class Accepted:
    """One accepted connection, of the kind that its hello asks for."""

    def __init__(self, loop: Loop, sock: socket.socket, wrong_peer: str) -> None:
        self._loop = loop
        self._socket = sock
        self._fd = sock.fileno()
        self._record = Record(RESOLUTION_NS)
        if wrong_peer:
            self._record.mark_wrong(wrong_peer)
        self._buffer = b""
        self._hello: Hello | None = None
        self._check = StreamCheck(0)
        self._source: StreamSource | None = None
        self._state = "open"
        self._error = ""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.watch(self._fd, self._on_event)

    def report(self) -> FlowReport:
        """Flow 0 until the hello has come."""
        report = _report(self._hello.flow if self._hello else 0, self._record, self._state)
        written = self._source.written if self._source else 0
        return msgspec.structs.replace(report, error=self._error, written=written)

    def close(self) -> None:
        self._loop.forget(self._fd)
        self._socket.close()

    def _on_event(self, mask: int) -> None:
        try:
            if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                octets = self._socket.recv(READ_BYTES)
                if not octets:
                    self._fail("closed by the other side")
                    return
                self._on_octets(octets)
            if mask & select.EPOLLOUT and self._source and self._state == "open":
                self._source.write()
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error_name(error))

    def _on_octets(self, octets: bytes) -> None:
        if self._hello is None:
            self._buffer += octets
            if len(self._buffer) < HELLO_BYTES:
                return
            octets, self._buffer = self._buffer[HELLO_BYTES:], self._buffer[:HELLO_BYTES]
            self._hello = decode_hello(self._buffer)
            self._buffer = b""
            if self._hello is None:
                self._wrong("the first bytes are no hello")
                return
            self._begin(self._hello)
        if octets and self._hello.kind is HelloKind.ECHO:
            self._echo(octets)
        elif octets and self._hello.kind is HelloKind.UP:
            wrong = self._check.feed(octets)
            if wrong:
                self._wrong(wrong)
            else:
                self._record.right(now_ns(), len(octets))

    def _begin(self, hello: Hello) -> None:
        if hello.kind is HelloKind.UP:
            self._check = StreamCheck(hello.salt)
            self._record.resolution_ns = stream_resolution_ns(hello.octets_s)
            tune_receiver(self._socket)
        elif hello.kind is HelloKind.DOWN:
            self._source = StreamSource(self._socket, hello.salt, hello.octets_s)
            self._loop.watch(self._fd, self._on_event, write=True)

    def _echo(self, octets: bytes) -> None:
        self._buffer += octets
        while len(self._buffer) >= FRAME_BYTES:
            frame = decode_frame(REQUEST, self._buffer[:FRAME_BYTES])
            self._buffer = self._buffer[FRAME_BYTES:]
            if frame is None:
                self._wrong("a request has wrong content")
                return
            self._record.right(now_ns(), FRAME_BYTES)
            self._socket.send(encode_frame(ANSWER, frame))

    def _wrong(self, why: str) -> None:
        self._record.mark_wrong(why)
        self._fail("wrong content")

    def _fail(self, why: str) -> None:
        if self._state != "failed":
            self._state = "failed"
            self._error = why
            self._loop.forget(self._fd)


class TcpServer:
    """Accepts probe connections on one address."""

    def __init__(self, loop: Loop, address: str, port: int, peers: frozenset[str]) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._loop = loop
        self._peers = peers
        self._accepted: list[Accepted] = []
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self._socket.listen(64)
        loop.watch(self._socket.fileno(), self._on_event)

    def reports(self) -> list[FlowReport]:
        return [accepted.report() for accepted in self._accepted]

    def close(self) -> None:
        for accepted in self._accepted:
            accepted.close()
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _on_event(self, _mask: int) -> None:
        try:
            sock, peer = self._socket.accept()
        except OSError:
            return  # Gone before it was accepted.
        if len(self._accepted) >= _ACCEPTED_MAX:
            sock.close()
            return
        wrong = ""
        if peer[0] not in self._peers:
            wrong = f"the peer is seen as {peer[0]}, not {_expected(self._peers)}"
        self._accepted.append(Accepted(self._loop, sock, wrong))


def _expected(peers: frozenset[str]) -> str:
    return " or ".join(sorted(peers))


def _report(flow: int, record: Record, state: str) -> FlowReport:
    return FlowReport(
        flow=flow,
        state=state,
        error="",
        local=("", 0),
        remote=("", 0),
        opened_ns=0,
        exchanges=record.exchanges,
        octets=record.octets,
        written=0,
        sent=0,
        wrong=record.wrong,
        wrong_why=record.wrong_why,
        last_ns=record.last_ns,
        resolution_ns=record.resolution_ns,
        gaps=list(record.gaps),
    )
