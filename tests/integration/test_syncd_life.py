"""Two real syncds: restarts, what leased says and does not say, starts and ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hafw.messages import RoleChange
from tests.integration.syncd_world import (
    ROOT,
    World,
    epoch,
    mixed,
    wait_for,
)

pytestmark = pytest.mark.integration


def test_syncd_restart_on_the_backup(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(50))
    pair.wait_equal(1, 2)
    gw2.stop(signal.SIGKILL)
    gone, added = mixed(10), mixed(10, first=60)
    gw1.delete(gone)
    gw1.put(added)
    gw2.start()
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 50


def test_syncd_restart_on_the_holder(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    flows = mixed(50)
    gw1.put(flows)
    pair.wait_equal(1, 2)
    gw1.stop(signal.SIGKILL)
    gw1.delete(flows[:7])  # Unheard by anybody.
    gw1.put(mixed(5, first=80))
    smallest = [50]

    def watch() -> bool:
        smallest[0] = min(smallest[0], len(gw2.table()))
        return bool(gw1.new_epochs)

    gw1.start()
    wait_for("a new epoch is asked for", watch)
    assert gw1.new_epochs[0].held_epoch == epoch(1, 1)
    assert smallest[0] == 50, "nothing is swept before the holder has said all"
    pair.lead(1, 2, contiguous=True)
    gw1.wait_synced()
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 48
    assert gw1.counter("recoveries") == 1
    # From now on the new incarnations count.
    gw1.delete(flows[10:20])
    pair.wait_equal(1, 2)


def test_syncd_restart_on_a_holder_without_flows_asks_for_nothing(world: World) -> None:
    world[1].start()
    world[1].hold(1)
    world[1].wait_synced()
    world[1].put(mixed(4))
    time.sleep(0.3)
    assert world[1].new_epochs == []


def test_a_leased_that_never_answers_does_not_silence_the_holder(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(20))
    pair.wait_equal(1, 2)
    gw1.stop(signal.SIGKILL)
    gw1.start()
    wait_for("asked more than once", lambda: len(gw1.new_epochs) > 2, 5)
    gw1.wait_synced()
    gw2.wait_synced()
    pair.wait_equal(1, 2)
    assert gw1.counter("recoveries_without_new_epoch") == 1


def test_events_while_not_holding_are_not_published(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(10))
    pair.wait_equal(1, 2)
    gw1.say(RoleChange(1, False, epoch(1, 1), 0, False))
    time.sleep(0.1)
    late = mixed(5, first=50)
    gw1.put(late)
    time.sleep(0.3)
    assert len(gw2.table()) == 10
    # It wins the next epoch: what it missed itself is found by its pass.
    pair.lead(1, 2, contiguous=True)
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 15


def test_a_silent_leased_ends_the_publications(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.say(None)
    wait_for("the role is unknown", lambda: gw1.counter("role_leased_silent") == 1, 5)
    gw1.put(mixed(5))
    time.sleep(0.3)
    assert gw2.table() == {}
    gw1.hold(1)
    pair.wait_equal(1, 2)
    assert len(gw2.table()) == 5


def test_silent_replication_is_unsynced_but_a_dead_holder_is_not(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.signal(signal.SIGSTOP)
    gw2.wait_reason("silent", 4)
    gw2.follow(1, 1, lives=False)
    gw2.wait_synced()
    gw1.signal(signal.SIGCONT)
    gw2.follow(1, 1)
    time.sleep(0.3)
    gw2.wait_synced()


def test_position_covers_everything_before_the_question(pair: World) -> None:
    gw1, gw2 = pair[1], pair[2]
    gw1.put(mixed(200))
    reply = gw1.ask_position()
    assert reply.position.sender_id == 1
    assert reply.epoch == epoch(1, 1)

    def applied() -> bool:
        return reply.position in gw2.beacons[-1].applied

    wait_for("the position is applied", applied, 5)
    assert len(gw2.table()) == 200


def test_bad_starts_are_one_clear_line(world: World, tmp_path: Path) -> None:
    gw1 = world[1]

    def start(*extra: str) -> tuple[int, str]:
        argv = ["nsenter", f"--net=/run/netns/{gw1.space}", sys.executable, "-m", "sync.daemon"]
        argv += list(extra)
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=20)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.strip()

    config = ("--config", str(world.config))
    code, text = start("--node", "nobody", *config)
    assert code == 1
    assert "no node is named nobody" in text
    code, text = start("--node", "gw1", "--config", str(tmp_path / "missing.yaml"))
    assert code == 1
    assert "missing.yaml" in text
    gw1.paths.sync_key.chmod(0o644)
    code, text = start("--node", "gw1", *config)
    assert code == 1
    assert "sync.key" in text
    gw1.paths.sync_key.chmod(0o600)
    gw1.start()
    code, text = start("--node", "gw1", *config)
    assert code == 1
    assert "already running" in text
    assert len(text.splitlines()) == 1


def test_sigterm_is_a_clean_end(world: World) -> None:
    gw1 = world[1]
    gw1.start()
    assert gw1.stop() == 0
    assert not gw1.paths.syncd_socket.exists()
    assert not gw1.paths.pid("syncd").exists()
