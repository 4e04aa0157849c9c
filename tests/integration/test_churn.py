"""Both tables equal after churn under loss, and the judge of that finds what is planted."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from hafw.errors import StateError
from hafw.flow import FlowEntry, FlowKey, SctpState, SeqAdj, TcpState, Tuple, hafw_mark
from hafw.kernel.netns import entered
from hafw.lab.churn import ChurnPlan, render_churn, run_churn
from hafw.lab.ct_compare import compare, timeout_problem
from hafw.lab.sync_network import GROUP
from hafw.lab.sync_spaces import DAEMON_ANSWERS_S, sync_spaces
from sync.ctnetlink import build_create
from sync.ctsocket import RequestSocket

pytestmark = pytest.mark.integration

HOLD_S = 900
LABELS = bytes([0x41]) + bytes(15)
SEQADJ = (SeqAdj(1000, 0, 6), SeqAdj(0, 0, 0))


def entry(number: int) -> FlowEntry:
    """A flow with everything."""
    client, server, vip = (
        ip_address(text).packed for text in ("192.0.2.10", "198.51.100.10", "198.51.100.254")
    )
    return FlowEntry(
        FlowKey(2, Tuple(2, 6, client, server, 1000 + number, 21)),
        Tuple(2, 6, server, vip, 21, 30_000 + number),
        0x0E,
        600,
        hafw_mark(GROUP, 1, 1) | 0x77,
        TcpState(3, 0x23, 0x23, 7, 9),
        "ftp",
        LABELS,
        None,
        SEQADJ,
    )


def sctp_entry(number: int) -> FlowEntry:
    one = entry(number)
    orig, reply = replace(one.key.orig, proto=132), replace(one.reply, proto=132)
    return replace(
        one, key=FlowKey(2, orig), reply=reply, tcp=None, helper=None, seqadj=None,
        sctp=SctpState(4, 17, 19),
    )  # fmt: skip


# What is planted in the replica -> what must be found, and nothing else.
PLANTED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "NAT": ({"reply_port": 2}, {"reply"}),
    "zone": ({"zone": 3}, {"missing", "left over"}),
    "helper": ({"helper": None}, {"helper", "status"}),  # IPS_HELPER goes with it
    "mark": ({"mark": hafw_mark(GROUP, 1, 1) | 0x76}, {"mark"}),
    "owner in the mark": ({"mark": hafw_mark(GROUP, 2, 2) | 0x77}, {"mark"}),
    "labels": ({"labels": bytes([0x40]) + bytes(15)}, {"labels"}),
    "no labels": ({"labels": None}, {"labels"}),
    "seqadj": ({"seqadj": (SeqAdj(1000, 0, 7), SeqAdj(0, 0, 0))}, {"seqadj"}),
    "no seqadj": ({"seqadj": None}, {"seqadj", "status"}),  # IPS_SEQ_ADJUST goes with it
    "window scale": ({"tcp": TcpState(3, 0x23, 0x23, 7, 8)}, {"wscale"}),
    "TCP state": ({"tcp": TcpState(4, 0x23, 0x23, 7, 9)}, {"tcp_state"}),
    "TCP flags": ({"tcp": TcpState(3, 0x21, 0x23, 7, 9)}, {"tcp_flags"}),
    "liberal, learnt": ({"tcp": TcpState(3, 0x0B, 0x03, 7, 9)}, set()),
    "octets under way": ({"owner_tcp": TcpState(3, 0x33, 0x23, 7, 9)}, set()),
    "believed under way": ({"tcp": TcpState(3, 0x33, 0x23, 7, 9)}, {"tcp_flags"}),
    "status": ({"status": 0x0A}, {"status"}),
    "synproxy": ({"synproxy": 5}, {"synproxy"}),
    "SCTP, nothing": ({}, set()),
    "SCTP state": ({"sctp": SctpState(5, 17, 19)}, {"sctp"}),
    "SCTP tag": ({"sctp": SctpState(4, 17, 20)}, {"sctp"}),
    "SCTP, needless": ({"owner_status": 0x0A}, {"needless"}),
    "hold": ({"timeout_s": HOLD_S}, set()),
    "outlives": ({"timeout_s": HOLD_S + 60}, {"timeout above owner and hold"}),
    "dies early": ({"timeout_s": 500}, {"timeout below the owner's"}),
    "missing": ({"absent": True}, {"missing"}),
    "left over": ({"owner_absent": True}, {"left over"}),
    "needless": ({"owner_status": 0x08}, {"needless"}),
    "own flow of the replica": ({"owner_absent": True, "mark": 0x77}, set()),
}


def with_synproxy(message: bytes, isn: int) -> bytes:
    values = b"".join(struct.pack("=HH", 8, kind) + struct.pack(">I", isn) for kind in (1, 2, 3))
    nest = struct.pack("=HH", 4 + len(values), 0x8000 | 24) + values
    return struct.pack("=I", len(message) + len(nest)) + message[4:] + nest


def test_each_planted_difference_is_found_and_nothing_else() -> None:
    mine: list[bytes] = []
    theirs: list[bytes] = []
    for number, (name, (planted, _)) in enumerate(PLANTED.items()):
        change = dict(planted)
        one = sctp_entry(number) if name.startswith("SCTP") else entry(number)
        if not change.pop("owner_absent", False):
            status, tcp = change.pop("owner_status", one.status), change.pop("owner_tcp", one.tcp)
            mine.append(build_create(replace(one, status=status, tcp=tcp), pristine=False))
        if change.pop("absent", False):
            continue
        other = replace(one, key=FlowKey(change.pop("zone", 2), one.key.orig))
        port = other.reply.dport + 1000 * change.pop("reply_port", 0)
        other = replace(other, reply=replace(other.reply, dport=port))
        isn = change.pop("synproxy", 0)
        message = build_create(replace(other, **change), pristine=False)
        theirs.append(with_synproxy(message, isn) if isn else message)
    with sync_spaces(labels=True) as spaces:
        for node, messages in ((spaces[1], mine), (spaces[2], theirs)):
            with entered(node.space):
                sock = RequestSocket()
            with sock:
                codes = sock.execute(messages)
            assert not any(codes), codes
        result = compare(spaces[1].space, spaces[2].space, hold_s=HOLD_S)
    found: dict[str, set[str]] = {name: set() for name in PLANTED}
    for what, key in result.keys:
        number = next(part for part in key if isinstance(part, int) and part >= 1000) - 1000
        found[list(PLANTED)[number]].add(what)
    assert found == {name: wanted for name, (_, wanted) in PLANTED.items()}
    assert (result.owner, result.not_worth) == (len(PLANTED) - 4, 2)
    assert all(result.examples[what] for what in result.differences)


def test_the_hold_bound() -> None:
    assert timeout_problem(100, 900, 900, 0) == ""
    assert timeout_problem(432_000, 431_999, 900, 0) == ""
    assert timeout_problem(432_000, 432_000, 900, 1.5) == ""
    assert timeout_problem(100, 90, 900, 2) == "timeout below the owner's"
    assert timeout_problem(100, 910, 900, 2) == "timeout above owner and hold"
    assert timeout_problem(1000, 1020, 900, 2) == "timeout above owner and hold"
    assert timeout_problem(432_000, 431_950, 900, 1, refreshed_s=60) == ""
    assert timeout_problem(432_000, 431_950, 900, 1, refreshed_s=30) == "timeout below the owner's"
    assert timeout_problem(431_999, 890, 900, 1, refreshed_s=10) == "timeout below the owner's"
    assert timeout_problem(431_999, 890, 900, 1, refreshed_s=10, sends=True) == ""
    assert timeout_problem(431_999, 880, 900, 1, refreshed_s=10, sends=True) != ""


def test_a_syncd_that_does_not_start_says_why() -> None:
    with sync_spaces(hold_s=60, refresh_s=60) as spaces:
        began_at = time.monotonic()
        with pytest.raises(StateError, match=r"gw1's syncd ended with 1 and said: .*refresh_s"):
            spaces.start()
        assert time.monotonic() - began_at < DAEMON_ANSWERS_S


def test_tables_are_equal_after_churn_under_loss_and_a_restart() -> None:
    plan = ChurnPlan(
        flows=5_000,
        standing=1_500,
        rate=1_500,
        connections=20,
        sweep="take",
        bound_s=30,
    )
    report = run_churn(plan, lambda _text: None)
    assert not report.problems, render_churn(report)
    # It was what it says: loss, a restart, every kind of trouble, and many flows at the end.
    assert report.frames_lost > 0
    assert report.down_s > 0
    assert report.compared > 1_000
    for kind in ("change", "delete", "squatters", "tuples_reused", "translations_reused"):
        assert report.requests[kind] > 10, report.requests
    assert report.replica_counters["clash_repaired"] > 0
    assert report.strict_again_s is not None


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_tables_are_equal_after_a_million_flows() -> None:
    report = run_churn(ChurnPlan(), lambda _text: None)
    assert not report.problems, render_churn(report)
