"""Schedules of faults for two gateways without a witness: the seed draws the mix.

Replay one with its trace, as a failure prints it:
    python -m tests.simulation.pair_schedule --seed N [--focus FOCUS] [--mistake MISTAKE]
Count the schedules that each planted mistake takes, at most N:
    python -m tests.simulation.pair_schedule --table N
Run N schedules from a seed on, on one CPU, and say what they found:
    python -m tests.simulation.pair_schedule --seed SEED --many N
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any

from cluster import pair
from cluster.pair import PairWatch
from cluster.session import Verdict
from cluster.view import NodeView
from tests.simulation.lease_node import LEASE_NS, MS, RESTART_WAIT_NS, ViolationError
from tests.simulation.lease_schedule import HEAL_BOUND_NS, HELD_LEASES, Schedule
from tests.simulation.pair_world import HEARTBEAT_NS, PAIR, PairWorld
from tests.simulation.runs import Simulation, patched

KINDS = (
    "all_restart",
    "carrier",
    "clean_stop",
    "cut_all",
    "cut_all",
    "cut_one_way",
    "cut_one_way",
    "disk",
    "flicker",
    "kill",
    "kill_then_stop",
    "late_effects",
    "move",
    "new_epoch",
    "pause",
    "power_cut",
    "quick_restart",
    "slow_network",
    "slow_and_deaf",
    "syncd_silent",
    "unplug",
    "unsynced",
)
"""Kinds of faults: methods of `PairSchedule`. Each schedule draws four."""
FOCUS: dict[str, tuple[str, ...]] = {
    "lateness_ignored": ("late_effects", "pause", "cut_one_way"),
    "slow_work_ignored": ("slow_and_deaf",),
    "held_after_a_beat": ("cut_one_way",),
    "carrier_ignored": ("unplug",),
    "nobody_yields": ("cut_all",),
    "one_way_is_death": ("cut_one_way",),
    "hello_ignored": ("cut_one_way", "quick_restart", "kill"),
    "voting_not_awaited": ("kill", "quick_restart", "cut_one_way"),
    "no_restart_wait": ("kill", "quick_restart", "cut_one_way", "flicker"),
    "bystander_waited_for": ("power_cut", "kill"),
}
"""Kinds of faults that together reach a mistake sooner than the whole mix does. The right code
must stand the same schedules."""
LOSSES = (0.0, 0.0, 0.0001)
"""Of all four copies of a datagram at once: a tenth of each."""


class PairSchedule(Schedule):
    """Faults of one seed, then one gateway or both mended, which must find a holder."""

    world: PairWorld

    def __init__(self, seed: int, focus: str | None = None) -> None:
        self.rng = rng = Random(seed)
        self.world = PairWorld(rng)
        self.world.network.loss = rng.choice(LOSSES)
        self.world.network.least_ns = rng.choice((10_000, 100_000, 500_000))
        self.world.network.double = rng.choice((0.0, 0.1))
        self.mended = False
        kinds = FOCUS[focus] if focus else tuple(rng.choices(KINDS, k=4))
        self.kinds = [getattr(self, f"_{kind}") for kind in kinds]
        self.faulty_ns, self.gap_ns = rng.choice(
            ((400 * MS, 40 * MS), (800 * MS, 120 * MS), (2_000 * MS, 500 * MS))
        )

    def run(self) -> PairWorld:
        """Raises ViolationError."""
        world = self.world
        until = RESTART_WAIT_NS + 6 * LEASE_NS + self.faulty_ns
        world.every(HEARTBEAT_NS // 10, until + HEAL_BOUND_NS, world.look)
        for node in world.nodes.values():
            world.at(self.rng.randrange(20 * MS), lambda node=node: world.start(node))  # type: ignore[misc]
        at = RESTART_WAIT_NS + 6 * LEASE_NS
        while (at := at + 1 + int(self.rng.expovariate(1 / self.gap_ns))) < until:
            world.at(at, self.rng.choice(self.kinds))
        world.run(until)
        well = self._mend()
        held = 0
        while held < HELD_LEASES:
            if world.now >= until + HEAL_BOUND_NS:
                raise ViolationError(f"nobody is ACTIVE and stays so, although {well} are well")
            world.run(world.now + LEASE_NS)
            held = held + 1 if world.served_by(well) else 0
        return world

    def _mend(self) -> list[int]:
        """Mend both, or one of them while the other is gone or cut off."""
        world, rng = self.world, self.rng
        self.mended = True
        well = rng.choice(([1, 2], [1, 2], [1], [2]))
        world.say(f"{well} are mended")
        world.network.loss = 0.0
        world.unslow()
        world.heal(set(PAIR))
        if len(well) == 1:
            world.cut(set(PAIR))
            if rng.random() < 0.5:
                world.power_cut(world.nodes[3 - well[0]])
        for node in (world.nodes[n] for n in well):
            node.disk_least_ns = 0
            node.disk_fails, node.late, node.syncd_up = False, 0.0, True
            world.carrier(node, frozenset())
            node.paused_until = node.busy_until = world.now
            node.disk_ns = MS
            world.start(node)
            world.pump(node)
            world.start(node)  # A stop may have been waiting in its inbox.
        return well

    # ---- fault kinds --------------------------------------------------------------------------

    def _cut(self, pairs: set[tuple[int, int]]) -> None:
        self.world.cut(pairs)
        most_ns = self.rng.choice((LEASE_NS, 3 * LEASE_NS, 12 * LEASE_NS))
        self._later(most_ns, lambda: None if self.mended else self.world.heal(pairs))

    def _cut_all(self) -> None:
        self._cut(set(PAIR))

    def _flicker(self) -> None:
        """Cut and whole again and again, each for about as long as the rules wait."""
        world = self.world
        pairs = self.rng.choice((set(PAIR), {(1, 2)}, {(2, 1)}))
        at = world.now
        for _ in range(4):
            world.at(at, lambda: None if self.mended else world.cut(pairs))
            at += self.rng.randrange(LEASE_NS // 4, 3 * LEASE_NS // 2)
            world.at(at, lambda: None if self.mended else world.heal(pairs))
            at += self.rng.randrange(1, LEASE_NS // 2)

    def _unplug(self) -> None:
        """All cables of one node are out."""
        world, node = self.world, self._holder_or_any()
        world.cut(set(PAIR))
        world.carrier(node, frozenset(("lan", "wan")))

        def plug() -> None:
            if not self.mended:
                world.carrier(node, frozenset())
                world.heal(set(PAIR))

        self._later(12 * LEASE_NS, plug)

    def _slow_and_deaf(self) -> None:
        """A node hears nothing, and is held up over its effects by little."""
        deaf = self.world.nodes[3 - self._holder_or_any().id]
        self._cut({(3 - deaf.id, deaf.id)})
        self.world.disturb(deaf.id)
        deaf.late, deaf.late_ns = 0.2, HEARTBEAT_NS * 5 // 4

        def heal() -> None:
            self.world.disturb(deaf.id)
            deaf.late = 0.0

        self._later(12 * LEASE_NS, heal)

    def _slow_network(self) -> None:
        share, slow_ms = self.rng.choice(((0.02, 100), (0.3, 30), (0.3, 400), (1.0, 30)))
        self.world.slow(share, slow_ms * MS)
        self._later(8 * LEASE_NS, lambda: None if self.mended else self.world.unslow())


# ---- planted mistakes ---------------------------------------------------------------------------


def _never_late(self: PairWatch, now_ns: int, *, votes: bool) -> bool:
    since_ns = self._silent_since_ns
    _TURN(self, now_ns, votes=votes)
    self._silent_since_ns = since_ns
    return False


_TURN = PairWatch.turn
_INIT = PairWatch.__init__


def _if_it_hears_us(self: NodeView, verdict: Verdict, envelope: Any, now_ns: int) -> None:
    """Takes a peer that has not echoed the last three heartbeats for dead."""
    if self.pair is None or verdict is not Verdict.ACT:
        return
    for message in envelope.messages:
        for node, _, held_ns in getattr(message, "echoes", ()):
            if node == self.params.node_id and held_ns < 3 * HEARTBEAT_NS:
                self.pair.hear(envelope, now_ns)


def _proven_only(self: NodeView, verdict: Verdict, envelope: Any, now_ns: int) -> None:
    if self.pair is not None and verdict is Verdict.ACT:
        self.pair.hear(envelope, now_ns)


def _holds_after_a_beat(self: PairWatch, params: Any, now_ns: int) -> None:
    _INIT(self, params, now_ns)
    self._hold_ns = HEARTBEAT_NS


def _votes_and_claims(self: PairWatch, params: Any, now_ns: int) -> None:
    _INIT(self, params, now_ns)
    self._voting_ns = 0


MISTAKES: dict[str, str] = {
    "lateness_ignored": "a loop that was late counts the silence of that time",
    "slow_work_ignored": "a loop that takes long over its effects does not notice",
    "held_after_a_beat": "a holder takes a heartbeat's gap for silence",
    "carrier_ignored": "a node without carriers takes the silence for the peer's",
    "nobody_yields": "on hearing a better ACTIVE node, a node stays until its lease ends",
    "one_way_is_death": "a peer that does not hear this node counts as gone",
    "hello_ignored": "a peer whose session is not proven counts as gone",
    "voting_not_awaited": "a node claims alone as soon as it may vote",
    "no_restart_wait": "a restarted voter votes at once",
    "bystander_waited_for": "a holder waits for the vote of a peer that has only just started",
}


@contextmanager
def planted(mistake: str | None, world: PairWorld) -> Iterator[None]:
    """The code with one mistake in it."""
    world.no_restart_wait = mistake == "no_restart_wait"
    patches: dict[str, tuple[object, str, object]] = {
        "lateness_ignored": (PairWatch, "turn", _never_late),
        "slow_work_ignored": (PairWatch, "_lingered", lambda _self, _now_ns: False),
        "held_after_a_beat": (PairWatch, "__init__", _holds_after_a_beat),
        "carrier_ignored": (NodeView, "carrier_fault", lambda _self, _group: ""),
        "nobody_yields": (NodeView, "outranked", lambda *_: False),
        "one_way_is_death": (NodeView, "hear_any", _if_it_hears_us),
        "hello_ignored": (NodeView, "hear_any", _proven_only),
        "voting_not_awaited": (PairWatch, "__init__", _votes_and_claims),
        "bystander_waited_for": (pair, "_bystands", lambda _envelope: False),
    }
    with ExitStack() as stack:
        if mistake in patches:
            stack.enter_context(patched(*patches[mistake]))
        yield


PAIR_ALONE = Simulation("pair_schedule", PairSchedule, planted, MISTAKES, FOCUS)

if __name__ == "__main__":
    PAIR_ALONE.main()
