"""The socket filter of the event socket: what it drops, what it must not, and a syncd without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from hafw.flow import (
    AF_INET,
    IPPROTO_ICMP,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPS_ASSURED,
    Expectation,
    FlowEntry,
    FlowKey,
    SctpState,
    TcpState,
    Tuple,
    inverse,
)
from hafw.kernel.netns import entered
from sync.ctnetlink import (
    CtEvent,
    ExpectEvent,
    build_create,
    build_delete,
    build_expect_create,
    build_update,
)
from sync.ctsocket import CONNTRACK_GROUPS, EXPECTATION_GROUPS, EventSocket, RequestSocket
from tests.integration.ct_spaces import spaces, strict
from tests.integration.syncd_world import flow, mixed, syncd_world

pytestmark = pytest.mark.integration
GROUPS = CONNTRACK_GROUPS + EXPECTATION_GROUPS


class Table:
    """A conntrack table with a filtered listener, one that hears all, and two that write."""

    def __init__(self, space: str) -> None:
        with entered(space):
            self.all, self.filtered = EventSocket(groups=GROUPS), EventSocket(groups=GROUPS)
            self.own, self.other = RequestSocket(), RequestSocket()
        self.filtered.attach_filter(self.own.port_id)

    def close(self) -> None:
        for sock in (self.all, self.filtered, self.own, self.other):
            sock.close()

    def heard(self) -> tuple[list[CtEvent | ExpectEvent], list[CtEvent | ExpectEvent]]:
        """(by the one without a filter, by the one with it) since the last call."""
        return self.all.drain_all(10_000), self.filtered.drain_all(10_000)


@pytest.fixture
def table() -> Iterator[Table]:
    with spaces("filter") as (space,):
        strict(space)
        made = Table(space)
        yield made
        made.close()


def life(sock: RequestSocket, entry: FlowEntry) -> None:
    """Three events of one flow, asked for by `sock`."""
    bits = entry.status & (IPS_ASSURED | 2)
    made = [
        build_create(entry, pristine=False),
        build_update(entry.key, status=bits, timeout_s=60),
        build_delete(entry.key),
    ]
    assert sock.execute(made) == [0, 0, 0]


def test_the_echo_of_our_own_writes_is_not_queued(table: Table) -> None:
    for entry in mixed(64):
        life(table.own, entry)
    everything, rest = table.heard()
    assert len(everything) == 3 * 64
    assert rest == []
    for entry in mixed(64):
        life(table.other, entry)
    everything, rest = table.heard()
    assert len(everything) == 3 * 64
    assert rest == everything, "what others do to the table is heard"


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("zone", [0, 7])
@pytest.mark.parametrize(
    ("proto", "passes"), [(IPPROTO_TCP, False), (IPPROTO_SCTP, False), (IPPROTO_UDP, True)]
)
def test_of_tcp_and_sctp_only_what_is_assured_is_queued(
    table: Table, proto: int, passes: bool, zone: int, v6: bool
) -> None:
    made = flow(1, proto=proto, v6=v6)
    made = dataclasses.replace(made, key=FlowKey(zone, made.key.orig), mark=0, status=8)
    if proto == IPPROTO_SCTP:
        made = dataclasses.replace(made, sctp=SctpState(2, 1, 2))
    elif proto == IPPROTO_TCP:
        made = dataclasses.replace(made, tcp=TcpState(1, 0, 0, 0, 0))
    life(table.other, made)
    everything, rest = table.heard()
    assert len(everything) == 3
    assert rest == (everything if passes else [])
    life(table.other, dataclasses.replace(made, status=0x0E, mark=5))
    everything, rest = table.heard()
    assert len(everything) == 3
    assert rest == everything


def test_pings_and_expectations_of_others_are_queued(table: Table) -> None:
    echo = Tuple(AF_INET, IPPROTO_ICMP, bytes([192, 0, 2, 9]), bytes([198, 51, 100, 10]), 7, 2048)
    life(table.other, FlowEntry(FlowKey(0, echo), inverse(echo), 8, 30))
    assert len(table.heard()[1]) == 3
    master = dataclasses.replace(flow(2), helper="ftp")
    child = dataclasses.replace(master.key.orig, sport=0, dport=4000)
    expected = Expectation(master.key, child, b"\xff" * 4, 0, 60)
    for sock, count in ((table.other, 2), (table.own, 0)):
        wanted = [build_create(master), build_expect_create(expected)]
        assert sock.execute(wanted) == [0, 0]
        everything, rest = table.heard()
        assert len(everything) == 2
        assert len(rest) == count
        assert sock.execute([build_delete(master.key)]) == [0]
        table.heard()


@pytest.mark.parametrize("program", ["sync.daemon", "tests.integration.unfiltered_syncd"])
def test_a_backup_reads_none_of_its_own_echo_and_lives_without_the_filter(
    tmp_path: Path, program: str
) -> None:
    with syncd_world(tmp_path) as world:
        world[2].program = program
        world.start()
        world.lead(1, 1)
        for gateway in world.gateways:
            gateway.wait_synced()
        world[1].put(mixed(32))
        world.wait_equal(1, 2)
        status = world[2].status()
        assert status is not None
        alarms = [alarm for alarm in status.alarms if "attaching a filter" in alarm]
        if program == "sync.daemon":
            assert alarms == []
            assert world[2].counter("echoes_heard") == 0
        else:
            assert len(alarms) == 1
            assert world[2].counter("echoes_heard") >= 32
