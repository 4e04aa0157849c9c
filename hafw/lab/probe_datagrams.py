"""Datagram probes: UDP frames and ICMP echo at a fixed rate, every answer checked. Shell."""

from __future__ import annotations

import os
import socket
import struct
from array import array

import msgspec

from cluster.checksum import checksum
from hafw.lab.probe_flows import MS, BaseFlow, FlowSpec, family_of
from hafw.lab.probe_loop import Loop, now_ns
from hafw.lab.probe_record import FlowReport
from hafw.lab.probe_stream import ANSWER, REQUEST, Frame, decode_frame, encode_frame

__all__ = ["RESOLUTION_NS", "DatagramFlow", "IcmpFlow"]

RESOLUTION_NS = 2_000_000
"""Gaps up to this are not noted: a frame a millisecond has them all the time."""
MISSING_MAX = 100
"""Frames without an answer whose time is told."""
_ICMP_FILTER = 1  # linux/icmp.h, level SOL_RAW
_SOL_RAW = 255
_ICMP6_FILTER = 1  # linux/icmpv6.h, level SOL_ICMPV6
_ICMP_ECHO, _ICMP_ECHOREPLY = 8, 0
_ICMP6_ECHO, _ICMP6_ECHOREPLY = 128, 129


class DatagramFlow(BaseFlow):
    """UDP frames at a fixed rate; every answer is checked for content and for being the first."""

    def __init__(self, loop: Loop, spec: FlowSpec, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.socket(family_of(spec), socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((spec.local, 0))
        sock.connect((spec.remote, spec.port))
        super().__init__(loop, spec, sock, max(RESOLUTION_NS, 3 * spec.interval_ms * MS // 2))
        self._answered = bytearray()
        self._sent_ns = array("q")
        self._quiet = False
        self._state = "open"
        loop.watch(self._fd, self._on_event)

    def tick(self, now: int) -> None:
        if self._quiet or self._state != "open" or not self._due(now):
            return
        # A frame the kernel refuses (no route, no buffer) is a lost frame, not an error.
        self._answered.append(0)
        self._sent_ns.append(now)
        frame = encode_frame(REQUEST, Frame(self.spec.flow, self._sent, now))
        self._sent += 1
        try:
            self._send(frame)
        except OSError:
            return

    def quiet(self) -> None:
        self._quiet = True

    def report(self) -> FlowReport:
        """While it still sends, what is under way is not missing."""
        report = super().report()
        if not self._quiet or report.sent == report.exchanges:
            return report
        sent = zip(self._sent_ns, self._answered, strict=True)
        missing = [at_ns for at_ns, answered in sent if not answered]
        return msgspec.structs.replace(report, missing_ns=missing[:MISSING_MAX])

    def _send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def _unwrap(self, octets: bytes) -> Frame | None:
        return decode_frame(ANSWER, octets)

    def _on_event(self, _mask: int) -> None:
        try:
            octets = self._socket.recv(2048)
        except OSError:
            return  # An ICMP error about an earlier frame: the missing answer says it all.
        now = now_ns()
        frame = self._unwrap(octets)
        if frame is None or frame.flow != self.spec.flow or frame.seq >= self._sent:
            self._record.mark_wrong(f"an answer of {len(octets)} bytes that nobody asked for")
        elif self._answered[frame.seq]:
            self._record.mark_wrong(f"answer {frame.seq} came twice")
        else:
            self._answered[frame.seq] = 1
            if not self._opened_ns:
                self._opened_ns = now
            self._record.right(now, len(octets))


class IcmpFlow(DatagramFlow):
    """ICMP or ICMPv6 echo with one identifier: one conntrack flow."""

    def __init__(self, loop: Loop, spec: FlowSpec) -> None:
        self._v6 = spec.family == 6
        proto = socket.IPPROTO_ICMPV6 if self._v6 else socket.IPPROTO_ICMP
        sock = socket.socket(family_of(spec), socket.SOCK_RAW, proto)
        if self._v6:
            # struct icmp6_filter: a set bit blocks its type.
            blocked = [0xFFFFFFFF] * 8
            blocked[_ICMP6_ECHOREPLY // 32] ^= 1 << _ICMP6_ECHOREPLY % 32
            sock.setsockopt(proto, _ICMP6_FILTER, struct.pack("@8I", *blocked))
        else:
            blocked_v4 = 0xFFFFFFFF ^ 1 << _ICMP_ECHOREPLY
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("@I", blocked_v4))
        self._ident = (os.getpid() * 16 + spec.flow) & 0xFFFF
        super().__init__(loop, msgspec.structs.replace(spec, port=0), sock)

    def report(self) -> FlowReport:
        report = super().report()
        return msgspec.structs.replace(report, local=(report.local[0], self._ident))

    def _send(self, frame: bytes) -> None:
        kind = _ICMP6_ECHO if self._v6 else _ICMP_ECHO
        seq = (self._sent - 1) & 0xFFFF
        message = struct.pack("!BBHHH", kind, 0, 0, self._ident, seq) + frame
        if not self._v6:  # The kernel fills in ICMPv6's own.
            message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        self._socket.send(message)

    def _on_event(self, mask: int) -> None:
        # Every raw socket gets every echo reply of its peer: only ours are looked at.
        try:
            octets = self._socket.recv(2048, socket.MSG_PEEK)
        except OSError:
            return
        start = 0 if self._v6 else (octets[0] & 0xF) * 4
        if len(octets) < start + 8 or octets[start + 4 : start + 6] != self._ident.to_bytes(2):
            self._socket.recv(2048)
            return
        super()._on_event(mask)

    def _unwrap(self, octets: bytes) -> Frame | None:
        start = 0 if self._v6 else (octets[0] & 0xF) * 4
        return decode_frame(REQUEST, octets[start + 8 :])
