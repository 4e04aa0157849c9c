"""Which codec runs: the native module, or the pure modules that are its reference. Shell."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Collection
from functools import partial
from random import SystemRandom
from types import ModuleType
from typing import TYPE_CHECKING

from sync import wire
from sync.dump_chunks import Gather
from sync.flowhash import FlowHash
from sync.outbox import DELTAS_BYTES_MAX, Outbox
from sync.publish import RandomBits
from sync.registry import Flag, FlowRegistry, Registry
from sync.replica import TOMBSTONES_MAX, ReplicaGroup
from sync.transport import Transport
from sync.wire import Seals

if TYPE_CHECKING:
    from sync._codec import Arrivals, EventPump, Receiver, StrictMaker
    from sync.native_outbox import NativeOutbox

__all__ = [
    "CODEC_VARIABLE",
    "codec_name",
    "gather",
    "load",
    "make_arrivals",
    "make_outbox",
    "make_plain",
    "make_pump",
    "make_receiver",
    "make_registry",
    "make_sealer",
    "make_strict",
    "seals",
    "sending_by_itself",
]

CODEC_VARIABLE = "HAFW_CODEC"
"""``reference`` in the environment forces the reference."""


def load() -> tuple[ModuleType | None, str]:
    """`sync._codec`, or None and why the reference runs."""
    if os.environ.get(CODEC_VARIABLE) == "reference":
        return None, f"{CODEC_VARIABLE}=reference"
    try:
        return importlib.import_module("sync._codec"), ""
    except ModuleNotFoundError:
        return None, "the native module was not built"
    except ImportError as error:
        return None, f"the native module does not load: {error}"


def codec_name() -> str:
    """As the status says it."""
    module, why = load()
    if module is None:
        return f"reference ({why})"
    problem = module.crypto_problem()
    return f"native (without {problem})" if problem else "native"


def seals() -> bool:
    """Does the native codec seal too?"""
    module = load()[0]
    return module is not None and not module.crypto_problem()


def make_sealer(
    master: bytes, *, key_id: int, cluster_id: int, sender_id: int, session: int
) -> Seals:
    """What seals the datagrams of one session of this process."""
    if not seals():
        return wire.Sealer(
            master,
            key_id=key_id,
            cluster_id=cluster_id,
            sender_id=sender_id,
            session=session,
            draw=os.urandom,
        )
    from sync._codec import Sealer

    return Sealer(
        master, key_id=key_id, cluster_id=cluster_id, sender_id=sender_id, session=session
    )


def make_outbox(
    new_sealer: Callable[[], Seals],
    transport: Transport,
    *,
    ring_datagrams: int,
    boot: int,
    first_said: Callable[[], int],
) -> Outbox:
    """The sending end, over the links of `transport`; `new_sealer` is by `make_sealer`."""
    peers = len(transport.peer_ids)
    if not seals():
        return Outbox(
            new_sealer,
            transport.to_all,
            ring_datagrams=ring_datagrams,
            peers=peers,
            boot=boot,
            first_said=first_said,
        )
    from sync.native_outbox import NativeOutbox

    outbox = NativeOutbox(
        new_sealer,
        transport.to_all,
        failed=transport.on_failed,
        ring_datagrams=ring_datagrams,
        peers=peers,
        boot=boot,
        first_said=first_said,
    )
    transport.aim(outbox.sender.aim)
    return outbox


def sending_by_itself(outbox: Outbox) -> NativeOutbox | None:
    """What the pump sends to, if it can."""
    if not seals():
        return None
    from sync.native_outbox import NativeOutbox

    assert isinstance(outbox, NativeOutbox)
    return outbox


def make_registry(hashes: FlowHash) -> tuple[FlowRegistry, RandomBits]:
    """The registry, and where the incarnations of its flows come from."""
    if load()[0] is None:
        return Registry(hashes), SystemRandom()
    from sync._codec import Incarnations
    from sync.native_registry import NativeRegistry

    return NativeRegistry(hashes), Incarnations(secrets.randbits(64))


def make_pump(registry: FlowRegistry, random: RandomBits, *, own_port: int) -> EventPump | None:
    """What publishes plain events into this registry; None for a registry of Python objects."""
    if load()[0] is None:
        return None
    from sync._codec import EventPump, Incarnations
    from sync.native_registry import NativeRegistry

    assert isinstance(registry, NativeRegistry)
    assert isinstance(random, Incarnations)
    return EventPump(
        registry.table,
        random,
        room=DELTAS_BYTES_MAX,
        slow_flags=Flag.ADOPTED | Flag.LIBERAL,
        passed_by=Flag.PASSED_BY,
        unpassed=Flag.UNPASSED,
        own_port=own_port,
    )


def make_receiver(
    registry: FlowRegistry, groups: dict[int, ReplicaGroup], *, hold_s: int
) -> Receiver | None:
    """What applies plain deltas to this registry; None for a registry of Python objects."""
    if load()[0] is None:
        return None
    from sync._codec import Receiver
    from sync.native_registry import NativeRegistry

    assert isinstance(registry, NativeRegistry)
    return Receiver(registry.table, groups, hold_s, TOMBSTONES_MAX)


def make_arrivals(receiver: Receiver | None, *, cluster_id: int) -> Arrivals | None:
    """What opens the datagrams of peers for this receiver; None without it, or where libcrypto
    cannot be used."""
    if receiver is None:
        return None
    from sync._codec import Arrivals, crypto_problem

    return None if crypto_problem() else Arrivals(receiver, cluster_id=cluster_id)


def make_strict(registry: FlowRegistry) -> StrictMaker | None:
    """What makes liberal flows of a dump strict; None for a registry of Python objects."""
    if load()[0] is None:
        return None
    from sync._codec import StrictMaker
    from sync.native_registry import NativeRegistry

    assert isinstance(registry, NativeRegistry)
    return StrictMaker(registry.table, Flag.LIBERAL)


def gather() -> Gather | None:
    """What receives a dump in large pieces; None for the reference."""
    module = load()[0]
    return None if module is None else module.receive_dump


def make_plain(
    registry: FlowRegistry,
) -> Callable[[bytes, int, Collection[int]], tuple[bytes, int, list[bytes]]] | None:
    """What `Serving.plain` is to be; None for a registry of Python objects."""
    if load()[0] is None:
        return None
    from sync._codec import serve_dump
    from sync.native_registry import NativeRegistry

    assert isinstance(registry, NativeRegistry)
    return partial(serve_dump, registry.table)
