"""What Raft agreed on as leased uses it: who ranks where, who claims nothing, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.agreed import Group, Member, State
from cluster.claims import heirs
from cluster.heartbeat import Prepare, Release
from cluster.lease_types import Announce, Effect, StandingSaid
from cluster.standing import read_standing, standing_of, write_standing
from hafw.messages import Standing
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, Bench, T, sent

NOBODY = Standing({}, [], [])


def told(bench: Bench, standing: Standing) -> list[Effect]:
    return bench.core.handle(StandingSaid(standing), now_ns=bench.now)


def first_claim(bench: Bench) -> float | None:
    """Heartbeats after voting begins until the node claims; None: not within 10."""
    bench.pass_time(2010 * MS, bench.calm)
    start = bench.now
    for _ in range(200):
        if sent(bench.pass_time(MS, bench.calm), Prepare):
            return (bench.now - start) / HEARTBEAT
    return None


@pytest.mark.parametrize(
    ("node", "standing", "first"),
    [
        (1, NOBODY, True),
        (2, NOBODY, False),
        (1, Standing({1: [2, 1]}, [], []), False),
        (2, Standing({1: [2, 1]}, [], []), True),
        (1, Standing({}, [1], []), False),
        (2, Standing({}, [1], []), True),
        (2, Standing({1: [2, 7]}, [], []), False),  # Other nodes than the file's: ignored.
    ],
)
def test_the_agreed_order_says_who_claims_first(
    node: int, standing: Standing, first: bool
) -> None:
    bench = Bench(node)
    told(bench, standing)
    waited = first_claim(bench)
    assert waited is not None
    assert (waited < 1) == first


def test_in_maintenance_nothing_is_claimed_even_if_nobody_else_is_there() -> None:
    bench = Bench()
    told(bench, Standing({}, [], [1]))
    effects = bench.pass_time(2100 * MS + 40 * T, bench.calm_with(synced=False))
    assert sent(effects, Prepare) == []
    told(bench, NOBODY)
    assert sent(bench.pass_time(T, bench.calm), Prepare)


def test_who_goes_into_maintenance_as_holder_keeps_what_it_has() -> None:
    bench = Bench()
    bench.hold()
    told(bench, Standing({}, [], [1]))
    for _ in range(20):
        bench.renew()
    assert bench.core.groups[1].active


def test_a_carrier_lost_gives_the_group_to_a_drained_node_last() -> None:
    bench = Bench()
    bench.hold()
    told(bench, Standing({1: [1, 2]}, [2], []))
    group = bench.core.groups[1]
    assert heirs(bench.core.view, group.params, bench.now) == [2]  # The only one there is.
    assert not sent(bench.renew(), Release)
    assert not [e for e in bench.renew() if isinstance(e, Announce)]


def test_the_file_says_what_was_agreed(tmp_path: Path) -> None:
    state = State(
        members=(
            Member("a", 1, "gateway", {}, "draining"),
            Member("b", 2, "gateway", {}),
            Member("c", 3, "gateway", {}, "maintenance"),
            Member("d", 4, "gateway", {}, "left"),
        ),
        groups=(Group("g", 5, ("a", "b")), Group("h", 6, ("a", "b"), preferred=("b", "a"))),
    )
    standing = standing_of(state)
    assert standing == Standing({5: [1, 2], 6: [2, 1]}, [1], [3, 4])
    file = tmp_path / "standing"
    assert read_standing(file) == NOBODY
    write_standing(file, standing)
    assert read_standing(file) == standing
    file.write_bytes(file.read_bytes()[:-9])
    assert read_standing(file) == NOBODY
