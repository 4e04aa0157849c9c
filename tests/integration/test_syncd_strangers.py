"""What somebody on a sync link can do to syncd, without the key or with a recording: nothing that
lasts. Each attempt is refused, counted under its name, and harmless."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from hafw.config.load import load_cluster
from hafw.kernel.netns import entered
from hafw.keyring import read_keyring
from sync.control import Beacon, ChallengeReply, Nack, encode_control
from sync.curve import CurveKeys, curve_keys
from sync.snapshot_wire import ASK_BYTES_MAX, SnapshotRequest, encode_snapshot
from sync.wire import HEADER_BYTES, MessageType, Sealer
from tests.integration.syncd_world import Gateway, World, mixed, wait_for

pytestmark = pytest.mark.integration

# ZMTP 3.1 (RFC 37): signature, version, mechanism, as-server, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
LONG_COMMAND = 0x06
_rounds = [0]


def resident_mb(gateway: Gateway) -> float:
    assert gateway.process is not None
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def connected(pair: World) -> socket.socket:
    """From gw2 to the snapshot server of gw1."""
    with entered(pair[2].space):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(("203.0.113.1", 7412))
    return sock


def test_a_huge_command_before_authentication_is_cut_off(pair: World) -> None:
    before_mb = resident_mb(pair[1])
    with connected(pair) as sock:
        sock.sendall(GREETING)
        sock.sendall(bytes([LONG_COMMAND]) + struct.pack(">Q", 2 << 30))
        with pytest.raises(ConnectionError):
            sock.sendall(bytes(128 << 20))
    assert resident_mb(pair[1]) - before_mb < 16
    pair[1].put(mixed(4))
    pair.wait_equal(1, 2)


def test_a_connection_that_says_nothing_is_closed(pair: World) -> None:
    with connected(pair) as sock:
        began_at = time.monotonic()
        while sock.recv(4096):
            pass
        assert time.monotonic() - began_at < 4
    wait_for("gw1 answers", lambda: pair[1].status())


# -- one table: datagrams

CLUSTER_ID_AT, SENDER_AT, KEY_AT, TYPE_AT, LENGTH_AT = 8, 12, 13, 5, 6


def patched(datagram: bytes, at: int, value: bytes) -> bytes:
    return datagram[:at] + value + datagram[at + len(value) :]


def flipped(datagram: bytes, at: int) -> bytes:
    return patched(datagram, at, bytes([datagram[at] ^ 1]))


@dataclass(frozen=True)
class Forge:
    """Makes datagrams that gw2 never sent. `sealed` has the key, and so is a member gone mad."""

    master: bytes
    cluster_id: int

    def sealer(self, master: bytes | None = None, key_id: int = 0, sender: int = 2) -> Sealer:
        return Sealer(
            master or self.master,
            key_id=key_id,
            cluster_id=self.cluster_id,
            sender_id=sender,
            session=77,
            draw=os.urandom,
        )

    def sealed(self, kind: MessageType, payload: bytes, **who: Any) -> bytes:
        return self.sealer(**who).seal(kind, 1, 1 << 32, payload)

    def beacon(self, **who: Any) -> bytes:
        return self.sealed(MessageType.BEACON, encode_control(Beacon(9, 0, {}, 1, 0)), **who)


DATAGRAMS: list[tuple[str, str, Callable[[Forge], list[bytes]]]] = [
    ("wrong key", "refused_bad_tag", lambda f: [f.beacon(master=bytes(32))]),
    ("a flipped bit", "refused_bad_tag", lambda f: [flipped(f.beacon(), HEADER_BYTES)]),
    ("another nonce", "refused_bad_tag", lambda f: [patched(f.beacon(), 40, bytes(8))]),
    ("another seq", "refused_bad_tag", lambda f: [patched(f.beacon(), 39, b"\x63")]),
    ("a key nobody has", "refused_unknown_key", lambda f: [f.beacon(key_id=9)]),
    (
        "truncated at every length",
        "refused_truncated",
        lambda f: [f.beacon()[:n] for n in range(HEADER_BYTES + 16)],
    ),
    ("cut in the payload", "refused_lying_length", lambda f: [f.beacon()[:-1]]),
    ("one byte too many", "refused_lying_length", lambda f: [f.beacon() + b"x"]),
    (
        "lengths that lie",
        "refused_lying_length",
        lambda f: [
            patched(f.beacon(), LENGTH_AT, n.to_bytes(2, "big")) for n in (0, 1, 1400, 65535)
        ],
    ),
    ("magic", "refused_bad_magic", lambda f: [patched(f.beacon(), 0, b"hCTX"), b"GET / HTTP" * 9]),
    (
        "other versions",
        "refused_wrong_version",
        lambda f: [patched(f.beacon(), 4, bytes([n])) for n in (0, 1, 3, 255)],
    ),
    (
        "other clusters",
        "refused_wrong_cluster",
        lambda f: [
            patched(f.beacon(), CLUSTER_ID_AT, bytes(4)),
            Forge(f.master, f.cluster_id ^ 1).beacon(),
        ],
    ),
    (
        "senders that are no peers",
        "refused_foreign_sender",
        lambda f: [f.beacon(sender=n) for n in (0, 1, 3, 62, 255)],
    ),
    (
        "types that are none",
        "refused_unknown_type",
        lambda f: [patched(f.beacon(), TYPE_AT, bytes([n])) for n in (0, 7, 255)],
    ),
    (
        "sealed nonsense",
        "refused_bad_payload",
        lambda f: [
            f.sealed(kind, text)
            for kind in MessageType
            if kind is not MessageType.DELTAS
            for text in (b"", b"\xc1", b"\x91" * 900, bytes(600))
        ],
    ),
    (
        "deltas of a session nobody proved",
        "deltas_unaccepted_session",
        lambda f: [f.sealed(MessageType.DELTAS, bytes(n)) for n in (0, 8, 900)],
    ),
    (
        "an answer to no question",
        "challenge_replies_refused",
        lambda f: [
            f.sealed(
                MessageType.CHALLENGE_REPLY,
                encode_control(ChallengeReply(os.urandom(16), 77, 1 << 40)),
            )
        ],
    ),
    (
        "a question for repairs from an unknown session",
        "nacks_unaccepted_session",
        lambda f: [f.sealed(MessageType.NACK, encode_control(Nack(1, [(1, 1 << 60)])))],
    ),
]


@contextmanager
def unharmed(pair: World) -> Iterator[None]:
    """The processes live, the sessions are the same, nothing was fetched again, and what changes
    afterwards is replicated."""

    def state() -> list[object]:
        found: list[object] = []
        for gateway in pair.gateways:
            status = gateway.status()
            assert status is not None
            assert gateway.process is not None
            names = ("sessions_accepted", "snapshots_asked", "streams_broken", "deltas_refused")
            found.append((gateway.process.pid, status.session, status.peers[0].session))
            found.append([status.counters.get(name, 0) for name in names])
        return found

    before, kept = state(), resident_mb(pair[1])
    yield
    pair[1].put(mixed(8, first=_rounds[0] * 8))
    _rounds[0] += 1
    pair.wait_equal(1, 2)
    assert state() == before
    assert resident_mb(pair[1]) - kept < 8
    assert pair[1].beacons[-1].synced[1]


def throw(pair: World, datagrams: list[bytes]) -> None:
    with entered(pair[2].space), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, ("203.0.113.1", 7411))


def test_every_false_datagram_is_refused_counted_and_harmless(pair: World) -> None:
    forge = Forge(read_keyring(pair[1].paths.sync_key).sealing.key, cluster_id(pair))
    for what, counter, make in DATAGRAMS:
        datagrams = make(forge)
        before = pair[1].counter(counter)
        with unharmed(pair):
            throw(pair, datagrams)
            expected = before + len(datagrams)
            wait_for(
                f"{what}: {counter} from {before} to {expected}",
                partial(reached, pair[1], counter, expected),
            )


def reached(gateway: Gateway, counter: str, value: int) -> bool:
    return gateway.counter(counter) >= value


def cluster_id(pair: World) -> int:
    return load_cluster(pair.config).cluster_id


def recorded(pair: World, seconds: float) -> list[bytes]:
    """What gw2 says on the first link, as gw1's kernel hears it."""
    with entered(pair[1].space):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        sock.bind(("sync0", 0x0800))
    sock.settimeout(0.1)
    found: list[bytes] = []
    until = time.monotonic() + seconds
    with sock:
        while time.monotonic() < until:
            with suppress(TimeoutError):
                packet = sock.recv(2048)
                if packet[12:16] == socket.inet_aton("203.0.113.2") and packet[9] == 17:
                    found.append(packet[28:])
    return [datagram for datagram in found if datagram.startswith(b"hCTS")]


def test_a_recording_is_refused_counted_and_harmless(pair: World) -> None:
    pair.lead(2, 2)  # gw2 holds now, and so has deltas to say.
    pair[1].wait_synced()
    thread = ThreadPoolExecutor(1)
    recording = thread.submit(recorded, pair, 1.0)
    for number in range(20):
        pair[2].put(mixed(4, owner=2, first=6000 + 4 * number))
        time.sleep(0.03)
    datagrams = recording.result(10)
    kinds = Counter(MessageType(datagram[5]) for datagram in datagrams)
    assert kinds[MessageType.DELTAS] > 5
    assert kinds[MessageType.BEACON] > 5
    pair.wait_equal(1, 2)
    expected = {
        "datagrams_copies": pair[1].counter("datagrams_copies") + 3 * kinds[MessageType.DELTAS],
        "control_repeated": pair[1].counter("control_repeated") + 3 * kinds[MessageType.BEACON],
    }
    table = pair[1].table().keys()
    throw(pair, datagrams * 3)
    for name, value in expected.items():
        wait_for(name, partial(reached, pair[1], name, value))
    assert pair[1].table().keys() == table
    # The same after the sender's restart: the session is dead, and no challenge is answered in it.
    pair[2].stop()
    pair[2].start()
    pair.lead(2, 3)
    pair[2].wait_synced()
    pair[1].wait_synced()
    accepted = pair[1].counter("sessions_accepted")
    dead = pair[1].counter("datagrams_retired_session")
    pair[2].delete(list(pair[2].table().values()))
    wait_for("both are empty", lambda: not pair[1].table())
    throw(pair, datagrams * 3)
    wait_for("refused", partial(reached, pair[1], "datagrams_retired_session", dead + 20))
    assert pair[1].counter("sessions_accepted") == accepted
    assert not pair[1].table()
    pair[2].put(mixed(8, owner=2))
    pair.wait_equal(1, 2)


# -- one table: the snapshot server


@dataclass(frozen=True)
class Caller:
    """Somebody who connects to the snapshot server: with which key of it, and own keys."""

    server: bytes | None
    own: CurveKeys | None


def asked(pair: World, caller: Caller, frames: list[list[bytes]]) -> list[bytes]:
    """The answers within half a second."""
    answers: list[bytes] = []
    with entered(pair[2].space), zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        if caller.server is not None and caller.own is not None:
            dealer.curve_serverkey = caller.server
            dealer.curve_publickey = caller.own.public
            dealer.curve_secretkey = caller.own.secret
        dealer.connect("tcp://203.0.113.1:7412")
        for frame in frames:
            dealer.send_multipart(frame)
        while dealer.poll(500):
            answers.append(dealer.recv())
    return answers


def test_every_false_question_for_a_snapshot_is_refused_counted_and_harmless(
    pair: World,
) -> None:
    master = read_keyring(pair[1].paths.sync_key).sealing.key
    server, member = curve_keys(master, "server").public, curve_keys(master, "client")
    stranger = curve_keys(os.urandom(32), "client")
    ask = encode_snapshot(SnapshotRequest(1, 2, 1))
    insider = Caller(server, member)
    table: list[tuple[str, str, Caller, list[list[bytes]]]] = [
        ("no CURVE at all", "", Caller(None, None), [[ask]]),
        ("another server's key", "", Caller(stranger.public, member), [[ask]]),
        ("no member", "snapshot_clients_refused", Caller(server, stranger), [[ask]]),
        ("the server's own key", "snapshot_clients_refused",
         Caller(server, curve_keys(master, "server")), [[ask]]),
        ("no msgpack", "snapshot_malformed", insider, [[b"\xc1"], [b""], [b"\x91" * 2000]]),
        ("truncated", "snapshot_malformed", insider, [[ask[:n]] for n in range(len(ask))]),
        ("too many frames", "snapshot_malformed", insider, [[ask, ask], [b"", ask]]),
        ("no such group", "snapshots_refused", insider,
         [[encode_snapshot(SnapshotRequest(1, 2, 9))]]),
        ("too long", "", insider, [[bytes(ASK_BYTES_MAX + 1)]]),
    ]  # fmt: skip
    for what, counter, caller, frames in table:
        before = pair[1].counter(counter) if counter else 0
        with unharmed(pair):
            answers = asked(pair, caller, frames)
            assert len(answers) == (counter == "snapshots_refused"), what
            if counter:
                # libzmq lets a stranger try again; a member's frames come once.
                value = before + (1 if "clients" in counter else len(frames))
                assert pair[1].counter(counter) >= value, what
