"""Two real syncds: equal tables, takeover, return with stale entries, foreign hands."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from hafw.flow import (
    IPPROTO_ICMP,
    IPPROTO_UDP,
    TCP_FLAG_BE_LIBERAL,
    TCP_FLAG_MAXACK_SET,
    FlowEntry,
    FlowKey,
    TcpState,
    Tuple,
    inverse,
    mark_group,
    mark_owner,
)
from hafw.messages import SyncPassStatus
from sync.ctnetlink import build_update
from sync.liberal import BY_GET_MAX
from tests.integration.syncd_world import (
    World,
    flow,
    mixed,
    wait_for,
)

pytestmark = pytest.mark.integration

TIME_WAIT = TcpState(7, 0x23, 0x23, 7, 7)


def liberal(entries: list[FlowEntry]) -> list[FlowEntry]:
    return [
        entry
        for entry in entries
        if entry.tcp is not None and entry.tcp.flags_orig & TCP_FLAG_BE_LIBERAL
    ]


def test_every_kind_of_flow_comes_lives_and_goes_on_the_peer(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    echo = Tuple(2, IPPROTO_ICMP, bytes([192, 0, 2, 9]), bytes([198, 51, 100, 10]), 77, 8 << 8)
    ping = FlowEntry(
        FlowKey(0, echo),
        replace(inverse(echo), dst=bytes([198, 51, 100, 254])),
        0x0E,
        30,
        flow(0).mark,
    )
    flows = [*mixed(64), ping]
    gw1.put(flows)
    pair.wait_equal(1, 2)
    assert gw1.listed() == gw2.listed(), "conntrack(8) sees the same translations"
    assert len(gw2.listed()) == 65
    replicas = gw2.table()
    # Every replica of TCP is pristine: liberal on both sides, nothing learnt.
    for entry in replicas.values():
        if entry.tcp is not None:
            assert entry.tcp.flags_orig & entry.tcp.flags_reply & TCP_FLAG_BE_LIBERAL
            assert not entry.tcp.flags_orig & TCP_FLAG_MAXACK_SET
        assert mark_owner(entry.mark) == 1, "the owner's mark"
        assert entry.timeout_s is not None
        assert entry.timeout_s > 800, "the hold timeout"
    closing = replace(flows[0], tcp=TIME_WAIT, timeout_s=120)
    gw1.change(closing)
    pair.wait_equal(1, 2)
    gw1.delete(flows[:33])
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 32
    status = gw2.status()
    assert status is not None
    assert (status.groups[0].replicas, status.groups[0].owned) == (32, 0)
    assert status.peers[0].lag_deltas == 0
    delay_ms = status.peers[0].delay_p50_ms
    assert delay_ms is not None
    assert 0 < delay_ms < 1000


def test_what_is_not_worth_a_replica_stays_at_home(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    opening = replace(flow(1), status=0x08, tcp=TcpState(1, 0x03, 0, 7, 0), timeout_s=120)
    own = replace(flow(2, proto=IPPROTO_UDP), mark=7)
    gw1.put([opening, own, flow(3)])
    wait_for("the third flow", lambda: flow(3).key in gw2.table())
    time.sleep(0.2)
    assert set(gw2.table()) == {flow(3).key}
    gw1.delete([opening])
    time.sleep(0.2)
    assert gw2.counter("destroy_unknown") == 0, "a DESTROY of what was never published"
    gw1.put([opening])
    gw1.change(replace(opening, status=0x0E, tcp=TcpState(3, 0x03, 0x03, 7, 7)))
    wait_for("published once ASSURED", lambda: opening.key in gw2.table())


def test_takeover_adopts_and_tells_the_next_backup(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    flows = mixed(60)
    gw1.put(flows)
    pair.wait_equal(1, 2)
    gw1.stop(signal.SIGKILL)
    gw2.follow(1, 1, lives=False)
    time.sleep(0.1)
    assert not gw2.reason, "it stays synced when the holder dies"
    gw2.hold(2)

    def adopted() -> bool:
        return all(mark_owner(entry.mark) == 2 for entry in gw2.table().values())

    wait_for("marks rewritten", adopted)
    table = gw2.table()
    assert len(table) == 60
    for entry in table.values():
        assert mark_group(entry.mark) == 1
        assert entry.mark & 0xFF == flows_by_key(flows)[entry.key].mark & 0xFF, "the user's bits"
        timeout_s = 432_000 if entry.tcp is not None else 120
        assert entry.timeout_s is not None
        assert timeout_s - 30 <= entry.timeout_s <= timeout_s, "the normal timeout, not the hold"
    status = gw2.status()
    assert status is not None
    assert (status.groups[0].owned, status.groups[0].liberal) == (60, 30)
    # The dead node comes back with an empty table and gets everything, then the changes.
    gw1.flush()
    gw1.start()
    gw1.follow(2, 2)
    gw1.wait_synced()
    pair.wait_equal(2, 1)
    gw2.delete(flows[:10])
    gw2.put(mixed(10, owner=2, first=100))
    pair.wait_equal(2, 1)


def test_adoption_is_paced_and_its_progress_is_shown(world: World) -> None:
    gw1, gw2 = world.gateways
    count, pace = 3_000, 2_000
    gw2.program = "tests.integration.forgetful_syncd"
    gw2.environment["HAFW_TEST_TAKE_PER_S"] = str(pace)  # What any machine can do.
    world.start()
    world.lead(1, 1)
    gw2.wait_synced()
    gw1.put(mixed(count))
    wait_for("replicas", lambda: len(gw2.table()) == count, 30)
    gw1.stop(signal.SIGKILL)
    gw2.hold(2)
    seen: list[SyncPassStatus] = []

    def adopted() -> bool:
        status = gw2.status()
        own = None if status is None else status.groups[0].own_pass
        if own is not None:
            seen.append(own)
        return own is not None and not own.running

    wait_for(lambda: f"the end of adoption; {seen[-3:]}", adopted, 30)
    last = seen[-1]
    assert (last.kind, last.done, last.total, last.adopted) == ("take", count, count, count)
    assert 0 < last.per_s < 1.3 * pace, "the pace, and what a late turn may catch up"
    steps = [(one.done, one.total) for one in seen if one.running]
    assert steps == sorted(steps)
    assert any(0 < done < count for done, _ in steps), f"no progress in between: {steps}"
    assert {total for _, total in steps} == {count}


def flows_by_key(flows: list[FlowEntry]) -> dict[FlowKey, FlowEntry]:
    return {entry.key: entry for entry in flows}


@pytest.mark.parametrize(
    ("count", "left"), [(8, 3), (BY_GET_MAX + 100, BY_GET_MAX + 90), (BY_GET_MAX + 100, 3)]
)
def test_learnt_windows_make_a_flow_strict_again_and_that_is_not_published(
    pair: World, count: int, left: int
) -> None:
    """By look-ups, by dumps, and by a dump that leaves few enough for look-ups."""
    gw1, gw2 = pair[1], pair[2]
    flows = [flow(number, v6=bool(number & 1)) for number in range(count)]
    gw1.put(flows)
    pair.wait_equal(1, 2)
    pair.lead(2, 2)
    gw1.wait_synced()
    wait_for("adopted", lambda: gw2.counter("updates") >= count)
    learnt = TcpState(3, TCP_FLAG_MAXACK_SET, TCP_FLAG_MAXACK_SET, 7, 7)
    learning = [
        build_update(entry.key, tcp=learnt, tcp_flags_mask=TCP_FLAG_MAXACK_SET)
        for entry in flows[left:]
    ]
    for first, last, remain in ((1, len(learning), left + 1), (0, 1, left)):
        assert not any(gw2.kernel.execute(learning[first:last]))
        wait_for("strict", lambda: len(liberal(list(gw2.table().values()))) == remain, 5)  # noqa: B023
    wait_for("count", lambda: (s := gw2.status()) is not None and s.groups[0].liberal == left)
    assert len(liberal(list(gw1.table().values()))) == count, "a replica stays pristine"


def test_a_returning_node_replaces_every_stale_entry(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    flows = mixed(80)
    gw1.put(flows)
    # gw1 has forwarded: its windows are learnt, its entries strict.
    assert not liberal(list(gw1.table().values()))
    pair.wait_equal(1, 2)
    pair.lead(2, 2)
    # A beacon from before it hears of its new role says "synced" too.
    wait_for("stale entries", lambda: gw1.counter("entries_gone_stale") == 80)
    gw1.wait_synced()
    tcp = [entry for entry in gw1.table().values() if entry.tcp is not None]
    assert len(liberal(tcp)) == len(tcp) == 40, "all of them pristine"
    status = gw1.status()
    assert status is not None
    assert status.groups[0].stale == 0
    pair.wait_equal(2, 1)
    # And back: gw2's entries are the stale ones now.
    gw2.delete(flows[:20])
    pair.wait_equal(2, 1)
    pair.lead(1, 3)
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 60


def test_a_stale_node_is_unsynced_until_its_snapshot_is_through(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(20))
    pair.wait_equal(1, 2)
    gw2.signal(signal.SIGSTOP)
    gw1.follow(2, 2)
    gw1.wait_reason("stale entries")
    assert gw1.beacons[-1].stale_entries == 20
    assert gw1.beacons[-1].synced == {1: False}
    gw2.signal(signal.SIGCONT)
    gw2.hold(2)
    gw1.wait_synced()
    assert gw1.beacons[-1].stale_entries == 0


def test_a_stale_holder_replaces_its_own_tcp_entries(pair: World) -> None:
    """gw1 held, gw2 held unseen, gw1 wins again: nobody has a snapshot for it."""
    gw1 = pair[1]
    gw1.put(mixed(60))
    pair.wait_equal(1, 2)
    gw1.hold(3, contiguous=False)
    wait_for(
        "pristine entries",
        lambda: len(liberal(list(gw1.table().values()))) == 30,
    )
    gw1.wait_synced()
    assert len(gw1.table()) == 60
    for entry in gw1.table().values():
        if entry.tcp is not None:
            assert entry.timeout_s is not None
            assert entry.timeout_s > 400_000, "its own timeout, no hold"
    # Winning the very next epoch, a node touches nothing.
    before = gw1.counter("kernel_writes")
    gw1.hold(4, contiguous=True)
    pair[2].follow(4, 1)
    pair[2].wait_synced()
    wait_for("said again", lambda: gw1.counter("updates") >= 120)
    made_strict = gw1.counter("made_strict")
    assert gw1.counter("kernel_writes") - before == made_strict


def test_replicas_deleted_by_somebody_else_come_back(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(30))
    pair.wait_equal(1, 2)
    gw2.flush()
    pair.wait_equal(1, 2)
    assert gw2.counter("replicas_deleted_by_others") == 30
    gw2.wait_synced()


def test_entries_of_the_group_that_nobody_knows_are_swept(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw2.stop()
    gw2.put(mixed(12, owner=2, first=200))
    own = replace(flow(999, proto=IPPROTO_UDP), mark=5)
    gw2.put([own])
    gw1.put(mixed(4))
    gw2.start()
    gw2.wait_synced()
    assert set(gw2.table()) == {entry.key for entry in [*mixed(4), own]}


def test_clashing_translation_is_repaired(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    wanted = flow(1, proto=IPPROTO_UDP)
    # gw2 holds another flow with the same reply tuple, of its own making.
    squatter = replace(
        wanted,
        key=FlowKey(0, replace(wanted.key.orig, sport=9)),
        mark=0,
    )
    gw2.put([squatter])
    gw1.put([wanted])
    wait_for("the replica", lambda: wanted.key in gw2.table())
    assert squatter.key not in gw2.table()
    assert gw2.counter("clash_repaired") == 1
