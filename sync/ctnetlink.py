"""The ctnetlink codec, both ways: what the kernel says of flows, and what we ask of it. Pure.

`sync.ctnetlink_parse` reads events, dumps and errors; `sync.ctnetlink_build` writes requests;
`sync.ctnetlink_expect` does both for expectations.
`sync.ctsocket` is the shell that carries the bytes. The traps behind the choices here are written
where they bite: creation form of NAT, XORed marks, the DELETE that flushes a table.
"""

from __future__ import annotations

from sync.ctnetlink_build import (
    TCP_FLAGS_UPDATE_MASK,
    build_create,
    build_delete,
    build_dump,
    build_get,
    build_update,
    clear_liberal,
    is_delete_of_one,
    tcp_is_learnt,
)
from sync.ctnetlink_expect import (
    ExpectEvent,
    ExpectPart,
    build_expect_create,
    build_expect_delete,
    build_expect_dump,
    build_expect_get,
    is_expect_delete_of_one,
    parse_expect_dump,
    parse_mixed_events,
)
from sync.ctnetlink_parse import (
    CtEvent,
    DumpPart,
    EventKind,
    MalformedMessageError,
    dump_errno,
    parse_dump,
    parse_errors,
    parse_events,
)

__all__ = [
    "TCP_FLAGS_UPDATE_MASK",
    "CtEvent",
    "DumpPart",
    "EventKind",
    "ExpectEvent",
    "ExpectPart",
    "MalformedMessageError",
    "build_create",
    "build_delete",
    "build_dump",
    "build_expect_create",
    "build_expect_delete",
    "build_expect_dump",
    "build_expect_get",
    "build_get",
    "build_update",
    "clear_liberal",
    "dump_errno",
    "is_delete_of_one",
    "is_expect_delete_of_one",
    "parse_dump",
    "parse_errors",
    "parse_events",
    "parse_expect_dump",
    "parse_mixed_events",
    "tcp_is_learnt",
]
