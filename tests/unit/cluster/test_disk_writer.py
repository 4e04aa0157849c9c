"""The durable files of leased: an era never says that there is a voters file before there is."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.disk_writer import DiskWriter
from cluster.era import had_voters, read_era
from cluster.lease_types import EraFailed, EraPersisted, VoterRecord, VotersPersisted
from cluster.voters_file import read_voters, write_voters
from hafw.config.model import ClusterConfig, VoterSet
from hafw.errors import StateError
from hafw.paths import NodePaths

FOUNDERS = VoterRecord(VoterSet(id=1, members=(1, 2, 9)))
CONFIG = cast(ClusterConfig, SimpleNamespace(quorum="majority", voters=FOUNDERS.current))
LATER = VoterRecord(VoterSet(id=4, members=(1, 2)))
TOLD = VoterRecord(LATER.current, VoterSet(id=5, members=(1, 2, 9)))


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodePaths:
    monkeypatch.setattr(NodePaths, "lib", tmp_path)
    return NodePaths("gw1")


def ended(wake: socket.socket) -> None:
    wake.settimeout(10)
    wake.recv(1)


def test_first_era_brings_the_voters_file_and_leaves_one_that_is_there(paths: NodePaths) -> None:
    heard, wake = socket.socketpair()
    writer = DiskWriter(paths, wake, CONFIG)
    writer.write_era(3)
    ended(heard)
    assert writer.finished() == [EraPersisted(3)]
    assert had_voters(paths.era)
    assert paths.voters.exists()
    found = read_voters(paths.voters, LATER.current, first_start=False)
    assert found == (VoterRecord.newcomer(LATER.current), "")
    writer.write_voters(LATER)
    ended(heard)
    writer.write_era(4)
    ended(heard)
    assert writer.finished() == [VotersPersisted(LATER), EraPersisted(4)]
    assert read_era(paths.era) == 4
    assert read_voters(paths.voters, FOUNDERS.current, first_start=False) == (LATER, "")
    for end in (heard, wake):
        end.close()


def test_a_voters_file_that_vanished_is_put_back_as_it_was_told(paths: NodePaths) -> None:
    heard, wake = socket.socketpair()
    writer = DiskWriter(paths, wake, CONFIG)
    assert writer.begin() == ""
    writer.write_voters(TOLD)
    ended(heard)
    paths.voters.unlink()
    writer.write_era(7)
    ended(heard)
    assert writer.finished() == [VotersPersisted(TOLD), EraPersisted(7)]
    assert read_voters(paths.voters, FOUNDERS.current, first_start=False) == (TOLD, "")
    for end in (heard, wake):
        end.close()


def test_no_era_without_a_voters_file(paths: NodePaths) -> None:
    (paths.lib / ".voters.new").mkdir()
    heard, wake = socket.socketpair()
    writer = DiskWriter(paths, wake, CONFIG)
    writer.write_era(3)
    ended(heard)
    assert writer.finished() == [EraFailed(3, "Is a directory")]
    assert read_era(paths.era) == 0
    for end in (heard, wake):
        end.close()


PAIR = cast(
    ClusterConfig, SimpleNamespace(quorum="two-node", voters=VoterSet(id=1, members=(1, 2)))
)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (FOUNDERS, "voters 1 and 2 alone, and voter set 1 is nodes 1, 2, 9"),
        (
            VoterRecord(LATER.current, VoterSet(id=5, members=(1, 2, 9))),
            "voter set 5 is nodes 1, 2, 9",
        ),
        (VoterRecord(LATER.current, lost=True), "this node has lost its voters file once"),
        (VoterRecord.newcomer(LATER.current), "this node was to found a cluster by another"),
    ],
)
def test_one_of_two_does_not_act_alone_if_others_may_hold_the_group(
    paths: NodePaths, record: VoterRecord, fault: str
) -> None:
    """The witness is a voter still, or may become one with the other gateway: those two would be
    a majority beside the one that decides alone."""
    write_voters(paths.voters, record)
    heard, wake = socket.socketpair()
    said = f"quorum: two-node.* {fault}"
    with heard, wake, pytest.raises(StateError, match=said):
        DiskWriter(paths, wake, PAIR)
    assert read_voters(paths.voters, LATER.current, first_start=False) == (record, "")


def test_two_nodes_keep_their_set_and_the_file_that_names_just_them(paths: NodePaths) -> None:
    heard, wake = socket.socketpair()
    with heard, wake:
        first = DiskWriter(paths, wake, PAIR)
        assert (first.record, first.wrong, first.begin()) == (VoterRecord(PAIR.voters), "", "")
        again = DiskWriter(paths, wake, PAIR)
        assert (again.record, again.begin()) == (VoterRecord(PAIR.voters), "")
        write_voters(paths.voters, LATER)
        later = DiskWriter(paths, wake, PAIR)
        assert (later.record, later.wrong, later.begin()) == (VoterRecord(PAIR.voters), "", "")
        assert DiskWriter(paths, wake, CONFIG).record == LATER


@pytest.mark.parametrize(("content", "fault"), [(None, "is gone"), (b"{}", "is damaged")])
def test_one_of_two_that_lost_its_voters_file_does_not_act_alone(
    paths: NodePaths, content: bytes | None, fault: str
) -> None:
    """It may have been one of three, and the other two hold the group."""
    heard, wake = socket.socketpair()
    with heard, wake:
        for _ in range(2):
            assert DiskWriter(paths, wake, CONFIG).begin() == ""
        paths.voters.unlink()
        if content is not None:
            paths.voters.write_bytes(content)
        for _ in range(2):
            with pytest.raises(StateError, match=f"quorum: two-node.*{fault}.*word `voters`"):
                DiskWriter(paths, wake, PAIR)
        # What it says to do, if there is nobody beside the two.
        paths.voters.unlink(missing_ok=True)
        paths.era.write_bytes(paths.era.read_bytes().replace(b" voters", b""))
        two = DiskWriter(paths, wake, PAIR)
        assert (two.era, two.begin()) == (2, "")
        assert two.record == VoterRecord(PAIR.voters)
        assert DiskWriter(paths, wake, PAIR).era == 3


def test_one_of_two_with_an_era_of_an_earlier_release_has_lost_nothing(paths: NodePaths) -> None:
    paths.era.write_bytes(b"7\n")
    heard, wake = socket.socketpair()
    with heard, wake:
        assert DiskWriter(paths, wake, PAIR).begin() == ""
        assert read_era(paths.era) == 8
