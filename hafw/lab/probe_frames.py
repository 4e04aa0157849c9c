"""Judge (b)'s hands: marked frames into every gateway's switch port, and who forwards them. Shell.

`python -m hafw.lab.probe_frames --config FILE --switch hafw-sw --server V4 --server V6 ...`; JSON
lines as `probe_gate`. Every millisecond one sequence number is sent, as one frame per gateway, to
the group's virtual MAC straight out of the gateway's own port of the switch: past the bridge and
its forwarding table, which learns nothing from frames that leave by a port. On the gateways' WAN
ports AF_PACKET sockets with a filter see who forwarded the number. Numbers alternate between IPv4
and IPv6. The clock of "together" is the kernel's receive stamp, not this process's.

Payload, 32 bytes: magic 4, run 4, gateway 4, zero 4, seq 8, send time (CLOCK_BOOTTIME ns) 8.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

import msgspec

from cluster.checksum import checksum
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.lab.inside import call_in
from hafw.lab.judges import DualFrame
from hafw.lab.probe_loop import TICK_NS, Loop, become_realtime, now_ns
from hafw.lab.silence import PASS_MARK, SO_MARK

__all__ = [
    "DPORT",
    "Forwardings",
    "FrameRecord",
    "Injector",
    "build_frame",
    "main",
    "open_catcher",
    "open_sender",
    "parse_frame",
    "serve",
    "stamp_ns",
]

DPORT = 9
"""Discard; the server has a socket there that says nothing."""
SPORT = 40009
TEST_MAC = bytes.fromhex("026861667701")
_MAGIC = b"hfdj"
_PAYLOAD = struct.Struct("!4sIIIQQ")
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35
_ETH_P_ALL = 3
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_DUAL_MAX = 100_000
"""Numbers noted as forwarded twice; those beyond are counted and blind the judge."""
_READ_BURST = 64

# linux/filter.h opcodes: ldh, ldb [k]; jeq #k; ret #k.
_LDH, _LDB, _JEQ, _RET = 0x28, 0x30, 0x15, 0x06
_ACCEPT, _DROP = 11, 12
_FILTER = (
    (_LDH, 0, 0, 12),
    (_JEQ, 0, 4, _ETH_P_IP),
    (_LDB, 0, 0, 14 + 9),
    (_JEQ, 0, _DROP - 4, socket.IPPROTO_UDP),
    (_LDH, 0, 0, 14 + 20 + 2),
    (_JEQ, _ACCEPT - 6, _DROP - 6, DPORT),
    (_JEQ, 0, _DROP - 7, _ETH_P_IPV6),
    (_LDB, 0, 0, 14 + 6),
    (_JEQ, 0, _DROP - 9, socket.IPPROTO_UDP),
    (_LDH, 0, 0, 14 + 40 + 2),
    (_JEQ, 0, _DROP - 11, DPORT),
    (_RET, 0, 0, 65535),
    (_RET, 0, 0, 0),
)


class FrameRecord(msgspec.Struct, frozen=True):
    """Since the last report. `forwarded` by gateway; `strayed` counts frames seen at another
    gateway's WAN port than the one they were given to; `refused` sends the kernel refused;
    `unnoted` numbers forwarded twice that had no room in `dual`."""

    dual: list[DualFrame]
    injected: int
    forwarded: dict[str, int]
    distinct: int
    strayed: int
    refused: int
    late_ns_max: int
    unnoted: int


def build_frame(
    virtual_mac: bytes, source: str, server: str, payload: bytes, sport: int = SPORT
) -> bytes:
    """Ethernet, IPv4 or IPv6, UDP with a right checksum, as a host of the LAN would send it."""
    src, dst = ip_address(source).packed, ip_address(server).packed
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", sport, DPORT, length, 0)
    pseudo = src + dst + struct.pack("!HH", socket.IPPROTO_UDP, length)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + payload) or 0xFFFF)
    if len(src) == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, 17, 0) + src + dst
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        ethertype = _ETH_P_IP
    else:
        header = struct.pack("!IHBB", 0x60000000, length, 17, 64) + src + dst
        ethertype = _ETH_P_IPV6
    return virtual_mac + TEST_MAC + struct.pack("!H", ethertype) + header + udp + payload


def parse_frame(frame: bytes, run: int) -> tuple[int, int, int] | None:
    """(gateway number, seq, send time) of a frame of ours of this run."""
    start = 14 + (20 if frame[12:14] == b"\x08\x00" else 40) + 8
    if len(frame) < start + _PAYLOAD.size:
        return None
    magic, found, gateway, _, seq, sent_ns = _PAYLOAD.unpack_from(frame, start)
    return (gateway, seq, sent_ns) if magic == _MAGIC and found == run else None


class Forwardings:
    """Who forwarded which number first, and which were forwarded by a second. Pure."""

    def __init__(self, dual_max: int = _DUAL_MAX) -> None:
        self._dual_max = dual_max
        self._dual: dict[int, DualFrame] = {}
        self._first: dict[int, tuple[int, int]] = {}
        self.unnoted = 0

    @property
    def dual(self) -> list[DualFrame]:
        return list(self._dual.values())

    @property
    def distinct(self) -> int:
        return len(self._first)

    def note(self, seq: int, sent_ns: int, number: int, stamp_ns: int) -> None:
        """Gateway `number` forwarded it at `stamp_ns`."""
        first = self._first.setdefault(seq, (number, stamp_ns))
        if first[0] == number or seq in self._dual:
            return
        if len(self._dual) < self._dual_max:
            self._dual[seq] = DualFrame(seq, sent_ns, abs(stamp_ns - first[1]))
        else:
            self.unnoted += 1


class Injector:
    """Sends one number a tick to every gateway and notes who forwarded it."""

    def __init__(
        self,
        loop: Loop,
        config: ClusterConfig,
        switch: str,
        clients: list[str],
        servers: list[str],
    ) -> None:
        self._run = secrets.randbits(32)
        self._gateways = [n for n, node in config.nodes.items() if node.role == "gateway"]
        group = next(iter(config.groups.values()))
        self._mac = bytes.fromhex(group.virtual_mac.replace(":", ""))
        self._routes = list(zip(clients, servers, strict=True))
        self._senders: list[socket.socket] = []
        for number, name in enumerate(self._gateways):
            lan = f"{name}-{config.nodes[name].segments['lan'].device}"
            wan = f"{name}-{config.nodes[name].segments['wan'].device}"
            self._senders.append(call_in(switch, lambda port=lan: open_sender(port)))  # type: ignore[misc]
            catcher = call_in(switch, lambda port=wan: open_catcher(port, _FILTER))  # type: ignore[misc]
            loop.watch(
                catcher.fileno(),
                lambda _mask, sock=catcher, number=number: self._on_frames(sock, number),  # type: ignore[misc]
            )
        self._loop = loop
        self._seq = 0
        self._reset()
        loop.every_tick(self._tick)

    def _reset(self) -> None:
        self._notes = Forwardings()
        self._forwarded = [0] * len(self._gateways)
        self._injected = 0
        self._strayed = 0
        self._refused = 0
        self._loop.late_ns_max = 0

    def take(self) -> FrameRecord:
        record = FrameRecord(
            dual=self._notes.dual,
            injected=self._injected,
            forwarded=dict(zip(self._gateways, self._forwarded, strict=True)),
            distinct=self._notes.distinct,
            strayed=self._strayed,
            refused=self._refused,
            late_ns_max=self._loop.late_ns_max,
            unnoted=self._notes.unnoted,
        )
        self._reset()
        return record

    def _tick(self, now: int) -> None:
        seq = self._seq
        self._seq += 1
        source, server = self._routes[seq % len(self._routes)]
        for number, sender in enumerate(self._senders):
            payload = _PAYLOAD.pack(_MAGIC, self._run, number, 0, seq, now)
            try:
                sender.send(build_frame(self._mac, source, server, payload))
            except OSError:
                self._refused += 1
        self._injected += 1

    def _on_frames(self, sock: socket.socket, number: int) -> None:
        for _ in range(_READ_BURST):
            try:
                frame, ancillary, _, _ = sock.recvmsg(2048, 64)
            except OSError:
                return
            found = parse_frame(frame, self._run)
            if found is None:
                continue
            gateway, seq, sent_ns = found
            if gateway != number:
                self._strayed += 1
                continue
            self._forwarded[number] += 1
            self._notes.note(seq, sent_ns, number, stamp_ns(ancillary))


def open_sender(port: str) -> socket.socket:
    """Frames straight out of this port of the caller's namespace; receives nothing."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # Protocol 0: receives nothing.
    # Through a drill's silence: a silenced gateway is judged like any other.
    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, PASS_MARK)
    sock.bind((port, 0))
    sock.setblocking(False)
    return sock


def open_catcher(port: str, rules: Sequence[tuple[int, int, int, int]]) -> socket.socket:
    """Frames that come in at this port and that the classic BPF program lets through, stamped."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    octets = b"".join(struct.pack("=HBBI", *insn) for insn in rules)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    program = struct.pack("@HxxxxxxQ", len(rules), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((port, _ETH_P_ALL))
    sock.setblocking(False)
    return sock


def stamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's receive time, CLOCK_REALTIME; only differences of it are used."""
    for level, kind, octets in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, rest = struct.unpack_from("@ll", octets)
            return int(seconds) * 1_000_000_000 + int(rest)
    return now_ns()


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(prog="probe_frames")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--switch", required=True)
    parser.add_argument("--client", action="append", required=True)
    parser.add_argument("--server", action="append", required=True)
    arguments = parser.parse_args()
    loop = Loop()
    config = load_cluster(arguments.config)
    injector = Injector(loop, config, arguments.switch, arguments.client, arguments.server)
    serve(loop, injector.take)


def serve(loop: Loop, take: Callable[[], FrameRecord]) -> None:
    """Answer each line on stdin by a record on stdout, in real time, until stdin ends."""

    def on_request(_mask: int) -> None:
        if not os.read(0, 4096):
            loop.stop()
            return
        view = memoryview(msgspec.json.encode(take()) + b"\n")
        while view:
            view = view[os.write(1, view) :]

    loop.watch(0, on_request)
    become_realtime()
    loop.run()


assert TICK_NS == 1_000_000, "a sequence number is one millisecond"

if __name__ == "__main__":
    main()
