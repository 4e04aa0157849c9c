"""Carries kernel operations out, in batches, and deals with every answer.

=========== ========== =========================================================================
operation   errno      what is done
=========== ========== =========================================================================
Create      EEXIST     GET. Same REPLY: update. Another: replace. No such entry: another flow has
                       our reply tuple; it goes, and the creation is tried once more
Update      ENOENT     create
Update      EBUSY      replace (a status bit that the entry here has and the sender's has not)
Replace     EEXIST     as Create: its own old entry was deleted just before
any         ENOMEM     the table is full: counted, reported, the flow has no replica here
any other   any        counted by name; ENOENT of a deletion or adoption is nothing (it is gone)
=========== ========== =========================================================================
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Sequence
from typing import assert_never

from hafw.errors import KernelError
from hafw.flow import MARK_MASK, FlowEntry, FlowKey
from sync.ctnetlink import build_create, build_delete, build_update, clear_liberal
from sync.ctsocket import RequestSocket
from sync.ops import (
    Adopt,
    Create,
    KernelOp,
    MakeStrict,
    Pristine,
    Remove,
    Replace,
    SetTimeout,
    Update,
    op_key,
)

__all__ = ["OPS_BATCH_MAX", "Applier"]

OPS_BATCH_MAX = 64
"""Operations a system call: about a millisecond of kernel time at most."""


class Applier:
    """Owns the request socket whose port id marks events as our own."""

    def __init__(self, *, hold_s: int, requests: RequestSocket | None = None) -> None:
        self._socket = RequestSocket() if requests is None else requests
        self._hold_s = hold_s
        self.counters: Counter[str] = Counter()
        self.refused: dict[FlowKey, int] = {}
        """Flows that should have a replica here and have none, since the last `take_refused`, and
        the errno of each."""

    @property
    def port_id(self) -> int:
        return self._socket.port_id

    def close(self) -> None:
        self._socket.close()

    def get(self, key: FlowKey) -> FlowEntry | None:
        return self._socket.get(key)

    def take_refused(self) -> dict[FlowKey, int]:
        refused, self.refused = self.refused, {}
        return refused

    def apply(self, ops: Sequence[KernelOp]) -> None:
        """All of `ops`, in order. Failures are counted and, where a replica is missing
        afterwards, kept in `refused`; nothing is raised for them."""
        for start in range(0, len(ops), OPS_BATCH_MAX):
            self._batch(ops[start : start + OPS_BATCH_MAX])

    def _batch(self, ops: Sequence[KernelOp]) -> None:
        messages: list[bytes] = []
        owners: list[KernelOp] = []
        for op in ops:
            try:
                built = self._messages(op)
            except (ValueError, OverflowError, struct.error):
                # Authentic but impossible (a peer of another release, a broken one): this flow
                # alone is left out.
                self.counters["deltas_quarantined"] += 1
                continue
            messages += built
            owners += [op] * len(built)
        try:
            results = self._socket.execute(messages)
        except KernelError as error:
            self.counters[f"apply_socket_{errno.errorcode.get(error.errno, error.errno)}"] += 1
            self.refused.update((op_key(op), error.errno) for op in ops)
            return
        self.counters["kernel_writes"] += len(messages)
        for index, code in enumerate(results):
            if code:
                op = owners[index]
                # Of two messages the first is a deletion.
                deletes = index + 1 < len(owners) and owners[index + 1] is op
                self._failed(op, code, deletes=deletes)

    def _messages(self, op: KernelOp) -> list[bytes]:
        match op:
            case Create(entry):
                return [build_create(entry, hold_s=self._hold_s)]
            case Replace(entry):
                return [build_delete(entry.key), build_create(entry, hold_s=self._hold_s)]
            case Pristine(entry):
                return [build_delete(entry.key), build_create(entry)]
            case Update(entry):
                return [self._update(entry)]
            case Remove(key):
                return [build_delete(key)]
            case Adopt(key, mark, timeout_s):
                mark &= MARK_MASK
                return [build_update(key, timeout_s=timeout_s, mark=(mark, MARK_MASK))]
            case SetTimeout(key, timeout_s):
                return [build_update(key, timeout_s=timeout_s)]
            case MakeStrict(key):
                return [clear_liberal(key)]
            case _:
                assert_never(op)

    def _update(self, entry: FlowEntry) -> bytes:
        return build_update(
            entry.key,
            status=entry.status,
            timeout_s=max(self._hold_s, entry.timeout_s or 0),
            mark=(entry.mark, 0xFFFFFFFF),
            tcp=entry.tcp,
            seqadj=entry.seqadj,
        )

    def _failed(self, op: KernelOp, code: int, *, deletes: bool) -> None:
        if code == errno.ENOENT and (deletes or isinstance(op, Remove)):
            self.counters["delete_ENOENT"] += 1
            return
        name = errno.errorcode.get(code, str(code))
        self.counters[f"{type(op).__name__.lower()}_{name}"] += 1
        match op:
            case Create(entry) | Replace(entry) | Pristine(entry) if code == errno.EEXIST:
                hold_s = None if isinstance(op, Pristine) else self._hold_s
                done = self._resolve(entry, hold_s)
            case Update(entry) if code == errno.ENOENT:
                done = self._once([build_create(entry, hold_s=self._hold_s)], entry)
            case Update(entry) if code == errno.EBUSY:
                done = self._once(self._messages(Replace(entry)), entry)
            case Create() | Replace() | Update() | Pristine():
                done = False
            case Remove() | Adopt() | SetTimeout() | MakeStrict():
                return
            case _:
                assert_never(op)
        if not done:
            self.refused.setdefault(op_key(op), code)

    def _resolve(self, entry: FlowEntry, hold_s: int | None) -> bool:
        """A creation met EEXIST: one of its two tuples is taken."""
        there = self.look_up(entry.key)
        if there is not None and there.reply == entry.reply:
            self.counters["exists_updated"] += 1
            return self._once([self._update(entry)], entry)
        create = build_create(entry, hold_s=hold_s)
        if there is not None:
            self.counters["exists_replaced"] += 1
            return self._once([build_delete(entry.key), create], entry)
        # ctnetlink looks a tuple up in either direction: this finds who has our reply tuple.
        clash = self.look_up(FlowKey(entry.key.zone, entry.reply))
        if clash is None:
            return self._once([create], entry)  # It has gone in the meantime.
        self.counters["clash_repaired"] += 1
        return self._once([build_delete(clash.key), create], entry)

    def look_up(self, key: FlowKey) -> FlowEntry | None:
        """As `get`, but None also if the kernel did not answer (counted)."""
        try:
            return self._socket.get(key)
        except KernelError:
            self.counters["get_failed"] += 1
            return None

    def _once(self, messages: list[bytes], entry: FlowEntry) -> bool:
        """A repair, tried once; only its last message must succeed."""
        try:
            code = self._socket.execute(messages)[-1]
        except KernelError as error:
            code = error.errno or errno.EIO
        if code:
            self.counters[f"repair_{errno.errorcode.get(code, code)}"] += 1
            self.refused[entry.key] = code
        return code == 0
