"""The era file: read with suspicion, written durably or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.era import ERA_MAX, ERA_SANE, had_voters, read_era, write_era
from hafw.errors import StateError


def test_missing_is_zero(tmp_path: Path) -> None:
    assert read_era(tmp_path / "era") == 0


def test_round_trip_makes_the_folder_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "gw1" / "era"
    write_era(path, 1)
    write_era(path, ERA_SANE)
    assert read_era(path) == ERA_SANE
    assert [entry.name for entry in path.parent.iterdir()] == ["era"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"x\n", b"-1\n", b"1 2\n", b" voters\n", b"16777216\n", b"\xff\xfe", b"9" * 31],
)
def test_corrupt_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "era"
    path.write_bytes(content)
    with pytest.raises(StateError, match="remove it") as caught:
        read_era(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("era", [ERA_SANE + 1, ERA_MAX])
def test_era_that_no_restarts_make_is_refused_with_what_to_do(tmp_path: Path, era: int) -> None:
    write_era(tmp_path / "era", era)
    with pytest.raises(StateError, match=f"holds {era}.*damaged.*remove it"):
        read_era(tmp_path / "era")


def test_unreadable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read era file"):
        read_era(tmp_path)  # A folder.


@pytest.mark.parametrize("era", [0, -1, ERA_MAX + 1])
def test_write_refuses_what_no_epoch_can_hold(tmp_path: Path, era: int) -> None:
    with pytest.raises(OSError, match="outside"):
        write_era(tmp_path / "era", era)


def test_failing_write_leaves_the_old_era(tmp_path: Path) -> None:
    path = tmp_path / "era"
    write_era(path, 4)
    (tmp_path / ".era.new").mkdir()
    with pytest.raises(OSError):
        write_era(path, 5)
    assert read_era(path) == 4


@pytest.mark.parametrize(
    ("content", "had"), [(b"7\n", False), (b"7", False), (b"7 voters\n", True), (b"", False)]
)
def test_says_whether_there_has_been_a_voters_file(
    tmp_path: Path, content: bytes, had: bool
) -> None:
    path = tmp_path / "era"
    assert had_voters(path) is False
    path.write_bytes(content)
    assert had_voters(path) is had
    if content:
        assert read_era(path) == 7
        write_era(path, 8)
        assert had_voters(path) is True
