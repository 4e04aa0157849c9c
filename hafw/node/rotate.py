"""One step of a key rotation on one node: read, decide, write, and see that syncd took it.

The decisions are in `hafw.node.rotation`. A step changes one file, in one rename; so whatever is
interrupted, the next `hafwctl key show` tells where this node stands. Shell.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hafw.errors import RefusedError, StateError
from hafw.instance import running_pid
from hafw.keyring import KEY_BYTES, Keyring, encode_keyring, read_keyring
from hafw.messages import SyncdStatus
from hafw.node import rotation
from hafw.node.client import LocalClient, Unavailable
from hafw.node.keys import write_key
from hafw.paths import NodePaths

__all__ = ["Step", "peers_of", "rotate", "syncd_status"]

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
        return rotation.begin(ring, os.urandom(KEY_BYTES), made)
    if step == "accept":
        assert source is not None, "the command requires it"
        return rotation.accept(ring, read_keyring(source / paths.sync_key.name))
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
    decide: Callable[..., Keyring] = {
        "switch": rotation.switch, "finish": rotation.finish, "abort": rotation.abort,
    }[step]  # fmt: skip
    return decide(ring, peers_of(status), without)


def peers_of(status: SyncdStatus) -> list[rotation.Peer]:
    """The other gateways, as this node's syncd hears them."""
    return [
        rotation.Peer(
            peer.name,
            peer.beacon_age_ms is not None and peer.beacon_age_ms <= rotation.BEACON_MS_MAX,
            peer.seals_key,
            peer.seals_key_s,
            peer.opens_keys,
        )
        for peer in status.peers
    ]


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
