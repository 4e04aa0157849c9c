"""hafw-leased as a process: what it says, what it refuses, and what it survives.

A witness, because it needs no gate; the peers are sockets of the test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from cluster.heartbeat import Codec, Envelope, Heard, Prepare, Promise, derive_key
from cluster.lease_types import VoterRecord
from cluster.refusals import LEASED
from cluster.voters_file import write_voters
from hafw.config.load import load_cluster
from hafw.human import make_epoch
from hafw.kernel.netns import entered
from hafw.messages import LeasedStatus, MoveRequest, StatusRequest, decode_leased, encode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
CONFIG = """
name: leasedtest
nodes:
  gw1:
    id: 1
    segments: {lan: {device: lan0, addresses: [192.0.2.1/24]}}
    links: {sync0: {device: sync0, address: 203.0.113.1/25}}
  gw2:
    id: 2
    segments: {lan: {device: lan0, addresses: [192.0.2.2/24]}}
    links: {sync0: {device: sync0, address: 203.0.113.2/25}}
  wit:
    id: 9
    role: witness
    links: {sync0: {device: sync0, address: 203.0.113.9/25}}
groups:
  main: {index: 1, vrid: 1, order: [gw1, gw2], vips: {lan: [192.0.2.254]}}
"""
KEY = bytes(range(32))
PORT = 7410
RESTART_WAIT_S = 2.02


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@dataclass
class Bed:
    """Two namespaces joined by one link, and the folders of the node."""

    root: Path
    node_space: str
    peer_space: str

    def link(self) -> None:
        run(
            *("ip", "-n", self.peer_space, "link", "add", "peer0", "type", "veth"),
            *("peer", "name", "sync0", "netns", self.node_space),
        )
        run("ip", "-n", self.peer_space, "addr", "add", "203.0.113.1/25", "dev", "peer0")
        run("ip", "-n", self.node_space, "addr", "add", "203.0.113.9/25", "dev", "sync0")
        run("ip", "-n", self.peer_space, "link", "set", "peer0", "up")
        run("ip", "-n", self.node_space, "link", "set", "sync0", "up")

    @property
    def environment(self) -> dict[str, str]:
        roots = {name: str(self.root / name.lower()) for name in ("RUN", "LIB", "ETC", "BPF")}
        return os.environ | {f"HAFW_{name}_ROOT": path for name, path in roots.items()}

    def argv(self, node: str = "wit") -> list[str]:
        return [
            *("nsenter", f"--net=/run/netns/{self.node_space}"),
            *(sys.executable, "-m", "cluster.leased"),
            *("--node", node, "--config", str(self.root / "cluster.yaml")),
        ]

    def refusal(self, node: str = "wit", **environment: str) -> str:
        """Start it where it must refuse; the line it says."""
        done = subprocess.run(
            self.argv(node),
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("hafw-leased: error: ")
        return line


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    # Socket paths have 107 bytes: pytest's folders are too deep for some.
    made = Bed(tmp_path, f"hafw-t-lease-n{os.getpid()}", f"hafw-t-lease-p{os.getpid()}")
    for folder in ("run", "lib", "etc/wit", "etc/gw1", "bpf"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cluster.yaml").write_text(CONFIG)
    founders = load_cluster(tmp_path / "cluster.yaml").voters
    write_voters(tmp_path / "lib" / "wit" / "voters", VoterRecord(founders))
    for node in ("wit", "gw1"):
        key = tmp_path / "etc" / node / "lease.key"
        key.write_bytes(KEY)
        key.chmod(0o600)
    try:
        for space in (made.node_space, made.peer_space):
            run("ip", "netns", "add", space)
        made.link()
        yield made
    finally:
        for space in (made.node_space, made.peer_space):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


class Daemon:
    """A running hafw-leased, and gateway 1 as the test plays it."""

    def __init__(self, bed: Bed, **environment: str) -> None:
        self.bed = bed
        config = load_cluster(bed.root / "cluster.yaml")
        self.voters = config.voters
        self.codec = Codec(
            derive_key(KEY, cluster_id=config.cluster_id),
            cluster_id=config.cluster_id,
            node_id=1,
        )
        self.session, self.seq = 4711, 0
        self.log_file = bed.root / "leased.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                bed.argv(), env=bed.environment | environment, stdout=log, stderr=log
            )
        self.peer = self.peer_socket()

    def peer_socket(self) -> socket.socket:
        with entered(self.bed.peer_space):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", PORT))
            request = socket.inet_aton("224.0.0.141") + socket.inet_aton("203.0.113.1")
            made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        made.settimeout(3)
        return made

    def wait_socket(self) -> None:
        deadline = time.monotonic() + 10
        while not (self.bed.root / "run/wit/leased.sock").exists():
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.01)

    def heartbeat(self) -> tuple[bytes, Envelope]:
        datagram = self.peer.recv(9000)
        return datagram, self.codec.open(datagram)[1]

    def send(self, datagram: bytes) -> None:
        self.peer.sendto(datagram, ("203.0.113.9", PORT))

    def envelope(
        self, *messages: Prepare, heard: list[Heard], voters_hash: str | None = None
    ) -> bytes:
        self.seq += 1
        voters = self.voters
        named = voters.hash if voters_hash is None else voters_hash
        return self.codec.seal(
            Envelope(self.session, self.seq, 0, voters.id, named, heard, list(messages))
        )

    def refusals(self) -> Counter[str]:
        """What the log says was refused, by reason."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()]
        return Counter(line["reason"] for line in lines if line["event"] == "datagram_refused")

    def prove(self) -> int:
        """Be heard, hear it, say so. Returns the daemon's session."""
        self.send(self.envelope(heard=[]))
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            _, envelope = self.heartbeat()
            if any(entry.session == self.session for entry in envelope.heard):
                self.send(self.envelope(heard=[Heard(9, envelope.session, True)]))
                return envelope.session
        raise AssertionError("our session is never echoed")

    def status(self) -> LeasedStatus:
        path = self.bed.root / "run" / f"t{os.getpid()}-{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            asking.bind(str(path))
            asking.settimeout(3)
            asking.sendto(encode(StatusRequest()), str(self.bed.root / "run/wit/leased.sock"))
            answer = decode_leased(asking.recv(65536))
        path.unlink()
        assert isinstance(answer, LeasedStatus)
        return answer

    def counter(self, name: str, least: int = 1) -> int:
        """Wait until a counter reaches `least`; its value."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            count = self.status().counters.get(name, 0)
            if count >= least:
                return count
            time.sleep(0.01)
        raise AssertionError(f"{name} stays below {least}: {self.status().counters}")

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=5)
        self.peer.close()
        return code


@pytest.fixture
def daemon(bed: Bed) -> Iterator[Daemon]:
    running = Daemon(bed)
    try:
        running.wait_socket()
        running.heartbeat()
        yield running
    finally:
        running.end(signal.SIGKILL)


def test_heartbeats_go_out_by_multicast_and_unicast_byte_for_byte_the_same(daemon: Daemon) -> None:
    datagrams = [daemon.heartbeat()[0] for _ in range(8)]
    assert max(datagrams.count(datagram) for datagram in datagrams) == 2
    assert (daemon.bed.root / "lib/wit/era").read_text() == "1 voters\n"


def test_clean_stop_leaves_no_socket_and_no_pid_file(daemon: Daemon) -> None:
    assert daemon.end() == 0
    assert sorted(path.name for path in (daemon.bed.root / "run/wit").iterdir()) == ["leased.lock"]


def test_second_instance_is_refused(daemon: Daemon) -> None:
    assert "already running" in daemon.bed.refusal()


def test_bad_datagrams_are_counted_by_what_is_wrong(daemon: Daemon) -> None:
    good = daemon.envelope(heard=[])
    daemon.send(good[:20])
    daemon.send(good[:-1])
    daemon.send(b"XX" + good[2:])
    daemon.send(good + bytes(8500))
    other = Codec(bytes(32), cluster_id=int.from_bytes(good[4:8], "big"), node_id=1)
    daemon.send(other.seal(daemon.codec.open(good)[1]))
    assert daemon.counter("truncated") == 1
    assert daemon.counter("bad_tag", 2) == 2
    assert daemon.counter("bad_magic") == 1
    assert daemon.counter("oversize") == 1
    assert daemon.process.poll() is None


def test_copies_on_the_same_or_other_paths_act_once(daemon: Daemon) -> None:
    daemon.prove()
    datagram = daemon.envelope(heard=[])
    for _ in range(5):
        daemon.send(datagram)
    time.sleep(0.1)
    status = daemon.status()
    assert "replayed" not in status.counters
    peer = next(peer for peer in status.peers if peer.node_id == 1)
    assert peer.links[0].received >= 5


def test_recording_of_an_earlier_start_gets_no_vote(bed: Bed) -> None:
    first = Daemon(bed)
    try:
        first.heartbeat()
        own = first.prove()
        ask = Prepare(1, make_epoch(1, 1, 1))
        recorded = first.envelope(ask, heard=[Heard(9, own, True)])
        time.sleep(RESTART_WAIT_S)
        first.send(recorded)
        assert promised(first)
    finally:
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    second = Daemon(bed)
    try:
        second.heartbeat()
        time.sleep(RESTART_WAIT_S + 0.2)
        second.send(recorded)
        assert second.counter("unproven") == 1
        assert not promised(second)
        assert (bed.root / "lib/wit/era").read_text() == "2 voters\n"
    finally:
        second.end(signal.SIGKILL)


def test_what_strangers_send_is_counted_logged_once_and_changes_nothing(daemon: Daemon) -> None:
    started = time.monotonic()
    good = daemon.envelope(heard=[])
    envelope = daemon.codec.open(good)[1]
    cluster_id = int.from_bytes(good[4:8], "big")
    for _ in range(20):
        daemon.send(good[:20])
        daemon.send(b"XX" + good[2:])
        daemon.send(good[:2] + b"\x07" + good[3:])
        daemon.send(good[:-1] + bytes([good[-1] ^ 1]))
        daemon.send(good + bytes(8500))
        foreign = derive_key(KEY, cluster_id=cluster_id + 1)
        daemon.send(Codec(foreign, cluster_id=cluster_id + 1, node_id=1).seal(envelope))
        key = derive_key(bytes(32), cluster_id=cluster_id)
        daemon.send(Codec(key, cluster_id=cluster_id, node_id=1).seal(envelope))
    for reason in ("truncated", "bad_magic", "wrong_version", "oversize", "wrong_cluster"):
        assert daemon.counter(reason, 20) == 20, reason
    assert daemon.counter("bad_tag", 40) == 40

    # Now with the key: a node of no cluster, this node's own id, and an old session of gw1.
    for sender, session in ((33, 5), (9, 6)):
        as_other = Codec(derive_key(KEY, cluster_id=cluster_id), cluster_id=cluster_id,
                         node_id=sender)  # fmt: skip
        for seq in range(20):
            daemon.send(as_other.seal(msgspec.structs.replace(envelope, session=session, seq=seq)))
    assert daemon.counter("unknown_sender", 20) == daemon.counter("own_id_heard", 20) == 20
    assert any("machine runs as node 9" in alarm for alarm in daemon.status().alarms)
    daemon.prove()
    daemon.send(replay := daemon.envelope(heard=[]))
    for _ in range(300):  # More than are told apart by their bytes alone.
        daemon.send(daemon.envelope(heard=[]))
    daemon.counter("unproven")
    daemon.send(replay)
    assert daemon.counter("replayed") == 1
    old = (daemon.session, daemon.seq)
    daemon.session, daemon.seq = 4712, 0
    own = daemon.prove()
    for number in range(20):
        daemon.session, daemon.seq = old[0], old[1] + number
        daemon.send(daemon.envelope(heard=[Heard(9, own, True)]))
    assert daemon.counter("retired_session", 20) == 20
    daemon.session, daemon.seq = 4712, 100
    heard = [Heard(9, own, True)]
    for _ in range(20):
        daemon.send(daemon.envelope(heard=heard, voters_hash="another"))
        daemon.send(daemon.envelope(Prepare(1, make_epoch(1, 9, 2)), heard=heard))
    assert daemon.counter("wrong_voters", 20) == daemon.counter("not_a_candidate", 20) == 20

    said = daemon.refusals()
    assert set(said) == {name for name in LEASED if name != "malformed"}
    assert set(said.values()) == {1}
    time.sleep(max(0.0, started + RESTART_WAIT_S - time.monotonic()))
    daemon.send(daemon.envelope(Prepare(1, make_epoch(1, 1, 1)), heard=heard))
    assert promised(daemon), "it votes as if nothing had been"


def test_two_machines_with_one_id_have_an_alarm_each(bed: Bed) -> None:
    twin_root = bed.root / "twin"
    for folder in ("run", "lib", "etc/wit", "bpf"):
        (twin_root / folder).mkdir(parents=True)
    (twin_root / "etc/wit/lease.key").write_bytes(KEY)
    (twin_root / "etc/wit/lease.key").chmod(0o600)
    text = CONFIG.replace("sync0, address: 203.0.113.1/", "sync0, address: 203.0.113.3/")
    (bed.root / "cluster.yaml").write_text(text)
    text = text.replace("sync0, address: 203.0.113.9/", "peer0, address: 203.0.113.1/")
    (twin_root / "cluster.yaml").write_text(text)
    twin_bed = Bed(twin_root, bed.peer_space, bed.peer_space)
    both = [Daemon(bed), Daemon(twin_bed)]
    try:
        for daemon in both:
            daemon.peer.close()  # The port is the twin's.
        for daemon in both:
            daemon.wait_socket()
            assert daemon.counter("own_id_heard", 5) >= 5
            (alarm,) = [a for a in daemon.status().alarms if "machine runs as node" in a]
            assert "both may be ACTIVE" in alarm
            assert daemon.refusals() == {"own_id_heard": 1}
    finally:
        for daemon in both:
            daemon.end(signal.SIGKILL)


def promised(daemon: Daemon) -> bool:
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        _, envelope = daemon.heartbeat()
        if any(isinstance(message, Promise) for message in envelope.messages):
            return True
    return False


def test_device_that_vanishes_and_returns_is_bound_again(daemon: Daemon) -> None:
    run("ip", "-n", daemon.bed.node_space, "link", "del", "sync0")
    assert daemon.counter("paths_lost") == 1
    daemon.peer.close()
    daemon.bed.link()
    daemon.peer = daemon.peer_socket()
    daemon.heartbeat()
    daemon.send(daemon.envelope(heard=[]))
    assert daemon.counter("unproven") == 1


def test_link_that_is_down_is_counted_and_survived(daemon: Daemon) -> None:
    run("ip", "-n", daemon.bed.node_space, "link", "set", "sync0", "down")
    daemon.counter("send_errors", 5)
    run("ip", "-n", daemon.bed.node_space, "link", "set", "sync0", "up")
    daemon.peer.settimeout(0.01)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        try:
            daemon.heartbeat()
        except TimeoutError:
            continue
        return
    raise AssertionError("no heartbeat after the link came up")


def test_node_that_cannot_write_its_era_runs_and_does_not_vote(bed: Bed) -> None:
    daemon = Daemon(bed, HAFW_LIB_ROOT="/proc/hafw-no-such")
    try:
        daemon.heartbeat()
        time.sleep(RESTART_WAIT_S + 0.3)
        status = daemon.status()
        assert not status.may_vote
        assert "does not vote" in status.alarms[0]
        assert status.counters["era_write_failed"] >= 1
    finally:
        daemon.end(signal.SIGKILL)


def test_local_nonsense_is_counted(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(b"\xc1 nonsense", str(daemon.bed.root / "run/wit/leased.sock"))
        other.sendto(encode(StatusRequest()), str(daemon.bed.root / "run/wit/leased.sock"))
        too_deep = b"\x82\xa1x" + b"\x91" * 5000 + b"\xc0"  # It cannot even be skipped.
        other.sendto(too_deep, str(daemon.bed.root / "run/wit/leased.sock"))
        for wait_s in (float("inf"), float("nan"), 1e300):
            request = MoveRequest(group=1, target_id=1, wait_s=wait_s)
            other.sendto(encode(request), str(daemon.bed.root / "run/wit/leased.sock"))
    assert daemon.counter("local_malformed", 2) == 2
    assert daemon.counter("moves_refused", 3) == 3
    assert daemon.process.poll() is None


def test_a_flood_of_status_questions_costs_one_status_a_turn(daemon: Daemon) -> None:
    daemon.status()
    daemon.process.send_signal(signal.SIGSTOP)
    path = daemon.bed.root / "run" / f"f{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        asking.bind(str(path))
        asking.settimeout(3)
        for _ in range(9):  # net.unix.max_dgram_qlen is 10.
            asking.sendto(encode(StatusRequest()), str(daemon.bed.root / "run/wit/leased.sock"))
        daemon.process.send_signal(signal.SIGCONT)
        answers = {asking.recv(65536) for _ in range(9)}
    assert len(answers) == 1


@pytest.mark.parametrize(("era", "lost"), [("4\n", False), ("4 voters\n", True)])
def test_voters_file_that_is_missing_is_lost_only_if_there_has_been_one(
    bed: Bed, era: str, lost: bool
) -> None:
    """A version of hafw before it kept none: its nodes are new, and found a set together."""
    folder = bed.root / "lib/wit"
    (folder / "voters").unlink()
    (folder / "era").write_text(era)
    for turn in (5, 6):
        running = Daemon(bed)
        try:
            running.heartbeat()
            assert (folder / "era").read_text() == f"{turn} voters\n"
            status = running.status()
            assert (status.voters_lost, status.voters_id) == (lost, int(lost))
            assert any("lost its voters file" in alarm for alarm in status.alarms) is lost
        finally:
            running.end(signal.SIGKILL)


def test_refusals_say_what_to_do(bed: Bed) -> None:
    key = bed.root / "etc/wit/lease.key"
    assert "no node is named gw7" in bed.refusal("gw7")
    key.chmod(0o644)
    assert "chmod 0600" in bed.refusal()
    key.unlink()
    assert "does not exist" in bed.refusal()
    key.write_bytes(KEY)
    key.chmod(0o600)
    (bed.root / "lib/wit/era").write_text("tuesday\n")
    assert "does not hold a number ('tuesday" in bed.refusal()
    (bed.root / "cluster.yaml").write_text("name: [")
    assert "cluster.yaml" in bed.refusal()


def test_gateway_without_a_gate_is_refused(bed: Bed) -> None:
    assert "bpf" in bed.refusal("gw1")
