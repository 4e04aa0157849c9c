"""hafw-raftd: members, orders, policy generation and the history of moves, agreed on by Raft.

Shell. One thread: wait for the links, the local socket or pysyncobj's next deadline, hand over
what came, tick. Leases and forwarding need none of it; hafwd restarts it, with a back-off.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from cluster.assignment import (
    Command,
    Configure,
    Group,
    Member,
    RecordMove,
    Voters,
    decode_command,
    digest,
    encode,
)
from cluster.raft_local import Connection, LocalServer
from cluster.raft_log import Outcome, RaftLog
from cluster.raft_net import LinkPlan, Network
from cluster.raft_process import become_unprivileged, enter_folder
from cluster.raft_wire import Wire
from cluster.refusals import RAFTD, Refusals
from hafw.config.model import ClusterConfig
from hafw.daemon_main import daemon_main
from hafw.errors import StateError
from hafw.instance import claim_instance
from hafw.keyring import read_key
from hafw.logs import configure_logs
from hafw.paths import NodePaths
from hafw.raft_messages import (
    ProposeReply,
    ProposeRequest,
    RaftMessage,
    RaftPeer,
    RaftStatus,
    RaftStatusRequest,
)

if TYPE_CHECKING:
    import structlog

__all__ = ["Raftd", "configured", "main", "plan_links"]

KEEP_LOOK_S = 0.25
DUTY_S = 1.0
GATHER_S = 0.002
"""Answers come close together: one turn for them all costs less than one for each."""
LEADERLESS_ALARM_S = 3.0
DIFFERS_ALARM_S = 5.0


def plan_links(config: ClusterConfig, node_name: str) -> list[LinkPlan]:
    """The node's links, with the peers that have the same one."""
    others = {name: node for name, node in config.nodes.items() if name != node_name}
    return [
        LinkPlan(
            name,
            link.device,
            str(link.address.ip),
            {o.id: str(o.links[name].address.ip) for o in others.values() if name in o.links},
        )
        for name, link in config.nodes[node_name].links.items()
    ]


def configured(config: ClusterConfig) -> Configure:
    """What the file says, as the cluster is to agree on it."""
    members = [
        Member(
            name,
            node.id,
            node.role,
            {link: str(port.address.ip) for link, port in sorted(node.links.items())},
        )
        for name, node in config.nodes.items()
    ]
    groups = [Group(name, g.index, tuple(g.order)) for name, g in config.groups.items()]
    voters = config.voters
    return Configure(
        tuple(sorted(members, key=lambda m: m.id)),
        tuple(sorted(groups, key=lambda g: g.index)),
        Voters(voters.id, voters.members, voters.hash),
    )


class Raftd:
    """One member, running."""

    def __init__(
        self, config: ClusterConfig, name: str, log: structlog.stdlib.BoundLogger
    ) -> None:
        """Everything that needs root, and then no longer root. Raises HafwError."""
        paths = NodePaths(name)
        node = config.nodes[name]
        self._config, self._log = config, log
        self._node_id = node.id
        self._counters: Counter[str] = Counter()
        self._refusals = Refusals(RAFTD)
        self._configured = configured(config)
        wire = Wire(read_key(paths.raft_key), cluster_id=config.cluster_id, node_id=node.id)
        links = plan_links(config, name)
        try:
            self._net = Network(
                wire,
                links,
                node_id=node.id,
                port=config.raft.port,
                counters=self._counters,
                on_message=self._on_message,
                on_connected=lambda peer, there: self._raft.connected(peer, there),
                before_send=lambda: self._raft.sync(),
                on_refused=self._on_refused,
            )
            self._local = LocalServer(paths.raftd_socket, self._counters)
        except OSError as error:
            raise StateError(f"cannot open the sockets of {name}: {error.strerror}") from None
        enter_folder(paths.raft_folder)
        self._uid = become_unprivileged()
        self._bridge_logs()
        self._raft = RaftLog(
            node.id,
            [member.id for member in config.nodes.values()],
            Path(),
            paths.raft_folder,
            send=lambda to, message: self._net.send(to, message, time.monotonic()),
            tell=log.info,
            counters=self._counters,
        )
        self._leader_at = self._agreed_at = time.monotonic()
        self._leader_id = 0
        self._stopping = False

    def _bridge_logs(self) -> None:
        log = self._log

        class Bridge(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                log.warning("pysyncobj_said", text=record.getMessage())

        logging.getLogger("pysyncobj").addHandler(Bridge(logging.WARNING))

    # ---- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises StateError if the disk cannot be written."""
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._log.info("raftd_started", uid=self._uid, entries=self._raft.facts().entries)
        keep_at = duty_at = 0.0
        try:
            while not self._stopping:
                now = time.monotonic()
                wait_s = min(self._raft.wait_s(), max(0.0, keep_at - now))
                readers: list[Any] = [wake_in, *self._local.sockets(), *self._net.sockets()]
                ready, _, _ = select.select(readers, [], [], wait_s)
                if ready:
                    time.sleep(GATHER_S)
                now = time.monotonic()
                self._net.receive_from(now)
                if now >= keep_at:
                    keep_at = now + KEEP_LOOK_S
                    self._net.keep_alive(now)
                if len(ready) > 0 or now >= duty_at:
                    for connection, message in self._local.receive(now):
                        self._answer(connection, message)
                self._raft.tick()
                if now >= duty_at:
                    duty_at = now + DUTY_S
                    self._duties(now)
            self._raft.close()
        except OSError as error:
            raise StateError(f"hafw-raftd cannot write its journal: {error.strerror}") from None
        finally:
            self._net.close()
            self._local.close()
        self._log.info("raftd_stopped")

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _on_message(self, sender: int, message: dict[str, Any]) -> None:
        self._raft.said(sender, message)

    def _on_refused(self, link: str, named: int) -> None:
        for reason, count in self._refusals.to_say(self._counters, time.monotonic_ns()):
            self._log.warning(
                "datagram_refused", reason=reason, count=count, path=link, named=named
            )

    def _duties(self, now: float) -> None:
        facts = self._raft.facts()
        if facts.leader_id:
            self._leader_at = now
        if facts.leader_id != self._leader_id:
            self._leader_id = facts.leader_id
            self._log.info("raft_leader_changed", leader=facts.leader_id, term=facts.term)
        if self._agrees():
            self._agreed_at = now
        elif facts.role == "leader" and facts.quorum:
            self._raft.propose(self._configured, self._configured_done)

    def _configured_done(self, outcome: Outcome) -> None:
        self._log.info("configuration_proposed", ok=outcome.ok, reason=outcome.reason)

    def _agrees(self) -> bool:
        """The agreed state is what this node's file says."""
        state = self._raft.state
        return (
            {(m.name, m.id, m.role, tuple(sorted(m.addresses.items()))) for m in state.members}
            == {
                (m.name, m.id, m.role, tuple(sorted(m.addresses.items())))
                for m in self._configured.members
            }
            and [(g.name, g.index, g.order) for g in state.groups]
            == [(g.name, g.index, g.order) for g in self._configured.groups]
            and state.voters == self._configured.voters
        )

    # ---- the local socket ---------------------------------------------------------------------

    def _answer(self, connection: Connection, message: RaftMessage) -> None:
        match message:
            case RaftStatusRequest():
                connection.answer(self._status(time.monotonic()))
            case ProposeRequest(data):
                try:
                    command = decode_command(data)
                except ValueError as error:
                    connection.answer(ProposeReply(False, str(error)))
                    return
                self._raft.propose(command, lambda o: self._proposed(connection, command, o))
            case ProposeReply() | RaftStatus():
                self._counters["local_unexpected"] += 1
                connection.close()
            case _:
                assert_never(message)

    def _proposed(self, connection: Connection, command: Command, outcome: Outcome) -> None:
        # Of a move every node tells what it knows, and all but the first are told so.
        if outcome.known and not outcome.ok and not isinstance(command, RecordMove):
            name = type(command).__name__
            self._log.warning("command_refused", command=name, reason=outcome.reason)
        connection.answer(ProposeReply(outcome.ok, outcome.reason, outcome.known, outcome.again))

    def _status(self, now: float) -> RaftStatus:
        facts, state = self._raft.facts(), self._raft.state
        peers = self._net.facts(now)
        alarms = []
        if self._raft.amnesia:
            alarms.append(f"this node does not vote in Raft until a leader is heard out: "
                          f"{self._raft.amnesia}")  # fmt: skip
        if not facts.leader_id and now - self._leader_at > LEADERLESS_ALARM_S:
            alarms.append(
                f"no Raft leader for {now - self._leader_at:.0f} s: members, orders and history "
                "are read-only; leases and forwarding go on"
            )
        alarms += [
            f"two machines run as node {self._config.node_name(peer.id)}: one of them counts, the "
            "other is refused; stop it"
            for peer in peers
            if peer.twin
        ]
        if facts.leader_id and now - self._agreed_at > DIFFERS_ALARM_S:
            alarms.append(
                "cluster.yaml of this node differs from what the cluster has agreed on, which is "
                f"that of the Raft leader ({self._config.node_name(facts.leader_id)})"
            )
        return RaftStatus(
            node_id=self._node_id,
            pid=os.getpid(),
            uid=self._uid,
            role=facts.role,
            leader_id=facts.leader_id,
            term=facts.term,
            commit=facts.commit,
            applied=facts.applied,
            entries=facts.entries,
            quorum=facts.quorum,
            read_only=not facts.leader_id,
            recovering=self._raft.amnesia,
            peers=[
                RaftPeer(p.id, p.connected, None if p.age_s is None else p.age_s * 1e3)
                for p in peers
            ],
            state=encode(state),
            digest=digest(state),
            counters={name: count for name, count in sorted(self._counters.items()) if count},
            alarms=alarms,
        )


def _run(config: ClusterConfig, name: str, _: Path) -> None:
    if os.geteuid() != 0:
        raise StateError("hafw-raftd must start as root; it gives that up by itself")
    # Not released at the end: the process may no longer remove root's pid file. The lock,
    # which is the truth, goes with the process.
    claim_instance(NodePaths(name), "raftd")
    Raftd(config, name, configure_logs("raftd", name)).run()


def main() -> None:
    """``hafw-raftd --node NAME --config FILE``: in the node's network namespace, as root."""
    daemon_main("hafw-raftd", "Raft of one node. Started by hafwd.", _run)


if __name__ == "__main__":
    main()
