"""Two real syncds, and what upsets one of them from beside: a leased that is silent for a moment,
somebody who rewrites marks or flushes the table."""

from __future__ import annotations

import signal

import pytest

from hafw.flow import MARK_MASK, FlowKey, mark_group
from sync.ctnetlink import build_update
from sync.roles import LEASED_SILENT_S
from tests.integration.syncd_world import Gateway, World, flow, mixed, wait_for

pytestmark = pytest.mark.integration


def groups(pair: World, number: int) -> dict[FlowKey, int]:
    return {key: mark_group(entry.mark) for key, entry in pair[number].table().items()}


def clear_marks(gateway: Gateway, flows: int) -> None:
    """By a socket that is not syncd's."""
    updates = [build_update(entry.key, mark=(0, MARK_MASK)) for entry in mixed(flows)]
    assert not any(gateway.kernel.execute(updates))


def alarmed(pair: World, number: int, part: str) -> bool:
    status = pair[number].status()
    return status is not None and any(part in alarm for alarm in status.alarms)


def test_a_leased_that_was_silent_for_a_moment_costs_what_happened_meanwhile(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(2000))
    pair.wait_equal(1, 2)
    said, role = gw1.counter("deltas_sent"), gw1.role
    refused, asked = gw1.counter("snapshots_refused"), gw2.counter("snapshots_asked")
    repairs = gw2.counter("repairs_asked")
    gw1.say(None)
    wait_for(
        "silence is noticed", lambda: gw1.counter("role_leased_silent") == 1, 3 * LEASED_SILENT_S
    )
    gw1.put(mixed(10, first=2000))
    gw1.delete(mixed(1))
    gw1.say(role)
    wait_for("the role is resumed", lambda: gw1.counter("roles_resumed") == 1)
    pair.wait_equal(1, 2)
    gw1.wait_synced()
    gw2.wait_synced()
    assert len(gw2.table()) == 2009
    assert gw1.counter("deltas_sent") - said < 200, "not all is said again"
    assert gw1.counter("snapshots_refused") == refused
    whole = gw2.counter("snapshots_asked") - asked - (gw2.counter("repairs_asked") - repairs)
    assert whole == 0, "no snapshot but of the bucket of the flow that ended meanwhile"


def test_a_replica_whose_mark_is_cleared_has_it_again_and_it_is_said(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(8))
    pair.wait_equal(1, 2)
    clear_marks(gw2, 8)
    wait_for("the marks are there again", lambda: set(groups(pair, 2).values()) == {1})
    assert gw2.counter("replica_marks_restored") > 0
    assert alarmed(pair, 2, "the ct mark of")
    pair.lead(2, 2)
    gw2.wait_synced()
    gw1.wait_synced()
    assert len(gw2.table()) == 8
    gw2.delete([flow(0)])
    wait_for("its end is heard", lambda: len(gw1.table()) == 7)


def test_a_mark_that_was_cleared_unheard_is_set_again_by_the_takeover(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(8))
    pair.wait_equal(1, 2)
    # Its event waits behind the new role.
    gw2.signal(signal.SIGSTOP)
    clear_marks(gw2, 8)
    pair.lead(2, 2)
    gw2.signal(signal.SIGCONT)
    gw2.wait_synced()
    wait_for("the marks are there again", lambda: set(groups(pair, 2).values()) == {1})
    assert alarmed(pair, 2, "8 flows had lost their ct mark before this node took over")
    gw1.wait_synced()
    pair.wait_equal(2, 1)
    assert len(gw1.table()) == 8


def test_many_replicas_that_go_at_once_are_not_looked_up_one_by_one(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(4000))
    pair.wait_equal(1, 2)
    gw2.flush()
    wait_for("all are forgotten", lambda: gw2.counter("replicas_deleted_by_others") == 4000)
    assert gw2.counter("replicas_looked_up") < 1000
    pair.wait_equal(1, 2, 20)
    gw2.wait_synced()
