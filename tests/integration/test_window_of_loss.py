"""What would be lost if the owner died now: counted on the owner, by what its peer confirms."""

from __future__ import annotations

import pytest

from hafw.messages import SyncPeerStatus
from tests.integration.ct_spaces import inside
from tests.integration.syncd_world import Gateway, World, mixed, wait_for

NO_SNAPSHOTS = """
table bridge snapshots {
  chain forward {
    type filter hook forward priority 0;
    ip protocol tcp drop
  }
}
"""

pytestmark = pytest.mark.integration


def peer(gateway: Gateway) -> SyncPeerStatus:
    status = gateway.status()
    assert status is not None
    return status.peers[0]


def test_flows_are_at_risk_until_the_peer_confirms_them(pair: World) -> None:
    gw1, gw2 = pair.gateways
    gw1.put(mixed(40))
    pair.wait_equal(1, 2)
    wait_for("confirmed", lambda: peer(gw1).flows_at_risk == 0)
    told = peer(gw1)
    assert told.confirm_p50_ms is not None
    assert told.confirm_p99_ms is not None
    assert 0 <= told.confirm_p50_ms <= told.confirm_p99_ms
    for link in (0, 1):
        pair.cut(link)
    gw1.put(mixed(30, first=100))
    wait_for("at risk", lambda: peer(gw1).flows_at_risk == 30)
    gw1.put(mixed(5, first=200))
    wait_for("at risk", lambda: peer(gw1).flows_at_risk == 35)
    for link in (0, 1):
        pair.heal(link)
    pair.wait_equal(1, 2)
    wait_for("confirmed again", lambda: peer(gw1).flows_at_risk == 0)
    assert peer(gw2).flows_at_risk == 0, "gw2 has published nothing"


def test_a_peer_with_a_hole_confirms_nothing(pair: World) -> None:
    """gw2's syncd is new: what came before is a snapshot's business, and that has not come."""
    gw1, gw2 = pair.gateways
    gw1.put(mixed(20))
    pair.wait_equal(1, 2)
    wait_for("confirmed", lambda: peer(gw1).flows_at_risk == 0)
    gw2.stop()
    gw1.put(mixed(10, first=100))
    wait_for("at risk", lambda: peer(gw1).flows_at_risk == 10)
    inside(pair.switch, "nft", "-f", "-", stdin=NO_SNAPSHOTS)
    gw2.start()
    wait_for("accepted", lambda: gw2.counter("sessions_accepted"))
    gw1.put(mixed(1, first=300))
    wait_for("the new one too", lambda: gw2.counter("deltas_received") >= 1)
    heard = gw1.counter("control_repeated")
    wait_for("more beacons", lambda: gw1.counter("control_repeated") > heard + 10)
    assert peer(gw1).flows_at_risk == 11
    inside(pair.switch, "nft", "delete", "table", "bridge", "snapshots")
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    wait_for("confirmed", lambda: peer(gw1).flows_at_risk == 0)
