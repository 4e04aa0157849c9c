"""Carries kernel operations out, in batches, and deals with every answer.

=========== ========== =========================================================================
operation   errno      what is done
=========== ========== =========================================================================
Create      EEXIST     GET. Same REPLY: update. Another: replace. Another flow has our reply tuple
                       (perhaps also): it goes. Then the creation is tried once more
Update      ENOENT     create
Update      EBUSY      once more as what it may be here instead: an expected flow or not; then
                       replace (a status bit that the entry here has and the sender's has not)
Replace     EEXIST     as Create: its own old entry was deleted just before
create,     ENOENT     its master is not here: once more as a flow of its own
of a child
expectation ENOENT     the kernel has no such master: counted; the next refresh says both again
Update      EPERM      replace: its timeout is fixed (GRE)
Update      ENOSPC     with labels: no rule of this node sets any, entries have no room for them;
                       all else was done
any         ENOMEM     the table is full: counted, reported, the flow has no replica here
any other   any        counted by name; ENOENT of a deletion or adoption is nothing (it is gone)
=========== ========== =========================================================================
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from hafw.errors import KernelError
from hafw.flow import IPPROTO_TCP, IPS_EXPECTED, MARK_MASK, Expectation, FlowEntry, FlowKey
from sync.ctnetlink import (
    build_create,
    build_delete,
    build_expect_create,
    build_expect_delete,
    build_update,
    clear_liberal,
    parse_dump,
)
from sync.ctsocket import RequestSocket
from sync.delta import Destroy, Upsert, decode_deltas
from sync.labels import probe_labels
from sync.ops import (
    Adopt,
    Create,
    CreateExpectation,
    KernelOp,
    MakeStrict,
    Pristine,
    Remove,
    RemoveExpectation,
    Replace,
    SetTimeout,
    Update,
    op_key,
)

if TYPE_CHECKING:
    from sync._codec import Batch

__all__ = ["OPS_BATCH_MAX", "Applier"]

OPS_BATCH_MAX = 64
"""Operations a system call: about a millisecond of kernel time at most."""


class Applier:
    """Owns the request socket whose port id marks events as our own."""

    def __init__(
        self,
        *,
        hold_s: int,
        requests: RequestSocket | None = None,
        expectations_of: Callable[[FlowKey], Sequence[Expectation]] = lambda _: (),
    ) -> None:
        """`expectations_of`: what a flow expects, to be made again when it is replaced (the
        kernel deletes a master's expectations with it)."""
        self._socket = RequestSocket() if requests is None else requests
        self._hold_s = hold_s
        self._expectations_of = expectations_of
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

    def get_expectation(self, key: FlowKey) -> Expectation | None:
        return self._socket.get_expectation(key)

    def probe_labels(self) -> bool | None:
        """None if it cannot be told now."""
        try:
            return probe_labels(self._socket)
        except KernelError:
            return None

    def take_refused(self) -> dict[FlowKey, int]:
        refused, self.refused = self.refused, {}
        return refused

    def apply(self, ops: Sequence[KernelOp]) -> None:
        """All of `ops`, in order. Failures are counted and, where a replica is missing
        afterwards, kept in `refused`; nothing is raised for them."""
        for start in range(0, len(ops), OPS_BATCH_MAX):
            self._batch(ops[start : start + OPS_BATCH_MAX])

    def apply_native(self, batch: Batch) -> None:
        """As `apply`, what the native codec has collected; empties it."""
        if batch.messages:
            try:
                failed = self._socket.execute_batch(batch)
            except KernelError as error:
                ops = [_requested(batch, index)[0] for index in range(batch.messages)]
                self._unanswered(ops, error)
            else:
                self.counters["kernel_writes"] += batch.messages
                for index, code in failed:
                    op, deletes = _requested(batch, index)
                    self._failed(op, code, deletes=deletes)
        batch.clear()

    def _batch(self, ops: Sequence[KernelOp]) -> None:
        messages: list[bytes] = []
        owners: list[tuple[KernelOp, int]] = []
        for op in ops:
            try:
                built = self._messages(op)
            except (ValueError, OverflowError, struct.error):
                # Authentic but impossible (a peer of another release, a broken one): this flow
                # alone is left out.
                self.counters["deltas_quarantined"] += 1
                continue
            messages += built
            owners += [(op, index) for index in range(len(built))]
        try:
            results = self._socket.execute(messages)
        except KernelError as error:
            self._unanswered(ops, error)
            return
        self.counters["kernel_writes"] += len(messages)
        for index, code in enumerate(results):
            if code:
                op, part = owners[index]
                replaces = isinstance(op, (Replace, Pristine))
                if replaces and part > 1:
                    self._count("again_expectation", code)
                elif isinstance(op, CreateExpectation) and part:
                    self._count("expectation_timeout", code)
                else:
                    self._failed(op, code, deletes=replaces and part == 0)

    def _unanswered(self, ops: Sequence[KernelOp], error: KernelError) -> None:
        self.counters[f"apply_socket_{errno.errorcode.get(error.errno, error.errno)}"] += 1
        self.refused.update((op_key(op), error.errno) for op in ops)

    def _messages(self, op: KernelOp) -> list[bytes]:
        match op:
            case Create(entry):
                return [_create(entry, self._hold_s)]
            case Replace(entry):
                return self._replacement(entry, self._hold_s)
            case Pristine(entry):
                return self._replacement(entry, None)
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
            case CreateExpectation(expectation):
                return _expect(expectation)
            case RemoveExpectation(key=key):
                return [build_expect_delete(key)]
            case _:
                assert_never(op)

    def _replacement(self, entry: FlowEntry, hold_s: int | None) -> list[bytes]:
        """Deletion, creation, and what the flow expects."""
        return [build_delete(entry.key), _create(entry, hold_s), *self._again(entry.key)]

    def _again(self, key: FlowKey) -> list[bytes]:
        return [message for one in self._expectations_of(key) for message in _expect(one)]

    def _update(self, entry: FlowEntry, *, expected: bool | None = None) -> bytes:
        return build_update(
            entry.key,
            status=entry.status,
            timeout_s=max(self._hold_s, entry.timeout_s or 0),
            mark=(entry.mark, 0xFFFFFFFF),
            tcp=entry.tcp,
            seqadj=entry.seqadj,
            sctp=entry.sctp,
            synproxy=entry.synproxy,
            labels=entry.labels,
            expected=bool(entry.status & IPS_EXPECTED) if expected is None else expected,
        )

    def _failed(self, op: KernelOp, code: int, *, deletes: bool) -> None:
        if code == errno.ENOENT and (deletes or isinstance(op, (Remove, RemoveExpectation))):
            self.counters["delete_ENOENT"] += 1
            return
        self._count(type(op).__name__.lower(), code)
        match op:
            case Create(entry) | Replace(entry) | Pristine(entry) if code == errno.EEXIST:
                hold_s = None if isinstance(op, Pristine) else self._hold_s
                done = self._resolve(entry, hold_s)
            case Create(entry) | Replace(entry) | Pristine(entry) if (
                code == errno.ENOENT and entry.master is not None
            ):
                hold_s = None if isinstance(op, Pristine) else self._hold_s
                done = self._once([_create(entry, hold_s, with_master=False)], entry)
            case Update(entry) if code == errno.ENOENT:
                done = self._make([], entry, self._hold_s)
            case Update(entry) if code == errno.EBUSY:
                done = self._update_as_it_is(entry)
            case Update(entry) if code == errno.EPERM:
                done = self._make([entry.key], entry, self._hold_s)
            case Update(entry) if code == errno.ENOSPC and entry.labels is not None:
                done = True  # ctnetlink_change_conntrack takes labels last.
            case Create() | Replace() | Update() | Pristine():
                done = False
            case Remove() | Adopt() | SetTimeout() | MakeStrict():
                return
            case CreateExpectation() | RemoveExpectation():
                return
            case _:
                assert_never(op)
        if not done:
            self.refused.setdefault(op_key(op), code)

    def _resolve(self, entry: FlowEntry, hold_s: int | None) -> bool:
        """A creation met EEXIST: one of its two tuples is taken, or each by another flow."""
        there = self.look_up(entry.key)
        if there is not None and there.reply == entry.reply:
            self.counters["exists_updated"] += 1
            return self._once([self._update(entry)], entry)
        clear: list[FlowKey] = []
        if there is not None:
            self.counters["exists_replaced"] += 1
            clear.append(there.key)
        # ctnetlink looks a tuple up in either direction: this finds who has our reply tuple.
        clash = self.look_up(FlowKey(entry.key.zone, entry.reply))
        if clash is not None and clash.key not in clear:
            self.counters["clash_repaired"] += 1
            clear.append(clash.key)
        return self._make(clear, entry, hold_s)  # Without any: it has gone in the meantime.

    def _update_as_it_is(self, entry: FlowEntry) -> bool:
        """An update met EBUSY: the entry here is an expected flow and the sender's is not, or the
        other way round (its master was not here when it was made); or it cannot be updated."""
        expected = not entry.status & IPS_EXPECTED
        if not self._execute([self._update(entry, expected=expected)])[0]:
            self.counters["updated_as_it_is"] += 1
            return True
        return self._make([entry.key], entry, self._hold_s)

    def _make(self, clear: list[FlowKey], entry: FlowEntry, hold_s: int | None) -> bool:
        """Delete `clear` and create `entry` with what it expects, tried once; a child whose
        master is not here becomes a flow of its own."""
        if entry.tcp is None and entry.key.orig.proto == IPPROTO_TCP:
            # An update without its state found nothing to update; a flow in no state is no use.
            return self._judge(errno.ENODATA, entry)
        messages = [*map(build_delete, clear), _create(entry, hold_s), *self._again(entry.key)]
        code = self._execute(messages)[len(clear)]
        if code == errno.ENOENT and entry.master is not None:
            return self._once([_create(entry, hold_s, with_master=False)], entry)
        return self._judge(code, entry)

    def look_up(self, key: FlowKey) -> FlowEntry | None:
        """As `get`, but None also if the kernel did not answer (counted)."""
        try:
            return self._socket.get(key)
        except KernelError:
            self.counters["get_failed"] += 1
            return None

    def _once(self, messages: list[bytes], entry: FlowEntry) -> bool:
        """A repair, tried once; only its last message must succeed."""
        return self._judge(self._execute(messages)[-1], entry)

    def _execute(self, messages: list[bytes]) -> list[int]:
        """One errno a message; if the kernel did not answer at all, that for each."""
        try:
            return self._socket.execute(messages)
        except KernelError as error:
            return [error.errno or errno.EIO] * len(messages)

    def _judge(self, code: int, entry: FlowEntry) -> bool:
        if code:
            self._count("repair", code)
            self.refused[entry.key] = code
        return code == 0

    def _count(self, what: str, code: int) -> None:
        self.counters[f"{what}_{errno.errorcode.get(code, code)}"] += 1


def _expect(expectation: Expectation) -> list[bytes]:
    """Creation takes the timeout of the helper's policy whatever it is told
    (`nf_ct_expect_insert`); only what changes an expectation sets it."""
    return [build_expect_create(expectation)] * 2


def _create(entry: FlowEntry, hold_s: int | None, *, with_master: bool = True) -> bytes:
    return build_create(entry, hold_s=hold_s, with_master=with_master)


def _requested(batch: Batch, index: int) -> tuple[KernelOp, bool]:
    """The operation that a message of the native codec is part of, and whether it is the deletion
    with which a Replace begins."""
    kind, is_second, data, header_epoch = batch.request(index)
    if kind == "sweep":
        return Remove(parse_dump(data).entries[0].key), False
    if kind == "strict":
        return MakeStrict(parse_dump(data).entries[0].key), False
    (delta,) = decode_deltas(data, header_epoch=header_epoch)
    if isinstance(delta, Destroy):
        return Remove(delta.key), False
    assert isinstance(delta, Upsert), delta
    match kind:
        case "create":
            return Create(delta.entry), False
        case "replace":
            return Replace(delta.entry), not is_second
        case "update":
            return Update(delta.entry), False
        case _:
            assert kind == "update_without_tcp", kind
            return Update(replace(delta.entry, tcp=None)), False
