"""Expectations in ctnetlink, both ways: events, dumps and look-ups in; requests out. Pure.

Shapes are those of `ctnetlink_exp_dump_expect` and `ctnetlink_create_expect`. A creation without
NLM_F_EXCL refreshes an expectation that is there already; without its master it is ENOENT, on a
master without helper EOPNOTSUPP. A DELETE without a tuple would delete every expectation of the
namespace: `build_expect_delete` cannot make one, and `is_expect_delete_of_one` is the barrier.
"""

from __future__ import annotations

from dataclasses import dataclass

from hafw.flow import Expectation, ExpectNat, FlowKey, Tuple
from sync import ctnetlink_layout as nl
from sync.ctnetlink_build import _message, _padded, _tuple, _u16, _u32
from sync.ctnetlink_nested import attributes as _attributes
from sync.ctnetlink_nested import value as _value
from sync.ctnetlink_parse import (
    Buffer,
    CtEvent,
    EventKind,
    MalformedMessageError,
    _entry,
    _errno,
    _messages,
)
from sync.ctnetlink_parse import _tuple as _read_tuple

__all__ = [
    "ExpectEvent",
    "ExpectPart",
    "build_expect_create",
    "build_expect_delete",
    "build_expect_dump",
    "build_expect_get",
    "is_expect_delete_of_one",
    "parse_expect_dump",
    "parse_mixed_events",
]

_H_TIMEOUT = nl.attribute(nl.CTA_EXPECT_TIMEOUT, 4)
_H_ZONE = nl.attribute(nl.CTA_EXPECT_ZONE, 2)
_H_FLAGS = nl.attribute(nl.CTA_EXPECT_FLAGS, 4)
_H_CLASS = nl.attribute(nl.CTA_EXPECT_CLASS, 4)
_H_NAT_DIR = nl.attribute(nl.CTA_EXPECT_NAT_DIR, 4)
_WORDS = frozenset({nl.CTA_EXPECT_TIMEOUT, nl.CTA_EXPECT_FLAGS, nl.CTA_EXPECT_CLASS})


@dataclass(frozen=True, slots=True)
class ExpectEvent:
    """An expectation was made (or changed), or is gone: used, expired, deleted, or its master is.

    `pid` is the port id of the socket that asked; 0 for packets, timers *and for the deletion of
    the master by anybody*.
    """

    destroyed: bool
    expectation: Expectation
    pid: int


@dataclass(frozen=True, slots=True)
class ExpectPart:
    """What one receive of a dump held. `errno` is None until the dump is over, then 0 if whole."""

    expectations: list[Expectation]
    errno: int | None


def parse_mixed_events(buffer: Buffer) -> list[CtEvent | ExpectEvent]:
    """The events of flows and of expectations in what was received, in order.

    Raises MalformedMessageError.
    """
    events: list[CtEvent | ExpectEvent] = []
    for kind, flags, pid, start, end in _messages(buffer):
        if kind == nl.CT_NEW:
            what = EventKind.NEW if flags & nl.NLM_F_CREATE else EventKind.UPDATE
            entry, time_ns = _entry(buffer, start, end)
            events.append(CtEvent(what, entry, pid, time_ns))
        elif kind == nl.CT_DELETE:
            entry, time_ns = _entry(buffer, start, end)
            events.append(CtEvent(EventKind.DESTROY, entry, pid, time_ns))
        elif kind in (nl.EXP_NEW, nl.EXP_DELETE):
            expectation = _expectation(buffer, start, end)
            events.append(ExpectEvent(kind == nl.EXP_DELETE, expectation, pid))
    return events


def parse_expect_dump(buffer: Buffer) -> ExpectPart:
    """The expectations of one receive of a dump or a GET. Raises MalformedMessageError."""
    found: list[Expectation] = []
    errno: int | None = None
    for kind, _flags, _pid, start, end in _messages(buffer):
        if kind == nl.EXP_NEW:
            found.append(_expectation(buffer, start, end))
        elif kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
            errno = _errno(buffer, start - 4, end)
    return ExpectPart(found, errno)


def _expectation(buffer: Buffer, offset: int, end: int) -> Expectation:
    tuples: dict[int, Tuple] = {}
    words: dict[int, int] = {}
    zone = 0
    nat: ExpectNat | None = None
    function: str | None = None
    helper: str | None = None
    for kind, start, stop in _attributes(buffer, offset, end):
        if kind in (nl.CTA_EXPECT_MASTER, nl.CTA_EXPECT_TUPLE, nl.CTA_EXPECT_MASK):
            tuples[kind] = _read_tuple(buffer, start, stop)[0]
        elif kind in _WORDS:
            words[kind] = _value(nl.VALUE_U32, buffer, start, stop)
        elif kind == nl.CTA_EXPECT_ZONE:
            zone = _value(nl.VALUE_U16, buffer, start, stop)
        elif kind == nl.CTA_EXPECT_NAT:
            nat = _nat(buffer, start, stop)
        elif kind == nl.CTA_EXPECT_FN:
            function = _text(buffer, start, stop)
        elif kind == nl.CTA_EXPECT_HELP_NAME:
            helper = _text(buffer, start, stop)
    if len(tuples) != 3:
        raise MalformedMessageError("expectation without master, tuple and mask")
    mask = tuples[nl.CTA_EXPECT_MASK]
    return Expectation(
        FlowKey(zone, tuples[nl.CTA_EXPECT_MASTER]),
        tuples[nl.CTA_EXPECT_TUPLE],
        mask.src,
        mask.sport,
        words.get(nl.CTA_EXPECT_TIMEOUT, 0),
        words.get(nl.CTA_EXPECT_FLAGS, 0),
        words.get(nl.CTA_EXPECT_CLASS, 0),
        nat,
        function,
        helper,
    )


def _nat(buffer: Buffer, start: int, end: int) -> ExpectNat:
    direction = 0
    source: Tuple | None = None
    for kind, at, stop in _attributes(buffer, start, end):
        if kind == nl.CTA_EXPECT_NAT_DIR:
            direction = _value(nl.VALUE_U32, buffer, at, stop)
        elif kind == nl.CTA_EXPECT_NAT_TUPLE:
            source = _read_tuple(buffer, at, stop)[0]
    if source is None:
        raise MalformedMessageError("translation of an expectation without a tuple")
    return ExpectNat(direction, source.src, source.sport)


def _text(buffer: Buffer, start: int, end: int) -> str | None:
    return bytes(buffer[start:end]).split(b"\0")[0].decode("ascii", "replace") or None


def build_expect_create(expectation: Expectation, *, seq: int = 0) -> bytes:
    """A request that makes `expectation`, or refreshes it where it is."""
    expected = expectation.expected
    none = bytes(len(expected.src))
    mask = Tuple(
        expected.family,
        expected.proto,
        expectation.mask_src,
        none,
        expectation.mask_sport,
        0,
    )
    parts = [
        _tuple(nl.CTA_EXPECT_MASTER, expectation.master.orig),
        _tuple(nl.CTA_EXPECT_TUPLE, expected),
        _tuple(nl.CTA_EXPECT_MASK, mask),
        _u32(_H_TIMEOUT, expectation.timeout_s),
        _u32(_H_FLAGS, expectation.flags),
        _u32(_H_CLASS, expectation.policy_class),
    ]
    if expectation.master.zone:
        parts.append(_u16(_H_ZONE, expectation.master.zone))
    if (nat := expectation.nat) is not None:
        source = Tuple(expected.family, expected.proto, nat.address, none, nat.port, 0)
        inner = _u32(_H_NAT_DIR, nat.direction) + _tuple(nl.CTA_EXPECT_NAT_TUPLE, source)
        parts.append(nl.nest(nl.CTA_EXPECT_NAT, len(inner)) + inner)
    if expectation.function is not None:
        parts.append(_string(nl.CTA_EXPECT_FN, expectation.function))
    if expectation.helper is not None:
        parts.append(_string(nl.CTA_EXPECT_HELP_NAME, expectation.helper))
    flags = nl.NLM_F_REQUEST | nl.NLM_F_CREATE
    return _message(nl.EXP_NEW, flags, seq, expected.family, parts)


def build_expect_delete(key: FlowKey, *, seq: int = 0) -> bytes:
    """A request that deletes the expectation of this tuple; ENOENT if there is none."""
    return _message(nl.EXP_DELETE, nl.NLM_F_REQUEST, seq, key.orig.family, _named(key))


def build_expect_get(key: FlowKey, *, seq: int = 0) -> bytes:
    """A request for one expectation, answered by it or by ENOENT."""
    return _message(nl.EXP_GET, nl.NLM_F_REQUEST, seq, key.orig.family, _named(key))


def build_expect_dump(*, seq: int = 0) -> bytes:
    """A request for all expectations of both families."""
    return _message(nl.EXP_GET, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, seq, 0, [])


def is_expect_delete_of_one(message: bytes) -> bool:
    """A DELETE whose first attribute is the tuple of an expectation, of full size."""
    if len(message) < nl.HEADER_BYTES + 4:
        return False
    length, kind = nl.NLA.unpack_from(message, nl.HEADER_BYTES)
    return bool(
        nl.NLMSG.unpack_from(message)[1] == nl.EXP_DELETE
        and kind == nl.CTA_EXPECT_TUPLE | nl.NLA_F_NESTED
        and length >= 4 + nl.V4_PLAIN.size
        and nl.HEADER_BYTES + length <= len(message)
    )


def _named(key: FlowKey) -> list[bytes]:
    parts = [_tuple(nl.CTA_EXPECT_TUPLE, key.orig)]
    if key.zone:
        parts.append(_u16(_H_ZONE, key.zone))
    return parts


def _string(kind: int, text: str) -> bytes:
    return _padded(kind, text.encode("ascii") + b"\0")
