"""The probe agent: one process in a namespace, all its flows in one loop.

`python -m hafw.lab.probe_agent`: requests are JSON lines on stdin, each answered by one JSON line
on stdout (`{"ok": ...}` or `{"error": ...}`); the end of stdin ends the agent. Requests:

====== ===================================================================================
serve   addresses, port, peers: answer TCP and UDP there
sink    addresses, port: take UDP there and say nothing (no ICMP error either)
open    flows (list of FlowSpec): open them
idle    make the idle flows exchange
quiet   send no datagram any more; what is under way still counts
report  the state of every flow opened and accepted, and how late the loop was
forget  forget the gaps noted so far, and how late the loop was
clear   close all flows and servers
====== ===================================================================================
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from contextlib import suppress
from typing import Any

import msgspec

from hafw.lab.probe_datagrams import DatagramFlow, IcmpFlow
from hafw.lab.probe_flows import Flow, FlowSpec
from hafw.lab.probe_loop import Loop
from hafw.lab.probe_record import FlowReport
from hafw.lab.probe_server import DatagramServer, TcpServer
from hafw.lab.probe_tcp import EchoFlow, StreamFlow

__all__ = ["AgentReport", "Answer", "Request", "main"]

_NICE = -5
"""Ahead of ordinary load, behind the lease loop's real-time class."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    op: str
    addresses: list[str] = []
    peers: list[str] = []
    port: int = 0
    flows: list[FlowSpec] = []


class AgentReport(msgspec.Struct, frozen=True):
    opened: list[FlowReport] = []
    accepted: list[FlowReport] = []
    late_ns_max: int = 0


class Answer(msgspec.Struct, frozen=True):
    error: str = ""
    report: AgentReport = AgentReport()


class Agent:
    """Owns the loop, the flows and the servers."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""
        self._loop = Loop()
        self._flows: list[Flow] = []
        self._servers: list[DatagramServer | TcpServer] = []
        self._sinks: list[socket.socket] = []
        self._decoder = msgspec.json.Decoder(Request)
        self._loop.watch(reader, self._on_request)
        self._loop.every_tick(self._tick)

    def run(self) -> None:
        self._loop.run()
        self._clear()
        self._loop.close()

    def _tick(self, now: int) -> None:
        for flow in self._flows:
            flow.tick(now)

    def _on_request(self, _mask: int) -> None:
        octets = os.read(self._reader, 65536)
        if not octets:
            self._loop.stop()
            return
        *lines, self._buffer = (self._buffer + octets).split(b"\n")
        for line in lines:
            try:
                answer = self._carry_out(self._decoder.decode(line))
            except (OSError, ValueError, msgspec.DecodeError) as error:
                answer = Answer(error=f"{error}")
            _write_all(self._writer, msgspec.json.encode(answer) + b"\n")

    def _carry_out(self, request: Request) -> Answer:
        match request.op:
            case "serve":
                peers = frozenset(request.peers)
                for address in request.addresses:
                    for server in (TcpServer, DatagramServer):
                        self._servers.append(server(self._loop, address, request.port, peers))
            case "sink":
                self._sinks += [_sink(address, request.port) for address in request.addresses]
            case "open":
                self._flows += [_open_flow(self._loop, spec) for spec in request.flows]
            case "idle":
                for flow in self._flows:
                    flow.exchange()
            case "quiet":
                for flow in self._flows:
                    flow.quiet()
            case "report":
                return Answer(report=self._report())
            case "forget":
                for flow in self._flows:
                    flow.forget()
                self._loop.late_ns_max = 0
            case "clear":
                self._clear()
            case _:
                return Answer(error=f"unknown request: {request.op}")
        return Answer()

    def _report(self) -> AgentReport:
        return AgentReport(
            opened=[flow.report() for flow in self._flows],
            accepted=[report for server in self._servers for report in server.reports()],
            late_ns_max=self._loop.late_ns_max,
        )

    def _clear(self) -> None:
        for owner in (*self._flows, *self._servers, *self._sinks):
            owner.close()
        self._flows, self._servers, self._sinks = [], [], []
        self._loop.late_ns_max = 0


def main() -> None:
    """Raise priority where allowed, then serve requests until stdin ends."""
    with suppress(OSError):
        os.nice(_NICE)
    gc.freeze()
    gc.disable()  # Nothing here makes cycles; a collection would look like an outage.
    Agent(sys.stdin.fileno(), sys.stdout.fileno()).run()


def _open_flow(loop: Loop, spec: FlowSpec) -> Flow:
    match spec.kind:
        case "udp":
            return DatagramFlow(loop, spec)
        case "icmp":
            return IcmpFlow(loop, spec)
        case "tcp-echo" | "tcp-idle":
            return EchoFlow(loop, spec)
        case "tcp-up" | "tcp-down":
            return StreamFlow(loop, spec)
        case _:
            raise ValueError(f"unknown kind of probe: {spec.kind}")


def _sink(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def _write_all(fd: int, octets: bytes) -> None:
    view: Any = memoryview(octets)
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    main()
