"""The probes of a drill: which flows there are, and the two agents that carry them. Shell.

Per address family, client to server through SNAT: udp (1 kHz), icmp (100 Hz), tcp-echo (100 Hz),
tcp-idle (silent but when asked), tcp-up and tcp-down (paced streams); server to the WAN VIP's port
8080 through DNAT: udp (1 kHz) and tcp-echo. The server expects the WAN VIP as peer of the former,
the client the server as peer of the latter; another peer address is wrong.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from hafw.config.model import ClusterConfig
from hafw.errors import StateError
from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Tuple,
)
from hafw.lab.probe_agent import AgentReport, Answer, Request
from hafw.lab.probe_flows import FlowSpec
from hafw.lab.probe_frames import DPORT
from hafw.lab.probe_process import LineProcess, Spawn
from hafw.lab.probe_record import FlowReport, merge_sides

__all__ = [
    "SERVER_PORT",
    "WAN_PORT",
    "Addresses",
    "Probe",
    "ProbeSet",
    "Snapshot",
    "plan_probes",
    "tuple_of",
]

SERVER_PORT = 7001
WAN_PORT = 8080
ASK_S = 5.0
POLL_S = 0.05
UNDER_WAY_S = 0.4
"""A datagram that is not back by then is lost: the lab's network takes less than a millisecond."""
_ICMP_ECHO, _ICMP6_ECHO = 8, 128


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who talks to whom, for one address family."""

    family: int
    client: str
    server: str
    inside: str
    """The client's second address, behind DNAT."""
    vip: str
    """The group's address on the WAN."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One flow of a drill. `path`: snat (opened by the client) or dnat (by the server)."""

    spec: FlowSpec
    path: str

    @property
    def name(self) -> str:
        return f"{self.path} {self.spec.kind}"

    @property
    def exchanges_min(self) -> int:
        """Right answers after a fault that make the flow alive."""
        return 20 if self.spec.kind == "udp" else 5

    @property
    def is_stream(self) -> bool:
        return self.spec.kind in ("tcp-up", "tcp-down")

    @property
    def is_tcp(self) -> bool:
        return self.spec.kind.startswith("tcp")

    @property
    def measures_outage(self) -> bool:
        return self.spec.kind != "tcp-idle"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All flows at one moment. `late_ms`: the worst tick of an agent since it was cleared."""

    taken_ns: int
    flows: Mapping[int, FlowReport]
    strangers: tuple[str, ...]
    late_ms: float


def lab_addresses(config: ClusterConfig) -> tuple[Addresses, ...]:
    """The lab's (DESIGN §9), with the VIPs that its cluster file has."""
    vips = [vip for group in config.groups.values() for vip in group.vips.get("wan", [])]
    found = []
    for family, client, server, inside in (
        (4, "192.0.2.10", "198.51.100.10", "192.0.2.20"),
        (6, "2001:db8:1::10", "2001:db8:2::10", "2001:db8:1::20"),
    ):
        vip = next((vip for vip in vips if vip.version == family), None)
        if vip is None:
            raise StateError(f"the lab has no IPv{family} address on the WAN; drills need both")
        found.append(Addresses(family, client, server, inside, str(vip)))
    return tuple(found)


def plan_probes(
    addresses: tuple[Addresses, ...], *, octets_s: int, kinds: frozenset[str] | None = None
) -> tuple[Probe, ...]:
    """The flows of a drill; `kinds` keeps only some, e.g. ``{"snat udp"}``."""
    probes: list[Probe] = []
    intervals_ms = {"udp": 1, "icmp": 10, "tcp-echo": 10}
    for place in addresses:
        rows = [
            ("snat", kind, place.client, place.server, SERVER_PORT)
            for kind in ("udp", "icmp", "tcp-echo", "tcp-idle", "tcp-up", "tcp-down")
        ]
        rows += [("dnat", kind, place.server, place.vip, WAN_PORT) for kind in ("udp", "tcp-echo")]
        for path, kind, local, remote, port in rows:
            if kinds is not None and f"{path} {kind}" not in kinds:
                continue
            spec = FlowSpec(
                flow=len(probes) + 1,
                kind=kind,
                family=place.family,
                local=local,
                remote=remote,
                port=0 if kind == "icmp" else port,
                salt=secrets.randbits(63),
                interval_ms=intervals_ms.get(kind, 0),
                octets_s=octets_s if kind in ("tcp-up", "tcp-down") else 0,
            )
            probes.append(Probe(spec, path))
    return tuple(probes)


def tuple_of(probe: Probe, report: FlowReport) -> Tuple:
    """The flow's original tuple, as a gateway's conntrack table has it."""
    from ipaddress import ip_address

    v6 = probe.spec.family == 6
    src, dst = ip_address(report.local[0]).packed, ip_address(probe.spec.remote).packed
    family = AF_INET6 if v6 else AF_INET
    if probe.spec.kind == "icmp":
        proto = IPPROTO_ICMPV6 if v6 else IPPROTO_ICMP
        return Tuple(
            family, proto, src, dst, report.local[1], (_ICMP6_ECHO if v6 else _ICMP_ECHO) << 8
        )
    proto = IPPROTO_UDP if probe.spec.kind == "udp" else IPPROTO_TCP
    return Tuple(family, proto, src, dst, report.local[1], probe.spec.port)


class ProbeSet:
    """Two agents and their flows. `close` ends them; nothing of them stays."""

    def __init__(
        self, spawn: Spawn, addresses: tuple[Addresses, ...], probes: tuple[Probe, ...]
    ) -> None:
        self.probes = probes
        self._addresses = addresses
        self._agents: dict[str, LineProcess] = {}
        try:
            for host in ("client", "server"):
                self._agents[host] = LineProcess(spawn, host, "hafw.lab.probe_agent")
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Serve on both sides, then open all flows."""
        servers = [place.server for place in self._addresses]
        vips = [place.vip for place in self._addresses]
        inside = list(dict.fromkeys(place.inside for place in self._addresses))
        self._ask("server", Request("serve", addresses=servers, peers=vips, port=SERVER_PORT))
        self._ask("server", Request("sink", addresses=servers, port=DPORT))
        self._ask("client", Request("serve", addresses=inside, peers=servers, port=WAN_PORT))
        for path, host in (("snat", "client"), ("dnat", "server")):
            flows = [probe.spec for probe in self.probes if probe.path == path]
            if flows:
                self._ask(host, Request("open", flows=flows))

    def exchange(self) -> None:
        """Make the idle flows exchange."""
        for host in self._agents:
            self._ask(host, Request("idle"))

    def forget(self) -> None:
        """Gaps up to now have been judged: thousands of faults would fill the records."""
        for host in self._agents:
            self._ask(host, Request("forget"))

    def snapshot(self) -> Snapshot:
        taken_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        reports = {host: self._ask(host, Request("report")) for host in self._agents}
        opened = {r.flow: r for report in reports.values() for r in report.opened}
        accepted: dict[int, FlowReport] = {}
        strangers: list[str] = []
        for host, report in reports.items():
            for side in report.accepted:
                if side.flow:
                    accepted[side.flow] = side
                elif side.wrong:
                    strangers.append(f"{host}: {side.wrong_why}")
        flows = {
            probe.spec.flow: merge_sides(
                opened[probe.spec.flow],
                accepted.get(probe.spec.flow),
                accepter_receives=probe.spec.kind == "tcp-up",
            )
            for probe in self.probes
            if probe.spec.flow in opened
        }
        late_ms = max(report.late_ns_max for report in reports.values()) / 1e6
        return Snapshot(taken_ns, flows, tuple(strangers), late_ms)

    def final(self) -> Snapshot:
        """The last snapshot: dated now, and taken when nothing is under way any more."""
        taken_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for host in self._agents:
            self._ask(host, Request("quiet"))
        time.sleep(UNDER_WAY_S)
        return replace(self.snapshot(), taken_ns=taken_ns)

    def close(self) -> None:
        for agent in self._agents.values():
            agent.close()
        self._agents = {}

    def _ask(self, host: str, request: Request) -> AgentReport:
        octets = self._agents[host].ask(msgspec.json.encode(request), timeout_s=ASK_S)
        answer = msgspec.json.decode(octets, type=Answer)
        if answer.error:
            raise StateError(f"{self._agents[host].name}: {request.op}: {answer.error}")
        return answer.report
