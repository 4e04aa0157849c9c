"""hafw-raftd as processes: elects, keeps its state, refuses what is forged, says what it lacks."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.agreed import SetMemberState
from cluster.assignment import AddToken, Join, Leave, Move, RecordMove, hash_token
from cluster.raft_journal import parse
from cluster.raft_wire import Part, Wire, encode_message
from hafw.config.load import load_cluster
from hafw.kernel.netns import entered
from hafw.raft_messages import ProposeReply, RaftStatus
from tests.integration.raft_world import KEY, Member, World, raft_world, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with raft_world(tmp_path_factory.mktemp("raft")) as made:
        made.start()
        yield made


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """Three members that run and agree, whatever the test before did."""
    for member in shared.members.values():
        if member.process is None:
            member.start()
    shared.wait_agreed()
    yield shared
    for node in shared.members:
        for link in ("sync0", "sync1"):
            shared.link(node, link, "up")
        shared[node].write_key(KEY)


def epoch(world: World) -> int:
    return len(world["gw1"].state().history) + 1


def move(number: int) -> RecordMove:
    return RecordMove(Move("main", number, 1, 2, 1000.0, "gw1 is silent"))


def record(world: World, through: Member) -> RecordMove:
    """A move that all that run agree on, whoever leads meanwhile."""
    command = move(epoch(world))

    def recorded() -> bool:
        reply = through.propose(command)
        return reply.ok or "recorded already" in reply.reason

    wait_for("the move is recorded", recorded)
    return command


def has(member: Member, command: RecordMove) -> bool:
    status = member.status()
    return status is not None and command.move in member.state().history


def test_three_elect_agree_and_hold_no_privilege(world: World) -> None:
    leader = world.wait_agreed()
    command = record(world, next(m for n, m in world.members.items() if n != leader))
    for member in world.members.values():
        wait_for(f"{member.node} has it", lambda m=member: has(m, command))  # type: ignore[misc]
        assert member.process is not None
        text = Path(f"/proc/{member.process.pid}/status").read_text()
        fields = {line.split(":")[0]: line.split()[1:] for line in text.splitlines()}
        assert member.must().uid != 0
        assert set(fields["Uid"]) == {str(member.must().uid)}
        assert fields["Gid"].count("0") == 0
        assert fields["Groups"] == []
        for held in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(fields[held][0], 16) == 0, held
        assert fields["NoNewPrivs"] == ["1"]
        assert {p.stat().st_uid for p in member.folder.iterdir()} == {member.must().uid}
    again = world[leader].propose(command)
    assert (again.ok, again.known) == (False, True)


def test_the_leader_is_killed_and_comes_back(world: World) -> None:
    old = world.wait_agreed()
    world[old].stop(signal.SIGKILL)
    others = [m for n, m in world.members.items() if n != old]
    world.wait_agreed(others)
    command = RecordMove(move(len(others[0].state().history) + 1).move)
    wait_for("two of three agree", lambda: others[0].propose(command).ok)
    world[old].start()
    wait_for("the old leader has it", lambda: has(world[old], command))
    assert len({m.must().digest for m in world.members.values()}) == 1


def test_a_change_is_agreed_on_though_the_leader_goes_under_it(world: World) -> None:
    """Said to a member that still forwards it to the leader that was, which answers nobody."""
    old = world.wait_agreed()
    asked = next(m for n, m in world.members.items() if n != old)
    frozen = world[old].process
    assert frozen is not None
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        assert asked.agree(SetMemberState("gw1", "online", "it is back")).ok
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    members = {m.name: m for m in asked.state().members}
    assert members["gw1"].why == "it is back"


def test_a_restart_of_all_keeps_the_state(world: World) -> None:
    command = record(world, world["wit"])
    terms = {name: m.must().term for name, m in world.members.items()}
    for member in world.members.values():
        assert member.stop() == 0
    for member in world.members.values():
        member.start()
    world.wait_agreed()
    assert all(has(member, command) for member in world.members.values())
    assert all(member.must().term > terms[name] for name, member in world.members.items())


def test_both_links_carry_and_one_is_enough(world: World) -> None:
    for node in world.members:
        world.link(node, "sync0", "down")
    command = record(world, world["gw2"])
    wait_for("all have it over one link", lambda: all(
        has(m, command) for m in world.members.values()))  # fmt: skip


def test_without_a_quorum_it_is_read_only_and_says_so(world: World) -> None:
    command = record(world, world["gw1"])
    wait_for("gw1 has it", lambda: has(world["gw1"], command))
    world["gw2"].stop()
    world["wit"].stop(signal.SIGKILL)
    gw1 = world["gw1"]
    wait_for("no leader", lambda: gw1.must().read_only)
    wait_for("the alarm", lambda: any("read-only" in alarm for alarm in gw1.must().alarms))
    assert has(gw1, command), "what was agreed can still be read"
    reply = gw1.propose(move(epoch(world)))
    refused = "there is no Raft leader: everything is read-only"
    assert reply == ProposeReply(False, refused, again=True)
    # Not even after a restart: what it had agreed to is on its disk.
    gw1.stop(signal.SIGKILL)
    gw1.start()
    wait_for("it reads its journal", lambda: gw1.status() is not None and has(gw1, command))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def without_the_last_record(data: bytes) -> bytes:
    _, ends = parse(data)
    return data[: ends[-2]]


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("journal", lambda _: os.urandom(3000), "do not begin as a journal"),
        ("journal", lambda data: data[:-5], "cut short in the record"),
        pytest.param("journal", flipped, "the record at byte", marks=pytest.mark.long),
        ("journal", without_the_last_record, "was committed"),
        pytest.param("journal", lambda _: b"", "do not begin", marks=pytest.mark.long),
        ("vote", lambda _: os.urandom(30), "do not have their checksum"),
        pytest.param(
            "dump", lambda _: b"x" * 99, "do not have their checksum", marks=pytest.mark.long
        ),
    ],
    ids=["garbage", "cut short", "one bit", "a record less", "empty", "vote", "dump"],
)
def test_a_damaged_file_is_moved_aside_and_fetched_from_the_others(
    world: World, file: str, harm: Callable[[bytes], bytes], said: str
) -> None:
    command = record(world, world["gw1"])
    gw2 = world["gw2"]
    wait_for("gw2 has it", lambda: has(gw2, command))
    commit = gw2.folder / "commit"
    wait_for("gw2 has written that it is committed", lambda: commit.exists() and int.from_bytes(
        commit.read_bytes()[:8], "little") >= gw2.must().commit)  # fmt: skip
    gw2.stop(signal.SIGKILL)
    path = gw2.folder / file
    damaged = harm(path.read_bytes() if path.exists() else b"")
    path.write_bytes(damaged)
    before = gw2.log.count("raft_file_refused")
    gw2.start()
    wait_for("gw2 has fetched it", lambda: gw2.status() is not None and has(gw2, command))
    wait_for("gw2 votes again", lambda: gw2.must().recovering == "")
    assert gw2.log.count("raft_file_refused") == before + 1
    line = [text for text in gw2.log.splitlines() if "raft_file_refused" in text][-1]
    assert f"{gw2.folder}/{file}" in line
    assert said in line
    kept = [path.read_bytes() for path in gw2.folder.glob(f"{file}.damaged-*")]
    assert damaged in kept
    wait_for("all have one state", lambda: len(
        {m.must().digest for m in world.members.values()}) == 1)  # fmt: skip


def test_a_wrong_key_is_a_stranger(world: World) -> None:
    wit = world["wit"]
    wit.stop()
    wit.write_key(bytes(32))
    refused = world["gw1"].counter("bad_tag")
    wit.start()
    wait_for("gw1 refuses it", lambda: world["gw1"].counter("bad_tag") > refused)
    wait_for("it has no leader", lambda: wit.status() is not None and wit.must().read_only)
    assert not any(peer.connected for peer in wit.must().peers)
    assert world.leader([world["gw1"], world["gw2"]]) is not None
    wit.stop()


@pytest.fixture
def peer(world: World) -> Iterator[Peer]:
    """In the place of the witness, which is stopped."""
    world["wit"].stop()
    gw1 = world["gw1"]
    wait_for("gw1 misses the witness", lambda: not all(p.connected for p in gw1.must().peers))
    made = Peer(world)
    yield made
    made.socket.close()


class Peer:
    """A member of our own making at the witness' place: it has the key."""

    def __init__(self, world: World) -> None:
        config = load_cluster(world.config)
        self.wire = Wire(KEY, cluster_id=config.cluster_id, node_id=9)
        self.session, self.seq = secrets.randbits(62) + 1, 0
        with entered(Path("/run/netns") / world.space("wit")):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(0.2)
        self.socket.bind(("203.0.113.9", config.raft.port))
        self.heard = 0

    def say(self, data: bytes, *, hello: bool = False) -> None:
        self.seq += 1
        part = Part(self.heard, bool(self.heard), self.seq, 0, 0 if hello else 1, data)
        self.said = self.wire.seal(1, self.session, self.seq, part)
        self.socket.sendto(self.said, ("203.0.113.1", 7413))

    def meet(self, gw1: Member) -> None:
        """Until gw1 has echoed our session and takes what we say."""

        def met() -> bool:
            self.say(b"", hello=True)
            try:
                datagram = self.socket.recv(2000)
            except TimeoutError:
                return False
            sender, _, session, _ = self.wire.head(datagram)
            if sender == 1:
                self.heard = session
            return any(p.connected for p in gw1.must().peers if p.node_id == 9)

        wait_for("gw1 takes us for the witness", met)


def test_a_pickle_from_one_who_has_the_key_is_refused_and_counted(
    world: World, peer: Peer, tmp_path: Path
) -> None:
    proof = tmp_path / "pickled"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {proof}",)

    gw1 = world["gw1"]
    peer.meet(gw1)
    evil = pickle.dumps(Evil(), 2)
    before = gw1.counter("forged_command")
    for kind in (b"\0", b"\2", b"\3"):
        peer.say(encode_message({"type": "apply_command", "command": kind + evil}))
    entry = [kind + evil, 1, 1]
    peer.say(encode_message({"type": "append_entries", "term": 99, "commit_index": 1,
                             "entries": [entry], "prevLogIdx": 0, "prevLogTerm": 0}))  # fmt: skip
    peer.say(evil)
    wait_for("all four are counted", lambda: gw1.counter("forged_command") == before + 4)
    wait_for("and the fifth", lambda: gw1.counter("malformed_message") > 0)
    assert not proof.exists()
    assert gw1.must().term < 99
    assert world.leader([gw1, world["gw2"]]) is not None


def test_a_recording_is_worth_nothing_after_a_start_and_forgeries_are_logged_once(
    world: World, peer: Peer
) -> None:
    gw1 = world["gw1"]
    peer.meet(gw1)
    came = gw1.counter("forged_command") + 1
    peer.say(encode_message({"type": "apply_command", "command": b"\0nonsense"}))
    recorded = peer.said
    wait_for("it came through", lambda: gw1.counter("forged_command") == came)
    gw1.stop()
    gw1.start()
    wait_for("gw1 is back", lambda: gw1.status() is not None)
    strangers = gw1.counter("unproven_session")
    begun = len(gw1.log)
    forged = recorded[:-1] + bytes([recorded[-1] ^ 1])
    foreign = recorded[:8] + bytes(4) + recorded[12:]
    for _ in range(20):
        for datagram in (recorded, forged, foreign, b"x"):
            peer.socket.sendto(datagram, ("203.0.113.1", 7413))
    wait_for("all are counted", lambda: [gw1.counter(name) for name in (
        "wrong_cluster", "wrong_size")] == [20, 20])  # fmt: skip
    # A copy of what was heard is not even opened, so only those before the first count.
    wait_for("and the forged", lambda: gw1.counter("bad_tag") > 0)
    assert gw1.counter("unproven_session") > strangers
    assert gw1.counter("forged_command") == 0
    lines = [json.loads(line) for line in gw1.log[begun:].splitlines() if line[:1] == "{"]
    refused = Counter(line["reason"] for line in lines if line["event"] == "datagram_refused")
    assert refused == {"wrong_cluster": 1, "wrong_size": 1, "bad_tag": 1}
    assert not any(p.connected for p in gw1.must().peers if p.node_id == 9)


def test_two_machines_with_one_id(world: World, tmp_path: Path) -> None:
    """Answers go to the addresses of the file, so the other is never proven: refused, named."""
    text = world.config.read_text()
    world_of_twin = World.__new__(World)
    world_of_twin.prefix, world_of_twin.folder = world.prefix, tmp_path
    world_of_twin.config = tmp_path / "cluster.yaml"
    # The same cluster, but node gw2 at another machine's addresses.
    text = text.replace("203.0.113.2/25", "203.0.113.17/25")
    world_of_twin.config.write_text(text.replace("203.0.113.130/25", "203.0.113.145/25"))
    twin = Member(world_of_twin, "gw2", "odd", tmp_path)
    twin.start()
    try:
        gw1 = world["gw1"]
        wait_for("gw1 names it", lambda: any(
            "two machines run as node gw2" in alarm for alarm in gw1.must().alarms))  # fmt: skip
        assert gw1.counter("unproven_session") > 0
        wait_for("the others have a leader, whichever", lambda: not any(
            m.must().read_only for m in (gw1, world["wit"])))  # fmt: skip
    finally:
        twin.stop(signal.SIGKILL)
    world.wait_agreed()


def test_a_token_is_good_for_one_return(world: World) -> None:
    token, now = hash_token("of this test"), time.time()
    assert world["gw1"].propose(Leave("gw2")) == ProposeReply(True)
    refused = world["gw2"].propose(Join("gw2", token, now))
    assert (refused.ok, "unknown" in refused.reason) == (False, True)
    assert world["gw1"].propose(AddToken(token, now + 60, now)).ok
    assert world["gw2"].propose(Join("gw2", token, now)).ok
    assert world["gw1"].propose(Leave("gw2")).ok
    again = world["gw2"].propose(Join("gw2", token, now))
    assert "used already" in again.reason
    lines = [line for line in world["gw2"].log.splitlines() if "command_refused" in line]
    assert [line for line in lines if "used already" in line] == lines[-1:]
    fresh = hash_token("another")
    assert world["gw1"].propose(AddToken(fresh, now + 60, now)).ok
    assert world["gw1"].propose(Join("gw2", fresh, now)).ok


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda member: (member.root / "etc" / member.node / "raft.key").unlink(), "raft.key"),
        (lambda member: (member.root / "etc" / member.node / "raft.key").chmod(0o644), "0644"),
    ],
)
def test_without_its_key_it_does_not_start(world: World, harm: object, words: str) -> None:
    wit = world["wit"]
    wit.stop()
    assert callable(harm)
    harm(wit)
    wit.start()
    assert wit.process is not None
    assert wit.process.wait(15) == 1
    wit.process = None
    last = wit.log.splitlines()[-1]
    assert last.startswith("hafw-raftd: error: ")
    assert words in last


def test_status_is_a_packet_even_to_one_who_asks_nonsense(world: World) -> None:
    gw1 = world["gw1"]
    before = gw1.counter("local_malformed")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(5)
        asking.connect(str(gw1.root / "run" / "gw1" / "raftd.sock"))
        asking.send(b"nonsense")
        assert asking.recv(100) == b""
    status = gw1.must()
    assert isinstance(status, RaftStatus)
    assert status.counters["local_malformed"] == before + 1


def hafwctl(member: Member, *arguments: str) -> tuple[int, str, str]:
    program = "from hafw.cli.main import main; main()"
    config = str(member.config)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--node", member.node, "--config", config],
        env=os.environ | member.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_commands_show_members_and_moves_and_take_a_token_once(world: World) -> None:
    command = record(world, world["gw1"])
    wait_for("wit has it", lambda: has(world["wit"], command))
    code, out, _ = hafwctl(world["wit"], "cluster", "history", "--last", "1", "--json")
    (row,) = json.loads(out)
    assert (code, row["from"], row["to"], row["why"]) == (0, "gw1", "gw2", "gw1 is silent")
    assert hafwctl(world["gw2"], "node", "leave", "--yes") == (
        0, "", "gw2 leaves the cluster; it comes back by a token alone\ngw2 has left\n"
    )  # fmt: skip
    code, out, _ = hafwctl(world["gw2"], "cluster", "members", "--json")
    rows = {row["member"]: row for row in json.loads(out)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "gw1": "online", "gw2": "left", "wit": "online",
    }  # fmt: skip
    assert all(row["in_raft"] for row in rows.values())
    assert hafwctl(world["gw1"], "node", "leave", "--yes")[2].splitlines()[-1] == (
        "hafwctl: error: gw1 is the last gateway that is online; nothing was changed"
    )
    code, token, _ = hafwctl(world["gw1"], "cluster", "token", "--valid", "5")
    assert code == 0
    assert hafwctl(world["gw2"], "node", "join", "x" + token.strip())[0] == 1
    assert hafwctl(world["gw2"], "node", "join", token.strip())[0] == 0
    assert hafwctl(world["gw2"], "node", "leave", "--yes")[0] == 0
    code, _, error = hafwctl(world["gw2"], "node", "join", token.strip())
    assert (code, "used already, by gw2" in error) == (1, True)
    _, token, _ = hafwctl(world["gw1"], "cluster", "token")
    assert hafwctl(world["gw2"], "node", "join", token.strip())[0] == 0
    assert token.strip().encode() not in b"".join(
        path.read_bytes() for path in world["gw1"].folder.iterdir()
    )
