"""`stream_world` with a segment beside the links, which stay dead when the calm comes.

Real, beside the cores of the stream, is `sync.detour`. A segment that loses like a link carries
what the detours say; probes go over it and over the links twice a second, and over it when a
detour doubts a peer. The seed draws which links are dead in the
end: all, all in one direction, or those of one node; and whether a node starts anew then.
Liveness is demanded all the same.
"""

from __future__ import annotations

from collections import Counter

from sync.detour import Detour, segment_name
from sync.paths import PROBE_S
from tests.simulation.stream_node import Datagram, Node
from tests.simulation.stream_world import BEACON_S, TURBULENT_S, StreamWorld

__all__ = ["LAN", "DetourWorld"]

LAN = segment_name("lan")
RESTART_IN_THE_CUT = 0.3
_SEGMENT = 99
"""As the number of a link."""


class DetourWorld(StreamWorld):
    """`detour`: the core under test; a planted mistake replaces it."""

    def __init__(self, seed: int, *, detour: type[Detour] = Detour) -> None:
        super().__init__(seed)
        self._core = detour
        self._detours: dict[int, Detour] = {}
        """By session: a restarted syncd has another."""
        self._deaf: dict[tuple[int, int], list[int]] = {}
        """Session and seq of a beacon -> whom its sender does not hear over links."""
        self.dead = self.rng.choice(("all", "one way", "one node"))

    def detour_of(self, node: Node) -> Detour:
        session = node.run.session
        if session not in self._detours:
            peers = {n: [LAN] for n in self.numbers if n != node.number}
            self._detours[session] = self._core(peers, beacon_s=BEACON_S)
        return self._detours[session]

    # -- the network

    def _cut(self, link: int, sender: int, to: int) -> bool:
        if link == _SEGMENT:
            return False
        if not self.calm:
            return super()._cut(link, sender, to)
        match self.dead:
            case "all":
                return True
            case "one way":
                return sender < to
            case _:
                return 1 in (sender, to)

    def way(self, one: int, other: int) -> bool:
        there, back = (
            self.detour_of(self.node(number)).away.get(peer)
            for number, peer in ((one, other), (other, one))
        )
        return super().way(one, other) or bool(there and back)

    def multicast(self, datagram: Datagram) -> None:
        detour = self.detour_of(self.node(datagram.sender))
        if datagram.kind == "beacon":
            detour.work(now=self.now)
            for peer in detour.doubted:
                self._carry(_SEGMENT, peer, self.node(datagram.sender).datagram("probe", None))
            self._deaf[datagram.session, datagram.seq] = detour.deaf
        super().multicast(datagram)
        for peer, over in detour.away.items():
            if over:
                self._carry(_SEGMENT, peer, datagram)

    def unicast(
        self, to: int, datagram: Datagram, *, everywhere: bool = False, attempt: int = 0
    ) -> None:
        super().unicast(to, datagram, everywhere=everywhere, attempt=attempt)
        away = self.detour_of(self.node(datagram.sender)).away
        if to in away and (everywhere or away[to]):
            self._carry(_SEGMENT, to, datagram)

    def _carry(self, link: int, to: int, datagram: Datagram) -> None:
        if self._cut(link, datagram.sender, to):
            return
        node, faults = self.node(to), self.faults

        def arrive() -> None:
            if self.now >= node.paused_until:
                self._note(link, node, datagram)
            node.hear(datagram)

        self.over_a_link(
            arrive, loss=faults.loss, duplicate=faults.duplicate, delay_s=faults.delay_s
        )

    def _note(self, link: int, node: Node, datagram: Datagram) -> None:
        """The rules of `sync.inbox`."""
        detour, sender = self.detour_of(node), datagram.sender
        if node.stream.accepted_session(sender) != datagram.session:
            if datagram.kind == "probe":
                node.on_effects(node.stream.on_sign(sender, datagram.session, now=self.now))
        elif datagram.kind == "beacon":
            if link != _SEGMENT:
                detour.on_link(sender)
            deaf = self._deaf[datagram.session, datagram.seq]
            detour.on_beacon(sender, deaf, node.number)
        elif datagram.kind == "probe":
            if link == _SEGMENT:
                detour.on_segment(sender, LAN, now=self.now)
            else:
                detour.on_link_probe(sender)

    # -- the run

    def run(self) -> Counter[str]:
        for node in self.nodes:
            self._every(PROBE_S, lambda node=node: self._probe(node), node)  # type: ignore[misc]
        if self.rng.random() < RESTART_IN_THE_CUT:
            node = self.rng.choice(self.nodes)
            self.at(TURBULENT_S + 0.05, node.start)
        return super().run()

    def _probe(self, node: Node) -> None:
        for peer in self.numbers:
            if peer != node.number:
                for way in (*range(self.links), _SEGMENT):
                    self._carry(way, peer, node.datagram("probe", None))
