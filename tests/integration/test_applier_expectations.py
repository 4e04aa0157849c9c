"""Masters, children and expectations in a real kernel, and what happens when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hafw.flow import IPS_EXPECTED, FlowEntry, SeqAdj
from hafw.kernel.netns import entered
from sync.applier import Applier
from sync.expect_table import ExpectTable
from sync.ops import (
    Create,
    CreateExpectation,
    Pristine,
    Remove,
    RemoveExpectation,
    Replace,
    Update,
)
from tests.integration.ct_spaces import inside, spaces
from tests.integration.syncd_world import GATEWAY_RULES
from tests.unit.sync.sync_flows import tcp
from tests.unit.sync.test_expected import MASTER, expectation

pytestmark = pytest.mark.integration

KEY = expectation().key
CHILD = replace(tcp(50), status=tcp().status | IPS_EXPECTED, master=MASTER.key.orig)


@pytest.fixture
def table() -> ExpectTable:
    return ExpectTable()


@pytest.fixture
def applier(table: ExpectTable) -> Iterator[Applier]:
    with spaces("applier") as (space,):
        inside(space, "nft", "-f", "-", stdin=GATEWAY_RULES)
        with entered(space):
            applier = Applier(hold_s=600, expectations_of=table.of)
        yield applier
        applier.close()


def entry(applier: Applier, flow: FlowEntry) -> FlowEntry:
    found = applier.get(flow.key)
    assert found is not None
    return found


def test_an_expectation_is_made_as_it_was_said(applier: Applier) -> None:
    applier.apply([Create(MASTER), CreateExpectation(expectation())])
    made = applier.get_expectation(KEY)
    assert made is not None
    assert replace(made, timeout_s=300) == expectation()
    applier.apply([CreateExpectation(expectation())])  # Once more is no error.
    assert made.timeout_s >= 298
    longer = replace(expectation(), timeout_s=3000)
    applier.apply([RemoveExpectation(MASTER.key, KEY), CreateExpectation(longer)])
    made = applier.get_expectation(KEY)
    assert made is not None
    assert made.timeout_s >= 2998, "not that of the helper's policy, 300"
    applier.apply([RemoveExpectation(MASTER.key, KEY), RemoveExpectation(MASTER.key, KEY)])
    assert applier.get_expectation(KEY) is None
    assert {name for name in applier.counters if "E" in name} == {"delete_ENOENT"}


@pytest.mark.parametrize("op", [Replace, Pristine])
def test_a_replaced_master_expects_again(
    applier: Applier, table: ExpectTable, op: type[Replace | Pristine]
) -> None:
    applier.apply([Create(MASTER), CreateExpectation(expectation())])
    applier.apply([op(MASTER)])
    assert applier.get_expectation(KEY) is None, "the kernel deletes it with its master"
    table.put(replace(expectation(), timeout_s=3000))
    applier.apply([op(MASTER)])
    again = applier.get_expectation(KEY)
    assert again is not None
    assert again.timeout_s >= 2998
    assert not applier.refused


def test_without_its_master_an_expectation_is_counted(applier: Applier) -> None:
    applier.apply([CreateExpectation(expectation()), Create(MASTER)])
    assert applier.counters["createexpectation_ENOENT"] == 1
    applier.apply([CreateExpectation(expectation())])
    assert applier.get_expectation(KEY) is not None


def test_a_child_has_its_master_or_is_a_flow_of_its_own(applier: Applier) -> None:
    applier.apply([Create(CHILD)])
    assert entry(applier, CHILD).master is None
    assert applier.counters["create_ENOENT"] == 1
    # The sender's is an expected flow, ours is not: the update finds that out.
    applier.apply([Update(replace(CHILD, mark=CHILD.mark | 9))])
    assert applier.counters["updated_as_it_is"] == 1
    assert entry(applier, CHILD).mark == CHILD.mark | 9
    applier.apply([Create(MASTER), Remove(CHILD.key), Create(CHILD)])
    assert entry(applier, CHILD).master == MASTER.key.orig
    assert entry(applier, CHILD).status & IPS_EXPECTED
    applier.apply([Update(replace(CHILD, mark=CHILD.mark | 5))])
    assert entry(applier, CHILD).mark == CHILD.mark | 5
    assert applier.counters["updated_as_it_is"] == 1
    assert not applier.refused


def test_sequence_adjustment_at_creation_and_by_update(applier: Applier) -> None:
    first = (SeqAdj(1000, 0, 4), SeqAdj(7, -2, -3))
    applier.apply([Create(replace(MASTER, seqadj=first))])
    assert entry(applier, MASTER).seqadj == first
    second = (SeqAdj(2000, 4, 8), first[1])
    applier.apply([Update(replace(MASTER, seqadj=second))])
    assert entry(applier, MASTER).seqadj == second
    applier.apply([Replace(replace(MASTER, seqadj=second))])
    assert entry(applier, MASTER).seqadj == second
