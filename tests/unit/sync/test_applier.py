"""What becomes of refusals: repaired, or kept with their errno."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from hafw.errors import KernelError
from hafw.flow import FlowEntry, FlowKey
from sync.applier import Applier
from sync.ctnetlink import build_delete
from sync.ctsocket import RequestSocket
from sync.ops import Create, Update
from tests.unit.sync.sync_flows import tcp, udp


class Kernel:
    """Answers batches in order: errnos, or the errno with which the socket itself fails."""

    def __init__(self, *answers: list[int] | int) -> None:
        self.answers = list(answers)
        self.entries: list[FlowEntry] = []
        self.asked: list[bytes] = []

    def execute(self, messages: Sequence[bytes]) -> list[int]:
        answer = self.answers.pop(0)
        self.asked += messages
        if isinstance(answer, int):
            raise KernelError(answer, "a batch of requests", "the conntrack socket")
        assert len(answer) == len(messages)
        return answer

    def get(self, key: FlowKey) -> FlowEntry | None:
        """As ctnetlink: by a tuple of either direction."""
        return next((e for e in self.entries if key.orig in (e.key.orig, e.reply)), None)


def applier(kernel: Kernel) -> Applier:
    return Applier(hold_s=900, requests=cast(RequestSocket, kernel))


def test_a_socket_that_fails_during_a_repair_leaves_the_flow_refused() -> None:
    kernel = Kernel([errno.ENOENT, 0], errno.ENOBUFS)
    one = applier(kernel)
    one.apply([Update(udp(1)), Update(udp(2))])
    assert one.take_refused() == {udp(1).key: errno.ENOBUFS}
    assert one.counters["repair_ENOBUFS"] == 1
    assert kernel.answers == []


def test_a_socket_that_fails_while_a_clash_is_resolved_does_too() -> None:
    one = applier(Kernel([errno.EEXIST], errno.ENOBUFS))
    one.apply([Create(tcp())])
    assert one.take_refused() == {tcp().key: errno.ENOBUFS}


def test_a_full_table_and_a_bad_entry_are_told_apart() -> None:
    one = applier(Kernel([errno.ENOMEM, errno.EINVAL, 0]))
    one.apply([Create(udp(1)), Create(udp(2)), Create(udp(3))])
    assert one.take_refused() == {udp(1).key: errno.ENOMEM, udp(2).key: errno.EINVAL}
    assert one.take_refused() == {}


def test_labels_that_this_node_has_no_room_for_are_no_missing_replica() -> None:
    """ENOSPC for an update without them would be another matter."""
    labelled = replace(udp(1), labels=bytes([1]) + bytes(15))
    one = applier(Kernel([errno.ENOSPC, errno.ENOSPC]))
    one.apply([Update(labelled), Update(udp(2))])
    assert one.counters["update_ENOSPC"] == 2
    assert one.take_refused() == {udp(2).key: errno.ENOSPC}


def test_a_replica_whose_timeout_is_fixed_is_replaced() -> None:
    """GRE: an update says the timeout, and the kernel refuses the whole of it."""
    kernel = Kernel([errno.EPERM], [0, 0])
    one = applier(kernel)
    one.apply([Update(udp(1))])
    assert kernel.answers == [], "deleted and created in one write"
    assert one.take_refused() == {}


def test_both_tuples_taken_by_two_flows_are_set_free() -> None:
    """Ports used again: one flow has its original tuple still, another its reply tuple."""
    wanted = udp(1)
    before = replace(wanted, reply=replace(wanted.reply, dport=7))
    squatter = replace(udp(2), reply=wanted.reply)
    kernel = Kernel([errno.EEXIST], [0, 0, 0])
    kernel.entries = [before, squatter]
    one = applier(kernel)
    one.apply([Create(wanted)])
    assert one.take_refused() == {}
    assert kernel.asked[1:3] == [build_delete(before.key), build_delete(squatter.key)]
    assert one.counters["exists_replaced"] == one.counters["clash_repaired"] == 1
    kernel.answers, kernel.entries = [[errno.EEXIST], [0, 0]], [before]
    one.apply([Create(wanted)])
    assert kernel.asked[-2] == build_delete(before.key)
    assert one.counters["clash_repaired"] == 1, "nobody else had a tuple of it"
