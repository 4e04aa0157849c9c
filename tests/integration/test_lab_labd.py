"""labd restarts what dies as systemd would, leaves alone what is held, and ends cleanly; first
with a stand-in for hafwd, then with the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hafw.errors import StateError
from hafw.lab import labd
from hafw.lab.files import hold_file, lab_folder
from hafw.lab.inside import namespace_inode
from hafw.lab.lab import Lab
from hafw.paths import NodePaths

pytestmark = pytest.mark.integration


def wait_for(what: str, claim: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait until the claim holds; fails by name when it does not."""
    begun = time.monotonic()
    while not claim():
        assert time.monotonic() - begun < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


class StandIn:
    """A labd whose hafwd is a shell script that notes each of its starts."""

    def __init__(self, lab: Lab, folder: Path, script: str) -> None:
        self.lab = lab
        self.starts_file = folder / "starts"
        self.starts_file.touch()
        self.script = folder / "hafwd"
        self.script.write_text(
            f'#!/bin/sh\necho "$$ $HAFW_NODE $*" >> {self.starts_file}\n{script}\n'
        )
        self.script.chmod(0o755)

    def run(self, *nodes: str, stop_wait_s: float = 0.5) -> subprocess.CompletedProcess[str]:
        program = textwrap.dedent(f"""
            import pathlib, hafw.lab.labd as labd
            labd.hafwd_script = lambda: pathlib.Path({str(self.script)!r})
            labd.STOP_WAIT_S = {stop_wait_s}
            labd.main()
        """)
        with (lab_folder() / "labd.log").open("ab") as log:
            return subprocess.run(
                [sys.executable, "-c", program, "--config", "some.yaml", *nodes],
                stdout=log, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
            )  # fmt: skip

    def starts(self) -> list[list[str]]:
        return [line.split() for line in self.starts_file.read_text().splitlines()]

    def pid(self, number: int = -1) -> int:
        return int(self.starts()[number][0])

    def stop(self) -> None:
        pid = labd.running_labd()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        wait_for("labd ended", lambda: not alive(pid))


@pytest.fixture
def stand_in(bare_lab: Lab, tmp_path: Path) -> Iterator[Callable[[str], StandIn]]:
    yield lambda script: StandIn(bare_lab, tmp_path, script)
    pid = labd.running_labd()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        wait_for("labd ended", lambda: not alive(pid))
    hold_file("gw1").unlink(missing_ok=True)
    bare_lab.power_off("gw1")
    bare_lab.power_off("gw2")
    bare_lab.start("gw1")
    bare_lab.start("gw2")


def test_each_hafwd_runs_in_its_node(stand_in: Callable[[str], StandIn]) -> None:
    told = stand_in("exec sleep 600")
    assert told.run("gw1", "gw2").returncode == 0
    wait_for("both started", lambda: len(told.starts()) == 2)
    for pid, node, *arguments in told.starts():
        assert arguments == ["--node", node, "--config", "some.yaml"]
        inode = os.stat(f"/proc/{pid}/ns/net").st_ino
        assert inode == namespace_inode(f"hafw-{node}")
        assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    assert {node for _, node, *_ in told.starts()} == {"gw1", "gw2"}
    assert labd.running_labd() is not None
    assert os.getsid(labd.running_labd() or 0) != os.getsid(0)


def test_restart_after_death_and_children_live_on(stand_in: Callable[[str], StandIn]) -> None:
    told = stand_in(f"sleep 601 & echo $! >> {'$0'}.child\nexec sleep 600")
    told.run("gw1")
    child_file = told.script.with_name("hafwd.child")
    wait_for("the child started", child_file.exists)
    first, child = told.pid(), int(child_file.read_text().split()[0])
    os.kill(first, signal.SIGKILL)
    wait_for("restarted", lambda: len(told.starts()) == 2)
    assert told.pid() != first
    assert alive(child)


def test_hold_and_release(stand_in: Callable[[str], StandIn]) -> None:
    told = stand_in("exec sleep 600")
    told.run("gw1")
    wait_for("started", told.starts)
    told.lab.hold("gw1")
    os.kill(told.pid(), signal.SIGKILL)
    time.sleep(0.7)
    assert len(told.starts()) == 1
    told.lab.release("gw1")
    wait_for("started again", lambda: len(told.starts()) == 2)


def test_one_that_fails_at_once_is_not_hammered(stand_in: Callable[[str], StandIn]) -> None:
    told = stand_in("exit 3")
    told.run("gw1")
    wait_for("four starts", lambda: len(told.starts()) == 4)  # at 0, 0.2, 0.6, 1.4 s
    time.sleep(0.8)
    assert len(told.starts()) == 4
    assert '"code": 3' in (lab_folder() / "labd.log").read_text()


def test_sigterm_ends_all_even_the_deaf_and_the_stopped(
    stand_in: Callable[[str], StandIn],
) -> None:
    told = stand_in("trap '' TERM\nwhile :; do sleep 0.1; done")
    told.run("gw1", "gw2")
    wait_for("both started", lambda: len(told.starts()) == 2)
    os.kill(told.pid(), signal.SIGSTOP)
    told.stop()
    assert not any(alive(int(pid)) for pid, *_ in told.starts())
    assert labd.running_labd() is None


def test_sigterm_is_passed_on(stand_in: Callable[[str], StandIn]) -> None:
    trap = "trap 'touch $0.bye; exit 0' TERM\ntouch $0.ready"
    told = stand_in(f"{trap}\nwhile :; do sleep 0.05; done")
    # Far beyond what `stop` waits: who is killed at the bound, or waited for, fails the test.
    told.run("gw1", stop_wait_s=600)
    wait_for("started", told.starts)
    wait_for("the trap is set", told.script.with_name("hafwd.ready").exists)
    told.stop()
    assert told.script.with_name("hafwd.bye").exists()


def test_a_second_labd_is_refused(stand_in: Callable[[str], StandIn]) -> None:
    told = stand_in("exec sleep 600")
    assert told.run("gw1").returncode == 0
    assert told.run("gw2").returncode == 1
    log = (lab_folder() / "labd.log").read_text()
    assert "a labd is running already" in log
    assert "Traceback" not in log


def test_missing_script_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StateError, match=r"hafwd is missing: hafw is not installed"):
        labd.hafwd_script()
    with pytest.raises(StateError, match=r"hafwd is missing"):
        Lab().up()


# ---- the real one -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(lab_alone: None) -> Iterator[Lab]:
    lab = Lab()
    lab.down()
    lab.up()
    lab.wait_ready(20)
    yield lab
    lab.down()


def test_pids_are_those_of_the_node(lab: Lab) -> None:
    for node, expected in (
        ("gw1", {"hafwd", "leased", "syncd", "raftd"}),
        ("gw2", {"hafwd", "leased", "syncd", "raftd"}),
        ("wit", {"hafwd", "leased", "raftd"}),
    ):
        pids = lab.pids(node)
        assert set(pids) == expected
        assert set(pids.values()) <= set(lab.all_pids(node))


def test_a_stale_pid_file_is_not_believed(lab: Lab) -> None:
    paths = NodePaths("wit")
    paths.pid("syncd").write_text("1\n")
    assert "syncd" not in lab.pids("wit")
    paths.pid("syncd").unlink()


def test_killed_hafwd_comes_back_and_adopts(lab: Lab) -> None:
    before = lab.pids("gw2")
    os.kill(before["hafwd"], signal.SIGKILL)
    wait_for(
        "a new hafwd", lambda: lab.pids("gw2").get("hafwd") not in (None, before["hafwd"]), 10
    )
    after = lab.pids("gw2")
    assert (after["leased"], after["syncd"]) == (before["leased"], before["syncd"])
    lab.wait_ready(20)


def test_power_cut_and_return(lab: Lab) -> None:
    era = NodePaths("gw2").era.read_text()
    lab.silence("gw2")
    lab.power_off("gw2")
    assert lab.all_pids("gw2") == []
    assert lab.pids("gw2") == {}
    with pytest.raises(StateError, match="gw2: its hafwd has not started"):
        lab.wait_ready(0.2)
    lab.heal("gw2")
    lab.start("gw2")
    lab.wait_ready(20)
    assert NodePaths("gw2").era.read_text() != era


def test_up_again_is_up_already(lab: Lab) -> None:
    pids = {node: lab.pids(node) for node in lab.config.nodes}
    assert lab.up() is False
    assert {node: lab.pids(node) for node in lab.config.nodes} == pids


def test_a_lab_without_labd_is_broken_and_built_anew(lab: Lab) -> None:
    pid = labd.running_labd()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for("labd ended", lambda: not alive(pid))
    assert lab.problems() == ["labd, the lab's supervisor, is not running"]
    old = [p for node in lab.config.nodes for p in lab.pids(node).values()]
    assert lab.up() is True
    assert not any(alive(p) for p in old)
    lab.wait_ready(20)


def test_down_ends_every_process(lab: Lab) -> None:
    pids = [p for node in lab.config.nodes for p in lab.all_pids(node)]
    assert len(pids) >= 8
    assert lab.down() is True
    assert not any(alive(p) for p in pids)
    assert not any(Path(root).exists() for root in ("/run/hafw", "/sys/fs/bpf/hafw"))
    assert not any(Path("/etc/hafw", node).exists() for node in ("gw1", "gw2", "wit"))
    assert not any(Path("/var/lib/hafw", node).exists() for node in ("gw1", "gw2", "wit"))


def test_without_sync_and_gate(lab_alone: None) -> None:
    lab = Lab()
    lab.down()
    lab.up(heartbeat_ms=10, lease_ms=40, without=frozenset({"sync", "gate"}))
    try:
        lab.wait_ready(20)
        assert (lab.config.lease.heartbeat_ms, lab.config.lease.lease_ms) == (10, 40)
        assert set(lab.pids("gw1")) == {"hafwd", "leased", "raftd"}
        environment = Path(f"/proc/{lab.pids('gw1')['hafwd']}/environ").read_bytes()
        assert b"HAFW_UNSAFE_GATE_ALWAYS_PASS=1" in environment.split(b"\0")
        assert lab.status()["without"] == ["gate", "sync"]
    finally:
        lab.down()
