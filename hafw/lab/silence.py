"""Power cuts and cable faults: frames of a node dropped in the switch, ports left up.

Taking a bridge port down would flush the switch's forwarding table, and every frame would be
flooded at once: the outage that a real power cut has (the switch still points at the dead node
until the new one announces itself) would be hidden. So a fault is a netdev table in ``hafw-sw``
whose base chains, on the node's ports, have the policy *drop*. The ingress hook is in front of the
bridge (nothing is learnt from the node), the egress hook behind it. Only what a judge or another
part of a drill sends out of a port itself, with `PASS_MARK`, goes through to the node; no frame of
another namespace can carry a mark (net/core/skbuff.c, skb_scrub_packet).

One transaction makes all hooks of all ports of a node. It is done through a libnftables context
that a thread inside the namespace keeps open: 0.3 to 0.7 ms, where starting ``nft`` takes 3 ms
and more under the load that a drill makes.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from hafw.errors import KernelError, StateError
from hafw.kernel.nftables import Nftables
from hafw.lab.inside import enter, namespace_inode
from hafw.lab.topology import SWITCH, namespace_of

__all__ = [
    "PASS_MARK",
    "SO_MARK",
    "Direction",
    "FaultTime",
    "Switch",
    "fault_commands",
    "heal_commands",
]

Direction = Literal["both", "from", "to"]
"""Which frames are dropped, seen from the node: all, those it sends, those sent to it."""

TABLE_PREFIX = "hafw_fault_"
PRIORITY = -2_000_000_000
"""In front of every other netdev chain."""
ANSWER_WAIT_S = 10.0
PASS_MARK = 0x68616677
SO_MARK = 36


@dataclass(frozen=True, slots=True)
class FaultTime:
    """CLOCK_BOOTTIME just before and just after the transaction that made or healed a fault."""

    before_ns: int
    after_ns: int


def _table(name: str) -> str:
    # nft identifiers have no dash, names of nodes no underscore: no two names collide.
    return f"netdev {TABLE_PREFIX}{name.replace('-', '_')}"


def fault_commands(name: str, ports: Collection[str], direction: Direction = "both") -> str:
    """nft input that replaces fault `name` by one on these ports, as one transaction."""
    assert ports, "a fault without ports would be none"
    table = _table(name)
    devices = ", ".join(f'"{port}"' for port in sorted(ports))
    lines = [f"add table {table}", f"delete table {table}", f"add table {table}"]
    lines += [
        f"add chain {table} {chain} {{ type filter hook {hook} devices = {{ {devices} }} "
        f"priority {PRIORITY}; policy drop; }}"
        for chain, hook, meant in (("from_it", "ingress", "from"), ("to_it", "egress", "to"))
        if direction in ("both", meant)
    ]
    if direction in ("both", "to"):
        lines.append(f"add rule {table} to_it meta mark {PASS_MARK:#x} accept")
    return "\n".join(lines) + "\n"


def heal_commands(name: str) -> str:
    """nft input that removes fault `name`; no error if there is none."""
    return f"add table {_table(name)}\ndelete table {_table(name)}\n"


@dataclass(frozen=True, slots=True)
class _Request:
    commands: str
    ports: tuple[str, ...]
    future: Future[tuple[FaultTime, str]]


class Switch:
    """The faults in ``hafw-sw``. Thread-safe; follows the namespace over `down` and `up`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[_Request | None] | None = None
        self._thread: threading.Thread | None = None
        self._inode: int | None = None

    def fault(self, name: str, ports: Collection[str], direction: Direction = "both") -> FaultTime:
        """Drop all frames of these switch ports, in one transaction; replaces a fault of that
        name. Raises StateError without a lab, KernelError."""
        return self._run(fault_commands(name, ports, direction), tuple(ports))[0]

    def heal(self, name: str) -> FaultTime:
        """Remove the fault of that name, if there is one."""
        return self._run(heal_commands(name))[0]

    def faults(self) -> frozenset[str]:
        """Names of the faults in force, with dashes as given."""
        words = self._run("list tables netdev\n")[1].split()
        return frozenset(
            word.removeprefix(TABLE_PREFIX).replace("_", "-")
            for word in words
            if word.startswith(TABLE_PREFIX)
        )

    def prepare(self) -> None:
        """Open the context now, so that the first fault is as fast as any other."""
        self._run("list tables netdev\n")

    def close(self) -> None:
        """Let go of the namespace (an open context keeps it alive)."""
        with self._lock:
            self._stop()

    def _run(self, commands: str, ports: tuple[str, ...] = ()) -> tuple[FaultTime, str]:
        with self._lock:
            inode = namespace_inode(namespace_of(SWITCH))
            alive = self._thread is not None and self._thread.is_alive()
            if not alive or inode != self._inode:
                self._stop()
                self._requests = queue.SimpleQueue()
                self._thread = threading.Thread(
                    target=_serve, args=(self._requests,), name="lab-switch", daemon=True
                )
                self._thread.start()
                self._inode = inode
            assert self._requests is not None
            future: Future[tuple[FaultTime, str]] = Future()
            self._requests.put(_Request(commands, ports, future))
        try:
            return future.result(timeout=ANSWER_WAIT_S)
        except TimeoutError:
            raise StateError(
                f"nft in hafw-sw did not come to an end in {ANSWER_WAIT_S:g} s; it is not known "
                "whether the fault is in force"
            ) from None

    def _stop(self) -> None:
        if self._requests is not None:
            self._requests.put(None)
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(ANSWER_WAIT_S)
        self._requests = self._thread = self._inode = None


def _require_ports(ports: tuple[str, ...]) -> None:
    # Newer kernels accept a chain on a device that does not exist (yet): a fault that is none.
    for port in ports:
        try:
            socket.if_nametoindex(port)
        except OSError:
            raise StateError(f"hafw-sw has no port {port}; nothing was changed") from None


def _serve(requests: queue.SimpleQueue[_Request | None]) -> None:
    nft: Nftables | None = None
    while (request := requests.get()) is not None:
        future = request.future
        try:
            if nft is None:
                enter(namespace_of(SWITCH))
                # Its socket stays in the namespace, but it looks up devices in the thread's own.
                nft = Nftables()
            _require_ports(request.ports)
            before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            output = nft.text_cmd(request.commands, "a fault in hafw-sw")
            after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        except (KernelError, StateError) as error:
            future.set_exception(error)
            continue
        future.set_result((FaultTime(before_ns, after_ns), output))
    if nft is not None:
        nft.close()
