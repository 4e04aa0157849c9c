"""The native publisher of events beside the reference: the same messages, the same deltas in the
same order, the same registry."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafw.flow import IPPROTO_SCTP, FlowEntry, FlowKey, SctpState, SynProxy, TcpState
from sync._codec import EventPump, Incarnations
from sync.ctnetlink import EventKind, parse_events
from sync.delta import Version, decode_deltas, encode_delta
from sync.flowhash import FlowHash
from sync.native_registry import NativeRegistry
from sync.publish import LookUp, PublishEffect, Publisher, publishable
from sync.registry import Flag, FlowRegistry, Registry
from tests.unit.sync.flow_strategies import SEQADJS, write_attributes, write_message
from tests.unit.sync.sync_flows import tcp, udp

SECRET = bytes(range(1, 33))
OWN_PORT = 77
ROOM = 400
SLOW = Flag.ADOPTED | Flag.LIBERAL
PASS = Flag.PASSED_BY | Flag.UNPASSED
KINDS = {
    EventKind.NEW: (0x100, 0x600),
    EventKind.UPDATE: (0x100, 0),
    EventKind.DESTROY: (0x102, 0),
}
FLOWS = [tcp(port) for port in range(3)] + [udp(port) for port in range(2)]
FLOWS.append(replace(
    udp(9),
    key=FlowKey(0, replace(udp(9).key.orig, proto=IPPROTO_SCTP)),
    reply=replace(udp(9).reply, proto=IPPROTO_SCTP),
))  # fmt: skip
STATES = [None, None, TcpState(1, 3, 0, 7, 0), TcpState(3, 3, 3, 7, 7), TcpState(4, 3, 3, 7, 7)]
STATES += [TcpState(7, 3, 3, 7, 7), TcpState(8, 3, 3, 7, 7)]
SCTP_STATES = [None, SctpState(3, 1, 2), SctpState(4, 1, 2), SctpState(5, 1, 2)]


@dataclass(frozen=True)
class Event:
    kind: EventKind
    entry: FlowEntry
    pid: int = 0

    def message(self) -> bytes:
        return write_message(*KINDS[self.kind], self.pid, write_attributes(self.entry))


@dataclass(frozen=True)
class Hold:
    """From now on these groups are held, and of these a pass is under way."""

    epochs: dict[int, int]
    passing: frozenset[int]


@dataclass(frozen=True)
class FlagAll:
    group: int
    flags: int


@dataclass(frozen=True)
class Labelled:
    """Whether the node sets labels."""

    labelled: bool


@st.composite
def events(draw: st.DrawFn) -> Event:
    entry = draw(st.sampled_from(FLOWS))
    is_tcp = entry.key.orig.proto == 6
    # Mostly plain: what is not is the reference's anyway.
    plain = draw(st.integers(0, 3))
    usual = (0x0E, 0x0E, 0x1E, 0x08, 0x0A)
    entry = replace(
        entry,
        mark=draw(st.sampled_from((1, 1, 1, 2, 0))) << 28 | draw(st.integers(0, 1)),
        status=draw(st.sampled_from(usual if plain else (*usual, 0x4E, 0x0F))),
        tcp=draw(st.sampled_from(STATES)) if is_tcp else None,
        sctp=draw(st.sampled_from(SCTP_STATES)) if entry.key.orig.proto == IPPROTO_SCTP else None,
        reply=replace(entry.reply, dport=draw(st.sampled_from((100, 100, 100, 101)))),
        kernel_id=5,
    )
    if not plain:
        entry = replace(
            entry,
            helper=draw(st.sampled_from([None, None, "ftp"])),
            seqadj=draw(st.none() | st.tuples(SEQADJS, SEQADJS)),
            master=draw(st.sampled_from([None, None, FLOWS[0].key.orig])),
            labels=draw(st.sampled_from([None, bytes(16), b"\1\2"])),
            synproxy=draw(st.sampled_from([None, SynProxy(0, 0, 0), SynProxy(1, 2, 3)])),
        )
    return Event(
        draw(st.sampled_from(list(EventKind))),
        entry,
        draw(st.sampled_from((0, 0, 0, 9, OWN_PORT))),
    )


HOLDS = st.builds(
    Hold,
    st.dictionaries(st.sampled_from((1, 2)), st.integers(5, 7)),
    st.frozensets(st.sampled_from((1, 2))),
)
LABELLED = st.builds(Labelled, st.booleans())
FLAGGINGS = st.builds(FlagAll, st.sampled_from((1, 2)), st.sampled_from(list(Flag)))
STEPS = st.lists(events() | events() | events() | events() | HOLDS | FLAGGINGS | LABELLED,
                 max_size=60)  # fmt: skip


class Slow:
    """The reference, as the holder runs it."""

    def __init__(self, registry: FlowRegistry) -> None:
        self.registry = registry
        self.publisher = Publisher(registry, Incarnations(42))
        self.hold = Hold({}, frozenset())
        self.deaths: list[tuple[int, int]] = []
        self.said: list[bytes | LookUp] = []
        self.others = 0

    def say(self, effects: list[PublishEffect]) -> None:
        for effect in effects:
            if not isinstance(effect, LookUp):
                epoch = effect.version.epoch
                self.said.append(
                    epoch.to_bytes(8, "big") + encode_delta(effect, header_epoch=epoch)
                )
                continue
            self.said.append(effect)
            # What a GET would find: the flow, whole.
            flow = next(f for f in FLOWS if f.key == effect.key)
            flow = replace(flow, mark=1 << 28, reply=replace(flow.reply, dport=100))
            self.say(self.publisher.publish(flow, effect.epoch, looked_up=True))

    def on_message(self, message: bytes) -> None:
        for event in parse_events(message):
            group = event.entry.mark >> 28
            if event.pid == OWN_PORT:
                continue
            if group not in self.hold.epochs:
                known = event.entry.key in self.registry
                self.others += event.kind is EventKind.DESTROY if known else group != 0
                continue
            self.say(self.publisher.on_event(event, self.hold.epochs))
            if group in self.hold.passing:
                if self.registry.set(event.entry.key, Flag.PASSED_BY):
                    self.registry.clear(event.entry.key, Flag.UNPASSED)
                if event.kind is EventKind.DESTROY and publishable(event.entry):
                    self.deaths.append((group, self.registry.hashes.flow(event.entry.key)))


class Fast(Slow):
    """The pump, and the reference for what it leaves."""

    def __init__(self) -> None:
        registry = NativeRegistry(FlowHash(SECRET))
        super().__init__(registry)
        random = Incarnations(42)
        self.publisher = Publisher(registry, random)
        self.raw = self.native = 0
        self.pump = EventPump(
            registry.table, random, room=ROOM, slow_flags=SLOW, passed_by=Flag.PASSED_BY,
            unpassed=Flag.UNPASSED, own_port=OWN_PORT,
        )  # fmt: skip

    def on_message(self, message: bytes) -> None:
        raw, runs, counts, deaths = self.pump.feed(message)
        for epoch, payload, count in runs:
            assert len(payload) <= ROOM
            deltas = decode_deltas(payload, header_epoch=epoch)
            assert len(deltas) == count
            self.said += [
                epoch.to_bytes(8, "big") + encode_delta(delta, header_epoch=epoch)
                for delta in deltas
            ]
        for name, by in zip(("first", "updates", "destroys"), counts, strict=True):
            if by:
                self.publisher.counters[name] += by
        self.deaths += deaths
        self.raw += raw
        self.native += not raw
        if raw:
            assert not runs
            super().on_message(message)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_the_same_is_said_and_known(steps: list[Event | Hold | FlagAll | Labelled]) -> None:
    slow, fast = Slow(Registry(FlowHash(SECRET))), Fast()
    for step in [Hold({1: 5, 2: 6}, frozenset()), *steps]:
        match step:
            case Hold():
                slow.hold = fast.hold = step
                fast.pump.hold(step.epochs, step.passing)
            case FlagAll(group, flags):
                slow.registry.set_all(group, flags)
                fast.registry.set_all(group, flags)
            case Labelled(labelled):
                slow.publisher.labelled = fast.publisher.labelled = labelled
                fast.pump.look_up_first(labelled)
            case Event():
                slow.on_message(step.message())
                fast.on_message(step.message())
        assert slow.said == fast.said
        assert (slow.deaths, slow.others) == (fast.deaths, fast.others)
        for flow in FLOWS:
            assert slow.registry.get(flow.key) == fast.registry.get(flow.key)
    assert slow.publisher.counters == fast.publisher.counters
    for group in (1, 2):
        assert slow.registry.digest(group) == fast.registry.digest(group)


PLAIN = replace(tcp(1), mark=1 << 28 | 3)


@pytest.mark.parametrize(
    ("event", "raw", "said"),
    [
        (Event(EventKind.NEW, PLAIN), False, 1),
        (Event(EventKind.UPDATE, PLAIN), False, 1),
        (Event(EventKind.UPDATE, replace(PLAIN, tcp=None)), True, 1),
        (Event(EventKind.UPDATE, replace(PLAIN, status=0x4E)), True, 1),
        (Event(EventKind.NEW, replace(PLAIN, status=0x08)), False, 0),
        (Event(EventKind.NEW, replace(PLAIN, helper="ftp")), True, 1),
        (Event(EventKind.NEW, PLAIN, OWN_PORT), False, 0),
        (Event(EventKind.NEW, replace(PLAIN, mark=3)), False, 0),
        (Event(EventKind.DESTROY, replace(PLAIN, mark=3)), False, 0),
        (Event(EventKind.DESTROY, PLAIN), False, 0),
        (Event(EventKind.NEW, replace(udp(1), mark=1 << 28)), False, 1),
    ],
)
def test_what_is_plain_does_not_reach_python(event: Event, raw: bool, said: int) -> None:
    fast = Fast()
    fast.hold = Hold({1: 5}, frozenset())
    fast.pump.hold({1: 5}, ())
    fast.on_message(event.message())
    assert (fast.raw, len([one for one in fast.said if isinstance(one, bytes)])) == (raw, said)


def test_the_life_of_a_connection_is_all_native() -> None:
    fast = Fast()
    fast.hold = Hold({1: 5}, frozenset())
    fast.pump.hold({1: 5}, ())
    for event in (
        Event(EventKind.NEW, replace(PLAIN, status=0x18, tcp=STATES[2])),
        Event(EventKind.UPDATE, PLAIN),
        Event(EventKind.UPDATE, replace(PLAIN, tcp=STATES[4])),
        Event(EventKind.DESTROY, PLAIN),
    ):
        fast.on_message(event.message())
    assert (fast.raw, fast.native) == (0, 4)
    assert fast.publisher.counters == Counter(first=1, updates=1, destroys=1)
    assert len(fast.registry) == 0


@pytest.mark.parametrize("flag", [Flag.ADOPTED, Flag.LIBERAL])
def test_flows_that_the_holder_watches_are_left_to_it(flag: Flag) -> None:
    fast = Fast()
    fast.hold = Hold({1: 5}, frozenset())
    fast.pump.hold({1: 5}, ())
    fast.on_message(Event(EventKind.NEW, PLAIN).message())
    fast.registry.set(PLAIN.key, flag)
    fast.on_message(Event(EventKind.DESTROY, PLAIN).message())
    assert fast.raw == 1


def test_what_is_no_conntrack_event_and_what_is_damaged_come_out_raw() -> None:
    fast = Fast()
    message = Event(EventKind.NEW, PLAIN).message()
    for odd in (
        write_message(0x200, 0x600, 0, []),
        message[:-1],
        message + message,
        message[:20] + b"\xff\xff" + message[22:],
        b"",
    ):
        assert fast.pump.feed(odd)[0]


def test_versions_keep_their_count_within_an_epoch() -> None:
    fast, slow = Fast(), Slow(Registry(FlowHash(SECRET)))
    for one in (fast, slow):
        one.hold = Hold({1: 5}, frozenset())
        one.registry.put(PLAIN, 9, Version(5, 300))
    fast.pump.hold({1: 5}, ())
    for step in (5, 6):
        for one in (fast, slow):
            one.hold = Hold({1: step}, frozenset())
        fast.pump.hold({1: step}, ())
        changed = replace(PLAIN, tcp=STATES[4 if step == 5 else 3])
        for kind in (EventKind.UPDATE, EventKind.DESTROY)[: 1 if step == 5 else 2]:
            fast.on_message(Event(kind, changed).message())
            slow.on_message(Event(kind, changed).message())
    assert fast.said == slow.said
    assert fast.raw == 0


def test_incarnations_are_those_of_splitmix64() -> None:
    # Vectors of the reference implementation for seed 1234567.
    random = Incarnations(1234567)
    assert [random.getrandbits(64) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert Incarnations(1234567).getrandbits(32) == 6457827717110365317 >> 32
