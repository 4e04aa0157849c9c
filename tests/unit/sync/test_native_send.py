"""The native sending end is the reference: the same datagrams to the same links, the same ring,
ledger and counters, whatever is said in whatever order."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync import _codec
from sync.control import Ack
from sync.ctnetlink import EventKind
from sync.flowhash import FlowHash
from sync.native_outbox import NativeOutbox
from sync.native_registry import NativeRegistry
from sync.outbox import DELTAS_BYTES_MAX, STAMP, Outbox
from sync.paths import SIZES
from sync.registry import Flag
from sync.wire import Header, MessageType, Opener, Sealer, Seals
from tests.unit.sync.sync_flows import tcp
from tests.unit.sync.test_native_publish import Event

MASTER = bytes(range(32))
RING = 64
EPOCH = 7 << 32


@contextmanager
def links(number: int = 2) -> Iterator[tuple[list[socket.socket], list[tuple[int, bytes, int]]]]:
    """Where datagrams arrive, and how a sender is told of it."""
    theirs, ours = [], []
    try:
        for _ in range(number):
            heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            theirs.append(heard)
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            heard.bind(("127.0.0.1", 0))
            heard.setblocking(False)
            ours.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        aims = [
            (one.fileno(), socket.inet_aton("127.0.0.1"), other.getsockname()[1])
            for one, other in zip(ours, theirs, strict=True)
        ]
        yield theirs, aims
    finally:
        for sock in (*theirs, *ours):
            sock.close()


def arrived(sock: socket.socket) -> list[bytes]:
    datagrams = []
    while True:
        try:
            datagrams.append(sock.recv(2048))
        except BlockingIOError:
            return datagrams


def received(sock: socket.socket) -> bytes:
    """The next one, which comes."""
    assert select.select([sock], [], [], 30.0)[0], "nothing within 30 s"
    return sock.recv(2048)


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


class Reading:
    """Opens what one sender said, and leaves out what the clock put into it."""

    def __init__(self) -> None:
        self.opener = Opener({0: MASTER, 1: MASTER[::-1]}, cluster_id=7)

    def __call__(self, datagram: bytes | None) -> tuple[Header, bytes] | None:
        if datagram is None:
            return None
        header, payload = self.opener.open(datagram)
        return header, payload[STAMP.size :] if header.type is MessageType.DELTAS else b""


class Pair:
    """Both sending ends."""

    def __init__(self, aims: list[tuple[int, bytes, int]]) -> None:
        self.flows = 0
        self.by_reference: list[bytes] = []
        self.by_hand: list[bytes] = []
        """Control datagrams of the native end."""
        self.slow = Outbox(
            self.sessions(Sealer), self.by_reference.append, ring_datagrams=RING, peers=1, boot=5,
            first_said=lambda: self.flows,
        )  # fmt: skip
        self.fast = NativeOutbox(
            self.sessions(_codec.Sealer), self.by_hand.append, failed=self.no_failure,
            ring_datagrams=RING, peers=1, boot=5, first_said=lambda: self.flows,
        )  # fmt: skip
        self.fast.sender.aim(aims)

    @staticmethod
    def no_failure(failures: object) -> None:
        raise AssertionError(failures)

    @staticmethod
    def sessions(kind: type[Sealer | _codec.Sealer]) -> Callable[[], Seals]:
        numbers = count(11)
        return lambda: kind(
            MASTER, key_id=0, cluster_id=7, sender_id=1, session=next(numbers), draw=os.urandom
        )


Step = tuple[str] | tuple[str, int] | tuple[str, int, int, int]
PUTS = st.tuples(
    st.just("put"), st.sampled_from((EPOCH, EPOCH + 1)), st.integers(1, DELTAS_BYTES_MAX),
    st.integers(0, 3),
)  # fmt: skip
FILLS = st.tuples(st.just("fill"), st.integers(1, 2 * RING))
FITS = st.tuples(st.just("fit"), st.sampled_from(SIZES))
ACKS = st.tuples(st.just("ack"), st.integers(0, 200))
WORDS = st.sampled_from([("flush",), ("beacon",), ("session",), ("key",)])


@given(st.lists(PUTS | PUTS | FILLS | FITS | ACKS | WORDS, max_size=30))
def test_both_ends_say_and_remember_the_same(steps: list[Step]) -> None:
    with links() as (theirs, aims):
        pair = Pair(aims)
        slow_reads, fast_reads = Reading(), Reading()
        came: list[list[bytes]] = [[], []]
        heard = 0
        for step in [*steps, ("flush",)]:
            match step:
                case ("put", epoch, size, firsts):
                    pair.flows += firsts
                    for end in (pair.slow, pair.fast):
                        end.put_encoded(epoch, bytes([size % 251]) * size, 1)
                case ("fill", number):
                    for _ in range(number):
                        pair.flows += 1
                        for end in (pair.slow, pair.fast):
                            end.put_encoded(EPOCH, bytes(DELTAS_BYTES_MAX), 20)
                case ("fit", size):
                    for end in (pair.slow, pair.fast):
                        end.fit(size)
                case ("ack", seq):
                    for end in (pair.slow, pair.fast):
                        end.ledger.on_ack(2, seq, 0.0, now=1e9)
                case ("flush",):
                    pair.slow.flush()
                    pair.fast.flush()
                case ("beacon",):
                    for end in (pair.slow, pair.fast):
                        end.beacon({1: EPOCH}, {2: Ack(1, 2, 3, 4)}, {})
                case ("session",):
                    pair.slow.begin_session()
                    pair.fast.begin_session()
                case ("key",):
                    pair.slow.sealer.use_key(1, MASTER[::-1])
                    pair.fast.sealer.use_key(1, MASTER[::-1])
            for link, sock in zip(came, theirs, strict=True):
                link += arrived(sock)
            if step[0] in ("flush", "beacon"):
                pair.slow.flush()
                pair.fast.flush()
                said = [slow_reads(one) for one in pair.by_reference]
                deltas = [one for one in said if one and one[0].type is MessageType.DELTAS]
                for link, sock in zip(came, theirs, strict=True):
                    link += arrived(sock)
                assert came[0] == came[1]
                assert [fast_reads(one) for one in came[0]] == deltas
                assert [fast_reads(one) for one in pair.by_hand] == [
                    one for one in said if one and one[0].type is MessageType.BEACON
                ]
                heard += len(said)
                for words in (*came, pair.by_reference, pair.by_hand):
                    words.clear()
                alike(pair, slow_reads, fast_reads)
        assert heard or not any(step[0] in ("put", "fill", "beacon") for step in steps)


def alike(pair: Pair, slow_reads: Reading, fast_reads: Reading) -> None:
    slow, fast = pair.slow, pair.fast
    assert fast.position == slow.position
    assert (fast.ring.low_water, fast.ring.high_water) == (
        slow.ring.low_water, slow.ring.high_water,
    )  # fmt: skip
    for seq in (0, 1, slow.ring.low_water - 1, slow.ring.low_water, slow.position,
                slow.position + 1):  # fmt: skip
        kept = fast.ring.get(max(seq, 0))
        assert fast_reads(kept) == slow_reads(slow.ring.get(max(seq, 0)))
    assert fast.ledger.published == slow.ledger.published
    assert fast.ledger.at_risk(2) == slow.ledger.at_risk(2)
    assert fast.ledger.acked(2) == slow.ledger.acked(2)
    assert fast.tally() == slow.tally()


def native_sender(aims: list[tuple[int, bytes, int]]) -> _codec.Sender:
    sender = _codec.Sender(RING)
    sender.begin(_codec.Sealer(MASTER, key_id=0, cluster_id=7, sender_id=1, session=11), 0)
    sender.aim(aims)
    return sender


def test_a_link_that_fails_is_counted_and_the_others_go_on() -> None:
    with links(3) as (theirs, aims):
        # EACCES: no socket of these may broadcast.
        aims[1] = (aims[1][0], b"\xff\xff\xff\xff", aims[1][2])
        sender = native_sender(aims)
        for size in (600, 600, 600):
            sender.put(EPOCH, bytes(size), 1)
            sender.put(EPOCH + 1, bytes(size), 1)
        assert not sender.failed
        sender.flush()
        assert [len(arrived(sock)) for sock in theirs] == [6, 0, 6]
        assert sender.failed
        assert sender.take_failures() == [(1, errno.EACCES, 6)]
        assert not sender.failed
        sender.aim(aims[2:])
        sender.put(EPOCH, bytes(9), 1)
        sender.flush()
        assert [len(arrived(sock)) for sock in theirs] == [0, 0, 1]


def test_what_fits_no_datagram_is_ours_to_blame() -> None:
    sender = native_sender([])
    with pytest.raises(AssertionError):
        sender.put(EPOCH, bytes(DELTAS_BYTES_MAX + 1), 1)


class Turning:
    """A pump that sends by itself, fed by hand."""

    def __init__(self, aims: list[tuple[int, bytes, int]]) -> None:
        self.registry = NativeRegistry(FlowHash(bytes(range(1, 33))))
        self.pump = _codec.EventPump(
            self.registry.table, _codec.Incarnations(7), room=DELTAS_BYTES_MAX,
            slow_flags=Flag.ADOPTED | Flag.LIBERAL, passed_by=Flag.PASSED_BY,
            unpassed=Flag.UNPASSED, own_port=77,
        )  # fmt: skip
        self.sender = native_sender(aims)
        self.pump.connect(self.sender)
        self.pump.hold({1: EPOCH}, ())
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.other, self.waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def say(self, port: int, *, helper: str | None = None) -> None:
        entry = replace(tcp(port), mark=1 << 28, helper=helper)
        self.theirs.send(Event(EventKind.NEW, entry).message())

    def turns(self, seconds: float) -> tuple[int, int, int]:
        """Why it stopped, events, flows first said."""
        why, events, _, runs, counts, deaths = self.pump.turns(
            self.ours.fileno(), [self.other.fileno()], time.monotonic() + seconds, 1e-4, 64
        )
        assert (runs, deaths) == ([], [])
        return why, events, counts[0]

    def close(self) -> None:
        for sock in (self.ours, self.theirs, self.other, self.waker):
            sock.close()


@pytest.fixture
def turning() -> Iterator[tuple[Turning, list[socket.socket]]]:
    with links(1) as (theirs, aims):
        turning = Turning(aims)
        yield turning, theirs
        turning.close()


def test_events_are_sent_as_they_come_until_the_time_is_up(
    turning: tuple[Turning, list[socket.socket]],
) -> None:
    one, (heard,) = turning
    one.sender.published = 100
    one.say(1)
    assert one.turns(0.0) == (one.pump.TIME, 1, 1)
    assert len(arrived(heard)) == 1
    for port in range(2, 12):
        one.say(port)

    def go_on() -> None:
        came.append(received(heard))
        one.say(99)
        came.append(received(heard))
        one.waker.send(b"enough")

    came: list[bytes] = []
    with beside(go_on):
        assert one.turns(60.0) == (one.pump.OTHER, 11, 11)
    assert [len(came), arrived(heard)] == [2, []], "ten at once, and then the last"
    assert [times[0] for seq in (1, 2, 3) if (times := one.sender.sent(seq))] == [101, 111, 112]
    assert one.sender.deltas == 12


def test_another_socket_ends_it_and_what_was_said_is_out(
    turning: tuple[Turning, list[socket.socket]],
) -> None:
    one, (heard,) = turning
    one.waker.send(b"now")
    assert one.turns(60.0) == (one.pump.OTHER, 0, 0)
    one.other.recv(9)
    for port in (1, 2):
        one.say(port)

    def go_on() -> None:
        received(heard)
        one.waker.send(b"now")

    with beside(go_on):
        assert one.turns(60.0) == (one.pump.OTHER, 2, 2)


def test_what_is_not_plain_comes_out_and_the_rest_waits(
    turning: tuple[Turning, list[socket.socket]],
) -> None:
    one, (heard,) = turning
    one.say(1)
    one.say(2, helper="ftp")
    one.say(3)
    assert one.turns(60.0) == (one.pump.RAW, 2, 1)
    assert (one.pump.pending, arrived(heard)) == (1, []), "in the order of the events"
    assert one.turns(0.0) == (one.pump.TIME, 1, 1), "what was received is not polled for"
    assert len(arrived(heard)) == 1
    assert one.sender.deltas == 2


def test_a_pass_must_not_be_turned_over(turning: tuple[Turning, list[socket.socket]]) -> None:
    one, _ = turning
    one.pump.hold({1: EPOCH}, (1,))
    with pytest.raises(AssertionError):
        one.turns(0.0)
