"""The sockets to the kernel: events and their loss, errors, dumps in pieces."""

from __future__ import annotations

import errno
import itertools
import socket
import struct

import pytest

from hafw.errors import KernelError
from hafw.flow import FlowKey, TcpState
from hafw.kernel.netns import entered
from sync._codec import receive_dump
from sync.ctnetlink import (
    EventKind,
    MalformedMessageError,
    build_create,
    build_delete,
    build_update,
    parse_dump,
)
from sync.ctsocket import BATCH_MESSAGES_MAX, EventSocket, Overrun, RequestSocket
from tests.integration.ct_entries import TCP, UDP, entry_of, many
from tests.integration.ct_spaces import conntrack_list

pytestmark = pytest.mark.integration


def test_events_of_our_own_requests_carry_our_port_id(
    requests: RequestSocket, events: EventSocket
) -> None:
    entry = entry_of(4, TCP, "both", zone=7, mark=0x11410007)
    assert requests.execute(
        [build_create(entry), build_update(entry.key, timeout_s=77), build_delete(entry.key)]
    ) == [0, 0, 0]
    heard = events.drain(10)
    assert [event.kind for event in heard] == [
        EventKind.NEW,
        EventKind.UPDATE,
        EventKind.DESTROY,
    ]
    assert {event.pid for event in heard} == {requests.port_id}
    assert events.port_id not in (0, requests.port_id)
    assert {(event.entry.key, event.entry.reply) for event in heard} == {(entry.key, entry.reply)}
    assert heard[0].entry.tcp == TcpState(3, 0x0B, 0x0B, 7, 9)
    assert heard[2].entry.mark == entry.mark
    assert all(event.time_ns for event in heard)
    assert events.drain(10) == []


def test_drain_stops_at_its_limit_and_goes_on(
    requests: RequestSocket, events: EventSocket
) -> None:
    entries = many(3000)
    assert set(requests.execute([build_create(entry) for entry in entries])) == {0}
    heard = list(itertools.chain.from_iterable(iter(lambda: events.drain(700), [])))
    assert [event.entry.key for event in heard] == [entry.key for entry in entries]


def test_a_small_buffer_overruns_loudly_after_what_it_held(
    space: str, requests: RequestSocket
) -> None:
    with entered(space):
        small = EventSocket(rcvbuf_bytes=16 << 10)
    with small:
        entries = many(1000)
        requests.execute([build_create(entry) for entry in entries])
        heard: list[FlowKey] = []
        overruns = []
        for _ in range(20):
            try:
                heard += [event.entry.key for event in small.drain(10000)]
            except Overrun as overrun:
                overruns.append(overrun)
        assert [overrun.errno for overrun in overruns] == [errno.ENOBUFS]
        assert (overruns[0].count, small.overruns) == (1, 1)
        # What was in the buffer is not lost with the rest.
        assert 0 < len(heard) < 1000
        assert heard == [entry.key for entry in entries[: len(heard)]]
        assert small.drain(10) == []
        requests.execute([build_delete(entries[0].key)])
        assert [event.kind for event in small.drain(10)] == [EventKind.DESTROY]


def test_execute_maps_each_errno_to_its_message(requests: RequestSocket) -> None:
    entries = many(3 * BATCH_MESSAGES_MAX)
    present = entries[::3]
    requests.execute([build_create(entry) for entry in present])
    results = requests.execute([build_create(entry) for entry in entries])
    assert results == [errno.EEXIST if index % 3 == 0 else 0 for index in range(len(entries))]
    # All fail: the answers of a whole batch fit the buffer.
    assert set(requests.execute([build_create(entry) for entry in entries])) == {errno.EEXIST}
    assert requests.execute([]) == []
    mixed = [build_delete(entries[0].key), build_delete(entries[0].key),
             build_update(entries[1].key, status=0x08)]  # fmt: skip
    assert requests.execute(mixed) == [0, errno.ENOENT, errno.EBUSY]


def test_a_socket_that_fails_says_so_as_a_kernel_error(space: str) -> None:
    with entered(space):
        requests, events = RequestSocket(), EventSocket()
    requests.close()
    events.close()
    key = entry_of(4, UDP, "plain").key
    for attempt in (
        lambda: requests.execute([build_delete(key)]),
        lambda: requests.get(key),
        lambda: events.drain(1),
    ):
        with pytest.raises(KernelError) as failed:
            attempt()
        assert failed.value.errno == errno.EBADF


def test_a_delete_without_a_tuple_never_reaches_the_kernel(
    space: str, requests: RequestSocket
) -> None:
    entry = entry_of(4, UDP, "plain")
    requests.execute([build_create(entry)])
    flush = struct.pack("=IHHIIBBH", 20, 0x102, 1, 0, 0, 0, 0, 0)
    with pytest.raises(AssertionError):
        requests.execute([flush])
    assert len(conntrack_list(space, "ipv4")) == 1
    # It would have: the assertion guards something real.
    with entered(space):
        raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with raw:
        raw.send(flush)
    assert conntrack_list(space, "ipv4") == []


def test_a_dump_filters_by_mark_and_lets_other_work_through(requests: RequestSocket) -> None:
    ours, others = many(4000, mark=0x11410003), [entry_of(6, UDP, "snat", mark=0x21410003)]
    requests.execute([build_create(entry) for entry in ours + others])
    chunks = 0
    seen: list[FlowKey] = []
    for chunk in requests.dump(0x10000000, 0xF0000000):
        chunks += 1
        seen += [entry.key for entry in chunk]
        # On the same RequestSocket, in the middle of the dump.
        assert requests.execute([build_update(ours[0].key, timeout_s=50)]) == [0]
        assert requests.get(others[0].key) is not None
    assert chunks > 3
    assert sorted(seen, key=str) == sorted((entry.key for entry in ours), key=str)
    assert sum(len(chunk) for chunk in requests.dump()) == 4001
    assert [len(chunk) for chunk in requests.dump(0x20000000, 0xF0000000)] == [1]
    assert list(requests.dump(0x30000000, 0xF0000000)) == []


@pytest.mark.parametrize("room", [64 << 10, 200_000, 1 << 20])
def test_a_dump_in_large_pieces_shows_what_one_in_small_ones_shows(
    requests: RequestSocket, room: int
) -> None:
    ours = many(4000, mark=0x11410003)
    requests.execute([build_create(entry) for entry in ours])
    small = list(requests.dump_raw(0x10000000, 0xF0000000))
    large = list(requests.dump_raw(0x10000000, 0xF0000000, lambda fd, _: receive_dump(fd, room)))
    assert all(len(chunk) <= room for chunk in large)
    assert len(large) <= len(small) // (room // (64 << 10))
    read = [entry.key for chunk in large for entry in parse_dump(chunk).entries]
    assert sorted(read, key=str) == sorted((entry.key for entry in ours), key=str)


def test_a_large_piece_tells_how_a_dump_ended() -> None:
    entry = struct.pack("=IHHII", 20, 0x100, 2, 1, 0) + bytes(4)
    for code in (0, 4):
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with first, second:
            first.setblocking(False)
            assert receive_dump(first.fileno(), 1 << 16) == (b"", None)
            second.send(entry * 3)
            assert receive_dump(first.fileno(), 1 << 17) == (entry * 3, None)
            end = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, -code)
            second.send(entry)
            second.send(end)
            assert receive_dump(first.fileno(), 1 << 18) == (entry + end, code)
            second.send(end[:-2])
            with pytest.raises(MalformedMessageError):
                receive_dump(first.fileno(), 1 << 16)
    with pytest.raises(OSError, match="a dump"):
        receive_dump(first.fileno(), 1 << 16)


def test_a_dump_may_be_left_in_the_middle(requests: RequestSocket) -> None:
    requests.execute([build_create(entry) for entry in many(2000)])
    dump = requests.dump()
    assert next(dump)
    dump.close()  # type: ignore[attr-defined]
    assert sum(len(chunk) for chunk in requests.dump()) == 2000
