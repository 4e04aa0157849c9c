"""CPU, memory, rate, bytes and delay of replication, each beside its floor. Shell."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hafw.errors import StateError
from hafw.kernel.netns import entered
from hafw.lab.bench_figures import Figure, beside
from hafw.lab.bench_systems import Hafw, System
from hafw.lab.bench_tools import (
    Loops,
    Outcome,
    count_in,
    cpu_ns,
    flush,
    pss_bytes,
    read_stamps,
    tables_differ,
    wait_count,
    write_flows,
)
from hafw.lab.judges import percentile
from hafw.lab.sync_spaces import SyncSpaces, wait_for
from sync.wire import HEADER_BYTES, TAG_BYTES

__all__ = [
    "Bench",
    "CpuRun",
    "measure_cpu",
    "measure_delay",
    "measure_packets",
    "measure_rate",
    "measure_wire",
]

FULL_BATCH = 64
DONE_BOUND_S = 600.0
QUIET_S = 0.3
SLOW_SHARE = 0.05
TAIL_SHARE, TAIL_S = 0.1, 1.0
"""A rate is kept up with if the last flow arrives this much after the last was made. conntrackd
keeps what does not fill a datagram for most of a second."""
ETHERNET_IP_UDP = 14 + 20 + 8
OUR_HEADER_AND_TAG = HEADER_BYTES + TAG_BYTES


@dataclass(slots=True)
class Bench:
    """What all parts share."""

    spaces: SyncSpaces
    loops: Loops
    ours: Hafw
    systems: list[System]
    say: Callable[[str], None]
    idle_s: float
    codec: str = ""

    def flows(self, count: int, *, replica: bool = False) -> Path:
        return write_flows(self.spaces.folder / f"flows-{int(replica)}", count, replica=replica)

    @property
    def owner(self) -> str:
        return self.spaces[1].space

    @property
    def replica(self) -> str:
        return self.spaces[2].space

    @contextmanager
    def running(self, system: System) -> Iterator[None]:
        """Started with empty tables, and stopped."""
        flush(self.owner, self.replica)
        try:
            system.start()
            if system is self.ours:
                self.codec = self.spaces[1].status().codec
            yield
        finally:
            system.stop()

    def make(self, file: Path, rate: float) -> Outcome:
        """Flows in the owner's kernel, at a rate or (0) as fast as it goes."""
        batch = FULL_BATCH if not rate else max(1, min(FULL_BATCH, int(rate / 1000)))
        return self.loops.insert(self.owner, file, rate=rate, batch=batch)


class CpuRun(NamedTuple):
    """CPU time a flow in µs, of the owner's and the replica's daemon, what they use when idle
    taken off; memory a flow in bytes."""

    owner_us: float
    replica_us: float
    idle_percent: float
    owner_bytes: float
    replica_bytes: float
    note: str


def idle_cpu(pids: Sequence[int], seconds: float) -> list[float]:
    """CPU ns a second of each while nothing happens; 0 if no time is given to look."""
    before = [cpu_ns(pid) for pid in pids]
    time.sleep(seconds)
    return [(cpu_ns(pid) - was) / seconds if seconds else 0.0
            for pid, was in zip(pids, before, strict=True)]  # fmt: skip


def per_flow_us(used_ns: float, idle_ns_s: float, passed_s: float, flows: int) -> float:
    """CPU time a flow without what an idle daemon would have used in that time. Pure."""
    return (used_ns - idle_ns_s * passed_s) / flows / 1e3


def run_cpu(bench: Bench, system: System, flows: int, rate: float) -> CpuRun:
    file = bench.flows(flows)
    with bench.running(system):
        pids = system.owner(), system.replica()
        idle_ns_s = idle_cpu(pids, bench.idle_s)
        before = [cpu_ns(pid) for pid in pids]
        memory = [pss_bytes(pid) for pid in pids]
        begun = time.monotonic()
        bench.make(file, rate)
        came, _ = wait_count(bench.replica, flows, DONE_BOUND_S)
        if came:
            wait_for(f"{system.name} is done", lambda: system.is_done(flows), DONE_BOUND_S)
        time.sleep(QUIET_S)
        passed = time.monotonic() - begun
        used = [
            per_flow_us(cpu_ns(pid) - start, one, passed, flows)
            for pid, start, one in zip(pids, before, idle_ns_s, strict=True)
        ]
        grown = [(pss_bytes(pid) - m) / flows for pid, m in zip(pids, memory, strict=True)]
        missing = flows - count_in(bench.replica)
        words = [system.trouble(), f"{missing} missing" if missing else ""]
    note = ", ".join(word for word in words if word)
    return CpuRun(used[0], used[1], sum(idle_ns_s) / 2e7, grown[0], grown[1], note)


def floor_receive(bench: Bench, flows: int, rate: float) -> float:
    """CPU µs an event of a loop that only takes them."""
    file = bench.flows(flows)
    flush(bench.owner)
    with bench.loops.running(bench.owner, "receive") as end:
        bench.make(file, rate)
        time.sleep(QUIET_S)
        outcome = end()
    flush(bench.owner)
    if outcome.failed or outcome.done != flows:
        raise StateError(f"the floor heard {outcome.done} of {flows} events")
    return outcome.cpu_ns / flows / 1e3


def floor_insert(bench: Bench, flows: int, rate: float) -> float:
    """CPU µs an entry of a loop that only sends creations, beside an event socket like ours."""
    file = bench.flows(flows, replica=True)
    flush(bench.replica)
    batch = FULL_BATCH if not rate else max(1, min(FULL_BATCH, int(rate / 1000)))
    outcome = bench.loops.insert(bench.replica, file, rate=rate, batch=batch, listens=True)
    flush(bench.replica)
    return outcome.cpu_ns / flows / 1e3


def measure_cpu(bench: Bench, flows: int, rate: float, *, full_speed: bool = True) -> list[Figure]:
    """Sender and receiver beside their floors, at full speed and paced; memory a flow."""
    figures: list[Figure] = []
    paces = [("full speed", 0.0)] if full_speed else []
    for words, pace in (*paces, (f"{rate:,.0f}/s", rate)):
        bench.say(f"cpu: floors, {words}")
        receive, insert = floor_receive(bench, flows, pace), floor_insert(bench, flows, pace)
        for system in bench.systems:
            bench.say(f"cpu: {system.name}, {words}")
            run = run_cpu(bench, system, flows, pace)
            aim = "<= 1.25 x floor" if system is bench.ours else ""
            figures += [
                beside(f"CPU per event, {words}", system.name, run.owner_us, "us", receive,
                       aim=aim, note=run.note),
                beside(f"CPU per entry, {words}", system.name, run.replica_us, "us", insert,
                       aim=aim, note=run.note),
            ]  # fmt: skip
            if not pace:
                continue
            aim = "<= 32 bytes" if system is bench.ours else ""
            figures += [
                Figure("memory per flow, owner", system.name, run.owner_bytes, "bytes", aim=aim),
                Figure("memory per flow, replica", system.name, run.replica_bytes, "bytes",
                       aim=aim),
                Figure("CPU when idle", system.name, run.idle_percent, "%"),
            ]  # fmt: skip
    return figures


def measure_packets(bench: Bench, flows: int, rate: float) -> list[Figure]:
    """As the sender's CPU, but packets make the flows: one UDP packet each, through SNAT."""
    bench.say("packets: floor")
    bench.spaces.carry(1)
    flush(bench.owner)
    with bench.loops.running(bench.owner, "receive") as end:
        bench.loops.packets(bench.spaces.client, rate, flows)
        time.sleep(QUIET_S)
        floor = end()
    bench.say("packets: hafw")
    with bench.running(bench.ours):
        pid = bench.ours.owner()
        (idle_ns_s,) = idle_cpu((pid,), bench.idle_s)
        before = cpu_ns(pid)
        begun = time.monotonic()
        bench.loops.packets(bench.spaces.client, rate, flows)
        made = count_in(bench.owner)
        came, _ = wait_count(bench.replica, made, DONE_BOUND_S)
        passed = time.monotonic() - begun
        used_us = per_flow_us(cpu_ns(pid) - before, idle_ns_s, passed, max(1, made))
        missing = made - count_in(bench.replica)
        note = "" if came else f"{missing} of {made} missing"
        trouble = bench.ours.trouble()
    return [
        beside(f"CPU per event, real packets, {rate:,.0f}/s", bench.ours.name,
               used_us, "us", floor.cpu_ns / max(1, floor.done) / 1e3,
               aim="<= 1.25 x floor", note=", ".join(w for w in (note, trouble) if w)),
    ]  # fmt: skip


def measure_rate(
    bench: Bench, rates: tuple[float, ...], seconds: float, bisections: int
) -> list[Figure]:
    """The highest rate at which nothing is lost and the replica keeps up."""
    best: dict[str, float] = {}
    notes: dict[str, str] = {}
    for system in bench.systems:
        good, bad, why = 0.0, 0.0, ""
        for rate in rates:
            bench.say(f"rate: {system.name}, {rate:,.0f}/s")
            if why := try_rate(bench, system, rate, seconds):
                bad = rate
                break
            good = rate
        for _ in range(bisections if good and bad else 0):
            middle = (good + bad) / 2
            bench.say(f"rate: {system.name}, {middle:,.0f}/s")
            reason = try_rate(bench, system, middle, seconds)
            good, bad, why = (good, middle, reason) if reason else (middle, bad, why)
        best[system.name] = good
        notes[system.name] = f"{bad:,.0f}/s: {why}" if bad else "no step failed"
    figures = []
    ours = best[bench.ours.name]
    for name, rate in best.items():
        if name == bench.ours.name:
            figures.append(Figure("flows/s, nothing lost", name, rate, "1/s", note=notes[name]))
        else:
            ratio = ours / rate if rate else None
            figures.append(Figure("flows/s, nothing lost", name, rate, "1/s", ours, ratio,
                                  "hafw >= 5 x", notes[name]))  # fmt: skip
    return figures


def try_rate(bench: Bench, system: System, rate: float, seconds: float) -> str:
    """Why a rate is too high; empty if it is kept up with and both tables are equal."""
    flows = int(rate * seconds)
    file = bench.flows(flows)
    with bench.running(system):
        made = bench.make(file, rate)
        ended = time.monotonic()
        came, at = wait_count(bench.replica, flows, DONE_BOUND_S)
        if not came:
            missing = flows - count_in(bench.replica)
            return f"{missing} of {flows} missing; {system.trouble()}".rstrip("; ")
        if trouble := system.trouble():
            return trouble
        if differ := tables_differ(bench.owner, bench.replica):
            return f"{differ} entries differ"
    tail = at - ended
    if made.wall_ns / 1e9 > seconds * (1 + SLOW_SHARE):
        return f"the generator made only {flows / made.wall_ns * 1e9:,.0f}/s"
    return f"{tail:.1f} s behind" if tail > seconds * TAIL_SHARE + TAIL_S else ""


def measure_wire(bench: Bench, flows: int, rate: float) -> list[Figure]:
    """Bytes a NEW, from the datagrams on the first sync link."""
    figures: list[Figure] = []
    for system in bench.systems:
        bench.say(f"wire: {system.name}")
        mine = system is bench.ours
        with bench.running(system), _tap(bench.replica, _is_delta if mine else _is_theirs) as seen:
            bench.make(bench.flows(flows), rate)
            wait_count(bench.replica, flows, DONE_BOUND_S)
            time.sleep(QUIET_S)
        datagrams, payload = len(seen), sum(seen)
        overhead = OUR_HEADER_AND_TAG if mine else 0
        note = f"{datagrams} datagrams, {flows / max(1, datagrams):.1f} flows each"
        aim = "<= 48 bytes" if mine else ""
        frames = payload + datagrams * ETHERNET_IP_UDP
        inner = (payload - datagrams * overhead) / flows
        if mine:
            figures.append(Figure("bytes per NEW, delta alone", system.name, inner, "bytes",
                                  aim=aim, note=note))  # fmt: skip
        figures += [
            Figure("bytes per NEW, UDP payload", system.name, payload / flows, "bytes", note=note),
            Figure("bytes per NEW, Ethernet frames", system.name, frames / flows, "bytes"),
        ]
    return figures


@contextmanager
def _tap(space: str, wanted: Callable[[bytes], bool]) -> Iterator[list[int]]:
    """Lengths of the UDP payloads that arrive from gw1 on sync0."""
    lengths: list[int] = []
    with entered(space):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.bind(("sync0", 0x0800))
    sock.settimeout(0.1)
    ending = threading.Event()

    def listen() -> None:
        while not ending.is_set():
            try:
                packet = sock.recv(65536)
            except TimeoutError:
                continue
            start = (packet[0] & 15) * 4 + 8
            if packet[9] == 17 and packet[15] & 127 == 1 and wanted(packet[start - 8 :]):
                lengths.append(len(packet) - start)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield lengths
    finally:
        ending.set()
        thread.join(5)
        sock.close()


def _is_delta(udp: bytes) -> bool:
    """hafw's DELTAS (`sync.wire`)."""
    return udp[8:12] == b"hCTS" and udp[13] == 1


def _is_theirs(udp: bytes) -> bool:
    """conntrackd's port; its acknowledgements and heartbeats are part of its price."""
    return int.from_bytes(udp[2:4], "big") == 3780


def measure_delay(bench: Bench, rate: float, seconds: float) -> list[Figure]:
    """From the owner's NEW event to the replica's, both by the kernel's own stamp."""
    flows = int(rate * seconds)
    file = bench.flows(flows)
    figures: list[Figure] = []
    for system in bench.systems:
        bench.say(f"delay: {system.name}")
        stamps = [bench.spaces.folder / f"stamps{number}" for number in (1, 2)]
        with (
            bench.running(system),
            bench.loops.running(bench.owner, "stamp", str(stamps[0])) as end_owner,
            bench.loops.running(bench.replica, "stamp", str(stamps[1])) as end_replica,
        ):
            bench.make(file, rate)
            wait_count(bench.replica, flows, DONE_BOUND_S)
            time.sleep(QUIET_S)
            lost = end_owner().failed + end_replica().failed
        first, second = (read_stamps(path) for path in stamps)
        by_kernel = all(stamp.kernel_ns for stamp in first.values())
        delays_ms = sorted(
            ((after.kernel_ns - before.kernel_ns) if by_kernel else after.seen_ns - before.seen_ns)
            / 1e6
            for key, before in first.items()
            if (after := second.get(key)) is not None
        )
        missing = flows - len(delays_ms)
        notes = [f"{missing} not matched" if missing else "", "overrun" if lost else "",
                 "" if by_kernel else "by the listeners' clocks"]  # fmt: skip
        note = ", ".join(word for word in notes if word)
        for name, percent, aim in (("p50", 50, "<= 0.5 ms"), ("p99", 99, "<= 2 ms"),
                                   ("max", 100, "")):  # fmt: skip
            figures.append(
                Figure(f"event to entry at {rate:,.0f}/s, {name}", system.name,
                       percentile(delays_ms, percent), "ms",
                       aim=aim if system is bench.ours else "", note=note)
            )  # fmt: skip
    return figures
