"""Whom no link reaches and what stands in, as `sync.detour` judges it. Two nodes, ways between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sync.detour import (
    BACK_S,
    CUT_BEACONS,
    CUT_S,
    DOUBTED_PROBES,
    HEARD_S,
    TOLD_S,
    Detour,
    is_segment,
    segment_name,
)
from sync.paths import JUDGE_S, PROBE_S

BEACON_S = 0.02
LAN, WAN = segment_name("lan"), segment_name("wan")
MULTICAST = "multicast over the link"
Passes = Callable[[int, str], bool]
"""Sender and way -> does it arrive? The link's unicast is a way of its own."""


def all_pass(_sender: int, _way: str) -> bool:
    return True


def no_links(_sender: int, way: str) -> bool:
    return is_segment(way)


def no_unicast_on_links(_sender: int, way: str) -> bool:
    return way != "link"


def nothing(_sender: int, _way: str) -> bool:
    return False


class Two:
    """Nodes 1 and 2 with one link, `lan` and `wan`, as `sync.inbox` and `sync.prober` join them:
    beacons over the link and over the segment in use, probes over everything."""

    def __init__(self, beacon_s: float = BEACON_S) -> None:
        self.now = 0.0
        self.beacon_s = beacon_s
        self.nodes = {n: Detour({3 - n: [LAN, WAN]}, beacon_s=beacon_s) for n in (1, 2)}
        self.heard: dict[tuple[int, str], float] = {}
        self.stopped: set[int] = set()
        self.switches = 0
        """How often node 1 took another way."""

    def __getitem__(self, number: int) -> Detour:
        return self.nodes[number]

    def over(self, number: int = 1) -> str:
        return self[number].away.get(3 - number, "links")

    def run(self, seconds: float, passes: Passes = all_pass) -> None:
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += self.beacon_s
            before = self.over()
            for sender in (1, 2):
                if sender not in self.stopped:
                    self._turn(sender, passes)
            self.switches += before != self.over()

    def _turn(self, sender: int, passes: Passes) -> None:
        to, mine, its = 3 - sender, self[sender], self[3 - sender]
        mine.work(now=self.now)
        if to in mine.doubted:
            self._probe(sender, passes, over=(LAN, WAN))
        deaf = mine.deaf
        for way in {"link", mine.away.get(to) or "link"}:
            if passes(sender, MULTICAST if way == "link" else way) and to not in self.stopped:
                its.on_beacon(sender, deaf, to)
                if not is_segment(way):
                    its.on_link(sender)
        if round(self.now / self.beacon_s) % max(round(PROBE_S / self.beacon_s), 1) == 0:
            self._probe(sender, passes, over=("link", LAN, WAN))

    def _probe(self, sender: int, passes: Passes, *, over: tuple[str, ...]) -> None:
        to = 3 - sender
        said = [
            way for way in (LAN, WAN)
            if self.now - self.heard.get((sender, way), -99.0) <= JUDGE_S
        ]  # fmt: skip
        for way in over:
            if not passes(sender, way) or to in self.stopped:
                continue
            self[to].on_told(sender, said, now=self.now)
            if way == "link":
                self[to].on_link_probe(sender)
                continue
            self.heard[to, way] = self.now
            self[to].on_segment(sender, way, now=self.now)


def test_links_that_work_are_never_left() -> None:
    two = Two()
    two.run(20)
    assert two.over(1) == two.over(2) == "links"
    assert not two[1].counters


def test_a_cut_of_the_link_leads_over_the_first_segment_and_back() -> None:
    two = Two()
    two.run(10)
    two.run(CUT_S - 2 * BEACON_S, no_links)
    assert two.over() == "links"
    two.run(4 * BEACON_S, no_links)
    assert two.over(1) == two.over(2) == LAN
    two.run(30, no_links)
    assert two.over() == LAN
    assert two[1].deaf == two[2].deaf == [2] or two[2].deaf == [1]
    two.run(BACK_S - 0.1)
    assert two.over() == LAN, "for a moment more"
    two.run(0.2)
    assert two.over(1) == two.over(2) == "links"
    assert two.switches == 2


def test_where_beacons_are_rare_a_few_lost_ones_are_no_cut() -> None:
    rare_s = PROBE_S / 5
    assert CUT_BEACONS * rare_s > CUT_S
    two = Two(rare_s)
    for _ in range(3):
        two.run(2)
        two.run((CUT_BEACONS - 2) * rare_s, no_links)
    assert two.over(1) == two.over(2) == "links"
    assert not two[1].counters
    two.run(4 * rare_s, no_links)
    assert two.over(1) == two.over(2) == LAN


def test_a_link_that_carries_in_one_direction_counts_as_cut_for_both() -> None:
    for dead in (1, 2):
        two = Two()
        two.run(10)
        two.run(1, lambda sender, way, dead=dead: is_segment(way) or sender != dead)  # type: ignore[misc]
        assert two.over(1) == two.over(2) == LAN
        assert (two[1].deaf, two[2].deaf) == (([], [1]) if dead == 1 else ([2], []))
        two.run(BACK_S + 0.2)
        assert two.over(1) == two.over(2) == "links"


def test_a_link_that_comes_and_goes_is_not_gone_back_to() -> None:
    two = Two()
    two.run(10)
    for _ in range(10):
        two.run(2 * CUT_S, no_links)
        two.run(BACK_S / 2)
    assert two.over() == LAN
    assert two.switches == 1


def test_who_was_stopped_does_not_take_his_own_pause_for_a_cut() -> None:
    two = Two()
    two.run(10)
    two.stopped.add(1)
    two.run(5)
    two.stopped.clear()
    two.run(0.1)
    assert two.over(1) == "links"
    assert not two[1].counters
    assert two[2].counters["detours_begun"] == 1, "it did not hear node 1"


@pytest.mark.parametrize("probed_before_s", [0.02, 0.1, 0.26, 0.48])
def test_to_a_dead_peer_nothing_is_ever_sent_over_a_segment(probed_before_s: float) -> None:
    two = Two()
    two.run(10 + probed_before_s)
    for _ in range(round(4 * HEARD_S / BEACON_S)):
        two.run(BEACON_S, nothing)
        assert two.over() in ("links", "")
    assert two[1].away == {2: ""}, "questions go everywhere"


def test_a_dead_peer_is_asked_a_few_times_whether_it_lives() -> None:
    two = Two()
    two.run(10)
    asked = 0
    for _ in range(round(20 / BEACON_S)):
        two.run(BEACON_S, nothing)
        asked += len(two[1].doubted)
    assert asked == DOUBTED_PROBES


def test_one_that_dies_while_its_own_deafness_is_the_reason_of_the_detour() -> None:
    two = Two()
    two.run(10)
    two.run(2, lambda sender, way: is_segment(way) or sender == 2)
    assert two.over(1) == LAN
    two.run(CUT_S + HEARD_S + 2 * BEACON_S, nothing)
    assert two.over(1) == ""


def test_a_peer_that_is_cut_off_proves_that_it_lives_before_the_links_are_given_up() -> None:
    for step in range(round(PROBE_S / BEACON_S)):  # Wherever the cut falls between two probes.
        two = Two()
        two.run(10 + step * BEACON_S)
        two.run(CUT_S + 2 * BEACON_S, no_links)
        assert two.over(1) == two.over(2) == LAN


def test_a_segment_that_proves_it_late_is_used_at_once() -> None:
    two = Two()
    two.run(10)
    two.run(CUT_S + 0.1, nothing)
    assert two.over() == ""
    two[1].on_segment(2, LAN, now=two.now)
    assert two[1].pressing
    two[1].work(now=two.now)
    assert two.over() == LAN


def test_links_that_bring_no_unicast_are_not_enough() -> None:
    two = Two()
    two.run(10)
    two.run(HEARD_S + PROBE_S + 2 * BEACON_S, no_unicast_on_links)
    assert two.over(1) == two.over(2) == LAN
    assert (two[1].multicast_alone, two[2].multicast_alone) == ([2], [1])
    two.run(30, no_unicast_on_links)
    assert two.over() == LAN
    two.run(BACK_S + PROBE_S + 0.1)
    assert two.over(1) == two.over(2) == "links"
    assert two[1].multicast_alone == []
    assert two.switches == 2


def test_unicast_that_is_lost_in_one_direction_leads_both_over_the_segment() -> None:
    two = Two()
    two.run(10)
    two.run(HEARD_S + 1, lambda sender, way: way != "link" or sender == 2)
    assert two.over(1) == two.over(2) == LAN
    assert (two[1].deaf, two[2].deaf) == ([], [1])


def test_links_that_come_back_with_multicast_alone_are_not_gone_back_to() -> None:
    two = Two()
    two.run(10)
    two.run(5, no_links)
    two.run(30, no_unicast_on_links)
    assert two.over() == LAN
    assert two.switches == 1


def test_where_beacons_are_as_rare_as_can_be_some_lost_probes_are_no_cut() -> None:
    two = Two(1.0)  # Probes go out with beacons.
    two.run(20)
    for _ in range(3):
        two.run(3, no_unicast_on_links)
        two.run(2)
    assert two.over(1) == two.over(2) == "links"
    assert not two[1].counters
    two.run(CUT_BEACONS + 2, no_unicast_on_links)
    assert two.over(1) == two.over(2) == LAN
    two.run(4)
    assert two.over(1) == two.over(2) == "links"


def test_a_peer_that_was_away_for_long_is_not_called_deaf_when_it_is_back() -> None:
    two = Two()
    two.run(10)
    two.run(60, nothing)
    for _ in range(round(2 / BEACON_S)):
        two.run(BEACON_S)
        assert two[1].deaf == two[2].deaf == []
    assert two.over(1) == "links"


def test_a_segment_that_dies_is_left_for_the_next_and_not_taken_again() -> None:
    two = Two()
    two.run(10)
    two.run(3, no_links)
    assert two.over() == LAN
    two.run(HEARD_S + 0.1, lambda _, way: way == WAN)
    assert two.over(1) == two.over(2) == WAN
    two.run(TOLD_S + 1, no_links)
    assert two.over() == WAN, "it works"


def test_a_segment_that_works_in_one_direction_only_is_left() -> None:
    two = Two()
    two.run(10)
    two.run(3, no_links)
    two.run(JUDGE_S + TOLD_S + 1, lambda sender, way: way == WAN or (way == LAN and sender == 2))
    assert two.over() == WAN
    # The same, but from before the cut.
    two = Two()
    one_way: Passes = lambda sender, way: way != LAN or sender == 2  # noqa: E731
    two.run(10, one_way)
    two.run(1, lambda sender, way: is_segment(way) and one_way(sender, way))
    assert two.over() == WAN


def test_a_segment_over_which_the_peer_never_hears_us_is_tried_for_a_while_only() -> None:
    two = Two()
    only_to_1: Passes = lambda sender, way: way == LAN and sender == 2  # noqa: E731
    two.run(CUT_S + PROBE_S + 0.1, only_to_1)
    assert two.over() == LAN, "its word may be under way"
    two.run(TOLD_S, only_to_1)
    assert two.over() == "", "it would have said so by now"


def test_two_that_start_without_a_link_find_each_other() -> None:
    two = Two()
    two.run(CUT_S + PROBE_S + 0.1, no_links)
    assert two.over(1) == two.over(2) == LAN


def test_ends_that_use_different_segments_are_ready_for_each_other_on_both() -> None:
    def no_lan_from_1(sender: int, way: str) -> bool:
        return is_segment(way) and (sender, way) != (1, LAN)

    two = Two()
    two.run(4 * PROBE_S)
    assert two[1].asked_over == set(), "links bring everything"
    two.run(4 * PROBE_S, no_links)
    two.run(HEARD_S + PROBE_S, no_lan_from_1)
    two.run(4 * PROBE_S, no_links)
    assert (two.over(1), two.over(2)) == (LAN, WAN), "each keeps what works"
    for number in (1, 2):
        assert two[number].asked_over == {LAN, WAN}
    two.run(HEARD_S + 2 * PROBE_S, lambda _sender, way: way == WAN)
    for number in (1, 2):
        assert two[number].asked_over == {WAN}
    two.run(BACK_S + 1)
    assert two[1].asked_over == two[2].asked_over == set()
