"""A snapshot into an empty node, and a takeover with few and many replicas. Shell."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hafw.errors import StateError
from hafw.kernel.netns import entered
from hafw.lab.bench_figures import Figure, beside
from hafw.lab.bench_sync_parts import Bench
from hafw.lab.bench_tools import count_in, flush, wait_count
from hafw.lab.sync_network import CLIENT, SERVER
from hafw.lab.sync_spaces import wait_for

__all__ = ["measure_snapshot", "measure_takeover"]

BOUND_S = 1800.0
SNAPSHOT_PATIENCE_S = 30.0
LOAD_RATE = 50_000.0
PROBE_PORT = 7070
PROBE_MS = 1


def measure_snapshot(bench: Bench, flows: int) -> list[Figure]:
    """gw2's syncd starts beside an empty table. From its first answer until it is synced, beside
    bare insertion."""
    bench.say("snapshot: bare insertion")
    flush(bench.replica)
    bare = bench.loops.insert(bench.replica, bench.flows(flows, replica=True), listens=True)
    flush(bench.replica)
    bare_s = bare.wall_ns / 1e9
    other = bench.spaces[2]
    with bench.running(bench.ours):
        other.stop(signal.SIGKILL)
        bench.say("snapshot: loading the owner")
        bench.make(bench.flows(flows), LOAD_RATE)
        _wait_owned(bench, flows)
        bench.say("snapshot: into the empty node")
        if left := count_in(bench.replica):
            raise StateError(f"gw2 was to be empty and has {left} entries")
        other.start()
        begun = time.monotonic()
        came, last = wait_count(bench.replica, flows, BOUND_S, patience_s=SNAPSHOT_PATIENCE_S)
        wait_for(lambda: f"gw2 synced ({other.reason})", lambda: other.synced, BOUND_S)
        synced_s = time.monotonic() - begun
        note = "" if came else f"{flows - count_in(bench.replica)} missing"
        trouble = bench.ours.trouble()
        note = ", ".join(word for word in (note, trouble) if word)
    return [
        beside(f"snapshot of {flows:,}, answer to last entry", bench.ours.name, last - begun, "s",
               bare_s, aim="<= 2 x bare insertion", note=note),
        beside(f"snapshot of {flows:,}, answer to synced", bench.ours.name, synced_s, "s", bare_s),
    ]  # fmt: skip


def measure_takeover(bench: Bench, sizes: tuple[int, ...], seconds: float) -> list[Figure]:
    """gw2 becomes ACTIVE with few and with many replicas, under a 1 kHz flow of datagrams."""
    figures: list[Figure] = []
    for flows in sizes:
        bench.say(f"takeover: with {flows:,} replicas")
        figures += _take_over(bench, flows, seconds)
    return figures


def _take_over(bench: Bench, flows: int, seconds: float) -> list[Figure]:
    spaces, (one, other) = bench.spaces, bench.spaces.nodes
    with bench.running(bench.ours):
        spaces.carry(1)
        bench.make(bench.flows(flows), LOAD_RATE)
        _wait_owned(bench, flows)
        wait_for("replicas", lambda: other.status().groups[0].replicas >= flows, BOUND_S)
        with _probe(bench) as arrivals:
            wait_for("the probe's replica", lambda: count_in(bench.replica) > flows, 30.0)
            one.stop(signal.SIGKILL)  # The old owner says nothing any more.
            said = time.monotonic()
            spaces.lead(2)
            spaces.carry(2)
            wait_for("adopted", lambda: _is_adopted(bench), BOUND_S)
            adopted_s = time.monotonic() - said
            time.sleep(max(0.0, seconds - adopted_s))
            after = [at for at in arrivals.copy() if at > said]
            note = bench.ours.trouble()
    if not after:
        raise StateError("no packet passed after the takeover")
    gap = max(b - a for a, b in zip([said, *after], after, strict=False))
    of = f"{flows:,} replicas"
    return [
        Figure(f"takeover, {of}: role change to first packet", "hafw", (after[0] - said) * 1e3,
               "ms", note="includes changing a route"),
        Figure(f"takeover, {of}: longest gap after it", "hafw", gap * 1e3, "ms"),
        Figure(f"takeover, {of}: all adopted", "hafw", adopted_s, "s", note=note),
    ]  # fmt: skip


def _wait_owned(bench: Bench, flows: int) -> None:
    node = bench.spaces[1]
    wait_for(
        lambda: f"gw1 owns {flows} flows (it owns {node.status().groups[0].owned})",
        lambda: node.status().groups[0].owned >= flows and node.synced,
        BOUND_S,
    )


def _is_adopted(bench: Bench) -> bool:
    one = bench.spaces[2].status().groups[0].own_pass
    return one is not None and one.kind == "take" and not one.running


@contextmanager
def _probe(bench: Bench) -> Iterator[list[float]]:
    """When datagrams of one flow, sent each millisecond, arrive at the server."""
    with entered(bench.spaces.server):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((SERVER, PROBE_PORT))
    receiver.settimeout(0.1)
    with entered(bench.spaces.client):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((CLIENT, 0))
    arrivals: list[float] = []
    ending = threading.Event()

    def send() -> None:
        at = time.monotonic()
        while not ending.is_set():
            with suppress(OSError):  # A route is just being changed.
                sender.sendto(b"probe", (SERVER, PROBE_PORT))
            at += PROBE_MS / 1e3
            time.sleep(max(0.0, at - time.monotonic()))

    def listen() -> None:
        while not ending.is_set():
            try:
                receiver.recv(64)
            except TimeoutError:
                continue
            arrivals.append(time.monotonic())

    threads = [threading.Thread(target=work, daemon=True) for work in (send, listen)]
    for thread in threads:
        thread.start()
    try:
        yield arrivals
    finally:
        ending.set()
        for thread in threads:
            thread.join(5)
        sender.close()
        receiver.close()
