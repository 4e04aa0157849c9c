"""hafwd and what it must keep in place: a policy in force, devices, a gate that is one."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.integration.hafwd_world import World, hafwd_world, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with hafwd_world(monkeypatch) as one:
        yield one


def test_without_a_policy_leased_is_not_started_until_one_loads(world: World) -> None:
    (world.stubs / "policy.error").write_text("line 3: no such zone")
    world.start()
    wait_for("syncd is up", lambda: world.daemons()["syncd"]["state"] == "up")
    wait_for("a policy failed", lambda: world.status()["policy"][0]["state"] == "failed")
    assert world.status()["policy"][0]["error"] == "line 3: no such zone"
    wait_for("forwarding is decided", (world.stubs / "forwarding").exists)
    assert (world.stubs / "forwarding").read_text() == "0"
    leased = world.daemons()["leased"]
    assert leased["state"] == "down"
    assert "no policy is in force" in leased["reason"]
    # The file is mended: no command is needed.
    (world.stubs / "policy.error").unlink()
    world.policy_file.write_text("two\n")
    world.pids()
    assert (world.stubs / "forwarding").read_text() == "1"


def test_a_policy_that_fails_leaves_the_old_one_in_force(world: World) -> None:
    process = world.start()
    pids = world.pids()
    (world.stubs / "policy.error").write_text("line 3: no such zone")
    process.send_signal(signal.SIGHUP)
    wait_for("the old one is kept", lambda: world.status()["policy"][0]["state"] == "kept")
    assert world.status()["policy"][0]["generation"] == 1
    assert world.pids() == pids
    (world.stubs / "policy.error").unlink()
    process.send_signal(signal.SIGHUP)
    wait_for("the new one is in force", lambda: world.status()["policy"][0]["generation"] == 2)
    assert world.status()["policy"][0]["state"] == "in force"


def test_a_file_applied_by_hand_stays_over_a_restart_of_hafwd(world: World) -> None:
    first = world.start()
    world.pids()
    other = world.folder / "other.yaml"
    other.write_text("other\n")
    result = world.hafwctl("policy", "apply", str(other), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["hash"] == "hash of other.yaml"
    first.kill()
    first.wait(timeout=10)
    world.start()
    world.pids()
    assert world.status()["policy"][0]["file"] == str(other)
    assert sorted(world.runs()) == ["policy", "policy", "setup"]


def test_a_refused_apply_changes_nothing_and_is_over(world: World) -> None:
    world.start()
    world.pids()
    (world.stubs / "policy.error").write_text("line 3: no such zone")
    result = world.hafwctl("policy", "apply", str(world.policy_file))
    assert result.returncode == 1
    assert result.stderr == (
        "hafwctl: error: gw1: policy not loaded: line 3: no such zone (nothing was changed)\n"
    )
    assert world.status()["policy"][0]["state"] == "in force"


def test_tables_that_somebody_removed_are_loaded_again(world: World) -> None:
    world.start()
    pids = world.pids()
    (world.stubs / "tables").unlink()
    wait_for("the tables are back", (world.stubs / "tables").exists)
    wait_for("a second load", lambda: world.status()["policy"][0]["generation"] == 2)
    assert world.pids() == pids
    assert any("somebody removed" in alarm for alarm in world.alarms())


def test_nothing_is_forwarded_while_the_tables_are_gone(world: World) -> None:
    """And the lease stays: leased is not touched."""
    world.start()
    pids = world.pids()
    forwarding = world.stubs / "forwarding"
    assert forwarding.read_text() == "1"
    (world.stubs / "policy.hold").touch()
    (world.stubs / "tables").unlink()
    wait_for("a second load began", lambda: world.runs().count("policy") == 2)
    assert forwarding.read_text() == "0"
    assert world.status()["policy"][0]["state"] == "loading"
    assert world.pids() == pids
    (world.stubs / "policy.hold").unlink()
    wait_for("it forwards again", lambda: forwarding.read_text() == "1")
    assert (world.stubs / "tables").exists()
    assert world.pids() == pids


def test_other_peoples_chains_are_noted_and_those_that_drop_alarm(world: World) -> None:
    (world.stubs / "policy.foreign").write_text("ip mine NOTE\nip docker FORWARD drop\n")
    first = world.start()
    world.pids()
    document = world.status()
    assert [row["note"] for row in document["notes"]] == [
        "nftables chain of others: ip mine NOTE",
        "nftables chain of others: ip docker FORWARD drop",
    ]
    text = "other nftables chains may drop what the policy accepts: ip docker FORWARD drop"
    assert text in world.alarms()
    assert "ip mine NOTE" in world.hafwctl("status").stdout
    first.send_signal(signal.SIGHUP)
    wait_for("a second load", lambda: world.status()["policy"][0]["generation"] == 2)
    first.kill()
    _, said = first.communicate(timeout=10)
    assert said.count("foreign_chains_found") == 1
    # The next hafwd loads nothing, and looks all the same.
    (world.stubs / "policy.foreign").write_text("ip mine NOTE\n")
    world.start()
    wait_for("a note", lambda: [row["note"] for row in world.status()["notes"]])
    assert world.runs().count("policy") == 3
    assert not [alarm for alarm in world.alarms() if "nftables chains" in alarm]


def test_devices_that_vanish_are_set_up_again(world: World) -> None:
    world.start()
    pids = world.pids()
    (world.stubs / "devices").unlink()
    wait_for("the devices are back", (world.stubs / "devices").exists)
    wait_for("an alarm", lambda: any("hv1-lan is missing" in alarm for alarm in world.alarms()))
    assert world.pids() == pids


def test_devices_that_cannot_be_set_up_hold_the_children_back(world: World) -> None:
    (world.stubs / "setup.error").write_text("gw1: there is no device lan0")
    world.start()
    wait_for("the alarm", lambda: any("no device lan0" in alarm for alarm in world.alarms()))
    assert {world.daemons()[name]["state"] for name in ("leased", "syncd")} == {"down"}
    (world.stubs / "setup.error").unlink()
    world.pids()


def test_what_set_up_cannot_mend_is_told_and_left_alone(world: World) -> None:
    world.start()
    pids = world.pids()
    (world.stubs / "down").touch()
    wait_for("the alarm", lambda: "lan0 is down" in world.alarms())
    time.sleep(2.5)  # Two looks.
    assert world.runs().count("setup") == 1
    assert world.pids() == pids
    (world.stubs / "down").unlink()
    wait_for("the end of it", lambda: "lan0 is down" not in world.alarms())
    assert not [alarm for alarm in world.alarms() if "repaired" in alarm]


def test_an_unsafe_gate_is_said_loudly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFW_UNSAFE_GATE_ALWAYS_PASS", "1")
    world.start()
    world.pids()
    assert any(alarm.startswith("UNSAFE") for alarm in world.alarms())
    assert "--gate-always-pass" in (world.stubs / "runs").read_text()
