"""The receiving end: datagrams -> the stream core -> deltas; and the answers a sender owes.

Nothing is parsed before its tag holds, and nothing but a challenge is acted on unless it belongs
to an accepted session and has not come before. A payload that cannot be decoded is dropped whole
and counted: the peer is wrong, the node goes on.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import random
from typing import assert_never

from sync.control import (
    CHALLENGE_BYTES,
    Ack,
    Beacon,
    Challenge,
    ChallengeReply,
    Nack,
    Probe,
    decode_control,
    nack_ranges,
)
from sync.delta import Delta, DeltaError
from sync.detour import Detour, is_segment
from sync.intake import BY_REFERENCE, Read
from sync.outbox import STAMP, Outbox
from sync.paths import Paths
from sync.peer_keys import PeerKeys
from sync.stream import (
    Deliver,
    SendChallenge,
    SendNack,
    SessionAccepted,
    StreamBroken,
    StreamEffect,
    StreamReceiver,
)
from sync.transport import Transport, Way
from sync.wire import (
    HEADER_BYTES,
    TAG_BYTES,
    Header,
    MessageType,
    Opener,
    ReplayWindow,
    UnknownKeyError,
    WireError,
    parse_header,
)

__all__ = ["Arrived", "Inbox", "Incoming"]

CHALLENGES_ANSWERED_PER_S = 100
"""To one peer."""
CHALLENGES_REMEMBERED_MAX = 4096
"""Of one peer. The peer draws a nonce for each challenge, so a second one like it is a copy from
another link or a recording, and what it asked for was said over all links."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The deltas of one datagram, in order. `delay_from_ns`: the sender's stamp if its clock is
    ours, else 0."""

    sender_id: int
    seq: int
    payload: bytes
    deltas: list[Delta] | None
    """None: the native codec will read `payload`, which it has found right."""
    epoch: int
    delay_from_ns: int


Incoming = Arrived | SessionAccepted | StreamBroken


class Inbox:
    """All that peers send."""

    def __init__(
        self,
        keys: Mapping[int, bytes],
        node_id: int,
        cluster_id: int,
        outbox: Outbox,
        transport: Transport,
        *,
        boot: int,
        paths: Paths,
        detour: Detour,
        read: Read = BY_REFERENCE,
    ) -> None:
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._peers = frozenset(transport.peer_ids)
        self.opener = Opener(keys, cluster_id=cluster_id, senders=self._peers)
        self._outbox = outbox
        self._transport = transport
        self._boot = boot
        self._paths = paths
        self._detour = detour
        self._read = read
        self.stream = StreamReceiver(
            draw_nonce=lambda: secrets.token_bytes(CHALLENGE_BYTES),
            spread=random if len(self._peers) > 1 else lambda: 0.0,
        )
        self._windows: dict[tuple[int, int, MessageType], ReplayWindow] = {}
        self._boots: dict[int, int] = {}
        self._budget_at = 0.0
        self._challenges_left: dict[int, int] = {}
        self._answered: dict[int, OrderedDict[bytes, None]] = {}
        self.counters: Counter[str] = Counter()
        self.peer_keys = PeerKeys()
        self.beacon_at: dict[int, float] = {}
        """When a peer's last authentic beacon of an accepted session came."""
        self.epochs: dict[int, int] = {}
        """Group -> the newest epoch that any peer's beacon named."""
        self._applied: dict[int, tuple[int, int, float]] = {}
        """Sender -> session, seq, since when; beside it what of that was confirmed."""
        self._confirmed: dict[int, tuple[int, int, float]] = {}

    def on_datagram(
        self, datagram: bytes, *, now: float, way: Way | None = None
    ) -> list[Incoming]:
        """`way`: how it came, if that is known."""
        try:
            header = parse_header(datagram, cluster_id=self._cluster_id, senders=self._peers)
            if header.type is MessageType.DELTAS and self._is_copy(header):
                self.counters["datagrams_copies"] += 1
                return []  # Each link brings one; dropping it needs no proof.
            payload = self.opener.open_payload(header, datagram)
        except WireError as error:
            self.counters[f"refused_{error.reason}"] += 1
            if isinstance(error, UnknownKeyError):
                self.peer_keys.on_unknown(error.sender_id, error.key_id, now)
            return []
        if header.type is MessageType.DELTAS:
            # The epoch is authentic but may differ by datagram; the core hands the body back
            # later, so it travels in front of it.
            body = STAMP.pack(header.epoch) + payload
            effects = self.stream.on_datagram(
                header.sender_id, header.session, header.seq, body, now=now
            )
            return self._carry_out(effects, now)
        try:
            return self._on_control(header, payload, now, way)
        except WireError as error:
            self.counters[f"refused_{error.reason}"] += 1
            return []

    def tick(self, *, now: float) -> list[Incoming]:
        return self._carry_out(self.stream.tick(now=now), now)

    def deadline(self) -> float | None:
        return self.stream.deadline()

    def note_applied(self, whole: Callable[[int], bool], *, now: float) -> None:
        """All that was delivered is in the kernel. `whole` tells whether all that a sender had
        said before is there too: else nothing more is confirmed to it."""
        for sender_id in self._peers:
            view = self.stream.view(sender_id)
            if view is None:
                continue
            session, seq, _ = self._applied.get(sender_id, (0, 0, now))
            if (session, seq) != (view.session, view.applied_seq):
                self._applied[sender_id] = view.session, view.applied_seq, now
            if session != view.session:
                self._confirmed[sender_id] = view.session, 0, now
            if whole(sender_id):
                self._confirmed[sender_id] = self._applied[sender_id]

    def acks(self, *, now: float) -> dict[int, Ack]:
        """What to tell the peers of what we have of them."""
        acks: dict[int, Ack] = {}
        for sender_id, (session, seq, since) in self._confirmed.items():
            window = self._windows.get((sender_id, session, MessageType.BEACON))
            beacon = 0 if window is None else window.highest
            acks[sender_id] = Ack(session, seq, beacon, int((now - since) * 1e6))
        return acks

    def comparable(self, sender_id: int, sent_ns: int) -> int:
        """What a sender's clock said, if it is ours too; else 0."""
        same_clock = self._boot != 0 and self._boots.get(sender_id) == self._boot
        return sent_ns if same_clock else 0

    # -- control

    def _on_control(
        self, header: Header, payload: bytes, now: float, way: Way | None
    ) -> list[Incoming]:
        control = decode_control(header.type, payload)
        sender_id, session = header.sender_id, header.session
        accepted = self.stream.accepted_session(sender_id) == session
        match control:
            case Challenge(nonce):
                self._answer(sender_id, nonce, now)
            case ChallengeReply(nonce, stated, seq):
                if stated != session:
                    raise WireError("bad_payload", "CHALLENGE_REPLY of another session")
                effects = self.stream.on_challenge_reply(sender_id, session, nonce, seq, now=now)
                return self._carry_out(effects, now)
            case Beacon():
                if accepted:
                    if way is not None:
                        self._on_way(sender_id, way, now)
                    if not self._fresh(header):
                        return []
                    self.beacon_at[sender_id] = now
                    self._boots[sender_id] = control.boot
                    for group, epoch in control.epochs.items():
                        self.epochs[group] = max(epoch, self.epochs.get(group, 0))
                    self.peer_keys.on_beacon(sender_id, header.key_id, control.keys, now)
                    self._detour.on_beacon(sender_id, control.deaf, self._node_id)
                    self._on_ack(sender_id, control.acks.get(self._node_id), now)
                effects = self.stream.on_beacon(
                    sender_id, session, control.high_water, control.low_water, now=now
                )
                return self._carry_out(effects, now)
            case Probe():
                if accepted:
                    self._on_probe(header, control, way, now)
                return self._carry_out(self.stream.on_sign(sender_id, session, now=now), now)
            case Nack(stated, ranges):
                if not accepted:
                    self.counters["nacks_unaccepted_session"] += 1
                elif stated != self._outbox.session:
                    self.counters["nacks_other_session"] += 1
                elif self._fresh(header):
                    self._repair(sender_id, ranges, header.seq, now)
            case _:
                assert_never(control)
        return []

    def _on_way(self, sender_id: int, way: Way, now: float) -> None:
        """A beacon came by it, perhaps not for the first time."""
        link, by_multicast = way
        self._paths.on_beacon(sender_id, link, by_multicast=by_multicast, now=now)
        if not is_segment(link):
            self._detour.on_link(sender_id)

    def _on_probe(self, header: Header, probe: Probe, way: Way | None, now: float) -> None:
        # (One for another node, or heard before, is a recording.)
        if probe.to != self._node_id or way is None or not self._fresh(header):
            return
        size = HEADER_BYTES + header.payload_bytes + TAG_BYTES
        self._paths.on_probe(header.sender_id, way[0], size, now=now)
        self._paths.on_told(header.sender_id, probe.heard, now=now)
        self._detour.on_told(header.sender_id, probe.heard, now=now)
        if is_segment(way[0]):
            self._detour.on_segment(header.sender_id, way[0], now=now)
        else:
            self._detour.on_link_probe(header.sender_id)

    def _on_ack(self, peer_id: int, ack: Ack | None, now: float) -> None:
        outbox = self._outbox
        if ack is None or ack.session != outbox.session:
            return
        if ack.seq > outbox.position or ack.beacon > outbox.beacons_said:
            # The peer has heard what this process has not said: it was set back, to a snapshot
            # of its machine, or it has a double. Peers would drop what it says as old.
            self.counters["session_set_back"] += 1
            outbox.begin_session()
            return
        outbox.ledger.on_ack(peer_id, ack.seq, ack.age_us / 1e6, now=now)

    def _is_copy(self, header: Header) -> bool:
        view = self.stream.view(header.sender_id)
        return (
            view is not None and view.session == header.session and header.seq <= view.applied_seq
        )

    def _fresh(self, header: Header) -> bool:
        """Not a replay within an accepted session (or a copy from another link)."""
        key = (header.sender_id, header.session, header.type)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = ReplayWindow()
        fresh = window.accept(header.seq)
        if not fresh:
            self.counters["control_repeated"] += 1
        return fresh

    def _refill(self, now: float) -> None:
        if now - self._budget_at >= 1.0:
            self._budget_at = now
            self._challenges_left.clear()

    def _answer(self, sender_id: int, nonce: bytes, now: float) -> None:
        # A replayed challenge only makes us say our session and seq once more. It must not use up
        # what is kept for the peer's own: each is answered once, and new ones at a bounded rate.
        answered = self._answered.setdefault(sender_id, OrderedDict())
        if nonce in answered:
            answered.move_to_end(nonce)
            self.counters["challenges_repeated"] += 1
            return
        self._refill(now)
        left = self._challenges_left.get(sender_id, CHALLENGES_ANSWERED_PER_S)
        if left <= 0:
            self.counters["challenges_not_answered"] += 1
            return
        self._challenges_left[sender_id] = left - 1
        answered[nonce] = None
        if len(answered) > CHALLENGES_REMEMBERED_MAX:
            answered.popitem(last=False)
        self._outbox.flush()
        reply = ChallengeReply(nonce, self._outbox.session, self._outbox.position)
        self._transport.unicast_everywhere(sender_id, self._outbox.seal(reply))

    def _repair(self, sender_id: int, ranges: list[tuple[int, int]], seq: int, now: float) -> None:
        outbox, transport = self._outbox, self._transport
        repair = outbox.repairer.answer(sender_id, ranges, now=now)
        # The asker takes the next link with each NACK, and `seq` grows by one: so every way there
        # meets every way back, were each link to work in one direction only.
        attempt = seq // max(transport.link_count, 1)
        for wanted in repair.seqs:
            datagram = outbox.ring.get(wanted)
            assert datagram is not None, wanted
            if repair.to_all:
                transport.to_all(datagram)
            else:
                transport.unicast(sender_id, datagram, attempt=attempt)

    # -- effects of the stream core

    def _carry_out(self, effects: list[StreamEffect], now: float) -> list[Incoming]:
        incoming: list[Incoming] = []
        for effect in effects:
            match effect:
                case Deliver():
                    incoming.append(self._decode(effect))
                case SendChallenge(sender_id, nonce):
                    datagram = self._outbox.seal(Challenge(nonce))
                    self._transport.unicast_everywhere(sender_id, datagram)
                case SendNack(sender_id, session, ranges, attempt):
                    fitting = ranges[: nack_ranges(self._paths.datagram_bytes)]
                    datagram = self._outbox.seal(Nack(session, list(fitting)))
                    self._transport.unicast(sender_id, datagram, attempt=attempt)
                case SessionAccepted(sender_id):
                    self.beacon_at[sender_id] = now
                    for key in [k for k in self._windows if k[0] == sender_id]:
                        del self._windows[key]
                    incoming.append(effect)
                case StreamBroken():
                    incoming.append(effect)
                case _:
                    assert_never(effect)
        return incoming

    def _decode(self, effect: Deliver) -> Arrived | StreamBroken:
        body = effect.body
        try:
            (epoch,) = STAMP.unpack_from(body)
            (sent_ns,) = STAMP.unpack_from(body, STAMP.size)
            payload = body[2 * STAMP.size :]
            deltas = self._read(payload, epoch)
        except (DeltaError, struct.error) as error:
            # A hole in what we know of this sender: its snapshot fills it.
            reason = error.reason if isinstance(error, DeltaError) else "truncated"
            self.counters[f"quarantined_{reason}"] += 1
            seq = effect.seq
            return StreamBroken(
                effect.sender_id, effect.session, seq, seq, f"undecodable: {reason}"
            )
        stamp_ns = self.comparable(effect.sender_id, sent_ns)
        return Arrived(effect.sender_id, effect.seq, payload, deltas, epoch, stamp_ns)
