"""The voters file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.lease_types import VoterRecord
from cluster.voters_file import read_voters, write_voters
from hafw.config.model import VoterSet

FOUNDERS = VoterSet(id=1, members=(1, 2, 9))
NEXT = VoterSet(id=8, members=(1, 2, 3, 9))
CURRENT = VoterSet(id=7, members=(1, 2, 9))


@pytest.mark.parametrize("follows", [None, NEXT])
@pytest.mark.parametrize("lost", [False, True])
def test_what_is_written_is_read(tmp_path: Path, follows: VoterSet | None, lost: bool) -> None:
    path = tmp_path / "gw1" / "voters"
    record = VoterRecord(CURRENT, follows, lost)
    write_voters(path, record)
    assert read_voters(path, FOUNDERS, first_start=False) == (record, "")
    assert [entry.name for entry in path.parent.iterdir()] == ["voters"]


def test_a_new_node_goes_by_its_cluster_yaml_until_it_knows_a_set(tmp_path: Path) -> None:
    path = tmp_path / "voters"
    write_voters(path, VoterRecord.newcomer(NEXT))
    newcomer = VoterRecord(VoterSet(id=0, members=FOUNDERS.members))
    assert read_voters(path, FOUNDERS, first_start=False) == (newcomer, "")


def test_the_first_start_is_a_newcomer_and_a_later_one_has_lost_its_file(tmp_path: Path) -> None:
    path = tmp_path / "voters"
    assert read_voters(path, FOUNDERS, first_start=True) == (VoterRecord.newcomer(FOUNDERS), "")
    record, wrong = read_voters(path, FOUNDERS, first_start=False)
    assert record == VoterRecord(FOUNDERS, lost=True)
    assert wrong == f"{path} is gone"


def test_any_flipped_bit_and_any_missing_end_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "voters"
    write_voters(path, VoterRecord(CURRENT, NEXT))
    whole = path.read_bytes()
    for place in range(len(whole)):
        for damaged in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        ):
            path.write_bytes(damaged)
            record, wrong = read_voters(path, FOUNDERS, first_start=True)
            assert record == VoterRecord(FOUNDERS, lost=True)
            assert wrong == f"{path} is damaged"


@pytest.mark.parametrize("members", [(), (2, 1), (1, 1), (0, 1), (1, 63)])
def test_sets_that_cannot_be_are_damage(tmp_path: Path, members: tuple[int, ...]) -> None:
    path = tmp_path / "voters"
    write_voters(path, VoterRecord(VoterSet(id=7, members=members)))
    assert read_voters(path, FOUNDERS, first_start=True)[0].lost


def test_a_file_that_cannot_be_read_is_lost(tmp_path: Path) -> None:
    (tmp_path / "voters").mkdir()
    record, wrong = read_voters(tmp_path / "voters", FOUNDERS, first_start=True)
    assert record.lost
    assert wrong == f"cannot read {tmp_path / 'voters'}: Is a directory"
