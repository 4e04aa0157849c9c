"""docs/operating/security.md names what the code counts and logs, and all that it watches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.refusals import LEASED, RAFTD

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/operating/security.md"
SOURCES = {"leased": "cluster", "raftd": "cluster", "syncd": "sync"}


def rows() -> list[tuple[str, set[str], set[str]]]:
    """(daemon, counters, log lines) of each row."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[2] in SOURCES:
            named = [set(re.findall(r"`([^`]+)`", cell)) for cell in cells[3:]]
            found.append((cells[2], named[0], named[1]))
    return found


def code(folder: str) -> str:
    return "".join(path.read_text() for path in sorted((ROOT / folder).glob("*.py")))


@pytest.mark.parametrize(("daemon", "watched"), [("leased", LEASED), ("raftd", RAFTD)])
def test_every_refusal_that_is_watched_is_on_the_page_and_logged(
    daemon: str, watched: tuple[str, ...]
) -> None:
    logged = {name for of, names, log in rows() if of == daemon and "datagram_refused" in log
              for name in names}  # fmt: skip
    assert logged == set(watched)


def test_every_counter_and_log_line_on_the_page_is_in_the_code() -> None:
    table = rows()
    assert len(table) > 20
    for daemon, counters, logs in table:
        text = code(SOURCES[daemon])
        for name in counters:
            # syncd puts the word in front of what its wire refuses.
            assert f'"{name.removeprefix("refused_")}"' in text, name
        for log in logs:
            event = log.rpartition(": ")[2]
            assert event in text, log
