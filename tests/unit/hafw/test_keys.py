"""Keys: made once, the same on every node, never overwritten by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hafw.errors import RefusedError, StateError
from hafw.keyring import read_key
from hafw.node.keys import init_keys
from hafw.paths import NodePaths


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFW_ETC_ROOT", str(tmp_path / "etc"))


def test_a_gateway_gets_three_different_keys_that_only_it_may_read() -> None:
    paths = NodePaths("gw1")
    three = [paths.lease_key, paths.sync_key, paths.raft_key]
    assert init_keys(paths) == three
    assert len({read_key(path) for path in three}) == 3
    for path in three:
        assert path.stat().st_mode & 0o777 == 0o600
    assert paths.etc.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(paths.etc)) == ["lease.key", "raft.key", "sync.key"]


def test_the_witness_never_gets_the_sync_key() -> None:
    source, witness = NodePaths("gw1"), NodePaths("wit")
    init_keys(source)
    init_keys(witness, role="witness", source=source.etc)
    assert sorted(os.listdir(witness.etc)) == ["lease.key", "raft.key"]
    assert read_key(witness.lease_key) == read_key(source.lease_key)


def test_a_gateway_made_a_witness_loses_the_sync_key() -> None:
    paths = NodePaths("gw1")
    init_keys(paths)
    init_keys(paths, role="witness", force=True)
    assert sorted(os.listdir(paths.etc)) == ["lease.key", "raft.key"]


def test_copies_are_the_same() -> None:
    one, two = NodePaths("gw1"), NodePaths("gw2")
    init_keys(one)
    init_keys(two, source=one.etc)
    assert read_key(one.lease_key) == read_key(two.lease_key)
    assert read_key(one.sync_key) == read_key(two.sync_key)


def test_existing_keys_are_refused_and_left_alone() -> None:
    paths = NodePaths("gw1")
    init_keys(paths)
    before = read_key(paths.lease_key)
    paths.sync_key.unlink()
    with pytest.raises(RefusedError, match=r"raft\.key exist; nothing was changed"):
        init_keys(paths)
    assert read_key(paths.lease_key) == before
    assert not paths.sync_key.exists(), "half of a refused command was done"


def test_missing_makes_only_what_a_newer_release_wants() -> None:
    one, two = NodePaths("gw1"), NodePaths("gw2")
    init_keys(one)
    init_keys(two, source=one.etc)
    two.raft_key.unlink()
    before = read_key(two.lease_key)
    assert init_keys(two, source=one.etc, missing=True) == [two.raft_key]
    assert read_key(two.raft_key) == read_key(one.raft_key)
    assert read_key(two.lease_key) == before
    assert init_keys(two, missing=True) == []


def test_force_replaces_both() -> None:
    paths = NodePaths("gw1")
    init_keys(paths)
    before = read_key(paths.lease_key), read_key(paths.sync_key)
    init_keys(paths, force=True)
    assert read_key(paths.lease_key) != before[0]
    assert read_key(paths.sync_key) != before[1]


def test_a_bad_source_changes_nothing() -> None:
    one, two = NodePaths("gw1"), NodePaths("gw2")
    init_keys(one)
    one.sync_key.write_bytes(b"short")
    with pytest.raises(StateError, match="has 5 bytes"):
        init_keys(two, source=one.etc)
    assert not two.etc.exists()


@pytest.mark.parametrize("name", ["../x", "", "GW1", "a" * 33, "gw1/..", "gw1\n"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="cannot be a node's name"):
        NodePaths(name)
