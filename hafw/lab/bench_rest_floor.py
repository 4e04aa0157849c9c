"""What leased at rest cannot do without, and nothing else: the floor of `bench_rest`. Shell.

The loop has leased's own sockets, CPU and priority. Each heartbeat it sends as many bytes as a
heartbeat has to everybody over every path, and it takes what the others send. Nothing is made,
sealed, opened or decided, no gate is written, no syncd speaks.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from cluster.leased_io import LinkSockets, plan_paths
from cluster.realtime import make_realtime
from hafw.config.load import load_cluster
from hafw.cpus import lease_cpu, usable_cpus

__all__ = ["HEARTBEAT_BYTES", "FloorSays", "main", "wakes_of"]

HEARTBEAT_BYTES = 200
SETTLE_S = 1.0


class FloorSays(msgspec.Struct, frozen=True):
    """Of `wall_ns`: CPU time, how often it was woken, datagrams taken."""

    cpu_ns: int
    wall_ns: int
    wakes: int
    received: int


def wakes_of(pid: int) -> int:
    """How often the process' main thread went to sleep of its own will."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def _run(links: LinkSockets, heartbeat_ns: int, until_ns: int) -> int:
    """Datagrams taken."""
    beat, received = bytes(HEARTBEAT_BYTES), 0
    next_ns = time.monotonic_ns()
    while (now_ns := time.monotonic_ns()) < until_ns:
        links.check(now_ns)
        if now_ns >= next_ns:
            next_ns += heartbeat_ns
            links.send(beat, 0)
        wait_s = max(0, next_ns - time.monotonic_ns()) / 1e9
        ready, _, _ = select.select([*links.descriptors()], [], [], wait_s)
        received += len(links.receive(ready))
    return received


def main() -> None:
    """``python -m hafw.lab.bench_rest_floor --node NAME --config FILE --seconds N``"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--node", required=True)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--seconds", required=True, type=float)
    wanted = parser.parse_args()
    config = load_cluster(wanted.config)
    links = LinkSockets(
        plan_paths(config, wanted.node),
        multicast=str(config.lease.multicast),
        port=config.lease.port,
        counters=Counter(),
    )
    make_realtime(lease_cpu(config.cpus, usable_cpus()))
    heartbeat_ns = config.lease.heartbeat_ms * 1_000_000
    _run(links, heartbeat_ns, time.monotonic_ns() + int(SETTLE_S * 1e9))
    began_ns, cpu_ns, wakes = time.monotonic_ns(), time.process_time_ns(), wakes_of(os.getpid())
    received = _run(links, heartbeat_ns, began_ns + int(wanted.seconds * 1e9))
    said = FloorSays(
        cpu_ns=time.process_time_ns() - cpu_ns,
        wall_ns=time.monotonic_ns() - began_ns,
        wakes=wakes_of(os.getpid()) - wakes,
        received=received,
    )
    sys.stdout.buffer.write(msgspec.json.encode(said))


if __name__ == "__main__":
    main()
