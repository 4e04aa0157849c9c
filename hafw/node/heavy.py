"""Long leases while this machine does what may hold up the lease loop: a policy load.

An nft load is not preemptible. The lease loop has a CPU that the policy worker keeps off
(`hafw.cpus`), but not on a machine with one CPU, nor from what a load of many rules locks. So
leased is told before, a holder renews by the longest lease (`LEASE_MS_MAX`), agreed on by the
voters like any other, and the load begins once it has that. Afterwards renewals ask for the usual
lease again; what was granted last runs out within a second. If the node dies meanwhile, that is
the outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from hafw.messages import HEAVY_S_MAX, LeasedStatus
from hafw.node.client import Unavailable

__all__ = ["AGREED_S_MAX", "REPEAT_S", "Asked", "heavy_work", "holds_long"]

AGREED_S_MAX = 0.5
"""How long the work waits for the long lease; then it begins without: a policy that is wanted in
force matters more."""
REPEAT_S = HEAVY_S_MAX / 4
"""Between two words that it still lasts. If hafwd dies, leased forgets after `HEAVY_S_MAX`."""
_LOOK_S = 0.01


class Asked(Protocol):
    """What is needed of `hafw.node.client.LocalClient`."""

    def tell_heavy_work(self, for_s: float) -> bool: ...

    async def ask_leased_async(self, timeout_s: float = ...) -> LeasedStatus | Unavailable: ...


def holds_long(leased: LeasedStatus) -> bool:
    """Whether every group held here is held by a lease as long as is asked for now. Half of it:
    what is left right after a renewal."""
    return all(
        group.lease_left_ms > leased.lease_ms / 2 for group in leased.groups if group.active
    )


@asynccontextmanager
async def heavy_work(leased: Asked) -> AsyncIterator[None]:
    """While the body runs. Does nothing without a leased: then this node holds no group."""
    there = leased.tell_heavy_work(HEAVY_S_MAX)
    repeating = asyncio.create_task(_repeat(leased))
    try:
        if there:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGREED_S_MAX):
                    await _agreed(leased)
        yield
    finally:
        repeating.cancel()
        leased.tell_heavy_work(0.0)


async def _agreed(leased: Asked) -> None:
    while True:
        status = await leased.ask_leased_async(AGREED_S_MAX)
        if isinstance(status, Unavailable) or holds_long(status):
            return
        await asyncio.sleep(_LOOK_S)


async def _repeat(leased: Asked) -> None:
    while True:
        await asyncio.sleep(REPEAT_S)
        leased.tell_heavy_work(HEAVY_S_MAX)
