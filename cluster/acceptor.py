"""The voter of one group: PaxosLease's acceptor (arXiv 1209.4187 §3), with epochs that only grow.

Theory of operation
    A ballot is an epoch (`hafw.human.make_epoch`: era, counter, node), so that ballots of two
    nodes differ and compare as integers. The invariant, on which exclusivity rests:

    *After this voter granted a lease of T, it grants and promises nothing to another node until
    T(1+ε) later by its own clock, or until that very lease was released to that node.*

    A refused node does not raise the promise: a gateway that merely missed the holder's renewals
    cannot disturb them by asking. The holder's own node may claim a higher epoch at any time.

    Nothing is kept over a restart. A restarted voter votes for nobody for M(1+ε), M at least the
    longest lease, and raised its durable era, so that it refuses every epoch granted before.
    Those two checks are the caller's (`LeaseCore`), because they are the node's, not a group's.
"""

from __future__ import annotations

from cluster.heartbeat import Accepted, Nack, Prepare, Promise, Propose, Release
from cluster.lease_types import LeaseParams
from hafw.human import epoch_node

__all__ = ["Acceptor"]


class Acceptor:
    """What this voter promised and granted in one group."""

    def __init__(self, group: int, params: LeaseParams) -> None:
        self.group = group
        self._params = params
        self.promised = 0
        self.accepted_epoch = 0
        self.holder = 0
        self.opened = False
        self.in_set = False
        """Whether what was accepted last was accepted in the voter set in force."""
        self.until_ns = 0
        self.released = False
        self.released_to = 0
        self.given: Release | None = None
        """The last release to a node, until a later lease is known to have opened."""
        self._dead_epoch = 0

    def live(self, now_ns: int) -> bool:
        """Whether a granted lease is running, released or not."""
        return self.holder != 0 and now_ns < self.until_ns

    def blocks(self, node: int, now_ns: int) -> int:
        """Nanoseconds for which a granted lease keeps `node` from this vote; 0: free for it."""
        if not self.live(now_ns) or self.holder == node:
            return 0
        if self.released and self.released_to in (0, node):
            return 0
        return self.until_ns - now_ns

    def running_for(self, now_ns: int) -> int:
        """The node whose lease is running and not given up; 0: nobody's."""
        return self.holder if self.live(now_ns) and not self.released else 0

    def prepare(self, sender: int, ask: Prepare, *, era: int, now_ns: int) -> Promise | Nack:
        """Promise, or say why not. Asking again for what was promised is answered again."""
        if self._refuses(sender, ask.epoch, era=era, now_ns=now_ns):
            return self._nack(ask.epoch, era=era, now_ns=now_ns)
        self.promised = ask.epoch
        return Promise(
            group=self.group,
            epoch=ask.epoch,
            era=era,
            last_epoch=self.accepted_epoch,
            last_holder=self.holder,
            last_opened=self.opened,
            last_in_set=self.in_set,
            given=self.given,
        )

    def propose(self, sender: int, ask: Propose, *, era: int, now_ns: int) -> Accepted | Nack:
        """Grant or renew, or say why not."""
        if (
            self._refuses(sender, ask.epoch, era=era, now_ns=now_ns)
            # A renewal that was under way when its lease was released.
            or ask.epoch <= self._dead_epoch
        ):
            return self._nack(ask.epoch, era=era, now_ns=now_ns)
        until_ns = now_ns + self._params.longer(ask.lease_ns)
        if self.holder == sender:
            # A node may still use an earlier, longer grant.
            until_ns = max(until_ns, self.until_ns)
        if self.accepted_epoch != ask.epoch:
            self.opened = False
            self.released = False
        self.promised = self.accepted_epoch = ask.epoch
        self.holder = sender
        self.in_set = True
        self.opened = self.opened or ask.opened
        if self.opened:
            self.given = None
        self.until_ns = until_ns
        return Accepted(group=self.group, epoch=ask.epoch, request=ask.request)

    def refuse(self, epoch: int, *, era: int, now_ns: int) -> Nack:
        """To another process of the holder: the lease runs, and not for it."""
        return Nack(
            group=self.group,
            epoch=epoch,
            era=era,
            promised=max(self.promised, self._dead_epoch),
            leased_to=self.holder,
            left_ns=max(0, self.until_ns - now_ns),
        )

    def release(self, sender: int, release: Release) -> bool:
        """The holder gave its lease up, to one node or (0) to anybody."""
        epoch = release.epoch
        if epoch_node(epoch) != sender:
            return False
        self._dead_epoch = max(self._dead_epoch, epoch)
        if epoch != self.accepted_epoch:
            return False
        self.released = True
        self.released_to = release.to
        if release.to:
            self.opened = True
            self.given = release
        return True

    def _refuses(self, sender: int, epoch: int, *, era: int, now_ns: int) -> bool:
        assert epoch_node(epoch) == sender, (epoch, sender)
        # The era refuses what a process before this one may have granted. What this one granted
        # is renewed in any era: a node that restarts elsewhere must not end a running lease.
        old = epoch >> 40 < era and epoch != self.accepted_epoch
        return old or epoch < self.promised or self.blocks(sender, now_ns) > 0

    def _nack(self, epoch: int, *, era: int, now_ns: int) -> Nack:
        left_ns = self.blocks(epoch_node(epoch), now_ns)
        return Nack(
            group=self.group,
            epoch=epoch,
            era=era,
            promised=max(self.promised, self._dead_epoch),
            leased_to=self.holder if left_ns else 0,
            left_ns=left_ns,
        )
