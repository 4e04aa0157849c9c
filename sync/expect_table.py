"""Expectations as the registry knows them: what the peers were told, or told us. Pure."""

from __future__ import annotations

from hafw.flow import Expectation, FlowKey

__all__ = ["EXPECTATIONS_MAX", "ExpectTable"]

EXPECTATIONS_MAX = 65_536
"""Far above the kernel's own bound (nf_conntrack_expect_max, 4096); beyond it none is added."""


class ExpectTable:
    """By their own key and by master. A master that goes takes its expectations with it."""

    def __init__(self) -> None:
        self._known: dict[FlowKey, Expectation] = {}
        self._masters: dict[FlowKey, dict[FlowKey, None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: FlowKey) -> bool:
        return key in self._known

    def get(self, key: FlowKey) -> Expectation | None:
        return self._known.get(key)

    def of(self, master: FlowKey) -> tuple[Expectation, ...]:
        """What this flow expects, oldest first."""
        return tuple(self._known[key] for key in self._masters.get(master, ()))

    def masters(self) -> tuple[FlowKey, ...]:
        """The flows that expect something."""
        return tuple(self._masters)

    def all(self) -> tuple[Expectation, ...]:
        return tuple(self._known.values())

    def put(self, expectation: Expectation) -> bool:
        """False if there is no room."""
        key = expectation.key
        old = self._known.get(key)
        if old is None and len(self._known) >= EXPECTATIONS_MAX:
            return False
        if old is not None and old.master != expectation.master:
            self.remove(key)
        self._known[key] = expectation
        self._masters.setdefault(expectation.master, {})[key] = None
        return True

    def remove(self, key: FlowKey) -> Expectation | None:
        old = self._known.pop(key, None)
        if old is not None:
            keys = self._masters[old.master]
            del keys[key]
            if not keys:
                del self._masters[old.master]
        return old

    def remove_master(self, master: FlowKey) -> None:
        for key in self._masters.pop(master, ()):
            del self._known[key]
