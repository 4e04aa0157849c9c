"""The replicated log: pysyncobj with its pickles, its files and its sockets taken away. Shell.

The only module that knows pysyncobj (0.3.17, pinned by hash). What stays of it is the algorithm:
elections, appending, committing, installing a dump. What replaces the rest, and why, is ADR 0013:

======================= =====================================================================
its transport           `cluster.raft_net`: sealed datagrams over every link, typed messages
its journal and vote    `cluster.raft_journal`: checksums, and fsync before a word is said
its dump                the same, of our own state
its pickle module       refuses everything: nothing is pickled or unpickled in this process
======================= =====================================================================

Two of its faults are mended at the door: entries that this node has already are taken out of a
message before pysyncobj, which would cut its log back and append them again; and a node that has
lost its journal neither votes nor stands for election until a leader has told it everything, or
`AMNESIA_S` without any leader have passed.

Nothing that must be safe rests on this log (DESIGN section 5): it assigns, the lease executes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pysyncobj.pickle
import pysyncobj.syncobj
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.config import FAIL_REASON
from pysyncobj.monotonic import monotonic as pysyncobj_now  # Not time.monotonic's clock.
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from cluster.assignment import Command, State, apply, decode_command, decode_state, encode
from cluster.raft_journal import Entry, Journal, read_dump, write_dump
from cluster.raft_wire import REGULAR

__all__ = [
    "AMNESIA_S",
    "APPEND_S",
    "ELECTION_S",
    "FALLBACK_S",
    "Outcome",
    "RaftFacts",
    "RaftLog",
    "timeouts",
]

APPEND_S = 0.045
ELECTION_S = (0.15, 0.3)
FALLBACK_S = 0.12
"""A leader that no majority answers steps down; below the least election timeout, so that it has
before another is elected."""
AMNESIA_S = 30.0
COMPACT_ENTRIES = 1000
COMPACT_S = 3600
_CHUNK_BYTES = 32768
_NEVER_S = 1e6
_ROLES = ("follower", "candidate", "leader")

Send = Callable[[int, dict[str, Any]], bool]


class _Pickle:
    """In place of `pysyncobj.pickle`'s functions."""

    def __init__(self) -> None:
        self.refused = 0

    def refuse(self, *_arguments: object, **_more: object) -> NoReturn:
        self.refused += 1
        raise ValueError("nothing is pickled or unpickled by hafw-raftd")

    @staticmethod
    def loads(data: bytes) -> tuple[int, tuple[bytes]]:
        """pysyncobj asks what a regular command calls: always method 0, with the command."""
        return 0, (bytes(data),)


_pickle = _Pickle()
pysyncobj.pickle.loads = _pickle.loads
for _name in ("load", "dump", "dumps"):
    setattr(pysyncobj.pickle, _name, _pickle.refuse)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a proposal. `known` false: it may or may not be carried out yet. `again`: the reason
    passes by itself, as an election does; the same proposal may be agreed on then."""

    ok: bool
    reason: str = ""
    known: bool = True
    again: bool = False


@dataclass(frozen=True, slots=True)
class RaftFacts:
    role: str
    leader_id: int
    term: int
    commit: int
    applied: int
    entries: int
    quorum: bool


def timeouts(place: int, of: int) -> tuple[float, float]:
    """The election timeout of the member in this place: slices that do not overlap, so that two
    seldom stand at once."""
    least, most = ELECTION_S
    width = (most - least) / of
    return least + place * width, least + (place + 0.8) * width


class _Links(Transport):  # type: ignore[misc]  # pysyncobj has no types
    """pysyncobj's idea of a network, on ours."""

    def __init__(self, send: Send) -> None:
        super().__init__(None, None, [])
        self._send_to = send

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        return self._send_to(int(node.id), message)

    def said(self, node: Any, message: dict[str, Any]) -> None:
        self._onMessageReceived(node, message)

    def connected(self, node: Any, is_there: bool) -> None:
        if is_there:
            self._onNodeConnected(node)
        else:
            self._onNodeDisconnected(node)


class RaftLog:
    """One member. Every method is called from one thread; none waits."""

    def __init__(
        self,
        node_id: int,
        member_ids: list[int],
        folder: Path,
        shown: Path,
        *,
        send: Send,
        tell: Callable[..., None],
        counters: Counter[str],
    ) -> None:
        """Raises OSError if the files cannot be read or written."""
        self.state = State()
        self._counters, self._tell = counters, tell
        self._folder = folder
        self._journal = Journal(folder, shown, tell)
        self.amnesia = self._journal.amnesia
        self._amnesia_until = time.monotonic() + AMNESIA_S
        ids = sorted(member_ids)
        least, most = timeouts(ids.index(node_id), len(ids))
        self._timeouts = (least, most)
        self._nodes = {member: Node(str(member)) for member in ids}
        self._links = _Links(self._filtered(send))
        conf = SyncObjConf(
            autoTick=False,
            raftMinTimeout=least,
            raftMaxTimeout=most,
            appendEntriesPeriod=APPEND_S,
            leaderFallbackTimeout=FALLBACK_S,
            appendEntriesUseBatch=True,
            journalFile=str(folder / "journal"),
            fullDumpFile=str(folder / "dump"),
            serializer=self._write_dump,
            deserializer=self._read_dump,
            logCompactionMinEntries=COMPACT_ENTRIES,
            logCompactionMinTime=COMPACT_S,
            logCompactionBatchSize=_CHUNK_BYTES,
            commandsQueueSize=64,
            onStateChanged=lambda old, new: tell(
                "raft_role_changed", old=_ROLES[old], new=_ROLES[new]
            ),
        )
        pysyncobj.syncobj.createJournal = lambda _file: self._journal
        others = [node for member, node in self._nodes.items() if member != node_id]
        self._sync = SyncObj(self._nodes[node_id], others, conf, transport=self._links)
        self._sync._idToMethod = {0: self._apply}
        self._conf = conf
        if self.amnesia:
            conf.raftMinTimeout, conf.raftMaxTimeout = _NEVER_S, 2 * _NEVER_S
            self._set("raftElectionDeadline", pysyncobj_now() + _NEVER_S)

    # ---- for the loop -------------------------------------------------------------------------

    def tick(self) -> None:
        """Raises OSError if the disk cannot be written: this process must not go on."""
        if self.amnesia:
            self._remember()
        self._sync.doTick(0)

    def wait_s(self) -> float:
        """Until the next `tick` at the latest."""
        now = pysyncobj_now()
        if self._sync._isLeader():
            due = self._get("newAppendEntriesTime")
        else:
            due = self._get("raftElectionDeadline")
        return float(min(max(due - now, 0.0) + 0.0005, 0.25))

    def said(self, sender: int, message: dict[str, Any]) -> None:
        """A message of `cluster.raft_wire.decode_message`."""
        kind = message["type"]
        if self.amnesia and kind == "request_vote":
            self._counters["votes_withheld"] += 1
            return
        if kind == "append_entries" and "entries" in message:
            self._skip_known(message)
        self._links.said(self._nodes[sender], message)

    def connected(self, member: int, is_there: bool) -> None:
        self._links.connected(self._nodes[member], is_there)

    def propose(self, command: Command, done: Callable[[Outcome], None]) -> None:
        """`done` is called once, at once or later; never, if the answer is lost on the way."""
        if self._sync._getLeader() is None:
            done(Outcome(False, "there is no Raft leader: everything is read-only", again=True))
            return

        def finished(refusal: str | None, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                done(Outcome(not refusal, refusal or ""))
            elif error in (FAIL_REASON.LEADER_CHANGED, FAIL_REASON.UNKNOWN_OUTCOME):
                changed = "the Raft leader changed meanwhile"
                done(Outcome(False, changed, known=False, again=True))
            elif error == FAIL_REASON.QUEUE_FULL:
                done(Outcome(False, "too many changes at once", again=True))
            else:
                done(Outcome(False, "the Raft leader changed meanwhile", again=True))

        self._sync._applyCommand(REGULAR + encode(command), finished)

    def facts(self) -> RaftFacts:
        leader = self._sync._getLeader()
        return RaftFacts(
            role=_ROLES[self._get("raftState")],
            leader_id=0 if leader is None else int(leader.id),
            term=self._sync.raftCurrentTerm,
            commit=self._sync.raftCommitIndex,
            applied=self._sync.raftLastApplied,
            entries=len(self._journal),
            quorum=self._sync.hasQuorum,
        )

    def compact(self) -> None:
        """Write a dump at the next tick and drop the entries before it."""
        self._sync.forceLogCompaction()

    def sync(self) -> None:
        self._journal.sync()

    def close(self) -> None:
        self._sync.destroy()

    # ---- parts --------------------------------------------------------------------------------

    def _get(self, name: str) -> Any:
        return getattr(self._sync, f"_SyncObj__{name}")

    def _set(self, name: str, value: object) -> None:
        setattr(self._sync, f"_SyncObj__{name}", value)

    def _filtered(self, send: Send) -> Send:
        def checked(to: int, message: dict[str, Any]) -> bool:
            if self.amnesia and message["type"] in ("request_vote", "response_vote"):
                return False
            return send(to, message)

        return checked

    def _apply(self, data: bytes, _doApply: bool = True) -> str:  # noqa: N803 pysyncobj's
        """Every member applies the same commands in the same order."""
        try:
            command = decode_command(data)
        except ValueError as error:  # It came through the door: a journal of another release.
            self._counters["commands_unknown"] += 1
            return str(error)
        self.state, refusal = apply(self.state, command)
        if refusal:
            self._counters["commands_refused"] += 1
        return refusal

    def _write_dump(self, file: str, entries: tuple[Entry, Entry, object]) -> None:
        last, before, _ = entries
        write_dump(Path(file), encode(self.state), last, before)

    def _read_dump(self, file: str) -> tuple[Entry, Entry, list[object]]:
        state, last, before = read_dump(Path(file))
        self.state = decode_state(state)
        return last, before, []

    def _skip_known(self, message: dict[str, Any]) -> None:
        """Leave out leading entries that the journal has with the same index and term."""
        index, term = message.get("prevLogIdx"), message.get("prevLogTerm")
        entries = message["entries"]
        with suppress(IndexError):
            first = self._journal[0][1]
            if index is None or index < first or self._journal[index - first][2] != term:
                return
            while entries and self._journal[entries[0][1] - first][1:] == tuple(entries[0][1:]):
                _, message["prevLogIdx"], message["prevLogTerm"] = entries.pop(0)

    def _remember(self) -> None:
        """Has a leader told this node everything, or is there none to do so?"""
        leader = self._sync._getLeader()
        if leader is not None and self._sync._isReady():
            how = "a leader told everything"
        elif leader is None and time.monotonic() > self._amnesia_until:
            how = "no leader was heard: what only this node knew is lost"
        else:
            return
        self.amnesia = ""
        self._conf.raftMinTimeout, self._conf.raftMaxTimeout = self._timeouts
        self._set("raftElectionDeadline", pysyncobj_now() + self._timeouts[1])
        self._tell("raft_votes_again", how=how)
