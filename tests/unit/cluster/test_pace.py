"""When a node beats: by itself, or in step with the holder whose renewals it grants."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from cluster.heartbeat import Accepted, Beat, Propose
from cluster.lease_types import Effect, Send
from cluster.pace import Pace
from hafw.human import make_epoch
from tests.unit.cluster.lease_bench import HEARTBEAT, MS, Bench, T

US = 1_000
FOLLOWED = HEARTBEAT + HEARTBEAT // 16
STEP_BEATS = 4
"""Intervals of the holder after which a follower is in step, wherever it was."""


@dataclass
class Follower:
    """A voter's pace as the lease core keeps it. `sent`: (when, grants, whether with a beat)."""

    pace: Pace
    follows: bool = True
    sent: list[tuple[int, list[int], bool]] = field(default_factory=list)

    def tick(self, now_ns: int) -> None:
        for _, grant in self.pace.owed(now_ns, follows=self.follows):
            self.sent.append((now_ns, [grant.request], False))
        if now_ns >= self.pace.next_ns:
            riding = self.pace.begin(now_ns, follows=self.follows)
            self.sent.append((now_ns, [grant.request for grant in riding], True))

    def run(self, asks: list[int], late: list[int]) -> None:
        """Asks at these moments, numbered from 0; timers fire as `late` as it says, in turn."""
        turn = 0
        for number, ask_ns in enumerate(asks):
            while (due_ns := self.pace.next_ns + late[turn % len(late)]) < ask_ns:
                self.tick(due_ns)
                turn += 1
            self.pace.grant(1, Accepted(1, 7, number))
            self.tick(ask_ns)

    @property
    def beats(self) -> list[int]:
        return [at for at, _, beat in self.sent if beat]

    def alone(self, since_ns: int) -> int:
        return sum(not beat for at, _, beat in self.sent if at >= since_ns)


@given(phase=st.integers(0, HEARTBEAT - 1), jitter=st.lists(st.integers(0, 600 * US), min_size=9))
def test_follower_falls_into_step_and_every_grant_rides(phase: int, jitter: list[int]) -> None:
    voter = Follower(Pace(HEARTBEAT, 0))
    voter.tick(0)
    asks = [
        phase + n * HEARTBEAT + jitter[n % len(jitter)] for n in range(60)
    ]  # fmt: skip
    voter.run(asks, [50 * US])
    in_step_ns = asks[STEP_BEATS]
    assert voter.alone(in_step_ns) == 0
    assert [at for at in voter.beats if at >= in_step_ns] == asks[STEP_BEATS:]


@example(asks=[2 * HEARTBEAT + 1] * 2, late=[0], follows=True)
@given(
    asks=st.lists(st.integers(0, 40 * HEARTBEAT), min_size=1, max_size=120),
    late=st.lists(st.integers(0, 2 * MS), min_size=1, max_size=8),
    follows=st.booleans(),
)
def test_no_grant_waits_and_no_beat_is_left_out(
    asks: list[int], late: list[int], *, follows: bool
) -> None:
    voter = Follower(Pace(HEARTBEAT, 0), follows)
    voter.tick(0)
    voter.run(sorted(asks), late)
    assert [(at, n) for at, grants, _ in voter.sent for n in grants] == [
        (at, number) for number, at in enumerate(sorted(asks))
    ]
    gaps = [after - before for before, after in zip(voter.beats, voter.beats[1:], strict=False)]
    allowed_ns = FOLLOWED if follows else HEARTBEAT
    assert all(gap <= allowed_ns + max(late) for gap in gaps)
    assert all(gap >= HEARTBEAT // 4 for gap in gaps)


def test_of_two_holders_one_is_followed_and_no_beat_is_made_twice() -> None:
    for other_phase in range(MS, HEARTBEAT, MS):
        voter = Follower(Pace(HEARTBEAT, 0))
        asks = sorted(n * HEARTBEAT + phase for n in range(60) for phase in (0, other_phase))
        voter.run(asks, [50 * US])
        since_ns = 20 * HEARTBEAT
        beats = sum(at >= since_ns for at in voter.beats)
        assert beats <= 41, other_phase
        assert voter.alone(since_ns) <= 40, other_phase


def test_grants_of_a_voter_set_that_ended_are_sent_to_nobody() -> None:
    pace = Pace(HEARTBEAT, 0)
    pace.begin(0, follows=True)
    pace.grant(1, Accepted(1, 7, 1))
    pace.forget()
    assert pace.owed(MS, follows=False) == []
    assert pace.begin(HEARTBEAT, follows=True) == []


def datagrams(effects: list[Effect]) -> list[tuple[int, list[type]]]:
    """(to, kinds of messages) of each."""
    return [(e.to, [type(m) for m in e.envelope.messages]) for e in effects if isinstance(e, Send)]


def voter_near_its_beat() -> tuple[Bench, int]:
    """Node 9, its own heartbeat due in 5 ms, and the epoch of the holder, node 1."""
    bench, epoch = Bench(9), make_epoch(3, 1, 1)
    bench.pass_time(2100 * MS, lambda: [*bench.beat(1, active=epoch), *bench.beat(2)])
    bench.hear(1, Propose(1, epoch, 1, T, True))
    bench.core.tick(now_ns=bench.now)
    bench.now = bench.core.view.pace.next_ns - 5 * MS
    return bench, epoch


def test_renewal_is_granted_in_the_heartbeat_of_that_very_turn() -> None:
    bench, epoch = voter_near_its_beat()
    effects = bench.hear(1, Propose(1, epoch, 2, T, True))
    assert datagrams(effects) == [(0, [Beat, Accepted])]
    assert bench.core.deadline(now_ns=bench.now) == bench.now + FOLLOWED


def test_claim_is_granted_at_once_and_alone() -> None:
    bench, _ = voter_near_its_beat()
    newer = make_epoch(3, 2, 1)
    effects = bench.hear(1, Propose(1, newer, 3, T, False))
    assert datagrams(effects) == [(1, [Accepted])]


def test_holder_keeps_its_own_pace() -> None:
    bench = Bench()
    bench.hold()
    bench.renew()
    view = bench.core.view
    due_ns = view.pace.next_ns
    bench.now = due_ns - 5 * MS
    view.pace.grant(2, Accepted(2, 7, 1))  # Of another group.
    effects = bench.core.tick(now_ns=bench.now)
    assert datagrams(effects) == [(2, [Accepted])]
    assert view.pace.next_ns == due_ns
