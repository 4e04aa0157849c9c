"""What leased says of itself: links, loop delay, alarms, `LeasedStatus`. Pure.

Facts are gathered by the shell and the core; here they are put into the words of `hafw.messages`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from cluster.lease import LeaseCore
from cluster.lease_types import NS_PER_MS
from hafw.messages import (
    GroupLeaseStatus,
    LeasedStatus,
    LinkStatus,
    LoopDelay,
    PeerStatus,
)

__all__ = ["DelayMeter", "GateFacts", "LinkMeter", "leased_status"]

GateFacts = tuple[int, int, int, int]
"""Announce and accept deadline as the kernel has them, frames dropped in and out."""

_WINDOW_NS = 10_000_000_000
_WINDOWS = 6
_TWIN_NS = 1_000_000_000
_DELAYS_MAX = 4096
_READ_AGAIN_NS = 200_000_000


class DelayMeter:
    """How late the loop woke, over the last minute, in windows of ten seconds."""

    def __init__(self) -> None:
        self._windows: deque[list[int]] = deque([[]], maxlen=_WINDOWS)
        self._until_ns = 0
        self._told = LoopDelay(p50_ms=0.0, p99_ms=0.0, max_ms=0.0)
        self._told_until_ns = 0

    def add(self, late_ns: int, now_ns: int) -> None:
        if now_ns >= self._until_ns:
            self._until_ns = now_ns + _WINDOW_NS
            self._windows.append([])
        window = self._windows[-1]
        if len(window) < _DELAYS_MAX:
            window.append(late_ns)
        elif late_ns > window[0]:
            window[0] = late_ns  # At the bound the largest is what must not be missed.

    def read(self, now_ns: int) -> LoopDelay:
        """At most `_READ_AGAIN_NS` old: sorting them all takes milliseconds."""
        if now_ns < self._told_until_ns:
            return self._told
        delays = sorted(delay for window in self._windows for delay in window)
        if delays:
            self._told_until_ns = now_ns + _READ_AGAIN_NS
            self._told = LoopDelay(
                p50_ms=delays[len(delays) // 2] / NS_PER_MS,
                p99_ms=delays[len(delays) * 99 // 100] / NS_PER_MS,
                max_ms=delays[-1] / NS_PER_MS,
            )
        return self._told


class LinkMeter:
    """When each peer was last heard on each path."""

    def __init__(self, paths: Iterable[tuple[str, Iterable[int]]]) -> None:
        self._heard: dict[tuple[int, str], list[int]] = {
            (peer, name): [0, 0] for name, peers in paths for peer in peers
        }

    def heard(self, peer: int, path: str, now_ns: int) -> None:
        entry = self._heard.get((peer, path))
        if entry is not None:
            entry[0] = now_ns
            entry[1] += 1

    def read(self, peer: int, *, now_ns: int, alive_ns: int) -> list[LinkStatus]:
        return [
            LinkStatus(
                name=name,
                alive=bool(heard_ns) and now_ns - heard_ns <= alive_ns,
                age_ms=(now_ns - heard_ns) / NS_PER_MS if heard_ns else None,
                received=received,
            )
            for (node, name), (heard_ns, received) in self._heard.items()
            if node == peer
        ]


def leased_status(
    core: LeaseCore,
    *,
    now_ns: int,
    pid: int,
    realtime: bool,
    delay: LoopDelay,
    links: LinkMeter,
    gate: Callable[[int], GateFacts] | None,
    machine_alarms: Sequence[str] = (),
) -> LeasedStatus:
    """Everything `hafwctl status` shows of this node's leases. `machine_alarms` are what the
    shell found about its loop and its clock."""
    view, params = core.view, core.params
    groups = [_group_status(core, index, now_ns, gate) for index in core.groups]
    peers = [_peer_status(core, node, now_ns, links) for node in sorted(view.peers)]
    return LeasedStatus(
        node_id=params.node_id,
        pid=pid,
        session=view.sessions.own,
        era=view.era,
        now_ns=now_ns,
        may_vote=view.may_vote(now_ns),
        votes_from_ns=view.votes_from_ns,
        voters_id=params.voters.id,
        voters_hash=view.voters_hash,
        realtime=realtime,
        groups=groups,
        peers=peers,
        loop_delay=delay,
        counters={name: count for name, count in sorted(view.counters.items()) if count},
        alarms=[*machine_alarms, *_alarms(core, now_ns, delay)],
    )


def _group_status(
    core: LeaseCore, index: int, now_ns: int, gate: Callable[[int], GateFacts] | None
) -> GroupLeaseStatus:
    group = core.groups[index]
    held = group.proposer.held
    until_ns = held.deadline_ns if held is not None else group.acceptor.until_ns
    announce_ns, accept_ns, dropped_in, dropped_out = gate(index) if gate else (0, 0, 0, 0)
    return GroupLeaseStatus(
        group=index,
        active=group.active,
        epoch=group.known_epoch,
        holder_id=group.known_holder,
        lease_left_ms=max(0, until_ns - now_ns) / NS_PER_MS,
        announce_deadline_ns=announce_ns,
        accept_deadline_ns=accept_ns,
        dropped_in=dropped_in,
        dropped_out=dropped_out,
        moves=group.moves,
        renewals=group.renewals,
    )


def _peer_status(core: LeaseCore, node: int, now_ns: int, links: LinkMeter) -> PeerStatus:
    view, peer = core.view, core.view.peers[node]
    lease_ns = core.params.lease_ns
    age_ns = now_ns - peer.heard_ns if peer.heard_ns else None
    return PeerStatus(
        node_id=node,
        alive=peer.beat is not None and age_ns is not None and age_ns <= lease_ns,
        proven=view.sessions.proven(node) is not None,
        age_ms=None if age_ns is None else age_ns / NS_PER_MS,
        era=peer.beat.era if peer.beat is not None else 0,
        synced={index: beat.synced for index, beat in sorted(peer.groups.items())},
        reasons={i: beat.reason for i, beat in sorted(peer.groups.items()) if not beat.synced},
        rtt_ms=None if peer.rtt_ns is None else peer.rtt_ns / NS_PER_MS,
        links=links.read(node, now_ns=now_ns, alive_ns=lease_ns),
    )


def _alarms(core: LeaseCore, now_ns: int, delay: LoopDelay) -> list[str]:
    view, params = core.view, core.params
    alarms: list[str] = []
    if core.era_error:
        alarms.append(f"the era file cannot be written, this node does not vote: {core.era_error}")
    if core.wrong_voters_ns is not None and now_ns - core.wrong_voters_ns < _WINDOW_NS:
        alarms.append("a node with another voter set is heard: its cluster.yaml differs")
    if view.twin_ns is not None and now_ns - view.twin_ns < _TWIN_NS:
        alarms.append(
            f"another machine runs as node {params.node_id}: stop one of the two at once, "
            "both may be ACTIVE"
        )
    alarms += [
        f"node {peer.node_id} names era {peer.beat.era}, ours is {view.era}: one of the two era "
        f"files is damaged; on the node that differs from the others stop hafwd, write a number "
        f"just above the others' era into the file, start hafwd"
        for peer in view.alive_peers(now_ns)
        if peer.beat is not None and not view.credible(peer.beat.era)
    ]
    for index, group in core.groups.items():
        fault = view.carrier_fault(index)
        if fault:
            alarms.append(f"group {index}: {fault}")
        held = group.proposer.held
        if held is None or not held.opened:
            continue
        silent_ns = view.syncd_silent_ns(now_ns)
        if silent_ns:
            alarms.append(
                f"group {index}: this node is ACTIVE and its syncd has been silent for "
                f"{silent_ns / 1e9:.1f} s"
            )
        if held.unsynced and not view.own_sync(index, now_ns)[0]:
            alarms.append(f"group {index}: taken unsynced, because no synced candidate was heard")
    round_trip_ms = max((p.rtt_ns or 0 for p in view.peers.values()), default=0) / NS_PER_MS
    need_ms = params.heartbeat_ns / NS_PER_MS + 2 * round_trip_ms + delay.p99_ms
    if need_ms > params.lease_ns / NS_PER_MS:
        alarms.append(
            f"the lease of {params.lease_ns // NS_PER_MS} ms is too short for this machine: "
            f"heartbeat + 2 round trips + loop delay need {need_ms:.0f} ms"
        )
    return alarms
