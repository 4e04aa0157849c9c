"""Judge (a)'s eyes: what the kernel holds for every gateway's gate, recorded. Shell.

`python -m hafw.lab.probe_gate deadlines|devices --config FILE --prefix hafw-`; JSON lines on stdin
(`{"op": "report"}` gives what was recorded and forgets it) and stdout; ends with stdin.

`deadlines` maps the pinned page of every gateway read-only and samples it every millisecond, from
two CPUs: what the kernel does without letting go of a CPU (an nft load, the end of a namespace)
would hide a tenth of a second from whoever waits for that one, however urgent.
`devices` looks every 100 ms, in each gateway's namespace, for virtual MAC devices that are up
without *our gate* first on both hooks. "Our gate" is decided by the kernel's tag of the program's
instructions, compared with that of a program assembled afresh: no name and no flag is believed.

A node without pins has no open gate of its own: its devices, if it had any, are unguarded then,
and the second process says so.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from cluster import bpf
from cluster.gate import GateReader, Hook
from cluster.gate_program import MAP_BYTES, program_bytes, program_name
from hafw.config.load import load_cluster
from hafw.config.model import ClusterConfig
from hafw.cpus import lease_cpu, usable_cpus
from hafw.errors import HafwError, KernelError
from hafw.lab.inside import enter
from hafw.lab.judges import Change, Span
from hafw.lab.probe_loop import become_realtime, now_ns
from hafw.paths import NodePaths

__all__ = ["DeadlineRecord", "DeviceRecord", "DeviceWatch", "GateSampler", "fresh_tags", "main"]

SAMPLE_S = 0.001
DEVICES_S = 0.1
GAPS_MAX = 2_000_000
_COMMAND_EVERY = 10
"""Samples between two looks at stdin."""
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1


class DeadlineRecord(msgspec.Struct, frozen=True):
    """Changes by gateway and group name, the last sample's time, and all sample gaps in ns."""

    changes: dict[str, dict[str, list[Change]]]
    end_ns: int
    gaps_ns: list[int]


class DeviceRecord(msgspec.Struct, frozen=True):
    """Unguarded spans by gateway and group name, and what was wrong, in words. `gap_ns_max`: the
    longest time without a look at one of the gateways."""

    unguarded: dict[str, dict[str, list[Span]]]
    reasons: dict[str, str]
    looks: int
    gap_ns_max: int


class _GatewayPage:
    """One node's page, followed over removal and re-creation of its pin."""

    def __init__(self, paths: NodePaths, groups: dict[str, int]) -> None:
        self._paths = paths
        self._groups = groups
        self._pin = paths.bpf / "gate"
        self._inode = 0
        self._reader: GateReader | None = None
        self.changes: dict[str, list[Change]] = {name: [] for name in groups}

    def sample(self, before_ns: int) -> None:
        self._follow()
        for name, index in self._groups.items():
            announce_ns = accept_ns = 0
            if self._reader is not None:
                deadlines = self._reader.read(index)
                announce_ns, accept_ns = deadlines.announce_ns, deadlines.accept_ns
            changes = self.changes[name]
            last = changes[-1] if changes else None
            if last and last.announce_ns == announce_ns and last.accept_ns == accept_ns:
                continue
            changes.append(Change(before_ns, now_ns(), announce_ns, accept_ns))

    def take(self) -> dict[str, list[Change]]:
        """What was recorded; the last change stays, so that the next record begins with it."""
        taken = self.changes
        self.changes = {name: changes[-1:] for name, changes in taken.items()}
        return taken

    def _follow(self) -> None:
        try:
            inode = os.stat(self._pin).st_ino
        except OSError:
            inode = 0
        if inode == self._inode:
            return
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if inode:
            # Between the pin and its first content, or just removed: the next sample tries again.
            with suppress(HafwError):
                self._reader = GateReader.open(self._paths)
        self._inode = inode if self._reader is not None else 0


class GateSampler:
    """Samples the pages of all gateways. Any thread may."""

    def __init__(self, config: ClusterConfig) -> None:
        groups = {name: group.index for name, group in config.groups.items()}
        self._pages = {
            name: _GatewayPage(NodePaths(name), groups)
            for name, node in config.nodes.items()
            if node.role == "gateway"
        }
        self._lock = threading.Lock()
        self._last_ns = now_ns()
        self._gaps_ns: list[int] = []

    def sample(self) -> None:
        with self._lock:
            self._sample()

    def _sample(self) -> None:
        # Taken before the reading, so that what is read is true at this moment or later.
        now = now_ns()
        for page in self._pages.values():
            page.sample(self._last_ns)
        if len(self._gaps_ns) < GAPS_MAX:
            self._gaps_ns.append(now - self._last_ns)
        else:  # Half an hour: the gaps are a sample then, but the longest is among them.
            self._gaps_ns[-1] = max(self._gaps_ns[-1], now - self._last_ns)
        self._last_ns = now

    def take(self) -> DeadlineRecord:
        with self._lock:
            gaps_ns, self._gaps_ns = self._gaps_ns, []
            changes = {name: page.take() for name, page in self._pages.items()}
            return DeadlineRecord(changes, self._last_ns, gaps_ns)


class DeviceWatch(threading.Thread):
    """Looks at one gateway's virtual MAC devices from inside its namespace."""

    def __init__(self, namespace: str, node: str, config: ClusterConfig) -> None:
        super().__init__(name=f"devices-{node}", daemon=True)
        self._namespace = namespace
        self._paths = NodePaths(node)
        self._segments = tuple(config.nodes[node].segments)
        self._groups = config.groups
        self._lock = threading.Lock()
        self._tags = {group.index: fresh_tags(group.index) for group in config.groups.values()}
        self._spans: dict[str, list[Span]] = {name: [] for name in self._groups}
        self._was_open: set[str] = set()
        self.reason = ""
        self.looks = 0
        self._looked_ns = now_ns()
        self._gap_ns_max = 0

    def run(self) -> None:
        while True:
            try:
                enter(self._namespace)
                break
            except HafwError:
                time.sleep(DEVICES_S)
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        last_ns = now_ns()
        while True:
            self._look(probe, last_ns)
            last_ns = now_ns()
            time.sleep(DEVICES_S)

    def take(self) -> tuple[dict[str, list[Span]], str, int, int]:
        """Unguarded spans, the first reason ever, looks, and the longest time without one."""
        with self._lock:
            gap_ns = max(self._gap_ns_max, now_ns() - self._looked_ns)
            self._gap_ns_max = 0
            taken = self._spans
            self._spans = {name: [] for name in self._groups}
            looks, self.looks = self.looks, 0
            return taken, self.reason, looks, gap_ns

    def _look(self, probe: socket.socket, last_ns: int) -> None:
        for name, group in self._groups.items():
            why = ""
            for segment in group.vips:
                if segment in self._segments:
                    why = why or self._unguarded(probe, group.index, group.device(segment))
            # What was open at two looks in a row was open between them.
            now = now_ns()
            with self._lock:
                if why:
                    self.reason = self.reason or why
                    start = last_ns if name in self._was_open else now - 1
                    self._spans[name].append(Span(start, now))
                    self._was_open.add(name)
                else:
                    self._was_open.discard(name)
        with self._lock:
            self.looks += 1
            now = now_ns()
            self._gap_ns_max = max(self._gap_ns_max, now - self._looked_ns)
            self._looked_ns = now

    def _unguarded(self, probe: socket.socket, group_index: int, device: str) -> str:
        """Why the device is open, or nothing. Twice the same, or it is a device in the making."""
        why = ""
        for _ in range(2):
            if not _is_up(probe, device):
                return ""
            why = _hooks_problem(self._paths, group_index, device, self._tags[group_index])
            if not why:
                return ""
        return f"{self._paths.node} {device}: {why}"


def fresh_tags(group_index: int) -> dict[Hook, bytes]:
    """The kernel's tags of this release's gate, from programs loaded for that and dropped."""
    tags = {}
    with bpf.closing(bpf.create_array("hafw_judge", MAP_BYTES)) as map_fd:
        for hook in Hook:
            code = program_bytes(hook, group_index, map_fd, always_pass=False)
            name = program_name(hook, group_index, always_pass=False)
            with bpf.closing(bpf.load_program(name, code)) as fd:
                tags[hook] = bpf.program_info(fd).tag
    return tags


def _is_up(probe: socket.socket, device: str) -> bool:
    request = struct.pack("16sH14x", device.encode(), 0)
    try:
        answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, request)
    except OSError:
        return False
    (flags,) = struct.unpack_from("H", answer, 16)
    return bool(flags & _IFF_UP)


def _hooks_problem(
    paths: NodePaths, group_index: int, device: str, tags: dict[Hook, bytes]
) -> str:
    """What is wrong with the hooks of a device of this thread's namespace; empty if nothing."""
    try:
        ifindex = socket.if_nametoindex(device)
    except OSError:
        return ""  # It has just gone.
    try:
        with bpf.closing(bpf.open_pin(paths.bpf / "gate")) as fd:
            page_id = bpf.map_id(fd)
        for hook in Hook:
            chain = bpf.query_tcx(ifindex, hook.value, device)
            if not chain:
                return f"no program on hook {hook.word}"
            pin = paths.bpf / f"prog-{group_index}-{hook.word}"
            with bpf.closing(bpf.open_pin(pin)) as fd:
                program = bpf.program_info(fd)
            if chain[0][0] != program.id:
                return f"another program runs first on hook {hook.word}"
            if program.tag != tags[hook] or page_id not in program.map_ids:
                return f"the program on hook {hook.word} is not the gate"
    except KernelError as error:
        return str(error)
    return ""


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(prog="probe_gate")
    parser.add_argument("role", choices=["deadlines", "devices"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prefix", required=True)
    arguments = parser.parse_args()
    config = load_cluster(arguments.config)
    if arguments.role == "deadlines":
        _run_deadlines(config)
    else:
        _run_devices(config, arguments.prefix)


def _run_deadlines(config: ClusterConfig) -> None:
    sampler = GateSampler(config)
    # Our own nft loads keep off the lease loop's CPU, whose own priority is higher than ours.
    cpus = usable_cpus()
    own = lease_cpu(config.cpus, cpus)
    if others := cpus - {own}:
        beside = (sampler, min(others))
        threading.Thread(target=_sample_beside, args=beside, name="beside", daemon=True).start()
    become_realtime(own)
    for number in range(sys.maxsize):
        sampler.sample()
        if number % _COMMAND_EVERY == 0 and select.select([0], [], [], 0)[0]:
            if not _read_request():
                return
            _answer(sampler.take())
        time.sleep(SAMPLE_S)


def _sample_beside(sampler: GateSampler, cpu: int) -> None:
    become_realtime(cpu)
    while True:
        sampler.sample()
        time.sleep(SAMPLE_S)


def _run_devices(config: ClusterConfig, prefix: str) -> None:
    watches = {
        name: DeviceWatch(f"{prefix}{name}", name, config)
        for name, node in config.nodes.items()
        if node.role == "gateway"
    }
    for watch in watches.values():
        watch.start()
    while _read_request():
        taken = {name: watch.take() for name, watch in watches.items()}
        _answer(
            DeviceRecord(
                {name: spans for name, (spans, _, _, _) in taken.items()},
                {name: reason for name, (_, reason, _, _) in taken.items() if reason},
                min(looks for _, _, looks, _ in taken.values()),
                max(gap_ns for _, _, _, gap_ns in taken.values()),
            )
        )


def _read_request() -> bool:
    """One line from stdin; False at its end."""
    return bool(os.read(0, 4096))


def _answer(record: DeadlineRecord | DeviceRecord) -> None:
    view = memoryview(msgspec.json.encode(record) + b"\n")
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
