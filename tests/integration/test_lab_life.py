"""Up and down: nothing is left behind, whatever moment the builder died at; refusals are clear."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hafw.errors import RefusedError, StateError
from hafw.lab import files
from hafw.lab.lab import Lab
from hafw.lab.recipe import default_config_file

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("lab_alone")]

LAB_NAMES = {"gw1", "gw2", "gw3", "wit", "client", "server", "sw"}


def listing(root: str) -> set[str]:
    return {str(path) for path in Path(root).rglob("*")} | {root} if Path(root).exists() else set()


def footprint() -> dict[str, object]:
    """Everything of the machine that a lab may touch. /sys/fs/bpf and /run/netns are mounted
    once and stay, as systemd and iproute2 leave them."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    links = subprocess.run(
        ["ip", "-br", "link"], capture_output=True, text=True, check=True, timeout=10
    )
    return {
        "namespaces": {
            name
            for name in (os.listdir("/run/netns") if Path("/run/netns").exists() else [])
            if name.removeprefix("hafw-") in LAB_NAMES
        },
        "mounts": sorted(
            mount
            for mount in mounts
            if mount not in ("/sys/fs/bpf", "/run/netns")
            and ("/netns/" not in mount or mount.rpartition("/hafw-")[2] in LAB_NAMES)
        ),
        "files": listing("/run/hafw") | listing("/etc/hafw") | listing("/var/lib/hafw")
        | listing("/sys/fs/bpf/hafw"),
        "links": sorted(line.split()[0] for line in links.stdout.splitlines()),
        "processes": [words for words in processes() if "hafw.lab.labd" in words],
        "conntrack_max": Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text(),
    }  # fmt: skip


def processes() -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                raw = Path(f"/proc/{entry}/cmdline").read_bytes()
                found.append(raw.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture
def before() -> Iterator[dict[str, object]]:
    Lab().down()
    yield footprint()
    Lab().down()


def hafwctl(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("hafwctl")), *words],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def test_down_leaves_nothing_and_ends_what_runs_inside(before: dict[str, object]) -> None:
    lab = Lab()
    assert lab.up(bare=True) is True
    assert footprint() != before
    runners = [lab.spawn(name, ["sleep", "600"]) for name in ("gw1", "wit", "client", "sw")]
    lab.silence("gw1")
    assert lab.down() is True
    assert footprint() == before
    for runner in runners:
        # One that had not yet arrived fails to enter; none goes on.
        assert runner.wait(10) != 0
    assert lab.down() is False


def test_up_after_down_within_one_process(before: dict[str, object]) -> None:
    lab = Lab()
    for _ in range(3):
        lab.up(bare=True)
        lab.silence("gw1")
        assert lab.silenced() == {"gw1"}
        lab.down()
    assert footprint() == before


CRASH = """
import os, signal, sys
from hafw.lab import builder, files, machine, topology
from hafw.lab.lab import Lab
from hafw.lab.recipe import default_config_file
module, name, count = {module}, "{name}", {count}
original = getattr(module, name)
def deadly(*arguments, **keywords):
    global count
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    count -= 1
    return original(*arguments, **keywords)
setattr(module, name, deadly)
Lab().up(bare=True)
"""
MOMENTS = [
    ("files", "write_state", 0),
    ("builder", "mount_bpffs", 0),
    ("topology", "create_namespace", 3),
    ("topology", "_build_switch", 0),
    ("topology", "_build_host", 2),
    ("files", "claim_node_folders", 1),
    ("builder", "init_keys", 2),
    ("files", "write_state", 2),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m[1]}-{m[2]}")
@pytest.mark.parametrize("then", ["down", "up"])
def test_killed_in_the_middle_of_up(
    before: dict[str, object], moment: tuple[str, str, int], then: str
) -> None:
    module, name, count = moment
    script = CRASH.format(module=module, name=name, count=count)
    died = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    lab = Lab()
    assert not lab.exists()
    if then == "up":
        assert lab.up(bare=True) is True
        assert lab.problems() == []
    lab.down()
    assert footprint() == before


def test_killed_in_the_middle_of_down(before: dict[str, object]) -> None:
    Lab().up(bare=True)
    script = CRASH.replace("Lab().up(bare=True)", "Lab().down()").format(
        module="topology", name="remove_namespaces", count=0
    )
    died = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert Lab().down() is True
    assert footprint() == before


@pytest.mark.parametrize("then", ["down", "up"])
def test_killed_when_the_nodes_had_begun_to_run(before: dict[str, object], then: str) -> None:
    script = CRASH.replace("bare=True", "").format(module="files", name="write_state", count=2)
    died = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [words for words in processes() if "hafw.lab.labd" in words]
    lab = Lab()
    if then == "up":
        assert lab.up(bare=True) is True
    assert lab.down() is True
    assert footprint() == before


def test_a_third_gateway(before: dict[str, object], tmp_path: Path) -> None:
    text = default_config_file().read_text()
    third = (
        "  gw3:\n    id: 3\n    segments:\n"
        '      lan: {device: lan0, addresses: [192.0.2.3/24, "2001:db8:1::3/64"]}\n'
        '      wan: {device: wan0, addresses: [198.51.100.3/24, "2001:db8:2::3/64"]}\n'
        "    links:\n      sync0: {device: sync0, address: 203.0.113.3/25}\n"
        "      sync1: {device: sync1, address: 203.0.113.131/25}\n  wit:\n"
    )
    config = tmp_path / "three.yaml"
    config.write_text(text.replace("  wit:\n", third))
    told = hafwctl("lab", "up", "--bare", "--config", str(config))
    assert told.returncode == 0, told.stderr
    # What is not named is the running lab: no --config for the rest of its life.
    status = json.loads(hafwctl("lab", "status", "--json").stdout)
    assert set(status["hosts"]) == {"gw1", "gw2", "gw3", "wit", "client", "server"}
    assert "gw3-sync1" in status["bridges"]["sync1"]
    assert Lab().gateways == ("gw1", "gw2", "gw3")
    told = hafwctl("lab", "up", "--bare")
    assert told.returncode == 1
    assert f"from {config}, not bare, from {default_config_file()}" in told.stderr
    assert hafwctl("lab", "down").returncode == 0
    assert footprint() == before


def test_state_lost(before: dict[str, object]) -> None:
    Lab().up(bare=True)
    (files.lab_folder() / "state.json").write_text("{")
    assert Lab().down() is True
    assert footprint() == before


def test_error_in_the_middle_of_up_leaves_nothing(
    before: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise StateError("no room for keys")

    monkeypatch.setattr("hafw.lab.builder.init_keys", broken)
    with pytest.raises(StateError, match="no room for keys"):
        Lab().up(bare=True)
    assert footprint() == before


def test_a_second_up_at_the_same_time_is_refused(before: dict[str, object]) -> None:
    with files.exclusive("lab up"):
        told = hafwctl("lab", "up", "--bare")
        assert told.returncode == 1
        assert f"cannot lab up: lab up (pid {os.getpid()}) is at it" in told.stderr
        assert "Traceback" not in told.stderr
    assert hafwctl("lab", "up", "--bare").returncode == 0


def test_a_real_node_of_the_same_name_is_left_alone(
    before: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAFW_ETC_ROOT", str(tmp_path))
    key = tmp_path / "gw1" / "lease.key"
    key.parent.mkdir()
    key.write_bytes(b"precious" * 4)
    with pytest.raises(RefusedError, match=r"gw1 exists and was not made by the lab"):
        Lab().up(bare=True)
    Lab().down()
    assert key.read_bytes() == b"precious" * 4
    assert listing(str(tmp_path)) == {str(tmp_path), str(key.parent), str(key)}


class TestCommandLine:
    def test_exec_passes_status_environment_and_arguments(self, before: object) -> None:
        assert hafwctl("lab", "up", "--bare").returncode == 0
        told = hafwctl(
            "lab", "exec", "gw1", "--", "sh", "-c", 'echo "$HAFW_NODE|$HAFW_CONFIG|$1"; exit 7',
            "sh", "--json",
        )  # fmt: skip
        assert told.returncode == 7
        assert told.stdout == "gw1|/run/hafw/lab/cluster.yaml|--json\n"
        for place in ("client", "server", "sw", "wit"):
            told = hafwctl("lab", "exec", place, "--", "readlink", "/proc/self/ns/net")
            inode = os.stat(f"/run/netns/hafw-{place}").st_ino
            assert told.stdout == f"net:[{inode}]\n"
        assert hafwctl("lab", "exec", "gw1", "--", "hafwctl", "--version").returncode == 0
        told = hafwctl("lab", "exec", "gw9", "--", "true")
        assert (told.returncode, told.stdout) == (1, "")
        assert "no host gw9; there are gw1, gw2, wit, client, server" in told.stderr
        assert hafwctl("lab", "exec", "gw1", "--").returncode == 2

    def test_status_and_down_say_what_is(self, before: object) -> None:
        told = hafwctl("lab", "status")
        assert (told.returncode, told.stdout.startswith("there is no lab")) == (1, True)
        assert hafwctl("lab", "up", "--bare").returncode == 0
        told = hafwctl("lab", "status")
        assert told.returncode == 0
        assert "gw1-lan0" in told.stdout
        told = hafwctl("lab", "status", "--format", "tsv")
        lines = [line.split("\t") for line in told.stdout.splitlines()]
        assert [line[0] for line in lines] == ["lab", *["hosts"] * 5, *["bridges"] * 4]
        assert lines[0][1:3] == ["up=yes", "bare=yes"]
        assert lines[1][1:4] == ["host=gw1", "namespace=hafw-gw1", "processes=-"]
        asked = [hafwctl("lab", "status", *form) for form in (["--format", "json"], ["--json"])]
        documents = [json.loads(told.stdout) for told in asked]
        assert documents[0] == documents[1]
        assert documents[0]["hosts"]["gw1"]["silenced"] is False
        subprocess.run(
            ["ip", "-n", "hafw-sw", "link", "set", "gw1-lan0", "down"], check=True, timeout=10
        )
        told = hafwctl("lab", "status")
        assert told.returncode == 1
        assert "gw1-lan0:DOWN" in told.stdout
        assert "the lab is removed" in hafwctl("lab", "down").stderr
        assert "there was no lab" in hafwctl("lab", "down").stderr

    def test_without_root(self, before: object) -> None:
        script = (
            "import os, sys, hafw.lab.lab, hafw.cli.lab; from hafw.cli.main import main; "
            "os.setgroups([]); os.setuid(65534); main(sys.argv[1:])"
        )
        for words in (["lab", "up"], ["lab", "down"], ["lab", "status"]):
            told = subprocess.run(
                [sys.executable, "-c", script, *words],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert told.returncode == 1
            assert told.stderr.startswith("hafwctl: error: the lab needs root"), told.stderr
            assert told.stderr.count("\n") == 1

    def test_in_a_mount_namespace_of_its_own(self, before: object) -> None:
        told = subprocess.run(
            ["unshare", "-m", str(Path(sys.executable).with_name("hafwctl")), "lab", "up"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert told.returncode == 1
        assert "in a mount namespace of its own" in told.stderr

    def test_without_tools(self, before: object, tmp_path: Path) -> None:
        told = subprocess.run(
            [str(Path(sys.executable).with_name("hafwctl")), "lab", "up"],
            capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": str(tmp_path)},
        )  # fmt: skip
        assert told.returncode == 1
        assert "ip (package iproute2), nsenter (package util-linux), nft" in told.stderr

    def test_timers_that_do_not_fit_change_nothing(self, before: object) -> None:
        told = hafwctl("lab", "up", "--bare", "--heartbeat-ms", "50")
        assert told.returncode == 1
        assert "heartbeat_ms * 3 must be <= lease_ms (50 * 3 > 100)" in told.stderr
        assert footprint() == before


def test_wait_ready_says_what_is_missing(before: dict[str, object]) -> None:
    lab = Lab()
    with pytest.raises(StateError, match="there is no lab"):
        lab.wait_ready(0.1)
    lab.up(bare=True)
    with pytest.raises(StateError, match="this lab is bare"):
        lab.wait_ready(0.1)


def test_processes_of_other_namespaces_are_never_touched(before: dict[str, object]) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        lab = Lab()
        lab.up(bare=True)
        lab.power_off("gw1")
        lab.down()
        time.sleep(0.05)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
