"""Raft's messages between nodes: one UDP socket a link, sessions, pysyncobj's transport. Shell.

A message that matters goes out over every link that both nodes have; what comes first counts,
later copies fall by their sequence number before they are decrypted. The leader's empty
heartbeats and their answers take turns over the links that the peer is heard on. So a dead link
costs nothing, no connection needs to be made anew, and the first vote request after a pause is not
lost (with TCP it was). Within a session a receiver takes messages in the order they were sent or
not at all, as TCP between breaks would: pysyncobj bears a lost message, but must not see an older
one.

Sessions are those of `cluster.session`: nothing but a sign of life is taken from a process that
has not echoed this one's random session id, so nothing recorded can be played again. Of two
machines with one id the one that started last counts; the other is refused, and an alarm says so.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from cluster.heartbeat import Envelope, Heard
from cluster.raft_wire import (
    DATAGRAM_BYTES_MAX,
    Assembler,
    Part,
    Wire,
    WireError,
    decode_message,
    encode_message,
    split,
)
from cluster.session import SessionTable, Verdict

__all__ = ["ALIVE_S", "KEEP_S", "LinkPlan", "Network", "PeerFacts"]

KEEP_S = 0.5
"""Between two signs of life, which go to every peer over every link."""
ALIVE_S = 1.6

TWIN_S = 5.0
"""How long a second machine with one id stays an alarm after it was heard last."""
_DRAIN_MAX = 64

_IP_FREEBIND = 15
_RECEIVE_BYTES = 1 << 20
_TOS_CS6 = 0xC0


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """One link: its device, the node's address on it, and the peers' by node id."""

    name: str
    device: str
    address: str
    peers: dict[int, str]


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What `status` says of a peer."""

    id: int
    connected: bool
    age_s: float | None
    twin: bool


@dataclass(frozen=True, slots=True)
class _Said:
    """What `SessionTable.receive` reads of an envelope."""

    session: int
    seq: int
    heard: list[Heard]


@dataclass(slots=True)
class _Peer:
    id: int
    assembler: Assembler = field(default_factory=Assembler)
    session: int | None = None
    last_seq: int = 0
    heard_at: float | None = None
    sent_at: float = 0.0
    connected: bool = False
    twin_at: float | None = None
    strange_from: float = 0.0
    strange_at: float = 0.0
    proven_at: float = 0.0
    heard_on: dict[str, float] = field(default_factory=dict)
    turn: int = 0

    def see_stranger(self, now: float) -> None:
        """A session that is not the one that counts, and does not become it: a machine that our
        answers do not reach. One that has just started is proven within a moment."""
        if now - self.strange_at > ALIVE_S:
            self.strange_from = now
        elif now - self.strange_from > ALIVE_S:
            self.twin_at = now
        self.strange_at = now


class Network:
    """All links of the node. Sockets are bound to addresses and not to devices, so that one that
    vanishes and comes back needs no privilege and nothing done."""

    def __init__(
        self,
        wire: Wire,
        links: list[LinkPlan],
        *,
        node_id: int,
        port: int,
        counters: Counter[str],
        on_message: Callable[[int, dict[str, Any]], None],
        on_connected: Callable[[int, bool], None],
        before_send: Callable[[], None],
        on_refused: Callable[[str, int], None] = lambda _link, _sender: None,
    ) -> None:
        """`on_refused`: a counter has grown by a datagram of this link that says it is from this
        node; which nobody need believe."""
        self._wire, self._node_id, self._port = wire, node_id, port
        self._counters = counters
        self._on_message, self._on_connected = on_message, on_connected
        self._before_send = before_send
        self._on_refused = on_refused
        rng = random.SystemRandom()
        self._sessions = SessionTable(node_id, lambda: rng.getrandbits(63) or 1)
        self._peers = {peer: _Peer(peer) for link in links for peer in link.peers}
        self._sockets = [(_open(link, port), link) for link in links]

    def sockets(self) -> list[socket.socket]:
        return [opened for opened, _ in self._sockets]

    def receive_from(self, now: float) -> None:
        """Whatever is there."""
        for opened, link in self._sockets:
            self.receive(opened, link, now)

    def connected(self) -> list[int]:
        return [peer.id for peer in self._peers.values() if peer.connected]

    def facts(self, now: float) -> list[PeerFacts]:
        return [
            PeerFacts(
                peer.id,
                peer.connected,
                None if peer.heard_at is None else now - peer.heard_at,
                peer.twin_at is not None and now - peer.twin_at < TWIN_S,
            )
            for _, peer in sorted(self._peers.items())
        ]

    # ---- out --------------------------------------------------------------------------------

    def send(self, to: int, message: dict[str, Any], now: float) -> bool:
        """Whether the peer is there; not whether it came through."""
        peer = self._peers.get(to)
        if peer is None or not peer.connected:
            return False
        self._before_send()  # What the message says of this node is on the disk by then.
        parts = split(encode_message(message))
        first = 0
        only = self._turn(peer, now) if _is_quiet(message) else None
        echo = self._sessions.proven(to) or 0  # It has echoed us: mutual.
        for number, data in enumerate(parts):
            seq = self._sessions.next_seq()
            first = first or seq
            part = Part(echo, bool(echo), first, number, len(parts), data)
            self._send_over(peer, seq, part, only)
        return True

    def _turn(self, peer: _Peer, now: float) -> str | None:
        """The next link that the peer is heard on; None (all of them) if there is none."""
        heard = [name for name, at in sorted(peer.heard_on.items()) if now - at < ALIVE_S]
        peer.turn += 1
        return heard[peer.turn % len(heard)] if heard else None

    def keep_alive(self, now: float) -> None:
        """Signs of life that are due, and peers that have fallen silent."""
        for peer in self._peers.values():
            if now - peer.sent_at >= KEEP_S:
                self._hello(peer, now)
            if peer.connected and (peer.heard_at is None or now - peer.heard_at > ALIVE_S):
                peer.connected = False
                self._on_connected(peer.id, False)

    def _hello(self, peer: _Peer, now: float) -> None:
        """A sign of life for every live session: one that has just started is not proven yet."""
        heard = [heard for heard in self._sessions.heard() if heard.node == peer.id]
        for entry in heard or [Heard(peer.id, 0, False)]:
            part = Part(entry.session, entry.mutual, 0, 0, 0, b"")
            self._send_over(peer, self._sessions.next_seq(), part, None)
        peer.sent_at = now

    def _send_over(self, peer: _Peer, seq: int, part: Part, only: str | None) -> None:
        datagram = self._wire.seal(peer.id, self._sessions.own, seq, part)
        for opened, link in self._sockets:
            address = link.peers.get(peer.id)
            if address is None or only not in (None, link.name):
                continue
            try:
                opened.sendto(datagram, (address, self._port))
            except OSError:
                self._counters["send_errors"] += 1

    # ---- in ---------------------------------------------------------------------------------

    def receive(self, opened: socket.socket, link: LinkPlan, now: float) -> None:
        for _ in range(_DRAIN_MAX):
            try:
                datagram = opened.recv(DATAGRAM_BYTES_MAX + 1)
            except BlockingIOError:
                return
            except OSError:
                self._counters["receive_errors"] += 1
                return
            try:
                self._take(datagram, link.name, now)
            except WireError as refusal:
                self._counters[refusal.reason] += 1
                self._on_refused(link.name, datagram[5] if len(datagram) > 5 else 0)

    def _take(self, datagram: bytes, link: str, now: float) -> None:
        sender, to, session, seq = self._wire.head(datagram)
        peer = self._peers.get(sender)
        if sender == self._node_id:
            raise WireError("own_id_heard")
        if peer is None or to != self._node_id:
            raise WireError("not_for_us")
        if session == peer.session and seq <= peer.last_seq:
            self._counters["copies"] += 1
            return  # Over another link already; nothing is believed of it, so nothing is checked.
        part = self._wire.open(datagram)
        heard = [Heard(self._node_id, part.echo, part.mutual)] if part.echo else []
        said = cast(Envelope, _Said(session, seq, heard))
        verdict, soon = self._sessions.receive(sender, said, now_ns=int(now * 1e9))
        match verdict:
            case Verdict.RETIRED:
                self._counters[verdict.value] += 1
                self._on_refused(link, sender)
                if now - peer.proven_at > ALIVE_S and peer.connected:
                    peer.twin_at = now
                return
            case Verdict.REPLAYED:
                self._counters["copies"] += 1
                return
            case Verdict.HELLO:
                self._counters["unproven_session"] += 1
                if peer.connected:
                    peer.see_stranger(now)
                if soon:
                    self._hello(peer, now)
                return
            case Verdict.ACT:
                pass
        if session != peer.session:
            peer.session, peer.last_seq, peer.proven_at = session, 0, now
            peer.assembler = Assembler()
            if peer.connected:  # Another process: what the old one was told is void.
                self._on_connected(peer.id, False)
                peer.connected = False
        if seq <= peer.last_seq:
            raise WireError("overtaken")
        peer.last_seq, peer.heard_at = seq, now
        peer.heard_on[link] = now
        if soon:
            self._hello(peer, now)
        if not peer.connected:
            peer.connected = True
            self._on_connected(peer.id, True)
        if part.parts:
            message = peer.assembler.add(part)
            if message is not None:
                self._on_message(peer.id, decode_message(message))

    def close(self) -> None:
        for opened in self.sockets():
            opened.close()


def _is_quiet(message: dict[str, Any]) -> bool:
    """It says nothing that the next one of its kind would not say."""
    kind = message["type"]
    return kind == "next_node_idx" or (
        kind == "append_entries" and not message.get("entries") and "serialized" not in message
    )


def _open(link: LinkPlan, port: int) -> socket.socket:
    """Raises OSError."""
    opened = socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        opened.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # The address may come later.
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _TOS_CS6)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        opened.bind((link.address, port))
    except OSError:
        opened.close()
        raise
    return opened
