"""Real servers and clients with much to say: http.server and curl, dnsmasq's TFTP and curl.

curl writes into a pipe that the test reads, so that the test decides how far a transfer is: when
nobody reads, the receive window fills, far above 4 MB. Each step reads more than all buffers hold,
so that megabytes pass at every gateway. Every byte is compared. One transfer for each of SNAT and
DNAT, IPv4 and IPv6, all at once.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.integration.ct_spaces import inside
from tests.integration.helper_world import INSIDE, OUTSIDE, VIP, HelperWorld, helper_world
from tests.integration.syncd_world import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WINDOW_BYTES_MIN = 4_000_000
STEP_BYTES = {"http": 10_000_000, "tftp": 1_000_000}
"""More than what the receiving socket, curl and the pipe hold of a transfer that stands still."""
BUFFERS = "4096 12000000 12000000"


@dataclass
class Download:
    name: str
    process: subprocess.Popen[bytes]
    content: bytes
    done: int = 0

    def advance(self, count: int, timeout_s: float = 15.0) -> None:
        """So many bytes more, and the right ones; AssertionError if they do not come."""
        assert self.process.stdout is not None
        pipe, until = self.process.stdout.fileno(), time.monotonic() + timeout_s
        target = min(self.done + count, len(self.content))
        while self.done < target:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{self.done} of {target} after {timeout_s} s"
            part = os.read(pipe, min(1 << 20, target - self.done))
            assert part, f"the transfer ended at {self.done}"
            assert part == self.content[self.done : self.done + len(part)], "wrong content"
            self.done += len(part)

    def finish(self) -> None:
        self.advance(len(self.content))
        assert self.process.stdout is not None
        assert self.process.stdout.read() == b""
        assert self.process.wait(10) == 0


def stuck(downloads: list[Download], count: int | None, timeout_s: float = 15.0) -> dict[str, str]:
    """Those that do not go on by so many bytes, or to their end, and why."""

    def tried(one: Download) -> str:
        try:
            one.finish() if count is None else one.advance(count, timeout_s)
        except AssertionError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(downloads)) as pool:
        found = zip(downloads, pool.map(tried, downloads), strict=True)
        return {one.name: error for one, error in found if error}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait(10)


@contextmanager
def served(world: HelperWorld, folder: Path, size: int) -> Iterator[bytes]:
    """HTTP on 8080 and TFTP on 69, at both ends, in both families."""
    content = random.Random(1).randbytes(size)
    (folder / "file").write_bytes(content)
    with ExitStack() as stack, (folder / "log").open("wb") as log:
        for space, hosts in ((world.inside, INSIDE), (world.outside, OUTSIDE)):
            for name in ("rmem", "wmem"):
                inside(space, "sysctl", "-qw", f"net.ipv4.tcp_{name}={BUFFERS}")
            tftp = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root"]
            tftp += ["--enable-tftp", f"--tftp-root={folder}", "--bind-interfaces", "--pid-file="]
            tftp += [f"--listen-address={host}" for host in hosts.values()]
            http = [sys.executable, "-m", "http.server", "8080", "--bind"]
            for argv in (tftp, *([*http, host] for host in hosts.values())):
                full = ["nsenter", f"--net=/run/netns/{space}", *argv]
                process = subprocess.Popen(full, cwd=folder, stdout=log, stderr=log)
                stack.callback(_end, process)
            for host, (flag, port) in product(hosts.values(), (("-Hltn", 8080), ("-Hlun", 69))):
                seen = ("ss", flag, "sport", "=", str(port))
                wait_for(f"{host} port {port}", lambda: host in inside(space, *seen))  # noqa: B023
        yield content


def begun(world: HelperWorld, stack: ExitStack, scheme: str, content: bytes) -> list[Download]:
    found = []
    for translation, version in product(("snat", "dnat"), (4, 6)):
        snat = translation == "snat"
        near, target = (world.inside, OUTSIDE) if snat else (world.outside, VIP)
        host = f"[{target[version]}]" if version == 6 else target[version]
        url = f"{scheme}://{host}:{8080 if scheme == 'http' else 69}/file"
        argv = ["nsenter", f"--net=/run/netns/{near}", "curl", "-sSN", url]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        stack.callback(_end, process)
        found.append(Download(f"{scheme} v{version} {translation}", process, content))
    assert stuck(found, 300_000) == {}
    return found


def refuse_new(world: HelperWorld) -> None:
    for number in (1, 2):
        world.refuse_new(number)


def waiting_bytes(world: HelperWorld) -> list[int]:
    """What curl's four sockets have received and curl has not read: no more than was offered."""
    found = []
    for space in (world.inside, world.outside):
        text = inside(space, "ss", "-Htn", "dport", "=", "8080")
        found += [int(line.split()[1]) for line in text.splitlines()]
    return found


def test_downloads_with_large_windows_survive_a_power_cut(tmp_path: Path) -> None:
    with (
        helper_world() as world,
        served(world, tmp_path, 30_000_000) as content,
        ExitStack() as stack,
    ):
        downloads = begun(world, stack, "http", content)
        refuse_new(world)
        wait_for(
            lambda: f"windows: {waiting_bytes(world)}",
            lambda: sum(size > WINDOW_BYTES_MIN for size in waiting_bytes(world)) == 4,
        )
        flows = [entry.tcp for entry in world.cluster[1].table().values()]
        scales = [tcp.wscale_orig for tcp in flows if tcp is not None and tcp.state == 3]
        assert len(scales) == 4
        assert min(scales) >= 7
        world.replicated()
        # Running, not standing still: the cut falls between two packets of a full window.
        assert stuck(downloads, 1_000_000) == {}
        world.power_cut()
        assert stuck(downloads, None) == {}


@pytest.mark.parametrize("scheme", ["http", "tftp"])
def test_transfers_survive_there_and_back(tmp_path: Path, scheme: str) -> None:
    step = STEP_BYTES[scheme]
    with (
        helper_world() as world,
        served(world, tmp_path, 6 * step) as content,
        ExitStack() as stack,
    ):
        downloads = begun(world, stack, scheme, content)
        refuse_new(world)
        for counter, number in enumerate((2, 1, 2, 1), 2):
            world.replicated(3 - number)
            world.move(number, counter)
            assert stuck(downloads, step) == {}, f"at gw{number}"
        assert stuck(downloads, None) == {}


@pytest.mark.long
def test_without_sync_they_end(tmp_path: Path) -> None:
    with (
        helper_world() as world,
        served(world, tmp_path, 30_000_000) as content,
        ExitStack() as stack,
    ):
        for link in (0, 1):
            world.cluster.cut(link)
        downloads = begun(world, stack, "http", content) + begun(world, stack, "tftp", content)
        refuse_new(world)
        world.power_cut()
        ended = stuck(downloads, STEP_BYTES["http"], timeout_s=2.5)
        assert ended.keys() == {one.name for one in downloads}
