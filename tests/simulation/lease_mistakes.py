"""Mistakes that the lease simulation must catch, and the kinds of faults that lead to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from cluster.acceptor import Acceptor
from cluster.claims import Candidacy
from cluster.handover import HandOver
from cluster.heartbeat import Accepted, Beat, Codec, Envelope, Message, Promise, Release
from cluster.heir import Heir
from cluster.lease import LeaseCore
from cluster.lease_group import GroupCore
from cluster.lease_types import LeaseParams, SetGate
from cluster.proposer import Claim, Phase, Proposer, Request
from cluster.view import NodeView, PeerView
from cluster.voters import VoterChange
from hafw.config.model import VoterSet
from hafw.human import epoch_node, make_epoch
from tests.simulation.lease_node import LEASE_NS, MS
from tests.simulation.lease_world import World
from tests.simulation.runs import patched

__all__ = [
    "FOCUS",
    "FOCUS_PACE",
    "GROUPS_FOCUS",
    "MISTAKES",
    "VOTER_FOCUS",
    "WIRE_FOCUS",
    "planted",
]

FOCUS: dict[str, tuple[str, ...]] = {
    "no_restart_wait": ("quick_restart", "quick_restart", "pause", "isolate", "cut_one_way"),
    "lease_from_receipt": ("slow_network", "isolate_holder"),
    "relative_deadline": ("late_effects", "pause"),
    "release_of_any_epoch": ("move", "move", "slow_network", "new_epoch"),
    "promise_forgotten": ("cut_one_way", "cut_one_way", "pause", "quick_restart"),
    "old_voters_accepted": ("leave_behind", "stale_voters"),
    "both_majorities_unasked": ("leave_behind",),
    "voters_without_wait": ("leave_behind", "change_voters"),
    "next_voters_replaced": ("rival_voters", "rival_voters", "isolate", "change_voters"),
    "rival_that_lives_left": ("rival_comes_late",),
    "release_of_another_set_ignored": ("move_between_sets",),
    "holder_left_behind": ("slow_disk_in_a_change",),
    "rivals_stay": ("rival_voters", "rival_voters", "isolate"),
    "anybody_votes": ("change_voters", "isolate"),
    "voters_told_early": ("leave_behind", "crash_while_writing"),
    "loss_of_voters_unnoticed": ("lose_and_leave_behind", "change_voters"),
    "restarts_while_changing": ("leave_behind", "quick_restart"),
    "unsynced_at_once": ("power_cut", "unsynced"),
    "release_after_restart": ("kill_then_stop", "kill_then_stop", "pause"),
    "renewals_of_old_era_refused": ("slow_disk_and_restart",),
    "deaf": ("deaf", "unsynced", "kill"),
    "ballot_reused": ("kill", "isolate", "new_epoch"),
    "epoch_unchecked": ("cut_one_way", "slow_network", "clean_stop", "pause", "new_epoch"),
    "era_told_early": ("crash_while_writing",),
    "opened_before_position": ("move", "move", "carrier"),
    "drift_ignored": ("isolate_holder",),
    "voter_not_rejoined": ("lose_voters_in_turn",),
    "renewed_in_hand_over": ("move", "carrier"),
    "release_of_all_groups": ("moves_crossing", "move"),
    "votes_of_any_group": ("kill", "isolate", "moves_crossing"),
    "position_lost_on_the_wire": ("move",),
    "given_to_anybody": ("upstream",),
    "upstream_ignored": ("upstream",),
    "long_grant_cut_short": ("heavy", "heavy", "isolate_holder"),
    "long_accept_kept": ("heavy", "heavy", "move"),
    "long_lease_backdated": ("heavy_and_unheard",),
    "opening_unproven": ("carrier_as_it_opens", "slow_network", "cut_one_way", "power_cut"),
    "release_untold": ("carrier_as_it_opens", "slow_network", "cut_one_way", "move"),
}
"""Kinds of faults that together reach a mistake sooner than the whole mix does. The right code
must stand the same schedules."""
VOTER_FOCUS = frozenset(
    (
        "anybody_votes",
        "both_majorities_unasked",
        "holder_left_behind",
        "restarts_while_changing",
        "loss_of_voters_unnoticed",
        "next_voters_replaced",
        "old_voters_accepted",
        "release_of_another_set_ignored",
        "rival_that_lives_left",
        "rivals_stay",
        "voters_told_early",
        "voters_without_wait",
    )
)
"""Of these, those about changes of the voter set: five nodes, up to two of them no voters yet."""
GROUPS_FOCUS = frozenset(("release_of_all_groups", "votes_of_any_group"))
"""Those with two groups."""
WIRE_FOCUS = frozenset(("position_lost_on_the_wire",))
"""Those whose datagrams are sealed and opened."""
FOCUS_PACE = {
    "unsynced_at_once": (2_400 * MS, 1_100 * MS),
    "renewals_of_old_era_refused": (2_400 * MS, 1_100 * MS),
    "era_told_early": (1_500 * MS, 150 * MS),
    "drift_ignored": (2_000 * MS, 200 * MS),
    "voter_not_rejoined": (2_400 * MS, 1_100 * MS),
    "lease_from_receipt": (1_000 * MS, 120 * MS),
    "both_majorities_unasked": (2_000 * MS, 500 * MS),
    "voters_without_wait": (1_500 * MS, 300 * MS),
    "next_voters_replaced": (1_500 * MS, 100 * MS),
    "rival_that_lives_left": (400 * MS, 200 * MS),
    "anybody_votes": (700 * MS, 60 * MS),
    "old_voters_accepted": (2_000 * MS, 500 * MS),
    "voters_told_early": (2_000 * MS, 500 * MS),
    "loss_of_voters_unnoticed": (2_000 * MS, 500 * MS),
    "restarts_while_changing": (2_000 * MS, 300 * MS),
    "given_to_anybody": (2_000 * MS, 400 * MS),
    "upstream_ignored": (2_000 * MS, 800 * MS),
    "release_of_another_set_ignored": (2_000 * MS, 300 * MS),
    "holder_left_behind": (2_400 * MS, 1_100 * MS),
}
"""How long the faults of a focus go on, and the mean gap between them."""


def _from_receipt(self: Proposer, request: Request, now_ns: int) -> int:
    return now_ns + self._view.params.shorter(LEASE_NS)


def _as_asked_now(self: Proposer, request: Request, now_ns: int) -> int:
    asked_ns = self._view.lease_asked_ns(now_ns, opened=True)
    return request.sent_ns + self._view.params.shorter(asked_ns)


_propose = Acceptor.propose


def _usual_grant(self: Acceptor, sender: int, ask: Any, *, era: int, now_ns: int) -> Any:
    usual = msgspec.structs.replace(ask, lease_ns=min(ask.lease_ns, LEASE_NS))
    return _propose(self, sender, usual, era=era, now_ns=now_ns)


def _all_accept_kept(self: HandOver, _now_ns: int) -> SetGate:
    return SetGate(self._group.params.index, 0, self._group.gate_ns)


def _release_anything(self: Acceptor, sender: int, release: Release) -> bool:
    if sender != self.holder:
        return False
    self.released, self.released_to = True, release.to
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


def _same_epoch(self: NodeView, group: int, floor: int) -> int:
    return make_epoch(self.era, 1, self.params.node_id)


def _new_majority(self: VoterChange, follows: VoterSet, now_ns: int) -> bool:
    told = {peer.node_id for peer in self._tellers(follows, now_ns)}
    told.add(self._view.params.node_id)
    return len(told.intersection(follows.members)) >= follows.majority


def _highest(self: VoterChange) -> VoterSet | None:
    if self.rival is None or self.next is None:
        return None
    return max(self.rival, self.next, key=lambda voters: voters.members)


def _votes_anyway(self: NodeView, now_ns: int) -> bool:
    return self.era_durable and now_ns >= self.votes_from_ns


def _in_any_set(self: NodeView, peer: PeerView) -> bool:
    return peer.node_id in self.voters.members


def _refuses_no_epoch(self: Acceptor, sender: int, epoch: int, *, era: int, now_ns: int) -> bool:
    return self.blocks(sender, now_ns) > 0


def _refuses_old_era(self: Acceptor, sender: int, epoch: int, *, era: int, now_ns: int) -> bool:
    return epoch >> 40 < era or epoch < self.promised or self.blocks(sender, now_ns) > 0


_ON_MESSAGE = LeaseCore._on_message
_OPEN = Codec.open


def _release_all(self: LeaseCore, sender: int, message: Message, seq: int, now_ns: int) -> Any:
    if isinstance(message, Release):
        for group in self.groups.values():
            if group.acceptor.holder == sender:
                group.acceptor.released, group.acceptor.released_to = True, message.to
    return _ON_MESSAGE(self, sender, message, seq, now_ns)


def _count_for_all(self: LeaseCore, sender: int, message: Message, seq: int, now_ns: int) -> Any:
    effects = []
    if isinstance(message, Promise | Accepted):
        for index, group in self.groups.items():
            claim = group.proposer.claim or group.proposer.held
            if index == message.group or claim is None:
                continue
            changes: dict[str, int] = {"group": index, "epoch": claim.epoch}
            if isinstance(message, Accepted):
                changes["request"] = next(reversed(claim.requests), 0)
            other: Message = msgspec.structs.replace(message, **changes)
            effects += _ON_MESSAGE(self, sender, other, seq, now_ns)
    return effects + _ON_MESSAGE(self, sender, message, seq, now_ns)


def _without_position(self: Codec, datagram: bytes) -> tuple[int, Envelope]:
    sender, envelope = _OPEN(self, datagram)
    messages: list[Message] = []
    for message in envelope.messages:
        match message:
            case Release():
                messages.append(msgspec.structs.replace(message, position=None))
            case Promise():
                messages.append(msgspec.structs.replace(message, given=None))
            case _:
                messages.append(message)
    return sender, msgspec.structs.replace(envelope, messages=messages)


def _releases_unopened(self: Acceptor, sender: int, release: Release) -> bool:
    if epoch_node(release.epoch) != sender:
        return False
    self._dead_epoch = max(self._dead_epoch, release.epoch)
    if release.epoch != self.accepted_epoch:
        return False
    self.released, self.released_to = True, release.to
    return True


def _heard_active(self: Heir, given: Release, claim: Claim) -> bool:
    return given.epoch in (claim.succeeds, self._role.epoch)


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
    "ballot_reused": "a node claims again with the ballot of its last claim",
    "epoch_unchecked": "a voter grants below what it has promised",
    "era_told_early": "an era is answered in before it is durable",
    "opened_before_position": "the target of a move opens before it applied the position",
    "drift_ignored": "holder and voters count a lease alike, as if clocks did not drift",
    "voter_not_rejoined": "a holder never claims anew for a voter that started since",
    "renewed_in_hand_over": "renewals open announce again while the position is awaited",
    "both_majorities_unasked": "a voter set comes into force by a majority of the new set alone",
    "voters_without_wait": "a voter set comes into force as soon as both majorities have it",
    "next_voters_replaced": "another next set takes the place of the one stored",
    "rival_that_lives_left": "a higher rival is stored although ours may have its majority",
    "release_of_another_set_ignored": "a release is acted on in the voter set of its sender alone",
    "rivals_stay": "no node ever leaves the next set that it has stored for a rival",
    "holder_left_behind": "a voter set comes into force whether its holder can follow or not",
    "anybody_votes": "newcomers vote, and are counted, before their set is in force",
    "voters_told_early": "a next set is told before it is durable",
    "loss_of_voters_unnoticed": "a node without its voters file goes on with the founders",
    "release_of_all_groups": "a release of one group frees the sender's other groups, too",
    "votes_of_any_group": "a vote for one group counts for the others, too",
    "position_lost_on_the_wire": "the decoder drops the position of a release",
    "given_to_anybody": "a holder without an upstream gives to nodes that have none either",
    "upstream_ignored": "a holder without an upstream keeps its group",
    "long_grant_cut_short": "a voter counts every grant as a usual lease, long ones too",
    "long_lease_backdated": "a usual lease that was granted counts as long once the work begins",
    "long_accept_kept": "the accept that a long lease opened outlasts a usual one in a move",
    "opening_unproven": "a release whose epoch nobody heard ACTIVE is no reason to wait",
    "release_untold": "voters do not tell of a release that its target may not have heard",
}


@contextmanager
def planted(mistake: str | None, world: World | None = None) -> Iterator[None]:
    """The code with one mistake in it. Mistakes of the shell are made by the simulated one."""
    if world is not None:
        world.no_restart_wait = mistake == "no_restart_wait"
        world.relative_deadlines = mistake == "relative_deadline"
        world.forget_era = mistake == "era_not_persisted"
        world.era_told_early = mistake == "era_told_early"
        world.voters_told_early = mistake == "voters_told_early"
        world.loss_of_voters_unnoticed = mistake == "loss_of_voters_unnoticed"
    patches: dict[str, tuple[type, str, object]] = {
        "lease_from_receipt": (Proposer, "deadline_of", _from_receipt),
        "long_grant_cut_short": (Acceptor, "propose", _usual_grant),
        "long_lease_backdated": (Proposer, "deadline_of", _as_asked_now),
        "long_accept_kept": (HandOver, "_silence", _all_accept_kept),
        "grants_to_another": (Acceptor, "blocks", lambda _self, _node, _now: 0),
        "old_voters_accepted": (LeaseCore, "_same_voters", lambda _self, _envelope: True),
        "unsynced_at_once": (Candidacy, "_due_ns", _at_once),
        "release_of_any_epoch": (Acceptor, "release", _release_anything),
        "promise_forgotten": (Acceptor, "propose", _accept_blindly),
        "release_after_restart": (Proposer, "drop", _release_after_restart),
        "renewals_of_old_era_refused": (Acceptor, "_refuses", _refuses_old_era),
        "release_while_open": (Proposer, "drop", _release_while_open),
        "ballot_reused": (NodeView, "next_epoch", _same_epoch),
        "epoch_unchecked": (Acceptor, "_refuses", _refuses_no_epoch),
        "opened_before_position": (NodeView, "applied", lambda _self, _position: True),
        "drift_ignored": (LeaseParams, "shorter", lambda _self, duration_ns: duration_ns),
        "voter_not_rejoined": (GroupCore, "_outbid", lambda _self, _now_ns: []),
        "both_majorities_unasked": (VoterChange, "_both_majorities", _new_majority),
        "voters_without_wait": (VoterChange, "_wait_ns", lambda _self: 0),
        "next_voters_replaced": (VoterChange, "_free", lambda _self: True),
        "rival_that_lives_left": (VoterChange, "_way_given", _highest),
        "release_of_another_set_ignored": (
            LeaseCore,
            "_holds_in_any_set",
            lambda _self, message: isinstance(message, Beat),
        ),
        "rivals_stay": (VoterChange, "_way_given", lambda _self: None),
        "holder_left_behind": (VoterChange, "_is_held_up", lambda *_: False),
        "anybody_votes": (NodeView, "counts", lambda _self, _node: True),
        "renewed_in_hand_over": (HandOver, "gate_frozen", property(lambda _self: False)),
        "release_of_all_groups": (LeaseCore, "_on_message", _release_all),
        "votes_of_any_group": (LeaseCore, "_on_message", _count_for_all),
        "position_lost_on_the_wire": (Codec, "open", _without_position),
        "given_to_anybody": (NodeView, "sound", lambda *_: True),
        "upstream_ignored": (NodeView, "upstream_fault", lambda *_: ""),
        "opening_unproven": (Heir, "_stands", _heard_active),
        "release_untold": (GroupCore, "_learn", lambda _self, _promise: None),
    }
    with ExitStack() as stack:
        if mistake in patches:
            stack.enter_context(patched(*patches[mistake]))
        if mistake == "old_voters_accepted":
            stack.enter_context(patched(NodeView, "in_set", _in_any_set))
        if mistake == "opening_unproven":
            stack.enter_context(patched(Acceptor, "release", _releases_unopened))
        if mistake == "anybody_votes":
            stack.enter_context(patched(NodeView, "may_vote", _votes_anyway))
        if mistake == "drift_ignored":
            exact = (LeaseParams, "longer", lambda _self, duration_ns: duration_ns)
            stack.enter_context(patched(*exact))
        if mistake == "release_after_restart":
            # Voters that tell a node's processes apart make it harmless.
            stack.enter_context(patched(GroupCore, "_is_another_process", lambda *_: False))
        yield
