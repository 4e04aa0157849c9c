"""The socket filter of the event socket: what is dropped before it is queued. Pure.

Classic BPF (linux/filter.h), run by the kernel for each message of the socket:

* *Our own echo*: a message whose nlmsg_pid is the port of our request socket. Deltas that are
  applied come back as events, one each; a replica would read as many messages as it writes.
* *A TCP or SCTP flow that is not ASSURED*: nothing of it is ever published (`sync.publish`), nor
  its end, so a SYN flood costs syncd nothing. No word of a published flow is lost by this: it was
  ASSURED when it was published, and the kernel never takes that bit away. The NEW of a tuple that
  is used again is dropped too; the DESTROY of the old flow came before it.

All else passes, and what the filter cannot read. It loads in network byte order, and headers of
netlink are in the host's. Attributes are found by the filter's own extensions (net/core/filter.c:
bpf_skb_get_nlattr, bpf_skb_get_nlattr_nest).
"""

from __future__ import annotations

import struct

from hafw.flow import IPPROTO_SCTP, IPPROTO_TCP, IPS_ASSURED
from sync import ctnetlink_layout as nl

__all__ = ["INSTRUCTION_BYTES", "Line", "assemble", "event_filter"]

INSTRUCTION_BYTES = 8
_INSTRUCTION = struct.Struct("=HBBI")
# linux/bpf_common.h and linux/filter.h
_LD_WORD, _LD_HALF, _LD_WORD_X, _LD_BYTE_X = 0x20, 0x28, 0x40, 0x50
_LD_IMM, _LDX_IMM, _TAX = 0x00, 0x01, 0x07
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06
_NLATTR, _NLATTR_NEST = 0xFFFFF000 + 12, 0xFFFFF000 + 16
_TYPE_AT, _PORT_AT = 4, 12
_WHOLE = 0xFFFFFFFF

Line = tuple[int, str, str, int]
"""Code, label to jump to if true, label if false ("" is the next line), operand."""


def event_filter(own_port: int) -> bytes:
    """The program, for a request socket of this port."""
    seen_status = [*_attribute(nl.CTA_STATUS), (_TAX, "", "", 0), (_LD_WORD_X, "", "", 4)]
    seen_proto = [
        *_attribute(nl.CTA_TUPLE_ORIG),
        *_inner(nl.CTA_TUPLE_PROTO),
        *_inner(nl.CTA_PROTO_NUM),
        (_TAX, "", "", 0),
        (_LD_BYTE_X, "", "", 4),
    ]
    return assemble(
        [
            (_LD_WORD, "", "", _PORT_AT),
            (_JEQ, "drop", "", _swapped("=I", own_port)),
            (_LD_HALF, "", "", _TYPE_AT),
            (_JEQ, "flow", "", _swapped("=H", nl.CT_NEW)),
            (_JEQ, "flow", "pass", _swapped("=H", nl.CT_DELETE)),
            "flow",
            *seen_status,
            (_JSET, "pass", "", IPS_ASSURED),
            *seen_proto,
            (_JEQ, "drop", "", IPPROTO_TCP),
            (_JEQ, "drop", "pass", IPPROTO_SCTP),
        ]
    )


def _swapped(host: str, value: int) -> int:
    """What a load in network byte order finds where the host wrote `value`."""
    return int.from_bytes(struct.pack(host, value), "big")


def _attribute(kind: int) -> list[Line]:
    """A = where the attribute begins; a message without it passes."""
    return [
        (_LD_IMM, "", "", nl.HEADER_BYTES),
        (_LDX_IMM, "", "", kind),
        (_LD_WORD, "", "", _NLATTR),
        (_JEQ, "pass", "", 0),
    ]


def _inner(kind: int) -> list[Line]:
    """A = where the attribute begins inside the nest at A."""
    return [(_LDX_IMM, "", "", kind), (_LD_WORD, "", "", _NLATTR_NEST), (_JEQ, "pass", "", 0)]


def assemble(lines: list[Line | str]) -> bytes:
    """Labels to distances; the two endings come last."""
    places = {}
    program: list[Line] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(program)
        else:
            program.append(line)
    places["pass"], places["drop"] = len(program), len(program) + 1
    program += [(_RET, "", "", _WHOLE), (_RET, "", "", 0)]
    made = bytearray()
    for at, (code, true, false, operand) in enumerate(program):
        yes, no = (places[label] - at - 1 if label else 0 for label in (true, false))
        made += _INSTRUCTION.pack(code, yes, no, operand)
    return bytes(made)
