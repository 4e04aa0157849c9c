"""Which groups a node should hand over because somebody wants it: drain, maintenance, preemption,
or that it votes no longer: who does not vote claims nothing, so it should hold nothing either.

The holder decides for itself, from what Raft agreed on and what its leased hears. A wish is tried
until it is done or nobody wants it any more; a refusal is waited out, so that a target that is
never synced does not cost a move a second. Pure.

Theory of operation
    leased moves groups, too (`cluster.handover`), and two who judge differently would hand a
    group to and fro for ever. So both go by one order (`cluster.claims.rank`): synced, not
    drained, its far side answers, not damped, place in the group's order. Every move goes to a
    node that comes before the holder in it. As long as no node and no wish changes, a group
    therefore moves at most once for each node:

    - a drained holder, or one that is not to vote, gives to whoever is online and synced, best
      first; no leased gives the group back to it but for what makes the other one unsynced,
    - preemption, a mere preference, takes a node with nothing against it.

    Should something unforeseen bring the group back all the same, or a target not take what it
    was given, the next try waits, twice as long each time, for up to `RETURNED_S`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.agreed import Group, Member, State
from cluster.assignment import find_group, find_member
from hafw.config.model import ClusterConfig
from hafw.messages import LeasedStatus

__all__ = ["BACK_SOON_S", "REFUSED_S", "RETURNED_S", "Mover", "Wish", "fit_problem"]

REFUSED_S = (2.0, 30.0)
"""The first pause after a refused move, and the longest; each is twice the one before."""
RETURNED_S = (8.0, 3600.0)
"""The same after a move that cost something and was in vain."""
BACK_SOON_S = 30.0
"""A group that is back here so soon after it was handed over was handed over in vain."""


@dataclass(frozen=True, slots=True)
class Wish:
    group: str
    target: str
    why: str


def fit_problem(leased: LeasedStatus, group: int, member: Member) -> str:
    """Why the group should not go to a node by itself; empty: it may."""
    if member.state != "online":
        words = {"draining": "being drained", "maintenance": "in maintenance"}
        return f"{member.name} is {words.get(member.state, 'no member any more')}"
    if member.votes == "no":
        return f"{member.name} is not to vote"
    peer = next((peer for peer in leased.peers if peer.node_id == member.id), None)
    if peer is None or not peer.alive:
        return f"{member.name} is not heard"
    if not peer.synced.get(group, False):
        return f"{member.name} is not synced ({peer.reasons.get(group) or 'it gives no reason'})"
    return ""


def _upstream_problem(leased: LeasedStatus, group: int, member: Member) -> str:
    """Whether its far side is silent; nobody moves to it for a preference then."""
    peer = next((peer for peer in leased.peers if peer.node_id == member.id), None)
    silent = peer is not None and not peer.upstream.get(group, True)
    return f"an upstream check of {member.name} fails" if silent else ""


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The other nodes of one group, best first: those that may get it, and of them those with
    nothing against them, which are those a preference may be for."""

    members: list[Member]
    problems: dict[str, str]
    fit: list[str]
    well: list[str]


class Mover:
    """Of one node. Asked at every look; remembers who has been fit since when."""

    def __init__(self, config: ClusterConfig, node: str) -> None:
        self._config = config
        self._node = node
        self._fit_since: dict[tuple[str, str], float] = {}
        self._pause: dict[str, tuple[float, float]] = {}
        """Until when no move of the group is tried, and how long that pause is."""
        self._given_at: dict[str, float] = {}
        """When a group was handed over from here."""
        self._state: tuple[str, str] | None = None
        """What this node was agreed to be, at the last look."""
        self.stuck: dict[str, str] = {}
        """Groups that should go away from here and cannot, with the reason."""

    def observe(self, leased: LeasedStatus, state: State, *, now: float) -> list[Wish]:
        """What should be moved away now."""
        names = {group.index: name for name, group in self._config.groups.items()}
        held = [names[g.group] for g in leased.groups if g.active and g.group in names]
        own = find_member(state, self._node)
        self.stuck = {name: why for name, why in self.stuck.items() if name in held}
        if own is not None and (own.state, own.votes) != self._state:  # Another wish.
            self._state = (own.state, own.votes)
            self._pause, self._given_at = {}, {}
        wishes = []
        for name in held:
            group = find_group(state, name)
            if own is None or group is None:
                continue
            self._note_return(name, now)
            wish = self._wish(group, own, self._candidates(leased, state, group, now), now)
            if wish is not None and now >= self._pause.get(name, (0.0, 0.0))[0]:
                wishes.append(wish)
        self._forget(held, now)
        return wishes

    def done(self, group: str, *, now: float) -> None:
        """The target holds the group."""
        self._given_at[group] = now
        self.stuck.pop(group, None)
        self._fit_since = {key: at for key, at in self._fit_since.items() if key[0] != group}

    def refused(self, group: str, reason: str, *, now: float, released: bool = False) -> None:
        """Nothing changed, or (`released`) the target did not take what it was given."""
        first_s, most_s = RETURNED_S if released else REFUSED_S
        _, pause_s = self._pause.get(group, (0.0, 0.0))
        pause_s = max(pause_s, min(max(2 * pause_s, first_s), most_s))
        self._pause[group] = (now + pause_s, pause_s)
        self.stuck[group] = reason

    def _note_return(self, group: str, now: float) -> None:
        """The group is here. If it was handed over a moment ago, that was in vain."""
        given_at = self._given_at.pop(group, None)
        if given_at is not None and now - given_at < BACK_SOON_S:
            reason = f"it came back {now - given_at:.0f} s after it was handed over"
            self.refused(group, reason, now=now, released=True)

    def _candidates(
        self, leased: LeasedStatus, state: State, group: Group, now: float
    ) -> _Candidates:
        members = [m for m in (find_member(state, n) for n in group.ranked) if m is not None]
        others = [member for member in members if member.name != self._node]
        damped = {at.node_id for at in leased.damped if at.group == group.index}
        problems = {m.name: fit_problem(leased, group.index, m) for m in others}
        silent = {m.name: _upstream_problem(leased, group.index, m) for m in others}
        fit = [member for member in others if not problems[member.name]]
        fit.sort(key=lambda m: (silent[m.name] != "", m.id in damped))
        self._note_fit(group.name, {n: why or silent[n] for n, why in problems.items()}, now)
        well = [m.name for m in fit if not silent[m.name] and m.id not in damped]
        return _Candidates(members, problems, [member.name for member in fit], well)

    def _wish(self, group: Group, own: Member, others: _Candidates, now: float) -> Wish | None:
        if own.state != "online" or own.votes == "no":
            if not others.fit:
                reasons = "; ".join(why for why in others.problems.values() if why)
                self.stuck[group.name] = reasons or "there is no other candidate"
                return None
            words = {
                "online": "not to vote", "draining": "drained", "maintenance": "in maintenance"
            }  # fmt: skip
            why = f"{own.name} is {words.get(own.state, 'no member any more')}"
            return Wish(group.name, others.fit[0], f"{why}: {own.why}" if own.why else why)
        self.stuck.pop(group.name, None)
        if not group.preempt:
            return None
        members = others.members
        better = [m.name for m in members[: members.index(own)]] if own in members else []
        for name in better:
            since = self._fit_since.get((group.name, name))
            if name in others.well and since is not None and now - since >= group.preempt_after_s:
                why = f"preempt: {name} is better and has been fit for {group.preempt_after_s:g} s"
                return Wish(group.name, name, why)
        return None

    def _note_fit(self, group: str, problems: dict[str, str], now: float) -> None:
        for name, why in problems.items():
            if why:
                self._fit_since.pop((group, name), None)
            else:
                self._fit_since.setdefault((group, name), now)

    def _forget(self, held: Iterable[str], now: float) -> None:
        """What is not here, unless it may be back soon."""
        kept = set(held)
        self._fit_since = {key: at for key, at in self._fit_since.items() if key[0] in kept}
        kept.update(name for name, (at, _) in self._pause.items() if now < at + BACK_SOON_S)
        kept.update(name for name, at in self._given_at.items() if now < at + BACK_SOON_S)
        self._pause = {name: at for name, at in self._pause.items() if name in kept}
