"""What syncd says of itself: the beacon to leased, and the status. Reads everything, changes
nothing."""

from __future__ import annotations

import os

from hafw.config.model import ClusterConfig
from hafw.keyring import Keyring
from hafw.messages import (
    Position,
    SyncBeacon,
    SyncDigestStatus,
    SyncdStatus,
    SyncGroupStatus,
    SyncPeerStatus,
)
from sync.digests import FAILURES_MAX
from sync.native import codec_name
from sync.parts import Parts
from sync.registry import Flag
from sync.replica import ReplicaGroup
from sync.roles import RoleState
from sync.standing import FollowFacts, HoldFacts, judge_follower, judge_holder

__all__ = ["Reporter"]


class Reporter:
    """Gathers facts for `sync.standing` and for people."""

    def __init__(self, config: ClusterConfig, node_id: int, parts: Parts) -> None:
        self._config = config
        self._node_id = node_id
        self._roles: dict[int, RoleState] = parts.roles.states
        self._groups: dict[int, ReplicaGroup] = parts.groups
        self._registry = parts.registry
        self._holder = parts.holder
        self._follower = parts.follower
        self._inbox = parts.inbox
        self._outbox = parts.outbox
        self._transport = parts.transport
        self._detour = parts.detour
        self._peer_ids = sorted(
            node.id
            for node in config.nodes.values()
            if node.id != node_id and node.role == "gateway"
        )

    def beacon(self, *, now: float) -> SyncBeacon:
        reasons = {number: self._reason(number, now) for number in self._roles}
        applied = [
            Position(sender_id, view.session, view.applied_seq)
            for sender_id in self._peer_ids
            if (view := self._inbox.stream.view(sender_id)) is not None
        ]
        return SyncBeacon(
            synced={number: not reason for number, reason in reasons.items()},
            reasons={number: reason for number, reason in reasons.items() if reason},
            applied=applied,
            stale_entries=sum(map(self._stale, self._groups)),
        )

    def status(
        self,
        *,
        session: int,
        seq: int,
        counters: dict[str, int],
        alarms: list[str],
        ring: Keyring,
        now: float,
    ) -> SyncdStatus:
        groups = [self._group(number, now) for number in sorted(self._roles)]
        peers = [self._peer(sender_id, now) for sender_id in self._peer_ids]
        names = {group.index: name for name, group in self._config.groups.items()}
        alarms = alarms + [
            f"group {names[group.group]}: held, but {group.reason}"
            for group in groups
            if group.active and not group.synced
        ]
        alarms += [
            f"group {names[number]}: digests differ from the holder's after "
            f"{FAILURES_MAX} repairs; all is fetched again"
            for number, watch in self._follower.upkeep.watches.items()
            if watch.alarm and not self._roles[number].active
        ]
        alarms += [
            f"group {names[number]}: {held.unheard} flows left it unheard and are replicated no "
            "more; does somebody else's rule set the ct mark without a mask? Its upper 16 bits "
            "are hafw's"
            for number, held in self._holder.held.items()
            if held.unheard
        ]
        alarms += [
            f"group {names[number]}: {held.strays} flows had lost their ct mark before this node "
            "took over, and have it again; does somebody else's rule or tool set it without a "
            "mask? Its upper 16 bits are hafw's"
            for number, held in self._holder.held.items()
            if held.strays
        ]
        alarms += [
            f"group {names[number]}: the ct mark of {count} replicas was changed by somebody else "
            "and is set again; who sets it must leave its upper 16 bits, which are hafw's"
            for number, count in self._follower.upkeep.marks.lately(now=now).items()
        ]
        return SyncdStatus(
            node_id=self._node_id,
            pid=os.getpid(),
            session=session,
            seq=seq,
            codec=codec_name(),
            groups=groups,
            peers=peers,
            counters=counters,
            alarms=[*alarms, *self._key_alarms(now)],
            seals_key=self._outbox.sealer.key_id,
            opens_keys=ring.fingerprints,
        )

    def _key_alarms(self, now: float) -> list[str]:
        own = self._config.node_name(self._node_id)
        strangers = self._inbox.peer_keys.strangers(now=now)
        return [
            f"what {self._config.node_name(peer_id)} sends is refused: it is sealed with key "
            f"{key_id}, which {own} does not have; one of the two missed a rotation: compare "
            "hafwctl key show on both, then on the one behind: hafwctl key rotate accept "
            "--node NODE --from COPY"
            for peer_id, key_id in strangers.items()
        ]

    def _group(self, number: int, now: float) -> SyncGroupStatus:
        state = self._roles[number]
        reason = self._reason(number, now)
        count = self._registry.count(number)
        watch = self._follower.upkeep.watches[number]
        clean_at = watch.clean_at
        return SyncGroupStatus(
            group=number,
            active=state.active,
            epoch=state.epoch,
            holder_id=state.holder_id,
            synced=not reason,
            reason=reason,
            owned=count if state.active else 0,
            replicas=0 if state.active else count,
            liberal=self._holder.liberal_count(number),
            stale=self._stale(number),
            own_pass=self._holder.progress(number, now=now),
            digest=None
            if state.active
            else SyncDigestStatus(
                clean_age_s=None if clean_at is None else now - clean_at,
                differing=watch.open_buckets,
                missing=watch.missing,
                repairs=watch.repairs,
                repaired=watch.repaired,
                in_vain=watch.in_vain,
            ),
        )

    def _stale(self, number: int) -> int:
        return self._registry.count_flag(number, Flag.STALE)

    def _peer(self, sender_id: int, now: float) -> SyncPeerStatus:
        view = self._inbox.stream.view(sender_id)
        heard_at = self._inbox.beacon_at.get(sender_id)
        p50, p99 = self._follower.delays.percentiles(sender_id, now)
        ledger = self._outbox.ledger
        confirmed = ledger.delays.get(sender_id)
        c50, c99 = (None, None) if confirmed is None else confirmed.percentiles(now)
        keys = self._inbox.peer_keys.view(sender_id)
        return SyncPeerStatus(
            node_id=sender_id,
            session=0 if view is None else view.session,
            accepted=view is not None,
            applied_seq=0 if view is None else view.applied_seq,
            high_water_seq=0 if view is None else view.high_water,
            lag_deltas=0 if view is None else view.high_water - view.applied_seq,
            beacon_age_ms=None if heard_at is None else (now - heard_at) * 1e3,
            delay_p50_ms=p50,
            delay_p99_ms=p99,
            flows_at_risk=None if heard_at is None else ledger.at_risk(sender_id),
            confirm_p50_ms=c50,
            confirm_p99_ms=c99,
            name=self._config.node_name(sender_id),
            over=self._over(sender_id),
            seals_key=None if keys is None else keys.seals,
            seals_key_s=0.0 if keys is None else now - keys.since,
            opens_keys={} if keys is None else dict(keys.opens),
        )

    def _over(self, peer_id: int) -> str:
        away = self._detour.away.get(peer_id)
        return "links" if away is None else away

    def _reason(self, number: int, now: float) -> str:
        state, replica = self._roles[number], self._groups[number]
        if state.active:
            overrun, replacing, recovering = self._holder.trouble(number)
            return judge_holder(HoldFacts(overrun, self._stale(number), replacing, recovering))
        holder_id = state.last_holder_id
        view = self._inbox.stream.view(holder_id)
        source = self._follower.sources.get(number)
        done = (
            source is not None
            and view is not None
            and (source.holder_id, source.session) == (holder_id, view.session)
            and not replica.suspect
        )
        gap_age_s = 0.0
        if view is not None and view.gap_since is not None:
            gap_age_s = view.heard_at - view.gap_since
        return judge_follower(
            FollowFacts(
                holder=self._config.node_name(holder_id) if holder_id else "",
                holder_is_self=holder_id == self._node_id,
                holder_lives=state.holder_id == holder_id,
                session_accepted=view is not None,
                snapshot_done=done,
                caught_up=done
                and view is not None
                and source is not None
                and view.applied_seq >= source.seq,
                stale=self._stale(number),
                heard_age_s=0.0 if view is None else now - view.heard_at,
                gap_age_at_contact_s=gap_age_s,
                lag=0 if view is None else view.high_water - view.applied_seq,
                beacon_s=self._config.sync.beacon_ms / 1e3,
                repair=self._follower.upkeep.watches[number].reason(
                    self._config.node_name(holder_id) if holder_id else ""
                ),
                table_full=number in self._follower.patience.table_full_until,
                refusal=self._follower.refusals.get(number, ""),
                unanswered_over=self._unanswered_over(holder_id),
            )
        )

    def _unanswered_over(self, holder_id: int) -> str:
        asked = self._follower.patience.unanswered[holder_id]
        if not asked:
            return ""
        ways = [name for name, _, _ in self._transport.addresses_to(holder_id)]
        return ", ".join(ways) if asked >= len(ways) else ""
