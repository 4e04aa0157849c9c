"""hafwd as a process, with stand-ins for what it starts (`stub_node`): who lives on, who comes
back, what is refused, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hafw.node import api
from tests.integration.hafwd_world import LAB_CONFIG, World, hafwd_world, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with hafwd_world(monkeypatch) as one:
        yield one


# ---- life ---------------------------------------------------------------------------------------


def test_start_prepares_loads_forwards_and_starts_both(world: World) -> None:
    world.start()
    world.pids()
    assert sorted(world.runs()) == ["policy", "setup"]
    assert (world.stubs / "forwarding").read_text() == "1"
    policy = world.status()["policy"][0]
    assert (policy["state"], policy["hash"]) == ("in force", "hash of policy.yaml")
    assert policy["generation"] == 1


def test_children_outlive_a_killed_hafwd_and_the_next_one_adopts_them(world: World) -> None:
    first = world.start()
    pids = world.pids()
    first.kill()
    first.wait(timeout=10)
    assert (world.pid("leased"), world.pid("syncd")) == pids
    world.start()
    assert world.pids() == pids
    assert sorted(world.runs()) == ["policy", "setup"], "a new hafwd disturbed what was right"
    assert world.status()["policy"][0]["generation"] == 1


def test_an_adopted_child_that_dies_is_restarted(world: World) -> None:
    first = world.start()
    leased, _ = world.pids()
    first.kill()
    first.wait(timeout=10)
    world.start()
    world.pids()
    os.kill(leased, signal.SIGKILL)
    wait_for("another leased runs", lambda: world.pid("leased") not in (None, leased))
    world.pids()
    assert world.daemons()["leased"]["restarts"] == 1


@pytest.mark.parametrize("daemon", ["leased", "syncd"])
def test_a_killed_child_comes_back_at_once(world: World, daemon: str) -> None:
    world.start()
    world.pids()
    before = world.pid(daemon)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_for(f"another {daemon} runs", lambda: world.pid(daemon) not in (None, before), 3.0)
    other = "syncd" if daemon == "leased" else "leased"
    world.pids()
    assert world.daemons()[other]["restarts"] == 0


def test_sigterm_stops_leased_first_and_leaves_nothing(world: World) -> None:
    process = world.start()
    world.pids()
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert (world.stubs / "stops").read_text() == "leased\nsyncd\nraftd\n"
    assert (world.pid("hafwd"), world.pid("leased"), world.pid("syncd")) == (None, None, None)
    assert not world.paths.hafwd_socket.exists()


def test_sigterm_kills_a_child_that_hangs_within_the_bound(world: World) -> None:
    process = world.start()
    leased, _ = world.pids()
    os.kill(leased, signal.SIGSTOP)
    begun = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == 0  # leased would sleep for ever.
    assert time.monotonic() - begun > 4.5, "it had no time to end by itself"
    assert world.pid("leased") is None


def test_sigterm_may_leave_the_children(world: World) -> None:
    process = world.start("--no-stop-children-on-exit")
    pids = world.pids()
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert (world.pid("leased"), world.pid("syncd")) == pids


def test_a_witness_has_no_syncd(world: World) -> None:
    world.node = "wit"
    world.start()
    wait_for("leased is up", lambda: world.daemons()["leased"]["state"] == "up")
    assert set(world.daemons()) == {"hafwd", "leased", "raftd"}
    assert world.runs() == ["setup"]
    assert not (world.stubs / "forwarding").exists()
    reply = world.ask(api.PolicyShow())
    assert (reply.ok, reply.error) == (False, "wit is a witness: it has no policy")


def test_without_sync_there_is_no_syncd_and_status_says_so(world: World) -> None:
    world.config.write_text(LAB_CONFIG.read_text() + "sync: {enabled: false}\n")
    world.start()
    wait_for("leased is up", lambda: world.daemons()["leased"]["state"] == "up")
    assert world.daemons()["syncd"]["state"] == "off"
    assert world.pid("syncd") is None


# ---- refusals -----------------------------------------------------------------------------------


def refusal(process: subprocess.Popen[str]) -> str:
    """The error of a hafwd that must not start."""
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert stderr.startswith("hafwd: error: ")
    return stderr.removeprefix("hafwd: error: ").strip()


def test_a_second_hafwd_is_refused(world: World) -> None:
    first = world.start()
    pids = world.pids()
    assert refusal(world.start()) == f"hafwd is already running for gw1 (pid {first.pid})"
    assert world.pids() == pids


def test_a_broken_configuration_is_refused(world: World) -> None:
    world.config.write_text(LAB_CONFIG.read_text().replace("vrid: 1", "vrid: 300"))
    assert f"{world.config}:" in refusal(world.start())


def test_an_unknown_node_is_refused(world: World) -> None:
    world.node = "gw7"
    assert refusal(world.start()).endswith("no node is named gw7; its nodes are gw1, gw2, wit")


def test_anybody_but_root_is_refused(world: World) -> None:
    """As nobody, after the imports: the tree may lie where only root can read."""
    program = (
        "import os, sys\n"
        "from hafw.node import daemon\n"
        "daemon.real_parts()\n"
        "daemon.load_cluster = lambda file, config=daemon.load_cluster("
        "__import__('pathlib').Path(sys.argv[4])): config\n"
        "os.setuid(65534)\n"
        "daemon.main(sys.argv[1:])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--node", "gw1", "--config", str(world.config)],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "hafwd: error: hafwd must run as root, not as uid 65534\n"


# ---- the API and status -------------------------------------------------------------------------


def test_a_stopped_child_is_shown_not_killed(world: World) -> None:
    world.start()
    leased, _ = world.pids()
    os.kill(leased, signal.SIGSTOP)
    row = wait_for("leased is silent", lambda: world.daemons()["leased"])
    assert (row["state"], row["pid"]) == ("silent", leased)
    assert "stopped" in row["reason"]
    assert world.status()["lease"] == []
    wait_for(
        "an alarm after 5 s", lambda: any("has not answered" in text for text in world.alarms())
    )
    os.kill(leased, signal.SIGCONT)
    assert world.pids()[0] == leased
    wait_for("no alarm", lambda: not any("has not answered" in text for text in world.alarms()))


def test_move_is_relayed_and_its_refusal_told(world: World) -> None:
    world.start()
    world.pids()
    reply = world.ask(api.Move(group="main", target="gw2", wait_s=0.0))
    assert reply.result == {
        "moved": False, "released": False, "epoch": "-", "reason": "gw2 is not synced"
    }  # fmt: skip
    for request, error in [
        (api.Move("nope", "gw2", 0.0), "no group is named nope; there are main"),
        (api.Move("main", "wit", 0.0), "wit is no candidate for group main"),
        (api.Move("main", "gw2", 1e9), "wait must be 0 to 60 s"),
    ]:
        reply = world.ask(request)
        assert not reply.ok
        assert reply.error.startswith(error)


NESTED = b"\x82\xa1x" + b"\x91" * 5000 + b"\xc0"


def test_bad_requests_get_an_answer_and_do_no_harm(world: World) -> None:
    import zmq

    world.start()
    world.pids()
    context = zmq.Context()
    try:
        for parts in ([b""], [b"\xc1"], [b"\x81\xa4type\xa4Nope"], [b"a", b"b", b"c"], [NESTED]):
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(f"ipc://{world.paths.hafwd_socket}")
                dealer.send_multipart(parts)
                assert dealer.poll(5000), parts
                assert not api.decode_reply(dealer.recv()).ok
    finally:
        context.term()
    assert world.ask(api.Ping()).result == {"node": "gw1", "pid": world.pid("hafwd")}


def test_status_tells_the_truth_when_hafwd_is_down_or_hangs(world: World) -> None:
    process = world.start()
    pids = world.pids()
    process.send_signal(signal.SIGSTOP)
    try:
        document = json.loads(world.hafwctl("status", "--json").stdout)
        rows = {row["daemon"]: row for row in document["daemons"]}
        assert (rows["hafwd"]["state"], rows["hafwd"]["pid"]) == ("silent", process.pid)
        assert "stopped" in rows["hafwd"]["reason"]
        assert (rows["leased"]["state"], rows["leased"]["pid"]) == ("up", pids[0])
    finally:
        process.kill()
    process.wait(timeout=10)
    os.kill(pids[1], signal.SIGKILL)
    wait_for("syncd is gone", lambda: world.pid("syncd") is None)
    result = world.hafwctl("status", "--json")
    assert result.returncode == 1
    document = json.loads(result.stdout)
    states = {row["daemon"]: row["state"] for row in document["daemons"]}
    assert states == {"hafwd": "down", "leased": "up", "syncd": "down", "raftd": "up"}
    assert document["nodes"][0]["assembled_by"] == "hafwctl"
    # The stand-ins loaded nothing into the kernel, whatever the record says.
    assert document["policy"][0]["state"] == "gone"
    assert any("tables are gone" in row["problem"] for row in document["problems"])
    assert document["sync"] == []
    assert {row["counter"] for row in document["counters"]} == {"stub"}
