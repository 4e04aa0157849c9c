"""hafwd as a process, with stand-ins for what it starts (`stub_node`): who lives on, who comes
back, what is refused, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hafw.instance import running_pid
from hafw.node import api
from hafw.node.client import Unavailable, ask_hafwd
from hafw.paths import NodePaths

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub_node.py")
LAB_CONFIG = ROOT / "hafw/lab/cluster.yaml"
WAIT_S = 15.0


def wait_for(what: str, claim: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """The first true answer of `claim`; fails by name if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := claim()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return answer


class World:
    """One node's folders, its hafwd and what the stand-ins left behind."""

    def __init__(self, folder: Path, node: str = "gw1") -> None:
        self.folder = folder
        self.node = node
        self.config = folder / "cluster.yaml"
        self.config.write_text(LAB_CONFIG.read_text())
        self.policy_file = folder / "policy.yaml"
        self.policy_file.write_text("one\n")
        self.stubs = folder / "stubs"
        self.stubs.mkdir()
        self.hafwds: list[subprocess.Popen[str]] = []

    @property
    def paths(self) -> NodePaths:
        return NodePaths(self.node)

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(STUB), "hafwd", "--node", self.node]
        process = subprocess.Popen(
            [*command, "--config", str(self.config), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.hafwds.append(process)
        return process

    def pid(self, daemon: str) -> int | None:
        return running_pid(self.paths, daemon)

    def pids(self) -> tuple[int, int]:
        """Those of leased and syncd, once all children answer."""

        names = ("leased", "syncd", "raftd")

        def both() -> tuple[int, int] | None:
            rows = self.daemons()
            if all(rows.get(name, {}).get("state") == "up" for name in names):
                return rows["leased"]["pid"], rows["syncd"]["pid"]
            return None

        found: tuple[int, int] = wait_for("the children are up", both)
        return found

    def ask(self, request: api.Request) -> api.Reply:
        def answered() -> api.Reply | None:
            reply = ask_hafwd(self.paths, request)
            return None if isinstance(reply, Unavailable) else reply

        reply: api.Reply = wait_for("hafwd answers", answered)
        return reply

    def status(self) -> dict[str, Any]:
        reply = self.ask(api.Status())
        assert reply.ok, reply.error
        return reply.result

    def daemons(self) -> dict[str, dict[str, Any]]:
        return {row["daemon"]: row for row in self.status()["daemons"]}

    def alarms(self) -> list[str]:
        return [row["alarm"] for row in self.status()["alarms"]]

    def runs(self) -> list[str]:
        file = self.stubs / "runs"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def hafwctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = "from hafw.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"HAFW_NODE": self.node},
        )  # fmt: skip

    def close(self) -> None:
        for process in self.hafwds:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for daemon in ("leased", "syncd", "raftd"):
            pid = self.pid(daemon)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # Short, because a Unix socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hafw-t-node-") as name:
        folder = Path(name)
        for root in ("RUN", "LIB", "ETC", "BPF"):
            monkeypatch.setenv(f"HAFW_{root}_ROOT", str(folder / root.lower()))
        monkeypatch.setenv("HAFW_STUBS", str(folder / "stubs"))
        monkeypatch.delenv("HAFW_UNSAFE_GATE_ALWAYS_PASS", raising=False)
        built = World(folder)
        try:
            yield built
        finally:
            built.close()


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


# ---- policy and devices -------------------------------------------------------------------------


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
