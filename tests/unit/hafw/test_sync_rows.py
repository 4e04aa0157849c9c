"""The rows of `hafwctl sync`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hafw.messages import ResyncReply, SyncVerdict, VerifyReply
from hafw.node.status_rows import build_tables, merge
from hafw.node.sync_rows import (
    SYNC_KEYS,
    VERIFY_KEYS,
    resynced,
    sync_rows,
    unverified,
    verdicts,
    verified,
)
from tests.unit.hafw.test_status_rows import CONFIG, facts

ROOT = Path(__file__).resolve().parents[3]
EQUAL = SyncVerdict(
    group=1, active=False, flows=7, entries=7, missing=0, stale=0, left_over=0, differing=0,
    seq=9, took_s=0.12345,
)  # fmt: skip


def test_every_key_and_counter_of_the_page_is_there() -> None:
    page = (ROOT / "docs/reference/status.md").read_text()
    for command, keys in (("status", SYNC_KEYS), ("verify", VERIFY_KEYS)):
        section = page.split(f"# `hafwctl sync {command}`\n")[1].split("\n# `")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(keys)
    section = (
        page.split("\n## Table `counters`")[1].split("\n## ")[0].split("when it is normal")[1]
    )
    named = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|[^|]*", section, re.MULTILINE)))
    assert len(named) > 20
    source = "".join(
        file.read_text() for folder in ("sync", "cluster") for file in (ROOT / folder).glob("*.py")
    )
    for name in named:
        # Of a family the end is the reason: f"refused_{reason}".
        reason = name.removeprefix("refused_").removeprefix("snapshot_aborted_")
        assert f'"{reason}"' in source, name


def rows_of(*verdict: SyncVerdict) -> list[dict[str, Any]]:
    said = verdicts(CONFIG, VerifyReply(2, list(verdict)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(said)) == said, "as it goes over the API"
    return verified("gw2", said["groups"])


def test_a_verdict_is_equal_only_if_nothing_differs_and_all_was_compared() -> None:
    (row,) = rows_of(EQUAL)
    assert tuple(row) == VERIFY_KEYS
    assert (row["node"], row["group"], row["role"]) == ("gw2", "main", "BACKUP")
    assert (row["verdict"], row["took_s"]) == ("equal", 0.123)
    silent = msgspec.structs.replace(EQUAL, differing=None, error="no digest")
    assert rows_of(silent)[0]["verdict"] == "unknown"
    holder = msgspec.structs.replace(EQUAL, active=True, differing=None)
    assert (rows_of(holder)[0]["verdict"], rows_of(holder)[0]["role"]) == ("equal", "ACTIVE")


@pytest.mark.parametrize("fault", ["missing", "stale", "left_over", "differing"])
def test_each_fault_differs(fault: str) -> None:
    wrong = msgspec.structs.replace(EQUAL, **{fault: 1}, error="and no digest")
    assert rows_of(wrong)[0]["verdict"] == "differs"


def test_who_could_not_be_asked_is_unknown() -> None:
    row = unverified("gw2", "syncd is down")
    assert (row["verdict"], row["error"], row["missing"]) == ("unknown", "syncd is down", None)


def test_a_resync_names_its_groups() -> None:
    said = resynced(CONFIG, ResyncReply([], {1: "this node holds it"}))
    assert said == {"groups": [], "refused": {"main": "this node holds it"}}


def test_each_gateway_has_a_row_and_the_witness_none() -> None:
    nodes = {name: facts(name, active=name == "gw1") for name in ("gw1", "gw2", "wit")}
    tables = {name: build_tables(CONFIG, one) for name, one in nodes.items()}
    tables["gw2"]["sync"] = []
    rows = sync_rows(merge("lab", list(tables.values())))
    assert [row["node"] for row in rows] == ["gw1", "gw2"]
    assert all(tuple(row) == SYNC_KEYS for row in rows)
    holder, silent = rows
    assert (holder["role"], holder["flows"], holder["lag_deltas"]) == ("ACTIVE", 7, None)
    assert (silent["in_sync"], silent["reason"]) == (False, "hafw-syncd did not answer")


def test_a_followers_lag_is_of_the_holders_stream() -> None:
    nodes = [facts("gw1", active=True), facts("gw2")]
    _, row = sync_rows(merge("lab", [build_tables(CONFIG, one) for one in nodes]))
    assert (row["role"], row["flows"], row["in_sync"]) == ("BACKUP", 8, True)
    assert (row["lag_deltas"], row["delay_p50_ms"]) == (2, 0.5)
