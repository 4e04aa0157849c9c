"""One step of a key rotation on one node: read, decide, write, and see that syncd took it.

The decisions are in `hafw.node.rotation`. A step changes one file, in one rename; so whatever is
interrupted, the next `hafwctl key show` tells where this node stands. Shell.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, assert_never

from hafw.errors import RefusedError, StateError
from hafw.instance import running_pid
from hafw.keyring import KEY_BYTES, Keyring, encode_keyring, read_keyring
from hafw.messages import SyncdStatus
from hafw.node import rotation
from hafw.node.client import LocalClient, Unavailable
from hafw.node.keys import write_key
from hafw.paths import NodePaths

__all__ = ["Step", "rotate", "syncd_status"]

Step = Literal["begin", "accept", "switch", "finish", "abort"]
TAKEN_S_MAX = 5.0
SAID_S = 0.15
"""The peers have heard it in a beacon by then, so that the next step can follow at once."""


def rotate(
    paths: NodePaths,
    step: Step,
    *,
    source: Path | None = None,
    without: Collection[str] = (),
) -> Keyring:
    """Do the step on this node; the keyring that its syncd uses now.

    `source` is the folder of another node's keys, for ``accept``. Raises RefusedError (nothing
    was changed) or StateError.
    """
    with _alone(paths):
        ring = read_keyring(paths.sync_key)
        new = _decide(paths, ring, step, source, without)
        try:
            write_key(paths.sync_key, encode_keyring(new), force=True)
        except OSError as error:
            raise StateError(f"cannot write {paths.sync_key}: {error.strerror}") from None
        _tell_syncd(paths, new)
    return new


def _decide(
    paths: NodePaths, ring: Keyring, step: Step, source: Path | None, without: Collection[str]
) -> Keyring:
    if step == "begin":
        made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Without syncd nobody is heard: two that begin so are told at their `switch`.
        said = syncd_status(paths)
        peers = [] if said is None else rotation.peers_of(said)
        return rotation.begin(ring, os.urandom(KEY_BYTES), made, peers, node=paths.node)
    if step == "accept":
        assert source is not None, "the command requires it"
        return rotation.accept(ring, _brought(source / paths.sync_key.name), node=paths.node)
    status = syncd_status(paths)
    if status is None:
        raise RefusedError(
            f"hafw-syncd of {paths.node} does not answer, so nobody knows what keys the others "
            "have: nothing was changed; start it first"
        )
    if status.opens_keys != ring.fingerprints or status.seals_key != ring.seals:
        raise RefusedError(
            f"hafw-syncd does not use the keys of {paths.sync_key}: nothing was changed. "
            "See the alarms of hafwctl status; a restart of hafw-syncd reads the file again"
        )
    peers = rotation.peers_of(status)
    match step:
        case "switch":
            return rotation.switch(ring, peers, without, node=paths.node)
        case "finish":
            return rotation.finish(ring, peers, without, node=paths.node)
        case "abort":
            return rotation.abort(ring, peers, without)
        case _:
            assert_never(step)


def _brought(file: Path) -> Keyring:
    """The copy of another node's key file."""
    if not file.exists():
        raise RefusedError(
            f"{file} does not exist: --from names a folder with a copy of another gateway's "
            f"{file.name}"
        )
    return read_keyring(file)


def syncd_status(paths: NodePaths) -> SyncdStatus | None:
    """None if syncd does not answer."""
    if running_pid(paths, "syncd") is None:
        return None
    status = LocalClient(paths).ask_syncd()
    return None if isinstance(status, Unavailable) else status


def _tell_syncd(paths: NodePaths, ring: Keyring) -> None:
    """By SIGHUP; returns when it uses them. A node whose syncd is down reads them at its start."""
    pid = running_pid(paths, "syncd")
    if pid is None:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)
    until = time.monotonic() + TAKEN_S_MAX
    while time.monotonic() < until:
        status = syncd_status(paths)
        if (
            status is not None
            and status.opens_keys == ring.fingerprints
            and status.seals_key == ring.seals
        ):
            time.sleep(SAID_S)
            return
        time.sleep(0.02)
    raise StateError(
        f"{paths.sync_key} is written, but hafw-syncd did not take it within {TAKEN_S_MAX:g} s: "
        "see the alarms of hafwctl status"
    )


@contextmanager
def _alone(paths: NodePaths) -> Iterator[None]:
    """One command at a time changes the keys of a node."""
    try:
        fd = os.open(paths.etc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"cannot open {paths.etc}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(f"another command is changing the keys of {paths.node}") from None
    else:
        yield
    finally:
        os.close(fd)
