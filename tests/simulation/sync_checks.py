"""The checkers of the replication simulation. They know nothing of the code:

* *exactly once, in order*: per receiver and session, delivered sequence numbers only grow;
* *no mistaken death*: a DESTROY ends only the life of the tuple that it was meant for;
* *no stale word*: no kernel write comes from a delta of an older epoch than the node knows;
* *identity*: what a node keeps of a flow is of the life that the delta was about; one incarnation
  never has two translations; a life that ended does not come back within the epoch that ended it;
* *windows*: who forwards again after another did has no entry with windows from before;
* *convergence*: when the faults stop, every node's kernel holds exactly the holder's flows worth a
  replica, each in its newest state, and no entry whose windows were learnt before another node
  held the group;
* *digests*: when all is calm they are equal, and nothing is repaired any more.
"""

from __future__ import annotations

from hafw.flow import FlowKey, Tuple, mark_group
from sync.delta import Delta, Upsert
from sync.publish import publishable
from tests.simulation.sync_node import GROUP, HASHES, Node
from tests.simulation.timeline import Timeline

__all__ = ["DIGEST_S", "SyncChecks"]

DIGEST_S = 0.1


class SyncChecks(Timeline):
    """What was said, who held the group, and what the nodes make of it."""

    def __init__(self, seed: int, *, digests: bool) -> None:
        super().__init__(seed)
        self.digests = digests
        self.nodes: list[Node] = []
        self.holder = 1
        self.translations: dict[tuple[FlowKey, int], Tuple] = {}
        self.holders: list[tuple[int, int]] = []
        """(Epoch, node), in turn."""

    def node(self, number: int) -> Node:
        return self.nodes[number - 1]

    def check_life(self, node: Node, delta: Upsert) -> None:
        """What `node` has just been told and wrote."""
        record = node.registry.get(delta.entry.key)
        life = HASHES.contribution(delta.entry, delta.incarnation)
        self.check(
            record is not None
            and (record.incarnation, record.contribution) == (delta.incarnation, life),
            f"gw{node.number} keeps another life of {delta.entry.key} than it was told of",
        )
        self.check(
            node.buried.get(life, 0) < delta.version.epoch,
            f"gw{node.number} revives {delta.entry.key}",
        )

    def check_translation(self, delta: Delta) -> None:
        if isinstance(delta, Upsert):
            said = delta.entry.key, delta.incarnation
            known = self.translations.setdefault(said, delta.entry.reply)
            self.check(
                known == delta.entry.reply, f"{delta.entry.key} has two translations in one life"
            )

    def check_windows(self, node: Node) -> None:
        """`node` begins to forward: what it has learnt of a flow's windows is still true."""
        for held in node.kernel.values():
            if held.learnt and held.entry.tcp is not None and publishable(held.entry):
                between = [who for epoch, who in self.holders if epoch > held.learnt]
                self.check(
                    all(who == node.number for who in between),
                    f"gw{node.number} forwards {held.entry.key} again with its windows of before",
                )

    def _converged(self) -> None:
        holder = self.node(self.holder)
        wanted = _view(holder)
        for node in self.nodes:
            have = _view(node)
            if have != wanted:
                missing = [str(key) for key in wanted.keys() - have]
                extra = [str(key) for key in have.keys() - wanted]
                differ = [str(k) for k in wanted.keys() & have.keys() if wanted[k] != have[k]]
                self.check(
                    False,
                    f"gw{node.number} against holder gw{holder.number}: missing {missing}, "
                    f"extra {extra}, differing {differ}",
                )
            if node is holder:
                continue
            for held in node.kernel.values():
                self.check(
                    held.learnt == 0 or not publishable(held.entry),
                    f"gw{node.number} holds {held.entry.key} with windows of epoch {held.learnt}",
                )

    def _digests_agree(self, settled: list[int]) -> None:
        for node, repairs in zip(self.nodes, settled, strict=True):
            if node.number == self.holder or not self.digests:
                continue
            watch = node.watch
            self.check(
                watch.repairs == repairs and not watch.open_buckets,
                f"gw{node.number} repairs what is equal: {watch.repairs - repairs} times, "
                f"{watch.open_buckets} buckets open",
            )
            clean_at = watch.clean_at
            self.check(
                clean_at is not None and clean_at > self.now - 5 * DIGEST_S,
                f"gw{node.number}: digests not equal since {clean_at}",
            )


def _view(node: Node) -> dict[FlowKey, object]:
    return {
        key: (held.entry.reply, held.entry.status, held.entry.tcp and held.entry.tcp.state)
        for key, held in node.kernel.items()
        if publishable(held.entry) and mark_group(held.entry.mark) == GROUP
    }
