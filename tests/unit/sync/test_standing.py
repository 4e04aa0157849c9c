"""The judgement "synced": each reason, and what does not spoil it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sync.standing import FollowFacts, HoldFacts, judge_follower, judge_holder

IN_STEP = FollowFacts(
    holder="gw1",
    holder_is_self=False,
    holder_lives=True,
    session_accepted=True,
    snapshot_done=True,
    caught_up=True,
    stale=0,
    heard_age_s=0.01,
    gap_age_at_contact_s=0.0,
    lag=0,
    beacon_s=0.02,
    table_full=False,
)


def test_a_follower_in_step_is_synced() -> None:
    assert judge_follower(IN_STEP) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"holder": ""}, "no holder known yet"),
        ({"session_accepted": False}, "stream of gw1 not accepted yet"),
        ({"snapshot_done": False}, "snapshot from gw1 not finished"),
        ({"caught_up": False}, "catching up with the stream of gw1"),
        ({"repair": "1 of 256 buckets"}, "1 of 256 buckets"),
        ({"repair": "x", "snapshot_done": False}, "snapshot from gw1 not finished"),
        ({"stale": 7}, "7 stale entries await replacement from gw1"),
        ({"heard_age_s": 3.2}, "replication from gw1 silent for 3 s"),
        ({"gap_age_at_contact_s": 0.05}, "hole in the stream of gw1"),
        ({"lag": 1000}, "hole in the stream of gw1"),
        (
            {"snapshot_done": False, "unanswered_over": "sync0, sync1"},
            "no snapshot from gw1 over sync0, sync1: no answer",
        ),
        (
            {"stale": 7, "unanswered_over": "sync0, sync1"},
            "no snapshot from gw1 over sync0, sync1: no answer",
        ),
        ({"unanswered_over": "sync0, sync1"}, ""),
        ({"snapshot_done": False, "refusal": "EINVAL"}, "kernel refused replicas: EINVAL"),
        ({"table_full": True}, "conntrack table full: replicas refused"),
    ],
)
def test_each_reason(change: dict[str, object], reason: str) -> None:
    assert judge_follower(replace(IN_STEP, **change)) == reason  # type: ignore[arg-type]


def test_it_stays_synced_when_the_holder_dies() -> None:
    assert judge_follower(replace(IN_STEP, holder_lives=False, heard_age_s=500.0)) == ""


def test_whoever_held_last_is_synced() -> None:
    facts = replace(IN_STEP, holder_is_self=True, session_accepted=False, snapshot_done=False)
    assert judge_follower(facts) == ""


def test_a_holder() -> None:
    well = HoldFacts(overrun=False, stale=0, replacing=False, recovering=False)
    assert judge_holder(well) == ""
    assert "events were lost" in judge_holder(replace(well, overrun=True))
    assert "3 known" in judge_holder(replace(well, replacing=True, stale=3))
    assert "restarted" in judge_holder(replace(well, recovering=True))
