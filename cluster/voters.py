"""Changes of the voter set, one voter at a time, with majorities of both sets (DESIGN §5). Pure.

Theory of operation
    Sets are numbered and each differs from the one before by exactly one voter, so majorities of
    two neighbours always share a voter: what keeps two leases apart in one set keeps them apart
    in two neighbours. What has to be shown is that leases of sets *two* apart never meet.

    ::

        current  --asked, or told by a peer-->  next durable, told  --majorities of current and of
        next have told it, then M(1+ε), own era raised-->  current = next
        current  --a peer's current has a higher number: durable, own era raised-->  that one

    1. A node keeps {current, next} in one file. It stores as `next` only what follows its current
       by one number and one voter, another in its place only by rule 6, and tells it once it is
       durable. So whoever tells `next` = n + 1 acts in n, and will never again act in a set below.
    2. When a majority of n has told n + 1, no majority of n - 1 is left that could grant: every
       lease of n - 1 was granted before, and has ended M(1+ε) later. That is what is waited for
       before the first node acts in n + 1, and longer, within bounds, if disks keep a holder from
       following at once, as all others may (`settling`). Who acts in a set above n + 1 told
       nothing by that: its set may descend from a rival (rule 6).
    3. At the switch claims and requests under way are dropped (grants of two sets must not be
       added up); what the voter granted it keeps, and waits for, as ever.
    4. Who acts in n + 1 has an era above all it granted in, and not below those of the nodes that
       had stored n + 1: so epochs grow over sets without a common voter, too. The era is durable
       before the set is.
    5. A node that was told `lost` (its file is gone or damaged) may have told what it has
       forgotten. It follows, stores nothing and does not vote, until it was taken out of the set
       and in again.

    6. Of rivals, different sets n + 1 stored at once, at most one is ever told by a majority of n,
       which a set must be to come into force. Sets are ordered by their members. A node leaves the
       one it has stored for another one only

       - *up*, if so many voters of n tell higher ones that no majority is left for its own;
       - to one that a majority of n tells.

       Take the first node to go up from some A. Those higher voters never told A, or one of them
       would have gone up from it before; they cannot come to it upwards, and not by a majority of
       n, which they themselves leave no room for. So A never gets one, and a set that got one is
       never gone up from. Hence two sets with a majority each are impossible: of a voter in both
       majorities, neither way from one set to the other is open. While too many voters of n are
       silent neither rule may apply; then the current set goes on until they are heard.

    A new node knows no set; `cluster.founding` says when it founds the first one.

    Which change is wanted is for others to say (Raft, people); none of this rests on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.acceptor import Acceptor
from cluster.founding import first_set, founders_missing
from cluster.heartbeat import Beat, Voters
from cluster.lease_types import NEWCOMER, NS_PER_MS, Effect, PersistVoters, VoterRecord, is_sound
from cluster.settling import PATIENCE_WAITS, granted_era, holder_is_held_up, one_step
from cluster.view import NodeView, PeerView
from hafw.config.model import VoterSet

__all__ = ["VoterChange"]

RETRY_MS = 1000


@dataclass(frozen=True, slots=True)
class _Higher:
    """A current set above ours that a peer tells, and the era below which nobody may act in it."""

    voters: VoterSet
    era: int


class VoterChange:
    """Where this node stands between two voter sets. `view.voters` is the set it acts in."""

    def __init__(self, record: VoterRecord, view: NodeView, acceptors: list[Acceptor]) -> None:
        self.record = record
        """What the file holds."""
        self.error = ""
        """Why the file could not be written; empty: it could."""
        self.settles_ns: int | None = None
        """When the next set may be acted in; None: not both majorities have told it yet."""
        self.rival: VoterSet | None = None
        """Another `next` than ours that a peer has stored: one of the two must give way."""
        self._view = view
        self._acceptors = acceptors
        self._asked: VoterSet | None = None
        self._higher: _Higher | None = None
        self._founds: VoterSet | None = None  # Set 1, once all its nodes found it.
        self._era_floor = 0
        self._raise_ns = 0  # When the floor may next be raised above what was granted in.
        self._writing = False
        self._retry_ns = 0
        self._idle = False
        view.voters_next = self.next

    # ---- what is told -------------------------------------------------------------------------

    @property
    def next(self) -> VoterSet | None:
        """The next set, durable here; None: no change is under way that this node has stored."""
        record, voters = self.record, self._view.voters
        acts = record.current is voters or record.current == voters  # It mostly is the very one.
        return record.next if acts else None

    def told(self) -> tuple[Voters, Voters | None]:
        """The set acted in and the next one, for a heartbeat."""
        view, follows = self._view, self.next
        return view.voters_told, None if follows is None else Voters(follows.id, follows.members)

    def stored_by(self, voters: VoterSet, now_ns: int) -> list[int]:
        """The nodes known to have `voters` durable, as the next set or in force."""
        view = self._view
        found = [view.params.node_id] if voters in (self.next, view.voters) else []
        found += [peer.node_id for peer in self._tellers(voters, now_ns)]
        return sorted(found)

    # ---- events -------------------------------------------------------------------------------

    def ask(self, voters: VoterSet) -> str:
        """Have `voters` follow. Why not; empty if it is stored, or will be."""
        view = self._view
        if view.params.two_node:
            return "two nodes without a witness keep their voters"
        if view.voters.id == NEWCOMER:
            return "this node is new and knows no voters yet"
        voters = _sorted(voters)
        if voters in (view.voters, self.next, self._asked):
            return ""
        if not self._free():
            return f"the change to set {view.voters.id + 1} is not done yet"
        if not one_step(view.voters, voters):
            return (
                f"set {voters.id} does not follow set {view.voters.id}: it must have the next "
                "number and differ by one voter"
            )
        if not self._may_store():
            return "this node has lost its voters file, and stores none until it is added anew"
        self._asked, self._idle = voters, False
        return ""

    def on_beat(self, beat: Beat) -> None:
        """What a proven peer tells of its sets."""
        own = self._view.voters
        if self._view.params.two_node:
            return  # One of the two may decide alone: majorities do not share a voter.
        if not all(is_sound(_plain(each)) for each in (beat.voters, beat.next) if each):
            return
        if own.id == NEWCOMER and _plain(beat.voters) in (own, first_set(self._view)):
            return  # It may found set 1 with us.
        if beat.voters.id > own.id:
            higher = self._higher
            if not beat.era:
                return  # Its era is not durable: nobody can tell from where epochs go on.
            if higher is None or beat.voters.id >= higher.voters.id:
                era = beat.era if higher is None else max(beat.era, higher.era)
                self._higher = _Higher(_voter_set(beat.voters), era)
            self._idle = False
            return
        self._idle = self._idle and beat.next is None
        if beat.next is None or beat.voters != self._view.voters_told:
            return
        offered = _voter_set(beat.next)
        follows = self.next or self._asked
        if self._free():
            if one_step(own, offered) and self._may_store():
                self._asked = offered
        elif follows is not None and offered.id == follows.id and offered != follows:
            self._view.counters["rival_voters"] += 1
            self.rival = offered

    def on_persisted(self, record: VoterRecord) -> None:
        if record.next != self.record.next:
            self.rival, self.settles_ns = None, None
        self.record = record
        self._view.voters_next = self.next
        self._writing, self.error, self._idle = False, "", False
        self._view.beat_soon = True
        if self._asked is not None and self._asked.id <= record.current.id + 1:
            self._asked = None

    def on_failed(self, error: str, now_ns: int) -> None:
        self._writing, self.error = False, error
        self._retry_ns = now_ns + RETRY_MS * NS_PER_MS
        self._view.counters["voters_write_failed"] += 1

    # ---- time ---------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> tuple[bool, list[Effect]]:
        """Whether the set was switched just now, and what is to be written."""
        if self._idle:
            return False, []
        switched = self._follow() or self._settle(now_ns) or self._found()
        wanted = self._wanted(now_ns)
        as_wanted = wanted is self.record or wanted == self.record
        rests = self.next is None and self._higher is None and self._view.voters.id > NEWCOMER
        self._idle = as_wanted and rests
        if as_wanted or self._writing or now_ns < self._retry_ns:
            return switched, []
        self._writing = True
        return switched, [PersistVoters(wanted)]

    def deadline(self) -> int | None:
        if self.settles_ns is not None:
            return self.settles_ns
        return self._retry_ns if self.error else None

    def _follow(self) -> bool:
        """Act in a higher set that a peer acts in, once it is durable here."""
        higher = self._higher
        if higher is None:
            return False
        if higher.voters.id <= self._view.voters.id:
            self._higher = None
            return False
        if not self._era_reached(higher.era):
            return False
        if higher.voters not in (self.next, self.record.current):
            return False  # `_wanted` has it written first.
        self._switch(higher.voters)
        return True

    def _found(self) -> bool:
        """Act in set 1, once it is durable here."""
        view, written = self._view, self.record.current
        if view.voters.id > NEWCOMER or self._founds is None or written != self._founds:
            return False
        self._switch(written)
        return True

    def _settle(self, now_ns: int) -> bool:
        """Act in the next set: both majorities have it, and all leases of the last are over."""
        view, follows = self._view, self.next
        if follows is None:
            return False
        if self.settles_ns is None:
            if not self._both_majorities(follows, now_ns):
                return False
            self.settles_ns = self._raise_ns = now_ns + self._wait_ns()
            eras = [peer.beat.era for peer in self._tellers(follows, now_ns) if peer.beat]
            self._era_floor = max(view.era, max(eras, default=0)) + 1
        if now_ns < self.settles_ns or self._is_held_up(follows, now_ns):
            # Ahead. What is granted in until then counts only in the end: an era above each
            # promise would make the voters refuse that very claim, and the next, until the end.
            if now_ns >= self._raise_ns:
                self._era_floor = max(self._era_floor, granted_era(self._acceptors) + 1)
                self._raise_ns = now_ns + self._wait_ns()
            view.want_era(self._era_floor)
            return False
        if not self._era_reached(self._era_floor):
            return False
        self._switch(follows)
        return True

    def _is_held_up(self, follows: VoterSet, now_ns: int) -> bool:
        """Whether a holder would lose its lease now, for a disk that may be written in time."""
        since_ns = self.settles_ns
        if since_ns is None or now_ns >= since_ns + PATIENCE_WAITS * self._wait_ns():
            return False
        told, floor = self._tellers(follows, now_ns), self._era_floor
        return holder_is_held_up(self._view, self._acceptors, told, follows, floor, now_ns)

    def _wait_ns(self) -> int:
        """M(1+ε): no lease of two sets before runs longer."""
        return self._view.params.longer(self._view.params.restart_wait_ns)

    def _both_majorities(self, follows: VoterSet, now_ns: int) -> bool:
        told = {peer.node_id for peer in self._tellers(follows, now_ns)}
        told.add(self._view.params.node_id)
        return all(
            len(told.intersection(voters.members)) >= voters.majority
            for voters in (self._view.voters, follows)
        )

    def _tellers(self, follows: VoterSet, now_ns: int) -> list[PeerView]:
        """Peers that have told `follows`; not those whose era may not be learnt."""
        return [
            peer
            for peer in self._view.alive_peers(now_ns)
            if peer.beat is not None
            and self._has(peer.beat, follows)
            and peer.beat.era > 0
            and self._view.credible(peer.beat.era)
        ]

    def _has(self, beat: Beat, voters: VoterSet) -> bool:
        """Whether the teller has `voters` durable, as the next set or in force."""
        if beat.voters.id == voters.id:
            return beat.voters.members == voters.members
        told = beat.next
        return (
            beat.voters == self._view.voters_told
            and told is not None
            and told.id == voters.id
            and told.members == voters.members
        )

    def _era_reached(self, era: int) -> bool:
        """Whether the own era, durable, is at least `era` and above all granted in; if not, it
        is raised."""
        view = self._view
        least = max(era, granted_era(self._acceptors) + 1)
        if view.era_durable and view.era >= least:
            return True
        view.want_era(least)
        return False

    def _switch(self, voters: VoterSet) -> None:
        view = self._view
        view.voters_lost = self._lost_in(voters)
        view.act_in(voters)
        view.voters_next = self.next
        self.settles_ns, self.rival, self._asked, self._higher = None, None, None, None
        self._era_floor = 0
        view.counters["voter_sets_changed"] += 1

    def _lost_in(self, voters: VoterSet) -> bool:
        """Whether this node may, in a set that it will act in, have told what it forgot."""
        view, own = self._view, self._view.params.node_id
        if own not in voters.members:
            return view.voters_lost
        if view.voters.id == NEWCOMER:
            return voters != self._founds  # It was a voter before it was installed anew.
        return view.voters_lost and own in view.voters.members

    def _may_found(self, now_ns: int) -> bool:
        """Whether all nodes of the file are heard to found set 1, and our era is not behind."""
        view = self._view
        if founders_missing(view, now_ns):
            return False
        eras = [peer.beat.era for peer in view.alive_peers(now_ns) if peer.beat is not None]
        return self._era_reached(max(eras, default=0))

    def _wanted(self, now_ns: int) -> VoterRecord:
        """What the file should hold."""
        view, higher = self._view, self._higher
        lost = view.voters_lost
        if (
            higher is not None
            and higher.voters != self.next
            and higher.voters.id > self.record.current.id
            and self._era_reached(higher.era)
        ):
            return VoterRecord(higher.voters, None, self._lost_in(higher.voters))
        if self.record.current.id > view.voters.id:
            return self.record  # Of a higher set: about to be acted in.
        if view.voters.id == NEWCOMER:
            if self._founds is None and self._may_found(now_ns):
                self._founds = first_set(view)
            return self.record if self._founds is None else VoterRecord(self._founds)
        follows = self._asked or self._way_given()
        if follows is not None and one_step(view.voters, follows):
            return VoterRecord(view.voters, follows, lost)
        if self.record.current is not view.voters and self.record.current != view.voters:
            return VoterRecord(view.voters, None, lost)
        return self.record if self.record.lost == lost else replace(self.record, lost=lost)

    def _way_given(self) -> VoterSet | None:
        """The rival that takes the place of the stored next set by rule 6; None: it stays."""
        view, stored = self._view, self.next
        if self.rival is None or stored is None or not self._may_store():
            return None
        voters = view.voters
        told = {view.params.node_id: stored} if view.is_voter else {}
        for peer in view.peers.values():
            beat = peer.beat
            if beat is not None and beat.next is not None and view.in_set(peer):
                told[peer.node_id] = _voter_set(beat.next)
        if all(rival == stored for rival in told.values()):
            self.rival = None  # The other gave way.
            return None
        for rival in told.values():
            if list(told.values()).count(rival) >= voters.majority:
                return rival
        higher = [rival for rival in told.values() if rival.members > stored.members]
        if len(voters.members) - len(higher) >= voters.majority:
            return None  # A majority may have told ours, or may do so yet.
        return max(higher, key=lambda rival: rival.members)

    def _free(self) -> bool:
        """No next set is stored, nor about to be: what was told is taken back by rule 6 alone."""
        return self.next is None and self._asked is None

    def _may_store(self) -> bool:
        view = self._view
        return not view.voters_lost or view.params.node_id not in view.voters.members


def _plain(told: Voters) -> VoterSet:
    return VoterSet(id=told.id, members=told.members)


def _voter_set(told: Voters) -> VoterSet:
    return VoterSet(id=told.id, members=tuple(sorted(told.members)))


def _sorted(voters: VoterSet) -> VoterSet:
    return VoterSet(id=voters.id, members=tuple(sorted(voters.members)))
