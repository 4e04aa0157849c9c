"""What a node that was given a group must have applied of the giver's stream before it opens.

A release may be lost on its way here. But nobody is free to vote for the heir by it who has not
heard it, so the promises of a majority tell it, too (`Promise.given`).
"""

from __future__ import annotations

from cluster.heartbeat import Release
from cluster.lease_types import LeaseParams
from cluster.proposer import Claim
from cluster.role import Role

__all__ = ["TARGET_LEASES", "Heir"]

TARGET_LEASES = 3
"""Leases a target may wait for the position, and the old holder for the target."""


class Heir:
    """Of one group on one node."""

    def __init__(self, params: LeaseParams, role: Role) -> None:
        self._own = params.node_id
        self._wait_ns = TARGET_LEASES * params.lease_ns
        self._role = role
        self._given: Release | None = None
        """The newest release to this node, until its gate opens."""
        self._settled_epoch = 0
        """No release up to this one is waited for any more, whoever still tells of it."""

    def take(self, release: Release) -> None:
        """Heard from the giver itself or from a voter."""
        newest = self._settled_epoch if self._given is None else self._given.epoch
        if release.to == self._own and release.epoch > newest:
            self._given = release

    def settle(self) -> None:
        """This node has opened, or has waited long enough."""
        if self._given is not None:
            self._settled_epoch, self._given = self._given.epoch, None

    def instruct(self, claim: Claim, now_ns: int) -> None:
        """Have the claim wait for the position, if there is one. Until this node has opened, a
        claim after this one must wait, too."""
        if claim.await_position is not None or self._given is None:
            return
        if self._stands(self._given, claim):
            claim.await_position = self._given.position
            claim.await_until_ns = now_ns + self._wait_ns
        else:
            self.settle()

    def _stands(self, given: Release, claim: Claim) -> bool:
        """Whether nobody has opened since, as far as is known. That the giver had is certain, as
        only an ACTIVE node gives to another one, though perhaps nobody heard it ACTIVE. Claims
        that came to nothing may lie between, this node's or another's; if one of them did open,
        unheard, the wait is bounded."""
        return given.epoch == claim.succeeds or given.epoch >= self._role.epoch
