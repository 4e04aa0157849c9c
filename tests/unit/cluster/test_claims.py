"""Who claims first, and how long an unsynced candidate waits."""

from __future__ import annotations

import pytest

from cluster.claims import Patience, rank

ORDER = (1, 2, 3)


@pytest.mark.parametrize(
    ("node", "alive", "synced", "place"),
    [
        (1, {2, 3}, {1, 2, 3}, 0),
        (2, {1, 3}, {1, 2, 3}, 1),
        (2, {3}, {2, 3}, 0),  # The first is gone.
        (1, {2, 3}, {2, 3}, 2),  # Synced ones first, in the group's order among themselves.
        (3, {1, 2}, {3}, 0),
        (2, {1, 3}, set(), 1),
        (3, set(), set(), 0),  # It counts itself as alive.
        (9, {1, 2}, {1, 2}, None),  # Not a candidate.
    ],
)
def test_rank(node: int, alive: set[int], synced: set[int], place: int | None) -> None:
    assert rank(node, ORDER, alive=alive, synced=synced) == place


def test_patience_counts_only_without_a_break() -> None:
    patience = Patience(500)
    assert not patience.ripe(0)
    patience.observe(True, 100)
    patience.observe(True, 400)
    assert patience.ripe_ns() == 600
    assert not patience.ripe(599)
    assert patience.ripe(600)
    patience.observe(False, 601)
    assert not patience.ripe(700)
    patience.observe(True, 800)
    assert patience.ripe_ns() == 1300


@pytest.mark.parametrize(
    ("node", "synced", "last", "place"),
    [
        (1, {1, 2, 3}, {1}, 2),  # Drained: behind all others that are synced.
        (2, {1, 2, 3}, {1}, 0),
        (1, {1}, {1}, 0),  # The flows count for more than the drain.
        (1, {1, 2, 3}, {1, 2, 3}, 0),
        (2, set(), {1}, 0),
    ],
)
def test_a_drained_node_ranks_behind_those_that_keep_the_flows(
    node: int, synced: set[int], last: set[int], place: int
) -> None:
    assert rank(node, ORDER, alive={1, 2, 3}, synced=synced, last=last) == place
