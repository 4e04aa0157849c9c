"""What the holder says: events in, deltas out."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from hafw.flow import FlowEntry
from sync.ctnetlink import CtEvent, EventKind
from sync.delta import Destroy, Upsert, Version
from sync.publish import LookUp, Publisher
from sync.registry import Registry
from tests.unit.sync.sync_flows import (
    ASSURED,
    CLOSING,
    CONFIRMED,
    ESTABLISHED,
    GROUP,
    HASHES,
    OPENING,
    REPLIED,
    epoch,
    reborn,
    tcp,
    udp,
)

E1, E2 = epoch(1, 1), epoch(2, 1)
HELD = {GROUP: E1}
NEW, UPDATE, DESTROY = EventKind.NEW, EventKind.UPDATE, EventKind.DESTROY


@pytest.fixture
def publisher() -> Publisher:
    return Publisher(Registry(HASHES), Random(7))


def say(
    publisher: Publisher, kind: EventKind, entry: FlowEntry, held: dict[int, int] | None = None
) -> list[Upsert | Destroy]:
    effects = publisher.on_event(CtEvent(kind, entry, 0), HELD if held is None else held)
    assert all(isinstance(effect, Upsert | Destroy) for effect in effects)
    return [effect for effect in effects if isinstance(effect, Upsert | Destroy)]


def test_udp_is_said_at_once_and_again_when_its_status_changes(publisher: Publisher) -> None:
    (first,) = say(publisher, NEW, udp(status=CONFIRMED))
    assert isinstance(first, Upsert)
    assert first.version == Version(E1, 0)
    assert say(publisher, UPDATE, udp(status=CONFIRMED)) == []
    (second,) = say(publisher, UPDATE, udp(status=REPLIED))
    (third,) = say(publisher, UPDATE, udp(status=ASSURED))
    assert {first.incarnation, second.incarnation, third.incarnation} == {first.incarnation}


def test_tcp_is_said_from_assured_on(publisher: Publisher) -> None:
    assert say(publisher, NEW, tcp(state=OPENING, status=CONFIRMED)) == []
    assert say(publisher, UPDATE, tcp(state=OPENING, status=REPLIED)) == []
    (first,) = say(publisher, UPDATE, tcp())
    assert isinstance(first, Upsert)
    assert first.entry.tcp == ESTABLISHED
    (closing,) = say(publisher, UPDATE, tcp(state=CLOSING))
    assert isinstance(closing, Upsert)


def test_an_event_without_tcp_state_is_looked_up_if_it_is_news(publisher: Publisher) -> None:
    say(publisher, UPDATE, replace(tcp(), helper="ftp"))
    assert say(publisher, UPDATE, tcp(state=None)) == [], "nothing that is replicated changed"
    marked = replace(tcp(state=None), mark=tcp().mark | 5)
    assert publisher.on_event(CtEvent(UPDATE, marked, 0), HELD) == [LookUp(tcp().key, E1)]
    (said,) = publisher.publish(replace(tcp(), mark=marked.mark), E1, looked_up=True)
    assert isinstance(said, Upsert)
    assert (said.entry.tcp, said.entry.helper) == (ESTABLISHED, "ftp")


def test_a_first_word_of_tcp_without_its_state_is_looked_up(publisher: Publisher) -> None:
    effects = publisher.on_event(CtEvent(UPDATE, tcp(state=None), 0), HELD)
    assert effects == [LookUp(tcp().key, E1)]


def test_a_destroy_is_said_only_for_what_was_said(publisher: Publisher) -> None:
    assert say(publisher, DESTROY, tcp()) == []
    (said,) = say(publisher, NEW, udp())
    (gone,) = say(publisher, DESTROY, udp())
    assert gone == Destroy(
        udp().key, said.incarnation, Version(E1, 0), HASHES.contribution(udp(), said.incarnation)
    )
    assert say(publisher, DESTROY, udp()) == []


def test_the_destroy_matches_although_its_event_lacks_the_helper(publisher: Publisher) -> None:
    flow = replace(tcp(), helper="ftp")
    (said,) = say(publisher, UPDATE, flow)
    (gone,) = say(publisher, DESTROY, tcp())
    assert isinstance(gone, Destroy)
    assert gone.contribution == HASHES.contribution(flow, said.incarnation)


@pytest.mark.parametrize("group", [0, 2])
def test_other_groups_and_own_flows_are_not_said(publisher: Publisher, group: int) -> None:
    for kind in (NEW, UPDATE, DESTROY):
        assert say(publisher, kind, udp(group=group)) == []


def test_nothing_is_said_while_nothing_is_held(publisher: Publisher) -> None:
    assert say(publisher, NEW, udp(), {}) == []


def test_the_owner_bits_do_not_matter(publisher: Publisher) -> None:
    """After a takeover they still name the node before."""
    assert len(say(publisher, NEW, udp(owner=9))) == 1


def test_a_tuple_made_anew_is_another_life(publisher: Publisher) -> None:
    (first,) = say(publisher, NEW, udp())
    gone, again = say(publisher, NEW, udp())
    assert isinstance(gone, Destroy)
    assert gone.incarnation == first.incarnation
    assert again.incarnation != first.incarnation


def test_a_tuple_reused_unheard_is_another_life(publisher: Publisher) -> None:
    (first,) = say(publisher, NEW, udp())
    gone, again = say(publisher, UPDATE, reborn(udp()))
    assert isinstance(gone, Destroy)
    assert gone.incarnation == first.incarnation
    assert isinstance(again, Upsert)
    assert again.entry.reply == reborn(udp()).reply
    assert publisher.counters["reused_unheard"] == 1


def test_a_flow_of_an_older_epoch_moves_up_with_its_next_word(publisher: Publisher) -> None:
    (first,) = say(publisher, NEW, udp())
    (moved,) = say(publisher, UPDATE, udp(), {GROUP: E2})
    assert (moved.incarnation, moved.version) == (first.incarnation, Version(E2, 0))
    assert say(publisher, UPDATE, udp(), {GROUP: E2}) == []
    (gone,) = say(publisher, DESTROY, udp(), {GROUP: epoch(3, 1)})
    assert gone.version == Version(epoch(3, 1), 0)


def test_refresh_says_it_although_nothing_changed(publisher: Publisher) -> None:
    assert len(publisher.publish(udp(), E1)) == 1
    assert publisher.publish(udp(), E1) == []
    (again,) = publisher.publish(udp(), E1, refresh=True)
    assert isinstance(again, Upsert)
    assert again.refresh
