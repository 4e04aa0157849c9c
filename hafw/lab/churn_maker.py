"""Makes the churn: creations, changes, deletions, re-used tuples, clashes. Shell.

Everything goes into the owner's kernel by ctnetlink from a socket that is not syncd's, as if
packets had done it. Each batch is one write; `rate` is flows made a second, 0 for as fast as it
goes.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from hafw.errors import StateError
from hafw.flow import FlowEntry, FlowKey, hafw_mark
from hafw.lab.churn_flows import (
    LONG_S,
    SLOTS_MAX,
    change_of,
    create_message,
    flow_of,
    has_port_of_vip,
    heir,
    reborn,
    squatter_of,
)
from sync.ctnetlink import build_delete
from sync.ctsocket import RequestSocket

__all__ = ["ChurnMaker"]

BATCH_FLOWS = 40
CHANGES_PER_FLOW = 0.7
TUPLE_REUSE = TRANSLATION_REUSE = 0.05
SQUATTERS = 0.005


class ChurnMaker:
    """Flows numbered 0 to `flows`; `standing` of them live at the end."""

    def __init__(
        self, owner: RequestSocket, replica: RequestSocket, *, flows: int, standing: int,
        seed: int, group: int,
    ) -> None:  # fmt: skip
        if flows * 2 > SLOTS_MAX:
            raise StateError(f"{flows} flows; there are addresses for {SLOTS_MAX // 2}")
        self._owner, self._replica = owner, replica
        self._flows, self._standing = flows, standing
        self._seed, self._rng = seed, Random(seed)
        self._mark = hafw_mark(group, 1, 1)
        self._slot = 0
        self._live: list[FlowEntry] = []
        self._expired: set[FlowKey] = set()
        self._messages: list[tuple[str, FlowEntry, bytes]] = []
        self.made = 0
        self.done: Counter[str] = Counter()
        """Requests by kind."""
        self.refused: Counter[str] = Counter()
        """Requests the kernel refused, by kind and errno. A flow that has expired may be missing;
        anything else is this module's own mistake and counts as ``wrong_...``."""

    def run(self, rate: float, between: Callable[[int], None]) -> float:
        """All of it; `between` is called with the number made after each batch. Seconds taken."""
        begun = time.monotonic()
        while self.made < self._flows:
            for _ in range(min(BATCH_FLOWS, self._flows - self.made)):
                self._one()
            self._send()
            between(self.made)
            if rate:
                time.sleep(max(0.0, begun + self.made / rate - time.monotonic()))
        return time.monotonic() - begun

    def _one(self) -> None:
        draw = self._rng.random()
        born: FlowEntry | None = None
        if len(self._live) > self._standing:
            gone = self._pick_out()
            self._ask("delete", gone, build_delete(gone.key))
            if draw < TUPLE_REUSE:
                born = reborn(gone, self._next_slot())
                self.done["tuples_reused"] += 1
            elif draw < TUPLE_REUSE + TRANSLATION_REUSE:
                born = heir(gone, self._next_slot())
                self.done["translations_reused"] += born is not None
        if born is None:
            slot = self._next_slot()
            born = flow_of(self._seed, self.made, slot, slot, mark=self._mark)
        if has_port_of_vip(born) and self._rng.random() < SQUATTERS:
            self._squat(born)
        self._ask("create", born, create_message(born))
        self._live.append(born)
        self.made += 1
        if self._rng.random() < CHANGES_PER_FLOW:
            index = self._rng.randrange(len(self._live))
            change = change_of(self._live[index], self._rng)
            self._ask("change", self._live[index], change.message)
            self._live[index] = change.entry

    def _pick_out(self) -> FlowEntry:
        index = self._rng.randrange(len(self._live))
        self._live[index], self._live[-1] = self._live[-1], self._live[index]
        return self._live.pop()

    def _squat(self, entry: FlowEntry) -> None:
        """Somebody sits on the translation in the replica's kernel already."""
        if not self._replica.execute([create_message(squatter_of(entry))])[0]:
            self.done["squatters"] += 1

    def _next_slot(self) -> int:
        self._slot += 1
        return self._slot

    def _ask(self, kind: str, entry: FlowEntry, message: bytes) -> None:
        self._messages.append((kind, entry, message))

    def _send(self) -> None:
        results = self._owner.execute([message for _kind, _entry, message in self._messages])
        for (kind, entry, _message), code in zip(self._messages, results, strict=True):
            self.done[kind] += 1
            if kind == "create":
                self._expired.discard(entry.key)
            if code:
                expired = code == errno.ENOENT and (
                    (entry.timeout_s or 0) < LONG_S or entry.key in self._expired
                )
                if expired:
                    # What was meant to make it live longer came too late.
                    self._expired.add(entry.key)
                name = errno.errorcode.get(code, str(code))
                proto = entry.key.orig.proto
                self.refused[f"{kind}_expired" if expired else f"wrong_{kind}_{name}_{proto}"] += 1
        self._messages.clear()
