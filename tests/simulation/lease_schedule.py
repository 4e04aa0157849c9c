"""Schedules of faults for the lease simulation: the seed draws the mix.

Replay one with its trace, as a failure prints it:
    python -m tests.simulation.lease_schedule --seed N [--focus FOCUS] [--mistake MISTAKE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from cluster.acceptor import Acceptor
from cluster.claims import Candidacy
from cluster.heartbeat import Accepted
from cluster.lease import LeaseCore
from cluster.proposer import Phase, Proposer, Request
from hafw.config.model import VoterSet
from tests.simulation.lease_world import (
    GROUP,
    HEARTBEAT_NS,
    LEASE_NS,
    MS,
    RESTART_WAIT_NS,
    Node,
    ViolationError,
    World,
)

FAULTY_NS = 2_500 * MS
HEAL_BOUND_NS = 2 * RESTART_WAIT_NS + 20 * LEASE_NS
"""Somebody must be ACTIVE this long after everything was mended: M, the five leases an unsynced
candidate is patient for, and as much again for duels and what was still on its way."""
HELD_LEASES = 4
"""Looks, one lease apart, at which somebody must be ACTIVE without a break."""
FOCUS: dict[str, tuple[str, ...]] = {
    "no_restart_wait": ("quick_restart", "quick_restart", "pause", "isolate", "cut_one_way"),
    "lease_from_receipt": ("pause", "slow_network", "isolate", "isolate"),
    "relative_deadline": ("late_effects", "pause"),
    "release_of_any_epoch": ("move", "move", "slow_network", "cut_one_way", "kill"),
    "promise_forgotten": ("cut_one_way", "cut_one_way", "pause", "quick_restart"),
    "old_voters_accepted": ("stale_voters", "isolate", "power_cut"),
    "unsynced_at_once": ("power_cut", "unsynced"),
    "release_after_restart": ("kill_then_stop", "kill_then_stop", "pause"),
    "renewals_of_old_era_refused": ("slow_disk_and_restart",),
    "deaf": ("deaf", "unsynced", "kill"),
}
"""Kinds of faults that together reach a mistake sooner than the whole mix does. The right code
must stand the same schedules."""
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 2), (9,)),
    ((1, 2), (9,)),
    ((1, 2, 3), ()),
    ((1, 2, 3), (9,)),
    ((1, 2, 3), (9, 10)),
)


class Schedule:
    """Faults of one seed, drawn kind by kind, then a mended cluster that must find a holder."""

    def __init__(self, seed: int, focus: str | None = None) -> None:
        """`focus`: draw only the kinds of `FOCUS`, close together."""
        self.rng = Random(seed)
        gateways, witnesses = self.rng.choice(SHAPES)
        self.world = World(self.rng, gateways=gateways, witnesses=witnesses)
        self.world.network.loss = self.rng.choice((0.0, 0.0, 0.01, 0.1))
        self.world.network.double = self.rng.choice((0.0, 0.1))
        kinds = [
            self._pause,
            self._kill,
            self._power_cut,
            self._cut_one_way,
            self._isolate,
            self._slow_network,
            self._late_effects,
            self._syncd_silent,
            self._unsynced,
            self._move,
            self._move,
            self._clean_stop,
            self._all_restart,
            self._disk,
            self._quick_restart,
            self._kill_then_stop,
            self._deaf,
            self._slow_disk_and_restart,
        ]
        if len(self.world.nodes) == 5:
            kinds.append(self._stale_voters)
        self.kinds = [kind for kind in kinds if self.rng.random() < 0.45] or [self._move]
        self.gap_ns = self.rng.choice((40, 120, 400, 1200)) * MS
        if focus in FOCUS:
            self.kinds = [getattr(self, f"_{kind}") for kind in FOCUS[focus]]
            calm = focus in ("unsynced_at_once", "renewals_of_old_era_refused")
            self.gap_ns = self.rng.choice((900, 1300) if calm else (30, 60, 120)) * MS

    def run(self) -> World:
        """Raises ViolationError."""
        world = self.world
        for node in world.nodes.values():
            world.at(self.rng.randrange(50 * MS), lambda node=node: world.start(node))  # type: ignore[misc]
        at = RESTART_WAIT_NS
        while (at := at + 1 + int(self.rng.expovariate(1 / self.gap_ns))) < FAULTY_NS:
            world.at(at, self.rng.choice(self.kinds))
        world.every(HEARTBEAT_NS, FAULTY_NS, world.check_kept)
        world.run(FAULTY_NS)
        self._mend()
        held = 0
        while held < HELD_LEASES:
            if world.now >= FAULTY_NS + HEAL_BOUND_NS:
                raise ViolationError("nobody is ACTIVE and stays so, although all was mended")
            world.run(world.now + LEASE_NS)
            held = held + 1 if self._somebody_announces() else 0
        return world

    def _somebody_announces(self) -> bool:
        return any(self.world.announces(node) for node in self.world.nodes.values())

    def _mend(self) -> None:
        world = self.world
        world.say("everything is mended")
        world.network.cut.clear()
        world.network.loss = world.network.slow = 0.0
        for node in world.nodes.values():
            node.disk_least_ns = 0
            node.disk_fails, node.late, node.syncd_up = False, 0.0, True
            node.paused_until = node.busy_until = world.now
            if node.voters is not None:
                node.voters = None
                world.kill(node)
            world.start(node)
            world.pump(node)

    # ---- fault kinds --------------------------------------------------------------------------

    def _any(self) -> Node:
        return self.rng.choice(list(self.world.nodes.values()))

    def _holder_or_any(self) -> Node:
        holders = [node for node in self.world.nodes.values() if self.world.announces(node)]
        return holders[0] if holders and self.rng.random() < 0.6 else self._any()

    def _later(self, most_ns: int, action: Callable[[], None]) -> None:
        self.world.at(self.world.now + self.rng.randrange(1, most_ns), action)

    def _pause(self) -> None:
        node = self._holder_or_any()
        self.world.pause(node, self.rng.randrange(5 * MS, 4 * LEASE_NS))

    def _kill(self) -> None:
        node = self._holder_or_any()
        self.world.kill(node)
        self._later(4 * LEASE_NS, lambda: self.world.start(node))

    def _quick_restart(self) -> None:
        node = self._any()
        self.world.kill(node)
        self._later(20 * MS, lambda: self.world.start(node))

    def _kill_then_stop(self) -> None:
        """The process dies, the next one is stopped while it claims: the old gate is open."""
        world, node = self.world, self._holder_or_any()
        world.kill(node)
        world.at(world.now + self.rng.randrange(3 * MS), lambda: world.start(node))
        until = world.now + LEASE_NS

        def stop_while_proposing() -> None:
            claim = node.core.groups[GROUP].proposer.claim if node.core is not None else None
            if claim is not None and claim.phase is Phase.PROPOSE:
                world.stop(node)
            elif world.now < until:
                world.at(world.now + MS // 10, stop_while_proposing)

        stop_while_proposing()
        self._later(6 * LEASE_NS, lambda: world.start(node))

    def _deaf(self) -> None:
        """A gateway is heard and hears nobody."""
        deaf = self.rng.choice(self.world.gateways)
        self._cut({(node, deaf) for node in self.world.nodes if node != deaf})

    def _slow_disk_and_restart(self) -> None:
        """The holder's disk takes several leases for an era that a restart elsewhere raised."""
        holder = self._holder_or_any()
        holder.disk_least_ns = 300 * MS
        others = [node for node in self.world.nodes.values() if node is not holder]
        node = self.rng.choice(others)
        self.world.kill(node)
        self._later(LEASE_NS, lambda: self.world.start(node))

        def heal() -> None:
            holder.disk_least_ns = 0

        self.world.at(self.world.now + 6 * LEASE_NS, heal)

    def _power_cut(self) -> None:
        node = self._holder_or_any()
        self.world.power_cut(node)
        self._later(8 * LEASE_NS, lambda: self.world.start(node))

    def _clean_stop(self) -> None:
        node = self._holder_or_any()
        self.world.stop(node)
        self._later(4 * LEASE_NS, lambda: self.world.start(node))

    def _all_restart(self) -> None:
        for node in self.world.nodes.values():
            self.world.power_cut(node)
            self._later(LEASE_NS, lambda node=node: self.world.start(node))  # type: ignore[misc]

    def _cut(self, pairs: set[tuple[int, int]]) -> None:
        world = self.world
        world.network_disturbed_at = world.now
        world.network.cut |= pairs
        world.say(f"cut {sorted(pairs)}")

        def heal() -> None:
            world.network_disturbed_at = world.now
            world.network.cut -= pairs
            world.say(f"healed {sorted(pairs)}")

        self._later(8 * LEASE_NS, heal)

    def _cut_one_way(self) -> None:
        a, b = self.rng.sample(sorted(self.world.nodes), 2)
        self._cut({(a, b)})

    def _isolate(self) -> None:
        nodes = sorted(self.world.nodes)
        side = set(self.rng.sample(nodes, self.rng.randrange(1, len(nodes))))
        both = self.rng.random() < 0.7
        self._cut({(a, b) for a in nodes for b in nodes if a in side and b not in side})
        if both:
            self._cut({(b, a) for a in nodes for b in nodes if a in side and b not in side})

    def _slow_network(self) -> None:
        world = self.world
        world.network_disturbed_at = world.now
        world.network.slow = self.rng.choice((0.02, 0.3))
        world.network.slow_ns = self.rng.choice((30, 100, 400)) * MS

        def heal() -> None:
            world.network_disturbed_at = world.now + world.network.slow_ns
            world.network.slow = 0.0

        self._later(8 * LEASE_NS, heal)

    def _late_effects(self) -> None:
        node = self._holder_or_any()
        self.world.disturb(node.id)
        node.late = self.rng.choice((0.01, 0.2))
        node.late_ns = self.rng.choice((2, 20, 150)) * MS

        def heal() -> None:
            self.world.disturb(node.id)
            node.late = 0.0

        self._later(6 * LEASE_NS, heal)

    def _syncd_silent(self) -> None:
        node = self._holder_or_any()
        self.world.disturb(node.id)
        node.syncd_up = False

        def heal() -> None:
            self.world.disturb(node.id)
            node.syncd_up = True

        self._later(10 * LEASE_NS, heal)

    def _unsynced(self) -> None:
        node = self.world.nodes[self.rng.choice(self.world.gateways)]
        self.world.disturb(node.id)
        node.synced = not node.synced
        self.world.say(f"node {node.id} synced: {node.synced}")

    def _move(self) -> None:
        self.world.move(
            self._holder_or_any(), self.rng.choice(self.world.gateways), self.rng.choice((0, 0.3))
        )

    def _disk(self) -> None:
        node = self._any()
        self.world.disturb(node.id)
        node.disk_ns = self.rng.choice((1, 50, 300)) * MS
        node.disk_fails = self.rng.random() < 0.3

        def heal() -> None:
            self.world.disturb(node.id)
            node.disk_fails = False

        self._later(6 * LEASE_NS, heal)

    def _stale_voters(self) -> None:
        """One node comes back with last year's cluster.yaml: three voters instead of five."""
        node = self.world.nodes[1]
        self.world.power_cut(node)
        others = sorted(set(self.world.nodes) - {1})
        old = (1, self.rng.choice(others[:2]), others[-1])
        node.voters = VoterSet(id=1, members=old)
        self.world.start(node)


# ---- planted mistakes ---------------------------------------------------------------------------


@contextmanager
def _patched(owner: type, name: str, value: object) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _from_receipt(self: Proposer, request: Request, now_ns: int) -> int:
    return now_ns + self._view.params.shorter(LEASE_NS)


def _release_anything(self: Acceptor, sender: int, epoch: int, to: int) -> bool:
    if sender != self.holder:
        return False
    self.released, self.released_to = True, to
    return True


def _accept_blindly(self: Acceptor, sender: int, ask: Any, *, era: int, now_ns: int) -> Accepted:
    self.accepted_epoch, self.holder, self.opened = ask.epoch, sender, ask.opened
    self.released = False
    self.until_ns = now_ns + self._params.longer(ask.lease_ns)
    return Accepted(group=ask.group, epoch=ask.epoch, request=ask.request)


def _at_once(self: Candidacy, now_ns: int, free_since_ns: int, retry_ns: int) -> int:
    return max(free_since_ns, retry_ns)


def _release_while_open(self: Proposer, *, retry_ns: int) -> Any:
    claim = self.claim
    assert claim is not None
    self.claim = None
    self.retry_ns = max(self.retry_ns, retry_ns)
    return self.give_up(self.held.epoch if self.held is not None else claim.epoch)


def _release_after_restart(self: Proposer, *, retry_ns: int) -> Any:
    claim = self.claim
    assert claim is not None
    self.claim = None
    self.retry_ns = max(self.retry_ns, retry_ns)
    if claim.phase is Phase.PREPARE or self.held is not None:
        return []
    return self.give_up(claim.epoch)


def _refuses_old_era(self: Acceptor, sender: int, epoch: int, *, era: int, now_ns: int) -> bool:
    return epoch >> 40 < era or epoch < self.promised or self.blocks(sender, now_ns) > 0


MISTAKES: dict[str, str] = {
    "no_restart_wait": "a restarted voter votes at once",
    "lease_from_receipt": "the lease counts from when the grant came, not from the request",
    "relative_deadline": "the gate takes durations instead of absolute deadlines",
    "grants_to_another": "a voter grants while its grant to another node runs",
    "era_not_persisted": "the era is the same after each start",
    "old_voters_accepted": "messages that name another voter set are acted on",
    "unsynced_at_once": "an unsynced candidate claims without patience or rank",
    "release_of_any_epoch": "a release frees a later lease of the same node",
    "promise_forgotten": "a voter accepts below what it promised and granted",
    "release_while_open": "a dropped second claim releases the lease of the open gate",
    "release_after_restart": "a restarted node releases voters its predecessor's open gate needs",
    "renewals_of_old_era_refused": "a voter that learned a higher era refuses renewals",
}


@contextmanager
def planted(mistake: str | None, world: World | None = None) -> Iterator[None]:
    """The code with one mistake in it. Mistakes of the shell are made by the simulated one."""
    if world is not None:
        world.no_restart_wait = mistake == "no_restart_wait"
        world.relative_deadlines = mistake == "relative_deadline"
        world.forget_era = mistake == "era_not_persisted"
    patches: dict[str, tuple[type, str, object]] = {
        "lease_from_receipt": (Proposer, "deadline_of", _from_receipt),
        "grants_to_another": (Acceptor, "blocks", lambda _self, _node, _now: 0),
        "old_voters_accepted": (LeaseCore, "_same_voters", lambda _self, _envelope: True),
        "unsynced_at_once": (Candidacy, "_due_ns", _at_once),
        "release_of_any_epoch": (Acceptor, "release", _release_anything),
        "promise_forgotten": (Acceptor, "propose", _accept_blindly),
        "release_after_restart": (Proposer, "drop", _release_after_restart),
        "renewals_of_old_era_refused": (Acceptor, "_refuses", _refuses_old_era),
        "release_while_open": (Proposer, "drop", _release_while_open),
    }
    if mistake in patches:
        with _patched(*patches[mistake]):
            yield
    else:
        yield


def replay_line(seed: int, mistake: str | None = None, focus: str | None = None) -> str:
    extra = f" --focus {focus}" if focus else ""
    extra += f" --mistake {mistake}" if mistake else ""
    return f"python -m tests.simulation.lease_schedule --seed {seed}{extra}"


def run_seed(seed: int, mistake: str | None = None, focus: str | None = None) -> World:
    """Run one schedule. Raises ViolationError whose text ends with the replay line."""
    schedule = Schedule(seed, focus)
    with planted(mistake, schedule.world):
        try:
            return schedule.run()
        except AssertionError as error:
            at = f"at {schedule.world.now / MS:.3f} ms"
            raise ViolationError(
                f"seed {seed} {at}: {error!r}; {replay_line(seed, mistake, focus)}"
            ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay one schedule of the lease simulation.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--mistake", choices=sorted(MISTAKES))
    parser.add_argument("--focus", choices=sorted(FOCUS))
    arguments = parser.parse_args()
    schedule = Schedule(arguments.seed, arguments.focus)
    schedule.world.trace = []
    try:
        with planted(arguments.mistake, schedule.world):
            schedule.run()
    finally:
        sys.stdout.write("\n".join([*schedule.world.trace, ""]))
    sys.stderr.write("nothing wrong\n")


if __name__ == "__main__":
    main()
