"""The voter set that is wanted and the one in force: which step is next, and what keeps it. Pure.

Who is to vote is agreed on by Raft (`cluster.agreed.Member.votes`). hafwd beside the Raft leader
looks once a second and asks its leased for one step at a time; the lease core makes a step safe by
itself (`cluster.voters`), whoever asks and whatever Raft believes. A step is not asked for while
it would leave fewer voters heard than a majority of the set to come, unless it was forced.
"""

from __future__ import annotations

from cluster.agreed import Member, State
from cluster.assignment import outsiders
from hafw.config.model import ClusterConfig
from hafw.messages import LeasedStatus, PeerStatus, VotersRequest

__all__ = [
    "SETTLED_S",
    "VoterKeeper",
    "change_problem",
    "change_words",
    "spare_words",
    "voters_notes",
]

SETTLED_S = 3.0
"""A node is added once it has been heard in the set in force for so long: M and a second."""
WAITING_ALARM_S = 10.0


def wanted(leased: LeasedStatus, member: Member) -> bool | None:
    """Whether the member is to be added (True) or taken out (False); None: neither."""
    if leased.voters is None or not member.votes:
        return None
    add = member.votes == "yes"
    return None if (member.id in leased.voters.members) is add else add


def change_problem(leased: LeasedStatus, member: Member, *, add: bool) -> str:
    """Why the voter should not be added, or taken out, now; empty: it may."""
    voters = leased.voters
    if voters is None:
        return "leased is of another release"
    if not voters.id:
        return "this node is new and knows no voters yet"
    if leased.voters_next is not None:
        return f"set {leased.voters_next.id} is not in force yet"
    peer = _peer(leased, member.id)
    if add and member.id != leased.node_id:
        if peer is None or not peer.alive:
            return f"{member.name} is not heard"
        if not peer.era or peer.voters_id != voters.id:
            return f"{member.name} does not know set {voters.id} yet"
    members = set(voters.members) ^ {member.id}
    if not members:
        return f"{member.name} is the last voter"
    heard, enough = _spare(leased, set(voters.members), 0)
    if heard < enough:  # Once stored it could not be taken back: nothing forces it.
        return (
            f"only {heard} of the {len(voters.members)} voters of set {voters.id} are heard and "
            f"vote, and {enough} are needed to change it"
        )
    if not add and len(members) == 1 and not member.forced:
        return "a single voter would be left: its loss would leave nobody ACTIVE"
    if not add and member.id in {group.holder_id for group in leased.groups} and not member.forced:
        return f"{member.name} is ACTIVE: its groups move away first"
    there, needed = _spare(leased, members, member.id if add else 0)
    if there < needed and not member.forced:
        return (
            f"only {there} of the {len(members)} voters that there would be are heard and vote, "
            f"and {needed} are needed: nobody could hold a group"
        )
    return ""


def spare_words(members: list[int]) -> str:
    """What to know of a set of which nobody may be missing; empty: one may."""
    if len(members) > 2:
        return ""
    if len(members) == 1:
        return "a single voter is left: its loss leaves nobody ACTIVE, until one is added"
    return "two voters are left: the loss of either leaves nobody ACTIVE, until one is added"


def change_words(leased: LeasedStatus | None, member: Member) -> str:
    """What is under way for a member; empty: it stays what it is."""
    if leased is None or leased.voters is None:
        return ""
    follows = leased.voters_next
    in_force = member.id in leased.voters.members
    if follows is not None and (member.id in follows.members) is not in_force:
        return f"{'leaves' if in_force else 'joins'} with set {follows.id}, stored so far"
    add = wanted(leased, member)
    if add is None:
        return ""
    words = "to be added" if add else "to be taken out"
    problem = change_problem(leased, member, add=add)
    return f"{words}: {problem}" if problem else words


def voters_notes(config: ClusterConfig, leased: LeasedStatus) -> list[str]:
    """For status: a change under way, and a node that does not vote."""
    voters, follows = leased.voters, leased.voters_next
    if voters is None:
        return []
    notes = []
    if voters.id and leased.node_id not in voters.members:
        names = ", ".join(map(config.node_name, voters.members))
        notes.append(f"this node does not vote: set {voters.id} is {names}")
    others = [
        name
        for name, node in config.nodes.items()
        if node.id not in voters.members and node.id != leased.node_id
    ]
    if others:
        notes.append(
            f"in cluster.yaml and not in voter set {voters.id}: {', '.join(others)} (hafwctl node "
            "join there, or hafwctl cluster voters --add)"
        )
    if follows is not None:
        names = ", ".join(map(config.node_name, follows.members))
        stored = ", ".join(map(config.node_name, follows.stored_by))
        when = (
            "majorities of both sets have not stored it yet"
            if follows.settles_ms is None
            else f"in force in {follows.settles_ms / 1e3:.1f} s"
        )
        notes.append(f"voter set {follows.id} ({names}) follows, stored by {stored}: {when}")
    return notes


class VoterKeeper:
    """Of one node; asks only beside the Raft leader, so that as a rule one asks."""

    def __init__(self) -> None:
        self._heard_since: dict[int, float] = {}
        self._waiting: dict[str, float] = {}

    def observe(
        self, leased: LeasedStatus, state: State, *, leads: bool, now: float
    ) -> VotersRequest | None:
        """The next step to ask leased for."""
        voters = leased.voters
        if voters is None or not voters.id or leased.two_node:
            return None
        self._note_heard(leased, now)
        found: list[tuple[int, bool, int]] = []
        waiting = []
        for member in (*state.members, *outsiders(state)) if leads else ():
            add = wanted(leased, member)
            if add is None:
                continue
            problem = change_problem(leased, member, add=add)
            if not problem and add and not self._settled(leased, member.id, now):
                problem = f"{member.name} is heard since a moment only"
            if problem:
                waiting.append(f"{member.name} is to {'vote' if add else 'leave'}: {problem}")
                continue
            members = set(voters.members) ^ {member.id}
            there, needed = _spare(leased, members, member.id if add else 0)
            found.append((needed - there, not add, member.id))
        self._waiting = {text: self._waiting.get(text, now) for text in waiting}
        if not found:
            return None
        _, _, node = min(found)  # What leaves most to spare; added before taken out.
        return VotersRequest(voters.id + 1, sorted(set(voters.members) ^ {node}))

    def alarms(self, now: float) -> list[str]:
        return [
            f"the voters: {text}"
            for text, since in self._waiting.items()
            if now - since >= WAITING_ALARM_S
        ]

    def _note_heard(self, leased: LeasedStatus, now: float) -> None:
        heard = {peer.node_id for peer in leased.peers if peer.alive and peer.era}
        self._heard_since = {node: self._heard_since.get(node, now) for node in heard}

    def _settled(self, leased: LeasedStatus, node: int, now: float) -> bool:
        if node == leased.node_id:
            return leased.now_ns >= leased.votes_from_ns
        return now - self._heard_since.get(node, now) >= SETTLED_S


def _peer(leased: LeasedStatus, node: int) -> PeerStatus | None:
    return next((peer for peer in leased.peers if peer.node_id == node), None)


def _spare(leased: LeasedStatus, members: set[int], newcomer: int) -> tuple[int, int]:
    """How many of the members are heard and vote in the set in force, or will (`newcomer`), and a
    majority of them."""
    number = 0 if leased.voters is None else leased.voters.id
    there = {
        peer.node_id
        for peer in leased.peers
        if peer.alive and peer.votes and peer.voters_id == number
    } | {newcomer}
    if leased.may_vote:
        there.add(leased.node_id)
    return len(there & members), len(members) // 2 + 1
