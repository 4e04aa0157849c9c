"""Which conntrack events of a flow become messages to syncd: `ct event set`, part of hafw_cluster.
Pure.

Every message costs the kernel and syncd 1 to 3 us, and a TCP connection without a mask makes seven
or eight. Only a packet with SYN, FIN or RST changes the mask of a TCP flow; all others pass one
comparison:

================== ============================ ============================================
packet             mask                         so that
================== ============================ ============================================
first              assured                      nothing is said before there is something to
                                                replicate; a SYN without an answer says
                                                nothing, ever
SYN, ACK           `ESTABLISHED_EVENTS`         ASSURED (with the state and the windows) and the
                                                end are said
FIN or RST         and protoinfo                each closing state is said: else the replica of a
of an assured flow                              closed flow would stay for days
================== ============================ ============================================

UDP, ICMP and the rest keep the mask that the kernel gives (everything: new, reply, assured,
destroy). So do entries that were made by ctnetlink: an adopted TCP flow is assured already, has no
event left but the closing states, marks and its end, and so needs no mask. Flows of the node
itself are silent.

The mask belongs to this kernel's entry alone; it is not replicated. Related flows (data
connections of helpers) begin `related`, not `new`. An ICMP error is `related` too, but to a
confirmed flow.
"""

from __future__ import annotations

from hafw.flow import GROUP_MASK
from hafw.policy.expressions import (
    Expression,
    TableWriter,
    ct_mark_is,
    ct_not_confirmed,
    ct_state,
    ct_status_has,
    event_set,
    jump,
    tcp_flags,
)

__all__ = ["ESTABLISHED_EVENTS", "at_ends", "mask_chain", "silence"]

CHAIN = "tcp_ends"
ESTABLISHED_EVENTS = ("destroy", "reply", "assured", "helper", "mark", "seqadj", "label")
"""What is said of a published flow at any time: its end, and what may change in its life."""

_TCP_ESTABLISHED = tuple(name for name in ESTABLISHED_EVENTS if name != "reply")


def at_ends() -> list[Expression]:
    """The rule of chain prerouting that every TCP packet meets."""
    return [tcp_flags(("fin", "syn", "rst"), (), "!="), jump(CHAIN)]


def mask_chain(table: TableWriter) -> None:
    """The chain for packets with SYN, FIN or RST."""
    table.chain(CHAIN)
    ours = ct_mark_is(GROUP_MASK, 0, "!=")
    table.rule(CHAIN, ct_not_confirmed(), ours, event_set("assured"))
    table.rule(
        CHAIN,
        tcp_flags(("syn", "ack"), ("syn", "ack")),
        ct_state("established"),
        ours,
        event_set(*_TCP_ESTABLISHED),
    )
    table.rule(
        CHAIN,
        tcp_flags(("fin", "rst"), (), "!="),
        ct_status_has("assured"),
        ours,
        event_set(*_TCP_ESTABLISHED, "protoinfo"),
    )


def silence() -> list[Expression]:
    """No event of a flow of the node itself."""
    return [ct_state("new"), event_set()]
