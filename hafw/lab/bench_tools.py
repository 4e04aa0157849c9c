"""What measuring ct_sync needs: the C loops, flows in files, CPU time and memory of a process.

CPU time is the process' own clock (all its threads, those that have ended too, user and system),
read from outside in nanoseconds. Memory is PSS. Shell.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from hafw.errors import StateError
from hafw.flow import AF_INET, IPPROTO_TCP, FlowEntry, FlowKey, TcpState, Tuple, hafw_mark
from hafw.lab.ct_compare import raw_tuples
from hafw.lab.inside import call_in
from hafw.lab.sync_network import GROUP, run
from sync.ctnetlink import build_create

__all__ = [
    "Loops",
    "Outcome",
    "Stamp",
    "bench_flow",
    "compile_loops",
    "count_in",
    "cpu_ns",
    "flow_requests",
    "flush",
    "pss_bytes",
    "read_stamps",
    "tables_differ",
    "wait_count",
    "write_flows",
]

FLOW_TIMEOUT_S = 7200
LOOP_ENDS_S = 60.0
COUNT_POLL_S = 0.01
STABLE_S = 3.0
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_RECORD_BYTES = 104
_SERVER, _VIP = ip_address("198.51.100.10").packed, ip_address("198.51.100.254").packed
_PORTS = 50_000


class Outcome(NamedTuple):
    """What one of the C loops says at its end."""

    done: int
    failed: int
    cpu_ns: int
    wall_ns: int = 0
    errno: int = 0
    late_ns: int = 0


class Stamp(NamedTuple):
    """When an entry was made: by the kernel's own stamp, and when the listener had it."""

    kernel_ns: int
    seen_ns: int


def compile_loops(folder: Path) -> Path:
    """The C loops, built here and now. Raises StateError without a compiler."""
    source = Path(__file__).with_name("ctbench.c")
    program = folder / "ctbench"
    try:
        run("gcc", "-O2", "-Wall", "-o", str(program), str(source))
    except FileNotFoundError:
        raise StateError(
            "measuring needs a C compiler for the loops to compare with: apt install gcc libc6-dev"
        ) from None
    return program


class Loops:
    """Runs the C loops in namespaces."""

    def __init__(self, program: Path, cpu: int | None = None) -> None:
        self._program = program
        self._pin = [] if cpu is None else ["taskset", "-c", str(cpu)]

    def _argv(self, space: str, words: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{space}", *self._pin, str(self._program), *words]

    def insert(
        self, space: str, flows: Path, *, rate: float = 0, batch: int = 64, listens: bool = False
    ) -> Outcome:
        """Send a file of requests. Raises StateError if any was refused."""
        words = ("insert", str(flows), str(rate), str(batch), str(int(listens)))
        outcome = _outcome(run(*self._argv(space, words), timeout_s=3600))
        if outcome.failed:
            raise StateError(
                f"{outcome.failed} of {outcome.done} creations: errno {outcome.errno}"
            )
        return outcome

    def packets(self, space: str, rate: float, count: int) -> Outcome:
        words = ("packets", str(rate), str(count))
        return _outcome(run(*self._argv(space, words), timeout_s=3600))

    @contextmanager
    def running(self, space: str, *words: str) -> Iterator[Callable[[], Outcome]]:
        """A loop that listens, from now on; the value yielded ends it and says what it did."""
        process = subprocess.Popen(
            self._argv(space, words), stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        ended: list[Outcome] = []

        def end() -> Outcome:
            deadline = time.monotonic() + LOOP_ENDS_S
            while process.poll() is None:
                # Once more: a signal just before its poll() does not wake it.
                process.send_signal(signal.SIGTERM)
                if time.monotonic() > deadline:
                    raise StateError(f"{words[0]} does not end")
                time.sleep(0.02)
            assert process.stdout is not None
            ended.append(_outcome(process.stdout.read()))
            return ended[0]

        try:
            if process.stdout.readline() != "ready\n":
                raise StateError(f"{' '.join(words)} did not start")
            yield end
        finally:
            if not ended:
                process.kill()
                process.wait(LOOP_ENDS_S)
            process.stdout.close()


def _outcome(text: str) -> Outcome:
    facts = json.loads(text)
    return Outcome(**{name: facts[name] for name in Outcome._fields if name in facts})


def bench_flow(number: int, *, group: int = GROUP, owner: int = 1) -> FlowEntry:
    """IPv4 TCP, established and ASSURED, SNAT to the VIP: what most flows of a firewall are."""
    client, port, service = _values_of(number)
    sport, dport = int.from_bytes(port, "big"), int.from_bytes(service, "big")
    orig = Tuple(AF_INET, IPPROTO_TCP, client, _SERVER, sport, dport)
    reply = Tuple(AF_INET, IPPROTO_TCP, _SERVER, _VIP, dport, sport)
    tcp = TcpState(3, 0x23, 0x23, 7, 7)
    return FlowEntry(
        FlowKey(0, orig), reply, 0x0E, FLOW_TIMEOUT_S, hafw_mark(group, owner, owner), tcp
    )


def write_flows(path: Path, count: int, *, owner: int = 1, replica: bool = False) -> Path:
    """Requests that create `count` flows, as packets would have made them, or as a replica is
    made."""
    with path.open("wb") as file:
        file.writelines(flow_requests(count, owner=owner, replica=replica))
    return path


def flow_requests(count: int, *, owner: int = 1, replica: bool = False) -> Iterator[bytes]:
    """The creations of `bench_flow` 0 to `count`: all alike but for the client, its port (which
    is the VIP's too) and the server's port, so one message is built and those are put in."""
    first = build_create(bench_flow(0, owner=owner), pristine=replica)
    marked = build_create(_marked(bench_flow(0, owner=owner)), pristine=replica)
    places = [_places(marked, value) for value in _MARKS]
    assert all(places), "a mark is missing"
    message = bytearray(first)
    for number in range(count):
        for where, value in zip(places, _values_of(number), strict=True):
            for start in where:
                message[start : start + len(value)] = value
        yield bytes(message)


_MARKS = (b"\xfa\xfb\xfc\xfd", b"\xf5\xf6", b"\xf7\xf8")


def _values_of(number: int) -> tuple[bytes, bytes, bytes]:
    """Client, its port, the server's port."""
    high, low = divmod(number, _PORTS)
    client = bytes((10, high >> 8 & 0xFF, high & 0xFF, 10 + number % 200))
    return client, (10_000 + low).to_bytes(2, "big"), (1000 + high).to_bytes(2, "big")


def _marked(entry: FlowEntry) -> FlowEntry:
    client, port, service = _MARKS
    sport, dport = int.from_bytes(port, "big"), int.from_bytes(service, "big")
    orig = replace(entry.key.orig, src=client, sport=sport, dport=dport)
    reply = replace(entry.reply, sport=dport, dport=sport)
    return replace(entry, key=FlowKey(0, orig), reply=reply)


def _places(message: bytes, value: bytes) -> list[int]:
    found, at = [], message.find(value)
    while at >= 0:
        found.append(at)
        at = message.find(value, at + 1)
    return found


def cpu_ns(pid: int) -> int:
    """CPU time of a process so far, dead threads included. Raises StateError if it is gone."""
    try:
        # clock_getcpuclockid(3): CPUCLOCK_SCHED of the whole thread group.
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        raise StateError(f"process {pid} has ended") from None


def pss_bytes(pid: int) -> int:
    """Memory of a process, shared pages by its share of them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise StateError(f"process {pid} has no smaps_rollup")


def count_in(space: str) -> int:
    """nf_conntrack_count of a namespace."""
    return call_in(space, lambda: int(_COUNT.read_text()))


def flush(*spaces: str) -> None:
    """Empty the tables."""
    for space in spaces:
        run("nsenter", f"--net=/run/netns/{space}", "conntrack", "-F")


def wait_count(
    space: str, wanted: int, bound_s: float, *, patience_s: float = STABLE_S
) -> tuple[bool, float]:
    """Whether the table came to hold `wanted` entries, and when (monotonic) it last grew. Gives
    up when it has not grown for `patience_s`."""
    deadline = time.monotonic() + bound_s
    last, grown_at = -1, time.monotonic()
    while (now := time.monotonic()) < deadline:
        count = count_in(space)
        if count != last:
            last, grown_at = count, now
        if count >= wanted:
            return True, grown_at
        if now - grown_at > patience_s:
            break
        time.sleep(COUNT_POLL_S)
    return False, grown_at


def tables_differ(one: str, other: str) -> int:
    """Entries, by both tuples, that only one of two namespaces has."""
    return len(raw_tuples(one) ^ raw_tuples(other))


def read_stamps(path: Path) -> dict[bytes, Stamp]:
    """By original tuple, as the kernel writes it."""
    data = path.read_bytes()
    found: dict[bytes, Stamp] = {}
    for at in range(0, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
        kernel_ns, seen_ns = (
            int.from_bytes(data[at + start : at + start + 8], "little") for start in (0, 8)
        )
        length = int.from_bytes(data[at + 16 : at + 20], "little")
        found[data[at + 20 : at + 20 + length]] = Stamp(kernel_ns, seen_ns)
    return found
