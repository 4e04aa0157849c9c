"""Who answers for the VIP: ARP requests into every gateway's switch port. Shell.

`python -m hafw.lab.probe_answers --config FILE --switch hafw-sw --vip V4`; JSON lines as
`probe_frames`, and the same record. Every millisecond one sequence number is asked, as one request
per gateway, straight out of the gateway's own LAN port of the switch. A gateway that holds the
address says so; two that answer one number are two ACTIVE nodes, whatever either calls itself.

The request's sender has the number as MAC and no IP address (RFC 5227, a probe), so nobody keeps a
neighbour of it. The answers are seen, then dropped in front of the bridge: its forwarding table
must learn where the virtual MAC is from the system that is measured, not from its judge.
"""

from __future__ import annotations

import argparse
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.kernel.nftables import Nftables
from hafw.lab.inside import call_in
from hafw.lab.probe_frames import (
    Forwardings,
    FrameRecord,
    open_catcher,
    open_sender,
    serve,
    stamp_ns,
)
from hafw.lab.probe_loop import Loop

__all__ = ["Asker", "build_request", "main", "parse_answer"]

TABLE = "netdev hafw_answers"
MARK = 0x6A68
"""The first two bytes of the asking MAC; locally administered, unicast."""
_HEADER = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETH_P_ARP, _ETH_P_IP = 0x0806, 0x0800
_REQUEST, _REPLY = 1, 2
_READ_BURST = 64
# linux/filter.h: ldh [k]; jeq #k; ret #k. An ARP reply to a MAC of ours.
_FILTER = (
    (0x28, 0, 0, 12),
    (0x15, 0, 5, _ETH_P_ARP),
    (0x28, 0, 0, 20),
    (0x15, 0, 3, _REPLY),
    (0x28, 0, 0, 32),
    (0x15, 0, 1, MARK),
    (0x06, 0, 0, 65535),
    (0x06, 0, 0, 0),
)


def build_request(vip: str, seq: int) -> bytes:
    """Broadcast: who has the VIP? Asked by number `seq`."""
    asker = struct.pack("!HI", MARK, seq & 0xFFFFFFFF)
    body = _ARP.pack(
        1, _ETH_P_IP, 6, 4, _REQUEST, asker, bytes(4), bytes(6), ip_address(vip).packed
    )
    return _HEADER.pack(b"\xff" * 6, asker, _ETH_P_ARP) + body


def parse_answer(frame: bytes, vip: str) -> int | None:
    """The number that an answer for the VIP is to."""
    if len(frame) < _HEADER.size + _ARP.size:
        return None
    fields = _ARP.unpack_from(frame, _HEADER.size)
    mark, seq = struct.unpack("!HI", fields[7])
    is_ours = fields[4] == _REPLY and mark == MARK and fields[6] == ip_address(vip).packed
    return int(seq) if is_ours else None


class Asker:
    """Asks one number a tick of every gateway and notes who answered."""

    def __init__(self, loop: Loop, config: ClusterConfig, switch: str, vip: str) -> None:
        self._vip = vip
        self._gateways = [n for n, node in config.nodes.items() if node.role == "gateway"]
        ports = [f"{n}-{config.nodes[n].segments['lan'].device}" for n in self._gateways]
        call_in(switch, lambda: _drop_answers(ports))
        self._senders: list[socket.socket] = []
        for number, port in enumerate(ports):
            self._senders.append(call_in(switch, lambda port=port: open_sender(port)))  # type: ignore[misc]
            catcher = call_in(switch, lambda port=port: open_catcher(port, _FILTER))  # type: ignore[misc]
            loop.watch(
                catcher.fileno(),
                lambda _mask, sock=catcher, number=number: self._on_answers(sock, number),  # type: ignore[misc]
            )
        self._loop = loop
        self._seq = 0
        self._sent_ns: dict[int, int] = {}
        self._reset()
        loop.every_tick(self._tick)

    def _reset(self) -> None:
        self._notes = Forwardings()
        self._sent_ns.clear()
        self._answered = [0] * len(self._gateways)
        self._injected = self._refused = 0
        self._loop.late_ns_max = 0

    def take(self) -> FrameRecord:
        record = FrameRecord(
            dual=self._notes.dual,
            injected=self._injected,
            forwarded=dict(zip(self._gateways, self._answered, strict=True)),
            distinct=self._notes.distinct,
            strayed=0,
            refused=self._refused,
            late_ns_max=self._loop.late_ns_max,
            unnoted=self._notes.unnoted,
        )
        self._reset()
        return record

    def _tick(self, now: int) -> None:
        seq = self._seq
        self._seq += 1
        self._sent_ns[seq] = now
        frame = build_request(self._vip, seq)
        for sender in self._senders:
            try:
                sender.send(frame)
            except OSError:
                self._refused += 1
        self._injected += 1

    def _on_answers(self, sock: socket.socket, number: int) -> None:
        for _ in range(_READ_BURST):
            try:
                frame, ancillary, _, _ = sock.recvmsg(2048, 64)
            except OSError:
                return
            seq = parse_answer(frame, self._vip)
            if seq is None or seq not in self._sent_ns:
                continue  # Not ours, or asked before the last report.
            self._answered[number] += 1
            self._notes.note(seq, self._sent_ns[seq], number, stamp_ns(ancillary))


def _drop_answers(ports: list[str]) -> None:
    devices = ", ".join(f'"{port}"' for port in ports)
    with Nftables() as nft:
        nft.text_cmd(
            f"add table {TABLE}\ndelete table {TABLE}\nadd table {TABLE}\n"
            f"add chain {TABLE} answers {{ type filter hook ingress devices = {{ {devices} }} "
            "priority 0; }\n"
            # The answer's target hardware address begins 18 bytes into the ARP packet.
            f"add rule {TABLE} answers ether type arp @nh,144,16 {MARK:#x} drop\n",
            "the answers to a judge in the switch",
        )


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(prog="probe_answers")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--switch", required=True)
    parser.add_argument("--vip", required=True)
    arguments = parser.parse_args()
    loop = Loop()
    asker = Asker(loop, load_cluster(arguments.config), arguments.switch, arguments.vip)
    serve(loop, asker.take)


if __name__ == "__main__":
    main()
