"""Rotating the sync key under real syncds, while flows come and go."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from hafw.errors import RefusedError, StateError
from hafw.keyring import encode_keyring, read_keyring
from hafw.node import rotation
from hafw.node.rotate import Step, rotate
from tests.integration.syncd_world import ROOT, Gateway, World, mixed, syncd_world, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps are given up in less than a second."""
    monkeypatch.setattr(rotation, "SETTLED_S", 1.5)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[World]:
    """gw1 holds the group, gw2 and gw3 follow."""
    with syncd_world(tmp_path, 3) as world:
        world.start()
        world.lead(1, 1)
        for number in (2, 3, 1):
            world[number].wait_synced()
        yield world


@contextmanager
def churn(gateway: Gateway) -> Iterator[list[int]]:
    """Flows that are born and die on this node; the count of rounds."""
    rounds = [0]
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            first = 1000 + rounds[0] % 40 * 8
            gateway.put(mixed(8, first=first))
            if rounds[0] >= 20:
                gateway.delete(mixed(8, first=1000 + (rounds[0] - 20) % 40 * 8))
            rounds[0] += 1
            time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield rounds
    finally:
        ending.set()
        thread.join(10)


def do(
    gateway: Gateway, step: Step, source: Gateway | None = None, without: Sequence[str] = ()
) -> None:
    folder = None if source is None else source.paths.etc
    rotate(gateway.paths, step, source=folder, without=without)


def do_in_time(gateway: Gateway, step: Step, without: Sequence[str] = ()) -> None:
    """It refuses while the old key may still be asked for."""
    until = time.monotonic() + rotation.SETTLED_S + 5
    while True:
        try:
            return do(gateway, step, without=without)
        except RefusedError as error:
            if time.monotonic() > until or "again in" not in str(error):
                raise
            time.sleep(0.1)


def alarms(gateway: Gateway) -> str:
    status = gateway.status()
    return "no answer" if status is None else "; ".join(status.alarms)


def silent_ms(gateway: Gateway, peer: str) -> float:
    status = gateway.status()
    ages = {p.name: p.beacon_age_ms for p in status.peers} if status is not None else {}
    return ages.get(peer) or 0.0


def alarm_names(gateway: Gateway, problem: str) -> bool:
    return problem in alarms(gateway)


def churned(rounds: list[int]) -> None:
    passed = rounds[0]
    wait_for("churn goes on", lambda: rounds[0] > passed + 10)


def unhappy(world: World) -> dict[str, int]:
    """Counters that a rotation must leave alone."""
    found: dict[str, int] = {}
    for gateway in world.gateways:
        status = gateway.status()
        assert status is not None
        assert not status.alarms, status.alarms
        for name, value in status.counters.items():
            if name.startswith(("refused_", "quarantined_", "streams_broken", "stream_broken")):
                found[f"{gateway.name} {name}"] = value
            if name in ("sessions_accepted", "sessions_begun", "snapshots_asked"):
                found[f"{gateway.name} {name}"] = value
    return found


def tables_equal(world: World) -> None:
    for number in (2, 3):
        world.wait_equal(1, number)


def test_a_rotation_under_churn_loses_nothing(trio: World) -> None:
    gw1, gw2, gw3 = trio.gateways
    sessions = [status.session for gateway in trio.gateways if (status := gateway.status())]
    before = unhappy(trio)
    flow_secret = read_keyring(gw1.paths.sync_key).flow_secret
    with churn(gw1) as rounds:
        steps: list[tuple[Gateway, Step, Gateway | None]] = [
            (gw1, "begin", None),
            (gw2, "accept", gw1),
            (gw3, "accept", gw1),
            (gw2, "switch", None),
            (gw1, "switch", None),
            (gw3, "switch", None),
        ]
        for gateway, step, source in steps:
            do(gateway, step, source)
            churned(rounds)
        for gateway in trio.gateways:
            do_in_time(gateway, "finish")
            churned(rounds)
    tables_equal(trio)
    assert unhappy(trio) == before
    assert [s.session for g in trio.gateways if (s := g.status())] == sessions
    for gateway in trio.gateways:
        ring = read_keyring(gateway.paths.sync_key)
        assert (ring.seals, [key.id for key in ring.keys]) == (1, [1])
        assert ring.flow_secret == flow_secret
        assert gateway.paths.sync_key.stat().st_mode & 0o777 == 0o600
    # A restart reads the keyring; snapshots speak with the new key.
    gw2.stop()
    gw2.start()
    gw2.wait_synced()
    gw1.put(mixed(8, first=5000))
    tables_equal(trio)


def test_a_rotation_is_taken_back(trio: World) -> None:
    gw1, gw2, gw3 = trio.gateways
    before = unhappy(trio)
    with churn(gw1):
        do(gw1, "begin")
        do(gw2, "accept", gw1)
        with pytest.raises(RefusedError, match="First on gw3: hafwctl key rotate accept"):
            do(gw1, "switch")
        do(gw3, "accept", gw1)
        do(gw1, "switch")
        with pytest.raises(RefusedError, match="First on gw1: hafwctl key rotate abort"):
            do(gw2, "abort")
        with pytest.raises(RefusedError, match="gw2 and gw3 still seals with the old key"):
            do(gw1, "finish")
        do(gw1, "abort")
        for gateway in trio.gateways:
            do_in_time(gateway, "abort")
    tables_equal(trio)
    assert unhappy(trio) == before
    for gateway in trio.gateways:
        assert [key.id for key in read_keyring(gateway.paths.sync_key).keys] == [0]


def test_a_node_that_was_away_is_refused_and_gets_back_in(trio: World, tmp_path: Path) -> None:
    gw1, gw2, gw3 = trio.gateways
    gw3.stop()
    wait_for(
        "gw3 is silent", lambda: (s := gw1.status()) and (s.peers[1].beacon_age_ms or 0) > 3100
    )
    do(gw1, "begin")
    do(gw2, "accept", gw1)
    with pytest.raises(RefusedError, match="gw3 is not heard"):
        do(gw1, "switch")
    for gateway in (gw1, gw2):
        do(gateway, "switch", without=["gw3"])
    for gateway in (gw1, gw2):
        do_in_time(gateway, "finish", without=["gw3"])
    gw3.start()
    wait_for("gw1 says so", lambda: "what gw3 sends is refused" in alarms(gw1))
    wait_for("gw3 says so", lambda: "what gw1 sends is refused" in alarms(gw3))
    assert "hafwctl key rotate accept" in alarms(gw3)
    assert gw1.counter("refused_unknown_key") > 0
    assert not gw3.beacons[-1].synced[1], "it does not count as a candidate"
    # What the alarm says to do.
    copy = tmp_path / "copy"
    shutil.copytree(gw1.paths.etc, copy)
    (copy / "sync.key").chmod(0o640)
    with pytest.raises(StateError, match="others may read it; chmod 0600"):
        rotate(gw3.paths, "accept", source=copy)
    (copy / "sync.key").chmod(0o600)
    rotate(gw3.paths, "accept", source=copy)
    gw3.wait_synced()
    gw1.put(mixed(16))
    tables_equal(trio)
    wait_for("the alarm ends", lambda: not alarms(gw1), 15)


def test_a_bad_file_changes_nothing_and_is_an_alarm(trio: World) -> None:
    gw1, gw2, _ = trio.gateways
    good = gw2.paths.sync_key.read_bytes()
    for bad, problem in ((b"short", "has 5 bytes"), (bytes(32), "of another cluster, or new")):
        gw2.paths.sync_key.write_bytes(bad)
        gw2.signal(1)
        wait_for(problem, partial(alarm_names, gw2, problem))
        with pytest.raises((RefusedError, StateError)):
            do(gw2, "abort")
        gw1.put(mixed(4, first=len(bad) * 10))
        trio.wait_equal(1, 2)
    gw2.paths.sync_key.write_bytes(good)
    gw2.signal(1)
    wait_for("the alarm ends", lambda: not alarms(gw2))


def test_the_command_shows_where_all_are(trio: World, tmp_path: Path) -> None:
    gw1, gw2, gw3 = trio.gateways
    assert hafwctl(gw1, "rotate", "begin").startswith("gw1 opens with keys 0 (")
    assert hafwctl(gw2, "rotate", "accept", "--from", str(gw1.paths.etc)).endswith(
        "seals with 0\n"
    )
    rows = json.loads(hafwctl(gw1, "show", "--json"))
    assert [list(row) for row in rows] == [["node", "opens", "seals", "seals_s", "state"]] * 3
    assert [row["state"] for row in rows] == ["accepted", "accepted", "rest"]
    assert rows[0]["opens"] == rows[1]["opens"] != rows[2]["opens"] == rows[0]["opens"][:1]
    refused = hafwctl(gw1, "rotate", "switch", code=1)
    assert refused.startswith("hafwctl: error: gw3 would refuse what is sealed with key 1")
    refused = hafwctl(gw3, "rotate", "begin", code=1)
    assert refused.startswith("hafwctl: error: a rotation is under way: gw1 has key 1 (")
    refused = hafwctl(gw1, "rotate", "switch", "--without", "gw3", code=1)
    assert refused.startswith("hafwctl: error: gw3 is heard, and would be cut off")
    wait_for("gw2 may abort", lambda: key_command(gw2, "rotate", "abort").returncode == 0)
    assert json.loads(hafwctl(gw2, "show", "--json"))[0]["state"] == "rest"
    # What two have begun when neither heard of the other's.
    ring = rotation.begin(read_keyring(gw2.paths.sync_key), bytes(32), "")
    gw2.paths.sync_key.write_bytes(encode_keyring(ring))
    gw2.signal(1)

    def states() -> list[str]:
        return [row["state"] for row in json.loads(hafwctl(gw1, "show", "--json"))]

    wait_for("gw1 hears it", lambda: states() == ["accepted", "accepted, another key 1", "rest"])
    refused = hafwctl(gw1, "rotate", "switch", code=1)
    assert refused.startswith("hafwctl: error: two rotations were begun: gw2 has another key 1 (")
    gw3.stop()
    assert json.loads(hafwctl(gw3, "show", "--json"))[0]["state"] == "rest, syncd is down"


def key_command(gateway: Gateway, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("hafwctl"), "key", *words, "--node", gateway.name],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=gateway.environment,
        cwd=ROOT,
    )


def hafwctl(gateway: Gateway, *words: str, code: int = 0) -> str:
    result = key_command(gateway, *words)
    assert result.returncode == code, result
    return result.stderr if code else result.stdout
