"""What a command proposes again when Raft's leader changes under it, and what it then says."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from cluster.agreed import Command, Join, Member, SetMemberState, State, encode
from cluster.assignment import apply
from hafw.cli import raft_asking as module
from hafw.cli.where import Scope
from hafw.errors import RefusedError, StateError
from hafw.node import raft_client
from hafw.node.client import Unavailable
from hafw.raft_messages import ProposeReply, RaftStatus
from tests.unit.hafw.test_status_rows import raft

DONE = ProposeReply(True)
CHANGED = ProposeReply(False, "the Raft leader changed meanwhile", again=True)
DOUBT = ProposeReply(False, "the Raft leader changed meanwhile", known=False, again=True)
NO = ProposeReply(False, "gw1 has left")
ONLINE = SetMemberState("gw1", "online")
GW2 = Member("gw2", 2, "gateway", {})
JOIN = Join("gw1", "0" * 64, 1)


class Raftd:
    """Answers from a list, the last one again and again; a clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replies: list[ProposeReply | Unavailable] = []
        self.statuses: list[RaftStatus | Unavailable] = []
        self.asked = 0
        self.now = 100.0
        self.carries_out: list[Command] = []
        self.state = State(members=(Member("gw1", 1, "gateway", {}, state="draining"),))
        monkeypatch.setattr(raft_client.RaftClient, "propose", lambda _, said: self.propose(said))
        monkeypatch.setattr(raft_client.RaftClient, "status", lambda _: self.status())
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def propose(self, _command: Command) -> ProposeReply | Unavailable:
        self.asked += 1
        for said in self.carries_out:
            self.state, refusal = apply(self.state, said)
            assert not refusal
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def status(self) -> RaftStatus | Unavailable:
        if not self.statuses:
            return structs.replace(raft("gw1"), state=encode(self.state))
        self.asked += 1
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@pytest.fixture
def raftd(monkeypatch: pytest.MonkeyPatch) -> Raftd:
    return Raftd(monkeypatch)


@pytest.mark.parametrize("command", [ONLINE, JOIN])
def test_what_changed_nothing_is_proposed_again(raftd: Raftd, command: Command) -> None:
    raftd.replies = [CHANGED, CHANGED, DONE]
    module.propose("gw1", command)
    assert raftd.asked == 3


def test_in_doubt_only_what_may_be_said_twice_is_proposed_again(raftd: Raftd) -> None:
    raftd.replies = [DOUBT, DONE]
    module.propose("gw1", ONLINE)
    raftd.replies, raftd.asked = [DOUBT, DONE], 0
    with pytest.raises(RefusedError, match=r"meanwhile; whether it is done is not known$"):
        module.propose("gw1", JOIN)
    assert raftd.asked == 1


def test_in_doubt_what_was_carried_out_is_done(raftd: Raftd) -> None:
    raftd.replies = [DOUBT]
    raftd.carries_out = [ONLINE]
    module.propose("gw1", ONLINE)
    assert raftd.asked == 1


def test_in_doubt_it_does_not_undo_what_somebody_said_since(raftd: Raftd) -> None:
    raftd.replies = [DOUBT, DONE]
    raftd.state = structs.replace(raftd.state, members=(*raftd.state.members, GW2))
    raftd.carries_out = [ONLINE, SetMemberState("gw1", "draining", "new disk", 7)]
    with pytest.raises(RefusedError, match="whether it is done is not known"):
        module.propose("gw1", ONLINE)
    assert raftd.asked == 1


def test_a_doubt_outlives_a_raftd_that_ends(raftd: Raftd) -> None:
    raftd.replies = [DOUBT, Unavailable("down", "hafw-raftd is not running")]
    with pytest.raises(StateError, match="not running; whether it is done is not known"):
        module.propose("gw1", ONLINE)


def test_a_refusal_is_the_answer_at_once(raftd: Raftd) -> None:
    raftd.replies = [NO]
    with pytest.raises(RefusedError, match=r"^gw1 has left; nothing was changed$"):
        module.propose("gw1", ONLINE)
    assert raftd.asked == 1


def test_it_ends_after_a_bound_and_says_nothing_was_changed_once(raftd: Raftd) -> None:
    raftd.replies = [CHANGED]
    with pytest.raises(RefusedError, match=r"^the Raft leader changed meanwhile; nothing was c"):
        module.propose("gw1", ONLINE)
    waited = raftd.now - 100.0
    assert raft_client.LEADER_S <= waited < raft_client.LEADER_S + 2 * raft_client.POLL_S


def test_a_doubt_stays_one_whatever_comes_after_it(raftd: Raftd) -> None:
    raftd.replies = [DOUBT, CHANGED]
    with pytest.raises(RefusedError, match=r"whether it is done is not known"):
        module.propose("gw1", ONLINE)


def test_a_raftd_that_is_silent_is_not_asked_twice(raftd: Raftd) -> None:
    raftd.replies = [Unavailable("silent", "hafw-raftd did not answer in 3 s")]
    with pytest.raises(StateError, match=r"in 3 s; whether it is done is not known"):
        module.propose("gw1", ONLINE)
    assert raftd.asked == 1


def test_a_leader_is_waited_for_as_long_as_asked(raftd: Raftd) -> None:
    good = raft("gw1")
    lost = structs.replace(good, read_only=True)
    scope = Scope(["gw1"], Path("cluster.yaml"))
    raftd.statuses = [lost, lost, good]
    assert module.ask_raft(scope, within_s=3.0) == ("gw1", good)
    raftd.statuses, raftd.asked = [lost], 0
    assert module.ask_raft(scope) == ("gw1", lost)
    assert raftd.asked == 1
    assert module.ask_raft(scope, within_s=3.0) == ("gw1", lost)
    assert 3.0 <= raftd.now - 100.2 < 3.5


def test_a_raftd_that_only_just_starts_is_waited_for_and_said_once(
    raftd: Raftd, capsys: pytest.CaptureFixture[str]
) -> None:
    down = Unavailable("down", "hafw-raftd is not running: nobody has raftd.sock")
    raftd.statuses = [down, down, raft("gw1")]
    scope = Scope(["gw1"], Path("cluster.yaml"))
    assert module.ask_raft(scope, within_s=1.0)[0] == "gw1"
    assert capsys.readouterr().err.count("nobody has raftd.sock; waiting for it") == 1
    raftd.statuses = [down]
    with pytest.raises(StateError, match="nobody has"):
        module.ask_raft(scope)
    with pytest.raises(StateError, match="nobody has"):
        module.ask_raft(scope, within_s=1.0)
