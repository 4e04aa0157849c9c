"""A wire that takes its time: frames from and to one host reach the others late. Shell.

`python -m hafw.lab.slow_wire --config FILE --host NAME --delay-ms 20` in the root namespace; each
line on stdin names the hosts that are cut off (``["gw1"]``), whose frames a tap would see all the
same, and is answered with the number of frames carried. The end of stdin ends it. This kernel has
no netem. So the host's fast way is cut as by any drill (`Switch.fault`, the caller's part), and
this process carries its frames around the cut::

    host --- port [tap] ---- cut ---- bridge          a tap is in front of the ingress hook
               |   ^                     other ports   (net/core/dev.c); what is sent to the host
               +-- 20 ms late -----------[tap, send]   carries the mark that passes the cut

From the host to every other port of the same bridge; to the host what is for its MAC or for
groups. Checksums and segments that the sender left to its device travel as struct virtio_net_hdr.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hafw.config.load import load_cluster
from hafw.lab import topology
from hafw.lab.inside import call_in
from hafw.lab.probe_loop import Loop, become_realtime, now_ns
from hafw.lab.silence import PASS_MARK, SO_MARK

__all__ = ["SlowWire", "main"]

_SOL_PACKET = 263
_PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 15, 23
_VNET_HDR_BYTES = 10
_ETH_P_ALL = 3
_FRAME_BYTES_MAX = 70_000
_READ_BURST = 64
QUEUE_MAX = 100_000
"""Frames on their way; what comes beyond is lost, as on any wire."""


class SlowWire:
    """Carries frames between one port and the other ports of its bridge."""

    def __init__(
        self,
        loop: Loop,
        ports: Sequence[tuple[str, str, Sequence[tuple[str, str]]]],
        delay_ns: int,
    ) -> None:
        """`ports`: the host's port, the host's MAC there, and (host, port) of the others of the
        bridge."""
        self.carried = 0
        self.cut: frozenset[str] = frozenset()
        self._delay_ns = delay_ns
        self._waiting: deque[tuple[int, list[socket.socket], bytes]] = deque()
        for port, mac, others in ports:
            own = _tap(port, through=True)
            rest = {host: _tap(name, through=False) for host, name in others}
            self._watch(loop, own, list(rest.values()), "", None)
            for host, sock in rest.items():
                self._watch(loop, sock, [own], host, bytes.fromhex(mac.replace(":", "")))
        loop.every_tick(self._tick)

    def _watch(
        self,
        loop: Loop,
        sock: socket.socket,
        to: list[socket.socket],
        host: str,
        mac: bytes | None,
    ) -> None:
        loop.watch(sock.fileno(), lambda _mask: self._take(sock, to, host, mac))

    def _take(
        self, sock: socket.socket, to: list[socket.socket], host: str, mac: bytes | None
    ) -> None:
        for _ in range(_READ_BURST):
            try:
                frame = sock.recv(_FRAME_BYTES_MAX)
            except OSError:
                return
            target = frame[_VNET_HDR_BYTES : _VNET_HDR_BYTES + 6]
            meant = mac is None or target == mac or target[0] & 1
            if meant and host not in self.cut and len(self._waiting) < QUEUE_MAX:
                self._waiting.append((now_ns() + self._delay_ns, to, frame))

    def _tick(self, now: int) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, to, frame = self._waiting.popleft()
            self.carried += 1
            for sock in to:
                try:
                    sock.send(frame)
                except OSError:
                    continue  # A port that is down: lost, as on any wire.


def _tap(port: str, *, through: bool) -> socket.socket:
    def opened() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for option in (_PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING):
            sock.setsockopt(_SOL_PACKET, option, 1)
        if through:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, PASS_MARK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((port, _ETH_P_ALL))
        sock.setblocking(False)
        return sock

    return call_in(topology.namespace_of(topology.SWITCH), opened)


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(prog="slow_wire")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--delay-ms", type=float, required=True)
    arguments = parser.parse_args()
    plan = topology.plan(load_cluster(arguments.config))
    ports = [
        (
            port.port,
            port.mac,
            [
                (host.name, other.port)
                for host in plan.hosts
                if host.name != arguments.host
                for other in host.ports
                if other.bridge == port.bridge
            ],
        )
        for port in plan.host(arguments.host).ports
    ]
    loop = Loop()
    wire = SlowWire(loop, ports, int(arguments.delay_ms * 1e6))

    def on_request(_mask: int) -> None:
        line = os.read(0, 4096)
        if not line:
            loop.stop()
            return
        wire.cut = msgspec.json.decode(line, type=frozenset[str])
        os.write(1, b"%d\n" % wire.carried)

    loop.watch(0, on_request)
    become_realtime()
    loop.run()


if __name__ == "__main__":
    main()
