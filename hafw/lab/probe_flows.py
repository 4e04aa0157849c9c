"""What every opening side of a probe flow shares: its specification, state and report. Shell.

Each flow owns one socket and a `Record`. It never raises for what the network does: a refused or
reset connection makes it `failed` with the errno's name, and that is a lost flow.
"""

from __future__ import annotations

import errno
import socket
from typing import Protocol

import msgspec

from hafw.lab.probe_loop import Loop
from hafw.lab.probe_record import FlowReport, Record

__all__ = ["MS", "BaseFlow", "Flow", "FlowSpec", "error_name", "family_of"]

MS = 1_000_000


class FlowSpec(msgspec.Struct, frozen=True):
    """What to open. `kind`: udp, icmp, tcp-echo, tcp-idle, tcp-up, tcp-down."""

    flow: int
    kind: str
    family: int
    local: str
    remote: str
    port: int
    salt: int
    interval_ms: int
    octets_s: int


class Flow(Protocol):
    """What the agent needs of any flow."""

    def tick(self, now: int) -> None: ...
    def exchange(self) -> None: ...
    def quiet(self) -> None: ...
    def report(self) -> FlowReport: ...
    def forget(self) -> None: ...
    def close(self) -> None: ...


def error_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


class BaseFlow:
    """State and report that all kinds share."""

    def __init__(
        self, loop: Loop, spec: FlowSpec, sock: socket.socket, resolution_ns: int
    ) -> None:
        self._loop = loop
        self.spec = spec
        self._socket = sock
        self._fd = sock.fileno()
        self._record = Record(resolution_ns)
        self._state = "connecting"
        self._error = ""
        self._opened_ns = 0
        self._sent = 0
        self._written = 0
        self._next_ns = 0

    def exchange(self) -> None:
        """Only idle flows wait to be asked."""

    def quiet(self) -> None:
        """Only what sends datagrams has to stop before what is under way can be counted."""

    def report(self) -> FlowReport:
        record = self._record
        local = ("", 0)
        if self._state != "failed":
            local = self._socket.getsockname()[:2]
        return FlowReport(
            flow=self.spec.flow,
            state=self._state,
            error=self._error,
            local=local,
            remote=(self.spec.remote, self.spec.port),
            opened_ns=self._opened_ns,
            exchanges=record.exchanges,
            octets=record.octets,
            written=self._written,
            sent=self._sent,
            wrong=record.wrong,
            wrong_why=record.wrong_why,
            last_ns=record.last_ns,
            resolution_ns=record.resolution_ns,
            gaps=list(record.gaps),
        )

    def forget(self) -> None:
        """The gaps so far have been judged."""
        self._record.gaps = []

    def close(self) -> None:
        self._loop.forget(self._fd)
        self._socket.close()

    def _due(self, now: int) -> bool:
        if now < self._next_ns:
            return False
        interval_ns = self.spec.interval_ms * MS
        # A late tick does not cause a burst: the schedule starts afresh.
        self._next_ns = max(self._next_ns + interval_ns, now + interval_ns // 2)
        return True

    def _fail(self, why: str) -> None:
        if self._state != "failed":
            self._state = "failed"
            self._error = why
            self._loop.forget(self._fd)


def family_of(spec: FlowSpec) -> socket.AddressFamily:
    return socket.AF_INET6 if spec.family == 6 else socket.AF_INET
