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
    EraFailed,
    EraPersisted,
    VoterRecord,
    VotersFailed,
    VotersPersisted,
)
from cluster.realtime import be_ordinary
from cluster.voters_file import read_voters, write_voters
from hafw.config.model import ClusterConfig
from hafw.paths import NodePaths

__all__ = ["DiskWriter"]

Written = EraPersisted | EraFailed | VotersPersisted | VotersFailed


class DiskWriter:
    """`wake` gets one octet when a write has ended. The voters file is written before an era,
    should there be none yet, or no more: the era file says that there is one."""

    def __init__(self, paths: NodePaths, wake: socket.socket, config: ClusterConfig) -> None:
        """Reads both. Raises StateError if the era cannot be known."""
        self.era = read_era(paths.era)
        self.wrong = ""
        """What is wrong with the voters file."""
        self.record = VoterRecord(config.voters)
        """What the voters file holds, or is to hold: all that others were told of sets."""
        if config.quorum != "two-node":  # Their set does not change.
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
