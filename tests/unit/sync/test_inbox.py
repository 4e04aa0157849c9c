"""What a node owes to a peer that asks who it is: an answer each, whatever somebody replays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import count
from typing import cast

from sync.control import Beacon, Challenge, Probe
from sync.delta import Destroy, Version
from sync.detour import Detour, segment_name
from sync.inbox import CHALLENGES_ANSWERED_PER_S, CHALLENGES_REMEMBERED_MAX, Inbox
from sync.outbox import Outbox
from sync.paths import Paths
from sync.transport import Transport
from sync.wire import Sealer
from tests.unit.sync.sync_flows import tcp

MASTER = bytes(range(32))
LAN = segment_name("lan")


@dataclass
class Wire:
    """Stands where the links are, and keeps what is sent."""

    peer_ids: list[int]
    link_count: int = 2
    sent: list[bytes] = field(default_factory=list)

    def unicast_everywhere(self, peer_id: int, datagram: bytes) -> None:
        assert peer_id in self.peer_ids
        self.sent.append(datagram)

    def unicast(self, peer_id: int, datagram: bytes, *, attempt: int) -> None:
        assert attempt >= 0
        self.unicast_everywhere(peer_id, datagram)

    def take(self) -> list[bytes]:
        sent, self.sent = self.sent, []
        return sent


def outbox(node_id: int, session: int) -> Outbox:
    sessions = count(session)

    def new_sealer() -> Sealer:
        return Sealer(
            MASTER,
            key_id=0,
            cluster_id=7,
            sender_id=node_id,
            session=next(sessions),
            draw=os.urandom,
        )

    return Outbox(new_sealer, lambda datagram: None, ring_datagrams=64, peers=1, boot=0)


class Node:
    def __init__(self, node_id: int, session: int, *peer_ids: int) -> None:
        self.outbox = outbox(node_id, session)
        self.wire = Wire(list(peer_ids))
        transport = cast(Transport, self.wire)
        self.paths = Paths({peer: ["sync0"] for peer in peer_ids}, unicast=False)
        self.detour = Detour({peer: [LAN] for peer in peer_ids}, beacon_s=0.02)
        self.inbox = Inbox(
            {0: MASTER}, node_id, 7, self.outbox, transport, boot=0, paths=self.paths,
            detour=self.detour,
        )  # fmt: skip

    def beacon(self, now: float = 0.0) -> bytes:
        acks = self.inbox.acks(now=now)
        return self.outbox.seal(Beacon(self.outbox.position, 0, {}, 0, 0, acks))

    def meet(self, peer: Node, now: float = 0.0) -> None:
        """Accept the peer's session."""
        self.inbox.on_datagram(peer.beacon(), now=now)
        for challenge in self.wire.take():
            peer.inbox.on_datagram(challenge, now=now)
        for answer in peer.wire.take():
            self.inbox.on_datagram(answer, now=now)
        self.inbox.note_applied(lambda _: True, now=now)


def nonce(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_replayed_challenge_does_not_keep_a_restarted_peer_out() -> None:
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    recorded = outbox(2, 21).seal(Challenge(nonce(1)))
    for millisecond in range(2000):
        now = 1000 + millisecond / 1e3
        for _ in range(2):
            gw1.inbox.on_datagram(recorded, now=now)
        answers = gw1.wire.take()
        assert len(answers) == (1 if millisecond == 0 else 0)
        if millisecond < 300 or millisecond % 20:
            continue
        gw2.inbox.on_datagram(gw1.beacon(), now=now)
        for challenge in gw2.wire.take():
            gw1.inbox.on_datagram(challenge, now=now)
        for answer in gw1.wire.take():
            gw2.inbox.on_datagram(answer, now=now)
        assert gw2.inbox.stream.accepted_session(1) == 11, "at the first attempt"


def test_the_newest_epoch_that_a_proven_peer_names_is_kept() -> None:
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    gw1.inbox.on_datagram(gw2.outbox.seal(Beacon(0, 0, {1: 9})), now=0.0)
    assert gw1.inbox.epochs == {}, "its session is not accepted yet"
    gw1.meet(gw2)
    for epochs in ({1: 5}, {1: 4, 2: 3}, {}):
        gw1.inbox.on_datagram(gw2.outbox.seal(Beacon(0, 0, epochs)), now=0.1)
    assert gw1.inbox.epochs == {1: 5, 2: 3}


def test_a_challenge_is_answered_once_over_all_links() -> None:
    gw1, gw2 = Node(1, 11, 2), outbox(2, 22)
    for number in (1, 2):
        challenge = gw2.seal(Challenge(nonce(number)))
        for now in (1.0, 1.001, 9.0):
            gw1.inbox.on_datagram(challenge, now=now)
        assert len(gw1.wire.take()) == 1
    assert gw1.inbox.counters["challenges_repeated"] == 4


def test_the_rate_is_bounded_for_each_peer() -> None:
    gw1, gw2, gw3 = Node(1, 11, 2, 3), outbox(2, 22), outbox(3, 33)
    for number in range(CHALLENGES_ANSWERED_PER_S + 5):
        gw1.inbox.on_datagram(gw2.seal(Challenge(nonce(number))), now=1.0)
    assert len(gw1.wire.take()) == CHALLENGES_ANSWERED_PER_S
    assert gw1.inbox.counters["challenges_not_answered"] == 5
    gw1.inbox.on_datagram(gw3.seal(Challenge(nonce(0))), now=1.0)
    assert len(gw1.wire.take()) == 1, "what gw2 may have is no other peer's"
    gw1.inbox.on_datagram(gw2.seal(Challenge(nonce(9999))), now=2.1)
    assert len(gw1.wire.take()) == 1


def test_the_memory_of_challenges_is_bounded() -> None:
    gw1, gw2 = Node(1, 11, 2), outbox(2, 22)
    first = gw2.seal(Challenge(nonce(0)))
    gw1.inbox.on_datagram(first, now=0.0)
    for number in range(1, CHALLENGES_REMEMBERED_MAX + 1):
        gw1.inbox.on_datagram(gw2.seal(Challenge(nonce(number))), now=float(2 * number))
    gw1.wire.take()
    gw1.inbox.on_datagram(first, now=1e6)
    assert len(gw1.wire.take()) == 1, "forgotten, so answered like a new one"


def test_a_peer_that_has_heard_more_than_was_said_makes_a_new_session() -> None:
    """This process was set back to a snapshot of its machine: it would be taken for a replay."""
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    gw2.meet(gw1)
    for _ in range(5):
        gw2.inbox.on_datagram(gw1.beacon(), now=0.0)
    said = gw2.beacon()
    gw1.meet(gw2)
    gw1.inbox.on_datagram(gw2.beacon(), now=0.1)
    assert gw1.outbox.session == 11, "what the peer has heard was said"
    restored = Node(1, 11, 2)
    restored.inbox.on_datagram(said, now=0.2)
    assert restored.outbox.session == 11, "a session that is not proven changes nothing"
    restored.meet(gw2)
    restored.inbox.on_datagram(gw2.beacon(), now=0.3)
    assert restored.outbox.session == 12
    assert restored.inbox.counters["session_set_back"] == 1
    gw2.meet(restored, now=0.4)
    assert gw2.inbox.stream.accepted_session(1) == 12
    restored.inbox.on_datagram(gw2.beacon(), now=0.5)
    assert restored.outbox.session == 12


def test_what_a_peer_has_applied_is_told_and_kept() -> None:
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    gw2.meet(gw1)
    gw1.meet(gw2)
    gw1.inbox.on_datagram(gw2.beacon(), now=1.0)
    assert gw1.outbox.ledger.acked(2) == 0
    assert gw2.inbox.acks(now=3.0)[1].age_us == 3_000_000


def test_what_came_before_a_hole_was_filled_is_not_confirmed() -> None:
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    gw2.meet(gw1)
    for seq in (1, 2, 3):
        gw1.outbox.put(Destroy(tcp().key, 1, Version(1 << 32, 0), 7))
        gw1.outbox.flush()
        datagram = gw1.outbox.ring.get(seq)
        assert datagram is not None
        gw2.inbox.on_datagram(datagram, now=float(seq))
        wholes = {1: seq != 2}
        gw2.inbox.note_applied(wholes.__getitem__, now=float(seq))
        confirmed = gw2.inbox.acks(now=float(seq))[1]
        assert confirmed.seq == (1, 1, 3)[seq - 1]
    gw2.inbox.note_applied(lambda _: True, now=9.0)
    assert gw2.inbox.acks(now=9.0)[1].age_us == 6_000_000, "since it came, not since it is told"


def test_what_comes_over_a_segment_does_not_count_as_a_link_and_no_replay_as_heard() -> None:
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    gw1.meet(gw2)
    gw2.meet(gw1)
    for step in range(20):  # 0.4 s in which links bring nothing.
        gw1.inbox.on_datagram(gw2.beacon(), now=step * 0.02, way=(LAN, False))
        gw1.detour.work(now=step * 0.02)
    assert gw1.detour.deaf == [2]
    assert gw1.detour.away == {2: ""}, "beacons alone may be anybody's copies"
    probe = gw2.outbox.seal(Probe(1, {LAN: (1400, False)}))
    gw1.inbox.on_datagram(probe, now=0.4, way=(LAN, False))
    gw1.detour.work(now=0.4)
    assert gw1.detour.away == {2: LAN}
    for step in range(20, 200):
        gw1.inbox.on_datagram(probe, now=step * 0.02, way=(LAN, False))
        gw1.detour.work(now=step * 0.02)
    assert gw1.detour.away == {2: ""}, "the same probe, replayed"
    gw1.inbox.on_datagram(gw2.beacon(), now=4.0, way=("sync0", True))
    gw1.detour.work(now=4.0)
    assert gw1.detour.deaf == []


def test_a_peer_that_hears_nothing_over_links_is_believed_once() -> None:
    gw1, gw2 = Node(1, 11, 2), Node(2, 22, 1)
    gw1.meet(gw2)
    gw2.meet(gw1)
    recorded = gw2.outbox.seal(Beacon(0, 0, {}, 0, 0, {}, {}, [1]))
    gw1.inbox.on_datagram(recorded, now=0.0, way=("sync0", True))
    assert gw1.detour.pressing
    gw1.detour.work(now=0.0)
    assert gw1.detour.away == {2: ""}
    gw1.inbox.on_datagram(gw2.beacon(), now=0.02, way=("sync0", True))
    gw1.inbox.on_datagram(recorded, now=0.04, way=(LAN, False))  # Somebody's copy of it.
    for step in range(2, 80):
        if step % 25 == 0:
            probe = gw2.outbox.seal(Probe(1, {}))
            gw1.inbox.on_datagram(probe, now=step * 0.02, way=("sync0", False))
        gw1.inbox.on_datagram(gw2.beacon(), now=step * 0.02, way=("sync0", True))
        gw1.detour.work(now=step * 0.02)
    assert gw1.detour.away == {}
