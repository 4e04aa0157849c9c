"""What syncd asks of its kernel: the closed set of operations on conntrack entries. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hafw.flow import Expectation, FlowEntry, FlowKey

__all__ = [
    "Adopt",
    "Create",
    "CreateExpectation",
    "KernelOp",
    "MakeStrict",
    "Pristine",
    "Remove",
    "RemoveExpectation",
    "Replace",
    "SetTimeout",
    "Update",
    "op_key",
]


@dataclass(frozen=True, slots=True)
class Create:
    """Insert as a pristine replica; if the kernel has an entry of the same translation already,
    update it."""

    entry: FlowEntry


@dataclass(frozen=True, slots=True)
class Update:
    """Bring status, TCP state, mark and timeout of a replica up to date."""

    entry: FlowEntry


@dataclass(frozen=True, slots=True)
class Replace:
    """Delete whatever has the key and insert as a pristine replica, in one write; what the
    registry knows it to expect is made again with it."""

    entry: FlowEntry


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the entry."""

    key: FlowKey


@dataclass(frozen=True, slots=True)
class Adopt:
    """A replica becomes ours: the top 16 bits of its mark, and a normal timeout if given."""

    key: FlowKey
    mark: int
    timeout_s: int | None


@dataclass(frozen=True, slots=True)
class SetTimeout:
    """Give an adopted entry the timeout of the state it is in now."""

    key: FlowKey
    timeout_s: int


@dataclass(frozen=True, slots=True)
class Pristine:
    """Replace an entry of our own by a pristine one: no hold, its own timeout."""

    entry: FlowEntry


@dataclass(frozen=True, slots=True)
class MakeStrict:
    """Clear BE_LIBERAL of a TCP entry: its windows are learnt."""

    key: FlowKey


@dataclass(frozen=True, slots=True)
class CreateExpectation:
    """Make an expectation, or refresh it. Its master must have come before."""

    expectation: Expectation


@dataclass(frozen=True, slots=True)
class RemoveExpectation:
    """Delete the expectation of this tuple."""

    master: FlowKey
    key: FlowKey


KernelOp = (
    Create
    | Update
    | Replace
    | Remove
    | Adopt
    | SetTimeout
    | Pristine
    | MakeStrict
    | CreateExpectation
    | RemoveExpectation
)


def op_key(op: KernelOp) -> FlowKey:
    """The flow an operation is about."""
    match op:
        case Create(entry) | Update(entry) | Replace(entry) | Pristine(entry):
            return entry.key
        case Remove(key) | Adopt(key=key) | SetTimeout(key=key) | MakeStrict(key):
            return key
        case CreateExpectation(expectation):
            return expectation.master
        case RemoveExpectation(master):
            return master
