"""A syncd that counts what it does between two looks at its beacon: `work_max` in its counters.

``HAFW_TEST_EVENTS_PER_TURN`` is another bound of what it takes of its event socket in one turn.
"""

from __future__ import annotations

import os

from sync import event_reader
from sync.daemon import main
from sync.loop import Syncd

WORK = ("first", "updates", "destroys", "snapshot_entries")
"""Entries said, from events or from a pass over the table, and entries taken from a snapshot."""
_beacons = Syncd._beacons
_done_before = 0


def _count_and_look(syncd: Syncd) -> None:
    global _done_before
    counters = (syncd._parts.publisher.counters, syncd._parts.follower.counters)
    done = sum(counter[name] for counter in counters for name in WORK)
    work, _done_before = done - _done_before, done
    syncd._counters["work_max"] = max(work, syncd._counters["work_max"])
    _beacons(syncd)


if __name__ == "__main__":
    event_reader.EVENTS_PER_TURN = int(
        os.environ.get("HAFW_TEST_EVENTS_PER_TURN", event_reader.EVENTS_PER_TURN)
    )
    Syncd._beacons = _count_and_look  # type: ignore[method-assign, assignment]
    main()
