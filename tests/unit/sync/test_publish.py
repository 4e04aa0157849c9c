"""What the holder says: events in, deltas out."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from hafw.flow import IPPROTO_SCTP, FlowEntry, SctpState, SynProxy, TcpState
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


def sctp(state: SctpState | None, status: int = ASSURED) -> FlowEntry:
    entry = udp(status=status)
    orig, reply = (replace(t, proto=IPPROTO_SCTP) for t in (entry.key.orig, entry.reply))
    return replace(entry, key=replace(entry.key, orig=orig), reply=reply, sctp=state)


UP, ENDING = SctpState(4, 11, 22), SctpState(5, 11, 22)


def test_sctp_is_said_from_assured_on_with_its_tags(publisher: Publisher) -> None:
    assert say(publisher, NEW, sctp(SctpState(1, 0, 22), CONFIRMED)) == []
    (first,) = say(publisher, UPDATE, sctp(UP))
    assert isinstance(first, Upsert)
    assert first.entry.sctp == UP
    assert say(publisher, UPDATE, sctp(UP)) == []
    (marked,) = say(publisher, UPDATE, replace(sctp(None), mark=udp().mark | 5))
    assert isinstance(marked, Upsert)
    assert marked.entry.sctp == UP, "known: a replica that is missing is made with it"
    (ending,) = say(publisher, UPDATE, sctp(ENDING))
    assert isinstance(ending, Upsert)
    assert ending.entry.sctp == ENDING


def test_a_first_word_of_sctp_without_its_tags_is_looked_up(publisher: Publisher) -> None:
    effects = publisher.on_event(CtEvent(UPDATE, sctp(None), 0), HELD)
    assert effects == [LookUp(sctp(None).key, E1)]


LABELS = bytes([8]) + bytes(15)


def test_on_a_node_that_sets_labels_each_flow_is_looked_up_first(publisher: Publisher) -> None:
    publisher.labelled = True
    assert publisher.on_event(CtEvent(NEW, udp(), 0), HELD) == [LookUp(udp().key, E1)]
    (first,) = publisher.publish(replace(udp(), labels=LABELS), E1, looked_up=True)
    assert isinstance(first, Upsert)
    assert first.entry.labels == LABELS
    assert say(publisher, UPDATE, udp()) == [], "an event leaves out what has not changed"
    more = bytes([9]) + bytes(15)
    (changed,) = say(publisher, UPDATE, replace(udp(), labels=more))
    assert isinstance(changed, Upsert)
    assert changed.entry.labels == more
    (marked,) = say(publisher, UPDATE, replace(udp(), mark=udp().mark | 5))
    assert isinstance(marked, Upsert)
    assert marked.entry.labels == more


def test_labels_of_zeros_are_none(publisher: Publisher) -> None:
    (first,) = publisher.publish(replace(udp(), labels=bytes(16)), E1, looked_up=True)
    assert isinstance(first, Upsert)
    assert first.entry.labels is None


def test_synproxy_state_is_said_and_remembered(publisher: Publisher) -> None:
    state = SynProxy(1, 2, 3)
    (first,) = say(publisher, UPDATE, replace(tcp(), synproxy=state))
    (second,) = say(publisher, UPDATE, tcp(state=CLOSING))
    assert isinstance(first, Upsert)
    assert isinstance(second, Upsert)
    assert first.entry.synproxy == second.entry.synproxy == state


@pytest.mark.parametrize("over", [7, 8])
def test_tcp_that_was_over_and_is_open_is_another_life(publisher: Publisher, over: int) -> None:
    """Its NEW is not heard, and the DESTROY of the old one may have been lost."""
    (first,) = say(publisher, UPDATE, tcp())
    say(publisher, UPDATE, tcp(state=TcpState(over, 3, 3, 7, 7)))
    gone, again = say(publisher, UPDATE, tcp())
    assert isinstance(gone, Destroy)
    assert gone.incarnation == first.incarnation
    assert isinstance(again, Upsert)
    assert again.incarnation != first.incarnation
