"""syncd without a free descriptor: what is open goes on, what fails is tried again."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from sync.ctsocket import RequestSocket
from sync.dumper import Dumper, Waker
from tests.integration.syncd_world import Gateway, World, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration


@contextmanager
def no_descriptor_free(gateway: Gateway) -> Iterator[None]:
    assert gateway.process is not None
    pid = gateway.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(4096)) - used), hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def test_syncd_asks_for_all_descriptors_it_may_have(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with syncd_world(tmp_path, 1) as world:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        try:
            world[1].start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert world[1].process is not None
        limits = resource.prlimit(world[1].process.pid, resource.RLIMIT_NOFILE)
        assert limits == (hard, hard)


def test_the_links_stay_open_and_a_snapshot_is_asked_for_again(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(20))
    pair.wait_equal(1, 2)
    with no_descriptor_free(gw2):
        time.sleep(2.5)  # Links are looked at once a second.
        gw1.put(mixed(20, first=40))
        pair.wait_equal(1, 2)
        gw2.flush()
        wait_for("no socket", lambda: gw2.counter("snapshot_connect_EMFILE") > 1)
        status = gw2.status()
        assert status is not None
        assert not [alarm for alarm in status.alarms if "sync link" in alarm], status.alarms
        assert not status.groups[0].synced
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 40


def test_a_holder_repeats_a_pass_that_could_not_dump(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(20))
    pair.wait_equal(1, 2)
    with no_descriptor_free(gw1):
        pair.lead(1, 2, contiguous=True)
        wait_for("a failed pass", lambda: gw1.counter("passes_failed") > 0)
    gw2.wait_synced()
    pair.wait_equal(1, 2)


@pytest.mark.parametrize("free", [0, 1, 2])
def test_a_dump_always_ends(free: int) -> None:
    """Without a descriptor for its sockets, for the namespace of one, for our own namespace."""
    waker = Waker()
    with RequestSocket() as probe, ExitStack() as filled:
        assert list(probe.dump(1, 1)) is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        filled.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        taken: list[int] = []
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(free):
            os.close(taken.pop())
        for descriptor in taken:
            filled.callback(os.close, descriptor)
        dumper = Dumper(0, 0, waker, avoid_cpu=None)
        until = time.monotonic() + 5
        while not dumper.done and time.monotonic() < until:
            dumper.take()
            time.sleep(0.01)
    waker.close()
    assert dumper.done
    assert dumper.error is not None
    assert dumper.error.errno == errno.EMFILE
