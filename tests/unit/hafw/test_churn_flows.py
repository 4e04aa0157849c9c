"""The churn's flows do not clash by themselves."""

from __future__ import annotations

from hafw.flow import FlowEntry
from hafw.lab.churn_flows import flow_of

GRE = 47


def as_kernel_translates(flow: FlowEntry) -> tuple[object, ...]:
    """The reply tuple of GRE: addresses by the mapping, keys as they were (nf_nat_core.c)."""
    orig = flow.key.orig
    return flow.key.zone, flow.reply.src, flow.reply.dst, orig.dport, orig.sport


def test_no_two_gre_flows_have_one_reply_tuple() -> None:
    # Original slots of one port, IPv6 and IPv4, and reply slots of one server.
    slots = [(60_000 * step + kind, 2 * step + kind // 3) for step in range(32) for kind in (0, 3)]
    found: list[FlowEntry] = []
    for number in range(4_000):
        orig_slot, reply_slot = slots[len(found)]
        flow = flow_of(1, number, orig_slot, reply_slot, mark=1 << 28)
        if flow.key.orig.proto == GRE:
            found.append(flow)
        if len(found) == len(slots):
            break
    assert len(found) == len(slots)
    assert len({as_kernel_translates(flow) for flow in found}) == len(found)
