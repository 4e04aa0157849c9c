"""One instance a daemon: the lock is the truth, the pid file only its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hafw.errors import StateError
from hafw.instance import claim_instance, running_pid, write_atomically
from hafw.keyring import KEY_BYTES, read_key
from hafw.paths import NodePaths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodePaths:
    monkeypatch.setenv("HAFW_RUN_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAFW_ETC_ROOT", str(tmp_path / "etc"))
    return NodePaths("gw1")


@contextmanager
def holder(paths: NodePaths) -> Iterator[subprocess.Popen[str]]:
    """Another process that is hafw-leased of the node until it is ended."""
    program = (
        "import sys\n"
        "from hafw.instance import claim_instance\n"
        "from hafw.paths import NodePaths\n"
        "held = claim_instance(NodePaths('gw1'), 'leased')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_nobody_runs_in_an_empty_folder(paths: NodePaths) -> None:
    assert running_pid(paths, "leased") is None
    assert not paths.run.exists(), "asking must not create anything"


def test_a_claim_writes_the_pid_and_keeps_the_folder_to_its_owner(paths: NodePaths) -> None:
    with claim_instance(paths, "leased"):
        assert paths.pid("leased").read_text() == f"{os.getpid()}\n"
        assert running_pid(paths, "leased") == os.getpid()
        assert running_pid(paths, "syncd") is None
        assert paths.run.stat().st_mode & 0o777 == 0o700
    assert running_pid(paths, "leased") is None
    assert not paths.pid("leased").exists()


def test_a_second_claim_is_refused_with_the_holders_pid(paths: NodePaths) -> None:
    with holder(paths) as process:
        with pytest.raises(
            StateError, match=rf"hafw-leased is already running for gw1 \(pid {process.pid}\)"
        ):
            claim_instance(paths, "leased")
        assert running_pid(paths, "leased") == process.pid


def test_sigkill_frees_the_lock_and_a_stale_pid_file_says_nothing(paths: NodePaths) -> None:
    with holder(paths) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        assert paths.pid("leased").read_text() == f"{process.pid}\n"
        assert running_pid(paths, "leased") is None
        claim_instance(paths, "leased").release()


def test_a_pid_file_that_names_another_process_is_not_believed(paths: NodePaths) -> None:
    with holder(paths) as process:
        paths.pid("leased").write_text(f"{os.getpid()}\n")
        assert running_pid(paths, "leased") == process.pid
        paths.pid("leased").write_text("nonsense")
        assert running_pid(paths, "leased") == process.pid
        paths.pid("leased").unlink()
        assert running_pid(paths, "leased") == process.pid
    paths.pid("leased").write_text("1\n")
    assert running_pid(paths, "leased") is None


def test_release_is_idempotent_and_spares_a_successor(paths: NodePaths) -> None:
    first = claim_instance(paths, "leased")
    first.release()
    with holder(paths) as process:
        first.release()
        assert running_pid(paths, "leased") == process.pid
        assert paths.pid("leased").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(paths: NodePaths) -> None:
    paths.run.parent.write_text("a file in the way")
    with pytest.raises(StateError, match=r"cannot create .*gw1"):
        claim_instance(paths, "leased")


def test_atomic_write_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write_atomically(target, b"one", mode=0o600)
    write_atomically(target, b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(StateError, match=r"cannot write .*no/x"):
        write_atomically(tmp_path / "no" / "x", b"", mode=0o600)


def make_key(path: Path, content: bytes = bytes(KEY_BYTES), mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_good_key_is_read(paths: NodePaths) -> None:
    assert read_key(make_key(paths.lease_key, bytes(range(32)))) == bytes(range(32))


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (bytes(KEY_BYTES), 0o640, "mode 0640, others may read it; chmod 0600 "),
        (bytes(KEY_BYTES), 0o602, "mode 0602"),
        (bytes(31), 0o600, "has 31 bytes, a key is 32 random bytes"),
        (bytes(33), 0o600, "has 33 bytes"),
        (b"", 0o600, "has 0 bytes"),
    ],
)
def test_bad_keys_say_what_is_wrong(
    paths: NodePaths, content: bytes, mode: int, text: str
) -> None:
    with pytest.raises(StateError, match=text):
        read_key(make_key(paths.lease_key, content, mode))


def test_a_missing_key_names_the_command_that_makes_one(paths: NodePaths) -> None:
    with pytest.raises(StateError, match=r"does not exist; .*hafwctl key init --node gw1"):
        read_key(paths.lease_key)


def test_a_folder_is_not_a_key(paths: NodePaths) -> None:
    paths.lease_key.mkdir(parents=True)
    with pytest.raises(StateError, match=r"lease\.key"):
        read_key(paths.lease_key)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_somebody_else_is_refused(paths: NodePaths) -> None:
    key = make_key(paths.lease_key)
    os.chown(key, 12345, -1)
    with pytest.raises(StateError, match="belongs to uid 12345"):
        read_key(key)


def test_a_fifo_is_no_key_and_does_not_keep_anybody_waiting(paths: NodePaths) -> None:
    paths.lease_key.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(paths.lease_key, 0o600)
    with pytest.raises(StateError, match="not a regular file"):
        read_key(paths.lease_key)
