"""Which groups a node should hand over because somebody wants it: drain, maintenance, preemption,
or that it votes no longer: who does not vote claims nothing, so it should hold nothing either.
A damped node (`cluster.damping`) is the last choice, and no group goes back to it.

The holder decides for itself, from what Raft agreed on and what its leased hears. A wish is tried
until it is done or nobody wants it any more; a refusal is waited out, so that a target that is
never synced does not cost a move a second. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.agreed import Group, Member, State
from cluster.assignment import find_group, find_member
from hafw.config.model import ClusterConfig
from hafw.messages import LeasedStatus

__all__ = ["REFUSED_S", "Mover", "Wish", "fit_problem"]

REFUSED_S = (2.0, 30.0)
"""The first pause after a refused move, and the longest; each is twice the one before."""


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


class Mover:
    """Of one node. Asked at every look; remembers who has been fit since when."""

    def __init__(self, config: ClusterConfig, node: str) -> None:
        self._config = config
        self._node = node
        self._fit_since: dict[tuple[str, str], float] = {}
        self._pause: dict[str, tuple[float, float]] = {}
        self.stuck: dict[str, str] = {}
        """Groups that should go away from here and cannot, with the reason."""

    def observe(self, leased: LeasedStatus, state: State, *, now: float) -> list[Wish]:
        """What should be moved away now."""
        names = {group.index: name for name, group in self._config.groups.items()}
        held = {names[g.group]: g.group for g in leased.groups if g.active and g.group in names}
        own = find_member(state, self._node)
        self.stuck = {name: why for name, why in self.stuck.items() if name in held}
        wishes = []
        for name, index in held.items():
            group = find_group(state, name)
            if own is None or group is None:
                continue
            members = [m for m in (find_member(state, n) for n in group.ranked) if m is not None]
            others = [member for member in members if member.name != self._node]
            problems = {m.name: fit_problem(leased, index, m) for m in others}
            self._note_fit(name, problems, now)
            damped = {at.node_id for at in leased.damped if at.group == index}
            calm = [member.name for member in others if member.id not in damped]
            wish = self._wish(group, own, members, problems, calm, now)
            if wish is not None and now >= self._pause.get(name, (0.0, 0.0))[0]:
                wishes.append(wish)
        self._forget(held)
        return wishes

    def done(self, group: str) -> None:
        self._pause.pop(group, None)
        self.stuck.pop(group, None)

    def refused(self, group: str, reason: str, *, now: float) -> None:
        _, pause_s = self._pause.get(group, (0.0, REFUSED_S[0] / 2))
        pause_s = min(2 * pause_s, REFUSED_S[1])
        self._pause[group] = (now + pause_s, pause_s)
        self.stuck[group] = reason

    def _wish(
        self,
        group: Group,
        own: Member,
        members: list[Member],
        problems: dict[str, str],
        calm: list[str],
        now: float,
    ) -> Wish | None:
        fit = [member.name for member in members if problems.get(member.name) == ""]
        fit.sort(key=lambda name: name not in calm)
        if own.state != "online" or own.votes == "no":
            if not fit:
                reasons = "; ".join(why for why in problems.values() if why)
                self.stuck[group.name] = reasons or "there is no other candidate"
                return None
            words = {
                "online": "not to vote", "draining": "drained", "maintenance": "in maintenance"
            }  # fmt: skip
            why = f"{own.name} is {words.get(own.state, 'no member any more')}"
            return Wish(group.name, fit[0], f"{why}: {own.why}" if own.why else why)
        self.stuck.pop(group.name, None)
        if not group.preempt:
            return None
        better = [m.name for m in members[: members.index(own)]] if own in members else []
        for name in better:
            since = self._fit_since.get((group.name, name))
            if name in calm and since is not None and now - since >= group.preempt_after_s:
                why = f"preempt: {name} is better and has been fit for {group.preempt_after_s:g} s"
                return Wish(group.name, name, why)
        return None

    def _note_fit(self, group: str, problems: dict[str, str], now: float) -> None:
        for name, why in problems.items():
            if why:
                self._fit_since.pop((group, name), None)
            else:
                self._fit_since.setdefault((group, name), now)

    def _forget(self, held: Iterable[str]) -> None:
        kept = set(held)
        self._fit_since = {key: at for key, at in self._fit_since.items() if key[0] in kept}
        self._pause = {name: at for name, at in self._pause.items() if name in kept}
