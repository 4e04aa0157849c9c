"""What leased says of itself: peers, groups, alarms, `LeasedStatus`. Pure.

Facts are gathered by the shell and the core; here they are put into the words of `hafw.messages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.founding import founders_missing
from cluster.lease import LeaseCore
from cluster.lease_types import NEWCOMER, NS_PER_MS
from cluster.meters import LinkMeter
from hafw.config.model import VoterSet
from hafw.messages import (
    DampedStatus,
    GroupLeaseStatus,
    LeasedStatus,
    LoopDelay,
    PeerStatus,
    VoterSetStatus,
)

__all__ = ["GateFacts", "leased_status"]

GateFacts = tuple[int, int, int, int]
"""Announce and accept deadline as the kernel has them, frames dropped in and out."""

_WINDOW_NS = 10_000_000_000
_TWIN_NS = 1_000_000_000


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
        voters_id=view.voters.id,
        voters_hash=view.voters_hash,
        realtime=realtime,
        groups=groups,
        peers=peers,
        loop_delay=delay,
        counters={name: count for name, count in sorted(view.counters.items()) if count},
        alarms=[*machine_alarms, *_alarms(core, now_ns, delay)],
        voters=_voters_status(core, view.voters, now_ns),
        voters_next=_voters_status(core, core.voters.next, now_ns),
        voters_lost=view.voters_lost,
        lease_ms=view.lease_asked_ns(now_ns, opened=True) / NS_PER_MS,
        heavy_left_s=max(0, view.heavy_until_ns - now_ns) / 1e9,
        two_node=params.two_node,
        damped=[status for index in core.groups for status in _damped_status(core, index, now_ns)],
    )


def _damped_status(core: LeaseCore, index: int, now_ns: int) -> list[DampedStatus]:
    flaps = core.view.flaps
    seen, told = flaps.seen(index, now_ns), flaps.told_by(index, now_ns)
    found = []
    for node in sorted({*seen, *told}):
        at = seen.get(node)
        left_s = None if at is None or at.left_ns is None else round(at.left_ns / 1e9, 3)
        losses, why = (0, "") if at is None else (at.losses, at.why)
        found.append(DampedStatus(index, node, losses, why, left_s, told.get(node, [])))
    return found


def _voters_status(core: LeaseCore, voters: VoterSet | None, now_ns: int) -> VoterSetStatus | None:
    if voters is None:
        return None
    settles_ns = core.voters.settles_ns if voters is core.voters.next else None
    return VoterSetStatus(
        id=voters.id,
        members=list(voters.members),
        stored_by=core.voters.stored_by(voters, now_ns),
        settles_ms=None if settles_ns is None else max(0, settles_ns - now_ns) / NS_PER_MS,
    )


def _group_status(
    core: LeaseCore, index: int, now_ns: int, gate: Callable[[int], GateFacts] | None
) -> GroupLeaseStatus:
    group = core.groups[index]
    held = group.proposer.held
    until_ns = held.deadline_ns if held is not None else group.acceptor.until_ns
    announce_ns, accept_ns, dropped_in, dropped_out = gate(index) if gate else (0, 0, 0, 0)
    synced, reason = core.view.own_fit(index, now_ns)
    return GroupLeaseStatus(
        group=index,
        active=group.active,
        epoch=group.role.epoch,
        holder_id=group.role.holder,
        lease_left_ms=max(0, until_ns - now_ns) / NS_PER_MS,
        announce_deadline_ns=announce_ns,
        accept_deadline_ns=accept_ns,
        dropped_in=dropped_in,
        dropped_out=dropped_out,
        moves=group.moves,
        renewals=group.renewals,
        synced=synced and core.view.able(),
        reason=reason,
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
        round_trip=links.read_peer(node, now_ns),
        votes=peer.beat is not None and peer.beat.votes and view.in_set(peer),
        able=peer.beat is not None and peer.beat.able,
        voters_id=0 if peer.beat is None else peer.beat.voters.id,
        upstream={index: beat.upstream for index, beat in sorted(peer.groups.items())},
    )


def _damped_alarm(at: DampedStatus) -> str:
    said = f"group {at.group}: node {at.node_id} is damped"
    if not at.losses:
        return f"{said}, as node {', '.join(map(str, at.told_by))} has counted"
    left = "the fault lasts" if at.left_s is None else f"{at.left_s:.0f} s of quiet are missing"
    return f"{said} after {at.losses} losses ({at.why}): not preferred, {left}"


def _voters_alarms(core: LeaseCore, now_ns: int) -> list[str]:
    view, change = core.view, core.voters
    alarms: list[str] = []
    if core.wrong_voters_ns is not None and now_ns - core.wrong_voters_ns < _WINDOW_NS:
        alarms.append(
            f"a node with another voter set {view.voters.id} is heard: its cluster.yaml names "
            "other founders"
        )
    if view.voters.id == NEWCOMER:
        silent = ", ".join(map(str, founders_missing(view, now_ns)))
        alarms.append(
            "this node is new and votes once it knows the voters: it waits for a node that does, "
            "or for all of cluster.yaml to be heard and new, too"
            + (
                f" (missing: nodes {silent}). If one cannot come, take it out of cluster.yaml on "
                "all the others and restart hafwd there; it is added once it is there"
                if silent
                else ""
            )
        )
    alarms += [
        f"node {node} is in voter set {view.voters.id} and not in cluster.yaml: it is never "
        f"heard and counts as lost; take it out (hafwctl cluster voters --remove node{node}), "
        "or put it back into the file"
        for node in sorted({*view.voters.members} - {view.params.node_id, *view.peers})
    ]
    if view.voters_lost and view.is_voter:
        alarms.append(
            "this node has lost its voters file, or was installed anew, and does not vote: take "
            "it out of the voters and in again while it runs (hafwctl cluster voters --remove, "
            "then --add)"
        )
    if change.error:
        alarms.append(f"the voters file cannot be written: {change.error}")
    if change.rival is not None and change.next is not None:
        alarms.append(
            f"two different voter sets {change.rival.id} are stored: set {view.voters.id} goes "
            "on, until enough of its voters are heard for one of the two to give way"
        )
    return alarms


def _alarms(core: LeaseCore, now_ns: int, delay: LoopDelay) -> list[str]:
    view, params = core.view, core.params
    alarms: list[str] = []
    if core.era_error:
        alarms.append(f"the era file cannot be written, this node does not vote: {core.era_error}")
    alarms += _voters_alarms(core, now_ns)
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
        alarms += [
            f"group {index}: {wrong}" for wrong in (fault, view.upstream_fault(index)) if wrong
        ]
        alarms += [_damped_alarm(at) for at in _damped_status(core, index, now_ns)]
        held = group.proposer.held
        if held is None or not held.opened:
            continue
        if view.alone(index, now_ns, holding=True):
            alarms.append(
                f"group {index}: held alone, node {min(view.peers)} does not answer: if it lives, "
                "both may be ACTIVE"
            )
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
