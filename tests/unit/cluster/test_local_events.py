"""What comes over the local socket wakes a gateway only while a gate waits for it."""

from __future__ import annotations

from cluster.heartbeat import Accepted, Prepare, Promise, Propose, Release
from cluster.lease_types import Effect, MoveAsked, SyncdSaid
from cluster.local_events import awaits_syncd
from hafw.human import make_epoch
from hafw.messages import MoveRequest, NewEpochRequest, Position, PositionReply
from tests.unit.cluster.lease_bench import MS, Bench, T, sent

HERE = Position(sender_id=1, session=77, seq=500)


def awaited(bench: Bench) -> bool:
    return awaits_syncd(bench.core.groups.values())


def backup_of(epoch: int) -> Bench:
    """Node 2, while node 1 is ACTIVE."""
    bench = Bench(2)

    def each() -> list[Effect]:
        return [*bench.beacon(), *bench.beat(1, active=epoch, holder=1), *bench.beat(9, holder=1)]

    bench.pass_time(2100 * MS, each)
    return bench


def test_calm_nodes_wait_for_nothing() -> None:
    holder, backup = Bench(), Bench(2)
    holder.hold()
    holder.renew()
    epoch = make_epoch(3, 1, 1)
    backup.pass_time(
        2100 * MS, lambda: [*backup.beacon(), *backup.beat(1, active=epoch, holder=1)]
    )
    assert not awaited(holder)
    assert not awaited(backup)


def test_old_holder_waits_from_the_request_until_the_move_has_ended() -> None:
    bench = Bench()
    bench.hold()
    bench.renew()
    request = MoveRequest(group=1, target_id=2, wait_s=0.0)
    bench.core.handle(MoveAsked("cli", request), now_ns=bench.now)
    assert awaited(bench), "its syncd is asked for the position, and announce is shut"
    held = bench.core.groups[1].proposer.held
    assert held is not None
    reply = PositionReply(group=1, epoch=held.epoch, position=HERE)
    bench.core.handle(SyncdSaid(reply), now_ns=bench.now)
    bench.beat(2, active=make_epoch(3, 9, 2), holder=2)
    assert not awaited(bench)


def test_target_waits_from_its_claim_until_it_has_opened() -> None:
    epoch = make_epoch(3, 1, 1)
    bench = backup_of(epoch)
    bench.hear(1, Propose(1, epoch, 1, T, True))
    assert not awaited(bench)
    [ask] = sent(bench.hear(1, Release(1, epoch, 2, HERE)), Prepare)
    assert awaited(bench), "it claims, and will wait for its syncd then"
    promise = Promise(1, ask.epoch, 3, epoch, 1, True, True)
    [propose] = sent(bench.hear(9, promise), Propose)
    bench.hear(9, Accepted(1, ask.epoch, propose.request))
    group = bench.core.groups[1]
    assert group.proposer.claim is None
    assert not group.active
    assert awaited(bench), "it has the lease, and its syncd has not applied what was handed over"
    bench.applied = [HERE]
    bench.beacon()
    assert group.active
    assert not awaited(bench)


def test_holder_that_claims_a_new_epoch_waits() -> None:
    bench = Bench()
    bench.hold()
    held = bench.core.groups[1].proposer.held
    assert held is not None
    asked = NewEpochRequest(group=1, held_epoch=held.epoch, reason="its syncd has started anew")
    bench.core.handle(SyncdSaid(asked), now_ns=bench.now)
    assert awaited(bench)
