"""Carries out what `sync.paths` and `sync.detour` find: probes, smaller datagrams, unicast, ways
over segments, alarms. Shell."""

from __future__ import annotations

from hafw.config.model import ClusterConfig
from sync.control import Probe, padded
from sync.detour import Detour, is_segment
from sync.event_reader import EventReader
from sync.outbox import Outbox
from sync.paths import HEADERS_BYTES, SIZES, Paths, ProbeOver
from sync.snapshot import SnapshotServer
from sync.transport import Transport
from sync.wire import HEADER_BYTES, TAG_BYTES

__all__ = ["Prober"]

TCP_HEADERS_BYTES = 40
"""Of IPv4 and TCP, without options: what an MTU counts beside a segment."""


class Prober:
    """Of one syncd."""

    def __init__(
        self,
        config: ClusterConfig,
        paths: Paths,
        detour: Detour,
        transport: Transport,
        outbox: Outbox,
        reader: EventReader,
        server: SnapshotServer,
    ) -> None:
        self._config = config
        self._paths = paths
        self._detour = detour
        self._transport = transport
        self._outbox = outbox
        self._reader = reader
        self._server = server
        self._datagram_bytes = SIZES[0]
        self._transport.direct(paths.by_unicast)

    def work(self, *, now: float) -> None:
        """Before each beacon."""
        self.detour(now=now)
        for probe in self._paths.due(now=now):
            self._probe(probe, now)
        self._transport.direct(self._paths.by_unicast)
        fits = self._paths.datagram_bytes
        if fits != self._datagram_bytes:
            self._datagram_bytes = fits
            self._reader.fit(fits)
            carried = fits + HEADERS_BYTES - TCP_HEADERS_BYTES
            self._server.use_segments(None if fits == SIZES[0] else carried)

    def detour(self, *, now: float) -> None:
        """Whom links do not reach, as of now."""
        self._detour.work(now=now)
        for peer_id in self._detour.doubted:
            for segment in self._transport.segments[peer_id]:
                self._probe(ProbeOver(peer_id, segment, SIZES[-1]), now)
        self._transport.detour(self._detour.away)
        self._server.stand_in(self._transport.addresses_on(self._detour.asked_over))

    def _probe(self, probe: ProbeOver, now: float) -> None:
        said = Probe(probe.peer_id, self._paths.hears(probe.peer_id, now=now))
        whole = padded(said, probe.bytes - HEADER_BYTES - TAG_BYTES)
        self._transport.over(probe.peer_id, probe.link, self._outbox.seal(whole))

    def alarms(self, *, now: float) -> list[str]:
        """What the network lacks, though replication copes with it."""
        name, device = self._config.node_name, self._transport.device
        small = [
            f"{_title(link)} ({device(link)}): datagrams of more than {size} bytes do not "
            f"reach {name(peer)}; what lies between carries an MTU of less than "
            f"{min(s for s in SIZES if s > size) + HEADERS_BYTES}. All datagrams are made smaller "
            "meanwhile"
            for peer, link, size in self._paths.small(now=now)
        ]
        unheard = [
            f"sync link {link} ({device(link)}): multicast to {self._config.sync.multicast} does "
            f"not reach {name(peer)}, unicast does, so all is sent to it by unicast. Does a "
            "switch snoop IGMP without a querier? Or set sync.transport to unicast"
            for peer, link in self._paths.unheard(now=now)
        ]
        half_dead = self._detour.multicast_alone
        cut = [
            (
                f"the sync links from {name(peer)} pass multicast and no unicast"
                if peer in half_dead
                else f"all sync links to {name(peer)} are cut"
            )
            + f": it is replicated with over {over} ({device(over)})"
            for peer, over in self._detour.away.items()
            if over
        ]
        return small + unheard + cut


def _title(way: str) -> str:
    return way if is_segment(way) else f"sync link {way}"
