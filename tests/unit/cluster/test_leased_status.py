"""What leased says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hafw.lab
from cluster.announce_plan import ANNOUNCE_MS, AnnouncePlan
from cluster.heartbeat import Beat, Voters
from cluster.lease_types import Arrived, Send
from cluster.leased_io import plan_paths
from cluster.leased_status import leased_status
from cluster.meters import DelayMeter, FirstCopy, LinkMeter, Window
from hafw.config.load import load_cluster
from hafw.config.model import VoterSet
from hafw.messages import LeasedStatus, LoopDelay, decode_leased, encode
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, VOTED, VOTERS, Bench, Peer, T

LAB = Path(hafw.lab.__file__).parent / "cluster.yaml"


def status(bench: Bench, delay: LoopDelay | None = None) -> LeasedStatus:
    links = LinkMeter([("sync0", [2, 9]), ("lan", [2])])
    links.first(FirstCopy(2, bench.now - 3 * MS, None), "sync0")
    links.first(FirstCopy(44, bench.now, 5), "sync0")
    return leased_status(
        bench.core,
        now_ns=bench.now,
        pid=4711,
        realtime=True,
        delay=delay or LoopDelay(p50_ms=0.1, p99_ms=0.2, max_ms=0.3),
        links=links,
        gate=lambda group: (group * 100, group * 200, 5, 6),
    )


def test_holder_tells_lease_gate_peers_and_links() -> None:
    bench = Bench()
    bench.hold()
    bench.calm()
    told = status(bench)
    assert decode_leased(encode(told)) == told
    [group] = told.groups
    assert (group.active, group.holder_id, group.moves) == (True, 1, 1)
    assert 0 < group.lease_left_ms <= 99
    assert (group.announce_deadline_ns, group.accept_deadline_ns) == (100, 200)
    assert (group.dropped_in, group.dropped_out) == (5, 6)
    peer, witness = told.peers
    assert (peer.node_id, peer.alive, peer.proven, peer.synced) == (2, True, True, {1: True})
    sync0, lan = peer.links
    assert (sync0.alive, sync0.age_ms, sync0.received) == (True, 3.0, 1)
    assert (lan.alive, lan.age_ms, lan.received) == (False, None, 0)
    assert witness.node_id == 9
    assert told.alarms == []


def test_silent_peer_is_not_alive() -> None:
    bench = Bench()
    bench.calm()
    bench.now += T + 1
    assert [peer.alive for peer in status(bench).peers] == [False, False]


def test_silent_syncd_on_the_holder_is_an_alarm() -> None:
    bench = Bench()
    bench.hold()
    for _ in range(10):
        effects = [*bench.beat(2), *bench.beat(9), *bench.pass_time(HEARTBEAT)]
        bench.answer(effects)
    [alarm] = status(bench).alarms
    assert "group 1: this node is ACTIVE and its syncd has been silent for 0.2 s" in alarm


def test_other_alarms() -> None:
    bench = Bench()
    bench.core.era_error = "Read-only file system"
    bench.core.wrong_voters_ns = bench.now
    slow = LoopDelay(p50_ms=0, p99_ms=95, max_ms=120)
    era, voters, slow_machine = status(bench, slow).alarms
    assert "does not vote: Read-only file system" in era
    assert "names other founders" in voters
    assert "too short for this machine" in slow_machine
    bench.now += 11_000 * MS
    assert len(status(bench).alarms) == 1


def test_a_new_node_says_what_it_waits_for() -> None:
    bench = Bench()
    bench.core.view.act_in(VoterSet(id=0, members=VOTERS.members))
    bench.beat(9)
    [alarm] = status(bench).alarms
    assert "new and votes once it knows the voters" in alarm
    assert "(missing: nodes 2). If one cannot come, take it out of cluster.yaml" in alarm


def test_absurd_era_of_a_peer_is_an_alarm() -> None:
    bench = Bench()
    bench.beat(9, era=3)
    bench.beat(2, era=1004)
    [alarm] = status(bench).alarms
    assert alarm.startswith(
        "node 2 names era 1004, ours is 3: one of the two era files is damaged"
    )


def test_another_machine_with_this_id_is_an_alarm_for_a_second() -> None:
    bench = Bench()
    for session in (bench.core.view.sessions.own, 4711):
        told = status(bench).alarms
        assert told == []
        envelope = Peer(1, session).envelope(heard=[])
        bench.core.handle(Arrived(1, envelope), now_ns=bench.now)
    assert bench.core.view.counters["own_echo_heard"] == 1
    assert bench.core.view.counters["own_id_heard"] == 1
    [alarm] = status(bench).alarms
    assert alarm.startswith("another machine runs as node 1: stop one of the two at once")
    bench.now += 1000 * MS
    assert status(bench).alarms == []


def test_unsynced_takeover_is_an_alarm_until_synced() -> None:
    bench = Bench()
    bench.hold()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    held.unsynced = True
    bench.synced = False
    bench.beacon()
    assert "taken unsynced" in status(bench).alarms[0]
    bench.synced = True
    bench.beacon()
    assert status(bench).alarms == []


def test_delay_meter_keeps_a_minute_and_the_largest() -> None:
    meter = DelayMeter()
    assert meter.read(0) == LoopDelay(p50_ms=0.0, p99_ms=0.0, max_ms=0.0)
    for number in range(100):
        meter.add(number * 10_000, 1)
    meter.add(9 * MS, 3)
    told = meter.read(1000 * MS)
    assert (told.max_ms, told.worst_ms) == (9.0, 9.0)
    assert 0.5 <= told.p50_ms <= 0.5 * 17 / 16
    assert 0.98 <= told.p99_ms <= 0.99 * 17 / 16
    for window in range(1, 8):
        meter.add(1000, window * 11_000 * MS)
    assert meter.read(1999 * MS).p99_ms > 0.9, "not added up again so soon"
    told = meter.read(78_000 * MS)
    assert (told.max_ms, told.p99_ms) == (0.001, 0.001), "the minute forgets"
    assert told.worst_ms == 9.0, "since the start it does not"
    assert told.worst_age_s == pytest.approx(78, abs=0.001)
    assert sum(told.buckets) == 108


def test_each_bucket_of_the_histogram_ends_at_a_power_of_two_microseconds() -> None:
    meter = DelayMeter()
    for late_ns in (0, 1000, 1001, 2000, 2001, 4000, 64 * MS, 65 * MS, 3_600_000 * MS):
        meter.add(late_ns, 0)
    told = {bucket: count for bucket, count in enumerate(meter.read(0).buckets) if count}
    assert told == {0: 2, 1: 2, 2: 2, 16: 2, 24: 1}


@given(st.lists(st.integers(0, 1 << 36), min_size=1, max_size=200))
def test_a_window_is_exact_at_its_edges_and_near_between(durations: list[int]) -> None:
    window = Window()
    for duration in durations:
        window.add(duration, 1)
    told = window.read(2)
    assert told is not None
    ordered = sorted(durations)
    assert told.count == len(durations)
    assert (told.min_ms, told.max_ms) == (ordered[0] / MS, ordered[-1] / MS)
    for share, said in ((50, told.p50_ms), (99, told.p99_ms)):
        exact = ordered[len(ordered) * share // 100] / MS
        assert exact <= said <= exact * 17 / 16 + 1e-12


def test_a_window_forgets_after_a_minute_of_silence() -> None:
    window = Window()
    assert window.read(0) is None
    window.add(9 * MS, 5)
    window.add(MS, 100_000 * MS)
    told = window.read(100_000 * MS)
    assert told is not None
    assert (told.count, told.max_ms) == (1, 1.0)


def test_round_trips_are_told_for_each_peer_and_path() -> None:
    links = LinkMeter([("sync0", [2]), ("lan", [2])])
    copy = FirstCopy(2, 100 * MS, 3 * MS)
    links.first(copy, "lan")
    links.again(copy, "sync0", 104 * MS)
    links.again(FirstCopy(2, 0, None), "sync0", 105 * MS)  # It echoed nothing of ours.
    sync0, lan = links.read(2, now_ns=106 * MS, alive_ns=MS)
    assert sync0.received == 2
    assert sync0.round_trip is not None
    assert (sync0.round_trip.min_ms, sync0.round_trip.count) == (7.0, 1)
    assert lan.round_trip is not None
    assert lan.round_trip.max_ms == 3.0
    assert links.read_peer(2, 106 * MS) == lan.round_trip
    assert links.read_peer(9, 106 * MS) is None


def test_a_peer_tells_its_round_trip_once() -> None:
    bench = Bench()
    bench.beat(9)
    [send] = [e for e in bench.pass_time(HEARTBEAT) if isinstance(e, Send)][:1]
    bench.now += 5 * MS
    bench.hear(9, Beat(3, True, False, [], [(1, send.envelope.seq, 2 * MS)], VOTED, None))
    view = bench.core.view
    assert view.round_trip_told(9, bench.now) == view.peers[9].rtt_ns
    assert view.round_trip_told(9, bench.now + 1) is None
    assert view.round_trip_told(44, bench.now) is None
    witness = status(bench).peers[1]
    assert (witness.votes, witness.able) == (True, False)


def test_a_vote_in_another_set_is_none_in_ours() -> None:
    """Founders that differ: its set has our number, and its vote does not count here."""
    bench = Bench()
    bench.hear(9, Beat(3, True, False, [], [], VOTED, None))
    assert status(bench).peers[1].votes
    bench.hear(9, Beat(3, True, False, [], [], Voters(VOTED.id, (1, 9)), None))
    assert not status(bench).peers[1].votes


def test_paths_are_links_and_segments_with_the_peers_on_them() -> None:
    config = load_cluster(LAB)
    gateway = {plan.name: plan for plan in plan_paths(config, "gw1")}
    assert list(gateway) == ["sync0", "sync1", "lan", "wan"]
    assert gateway["sync0"].peers == {2: "203.0.113.2", 9: "203.0.113.9"}
    assert gateway["lan"].peers == {2: "192.0.2.2"}
    assert gateway["wan"].device == "wan0"
    assert [plan.name for plan in plan_paths(config, "wit")] == ["sync0", "sync1"]


def test_announcements_come_in_a_burst_then_slowly_for_ever() -> None:
    plan = AnnouncePlan(10_000 * MS)
    assert not plan.due(0)
    plan.start(0)
    sent_ms = [ms for ms in range(30_000) if plan.due(ms * MS)]
    assert sent_ms == [*ANNOUNCE_MS, 14_000, 24_000]
    plan.start(30_000 * MS)  # Running: a new epoch of the same holder needs no burst.
    assert not plan.due(30_000 * MS)
    plan.stop()
    assert not plan.due(99_000 * MS)
    plan.start(99_000 * MS)
    assert plan.due(99_700 * MS)  # Slept through half of the burst: one for all of it.
    assert plan.at_ns == 100_000 * MS


def test_what_the_machine_refused_is_an_alarm() -> None:
    bench = Bench()
    bench.hold()
    bench.calm()
    told = leased_status(
        bench.core,
        now_ns=bench.now,
        pid=4711,
        realtime=False,
        delay=LoopDelay(p50_ms=0.1, p99_ms=0.2, max_ms=0.3),
        links=LinkMeter([]),
        gate=None,
        machine_alarms=("the lease loop is not real-time",),
    )
    assert told.alarms == ["the lease loop is not real-time"]


_REFUSED = """
import json, os, resource, sys
from cluster.realtime import make_realtime
if sys.argv[1] == "bound":
    found = make_realtime(4095)  # No machine of ours has it.
elif sys.argv[1] == "memory":
    os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    found = make_realtime(min(os.sched_getaffinity(0)))
else:
    os.sched_setscheduler = lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted"))
    found = make_realtime(min(os.sched_getaffinity(0)))
print(json.dumps([found.realtime, found.alarms]))
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("bound", "cannot be bound to CPU 4095"),
        ("fifo", "is not real-time"),
        ("memory", "is not locked (mlockall: "),
    ],
)
def test_a_loop_that_cannot_be_made_punctual_says_so(what: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED, what],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    realtime, alarms = json.loads(done.stdout)
    assert any(said in alarm for alarm in alarms)
    if what == "fifo":
        assert realtime is False
