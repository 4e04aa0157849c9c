"""The journal: durable, and damage is refused, kept and never guessed at."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.raft_journal import (
    DAMAGED_MAX,
    MAGIC,
    DamageError,
    Journal,
    parse,
    read_dump,
    write_dump,
)

SHOWN = Path("/var/lib/hafw/gw1/raft")


class Told(list[dict[str, Any]]):
    def __call__(self, event: str, **facts: Any) -> None:
        self.append({"event": event, **facts})


def opened(folder: Path, told: Told | None = None) -> Journal:
    return Journal(folder, SHOWN, Told() if told is None else told)


def filled(folder: Path, count: int = 5) -> bytes:
    journal = opened(folder)
    for number in range(1, count + 1):
        journal.add(b"command %d" % number, number, 1 + number // 3)
    journal.setCurrentTerm(4, "2")
    journal._destroy()
    return (folder / "journal").read_bytes()


def test_entries_term_and_vote_are_there_after_a_start(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = opened(tmp_path)
    assert [entry[1] for entry in journal[:]] == [1, 2, 3, 4, 5]
    assert journal[0] == (b"command 1", 1, 1)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (4, "2")
    assert journal.amnesia == ""
    journal.setCurrentTerm(5, None)
    assert opened(tmp_path).getVotedForNodeId() is None


def test_cutting_at_either_end_is_what_the_next_start_finds(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = opened(tmp_path)
    journal.deleteEntriesFrom(4)
    journal.add(b"another", 5, 9)
    journal.deleteEntriesTo(2)
    journal.add(b"last", 6, 9)
    kept = journal[:]
    journal._destroy()
    write_dump(tmp_path / "dump", b"state", (b"command 4", 4, 2), (b"command 3", 3, 2))
    again = opened(tmp_path)
    assert again[:] == kept
    assert [entry[1] for entry in again[:]] == [3, 4, 5, 6]


@given(data=st.data())
def test_any_change_of_any_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    content = CONTENT or filled(tmp_path_factory.mktemp("j"))
    CONTENT[:] = content
    broken = bytearray(content)
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place] ^= data.draw(st.integers(1, 255))
    else:
        del broken[data.draw(st.integers(0, len(broken) - 1)) :]
    _, ends = parse(bytes(content))
    if len(broken) in (20, *ends) and bytes(broken) == bytes(content[: len(broken)]):
        return  # Cut between two records: nothing is cut short.
    with pytest.raises(DamageError):
        parse(bytes(broken))


CONTENT = bytearray()


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda data: data[:-3], "cut short in the record at byte"),
        (lambda data: data + b"\0\0", "cut short in a record's head"),
        (lambda data: os.urandom(len(data)), "do not begin as a journal"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not have its checksum"),
        (lambda data: data + b"\xff" * 24, "impossible length"),
    ],
)
def test_damage_is_named_moved_aside_and_told_once(tmp_path: Path, harm: Any, what: str) -> None:
    damaged = harm(filled(tmp_path))
    (tmp_path / "journal").write_bytes(damaged)
    told = Told()
    journal = opened(tmp_path, told)
    assert len(journal) == 0
    assert what in journal.amnesia
    assert journal.amnesia.startswith(f"{SHOWN / 'journal'} is damaged: ")
    (line,) = told
    assert line["event"] == "raft_file_refused"
    assert line["kept"] == str(SHOWN / "journal.damaged-1")
    assert (tmp_path / "journal.damaged-1").read_bytes() == damaged
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (4, "2"), "the vote is kept"


def test_a_journal_that_was_taken_away_is_not_a_new_member(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "journal").unlink()
    assert "it is missing, though this node has voted before" in opened(tmp_path).amnesia


def test_a_damaged_vote_is_amnesia_too(tmp_path: Path) -> None:
    filled(tmp_path)
    vote = tmp_path / "vote"
    vote.write_bytes(vote.read_bytes()[:-1] + b"9")
    journal = opened(tmp_path)
    assert "vote is damaged" in journal.amnesia
    assert len(journal) == 5


def test_damaged_files_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    for _ in range(DAMAGED_MAX + 2):
        (tmp_path / "journal").write_bytes(b"garbage")
        opened(tmp_path)
    assert len(list(tmp_path.glob("journal.damaged-*"))) == DAMAGED_MAX


def test_a_journal_without_its_dump_cannot_be_applied_and_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = opened(tmp_path)
    journal.deleteEntriesTo(3)
    journal._destroy()
    assert "begins at entry 4 and there is no dump" in opened(tmp_path).amnesia


def test_a_crash_between_dump_and_cut_loses_nothing(tmp_path: Path) -> None:
    """pysyncobj itself would drop what follows the dump's last entry."""
    filled(tmp_path)
    write_dump(tmp_path / "dump", b"state", (b"command 3", 3, 2), (b"command 2", 2, 1))
    journal = opened(tmp_path)
    assert [entry[1] for entry in journal[:]] == [2, 3, 4, 5]
    assert opened(tmp_path).amnesia == ""


def test_a_damaged_dump_is_moved_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    write_dump(tmp_path / "dump", b"state", (b"command 3", 3, 2), (b"command 2", 2, 1))
    assert read_dump(tmp_path / "dump")[0] == b"state"
    data = (tmp_path / "dump").read_bytes()
    (tmp_path / "dump").write_bytes(data[:-1])
    assert "dump is damaged" in opened(tmp_path).amnesia
    assert (tmp_path / "dump.damaged-1").exists()


def test_a_full_disk_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    journal = opened(tmp_path)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    with pytest.raises(OSError, match="No space") as error:
        journal.add(b"command 6", 6, 4)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    again = opened(tmp_path)
    assert (len(again), again.amnesia) == (5, "")


def test_the_commit_index_is_a_lower_bound_that_may_be_lost(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = opened(tmp_path)
    journal.setRaftCommitIndex(4)
    journal.onOneSecondTimer()
    assert opened(tmp_path).getRaftCommitIndex() == 4
    (tmp_path / "commit").write_bytes(b"\xff" * 12)
    assert opened(tmp_path).getRaftCommitIndex() == 1


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_journal_cut_between_two_records_is_found_by_what_was_committed(
    tmp_path: Path, kept: int
) -> None:
    """Nothing in the journal itself is wrong then."""
    content = filled(tmp_path)
    journal = opened(tmp_path)
    journal.setRaftCommitIndex(4)
    journal._destroy()
    _, ends = parse(content)
    cut = content[: ends[kept - 1] if kept else len(MAGIC)]
    (tmp_path / "journal").write_bytes(cut)
    told = Told()
    again = opened(tmp_path, told)
    assert len(again) == 0
    last = f"it ends at entry {kept}" if kept else "it is empty"
    assert again.amnesia == f"{SHOWN / 'journal'} is damaged: {last}, and entry 4 was committed"
    assert [line["event"] for line in told] == ["raft_file_refused"]
    assert (tmp_path / "journal.damaged-1").read_bytes() == cut
    again.add(b"from the leader", 1, 5)
    again._destroy()
    assert opened(tmp_path).amnesia == "", "it is told once"


def test_entries_after_what_was_committed_may_go(tmp_path: Path) -> None:
    content = filled(tmp_path)
    journal = opened(tmp_path)
    journal.setRaftCommitIndex(4)
    journal._destroy()
    _, ends = parse(content)
    (tmp_path / "journal").write_bytes(content[: ends[3]])
    again = opened(tmp_path)
    assert (len(again), again.amnesia) == (4, "")


def test_a_dump_in_place_of_the_journal_is_no_cut(tmp_path: Path) -> None:
    """A crash after the dump came and before its entries were written."""
    filled(tmp_path)
    journal = opened(tmp_path)
    journal.setRaftCommitIndex(4)
    journal._destroy()
    write_dump(tmp_path / "dump", b"state", (b"command 9", 9, 4), (b"command 8", 8, 4))
    (tmp_path / "journal").write_bytes(MAGIC)
    again = opened(tmp_path)
    assert (len(again), again.amnesia, again.getRaftCommitIndex()) == (0, "", 1)
