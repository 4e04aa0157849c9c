"""What works between two nodes, as `sync.paths` judges it. Two of them, and a way between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.control import Probe, encode_control, padded
from sync.detour import segment_name
from sync.paths import ALARM_S, FORGET_S, JUDGE_S, PROBE_S, SIZES, Paths

Passes = Callable[[str, int], bool]
"""Link and size of a datagram -> does it arrive? A size of 0 is a beacon by multicast."""
WHOLE, SMALLEST = SIZES[0], SIZES[-1]
LAN = segment_name("lan")


def all_pass(_link: str, _size: int) -> bool:
    return True


class Two:
    """Node 1 and node 2 on two links, heard by each other once in `PROBE_S`."""

    def __init__(self, *, unicast: bool = False, segments: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        self.nodes = {
            n: Paths({3 - n: ["a", "b"]}, unicast=unicast, segments={3 - n: segments})
            for n in (1, 2)
        }
        self.probes_said = 0

    def run(self, seconds: float, there: Passes, back: Passes = all_pass) -> Paths:
        """`there` is from node 1 to node 2. Node 1."""
        until = self.now + seconds
        while self.now < until:
            for sender, passes in ((1, there), (2, back)):
                self._step(sender, passes)
            self.now += PROBE_S
        return self.nodes[1]

    def _step(self, sender: int, passes: Passes) -> None:
        mine, its = self.nodes[sender], self.nodes[3 - sender]
        for link in ("a", "b"):
            if passes(link, 0):
                its.on_beacon(sender, link, by_multicast=True, now=self.now)
        for probe in mine.due(now=self.now):
            self.probes_said += sender == 1
            if passes(probe.link, probe.bytes):
                its.on_probe(sender, probe.link, probe.bytes, now=self.now)
                its.on_told(sender, mine.hears(3 - sender, now=self.now), now=self.now)


def test_where_all_arrives_nothing_changes_and_two_probes_a_link_are_enough() -> None:
    two = Two()
    node = two.run(20, all_pass)
    assert node.datagram_bytes == WHOLE
    assert not node.by_unicast
    assert not node.small(now=two.now)
    assert not node.unheard(now=two.now)
    before = two.probes_said
    two.run(5, all_pass)
    assert two.probes_said - before == 5 / PROBE_S * 2 * 2


@pytest.mark.parametrize("carries", [SIZES[1], 1100, SIZES[2], 900, SMALLEST])
def test_datagrams_shrink_to_what_the_way_carries_and_it_is_named(carries: int) -> None:
    two = Two()
    node = two.run(3 * JUDGE_S, lambda link, size: link == "a" or size <= carries)
    fits = max(size for size in SIZES if size <= carries)
    assert node.datagram_bytes == fits
    assert node.small(now=two.now) == [(2, "b", fits)]
    assert not node.by_unicast
    assert two.nodes[2].datagram_bytes == WHOLE, "the way back carries all"


def test_they_grow_again_when_the_way_does() -> None:
    two = Two()
    two.run(12, lambda _, size: size <= 1024)
    node = two.run(2 * JUDGE_S, all_pass)
    assert node.datagram_bytes == WHOLE
    assert not node.small(now=two.now)


def test_a_mtu_that_falls_while_all_runs_is_found() -> None:
    two = Two()
    two.run(30, all_pass)
    node = two.run(2 * JUDGE_S, lambda _, size: size <= 1100)
    assert node.datagram_bytes == 1024


def test_where_multicast_does_not_arrive_all_goes_by_unicast() -> None:
    two = Two()
    node = two.run(3 * JUDGE_S, lambda link, size: link == "a" or size != 0)
    assert node.by_unicast == {(2, "b")}
    assert node.unheard(now=two.now) == [(2, "b")]
    assert node.datagram_bytes == WHOLE
    node = two.run(2 * JUDGE_S, all_pass)
    assert not node.by_unicast
    assert not node.unheard(now=two.now)


def test_a_link_that_is_dead_says_nothing_of_multicast_or_sizes() -> None:
    two = Two()
    node = two.run(20, lambda link, _: link == "a")
    assert not node.by_unicast
    assert node.datagram_bytes == WHOLE


def test_what_was_found_stays_while_a_link_or_a_peer_is_away() -> None:
    two = Two()
    two.run(12, lambda _, size: 0 < size <= 1100)
    node = two.run(60, lambda *_: False, lambda *_: False)
    assert node.datagram_bytes == 1024
    assert node.by_unicast == {(2, "a"), (2, "b")}
    assert two.now > ALARM_S
    assert not node.small(now=two.now), "a peer that is gone is not the MTU's fault"
    assert not node.unheard(now=two.now)


@pytest.mark.parametrize("dead", ["a", LAN])
def test_a_way_that_died_limits_the_others_no_longer(dead: str) -> None:
    two = Two(segments=(LAN,))
    node = two.run(3 * JUDGE_S, lambda way, size: way != dead or size <= SMALLEST)
    assert node.datagram_bytes == SMALLEST
    node = two.run(FORGET_S - 1, lambda way, _: way != dead)
    assert node.datagram_bytes == SMALLEST, "it may come back"
    node = two.run(JUDGE_S + 2, lambda way, _: way != dead)
    assert node.datagram_bytes == WHOLE
    assert not node.small(now=two.now)
    node = two.run(3 * JUDGE_S, lambda way, size: way != dead or size <= SMALLEST)
    assert node.datagram_bytes == SMALLEST, "it is back, as narrow as it was"


def test_a_limit_outlives_a_peer_that_hears_nothing() -> None:
    two = Two()
    two.run(3 * JUDGE_S, lambda _, size: size <= 1100)
    node = two.run(2 * FORGET_S, lambda *_: False)  # And says so, all the time.
    assert node.datagram_bytes == 1024


def test_a_limit_outlives_an_absence_of_the_peer() -> None:
    two = Two()
    narrow: Passes = lambda link, size: link == "b" or size <= 1100  # noqa: E731
    two.run(3 * JUDGE_S, narrow)
    two.run(10 * FORGET_S, lambda *_: False, lambda *_: False)
    for _ in range(round(2 * JUDGE_S / PROBE_S)):
        assert two.run(PROBE_S, narrow).datagram_bytes == 1024


def test_with_unicast_by_configuration_nothing_is_missed() -> None:
    two = Two(unicast=True)
    node = two.run(20, lambda _, size: size != 0)
    assert node.by_unicast == {(2, "a"), (2, "b")}
    assert not node.unheard(now=two.now)


def test_a_peer_that_has_just_started_says_nothing_yet() -> None:
    two = Two()
    node = two.run(JUDGE_S - PROBE_S, lambda _, size: 0 < size <= 1100)
    assert node.datagram_bytes == WHOLE
    assert not node.by_unicast


def test_what_cannot_be_is_not_believed() -> None:
    node = Paths({2: ["a"]}, unicast=False)
    node.on_told(2, {"a": (1, True), "nowhere": (9, False)}, now=1.0)
    node.on_told(9, {"a": (1, False)}, now=1.0)
    assert node.datagram_bytes == SMALLEST
    assert not node.by_unicast


@given(
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=32), st.tuples(
        st.integers(0, WHOLE), st.booleans()), max_size=8),
    st.sampled_from(SIZES),
)  # fmt: skip
def test_a_probe_has_the_size_it_should(heard: dict[str, tuple[int, bool]], size: int) -> None:
    payload = size - 64
    assert len(encode_control(padded(Probe(1, heard), payload))) in (payload, payload - 1)
