"""What a snapshot says: entries of a dump joined with the registry. Pure."""

from __future__ import annotations

from typing import Protocol

from hafw.flow import Expectation, FlowEntry, FlowKey
from sync.delta import ExpectUpsert, Upsert
from sync.flowhash import bucket_of
from sync.registry import FlowRegistry

__all__ = ["Asked", "join_entry", "join_expectation"]


class Asked(Protocol):
    """What was asked for: a group, or some buckets of it (empty: all)."""

    @property
    def group(self) -> int: ...
    @property
    def buckets(self) -> frozenset[int]: ...


def join_entry(registry: FlowRegistry, asked: Asked, entry: FlowEntry) -> Upsert | None:
    """None: not asked for, not known, or known as another life."""
    if not _is_meant(registry, asked, entry.key):
        return None
    record = registry.get(entry.key)
    if record is None:
        return None
    if registry.hashes.contribution(entry, record.incarnation) != record.contribution:
        return None
    return Upsert(entry, record.incarnation, record.version, True)


def join_expectation(
    registry: FlowRegistry, asked: Asked, expectation: Expectation
) -> ExpectUpsert | None:
    """As `join_entry`, by its master."""
    record = registry.get(expectation.master)
    if record is None or record.group != asked.group:
        return None
    if not _is_meant(registry, asked, expectation.master):
        return None
    if expectation.expected.family != expectation.master.orig.family:
        return None  # `Publisher.expected` does not say it either.
    return ExpectUpsert(expectation, record.incarnation, record.version, True)


def _is_meant(registry: FlowRegistry, asked: Asked, key: FlowKey) -> bool:
    return not asked.buckets or bucket_of(registry.hashes.flow(key)) in asked.buckets
