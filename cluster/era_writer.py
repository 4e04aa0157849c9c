"""Writes the era file in a thread, because a disk may take as long as it likes. Shell."""

from __future__ import annotations

import socket
import threading
from collections import deque
from pathlib import Path

from cluster.era import write_era
from cluster.lease_types import EraFailed, EraPersisted
from cluster.realtime import be_ordinary

__all__ = ["EraWriter"]


class EraWriter:
    """One write at a time; `wake` gets a byte when one has ended."""

    def __init__(self, path: Path, wake: socket.socket) -> None:
        self._path = path
        self._wake = wake
        self._done: deque[EraPersisted | EraFailed] = deque()

    def start(self, era: int) -> None:
        threading.Thread(target=self._write, args=(era,), name="era", daemon=True).start()

    def finished(self) -> list[EraPersisted | EraFailed]:
        events: list[EraPersisted | EraFailed] = []
        while self._done:
            events.append(self._done.popleft())
        return events

    def _write(self, era: int) -> None:
        try:
            be_ordinary()
            write_era(self._path, era)
            self._done.append(EraPersisted(era))
        except OSError as error:
            self._done.append(EraFailed(era, error.strerror or str(error)))
        self._wake.send(b"e")
