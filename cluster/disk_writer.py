"""Writes the two durable files of leased in threads: a disk may take as long as it likes. Shell.

At most one write of each file is under way: the core asks for the next one when it was told how
the last one ended.
"""

from __future__ import annotations

import socket
import threading
from collections import deque

from cluster.era import had_voters, read_era, write_era
from cluster.lease_types import (
    NEWCOMER,
    EraFailed,
    EraPersisted,
    VoterRecord,
    VotersFailed,
    VotersPersisted,
)
from cluster.realtime import be_ordinary
from cluster.voters_file import read_voters, write_voters
from hafw.config.model import ClusterConfig, VoterSet
from hafw.errors import StateError
from hafw.paths import NodePaths

__all__ = ["DiskWriter"]

Written = EraPersisted | EraFailed | VotersPersisted | VotersFailed


class DiskWriter:
    """`wake` gets one octet when a write has ended. The voters file is written before an era,
    should there be none yet, or no more: the era file says that there is one."""

    def __init__(self, paths: NodePaths, wake: socket.socket, config: ClusterConfig) -> None:
        """Reads both. Raises StateError if the era cannot be known, or if the node is to act as
        one of two though its voters file names others than the two."""
        self.era = read_era(paths.era)
        self.wrong = ""
        """What is wrong with the voters file."""
        self.record = VoterRecord(config.voters)
        """What the voters file holds, or is to hold: all that others were told of sets."""
        if config.quorum == "two-node":  # Their set does not change: the file is only looked at.
            _only_the_two(paths, config.voters)
        else:
            self.record, self.wrong = read_voters(
                paths.voters, config.voters, first_start=not had_voters(paths.era)
            )
        self._paths = paths
        self._wake = wake
        self._voters_lock = threading.Lock()
        self._done: deque[Written] = deque()

    def begin(self) -> str:
        """Make the next era durable, before anything is heard or said. Why not; empty: it is."""
        try:
            if self.wrong or not self._paths.voters.exists():
                write_voters(self._paths.voters, self.record)
            write_era(self._paths.era, self.era + 1)
        except OSError as error:
            return error.strerror or str(error)
        self.era += 1
        return ""

    def write_era(self, era: int) -> None:
        threading.Thread(target=self._era, args=(era,), name="era", daemon=True).start()

    def write_voters(self, record: VoterRecord) -> None:
        threading.Thread(target=self._voters, args=(record,), name="voters", daemon=True).start()

    def finished(self) -> list[Written]:
        events: list[Written] = []
        while self._done:
            events.append(self._done.popleft())
        return events

    def _era(self, era: int) -> None:
        try:
            be_ordinary()
            with self._voters_lock:
                if not self._paths.voters.exists():
                    write_voters(self._paths.voters, self.record)
            write_era(self._paths.era, era)
            self._done.append(EraPersisted(era))
        except OSError as error:
            self._done.append(EraFailed(era, error.strerror or str(error)))
        self._wake.send(b"e")

    def _voters(self, record: VoterRecord) -> None:
        try:
            be_ordinary()
            with self._voters_lock:
                write_voters(self._paths.voters, record)
                self.record = record
            self._done.append(VotersPersisted(record))
        except OSError as error:
            self._done.append(VotersFailed(error.strerror or str(error)))
        self._wake.send(b"v")


def _only_the_two(paths: NodePaths, two: VoterSet) -> None:
    """A set that leads away from {a, b} takes both: each has stored it first. So a node whose file
    names just the two, and none to follow, may decide alone, whatever the others are told to be:
    nobody is in a later set. Any other record might have others hold the group beside it; a new
    node's too, as the others may have founded with it and it died before its file said so, and
    that of one whose file is damaged, or gone: the era file says that there was one. StateError.
    """
    path, new = paths.voters, not had_voters(paths.era)
    if new and not path.exists():
        return
    record, wrong = read_voters(path, two, first_start=new)
    if wrong:
        raise StateError(
            f"quorum: two-node: {wrong}, so this node may have known voters beside the two, who "
            "would hold its groups while it decides alone. If there are such voters, put the "
            "former cluster.yaml back and take them out there; if there are none, remove what is "
            f"left of {path}, and the word `voters` in {paths.era} (not the number)"
        )
    if record.current.id == NEWCOMER:
        raise StateError(
            f"quorum: two-node: {path} says that this node was to found a cluster by another "
            "cluster.yaml: put that back and go on from there; or, if none of its nodes has ever "
            "known any voters (hafwctl cluster voters: set 0), remove the file on both, and the "
            f"word `voters` in {paths.era} (not the number)"
        )
    if record.current.members == two.members and record.next is None:
        if not record.lost:
            return
        fault = "this node has lost its voters file once, and was not added anew since"
    else:
        latest = record.next or record.current
        nodes = ", ".join(map(str, latest.members))
        fault = f"voter set {latest.id} is nodes {nodes}, as {path} says"
    raise StateError(
        f"quorum: two-node is for voters {' and '.join(map(str, two.members))} alone, and "
        f"{fault}: put the former cluster.yaml back, take the others out with hafwctl cluster "
        "voters --remove (or this node, and add it again), then say quorum: two-node on both"
    )
