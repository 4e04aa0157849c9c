"""A refusal is logged once, however many there are."""

from __future__ import annotations

from collections import Counter

from cluster.refusals import LEASED, QUIET_NS, RAFTD, Refusals

START = 50_000_000_000


def test_the_first_of_a_kind_is_said_and_the_others_are_counted() -> None:
    counters: Counter[str] = Counter()
    refusals = Refusals(("bad_tag", "replayed"))
    assert refusals.to_say(counters, START) == []
    said = []
    for number in range(1000):
        counters["bad_tag"] += 1
        counters["something_else"] += 1
        said += refusals.to_say(counters, START + number)
    assert said == [("bad_tag", 1)]
    counters["replayed"] += 2
    assert refusals.to_say(counters, START + 2000) == [("replayed", 2)]


def test_it_is_said_again_after_quiet_and_not_while_it_goes_on() -> None:
    counters: Counter[str] = Counter()
    refusals = Refusals(("bad_tag",))
    said = []
    now_ns = START
    for pause_ns in (0, QUIET_NS - 1, QUIET_NS - 1, QUIET_NS, 1):
        now_ns += pause_ns
        counters["bad_tag"] += 1
        said += refusals.to_say(counters, now_ns)
    assert said == [("bad_tag", 1), ("bad_tag", 4)]
    # Looking without a new one is no new one.
    assert refusals.to_say(counters, now_ns + 3 * QUIET_NS) == []


def test_no_name_is_watched_twice() -> None:
    for names in (LEASED, RAFTD):
        assert len(set(names)) == len(names)
